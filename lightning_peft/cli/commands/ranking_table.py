"""Print a ranking of backbones as a table, and write it to files."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.comparing.fitting import fitted, left_out, longest_word

if TYPE_CHECKING:
    from rich.console import Console

    from lightning_peft.cli.comparing.agreement import Agreement
    from lightning_peft.ranking import Ranking, Row

__all__ = ["as_json", "print_ranking", "write_ranking"]

MOST_TOLD = 8
"""The most candidates that are listed as left out; the others are counted."""

HEADINGS = {"probe": "probe", "knn": "5-NN", "logme": "LogME", "h_score": "H-score",
            "nleep": "NLEEP"}  # fmt: skip


SPARE = ("h_score", "nleep", "logme", "knn")
"""The scores that go first where a console is too narrow for all."""


def print_ranking(ranking: Ranking, agreements: Sequence[Agreement], out: Path | None) -> None:
    """Print the table, what was left out and why, and the agreement with fine-tuning.

    Args:
        ranking: What was measured.
        agreements: How the scores order the models, against fine-tuning; may be empty.
        out: Where the files were written, if they were.
    """
    from rich.console import Console

    console = Console()
    if ranking.rows:
        _print_table(ranking, console)
    for item in ranking.skipped[:MOST_TOLD]:
        console.print(f"left out: {item.label}, {item.reason}", style="yellow", markup=False)
    if len(ranking.skipped) > MOST_TOLD:
        more = len(ranking.skipped) - MOST_TOLD
        console.print(f"left out: {more} more, over the budget or not available", style="yellow")
    if not ranking.rows:
        console.print("no candidate could be measured", style="red")
    if agreements:
        _print_agreements(agreements, console)
    if out is not None:
        console.print(f"table      {out / 'ranking.csv'}", markup=False, soft_wrap=True)


def _print_table(ranking: Ranking, console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lightning_peft.ranking.sources import BACKBONES_OF

    each = BACKBONES_OF[ranking.noun].each
    caption = (
        f"{ranking.images} labelled {ranking.noun} of {ranking.classes} classes, ranked by "
        f"{HEADINGS[ranking.by]}. In %: the probe's cross-validated accuracy ± deviation over "
        f"{ranking.folds} folds; first, how often it is the best of all when the {ranking.noun} "
        f"are resampled; 5-NN, leave-one-out accuracy. ms: forward, {each}, on this machine."
    )
    every = ["probe", "first", *list(HEADINGS.values())[1:], "params", "ms"]
    word = longest_word(_shown(row.label) for row in ranking.rows)

    def build(shown: Sequence[str], label_width: int | None) -> Table:
        lacking = left_out(
            [name for name in every if name not in shown], "ranking.csv of --out DIR"
        )
        table = Table(
            box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left",
            caption=f"{caption} {lacking}".strip(),
        )  # fmt: skip
        table.add_column("", justify="right")
        table.add_column("model", overflow="fold", min_width=word, width=label_width)
        for name in shown:
            table.add_column(name, justify="right", no_wrap=True)
        for place, row in enumerate(ranking.rows, 1):
            label, *cells = _cells(row)
            found = dict(zip(every, cells, strict=True))
            texts = (label, *(found[name] for name in shown))
            table.add_row(str(place), *map(Text, texts), style="bold" if place == 1 else None)
        return table

    spare = [HEADINGS[name] for name in SPARE if name != ranking.by]
    console.print()
    console.print(fitted(build, every, [*spare, "ms", "first"], word, console.width)[0])


def _cells(row: Row) -> list[str]:
    scores = dict(row.scores)
    knn = scores.pop("knn")
    return [
        _shown(row.label),
        f"{100 * row.probe:.1f} ± {100 * row.deviation:.1f}",
        f"{100 * row.first:.0f}",
        f"{100 * knn:.1f}",
        *(f"{value:.2f}" for value in scores.values()),
        _short(row.parameters),
        f"{row.milliseconds:.2f}",
    ]


def _shown(label: str) -> str:
    """Return the label of a candidate without the directory of its weights."""
    from lightning_peft.ranking import Candidate

    candidate = Candidate.parse(label)
    return label if candidate.file is None else f"{candidate.name}:{candidate.file.name}"


def _short(count: int) -> str:
    """Return a number of parameters in words, such as ``"1.3 M"``."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _print_agreements(agreements: Sequence[Agreement], console: Console) -> None:
    from rich import box
    from rich.table import Table

    caption = "rank correlation with the accuracy of fine-tuning; 1 means the same order"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for name in ("method", "score"):
        table.add_column(name)
    for name in ("models", "Kendall", "Spearman"):
        table.add_column(name, justify="right")
    for item in agreements:
        numbers = (f"{item.kendall:.2f}", f"{item.spearman:.2f}")
        table.add_row(item.method, HEADINGS[item.score], str(item.models), *numbers)
    console.print(table)


def write_ranking(ranking: Ranking, agreements: Sequence[Agreement], directory: Path) -> None:
    """Write ``ranking.json`` and ``ranking.csv``."""
    from lightning_peft.cli.runs.summary import write_json, write_text

    write_json(directory / "ranking.json", as_json(ranking, agreements))
    write_text(directory / "ranking.csv", _as_csv(ranking))


def as_json(ranking: Ranking, agreements: Sequence[Agreement]) -> dict[str, Any]:
    """Return the ranking and its agreement with fine-tuning as plain types."""
    content = dataclasses.asdict(ranking)
    return {**content, "agreement": [item._asdict() for item in agreements]}


def _as_csv(ranking: Ranking) -> str:
    from lightning_peft.evaluation.csv_rows import RowWriter

    text = io.StringIO()
    writer = RowWriter(text)
    names = list(HEADINGS)[1:]
    fields = ("label", "probe", "deviation", "first")
    rest = ("parameters", "milliseconds", "width")
    writer.writerow(["rank", *fields, *names, *rest])
    for place, row in enumerate(ranking.rows, 1):
        scores = [row.scores[name] for name in names]
        own = [getattr(row, name) for name in fields]
        writer.writerow([place, *own, *scores, *(getattr(row, name) for name in rest)])
    return text.getvalue()
