"""Find what a job lacks before anything heavy is imported: files that are not there, and extras.

Importing torch takes seconds; a mistyped path should not cost them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.errors import near

__all__ = ["check_before", "problems_before"]

_FOLDERS: Mapping[str, str] = {
    "lightning_peft.ImageFolderDataModule": "a folder of images",
    "lightning_peft.VTABDataModule": "the folder that holds the tasks",
}
_FILES: Mapping[str, str] = {
    "lightning_peft.TextDataModule": "a CSV file of texts and labels",
    "lightning_peft.ChatDataModule": "a JSONL or CSV file",
}
"""By the ``_target_`` of the data: what its ``root`` is."""

_EXTRAS: Mapping[str, tuple[str, str]] = {
    "lightning_peft.DigitsDataModule": ("sklearn", "data"),
    "lightning_peft.TextDataModule": ("transformers", "text"),
    "lightning_peft.ChatDataModule": ("transformers", "text"),
    "lightning_peft.TextClassifier": ("transformers", "text"),
    "lightning_peft.CausalLM": ("transformers", "text"),
    "lightning_peft.PreferenceModule": ("transformers", "text"),
    "lightning.pytorch.loggers.TensorBoardLogger": ("tensorboard", "tensorboard"),
    "lightning.pytorch.loggers.WandbLogger": ("wandb", "wandb"),
    "lightning.pytorch.loggers.MLFlowLogger": ("mlflow", "mlflow"),
}
"""By ``_target_``: the module that it needs, and the extra of this package that installs it."""

_OF_LIGHTNING = ("last", "best", "hpc", "registry")
"""How values of ``resume`` begin that Lightning understands by itself."""


def check_before(config: Mapping[str, Any]) -> None:
    """Refuse a job whose files or extras are missing.

    Args:
        config: The config, resolved, as plain types.

    Raises:
        ConfigError: With every problem found.
    """
    problems = list(problems_before(config))
    if problems:
        raise ConfigError(problems)


def problems_before(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each file and each extra that is missing."""
    data = config.get("data")
    if isinstance(data, Mapping):
        yield from _of_data(data)
    resume = config.get("resume")
    if isinstance(resume, str) and "://" not in resume and not resume.startswith(_OF_LIGHTNING):
        yield from _missing("resume", Path(resume), "a checkpoint", os.path.exists(resume))
    parts = [("data", data), ("model", config.get("model"))]
    parts += [(f"logger.{name}", node) for name, node in (config.get("logger") or {}).items()]
    for key, node in parts:
        target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
        if target in _EXTRAS:
            yield from _without(key, *_EXTRAS[target])
    if config.get("baselines"):
        yield from _without("baselines", "sklearn", "data")


def _of_data(data: Mapping[str, Any]) -> Iterator[str]:
    target, root = str(data.get("_target_")), data.get("root")
    if not isinstance(root, str):
        return
    place = Path(root)
    if target in _FOLDERS:
        yield from _missing("data.root", place, _FOLDERS[target], place.is_dir())
    elif target in _FILES:
        yield from _missing("data.root", place, _FILES[target], place.is_file())
    labels = data.get("labels")
    if target in _FOLDERS and isinstance(labels, str) and place.is_dir():
        found = Path(labels).is_file() or (place / labels).is_file()
        yield from _missing("data.labels", place / labels, "a CSV file there or here", found)


def _missing(key: str, path: Path, wanted: str, found: bool) -> Iterator[str]:
    if found:
        return
    got = "which is something else" if path.exists() else "which does not exist"
    parent = path.parent
    names = sorted(os.listdir(parent)) if parent.is_dir() and not path.exists() else []
    kind = os.path.splitext(path.name)[1]  # for a folder there are folders to choose from
    beside = [
        n for n in names if os.path.splitext(n)[1] == kind and (kind or (parent / n).is_dir())
    ]
    hint = near(path.name, beside) if beside else f"It is looked for in {Path.cwd()}."
    yield f"{key}: expected {wanted}, got {path}, {got}. {hint}"


def _without(key: str, module: str, extra: str) -> Iterator[str]:
    if importlib.util.find_spec(module) is None:
        yield (
            f"{key}: `{module}` is needed for this and is not installed. Install it with: "
            f"pip install 'lightning-peft[{extra}]'"
        )
