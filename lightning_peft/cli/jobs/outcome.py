"""Write what a finished job leaves: the adapter, the results of the test, ``summary.json``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.cli.config.job_config import in_sweep
from lightning_peft.cli.config.objectives import costs_of, names_of
from lightning_peft.cli.jobs.backbone_facts import told
from lightning_peft.cli.jobs.previews import predictions
from lightning_peft.cli.jobs.serving_facts import write_facts
from lightning_peft.cli.jobs.task import dataset_of, task_of
from lightning_peft.cli.runs.summary import told_objectives, write_summary
from lightning_peft.cli.runs.trial import Trial
from lightning_peft.data import baselines
from lightning_peft.errors import MissingExtraError
from lightning_peft.evaluation.efficiency import count_parameters
from lightning_peft.evaluation.metric_names import MAIN, written
from lightning_peft.evaluation.outputs import Outputs
from lightning_peft.lightning.callbacks.efficiency import EfficiencyMonitor

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.table import Table

    from lightning_peft.cli.jobs.parts import Best, Parts
    from lightning_peft.cli.jobs.pruning import Pruned

__all__ = ["leave_files", "leave_pruned", "result_table", "save_adapters"]

log = logging.getLogger(__name__)


def leave_files(
    cfg: DictConfig,
    parts: Parts,
    best: Best,
    metrics: Mapping[str, float],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Write the files of a finished run, and print its result.

    Args:
        cfg: The job's config.
        parts: What was trained; the module holds the weights of the best checkpoint.
        best: The best checkpoint.
        metrics: What was measured.
        seconds: How long it took.

    Returns:
        The summary.
    """
    directory = Path(cfg.output_dir)
    method, parameters, size = save_adapters(parts.module, directory / "adapter")
    sizes = {"checkpoint": best.path.stat().st_size, **size}
    write_facts(directory, parts.datamodule, getattr(parts.module, "outputs", None))
    if cfg.test:
        _write_test_set(parts, directory)
    efficiency = _efficiency(parts)
    costs = {
        "parameters": parameters,
        "bytes": sizes,
        "seconds": {**seconds, "step": efficiency.get("step_seconds")},
        "efficiency": efficiency,
    }
    summary = write_summary(
        directory,
        cfg,
        status="completed",
        method=method,
        metrics=dict(metrics),
        intervals_95=_intervals(cfg, parts),
        **told_objectives(
            names_of(cfg.objective),
            {**metrics, **costs_of(costs)},
            trial.directions if (trial := Trial.of_environment()) else (),
        ),
        **costs,
        backbone=parts.backbone,
        steps=parts.trainer.global_step,
        images=_images(parts),
        monitor=best.monitor,
        noun=getattr(parts.module, "noun", "images"),
        ranks=parts.trainer.world_size,
        task=task_of(parts.datamodule),
        temperature=getattr(parts.module, "temperature", None) if cfg.calibrate else None,
        device=str(parts.trainer.strategy.root_device),
        baselines={name: getattr(baselines, name)(parts.datamodule) for name in cfg.baselines},
    )
    if not in_sweep():
        from rich.console import Console

        Console().print(result_table(summary, directory))
    return summary


def save_adapters(
    module: Any, directory: Path
) -> tuple[dict[str, Any], dict[str, float], dict[str, int]]:
    """Write the adapter of a module; several adapted backbones get a directory each.

    Args:
        module: What was trained.
        directory: Where the adapter goes; those of several backbones go below it, by their names.

    Returns:
        The method, the counts of parameters and the size, as in a summary.
    """
    found = find_adaptations(module)
    configs: dict[str, Any] = {}
    size = 0
    for path, adaptation in found.items():
        # a user's own module may adapt several, and none may replace another
        where = directory / (path or type(module).__name__) if len(found) > 1 else directory
        adaptation.save(where)
        configs[path] = adaptation.method.to_config()
        size += sum(file.stat().st_size for file in where.iterdir() if file.is_file())
    if len(found) == 1:
        ((path, adaptation),) = found.items()
        report = adaptation.report()
        parameters = {"trained": report.trained, "total": report.total, "share": report.share}
        return {"config": configs[path]}, parameters, {"adapter": size}
    count = count_parameters(module)
    parameters = {"trained": count.trainable, "total": count.total, "share": count.share}
    return (
        {"configs": configs} if found else {},
        parameters,
        {"adapter": size} if found else {},
    )


