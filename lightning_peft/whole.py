"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_whole"]


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside a file; what was written there takes the file's place.

    It is flushed to the disk and renamed when the block ends: a crash leaves the old file or the
    new one, never half of one. An error inside the block leaves the old file.

    Args:
        path: The file; its directory has to be there.

    Yields:
        The temporary name, with the file's own suffix.
    """
    temporary = path.with_name(f".{secrets.token_hex(6)}.{path.name}")
    try:
        # opened here so that no other writer takes the name, with the permissions of any new file
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # whoever wrote may have put a file of its own there
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
