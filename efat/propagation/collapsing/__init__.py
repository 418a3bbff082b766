"""Faults whose effect is known without a run."""
