"""Differential testing: the cycle engine against the emulation, on random faulty GEMMs and on whole networks."""

DEFAULT_CASES = 2000
DEFAULT_IMAGES = 64
