"""How faults travel: from one net of one processing element through the array, the layers and a whole network."""
