"""What is done about a chip's broken PEs."""
