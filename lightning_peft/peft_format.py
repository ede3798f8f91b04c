"""Between the names of an adapted model and those of a file that ``peft`` reads and writes."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_peft.adaptation import Adaptation
from lightning_peft.methods.hf import ADAPTER_NAME, PeftMethod

__all__ = ["from_peft_keys", "peft_config_of", "peft_state_of", "to_peft_keys"]

_PREFIX = "base_model.model."


def peft_config_of(adaptation: Adaptation) -> dict[str, Any] | None:
    """Give the content of ``peft``'s ``adapter_config.json``.

    Args:
        adaptation: Any adaptation.

    Returns:
        The config, or ``None`` where ``peft`` has no words for what is trained (a method of our
        own, several methods, single parameters of the backbone).
    """
    if not isinstance(adaptation.method, PeftMethod) or adaptation.also_train:
        return None
    model: Any = adaptation.model
    config = copy.deepcopy(model.peft_config[ADAPTER_NAME])
    config.inference_mode = True
    config.modules_to_save = sorted({*adaptation.head, *_saved_modules(adaptation)}) or None
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)  # peft's own writer: sets, enums and its version
        written: dict[str, Any] = json.loads(Path(directory, "adapter_config.json").read_text())
    told = set(_names_by_peft(adaptation, adaptation.model.state_dict()).values())
    return written if adaptation.state_names() <= told else None


def peft_state_of(adaptation: Adaptation) -> dict[str, Tensor]:
    """Give the trained tensors under the names that ``peft`` uses inside of a model."""
    own = adaptation.model.state_dict()
    return {key: own[name] for key, name in _names_by_peft(adaptation, own).items()}


def to_peft_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the prefix that a ``peft`` file has."""
    return {f"{_PREFIX}{name}": tensor for name, tensor in state.items()}


def from_peft_keys(tensors: Mapping[str, Tensor], adaptation: Adaptation) -> dict[str, Tensor]:
    """Give tensors of a ``peft`` file under the names of the adapted model.

    An entry that the model does not know keeps the name that it has in the file.
    """
    names = _names_by_peft(adaptation, adaptation.model.state_dict())
    inside = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
    return {names.get(key, key): tensor for key, tensor in inside.items()}


def _names_by_peft(adaptation: Adaptation, own: dict[str, Tensor]) -> dict[str, str]:
    """Give, for each name that ``peft`` uses, the name in the model."""
    from peft.functional import get_peft_model_state_dict

    # peft hands on the tensors that it is given, so each can be recognised by identity
    by_identity = {id(tensor): name for name, tensor in own.items()}
    given = get_peft_model_state_dict(
        adaptation.model,
        state_dict=own,
        adapter_name=ADAPTER_NAME,
        save_embedding_layers=False,
    )
    names = {key: by_identity[id(t)] for key, t in given.items() if id(t) in by_identity}
    roots = tuple(f"{name}." for name in (*adaptation.head, *_saved_modules(adaptation)))
    wanted = adaptation.state_names()
    names.update({name: name for name in own if name.startswith(roots) and name in wanted})
    return names


def _saved_modules(adaptation: Adaptation) -> tuple[str, ...]:
    options = getattr(adaptation.method, "options", {})
    return tuple(options.get("modules_to_save") or ())
