"""The commands other than training, one per file."""