def leave_pruned(
    cfg: DictConfig, parts: Parts, pruned: Pruned, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Write the summary of a run that was stopped by the pruner of its search.

    Args:
        cfg: The job's config.
        parts: What was trained.
        pruned: Where it was stopped.
        seconds: How long it took.

    Returns:
        The summary.
    """
    count = count_parameters(parts.module)
    return write_summary(
        Path(cfg.output_dir),
        cfg,
        status="pruned",
        pruned=asdict(pruned),
        objective={"name": pruned.name, "value": pruned.value},
        parameters={"trained": count.trainable, "total": count.total, "share": count.share},
        seconds=dict(seconds),
        steps=pruned.step,
        images=_images(parts),
        ranks=parts.trainer.world_size,
        task=task_of(parts.datamodule),
    )


def result_table(summary: Mapping[str, Any], directory: Path) -> Table:
    """Return the result of one run as a table for a console.

    Args:
        summary: The result of :func:`leave_files`.
        directory: The run's directory.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lightning_peft.cli.comparing.comparison import BASELINES
    from lightning_peft.cli.comparing.wording import duration, size

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    intervals = summary.get("intervals_95") or {}
    for name, value in summary["metrics"].items():
        text = written(name, value)
        if name == f"test/{MAIN.get(str(summary.get('task')), 'accuracy')}":
            text = f"[bold]{text}[/bold]"
        if name in intervals:
            low, high = (written(name, end) for end in intervals[name])
            text += f"  [dim]{low.removesuffix(' %')} to {high}[/dim]"
        table.add_row(name.replace("/", " "), text)
    if intervals:
        noun = summary.get("noun", "images")
        table.add_row("", f"[dim]95 % intervals: this model on other test {noun}[/dim]")
    if summary.get("temperature"):
        table.add_row("temperature", f"{summary['temperature']:.3f}, fitted on validation")
    for name, value in summary["baselines"].items():
        table.add_row(BASELINES.get(name, name), f"{100 * value:.1f} %")
    if backbone := summary.get("backbone"):
        table.add_row("backbone", Text(backbone["name"]))
        table.add_row("", Text(told(backbone)))
    parameters, seconds = summary["parameters"], summary["seconds"]
    share = f"{100 * parameters['share']:.2f} %"
    table.add_row(
        "trained", f"{parameters['trained']:,} of {parameters['total']:,} parameters ({share})"
    )
    table.add_row("checkpoint", size(summary["bytes"]["checkpoint"]))
    if seconds.get("step"):
        table.add_row("step", duration(seconds["step"]))
    total = duration(seconds["total"])
    if seconds.get("validation"):
        total += f", {duration(seconds['validation'])} of it validation"
    table.add_row("total", total)
    table.add_row("files", str(directory))
    return table


def _write_test_set(parts: Parts, directory: Path) -> None:
    """Write the tables of a classifier's test, and a picture of some predictions."""
    results = getattr(parts.module, "test_results", None)
    if results is None:  # a module of the user's own
        return
    evaluation = results()
    evaluation.write_csv(directory)
    # a picture shows one class for each image
    if evaluation.confusion is None or hasattr(parts.datamodule, "texts"):
        return
    names = [row.name for row in evaluation.classes]
    try:
        images, labels, probabilities = some_predictions(parts)
        predictions(images, labels, probabilities, names, directory / "predictions.png")
    except MissingExtraError as error:
        log.info("no picture of predictions: %s", error)
    except Exception as error:  # what was measured is worth more than a picture of it
        log.warning("no picture of predictions: %s: %s", type(error).__name__, error)


def _intervals(cfg: DictConfig, parts: Parts) -> dict[str, tuple[float, float]]:
    """Return the bootstrap intervals of a test; none if nothing was tested, or too little."""
    results = getattr(parts.module, "test_results", None)
    if not (cfg.test and cfg.bootstrap and results is not None):
        return {}
    evaluation = results()
    if len(evaluation.targets) < 2:
        return {}
    found: dict[str, tuple[float, float]] = evaluation.intervals(
        replicates=cfg.bootstrap, seed=cfg.seed
    )
    return found


def some_predictions(parts: Parts, count: int = 32) -> tuple[Tensor, list[int], Tensor]:
    """Predict a few images, spread evenly over the test set.

    Args:
        parts: The parts of a job; the module returns logits ``(B, classes)``.
        count: The most images.

    Returns:
        Images ``(N, C, H, W)``, labels, and probabilities ``(N, classes)``, on the CPU.
    """
    dataset: Any = parts.datamodule.test_dataloader().dataset
    number = min(count, len(dataset))
    chosen = [round(i * (len(dataset) - 1) / max(number - 1, 1)) for i in range(number)]
    found = [dataset[index] for index in chosen]
    images = torch.stack([image for image, _ in found])
    module = parts.module
    was_training = module.training
    module.eval()
    read: Any = module.outputs if hasattr(module, "outputs") else Outputs()
    with torch.inference_mode():
        logits = module(images.to(next(module.parameters()).device))
    module.train(was_training)
    return images, [int(label) for _, label in found], read(logits).cpu()


def _images(parts: Parts) -> dict[str, int]:
    """Return how many labelled images or texts each split has."""
    found = {s: dataset_of(parts.datamodule, s) for s in ("train", "val", "test")}
    return {name: len(images) for name, images in found.items() if images is not None}


def _efficiency(parts: Parts) -> dict[str, Any]:
    """Return the figures of EfficiencyMonitor; nothing if the config has none."""
    for callback in parts.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EfficiencyMonitor):
            return dict(callback.report)
    return {}
