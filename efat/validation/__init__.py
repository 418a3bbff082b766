"""Differential testing: the implementations of the array compared on random faulty GEMMs and on whole networks."""

DEFAULT_CASES = 2000
DEFAULT_RTL_CASES = 500
DEFAULT_IMAGES = 64
