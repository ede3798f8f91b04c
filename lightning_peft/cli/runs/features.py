"""Where the jobs of a sweep share the features of a frozen backbone, as long as the sweep runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

__all__ = ["features_of_sweep", "remove_features"]

DIRECTORY = ".features"


def features_of_sweep(hydra: Any) -> Path:
    """Return the directory of the features.

    Args:
        hydra: The ``hydra`` part of the config of one of the sweep's jobs.
    """
    sweep = Path(hydra.runtime.output_dir)
    for _ in Path(hydra.sweep.subdir).parts:
        sweep = sweep.parent
    return sweep / DIRECTORY


def remove_features(sweep: Path) -> None:
    """Remove what the jobs of a sweep shared, after the last.

    Args:
        sweep: The directory of the sweep.
    """
    shutil.rmtree(sweep / DIRECTORY, ignore_errors=True)
