"""Reading an adapter directory: its files are data, and may come from a stranger.

Everything is checked before the backbone is changed where it can be, and what cannot be checked
before (whether the entries fit the adapted model) is checked with the way back at hand: after any
error the backbone is as it was.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation import Adaptation, find_adaptation
from lightning_peft.adapter_file import CONFIG_FILE, HEADER, WEIGHTS_FILE
from lightning_peft.checks import key_problems, value_problems
from lightning_peft.description import (
    adapt_from_description,
    check_description,
    check_format,
    rewritten,
)
from lightning_peft.errors import AdapterFileError, BackboneMismatchError, PEFTError
from lightning_peft.fingerprint import differences
from lightning_peft.kernels import Memory
from lightning_peft.peft_format import described_by_peft, from_peft_keys
from lightning_peft.snapshot import restored_after_error

__all__ = ["StoredAdapter", "adapted_as", "fitting_state", "load_adapter", "read_adapter"]

_MOST_CONFIG_BYTES = 16 << 20


def load_adapter(
    model: nn.Module,
    directory: str | PathLike[str],
    *,
    strict_backbone: bool = True,
    memory: Memory | None = None,
) -> nn.Module:
    """Load an adapter into a fresh backbone; adapters that ``peft`` wrote as well.

    Args:
        model: The backbone that the adapter was trained on, not yet adapted; changed in place. If
            it is adapted with the same method already, only the values are loaded.
        directory: An adapter directory. Nothing in it is executed or unpickled, and no other file
            is read, whatever it names.
        strict_backbone: Whether another backbone is an error (``True``) or a warning.
        memory: As for :func:`adapt`; ``None`` leaves a backbone that is adapted already as it is.

    Returns:
        The same model, adapted. :func:`find_adaptation` gives the handle.

    Raises:
        AdapterFileError: If a file is missing, truncated, tampered with, of a newer format, or its
            entries do not fit the method that it names.
        BackboneMismatchError: If the adapter was trained on another backbone; what differs is
            named.
        MethodError: If the method cannot be applied to this model, or not with this ``memory``.
        TargetError: If a selection in the config does not fit this model.

    The model is as it was before after any error.
    """
    stored = read_adapter(directory)
    standing = find_adaptation(model)
    rewritten_too = () if standing is not None else rewritten(stored.about, model)
    with restored_after_error(model, rewritten_too):
        adaptation = standing or adapted_as(model, stored, memory or "default")
        state = fitting_state(adaptation, stored, strict_backbone=strict_backbone)
        if standing is not None and memory is not None:
            standing.set_memory(memory)
    own = adaptation.model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    return model


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter directory as it was read; nothing is held against a model yet.

    Attributes:
        path: The directory.
        config: What ``adapter_config.json`` holds.
        tensors: The tensors, under the file's names.
        about: The adaptation's description: see :meth:`Adaptation.describe`.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def state_for(self, adaptation: Adaptation) -> dict[str, Tensor]:
        """Give the tensors under the names of an adapted model.

        Raises:
            AdapterFileError: If ``peft`` cannot read its own part of them.
        """
        if "peft_type" not in self.config:
            return dict(self.tensors)
        try:
            return from_peft_keys(self.tensors, adaptation)
        except PEFTError:
            raise
        except Exception as error:  # peft, of names and shapes that are not its own
            raise AdapterFileError(
                f"{self.path / WEIGHTS_FILE}: expected entries that peft can read, got "
                f"{type(error).__name__}: {error}"
            ) from error


def read_adapter(directory: str | PathLike[str]) -> StoredAdapter:
    """Read an adapter directory; adapters that ``peft`` wrote as well.

    Args:
        directory: An adapter directory.

    Returns:
        What it holds.

    Raises:
        AdapterFileError: If a file is missing, truncated, tampered with, of a newer format, or no
            adapter's.
    """
    path = Path(directory)
    config = _read_json(path / CONFIG_FILE)
    tensors, about = _read_weights(path / WEIGHTS_FILE)
    told = config.get(HEADER)
    if about is None and isinstance(told, dict):
        about = told
    if about is None:
        about = described_by_peft(config, path / CONFIG_FILE)
    elif not isinstance(about.get("fingerprint"), Mapping):
        raise AdapterFileError(f"{path}: expected the backbone's fingerprint, got none.")
    elif "peft_type" not in config and about != told:
        raise AdapterFileError(
            f"{path}: expected one adapter, got a {CONFIG_FILE} and a {WEIGHTS_FILE} that describe "
            "two. Take both files from the same save."
        )
    check_format(about, str(path))
    check_description(about, str(path))
    return StoredAdapter(path, config, tensors, about)


def adapted_as(model: nn.Module, stored: StoredAdapter, memory: Memory = "default") -> Adaptation:
    """Adapt a backbone as a stored adapter says; its values are not loaded yet.

    Args:
        model: The backbone; changed in place.
        stored: What was read.
        memory: As for :func:`adapt`.

    Raises:
        AdapterFileError: If the description asks for more than the file holds.
        MethodError: If the method cannot be applied to this model.
    """
    held = sum(tensor.numel() for tensor in stored.tensors.values())
    return adapt_from_description(model, stored.about, str(stored.path), held, memory)


def fitting_state(
    adaptation: Adaptation, stored: StoredAdapter, *, strict_backbone: bool = True
) -> dict[str, Tensor]:
    """Hold a stored adapter against an adapted model; neither is changed.

    Args:
        adaptation: The adaptation that is to take its values.
        stored: What was read.
        strict_backbone: Whether another backbone is an error (``True``) or a warning.

    Returns:
        The tensors under the model's names.

    Raises:
        AdapterFileError: If the method is another one or the entries do not fit it.
        BackboneMismatchError: If the adapter was trained on another backbone.
    """
    path, about = stored.path, stored.about
    if adaptation.method.to_config() != about["method"]:
        raise AdapterFileError(
            f"{path} holds {about['method']}, the model is adapted with "
            f"{adaptation.method.to_config()}. Load it into a backbone that is not adapted."
        )
    _check_backbone(adaptation, about.get("fingerprint"), path, strict_backbone)
    own = adaptation.model.state_dict()
    state = stored.state_for(adaptation)
    problems = key_problems(state, own, _saved(adaptation))
    problems += value_problems(state, own)
    problems += _not_finite(state, own)
    if problems:
        raise AdapterFileError(
            f"{path / WEIGHTS_FILE} does not fit its own config "
            f"({adaptation.method.name}): " + "; ".join(problems)
        )
    return state


def _saved(adaptation: Adaptation) -> set[str]:
    """Name what has to be in a file: all state but buffers of the backbone's own."""
    trained, backbone = set(adaptation.trained_names()), set(adaptation.base_names.values())
    return {name for name in adaptation.state_names() if name in trained or name not in backbone}


