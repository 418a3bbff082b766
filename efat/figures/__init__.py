"""Pictures of fault maps and multipliers."""
