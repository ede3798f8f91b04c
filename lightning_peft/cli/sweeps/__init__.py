"""Sweeps: which sweep a directory holds, which jobs are left to run, and their processes."""
