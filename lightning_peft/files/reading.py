"""Reading an adapter directory: its files are data, and are not trusted.

As much as possible is checked before the backbone is changed. The rest (whether the entries fit the
adapted model) is checked afterwards, and any error leaves the backbone as it was.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_peft.errors import AdapterFileError, PEFTError
from lightning_peft.files.description import check_description, check_format
from lightning_peft.files.peft_format import described_by_peft, from_peft_keys
from lightning_peft.files.plain_file import check_file
from lightning_peft.files.writing import CONFIG_FILE, HEADER, WEIGHTS_FILE
from lightning_peft.methods.base import Method

__all__ = ["StoredAdapter", "read_adapter", "read_files"]

_MOST_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True)
class StoredAdapter:
    """The content of an adapter directory, not yet compared with a model.

    Attributes:
        path: The directory.
        config: The content of ``adapter_config.json``.
        tensors: The tensors, under the file's names.
        about: The adaptation's description: see :meth:`Adaptation.describe`.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    about: dict[str, Any]

    @property
    def ranks(self) -> object:
        """Which ranks of AdaLoRA are in a file in ``peft``'s format, as its config says."""
        return self.config.get("rank_pattern") if "peft_type" in self.config else None

    def state_for(
        self, model: nn.Module, method: Method, head: Sequence[str], wanted: Collection[str]
    ) -> dict[str, Tensor]:
        """Return the tensors under the names of an adapted model.

        Args:
            model: The adapted model.
            method: How it was adapted.
            head: Names of the head's modules.
            wanted: The entries of its state dict that a file must hold.

        Raises:
            AdapterFileError: If ``peft`` cannot read its part of the tensors.
        """
        if "peft_type" not in self.config:
            return dict(self.tensors)
        try:
            factors = self.about.get("start") == "factors"
            return from_peft_keys(self.tensors, model, method, head, wanted, factors, self.ranks)
        except PEFTError:
            raise
        except Exception as error:  # peft, for names and shapes that are not its own
            raise AdapterFileError(
                f"{self.path / WEIGHTS_FILE}: expected entries that peft can read, got "
                f"{type(error).__name__}: {error}"
            ) from error


def read_adapter(directory: str | PathLike[str]) -> StoredAdapter:
    """Read an adapter directory of this package or of ``peft``.

    Args:
        directory: An adapter directory.

    Returns:
        Its content.

    Raises:
        AdapterFileError: If a file is missing, truncated, tampered with, of a newer format, or not
            part of an adapter.
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


def read_files(directory: str | PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the config of an adapter directory, as they are.

    Args:
        directory: An adapter directory.

    Returns:
        The tensors under the file's names, and the content of ``adapter_config.json``.

    Raises:
        AdapterFileError: If a file is missing, truncated or of another format.
    """
    path = Path(directory)
    return _read_weights(path / WEIGHTS_FILE)[0], _read_json(path / CONFIG_FILE)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        check_file(path)
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many for a config")
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
        check_file(path)  # opening a pipe would wait for its writer
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
    """Parse JSON; refuse duplicate keys and NaN or infinity."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key appears twice")
        return found

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not a number in JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=refuse)


def _absent(path: Path) -> str:
    return (
        f"expected an adapter directory with {CONFIG_FILE} and {WEIGHTS_FILE}, got {path.parent} "
        f"without {path.name}."
    )
