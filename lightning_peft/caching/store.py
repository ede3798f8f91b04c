"""Rows of features by the key of their sample, in memory or in memory-mapped files."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_peft.caching.keys import KEY_BYTES
from lightning_peft.system.atomic import A_DAY, remove_leftovers, written_whole

__all__ = ["FeatureStore"]


class FeatureStore:
    """Store the features of a frozen first part, one row for each sample.

    In a directory, every batch is a file of its own, written under a temporary name, synced and
    renamed: several processes may share the directory, and a crash leaves whole files only. The
    files are memory-mapped safetensors: used rows stay in memory as long as there is room.

    Args:
        max_bytes: The largest size of all rows; in a directory, of all files, those of other
            processes and of other first parts included.
        directory: The directory of the files; None keeps the rows in memory.

    Attributes:
        nbytes: The size of all rows.
        full: Whether rows were left out because there was no room.
        unreadable: Files that were skipped, and why.
    """

    def __init__(self, max_bytes: int, directory: str | os.PathLike[str] | None = None) -> None:
        self.max_bytes = max_bytes
        self.directory = None if directory is None else Path(directory)
        self.nbytes = 0
        self.full = False
        self.unreadable: dict[str, str] = {}
        self._where: dict[bytes, tuple[int, int]] = {}
        self._chunks: list[list[Tensor]] = []
        self._files: set[str] = set()
        self._prefixes: set[str] = set()

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._where)

    def __contains__(self, key: bytes) -> bool:
        """Whether the features of a sample are stored."""
        return key in self._where

    def open(self, fingerprint: str) -> None:
        """Load the directory's files for a fingerprint, now and at each :meth:`refresh`."""
        self._prefixes.add(fingerprint)
        if self.directory is not None:
            remove_leftovers(self.directory, seconds=A_DAY)
        self.refresh()

    def refresh(self) -> None:
        """Load the files that other processes have written to the directory since."""
        if self.directory is None:
            return
        try:
            found = sorted(self.directory.glob("*.safetensors"))
        except OSError:  # a directory of another user: writing there says so
            return
        for path in found:
            if path.name.partition("-")[0] in self._prefixes and path.name not in self._files:
                self._map(path)

    def put(self, keys: Sequence[bytes], features: Sequence[Tensor], fingerprint: str) -> None:
        """Store the rows of a batch that are not stored yet, if there is room.

        Args:
            keys: The keys of ``B`` samples.
            features: Tensors ``(B, ...)``; they are not copied and must not change later.
            fingerprint: The fingerprint of the first part.

        Raises:
            OSError: If the file of the batch cannot be written; what is stored stays.
        """
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        rows = sorted(row for key, row in first.items() if key not in self._where)
        if not rows:
            return
        kept = [tensor.detach() for tensor in features]
        if len(rows) < len(keys):
            kept = [tensor[torch.tensor(rows, device=tensor.device)] for tensor in kept]
        size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        if self._used() + size > self.max_bytes:
            self.full = True
            return
        new = [keys[row] for row in rows]
        if self.directory is None:
            self._add(new, [tensor.cpu() for tensor in kept])
        else:
            self._prefixes.add(fingerprint)
            self._map(self._write(new, kept, fingerprint))

    def take(self, keys: Sequence[bytes]) -> list[Tensor]:
        """Return the features of stored samples.

        Args:
            keys: The keys of ``B`` samples.

        Returns:
            New tensors ``(B, ...)`` on the CPU.

        Raises:
            KeyError: If a sample is not stored.
        """
        places = [self._where[key] for key in keys]
        count = len(self._chunks[places[0][0]])
        return [torch.stack([self._chunks[c][i][row] for c, row in places]) for i in range(count)]

    def clear(self) -> None:
        """Drop all rows; the files remain for other runs."""
        self._where.clear()
        self._chunks.clear()
        self._files.clear()
        self._prefixes.clear()
        self.nbytes = 0
        self.full = False

    def _used(self) -> int:
        if self.directory is None:
            return self.nbytes
        files = self.directory.glob("*.safetensors")
        return max(self.nbytes, sum(path.stat().st_size for path in files))

    def _add(self, keys: Sequence[bytes], tensors: list[Tensor]) -> None:
        for row, key in enumerate(keys):
            self._where.setdefault(key, (len(self._chunks), row))
        self._chunks.append(tensors)
        self.nbytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _write(self, keys: Sequence[bytes], tensors: Sequence[Tensor], fingerprint: str) -> Path:
        from safetensors.torch import save_file

        assert self.directory is not None
        name = uuid.uuid4().hex
        content = {str(i): tensor.cpu().contiguous() for i, tensor in enumerate(tensors)}
        table = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8)
        content["keys"] = table.reshape(-1, KEY_BYTES)
        path = self.directory / f"{fingerprint}-{name}.safetensors"
        with written_whole(path) as temporary:
            save_file(content, str(temporary))
        return path

    def _map(self, path: Path) -> None:
        self._files.add(path.name)
        try:
            content = _load(path)
            keys = [row.tobytes() for row in content.pop("keys").numpy()]
            tensors = [content[str(i)] for i in range(len(content))]
            lengths = {len(tensor) for tensor in tensors}
            if lengths != {len(keys)}:
                raise ValueError(f"{len(keys)} keys for rows of {sorted(lengths)}")
        except Exception as error:  # for any error, the file's samples are computed again
            self.unreadable[path.name] = f"{type(error).__name__}: {error}"
            return
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self.nbytes + size > self.max_bytes:
            self.full = True
            return
        self._add(keys, tensors)


def _load(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(str(path)))
