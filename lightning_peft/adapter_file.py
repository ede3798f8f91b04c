"""The adapter on disk: write, read, verify.

A directory with ``adapter_model.safetensors`` and ``adapter_config.json``. Where ``peft`` can say
what was trained, it is ``peft``'s own format and ``peft`` loads it; otherwise the config has
``lightning_peft`` in place of ``peft_type``. What lightning-peft needs beyond (the method's config,
the backbone's fingerprint) stands in the safetensors header, which ``peft`` does not look at. It is
data: nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation import Adaptation, find_adaptation
from lightning_peft.adapting import adapt
from lightning_peft.checks import key_problems
from lightning_peft.errors import AdapterFileError, BackboneMismatchError, PEFTError
from lightning_peft.fingerprint import differences
from lightning_peft.methods.registry import method_from_config
from lightning_peft.peft_format import from_peft_keys, peft_config_of, peft_state_of, to_peft_keys
from lightning_peft.whole import written_whole

__all__ = [
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "WEIGHTS_FILE",
    "StoredAdapter",
    "adapt_from_description",
    "fitting_state",
    "load_adapter",
    "read_adapter",
    "save_adapter",
    "versions",
]

FORMAT_VERSION = 1
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_HEADER = "lightning_peft"


def save_adapter(adaptation: Adaptation, directory: str | PathLike[str]) -> None:
    """Write an adapter directory.

    Each file is written under a temporary name, flushed to the disk and renamed: a crash leaves the
    old file or the new one, never half of one.

    Args:
        adaptation: What to save.
        directory: Where; made if it is not there.

    Raises:
        AdapterFileError: If the adapter is merged, or the directory cannot be written.
    """
    from safetensors.torch import save

    if adaptation.merged:
        raise AdapterFileError(
            "expected an adapter to save, got one that is merged into the weights. Call unmerge() "
            "first, or save the merged model itself."
        )
    about = {"format_version": FORMAT_VERSION, "versions": versions(), **adaptation.describe()}
    config = peft_config_of(adaptation)
    if config is None:
        config = {"lightning_peft": about}
        state = adaptation.state_dict()
    else:
        state = to_peft_keys(peft_state_of(adaptation))
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
    weights = save(tensors, metadata={"format": "pt", _HEADER: json.dumps(about)})
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in (
            (WEIGHTS_FILE, weights),
            (CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True).encode()),
        ):
            with written_whole(target / name) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise AdapterFileError(f"cannot write the adapter to {target}: {error}") from error


def load_adapter(
    model: nn.Module, directory: str | PathLike[str], *, strict_backbone: bool = True
) -> nn.Module:
    """Load an adapter into a fresh backbone; adapters that ``peft`` wrote as well.

    Args:
        model: The backbone that the adapter was trained on, not yet adapted; changed in place. If
            it is adapted with the same method already, only the values are loaded.
        directory: An adapter directory.
        strict_backbone: Whether another backbone is an error (``True``) or a warning.

    Returns:
        The same model, adapted. :func:`find_adaptation` gives the handle.

    Raises:
        AdapterFileError: If a file is missing, truncated, tampered with, of a newer format, or its
            entries do not fit the method that it names.
        BackboneMismatchError: If the adapter was trained on another backbone; what differs is
            named.
        MethodError: If the method cannot be applied to this model.
    """
    stored = read_adapter(directory)
    standing = find_adaptation(model)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    adaptation = standing or adapt_from_description(model, stored.about, where=str(stored.path))
    try:
        state = fitting_state(adaptation, stored, strict_backbone=strict_backbone)
    except PEFTError:
        if standing is None:
            adaptation.unload()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        raise
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
        """Give the tensors under the names of an adapted model."""
        peft_has_words = "peft_type" in self.config
        return from_peft_keys(self.tensors, adaptation) if peft_has_words else dict(self.tensors)


def read_adapter(directory: str | PathLike[str]) -> StoredAdapter:
    """Read an adapter directory; adapters that ``peft`` wrote as well.

    Args:
        directory: An adapter directory.

    Returns:
        What it holds.

    Raises:
        AdapterFileError: If a file is missing, truncated, tampered with, or no adapter's.
    """
    path = Path(directory)
    config = _read_json(path / CONFIG_FILE)
    tensors, about = _read_weights(path / WEIGHTS_FILE)
    if about is None and isinstance(config.get("lightning_peft"), dict):
        about = config["lightning_peft"]
    if about is None:
        about = _described_by_peft(config, path)
    return StoredAdapter(path, config, tensors, about)


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
    state = stored.state_for(adaptation)
    problems = key_problems(state, adaptation.model.state_dict(), _saved(adaptation))
    problems += [f"not finite: {n}" for n, t in state.items() if not _finite(t)]
    if problems:
        raise AdapterFileError(
            f"{path / WEIGHTS_FILE} does not fit its own config "
            f"({adaptation.method.name}): " + "; ".join(problems)
        )
    return state


def adapt_from_description(model: nn.Module, about: Mapping[str, Any], where: str) -> Adaptation:
    """Adapt a backbone as :meth:`Adaptation.describe` says.

    Args:
        model: The backbone; changed in place.
        about: The description, from an adapter's header or a checkpoint.
        where: What is being read, for the error.

    Raises:
        AdapterFileError: If the description is of a newer format or is not one.
    """
    number = about.get("format_version", FORMAT_VERSION)
    if not isinstance(number, int) or number > FORMAT_VERSION:
        raise AdapterFileError(
            f"{where}: expected format version {FORMAT_VERSION} or older, got {number!r}. "
            "Update lightning-peft to read it."
        )
    method, head = about.get("method"), about.get("head")
    if not isinstance(method, Mapping) or not isinstance(head, list | tuple | None):
        raise AdapterFileError(f"{where}: expected a method and a head, got {sorted(about)}.")
    return adapt(
        model,
        method_from_config(method),
        head=None if head is None else (tuple(map(str, head)) or False),
        also_train=tuple(map(str, about.get("also_train", ()))),
        batchnorm=about.get("batchnorm", "frozen"),
        backbone_dropout=about.get("backbone_dropout", "train"),
    )


def versions() -> dict[str, str]:
    """Give the versions of what writes a file."""
    return {name: version(name) for name in ("lightning-peft", "torch", "peft")}


def _saved(adaptation: Adaptation) -> set[str]:
    """Name what has to be in a file: all state but buffers of the backbone's own."""
    trained, backbone = set(adaptation.trained_names()), set(adaptation.base_names.values())
    return {name for name in adaptation.state_names() if name in trained or name not in backbone}


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _described_by_peft(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Describe an adapter that ``peft`` wrote."""
    from lightning_peft.methods.hf import HF

    if not isinstance(config.get("peft_type"), str):
        raise AdapterFileError(
            f"{path / CONFIG_FILE}: expected 'peft_type' or 'lightning_peft', got "
            f"{sorted(config)[:12]}. Is this an adapter directory?"
        )
    from peft import get_peft_config

    try:
        method = HF.from_peft(get_peft_config(dict(config)))
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterFileError(f"{path / CONFIG_FILE}: peft cannot read it: {error}") from error
    saved = config.get("modules_to_save") or ()
    return {"method": method.to_config(), "head": list(saved) or None}


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
        value = json.loads(path.read_bytes())
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
        about = json.loads(header[_HEADER]) if _HEADER in header else None
    except FileNotFoundError:
        raise AdapterFileError(_absent(path)) from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(
            f"{path}: expected a whole safetensors file, got one that is truncated, tampered with "
            f"or of another format: {error}"
        ) from error
    if about is not None and not isinstance(about, dict):
        raise AdapterFileError(f"{path}: expected '{_HEADER}' in the header to be a JSON object.")
    return tensors, about


def _absent(path: Path) -> str:
    return (
        f"expected an adapter directory with {CONFIG_FILE} and {WEIGHTS_FILE}, got {path.parent} "
        f"without {path.name}."
    )
