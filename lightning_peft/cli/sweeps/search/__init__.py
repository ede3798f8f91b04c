"""Sweeps whose next job depends on the last: Optuna proposes, jobs are its trials."""
