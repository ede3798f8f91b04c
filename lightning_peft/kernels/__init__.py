"""Faster forward and backward passes for adapters, equal to the plain ones up to rounding."""

from lightning_peft.kernels.fast_lora import (
    Acceleration,
    accelerate,
    acceleration_of,
    holds_lora,
    memory_problem,
)
from lightning_peft.kernels.low_rank import low_rank_linear
from lightning_peft.kernels.rebuild import Memory

__all__ = [
    "Acceleration",
    "Memory",
    "accelerate",
    "acceleration_of",
    "holds_lora",
    "low_rank_linear",
    "memory_problem",
]
