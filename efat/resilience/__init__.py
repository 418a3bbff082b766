"""How much retraining random chips need, over fault rates."""
