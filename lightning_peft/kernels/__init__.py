"""Faster forward and backward passes for adapters, equal to the plain ones up to rounding."""

from lightning_peft.kernels.fast_lora import Acceleration, accelerate
from lightning_peft.kernels.low_rank import low_rank_linear

__all__ = ["Acceleration", "accelerate", "low_rank_linear"]
