"""The classes that a recorded config may build: an allow-list, checked before and after import.

A ``_target_`` is a call of anything that Python can import. A name that does not begin with a known
package is refused without an import. Then the object itself has to be a class of a known kind: the
same packages also have functions that run programs, read pickles or download files.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.check import locate
from lightning_peft.cli.config.paths import conf_dir

__all__ = ["refusal", "targets_in"]

PUBLIC = re.compile(r"lightning_peft\.[A-Za-z]\w*")
NAME = re.compile(r"[A-Za-z]\w*(\.(?!__)[A-Za-z_]\w*)+", flags=re.ASCII)
TARGET = re.compile(r"""_target_['"]?\s*:\s*['"]?([\w.]+)""")

METRICS = ("aggregation", "classification", "clustering", "nominal", "regression", "retrieval")
"""The parts of torchmetrics whose classes compute; others load models by name."""

CREATE_MODEL = ("timm.create_model", "timm.models.create_model")


def targets_in(directories: Iterable[Path]) -> frozenset[str]:
    """Return every ``_target_`` that the configs below directories name.

    Args:
        directories: Directories of configs that the user chose now.
    """
    return frozenset(
        target
        for directory in directories
        for path in sorted(directory.rglob("*.y*ml"))
        if path.is_file()
        for target in TARGET.findall(path.read_text(encoding="utf-8", errors="replace"))
    )


def refusal(target: Any, own: frozenset[str] = frozenset()) -> str | None:
    """Return why a recorded config may not build something; ``None`` if it may.

    Args:
        target: The value of a ``_target_``.
        own: What the user's own configs name.
    """
    if not isinstance(target, str):
        return f"expected the name of a class, got {target!r:.60}"
    if target in own or target in _shipped() or target in CREATE_MODEL:
        return None
    kinds = _kinds_of(target) if NAME.fullmatch(target) else None
    if kinds is None:
        return f"got {target:.100}"
    try:
        found = locate(target)
    except LookupError as error:
        return str(error.args[0])
    except Exception as error:  # of an import that fails
        return f"got {target}, which cannot be imported ({type(error).__name__})"
    return None if kinds(found) else f"got {target}"


def _kinds_of(target: str) -> Callable[[Any], bool] | None:
    """Return the check of what a name stands for; ``None`` for a name of another package."""
    if PUBLIC.fullmatch(target):
        return _is_ours
    for prefix, kinds in _KINDS.items():
        if target.startswith(prefix):
            return kinds
    return _is_method if target.rpartition(".")[0] in _plugins() else None


def _is_ours(found: Any) -> bool:
    return _is_class_of(found, "lightning_peft")


def _is_method(found: Any) -> bool:
    from lightning_peft.methods.base import Method

    return inspect.isclass(found) and issubclass(found, Method)


def _is_of_lightning(found: Any) -> bool:
    import lightning.pytorch as pl
    from lightning.pytorch import accelerators, callbacks, loggers, profilers, strategies
    from lightning.pytorch.plugins import CheckpointIO, ClusterEnvironment, LayerSync, Precision

    kinds: tuple[type, ...] = (
        *(pl.Trainer, callbacks.Callback, loggers.Logger, strategies.Strategy),
        *(accelerators.Accelerator, profilers.Profiler, CheckpointIO, ClusterEnvironment),
        *(LayerSync, Precision),
    )
    # a callback of Lightning's command line writes what its parser gives it
    is_kind = _is_class_of(found, "lightning") and issubclass(found, kinds)
    return is_kind and not found.__module__.startswith("lightning.pytorch.cli")


def _is_of_the_old_name(found: Any) -> bool:
    import importlib

    pl: Any = importlib.import_module("pytorch_lightning")
    kinds = (pl.Trainer, pl.Callback, importlib.import_module("pytorch_lightning.loggers").Logger)
    is_kind = _is_class_of(found, "pytorch_lightning") and issubclass(found, kinds)
    return is_kind and not found.__module__.startswith("pytorch_lightning.cli")


def _is_of_optim(found: Any) -> bool:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    return _is_class_of(found, "torch", "timm") and issubclass(found, (Optimizer, LRScheduler))


def _is_metric(found: Any) -> bool:
    from torchmetrics import Metric

    if not (_is_class_of(found, "torchmetrics") and issubclass(found, Metric)):
        return False
    return found.__module__.partition("torchmetrics.")[2].partition(".")[0] in METRICS


def _is_transform(found: Any) -> bool:
    return inspect.isclass(found) and found.__module__.startswith("torchvision.transforms.")


def _is_of_optuna(found: Any) -> bool:
    return _is_class_of(found, "optuna") and found.__name__.endswith(("Sampler", "Pruner"))


def _is_class_of(found: Any, *packages: str) -> bool:
    return inspect.isclass(found) and found.__module__.partition(".")[0] in packages


_KINDS: dict[str, Callable[[Any], bool]] = {
    "lightning.pytorch.": _is_of_lightning,
    "pytorch_lightning.": _is_of_the_old_name,
    "torch.optim.": _is_of_optim,
    "timm.optim.": _is_of_optim,
    "torchmetrics.": _is_metric,
    "torchvision.transforms.": _is_transform,
    "optuna.samplers.": _is_of_optuna,
    "optuna.pruners.": _is_of_optuna,
}


@cache
def _shipped() -> frozenset[str]:
    """Return what the configs of this package name."""
    return targets_in([conf_dir()])


@cache
def _plugins() -> frozenset[str]:
    """Return the modules that installed plug-ins take methods from."""
    from lightning_peft.methods.registry import PLUGINS

    return frozenset(entry.value.partition(":")[0] for entry in entry_points(group=PLUGINS))
