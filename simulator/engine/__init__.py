"""The cycle engine: GEMMs on the array, every register of every PE in every clock cycle."""
