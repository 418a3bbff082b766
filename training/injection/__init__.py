"""What single faults do in a network: a run without faults is kept, and only what differs is done again."""
