"""The commands of `efat`, one module each."""
