"""Multipliers as netlists of gates: built in, read from files, written for other tools, and evaluated with faults."""
