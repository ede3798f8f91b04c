"""Adapted models after training: export, averaging, switching between adapters, prediction."""
