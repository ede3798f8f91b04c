"""Searches: sweeps whose jobs are trials that Optuna proposes."""
