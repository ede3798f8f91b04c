"""Read the config of a job as the job itself will see it, before the job runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, open_dict, read_write

__all__ = [
    "RESULT_OF_A_JOB",
    "as_written",
    "asked",
    "config_in",
    "experiment_of_job",
    "in_sweep",
    "own_part",
    "own_process",
    "place_key",
]

RESULT_OF_A_JOB = "lightning_peft_result"
"""The callback of Hydra that the job of a sweep has in a process of its own."""


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


def own_process() -> bool:
    """Whether this run is the job of a sweep in a process of its own."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.initialized() and RESULT_OF_A_JOB in (HydraConfig.get().callbacks or {})


def place_key(config: Any) -> str:
    """Return the key that chooses the directory of a run, for messages.

    Args:
        config: The config of the run, its ``hydra`` part included.

    Returns:
        ``"hydra.run.dir"``, or ``"hydra.sweep.dir"`` for the job of a sweep, also of one whose
        launcher has started it as a plain run.
    """
    from hydra.types import RunMode

    job = RESULT_OF_A_JOB in (config.hydra.get("callbacks") or {})
    return "hydra.sweep.dir" if job or config.hydra.mode == RunMode.MULTIRUN else "hydra.run.dir"


def experiment_of_job() -> str | None:
    """Return the experiment of the job that Hydra is running; ``None`` if there is none."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    choice = HydraConfig.get().runtime.choices.get("experiment")
    return None if choice is None else str(choice)
