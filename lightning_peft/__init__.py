"""lightning-peft: parameter-efficient fine-tuning for PyTorch Lightning.

Everything public is reachable from here, and nothing is imported before it is asked for: the name
of this package costs neither torch nor lightning nor timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_peft.backbones._register import register_when_timm_is_imported
from lightning_peft.moved import find_moved_modules

if TYPE_CHECKING:
    from lightning_peft.adaptation.adapt import adapt
    from lightning_peft.adaptation.handle import Adaptation, find_adaptation
    from lightning_peft.adaptation.loading import load_adapter
    from lightning_peft.adaptation.parameter_groups import parameter_groups
    from lightning_peft.adaptation.plan import AdaptationPlan, plan
    from lightning_peft.adaptation.serving.exporting import ExportReport, export_model
    from lightning_peft.adaptation.serving.soup import (
        average_adapters,
        average_updates,
        greedy_soup,
        soup,
    )
    from lightning_peft.adaptation.serving.switching import AdapterSwitch
    from lightning_peft.adaptation.sharding import shard
    from lightning_peft.caching.views import RepeatedViews
    from lightning_peft.data.augment import Augment
    from lightning_peft.errors import (
        AdapterFileError,
        BackboneMismatchError,
        CheckpointError,
        DataError,
        ExportError,
        MethodError,
        MissingExtraError,
        PEFTError,
        ScheduleError,
        TargetError,
    )
    from lightning_peft.kernels import Acceleration, accelerate
    from lightning_peft.lightning.callbacks.cache import FeatureCache
    from lightning_peft.lightning.callbacks.efficiency import EfficiencyMonitor
    from lightning_peft.lightning.callbacks.finite import FiniteLoss, NonFiniteLossError
    from lightning_peft.lightning.callbacks.freeze import BackboneFreeze, Stage
    from lightning_peft.lightning.callbacks.l2sp import L2SP
    from lightning_peft.lightning.callbacks.peft import PEFT
    from lightning_peft.lightning.callbacks.schedule import (
        WarmupConstant,
        WarmupCosine,
        WarmupLinear,
        WarmupStableDecay,
    )
    from lightning_peft.lightning.datamodules.digits import DigitsDataModule
    from lightning_peft.lightning.datamodules.folder import ImageFolderDataModule
    from lightning_peft.lightning.datamodules.text import TextDataModule
    from lightning_peft.lightning.datamodules.vtab import VTABDataModule
    from lightning_peft.lightning.mixin import PEFTMixin, load_from_checkpoint
    from lightning_peft.lightning.modules.image import ImageClassifier
    from lightning_peft.lightning.modules.regression import ImageRegressor
    from lightning_peft.lightning.modules.text import TextClassifier
    from lightning_peft.methods import (
        HF,
        IA3,
        SSF,
        AdaLoRA,
        AdapterPlus,
        AdaptFormer,
        BitFit,
        ConvAdapter,
        Convpass,
        DoRA,
        FacTTK,
        FacTTT,
        Full,
        Houlsby,
        Hydra,
        LadderSideTuning,
        LastBlocks,
        LinearProbe,
        LoRA,
        LoRAFA,
        LoRAQV,
        Method,
        Norm,
        Pfeiffer,
        RepAdapter,
        Union,
        VPTDeep,
        VPTShallow,
        create_method,
        list_methods,
        register_method,
    )

__version__ = "0.1.0"

_WHERE = {
    "lightning_peft.adaptation.handle": ("Adaptation", "find_adaptation"),
    "lightning_peft.adaptation.adapt": ("adapt",),
    "lightning_peft.caching.views": ("RepeatedViews",),
    "lightning_peft.lightning.callbacks.cache": ("FeatureCache",),
    "lightning_peft.adaptation.loading": ("load_adapter",),
    "lightning_peft.lightning.callbacks.efficiency": ("EfficiencyMonitor",),
    "lightning_peft.lightning.callbacks.finite": ("FiniteLoss", "NonFiniteLossError"),
    "lightning_peft.lightning.callbacks.freeze": ("BackboneFreeze", "Stage"),
    "lightning_peft.lightning.callbacks.l2sp": ("L2SP",),
    "lightning_peft.lightning.callbacks.peft": ("PEFT",),
    "lightning_peft.lightning.callbacks.schedule": (
        "WarmupConstant",
        "WarmupCosine",
        "WarmupLinear",
        "WarmupStableDecay",
    ),
    "lightning_peft.data.augment": ("Augment",),
    "lightning_peft.lightning.datamodules.digits": ("DigitsDataModule",),
    "lightning_peft.lightning.datamodules.folder": ("ImageFolderDataModule",),
    "lightning_peft.lightning.datamodules.text": ("TextDataModule",),
    "lightning_peft.lightning.datamodules.vtab": ("VTABDataModule",),
    "lightning_peft.errors": (
        "AdapterFileError",
        "BackboneMismatchError",
        "CheckpointError",
        "DataError",
        "ExportError",
        "MethodError",
        "MissingExtraError",
        "PEFTError",
        "ScheduleError",
        "TargetError",
    ),
    "lightning_peft.adaptation.serving.exporting": ("ExportReport", "export_model"),
    "lightning_peft.kernels": ("Acceleration", "accelerate"),
    "lightning_peft.methods": (
        "AdaLoRA",
        "AdapterPlus",
        "AdaptFormer",
        "ConvAdapter",
        "Convpass",
        "FacTTK",
        "FacTTT",
        "Hydra",
        "LadderSideTuning",
        "LoRAFA",
        "LoRAQV",
        "RepAdapter",
        "Houlsby",
        "Pfeiffer",
        "SSF",
        "VPTDeep",
        "VPTShallow",
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
        "Union",
        "create_method",
        "list_methods",
        "register_method",
    ),
    "lightning_peft.lightning.mixin": ("PEFTMixin", "load_from_checkpoint"),
    "lightning_peft.lightning.modules.image": ("ImageClassifier",),
    "lightning_peft.lightning.modules.regression": ("ImageRegressor",),
    "lightning_peft.lightning.modules.text": ("TextClassifier",),
    "lightning_peft.adaptation.parameter_groups": ("parameter_groups",),
    "lightning_peft.adaptation.plan": ("AdaptationPlan", "plan"),
    "lightning_peft.adaptation.sharding": ("shard",),
    "lightning_peft.adaptation.serving.soup": (
        "average_adapters",
        "average_updates",
        "greedy_soup",
        "soup",
    ),
    "lightning_peft.adaptation.serving.switching": ("AdapterSwitch",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "HF",
    "IA3",
    "L2SP",
    "PEFT",
    "SSF",
    "Acceleration",
    "AdaLoRA",
    "AdaptFormer",
    "Adaptation",
    "AdaptationPlan",
    "AdapterFileError",
    "AdapterPlus",
    "AdapterSwitch",
    "Augment",
    "BackboneFreeze",
    "BackboneMismatchError",
    "BitFit",
    "CheckpointError",
    "ConvAdapter",
    "Convpass",
    "DataError",
    "DigitsDataModule",
    "DoRA",
    "EfficiencyMonitor",
    "ExportError",
    "ExportReport",
    "FacTTK",
    "FacTTT",
    "FeatureCache",
    "FiniteLoss",
    "Full",
    "Houlsby",
    "Hydra",
    "ImageClassifier",
    "ImageFolderDataModule",
    "ImageRegressor",
    "LadderSideTuning",
    "LastBlocks",
    "LinearProbe",
    "LoRA",
    "LoRAFA",
    "LoRAQV",
    "Method",
    "MethodError",
    "MissingExtraError",
    "NonFiniteLossError",
    "Norm",
    "PEFTError",
    "PEFTMixin",
    "Pfeiffer",
    "RepAdapter",
    "RepeatedViews",
    "ScheduleError",
    "Stage",
    "TargetError",
    "TextClassifier",
    "TextDataModule",
    "Union",
    "VPTDeep",
    "VPTShallow",
    "VTABDataModule",
    "WarmupConstant",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
    "accelerate",
    "adapt",
    "average_adapters",
    "average_updates",
    "create_method",
    "export_model",
    "find_adaptation",
    "greedy_soup",
    "list_methods",
    "load_adapter",
    "load_from_checkpoint",
    "parameter_groups",
    "plan",
    "register_method",
    "shard",
    "soup",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'lightning_peft' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_timm_is_imported()
find_moved_modules()