def _not_finite(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterable[str]:
    """Name what has no finite value, or none in the dtype that it is loaded into."""
    for name, tensor in state.items():
        floats = name in own and tensor.is_floating_point() and own[name].is_floating_point()
        if floats and not torch.isfinite(tensor.to(own[name].dtype)).all():
            yield f"not finite: {name}"


def _check_backbone(
    adaptation: Adaptation, expected: object, path: Path, strict_backbone: bool
) -> None:
    if not isinstance(expected, Mapping):
        return  # written by peft, which keeps no fingerprint
    found = differences(expected, adaptation.fingerprint)
    if not found:
        return
    message = (
        f"the adapter in {path} was trained on another backbone: " + "; ".join(found) + ". "
        "Load the backbone with the same pretrained weights, or pass strict_backbone=False."
    )
    if strict_backbone:
        raise BackboneMismatchError(message)
    warnings.warn(message, stacklevel=4)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes are no config")
        value = _parsed(path.read_bytes())
    except FileNotFoundError:
        raise AdapterFileError(_absent(path)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path}: expected JSON, got something else: {error}") from error
    if not isinstance(value, dict):
        raise AdapterFileError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = _parsed(header[HEADER]) if HEADER in header else None
    except FileNotFoundError:
        raise AdapterFileError(_absent(path)) from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(
            f"{path}: expected a whole safetensors file, got one that is truncated, tampered with "
            f"or of another format: {error}"
        ) from error
    if about is not None and not isinstance(about, dict):
        raise AdapterFileError(f"{path}: expected '{HEADER}' in the header to be a JSON object.")
    return tensors, about


def _parsed(text: str | bytes) -> Any:
    """Read JSON that says each thing once, and no number that is none."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=refuse)


def _absent(path: Path) -> str:
    return (
        f"expected an adapter directory with {CONFIG_FILE} and {WEIGHTS_FILE}, got {path.parent} "
        f"without {path.name}."
    )
