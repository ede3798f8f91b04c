"""One job: build what the config describes, train, measure the best checkpoint, leave the files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lightning_peft.cli.check import check_targets, check_values
from lightning_peft.cli.comparing.curves import set_aside
from lightning_peft.cli.errors import ConfigError, cause_of, explain
from lightning_peft.cli.jobs.summary import write_summary, write_text
from lightning_peft.cli.jobs.task import (
    build_module,
    check_objective,
    fit_to_task,
    refuse_test_monitors,
    task_of,
)
from lightning_peft.cli.known import experiment_of_job, known_keys
from lightning_peft.cli.quiet import quiet
from lightning_peft.cli.search.objectives import names_of
from lightning_peft.cli.search.trial import Trial
from lightning_peft.cli.search.trial_run import check_direction, pruning_of, told
from lightning_peft.cli.sweeps.occupied import this_process

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["train"]

log = logging.getLogger(__name__)

EXTRAS = {f"logger.{name}": name for name in ("tensorboard", "wandb", "mlflow")}
"""Parts of the config that need an extra of the package."""


@dataclass
class Parts:
    """What a job is made of."""

    datamodule: pl.LightningDataModule
    module: pl.LightningModule
    trainer: pl.Trainer


def train(cfg: DictConfig) -> float | list[float] | None:
    """Run a job.

    Args:
        cfg: The composed config.

    Returns:
        The metric that the config names as its objective, or a list where it names several; by
        default the validation metric of the best checkpoint, and ``None`` where there is no
        validation, and on the ranks beside the first.

    Raises:
        ConfigError: If the config cannot be run.
    """
    plain = check_values(cfg, known_keys(experiment_of_job()))

    # what is heavy is imported from here on, and is no part of the time that is measured
    from lightning_peft._namespace import pl
    from lightning_peft.cli.jobs.outcome import leave_files, leave_pruned

    refuse_test_monitors(plain["callbacks"])
    if warning := check_objective(cfg, _sweeper()):
        log.warning(warning)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    with quiet():
        check_targets(plain)
        return _run(cfg, leave_files, leave_pruned)


def _run(
    cfg: DictConfig, leave_files: Callable[..., Any], leave_pruned: Callable[..., Any]
) -> float | list[float] | None:
    started = time.perf_counter()
    directory = Path(cfg.output_dir)
    trial = Trial.of_environment()
    pruning = pruning_of(cfg, trial)
    parts = build(cfg, [pruning] if pruning else [])
    check_direction(cfg, trial)
    if parts.trainer.is_global_zero:
        write_text(directory / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        # a comparison shows this run while it is under way, and if it is killed
        write_summary(directory, cfg, status="running", process=this_process())
    parts.trainer.fit(parts.module, parts.datamodule, ckpt_path=cfg.resume)
    fitted = time.perf_counter()
    if pruning is not None and pruning.pruned is not None:
        seconds = {"fit": fitted - started, "total": fitted - started}
        if parts.trainer.is_global_zero:
            leave_pruned(cfg, parts, pruning.pruned, seconds)
        return pruning.pruned.value
    best = best_checkpoint(parts, directory)
    metrics = _with_objectives(parts, best, names_of(cfg.objective))
    if cfg.calibrate is not None:
        module: Any = parts.module
        temperature = module.calibrate(parts.trainer, parts.datamodule, str(best.path))
        if parts.trainer.is_global_zero:
            _keep_temperature(best.path, temperature)
        parts.trainer.strategy.barrier()
    if cfg.test:
        metrics |= _floats(
            parts.trainer.test(
                parts.module, parts.datamodule, ckpt_path=str(best.path), verbose=False
            )
        )
    if not parts.trainer.is_global_zero:
        return None
    seconds = {"fit": fitted - started, "total": time.perf_counter() - started}
    return told(leave_files(cfg, parts, best, metrics, seconds))


def _keep_temperature(path: Path, temperature: float) -> None:
    """Write the temperature into the checkpoint, so that it says so wherever it goes."""
    from lightning_peft.checkpoint_file import keep_hyperparameters
    from lightning_peft.errors import CheckpointError

    try:
        keep_hyperparameters(path, temperature=temperature)
    except CheckpointError as error:  # hyperparameters of the user's own that are no plain data
        log.warning("the temperature is in serving.json and not in the checkpoint: %s", error)


def check_calibration(module: Any, has_validation: bool) -> None:
    """Refuse a calibration that cannot be made, before the training.

    Raises:
        ConfigError: If there are no validation images, or the module has no temperature.
    """
    if not hasattr(module, "calibrate"):
        raise ConfigError(
            [f"calibrate: {type(module).__name__} has no probabilities. Leave it out."]
        )
    if not has_validation:
        raise ConfigError(
            ["calibrate: it takes a validation split, and this data has none: keep some images."]
        )


def check_baselines(names: Sequence[str], datamodule: Any) -> None:
    """Refuse reference points of pixels where the data has none, before the training.

    Raises:
        ConfigError: If the data module hands out no pixels.
    """
    if names and not hasattr(datamodule, "pixels"):
        raise ConfigError(
            [
                f"baselines: {', '.join(names)} {'is' if len(names) == 1 else 'are'} of pixels, "
                f"and {type(datamodule).__name__} hands out none (pixels(split)). Leave them out."
            ]
        )


def _sweeper() -> Any:
    """The config of Hydra's sweeper, where this job is one of a sweep."""
    from hydra.core.hydra_config import HydraConfig

    from lightning_peft.cli.sweeps.sweep import in_sweep

    return OmegaConf.to_container(HydraConfig.get().sweeper) if in_sweep() else None


