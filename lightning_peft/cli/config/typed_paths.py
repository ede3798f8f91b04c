"""Paths begin where the command was typed, also if a job runs in its own directory.

``hydra.job.chdir=true`` changes the working directory before a job starts: for files that code of
the user's own writes, not for what was typed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = ["from_where_it_was_typed", "typed_in"]

_READ = re.compile(r"(?:.*_)?(?:root|labels|path|file|folder|dir|checkpoint|weights|backbone)s?")
"""Keys of what is read: a path if there is such a file or directory."""

_WRITTEN = frozenset(
    {"output_dir", "cache", "directory", "dirpath", "save_dir", "default_root_dir"}
)
"""Keys of directories that are made."""


_OF_LIGHTNING = ("last", "best", "hpc")
"""Words of Lightning for a checkpoint that it finds itself."""


def typed_in() -> Path:
    """Return the directory in which the command of this job was typed."""
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.cwd) if HydraConfig.initialized() else Path.cwd()


def from_where_it_was_typed(cfg: Any) -> None:
    """Make relative paths in the config of a job absolute, if its working directory is another.

    Args:
        cfg: The config, without its ``hydra`` part; changed in place.
    """
    start = typed_in()
    if start != Path.cwd():
        _begin_at(cfg, start)


def _begin_at(cfg: Any, start: Path) -> None:
    from omegaconf import OmegaConf, open_dict, read_write

    if not OmegaConf.is_config(cfg):
        return
    keys = list(cfg) if OmegaConf.is_dict(cfg) else range(len(cfg))
    for key in keys:
        if OmegaConf.is_missing(cfg, key):
            continue
        value = cfg._get_node(key)._value()
        if not isinstance(value, str) or "${" in value:  # it takes the place of another key
            _begin_at(cfg._get_node(key), start)
        elif (path := _path(str(key), value, start)) is not None:
            with read_write(cfg), open_dict(cfg):
                cfg[key] = str(path)


def _path(key: str, value: str, start: Path) -> Path | None:
    """Return a value as an absolute path, or ``None`` if it is no path or one already."""
    if not value or "://" in value or value.startswith("~") or Path(value).is_absolute():
        return None
    path = start / value
    if key == "resume":
        return None if value in _OF_LIGHTNING else path
    read = _READ.fullmatch(key) is not None and (path.exists() or key == "root")
    return path if read or key in _WRITTEN else None
