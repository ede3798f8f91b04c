"""Build the parts of a run from its config, and find its best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lightning_peft.cli.config.errors import ConfigError, cause_of, explain
from lightning_peft.cli.config.task import fit_to_task
from lightning_peft.cli.jobs.backbone_facts import BackboneFacts, backbone_facts
from lightning_peft.cli.jobs.loggers import forgiving
from lightning_peft.cli.jobs.task import build_module, task_of

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = [
    "EXTRAS",
    "Best",
    "Parts",
    "best_checkpoint",
    "build",
    "check_baselines",
    "check_calibration",
]


EXTRAS = {f"logger.{name}": name for name in ("tensorboard", "wandb", "mlflow")}
"""Parts of the config that need an extra of the package."""


@dataclass
class Parts:
    """The data, the module and the trainer of a job."""

    datamodule: pl.LightningDataModule
    module: pl.LightningModule
    trainer: pl.Trainer
    backbone: BackboneFacts = field(default_factory=dict)


def check_calibration(module: Any, has_validation: bool) -> None:
    """Refuse a calibration that would be impossible, before the training.

    Raises:
        ConfigError: If there are no validation images, or the module has no temperature.
    """
    if not hasattr(module, "calibrate"):
        raise ConfigError(
            [f"calibrate: expected a classifier, got {type(module).__name__}. Leave it out."]
        )
    if not has_validation:
        raise ConfigError(
            ["calibrate: expected a validation split, got data without one. Keep some images."]
        )


def check_baselines(names: Sequence[str], datamodule: Any) -> None:
    """Refuse pixel baselines for data without pixels, before the training.

    Raises:
        ConfigError: If the data module provides no pixels.
    """
    if names and not hasattr(datamodule, "pixels"):
        raise ConfigError(
            [
                f"baselines: {', '.join(names)} {'needs' if len(names) == 1 else 'need'} pixels, "
                f"but {type(datamodule).__name__} has no pixels(split). Leave them out."
            ]
        )


def build(
    cfg: DictConfig,
    more_callbacks: Sequence[Any] = (),
    first_callbacks: Sequence[Any] = (),
    settle: Callable[[DictConfig, Any], None] | None = None,
) -> Parts:
    """Build the data module, the module with the classes of the data, and the trainer.

    Args:
        cfg: The composed config; it is fitted to the task of the data.
        more_callbacks: Callbacks in addition to those of the config.
        first_callbacks: Callbacks before those of the config.
        settle: Called with the config and the data, to complete the config by what the data is.

    Returns:
        The parts.

    Raises:
        ConfigError: If one of them cannot be built as the config describes it.
    """
    from hydra.utils import instantiate

    from lightning_peft.cli.jobs.validating import of_the_last_weights, when_to_validate
    from lightning_peft.lightning.checkpoint_io import write_whole_checkpoints

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
    if settle is not None:
        settle(cfg, datamodule)
    with _building("model"):
        module = build_module(cfg.model, getattr(datamodule, "num_classes", None))
        facts = backbone_facts(cfg, module, datamodule)
    if cfg.calibrate is not None:
        check_calibration(module, has_validation)
    when = when_to_validate(cfg, datamodule if has_validation else None)
    callbacks: list[Any] = []
    loggers: list[Any] = []
    for group, found in (("callbacks", callbacks), ("logger", loggers)):
        # the adapter comes first: what freezes or averages has to find it there
        for name, node in sorted((cfg[group] or {}).items(), key=lambda item: item[0] != "peft"):
            if node is not None:
                with _building(f"{group}.{name}"):
                    more = of_the_last_weights(node, when)
                    found.append(instantiate(node, _convert_="all", **more))
    loggers = [forgiving(logger) for logger in loggers]
    callbacks = [*first_callbacks, *callbacks, *more_callbacks]
    for callback in callbacks:
        monitor = str(getattr(callback, "monitor", None))
        if monitor.startswith("val/") and not has_validation:
            name = type(callback).__name__
            raise ConfigError(
                [
                    f"callbacks: {name} monitors {monitor}, but this data has no validation split. "
                    "Choose callbacks=no_validation, or keep images for validation."
                ]
            )
    with _building("trainer"):
        trainer = instantiate(
            cfg.trainer, callbacks=callbacks, logger=loggers or False, _convert_="all", **when
        )
    write_whole_checkpoints(trainer.strategy)
    return Parts(datamodule, module, trainer, facts)


@contextmanager
def _building(key: str) -> Iterator[None]:
    """Turn an error of building into a line that names the part of the config."""
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
    """The checkpoint that represents the run."""

    path: Path
    metrics: dict[str, float]
    monitor: str | None = None
    """The metric that chose it; ``None`` where nothing did."""


def best_checkpoint(parts: Parts, directory: Path) -> Best:
    """Return the best checkpoint; if validation never ran, write one of the last weights.

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
    """Measure the objectives of the best checkpoint, other than the one that chose it."""
    trainer: Any = parts.trainer
    if all(name in best.metrics for name in names if name.startswith("val/")):
        return dict(best.metrics)
    loggers, trainer.loggers = trainer.loggers, []  # the log is of the training
    try:
        found = trainer.validate(
            parts.module,
            parts.datamodule,
            ckpt_path=str(best.path),
            verbose=False,
            weights_only=True,
        )
    finally:
        trainer.loggers = loggers
    return {**_floats(found), **best.metrics}


def _validated(parts: Parts) -> dict[str, float]:
    """Validate the current weights, if the data has a validation split."""
    trainer: Any = parts.trainer
    if not trainer.limit_val_batches or parts.datamodule.val_dataloader() in (None, []):
        return {}
    return _floats(trainer.validate(parts.module, parts.datamodule, verbose=False))


def _floats(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {str(key): float(value) for result in results for key, value in result.items()}
