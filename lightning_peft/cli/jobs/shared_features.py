"""Compute the frozen first part of a backbone once for all jobs of a sweep."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.job_config import in_sweep
from lightning_peft.cli.runs.features import features_of_sweep
from lightning_peft.evaluation.efficiency import human_bytes
from lightning_peft.lightning.callbacks.cache import FeatureCache
from lightning_peft.lightning.namespace import pl

__all__ = ["SharedFeatures", "shared_features"]


class SharedFeatures(FeatureCache):
    """Reads features that the jobs before have left in a directory, and leaves its own.

    Once in a process a line on the standard error tells it.

    Args:
        directory: The directory.
        max_bytes: The largest size of all files in it.
    """

    _told = False
    _checked: ClassVar[dict[Any, Any] | None] = {}

    def __init__(self, directory: Path, max_bytes: int) -> None:
        super().__init__(directory=directory, max_bytes=max_bytes)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell what is shared, once the progress bar has ended."""
        cache = self.cache
        if cache is not None and cache.off is None and len(cache.store) and trainer.is_global_zero:
            self._tell(cache.where, len(cache.store), cache.store.nbytes)
        super().on_fit_end(trainer, pl_module)

    def _tell(self, where: str | None, samples: int, nbytes: int) -> None:
        if SharedFeatures._told:
            return
        SharedFeatures._told = True
        print(
            f"the frozen part of the backbone ({where}) runs once for all jobs: {samples:,} "
            f"samples, {human_bytes(nbytes)} of at most {human_bytes(self.max_bytes)} in "
            f"{self.directory} until the sweep ends (shared_features_gb=0 for none)",
            file=sys.stderr,
        )


def shared_features(cfg: DictConfig) -> list[Any]:
    """Return the callback of a job that shares features with the other jobs of its sweep.

    Args:
        cfg: The config of the job.

    Returns:
        The callback, or nothing: for a single run, where images are augmented, where the config has
        a cache of its own, or without room.

    Raises:
        ConfigError: If the limit is negative.
    """
    from hydra.core.hydra_config import HydraConfig

    gigabytes = cfg.get("shared_features_gb") or 0.0
    if gigabytes < 0:
        raise ConfigError(
            [f"shared_features_gb: expected 0 (none) or more, got {gigabytes}. Leave it out for 4."]
        )
    limit = int(gigabytes * 1e9)
    if not limit or not in_sweep() or cfg.data.get("augment") is not None or _has_cache(cfg):
        return []
    directory = features_of_sweep(HydraConfig.get())
    # the checkpoints of the jobs need room, too
    free = shutil.disk_usage(directory.parent).free // 2
    return [SharedFeatures(directory, min(limit, free))] if free else []


def _has_cache(cfg: DictConfig) -> bool:
    nodes = (cfg.get("callbacks") or {}).values()
    return any("FeatureCache" in str((node or {}).get("_target_")) for node in nodes)
