"""When things happen in Lightning: hooks, checkpoints, schedules, callbacks, ready modules."""
