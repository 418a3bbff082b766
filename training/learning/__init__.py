"""Networks that learn: recipes, the training loop, retraining for a chip, mitigations."""
