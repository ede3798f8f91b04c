"""What a training step costs on the models that people take: ``python -m benchmarks.resources``."""
