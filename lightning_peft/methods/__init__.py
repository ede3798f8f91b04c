"""The methods, one file each; importing this package registers them."""

from lightning_peft.methods.base import Method, Plan, Site
from lightning_peft.methods.bitfit import BitFit
from lightning_peft.methods.dora import DoRA
from lightning_peft.methods.full import Full
from lightning_peft.methods.hf import HF
from lightning_peft.methods.ia3 import IA3
from lightning_peft.methods.last_blocks import LastBlocks
from lightning_peft.methods.linear_probe import LinearProbe
from lightning_peft.methods.lora import LoRA
from lightning_peft.methods.norm import Norm
from lightning_peft.methods.registry import (
    as_method,
    create_method,
    list_methods,
    method_from_config,
    register_method,
)
from lightning_peft.methods.tuners import list_tuners
from lightning_peft.methods.union import Union

__all__ = [
    "HF",
    "IA3",
    "BitFit",
    "DoRA",
    "Full",
    "LastBlocks",
    "LinearProbe",
    "LoRA",
    "Method",
    "Norm",
    "Plan",
    "Site",
    "Union",
    "as_method",
    "create_method",
    "list_methods",
    "list_tuners",
    "method_from_config",
    "register_method",
]
