"""Many jobs: which sweep a directory holds, which jobs are left to run, and who is at work."""
