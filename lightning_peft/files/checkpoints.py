"""Checks of an untrusted checkpoint file, before anything is built from it.

``torch.load(weights_only=True)`` runs no code. Two dangers are left: a file that is not a
checkpoint, and one of a few kilobytes that unpacks to gigabytes. Both are refused here.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from lightning_peft.errors import CheckpointError, shown, some
from lightning_peft.files.patterns import strings_in
from lightning_peft.files.plain_file import NotPlainError, check_file
from lightning_peft.system.atomic import written_whole

__all__ = ["check_checkpoint_file", "check_resumable", "keep_hyperparameters"]

_FILLED_WHEN_MADE = ("builtins bytearray", "__builtin__ bytearray")
"""Types that ``torch.load(weights_only=True)`` lets a pickle create in any size, and fill."""

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
"""What torch writes around bold text."""

_TABLES = ("state_dict", "hyper_parameters", "lightning_peft")


def check_checkpoint_file(path: str | PathLike[str]) -> None:
    """Refuse a local file that is not a complete checkpoint of plain data.

    Tensors are memory-mapped, not read. An address (``s3://...``) is left to Lightning.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is missing, truncated, of another format, holds code or objects, or
            unpacks to more than its own size.
    """
    if "://" in str(path):
        return
    file = Path(path)
    try:
        _check_archive(file)
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"expected a checkpoint, got no file: {file}.") from None
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: expected a checkpoint of tensors and plain data, got one that torch does not "
            f"read without running code from it: {_objects_in(file) or _told(error)} If you trust "
            "it, load it with weights_only=False, or allow these classes with "
            "torch.serialization.add_safe_globals."
        ) from error
    except Exception as error:  # a mangled archive or pickle surfaces as anything
        raise CheckpointError(
            f"{file}: expected a whole checkpoint, got one that is truncated, tampered with or of "
            f"another format: {type(error).__name__}: {_told(error)}"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{file}: expected a checkpoint of Lightning, got a {type(found).__name__}."
        )
    for key in _TABLES:
        table: Any = found.get(key, {})
        if not isinstance(table, Mapping) or not all(isinstance(name, str) for name in table):
            raise CheckpointError(f"{file}: expected '{key}' to hold entries by name.")


def check_resumable(path: str | PathLike[str]) -> None:
    """Refuse a checkpoint that no trainer wrote, or whose callbacks remember files further up.

    A callback that goes on from its state deletes what it wrote before and has replaced since.
    Lightning looks whether that is below its directory, but not whether the path leaves it again.

    Args:
        path: A file that :func:`check_checkpoint_file` has accepted.

    Raises:
        CheckpointError: If it has no version, epoch or step, or a path in the state of a callback
            goes up.
    """
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    kinds: dict[str, type] = {"pytorch-lightning_version": str, "epoch": int, "global_step": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    if wrong:
        raise CheckpointError(
            f"{path}: expected a checkpoint of a trainer to resume from, got one without "
            f"{some(wrong)}. Resume from another, or start again."
        )
    state = found.get("callbacks")
    upwards = [text for text in strings_in(state) if ".." in text.replace("\\", "/").split("/")]
    if upwards:
        raise CheckpointError(
            f"{path}: expected the paths of its callbacks as Lightning writes them, without '..', "
            f"got {upwards[0]!r:.200}."
        )


def keep_hyperparameters(path: str | PathLike[str], **values: Any) -> None:
    """Write hyperparameters into an existing checkpoint; everything else stays as it is.

    Args:
        path: The file, replaced in one step; a sharded checkpoint, which is a directory, and one
            whose module has no hyperparameters are left alone.
        **values: The hyperparameters.

    Raises:
        CheckpointError: As for :func:`check_checkpoint_file`.
    """
    file = Path(path)
    if file.is_dir():
        return
    check_checkpoint_file(file)
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    if "hyper_parameters" not in checkpoint:
        return
    checkpoint["hyper_parameters"].update(values)
    with written_whole(file.resolve()) as temporary:  # a link stays a link
        torch.save(checkpoint, temporary)


def _check_archive(file: Path) -> None:
    try:
        check_file(file)  # opening a pipe would wait for its writer
    except NotPlainError as error:
        raise CheckpointError(str(error)) from error
    if not zipfile.is_zipfile(file):
        raise CheckpointError(
            f"{file}: expected a checkpoint that torch.save wrote, got something else, or only a "
            "part of one."
        )
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise CheckpointError(
                f"{file}: expected a checkpoint as torch.save writes it, not compressed, got one "
                f"that unpacks to more than its {file.stat().st_size:,} bytes."
            )
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                _check_pickle(archive.read(entry), file)


def _check_pickle(content: bytes, file: Path) -> None:
    for code, argument, _ in pickletools.genops(content):
        if code.name == "GLOBAL" and argument in _FILLED_WHEN_MADE:
            raise CheckpointError(f"{file}: expected tensors and plain data, got a bytearray.")


def _told(error: Exception) -> str:
    """Return an error of torch in one line, without the advice to load the file all the same."""
    text = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0] or str(error)
    return " ".join(_ESCAPES.sub("", text).split()) or type(error).__name__


def _objects_in(file: Path) -> str:
    """Name the classes of which a checkpoint holds objects, in its hyperparameters, say."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except Exception:  # of a mangled pickle; torch has refused it already
        return ""
    if not names:
        return ""
    return f"it holds objects of {some([shown(name) for name in sorted(names)])}."
