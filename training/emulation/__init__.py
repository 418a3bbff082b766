"""GEMMs on a faulty array as fast tensor operations, bit for bit what the cycle engine computes."""
