"""One page about a retrained lot, or about how faults travel through a network."""
