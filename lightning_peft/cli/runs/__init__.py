"""What one run's directory holds: its log, its summary, who is at work in it."""
