"""Measurements of the package; most are scripts, `evidence` and what it needs is a package."""
