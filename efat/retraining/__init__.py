"""Plans carried out: chips retrained, every one verified, and a manifest of what came out."""
