"""Differential testing: the cycle engine against the emulation, on random faulty GEMMs and on whole networks."""
