"""The engine for all tuners of Hugging Face ``peft``."""
