"""Print how many labelled images or texts each class has, before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightning_peft.cli.config.objectives import watched_by
from lightning_peft.cli.jobs.task import dataset_of, task_of

__all__ = ["print_labels"]

SPLITS = ("train", "val", "test")
MOST_LISTED = 30
"""With more classes than this, only the smallest and the largest are listed."""


def print_labels(cfg: Any, datamodule: Any, console: Any) -> None:
    """Print the label budget and its distribution over the classes.

    Args:
        cfg: The composed config, which says whether something chooses the checkpoint.
        datamodule: The data, set up.
        console: Where it is printed.
    """
    if task_of(datamodule) in ("multilabel", "regression"):
        _print_targets(datamodule, console)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = list(datamodule.class_names)
    counts = {
        split: Counter(int(label) for label in dataset_of(datamodule, split).labels)
        for split in SPLITS
    }
    train = counts["train"]
    order: list[int] = list(range(len(names)))
    if len(names) > MOST_LISTED:
        order = sorted(order, key=lambda k: train[k])
        order = [*order[: MOST_LISTED // 2], *order[-MOST_LISTED // 2 :]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    for split in SPLITS:
        table.add_column(split, justify="right")
    table.add_column("of train", justify="right")
    for k in order:
        share = f"{100 * train[k] / train.total():.1f} %"
        table.add_row(Text(names[k]), *(f"{counts[split][k]:,}" for split in SPLITS), share)
    table.add_section()
    table.add_row("all", *(f"{counts[split].total():,}" for split in SPLITS), "", style="bold")
    console.print(table)
    if len(order) < len(names):
        console.print(f"the smallest and the largest of {len(names)} classes", style="dim")
    validating = counts["val"].total()
    budget = train.total() + validating
    watched = watched_by(cfg)
    did = "choose the checkpoint" if watched and watched.metric.startswith("val/") else "validate"
    included = f", those that {did} included" if validating else ""
    console.print(f"labels used: {budget:,}{included}")
    low, high = min(train[k] for k in range(len(names))), max(train.values())
    if high > 1.5 * low:
        ratio, noun = high / max(low, 1), _noun(datamodule)
        console.print(
            f"uneven: the largest class has {ratio:.1f} times the {noun} of the smallest; always "
            f"answering '{names[train.most_common(1)[0][0]]}' is correct for "
            f"{100 * high / train.total():.0f} % of them. Compare F1 as well as accuracy.",
            style="yellow",
            markup=False,
        )


def _print_targets(datamodule: Any, console: Any) -> None:
    """Print how many images have each label, or the mean and deviation of the numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    files = {split: list(dataset_of(datamodule, split).labels) for split in SPLITS}
    task, names = task_of(datamodule), list(datamodule.class_names)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("label" if task == "multilabel" else "number", overflow="fold")
    if task == "multilabel":
        counts = [datamodule.class_counts(split) for split in SPLITS]
        columns = [[f"{n:,}" for n in found] for found in counts]
        shown: Sequence[str] = SPLITS
    else:
        shown = ("mean in train", "deviation")
        columns = [[f"{v:.6g}" for v in found] for found in datamodule.target_statistics()]
    for name in shown:
        table.add_column(name, justify="right")
    for row in zip(names, *columns, strict=True):
        table.add_row(*map(Text, row))
    console.print(table)
    told = ", ".join(f"{len(found):,} {split}" for split, found in files.items())
    console.print(f"{_noun(datamodule)}: {told}", highlight=False)


def _noun(datamodule: Any) -> str:
    return "texts" if hasattr(datamodule, "texts") else "images"
