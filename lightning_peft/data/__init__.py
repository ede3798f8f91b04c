"""Augmentation, sampling, splitting and reading of data, for any data module."""
