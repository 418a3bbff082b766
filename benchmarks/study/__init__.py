"""What the long studies share: networks on real data, and results that are kept as they come."""
