"""The commands beside training, one a file."""
