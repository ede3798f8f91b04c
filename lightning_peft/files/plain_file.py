"""Open files of a directory that may come from a stranger: no link out of it, no pipe, no device.

A link may lead to another file of the user, and a pipe without a writer keeps its reader waiting
forever. Both look like a file to ``open``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from lightning_peft.errors import PEFTError

__all__ = [
    "NotPlainError",
    "check_file",
    "check_plain",
    "leaves",
    "open_plain",
    "read_bytes",
    "read_text",
]

MOST = 64 << 20
"""The most bytes of a text that is read as a whole."""


class NotPlainError(PEFTError, OSError):
    """A name that is no file of its directory, or a file that is too large to read."""


def check_plain(path: Path, root: Path | None = None) -> Path:
    """Refuse what is no regular file within a directory.

    Args:
        path: The file.
        root: The directory that it has to lie in when links are followed; by default its own. The
            directory itself may be reached by a link.

    Returns:
        The file's place without links.

    Raises:
        NotPlainError: If it is something else than a file, or lies elsewhere.
        FileNotFoundError: If there is nothing.
    """
    root = path.parent if root is None else root
    real = check_file(path)
    if not real.is_relative_to(os.path.realpath(root)):
        raise NotPlainError(
            f"{path}: expected a file of {root}, got a link to {real}. Put the file itself there."
        )
    return real


def check_file(path: Path) -> Path:
    """Refuse what is no regular file, before it is opened; a link may lead anywhere.

    Args:
        path: The file.

    Returns:
        Its place without links.

    Raises:
        NotPlainError: If it is a directory, a pipe, a socket or a device.
        FileNotFoundError: If there is nothing.
    """
    if "\0" in str(path):
        raise NotPlainError(f"expected the name of a file, got one with a NUL: {str(path)!r}.")
    real = Path(os.path.realpath(path))
    kind = os.stat(real).st_mode
    if not stat.S_ISREG(kind):
        raise NotPlainError(f"{path}: expected a file, got {_kind(kind)}. Remove it.")
    return real


def open_plain(path: Path, root: Path | None = None) -> IO[bytes]:
    """Open a regular file within a directory to read it.

    Args:
        path: The file.
        root: As for :func:`check_plain`.

    Raises:
        NotPlainError: As for :func:`check_plain`.
        FileNotFoundError: If there is nothing.
    """
    real = check_plain(path, root)
    # neither flag matters for a file that is one, and nothing waits if it has been exchanged since
    file = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    kind = os.fstat(file).st_mode
    if not stat.S_ISREG(kind):
        os.close(file)
        raise NotPlainError(f"{path}: expected a file, got {_kind(kind)}. Remove it.")
    return os.fdopen(file, "rb")


def read_bytes(path: Path, root: Path | None = None, most: int = MOST) -> bytes:
    """Read a regular file within a directory.

    Args:
        path: The file.
        root: As for :func:`check_plain`.
        most: The most bytes.

    Raises:
        NotPlainError: As for :func:`check_plain`, and for a larger file.
        FileNotFoundError: If there is nothing.
    """
    with open_plain(path, root) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise NotPlainError(f"{path}: expected a file of at most {most:,} bytes, got a larger one.")
    return content


def read_text(path: Path, root: Path | None = None, most: int = MOST) -> str:
    """Read a text in UTF-8 as :func:`read_bytes` does; line ends are kept as they are.

    Raises:
        ValueError: If it is not UTF-8.
    """
    return read_bytes(path, root, most).decode("utf-8")


def leaves(directory: Path) -> Iterator[str]:
    """Yield what below a directory is neither a file nor a directory, or a link that leads out.

    Args:
        directory: The directory; links in it are not followed.

    Yields:
        A sentence for each.
    """
    root = os.path.realpath(directory)
    for place, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = Path(place, name)
            with suppress(FileNotFoundError):  # removed meanwhile
                kind = os.lstat(path).st_mode
                if stat.S_ISLNK(kind):
                    real = os.path.realpath(path)
                    if not Path(real).is_relative_to(root):
                        yield f"{path}: expected a file of {directory}, got a link to {real}"
                elif not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                    yield f"{path}: expected a file, got {_kind(kind)}"


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a link",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")
