"""Clock cycles and memory traffic of GEMMs, counted without running them; files of SCALE-Sim."""
