"""Writing files completely or not at all.

A file is written beside its place, flushed to the disk and renamed, and its directory is flushed: a
crash, a kill or a full disk leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_peft.errors import DiskError, PEFTError

__all__ = ["A_DAY", "lacks_room", "remove_leftovers", "written_together", "written_whole"]

GOT = {
    errno.ENOSPC: "a disk with {free} left",
    getattr(errno, "EDQUOT", -1): "a quota that is used up ({free} are left on the disk)",
    errno.EFBIG: "a limit on the size of a file",
    errno.EROFS: "a disk that can only be read",
}
"""The errors of a disk that takes no more, in words."""

NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF)
"""The errors of a file system that cannot flush a directory."""

A_DAY = 86_400.0
"""Seconds after which a temporary file of a directory that processes share is a leftover."""

LEFTOVER = re.compile(r"\.[0-9a-f]{12}\..+")
"""The temporary names."""


@contextmanager
def written_whole(path: Path, needs: int | None = None) -> Iterator[Path]:
    """Yield a temporary name beside a file; the file written there replaces the first.

    It is flushed to the disk and renamed when the block ends. An error inside the block leaves the
    old file.

    Args:
        path: The file; its directory is created if it does not exist.
        needs: How many bytes it will have, at least, for the message of a full disk.

    Yields:
        The temporary name, with the file's own suffix.

    Raises:
        DiskError: If the disk is full or can only be read.
    """
    with written_together([path], needs) as (temporary,):
        yield temporary


@contextmanager
def written_together(paths: Sequence[Path], needs: int | None = None) -> Iterator[list[Path]]:
    """Do the same as :func:`written_whole` for several files: all are replaced, or none.

    Args:
        paths: The files; their directories are created if they do not exist.
        needs: How many bytes they will have together, at least.

    Yields:
        A temporary name for each.

    Raises:
        DiskError: If the disk is full or can only be read.
    """
    aside = {path: path.with_name(f".{secrets.token_hex(6)}.{path.name}") for path in paths}
    try:
        for path, temporary in aside.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            # opened here so that no other writer takes the name
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        # the mode of the replaced file, else that of a new one
        modes = [(p if p.exists() else temporary).stat().st_mode for p, temporary in aside.items()]
        yield list(aside.values())
        for temporary, mode in zip(aside.values(), modes, strict=True):
            temporary.chmod(mode)  # the writer may have replaced the temporary file
            _flush(temporary, os.O_RDWR)
        _replace(aside)
        for directory in {path.parent for path in aside}:
            _flush_names(directory)
    except Exception as error:
        number = _what_is_wrong(error, aside)
        if number is None or isinstance(error, DiskError):
            raise
        begun = sum(_size(temporary) for temporary in aside.values())
        _remove(aside)
        raise _refusal(number, paths, needs, begun) from error
    finally:
        _remove(aside)


def lacks_room(error: BaseException) -> int | None:
    """Return the number of an error that a full or read-only disk caused; ``None`` for others.

    Args:
        error: Any error; the errors that it came from are looked at too.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        if isinstance(link, OSError) and link.errno in GOT:
            return link.errno
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return None


def remove_leftovers(directory: Path, *, seconds: float = 0.0) -> None:
    """Remove the temporary files that killed processes left in a directory.

    Args:
        directory: The directory; no other process may be writing there, unless ``seconds`` is
            longer than a file takes.
        seconds: How old they are, at least.
    """
    with suppress(OSError):  # what cannot be read is left alone
        for path in directory.glob(".*"):
            if LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                with suppress(OSError):  # it is gone by now
                    if time.time() - path.stat().st_mtime >= seconds:
                        path.unlink()


def _what_is_wrong(error: Exception, aside: Mapping[Path, Path]) -> int | None:
    """Return the number of the disk's error; writers of other languages do not pass it on."""
    number = lacks_room(error)
    if number is not None or isinstance(error, OSError | PEFTError):
        return number
    try:
        for temporary in aside.values():
            if temporary.exists():
                with temporary.open("ab") as file:
                    file.write(bytes(1 << 20))
                    file.flush()
                    os.fsync(file.fileno())
                os.truncate(temporary, temporary.stat().st_size - (1 << 20))
    except OSError as found:
        return lacks_room(found)
    return None


def _refusal(number: int, paths: Sequence[Path], needs: int | None, begun: int) -> DiskError:
    names = " and ".join(map(str, paths))
    files = "file is" if len(paths) == 1 else "files are"
    place = next(p for p in paths[0].absolute().parents if p.exists())
    free = f"{shutil.disk_usage(place).free:,} bytes"
    room = f"room for at least {max(needs or 0, begun):,} bytes"
    wanted = "a place to write" if number == errno.EROFS else room
    return DiskError(
        number,
        f"{names}: expected {wanted}, got {GOT[number].format(free=free)} "
        f"({os.strerror(number)}). The previous {files} unchanged. Make room on the disk of "
        f"{place}, or choose another directory.",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove(aside: Mapping[Path, Path]) -> None:
    for temporary in aside.values():
        with suppress(OSError):  # a disk that became read-only
            temporary.unlink(missing_ok=True)


def _flush(path: Path, mode: int) -> None:
    file = os.open(path, mode)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _flush_names(directory: Path) -> None:
    """Flush a directory, so that a renamed file keeps its name after a crash."""
    if os.name == "nt":  # it opens no directories
        return
    try:
        _flush(directory, os.O_RDONLY)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


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
