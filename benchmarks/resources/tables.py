"""The tables of the page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.resources.models import MODELS
from benchmarks.resources.summary import Lines, ratio, rounds, sizes, to_a_loss
from benchmarks.resources.variants import OF_PEFT, TRAINERS, methods, variants
from lightning_peft.evaluation.efficiency import human_bytes

__all__ = ["against_full", "against_peft", "findings", "losses", "timed_models", "trainers"]

NONE = "–"


def timed_models(lines: Lines) -> list[str]:
    """Return the models of which a step was timed or its bytes were counted."""
    known = {line["model"] for line in lines if line["kind"] in ("time", "bytes")}
    return [name for name in MODELS if name in known]


def _table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def against_full(lines: Lines, model: str) -> Iterator[str]:
    """Yield the table of a model: every variant that runs in the plain loop."""
    counted = sizes(lines, model)
    full = counted.get("full")
    heads = ("", "trained", "time", "peak", "beyond the model", "optimizer", "file", "checkpoint")

    def row(variant: str) -> Sequence[str]:
        time, line = ratio(lines, model, variant), counted.get(variant)
        cells = [f"`{variant}`", NONE, str(time or NONE), *(NONE,) * 5]
        if line is not None:
            cells[1] = f"{line['trained']:,}"
            cells[5:] = [human_bytes(line[key]) for key in ("optimizer", "file", "checkpoint")]
        if line is not None and full is not None:
            cells[3:5] = [f"{line[key] / full[key]:.2f}" for key in ("peak", "beyond")]
            if variant == "full":
                cells[3:5] = [human_bytes(line[key]) for key in ("peak", "beyond")]
        if variant == "full" and (taken := rounds(lines, model)):
            cells[2] = f"{statistics.median(one['full'] for one in taken):.2f} s"
        return cells

    every = dict.fromkeys(("full", "full, fused", *variants(model, "bytes")))
    names = [name for name in every if time_or_bytes(lines, model, name)]
    yield from _table(heads, (row(name) for name in names))


def time_or_bytes(lines: Lines, model: str, variant: str) -> bool:
    """Whether anything of a variant was measured."""
    return variant in sizes(lines, model) or ratio(lines, model, variant) is not None


def against_peft(lines: Lines) -> Iterator[str]:
    """Yield the table of what both have: this package to ``peft`` alone."""

    def row(model: str) -> Sequence[str]:
        cells = [MODELS[model].title]
        counted = sizes(lines, model)
        for name in OF_PEFT:
            time = ratio(lines, model, name, to=f"peft {name}")
            both = [counted.get(name), counted.get(f"peft {name}")]
            memory = f"{both[0]['beyond'] / both[1]['beyond']:.2f}" if all(both) else NONE
            cells += [str(time or NONE), memory]
        return cells

    heads = ["", *(word for name in OF_PEFT for word in (f"`{name}`, time", "beyond the model"))]
    yield from _table(heads, (row(name) for name in timed_models(lines)))


def trainers(lines: Lines) -> Iterator[str]:
    """Yield the table of the trainers, to full fine-tuning in the plain loop."""
    names = ("full, fused", "lora", "peft lora", *TRAINERS)
    models = [m for m in timed_models(lines) if ratio(lines, m, TRAINERS[0]) is not None]

    def row(variant: str) -> Sequence[str]:
        where = "" if variant in TRAINERS else ", plain loop"
        return [f"{variant}{where}", *(str(ratio(lines, m, variant) or NONE) for m in models)]

    if models:
        heads = ["", *(MODELS[name].title for name in models)]
        yield from _table(heads, (row(name) for name in names))


def losses(lines: Lines, model: str) -> Iterator[str]:
    """Yield the table of the steps and the time to a loss."""
    done = sum((line["kind"], line["model"]) == ("loss", model) for line in lines)

    def row(method: str, steps: list[int], time: object) -> Sequence[str]:
        missed = "" if len(steps) == done else f" ({done - len(steps)} of {done} did not)"
        return [f"`{method}`", (", ".join(map(str, steps)) or NONE) + missed, str(time or NONE)]

    found = to_a_loss(lines, model)
    yield from _table(
        ("", "steps", "time"), (row(name, steps, time) for name, (steps, time) in found.items())
    )


def findings(lines: Lines) -> Iterator[str]:
    """Yield in a line each what the tables say over all models."""
    models = timed_models(lines)
    for name in ("lora", "dora"):
        times = [found.median for m in models if (found := ratio(lines, m, name))]
        pairs = [
            (s[name], s["full"]) for m in models if {name, "full"} <= set(s := sizes(lines, m))
        ]
        if not times or not pairs:
            continue
        peaks = [mine["peak"] / full["peak"] for mine, full in pairs]
        states = [full["optimizer"] / mine["optimizer"] for mine, full in pairs]
        files = [full["checkpoint"] / mine["checkpoint"] for mine, full in pairs]
        yield (
            f"- **`{name}`** takes {_range(times)} of the time of full fine-tuning and "
            f"{_range(peaks)} of its memory; the optimizer's state is {_range(states, 0)} times "
            f"smaller, a checkpoint to go on from {_range(files, 0)} times."
        )
    more = [
        f"`{name}` on {MODELS[m].title} ({found.median:.2f})"
        for m in models
        for name in methods(m)
        if (found := ratio(lines, m, name)) and found.low > 1
    ]
    if more:
        yield f"- **Longer than full fine-tuning** take {', '.join(more)}."
    quick = [found.median for m in models if (found := ratio(lines, m, "full, fused"))]
    if quick:
        yield (
            f"- **AdamW in one kernel** (`fused=True`) takes {_range(quick)} of the time of full "
            "fine-tuning with torch's default: where so few rows meet so many weights, the "
            "optimizer is a good part of a step. Full fine-tuning at its best is that."
        )
    for name in OF_PEFT:
        times = [found.median for m in models if (found := ratio(lines, m, name, f"peft {name}"))]
        pairs = [
            (s[name], s[f"peft {name}"])
            for m in models
            if {name, f"peft {name}"} <= set(s := sizes(lines, m))
        ]
        if not times or not pairs:
            continue
        beyond = [mine["beyond"] / theirs["beyond"] for mine, theirs in pairs]
        yield (
            f"- **`{name}` to `peft` alone**: {_range(times)} of the time, {_range(beyond)} of the "
            "memory beyond the model."
        )


def _range(values: Sequence[float], digits: int = 2) -> str:
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
