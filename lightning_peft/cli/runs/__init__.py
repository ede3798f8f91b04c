"""The directory of a run: its log, its summary, and the process that works in it."""
