"""Long work in units that survives being interrupted, and the workers that do it."""
