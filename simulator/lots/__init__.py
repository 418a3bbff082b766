"""Lots of chips: in HDF5 files, as fault lists in CSV, and drawn at random."""
