"""What the commands draw, as figures (extra: viz)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning_peft.cli.commands.show import samples_of
from lightning_peft.cli.comparing import charts, figures
from lightning_peft.cli.comparing.comparison import Comparison
from lightning_peft.cli.jobs import previews
from lightning_peft.cli.runs.log import read_log
from lightning_peft.errors import DataError, ScheduleError, near

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = [
    "plot_comparison", "plot_curves", "plot_predictions", "plot_samples", "plot_schedule",
]  # fmt: skip

COSTS = {"trained": "trained parameters", "total": "total time (s)"}


def plot_schedule(
    schedule: Any,
    total_steps: int | None = None,
    lr: float | Mapping[str, float] = 1.0,
    *,
    epoch_steps: int | None = None,
) -> Figure:
    """Draw the learning rate of every step, as ``lightning-peft show`` does.

    Args:
        schedule: A schedule of this package, such as :class:`WarmupCosine`.
        total_steps: The optimizer steps of the run; ``None`` if the schedule has them.
        lr: The full rate, or that of each parameter group by its name.
        epoch_steps: The optimizer steps of an epoch, for lengths in epochs.

    Returns:
        A figure of matplotlib.

    Raises:
        ScheduleError: If it is not a schedule of this package, or needs a length that is missing.
        MissingExtraError: If matplotlib is not installed.

    >>> import lightning_peft as lp
    >>> figure = lp.plot_schedule(lp.WarmupCosine(warmup=0.1), 100, lr=1e-3)
    >>> figure.axes[0].get_ylabel()
    'learning rate'
    """
    if not hasattr(schedule, "multiplier"):
        raise ScheduleError(
            "plot_schedule: expected a schedule of lightning_peft, such as WarmupCosine(), got "
            f"{type(schedule).__name__}."
        )
    length = getattr(schedule, "total_steps", None) if total_steps is None else total_steps
    multiplier = schedule.multiplier(length, epoch_steps)
    rates = dict(lr) if isinstance(lr, Mapping) else {"all": float(lr)}
    title = f"{type(schedule).__name__}: {multiplier.total_steps:,} steps"
    return previews.learning_rate_figure(multiplier, rates, title=title)


def plot_comparison(
    comparison: Comparison, cost: Literal["trained", "total"] = "trained"
) -> Figure:
    """Draw the metric of a comparison against a cost, with the Pareto front.

    Args:
        comparison: The comparison of :func:`compare`.
        cost: ``"trained"`` parameters, or ``"total"`` time.

    Returns:
        A figure of matplotlib.

    Raises:
        DataError: If the cost is neither, or no run has both it and the metric.
        MissingExtraError: If matplotlib is not installed.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> import lightning_peft as lp
    >>> with tempfile.TemporaryDirectory() as run:
    ...     summary = {"method": {"name": "lora"}, "seed": 0, "status": "completed"}
    ...     summary |= {"metrics": {"test/accuracy": 0.9}, "parameters": {"trained": 1000}}
    ...     _ = (Path(run) / "summary.json").write_text(json.dumps(summary))
    ...     figure = lp.plot_comparison(lp.compare(run))
    ...
    >>> figure.axes[0].get_xlabel()
    'trained parameters'
    """
    if cost not in COSTS:
        raise DataError(f"plot_comparison: unknown cost {cost!r}. {near(cost, COSTS)}")
    chart = charts.against(comparison, cost, COSTS[cost])
    if chart is None:
        raise DataError(
            f"plot_comparison: expected runs with {comparison.metric} and {COSTS[cost]}, got none."
        )
    return figures.with_keys(chart.figure, chart.keys)


def plot_curves(comparison: Comparison, name: str = "train/loss") -> Figure:
    r"""Draw what the runs of a comparison logged by step, a line for each row.

    Args:
        comparison: The comparison of :func:`compare`.
        name: The name under which it was logged, such as ``"val/accuracy"``.

    Returns:
        A figure of matplotlib.

    Raises:
        DataError: If nothing was logged under that name; names that are near are listed.
        MissingExtraError: If matplotlib is not installed.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> import lightning_peft as lp
    >>> with tempfile.TemporaryDirectory() as run:
    ...     summary = {"method": {"name": "lora"}, "seed": 0, "status": "completed"}
    ...     summary |= {"metrics": {"test/accuracy": 0.9}}
    ...     _ = (Path(run) / "summary.json").write_text(json.dumps(summary))
    ...     _ = (Path(run) / "metrics.csv").write_text("step,train/loss\n0,2.0\n1,1.5\n")
    ...     figure = lp.plot_curves(lp.compare(run), "train/loss")
    ...
    >>> figure.axes[0].get_ylabel()
    'train loss'
    """
    logs = {
        position: [read_log(run.directory) for run in row.runs]
        for position, row in enumerate(comparison.rows)
        if row.runs
    }
    chart = charts.curves_of(comparison, logs, name, name.replace("/", " "))
    if chart is None:
        known = sorted({key for found in logs.values() for log in found for key in log})
        raise DataError(f"plot_curves: no run logged {name!r}. {near(name, known)}")
    return figures.with_keys(chart.figure, chart.keys)


def plot_samples(datamodule: Any, classes: int = 12, variants: int = 7) -> Figure:
    """Draw an image of each class as it is, and augmented as in training.

    Args:
        datamodule: A data module of images of this package, set up.
        classes: The most classes to draw.
        variants: Augmented versions of each image.

    Returns:
        A figure of matplotlib.

    Raises:
        DataError: If the data are no images.
        MissingExtraError: If matplotlib is not installed.

    >>> import lightning_peft as lp
    >>> data = lp.DigitsDataModule(labels_per_class=1, augment="light")
    >>> data.setup("fit")
    >>> len(lp.plot_samples(data, classes=2, variants=3).axes[0].texts)
    4
    """
    if not hasattr(datamodule, "images"):
        raise DataError(
            "plot_samples: expected a data module of images, such as ImageFolderDataModule, got "
            f"{type(datamodule).__name__}."
        )
    before, after, names = samples_of(datamodule, classes, variants)
    return previews.samples_figure(before, after, names, title="augmented as in training")


def plot_predictions(
    images: Tensor,
    labels: Sequence[int],
    probabilities: Tensor,
    class_names: Sequence[str],
    columns: int = 8,
) -> Figure:
    """Draw images with their predictions, green if correct and red if wrong.

    Args:
        images: ``(N, C, H, W)``, in any range.
        labels: The true class of each.
        probabilities: ``(N, classes)``.
        class_names: A name for each class.
        columns: Images in a row.

    Returns:
        A figure of matplotlib.

    Raises:
        MissingExtraError: If matplotlib is not installed.

    >>> import torch
    >>> import lightning_peft as lp
    >>> images, probabilities = torch.rand(2, 1, 8, 8), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    >>> figure = lp.plot_predictions(images, [0, 0], probabilities, ["cat", "dog"])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['cat  90 %', 'dog  80 %, is cat']
    """
    return previews.predictions_figure(images, labels, probabilities, class_names, columns=columns)
