"""Networks on chips: quantised layers, conversion, placement, deployment."""
