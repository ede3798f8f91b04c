"""Writing files completely or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_together", "written_whole"]


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside a file; the file written there replaces the first.

    It is flushed to the disk and renamed when the block ends: a crash leaves the old file or the
    new one, never half of one. An error inside the block leaves the old file.

    Args:
        path: The file; its directory has to exist.

    Yields:
        The temporary name, with the file's own suffix.
    """
    with written_together([path]) as (temporary,):
        yield temporary


@contextmanager
def written_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Do the same as :func:`written_whole` for several files: all are replaced, or none.

    Args:
        paths: The files; their directories have to exist.

    Yields:
        A temporary name for each.
    """
    aside = {path: path.with_name(f".{secrets.token_hex(6)}.{path.name}") for path in paths}
    try:
        for temporary in aside.values():
            # opened here so that no other writer takes the name
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        # the mode of the replaced file, else that of a new one
        modes = [(p if p.exists() else temporary).stat().st_mode for p, temporary in aside.items()]
        for temporary in aside.values():
            temporary.chmod(0o600)  # nobody else reads what is not whole
        yield list(aside.values())
        for temporary, mode in zip(aside.values(), modes, strict=True):
            temporary.chmod(mode)  # the writer may have replaced the temporary file
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        _replace(aside)
    finally:
        for temporary in aside.values():
            temporary.unlink(missing_ok=True)


def _replace(aside: Mapping[Path, Path]) -> None:
    """Rename each file to its final name; if one rename fails, undo the earlier ones."""
    *earlier, last = aside
    kept: dict[Path, Path | None] = {}
    try:
        for path in earlier:
            kept[path] = _second_name(path, aside[path].with_name(f"{aside[path].name}.kept"))
            os.replace(aside[path], path)
        os.replace(aside[last], last)
    except BaseException:
        for path, before in kept.items():
            if before is not None:
                os.replace(before, path)
        raise
    finally:
        for before in kept.values():
            if before is not None:
                before.unlink(missing_ok=True)


def _second_name(path: Path, name: Path) -> Path | None:
    """Keep a file's present content under a second name; None if links are not supported."""
    try:
        os.link(path, name)
    except OSError:
        return None
    return name
