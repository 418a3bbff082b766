"""Differential testing: the implementations of the array compared on random faulty GEMMs and on whole networks."""
