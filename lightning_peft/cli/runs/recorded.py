"""Read the config that a run recorded, with the present paths of what lies in its directory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_peft.cli.runs.places import moved_words

__all__ = ["recorded_config"]


def recorded_config(directory: Path) -> Any:
    """Return the config of a run, whose directory may have been moved or copied.

    Paths in the directory as it was are those in the directory as it is. A relative ``data.root``
    begins where the run was started, unless there is such a folder here.

    Args:
        directory: The directory of the run.
    """
    from omegaconf import OmegaConf

    cfg: Any = OmegaConf.load(directory / "config.yaml")
    plain: Any = OmegaConf.to_container(cfg)
    before = plain.get("output_dir") if isinstance(plain, dict) else None
    if isinstance(before, str) and before not in ("", "."):
        cfg = OmegaConf.create(moved_words(plain, before, str(directory.absolute())))
    data = cfg.get("data") if OmegaConf.is_dict(cfg) else None
    root = data.get("root") if OmegaConf.is_dict(data) else None
    if isinstance(root, str) and "://" not in root and not Path(root).exists():
        start = _started_in(directory)
        if start is not None and (start / root).exists():
            data.root = str(start / root)
    return cfg


def _started_in(directory: Path) -> Path | None:
    """Return the working directory in which a run was started, as Hydra recorded it."""
    from omegaconf import OmegaConf

    with suppress(Exception):  # a run of another program, or without Hydra's files
        found: Any = OmegaConf.load(directory / ".hydra" / "hydra.yaml")
        return Path(str(found.hydra.runtime.cwd))
    return None
