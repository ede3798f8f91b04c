"""The engine behind every tuner of Hugging Face ``peft``."""
