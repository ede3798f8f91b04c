"""Adapter directories and checkpoints as data: written, read, and checked before they are used."""
