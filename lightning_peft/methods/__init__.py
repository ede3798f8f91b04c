"""The methods, one file each; importing this package registers them."""

from lightning_peft.methods.adalora import AdaLoRA
from lightning_peft.methods.adapter_plus import AdapterPlus
from lightning_peft.methods.adaptformer import AdaptFormer
from lightning_peft.methods.base import Method, Plan, Site
from lightning_peft.methods.bitfit import BitFit
from lightning_peft.methods.conv_adapter import ConvAdapter
from lightning_peft.methods.convpass import Convpass
from lightning_peft.methods.dora import DoRA
from lightning_peft.methods.existing import Existing
from lightning_peft.methods.fact import FacTTK, FacTTT
from lightning_peft.methods.from_peft.tuners import list_tuners
from lightning_peft.methods.full import Full
from lightning_peft.methods.hf import HF
from lightning_peft.methods.hydra import Hydra
from lightning_peft.methods.ia3 import IA3
from lightning_peft.methods.ladder import LadderSideTuning
from lightning_peft.methods.last_blocks import LastBlocks
from lightning_peft.methods.linear_probe import LinearProbe
from lightning_peft.methods.lora import LoRA
from lightning_peft.methods.lora_fa import LoRAFA
from lightning_peft.methods.lora_qv import LoRAQV
from lightning_peft.methods.norm import Norm
from lightning_peft.methods.registry import (
    create_method,
    list_methods,
    method_from_config,
    register_method,
)
from lightning_peft.methods.repadapter import RepAdapter
from lightning_peft.methods.serial import Houlsby, Pfeiffer
from lightning_peft.methods.ssf import SSF
from lightning_peft.methods.union import Union, as_method
from lightning_peft.methods.vpt import VPTDeep, VPTShallow

__all__ = [
    "HF",
    "IA3",
    "SSF",
    "AdaLoRA",
    "AdaptFormer",
    "AdapterPlus",
    "BitFit",
    "ConvAdapter",
    "Convpass",
    "DoRA",
    "Existing",
    "FacTTK",
    "FacTTT",
    "Full",
    "Houlsby",
    "Hydra",
    "LadderSideTuning",
    "LastBlocks",
    "LinearProbe",
    "LoRA",
    "LoRAFA",
    "LoRAQV",
    "Method",
    "Norm",
    "Pfeiffer",
    "Plan",
    "RepAdapter",
    "Site",
    "Union",
    "VPTDeep",
    "VPTShallow",
    "as_method",
    "create_method",
    "list_methods",
    "list_tuners",
    "method_from_config",
    "register_method",
]
