"""Read the config of a job as the job itself will see it, before the job runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, open_dict, read_write

__all__ = ["as_written", "asked", "config_in", "experiment_of_job", "in_sweep", "own_part"]


def own_part(config: Any) -> Any:
    """Return the config of a job without its ``hydra`` part, as Hydra gives it to the job."""
    cfg = deepcopy(config)
    with read_write(cfg), open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def as_written(cfg: Any) -> Any:
    """Return a config as it is read back from the file that its job writes."""
    return OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))


@contextmanager
def asked(config: Any) -> Iterator[None]:
    """Resolve ``${hydra:...}`` from a config inside the block, as while its job runs."""
    from hydra.core.hydra_config import HydraConfig

    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


@contextmanager
def config_in(directory: str | Path, config: Any) -> Iterator[Any]:
    """Yield a job's own config as it is in a directory; its values can be read inside the block.

    Args:
        directory: The directory of the job.
        config: The config of the job, its ``hydra`` part included.
    """
    full = deepcopy(config)
    with read_write(full.hydra.runtime), open_dict(full.hydra.runtime):
        full.hydra.runtime.output_dir = str(directory)
    with asked(full):
        yield own_part(full)


def in_sweep() -> bool:
    """Whether this process runs the jobs of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def experiment_of_job() -> str | None:
    """Return the experiment of the job that Hydra is running; ``None`` if there is none."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    choice = HydraConfig.get().runtime.choices.get("experiment")
    return None if choice is None else str(choice)
