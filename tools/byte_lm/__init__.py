"""Pretraining of ``examples/byte_lm``, a language model the size of a joke."""
