"""Everything that needs Lightning: hooks, checkpoints, schedules, callbacks, ready modules."""
