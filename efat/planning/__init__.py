"""Which chips of a lot share a retraining, and how long each takes."""
