"""Find the rate of a job with ``lr=auto`` on its training data, before the job is built."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from lightning_peft.cli.config.auto_rate import AUTO, FILE
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.job_config import in_sweep
from lightning_peft.cli.jobs.length import planned_steps
from lightning_peft.cli.jobs.task import build_module
from lightning_peft.cli.runs.summary import write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lightning_peft.lightning.rates.search import FoundRate

__all__ = ["settle_rate"]

KEPT = ("peft", "schedule", "freeze", "l2sp")
"""The callbacks of a config that belong to the training, and not to what is around it."""

OF_THE_TRAINER = (
    *("accelerator", "devices", "precision", "gradient_clip_val", "gradient_clip_algorithm"),
    *("accumulate_grad_batches", "deterministic"),
)

log = logging.getLogger(__name__)


def settle_rate(cfg: DictConfig, datamodule: Any) -> None:
    """Find the rate of a job, put it into its config, and write what it was found by.

    Args:
        cfg: The composed config, fitted to the task, with the rate to begin with; changed in place.
        datamodule: Its data, set up.

    Raises:
        ConfigError: If no rate can be found.
    """
    from lightning_peft.errors import PEFTError
    from lightning_peft.lightning.rates.search import MOST_STEPS, find_rate

    say = _say if not in_sweep() else log.info
    try:
        steps = min(planned_steps(cfg, datamodule).total or MOST_STEPS, MOST_STEPS)
    except ConfigError:  # the end is somebody's signal, or max_time
        steps = MOST_STEPS
    say(f"lr={AUTO}: each rate is tried on two halves of the training data, {steps} steps each")
    try:
        found = find_rate(
            _builder(cfg, getattr(datamodule, "num_classes", None)),
            datamodule,
            start=float(cfg.lr),
            steps=steps,
            seed=int(cfg.seed),
            trainer={name: cfg.trainer[name] for name in OF_THE_TRAINER if cfg.trainer.get(name)},
            say=lambda line: say(f"  {line}"),
        )
    except PEFTError as error:
        raise ConfigError([f"lr={AUTO}: {error}"]) from error
    say(f"lr={AUTO}: {found.rate:g}, found in {found.seconds:.0f} s")
    cfg.lr = found.rate
    write_text(Path(cfg.output_dir) / FILE, json.dumps(_plain(found), indent=2) + "\n")


def _builder(cfg: DictConfig, num_classes: int | None) -> Callable[[float], Any]:
    from hydra.utils import instantiate

    def build(rate: float) -> Any:
        of_rate: Any = OmegaConf.merge(cfg, {"lr": rate})
        nodes = [of_rate.callbacks.get(name) for name in KEPT]
        callbacks = [instantiate(node, _convert_="all") for node in nodes if node is not None]
        return build_module(of_rate.model, num_classes), callbacks

    return build


def _plain(found: FoundRate) -> dict[str, Any]:
    """Return what was found as JSON; a loss that is not finite is null."""

    def number(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def plain(one: Any, *without: str) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(one) if field.name not in without]
        return {name: number(getattr(one, name)) for name in names}

    trials = [plain(trial, "each") for trial in found.trials]
    return {**plain(found, "trials"), "trials": trials, "asked": AUTO}


def _say(line: str) -> None:
    log.info("%s", line)
    print(line, file=sys.stderr, flush=True)
