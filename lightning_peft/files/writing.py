"""Writing an adapter directory.

It holds ``adapter_model.safetensors`` and ``adapter_config.json``. If ``peft``'s format can express
what was trained, the files are in that format and ``peft`` loads them; otherwise the config has
``lightning_peft`` in place of ``peft_type``. The additional data of lightning-peft (the method's
config, the backbone's fingerprint) is in the safetensors header, which ``peft`` ignores.
:mod:`lightning_peft.files.reading` reads it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_peft.errors import AdapterFileError, DiskError
from lightning_peft.files.description import FORMAT_VERSION
from lightning_peft.files.peft_format import to_peft_keys
from lightning_peft.system.atomic import written_together

__all__ = ["CONFIG_FILE", "HEADER", "WEIGHTS_FILE", "versions", "write_adapter", "write_files"]

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
HEADER = "lightning_peft"


def write_adapter(
    directory: str | PathLike[str],
    about: Mapping[str, Any],
    state: Mapping[str, Tensor],
    form: tuple[dict[str, Any], Mapping[str, Tensor]] | None = None,
) -> None:
    """Write an adapter directory.

    Both files are written under temporary names, flushed to the disk and then renamed: a full disk
    or a crash leaves the old files or the new ones, never half of one.

    Args:
        directory: The directory; created if it does not exist.
        about: How the backbone was adapted: see :meth:`Adaptation.describe`.
        state: The tensors to save, under the model's own names.
        form: The config and the tensors in ``peft``'s format, if it can express them.

    Raises:
        AdapterFileError: If the directory cannot be written.
    """
    from safetensors.torch import save

    about = {"format_version": FORMAT_VERSION, "versions": versions(), **about}
    if form is None:
        config: dict[str, Any] = {"lightning_peft": about}
    else:
        config, state = form[0], to_peft_keys(form[1])
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
    weights = save(tensors, metadata={"format": "pt", HEADER: json.dumps(about)})
    text = json.dumps(config, indent=2, sort_keys=True).encode()
    write_files(directory, {Path(WEIGHTS_FILE): weights, Path(CONFIG_FILE): text})


def write_files(directory: str | PathLike[str], contents: Mapping[Path, bytes]) -> None:
    """Write the files of an adapter directory, all of them or none.

    Args:
        directory: The directory; created if it does not exist.
        contents: What each file will hold, by its path in the directory.

    Raises:
        AdapterFileError: If the directory cannot be written.
    """
    target = Path(directory)
    try:
        files = [target / name for name in contents]
        needs = sum(map(len, contents.values()))
        with written_together(files, needs) as temporary:
            for path, content in zip(temporary, contents.values(), strict=True):
                path.write_bytes(content)
    except DiskError as error:
        raise AdapterFileError(f"cannot write the adapter to {target}: {error}") from error
    except OSError as error:
        raise AdapterFileError(
            f"cannot write the adapter to {target}: {error}. The previous files are unchanged. "
            "Make room or choose another directory, and save again."
        ) from error


def versions() -> dict[str, str]:
    """Return the versions of the packages that write a file."""
    return {name: _version(name) for name in ("lightning-peft", "torch", "peft")}


_version = functools.cache(version)  # each call reads files