def build(cfg: DictConfig, more_callbacks: Sequence[Any] = ()) -> Parts:
    """Build the data module, the module with the classes of the data, and the trainer.

    Args:
        cfg: The composed config; it is fitted to the task of the data.
        more_callbacks: Callbacks beside those of the config.

    Returns:
        The parts.

    Raises:
        ConfigError: If one of them cannot be made as it is described.
    """
    from hydra.utils import instantiate

    with _building("data"):
        datamodule = instantiate(cfg.data, _convert_="all")
        datamodule.prepare_data()
        datamodule.setup("fit")
        has_validation = datamodule.val_dataloader() not in (None, [])
        if cfg.test:  # better now than after the training
            datamodule.setup("test")
            datamodule.test_dataloader()
    check_baselines(cfg.baselines, datamodule)
    with _building("model"):
        fit_to_task(cfg, task_of(datamodule))
        module = build_module(cfg.model, datamodule.num_classes)
    if cfg.calibrate is not None:
        check_calibration(module, has_validation)
    _keep_log(cfg)
    callbacks: list[Any] = []
    loggers: list[Any] = []
    for group, found in (("callbacks", callbacks), ("logger", loggers)):
        # the adapter comes first: what freezes or averages has to find it there
        for name, node in sorted((cfg[group] or {}).items(), key=lambda item: item[0] != "peft"):
            if node is not None:
                with _building(f"{group}.{name}"):
                    found.append(instantiate(node, _convert_="all"))
    callbacks += more_callbacks
    for callback in callbacks:
        monitor = str(getattr(callback, "monitor", None))
        if monitor.startswith("val/") and not has_validation:
            name = type(callback).__name__
            raise ConfigError(
                [
                    f"callbacks: {name} watches {monitor}, and this data has no validation split. "
                    "Choose callbacks=no_validation, or keep images for validation."
                ]
            )
    with _building("trainer"):
        none = {} if has_validation else {"limit_val_batches": 0}
        trainer = instantiate(
            cfg.trainer, callbacks=callbacks, logger=loggers or False, _convert_="all", **none
        )
    return Parts(datamodule, module, trainer)


def _keep_log(cfg: DictConfig) -> None:
    """Keep what a run has logged that goes on in its own directory."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    directory = Path(cfg.output_dir).resolve()
    if cfg.resume is not None and directory in Path(cfg.resume).resolve().parents:
        set_aside(directory)


@contextmanager
def _building(key: str) -> Iterator[None]:
    """Turn whatever is raised while building into a line that names the part of the config."""
    try:
        yield
    except Exception as error:
        cause = cause_of(error)
        told = explain(cause) or f"{type(cause).__name__}: {cause}"
        if key in EXTRAS and isinstance(cause, ImportError):
            told += f" It comes with: pip install 'lightning-peft[{EXTRAS[key]}]'"
        raise ConfigError([f"{key}: {' '.join(told.split())}"]) from error


@dataclass(frozen=True)
class Best:
    """The checkpoint that the run is judged by."""

    path: Path
    metrics: dict[str, float]
    monitor: str | None = None
    """The metric that chose it; ``None`` where nothing did."""


def best_checkpoint(parts: Parts, directory: Path) -> Best:
    """Find the best checkpoint; where validation never ran, write one of the last weights.

    Args:
        parts: The parts of a job that is trained.
        directory: The run's directory.

    Returns:
        The checkpoint, and its validation metric.
    """
    trainer = parts.trainer
    callbacks: list[Any] = trainer.checkpoint_callbacks
    # a resumed run knows the best checkpoint of the run before: that one is not its own
    written = [
        c
        for c in callbacks
        if getattr(c, "best_model_path", "") and Path(c.best_model_path).is_relative_to(c.dirpath)
    ]
    for callback in written:
        if callback.monitor is not None and callback.best_model_score is not None:
            score = float(callback.best_model_score)
            path = Path(callback.best_model_path)
            return Best(path, {callback.monitor: score}, callback.monitor)
    for callback in written:
        if callback.save_weights_only:  # of the last weights
            return Best(Path(callback.best_model_path), _validated(parts))
    metrics = _validated(parts)
    path = directory / "checkpoints" / "best.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    return Best(path, metrics)


def _with_objectives(parts: Parts, best: Best, names: Sequence[str]) -> dict[str, float]:
    """Measure the objectives of the best checkpoint that did not choose it."""
    trainer: Any = parts.trainer
    if all(name in best.metrics for name in names if name.startswith("val/")):
        return dict(best.metrics)
    loggers, trainer.loggers = trainer.loggers, []  # the log is of the training
    try:
        found = trainer.validate(
            parts.module, parts.datamodule, ckpt_path=str(best.path), verbose=False
        )
    finally:
        trainer.loggers = loggers
    return {**_floats(found), **best.metrics}


def _validated(parts: Parts) -> dict[str, float]:
    """Validate the weights as they are now, where the data has something to validate them on."""
    trainer: Any = parts.trainer
    if not trainer.limit_val_batches or parts.datamodule.val_dataloader() in (None, []):
        return {}
    return _floats(trainer.validate(parts.module, parts.datamodule, verbose=False))


def _floats(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {str(key): float(value) for result in results for key, value in result.items()}
