"""The process and its files: random states, and files that are written completely or not at all."""
