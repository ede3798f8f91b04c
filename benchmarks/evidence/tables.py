"""The tables of the page: scores, differences from full fine-tuning, costs, what was chosen."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.evidence.methods import settings
from benchmarks.evidence.plan import FOLDS, Job, chosen
from benchmarks.evidence.summary import ROOM, Cell, Costs, against, interval
from lightning_peft.cli.comparing.significance import Contrast

__all__ = ["choices", "differences", "name_of", "paid", "scores", "told"]

Found = Mapping[tuple[str, int, str], Cell]
Lines = Sequence[Mapping[str, Any]]


def scores(found: Found, task: str, methods: Sequence[str], budgets: Sequence[int]) -> list[str]:
    """Return the table of scores."""
    return _table(methods, budgets, lambda name, b: _score(found.get((task, b, name))))


def differences(
    found: Found, task: str, methods: Sequence[str], budgets: Sequence[int]
) -> list[str]:
    """Return the table of differences from full fine-tuning."""
    tests = {b: {c.first: c for c in against(found, task, b)} for b in budgets}
    others = [name for name in methods if name != "full"]
    return _table(others, budgets, lambda name, b: told(tests[b].get(name)).replace(" points", ""))


def paid(costs: Mapping[str, Costs]) -> Iterator[str]:
    """Return the table of costs."""
    yield "| method | trained | checkpoint | memory | a step | a run |"
    yield "|---|---|---|---|---|---|"
    for name in sorted(costs, key=lambda name: costs[name].trained):
        cost = costs[name]
        sizes = f"{cost.checkpoint / 1e6:.2f} MB | {cost.memory / 1e6:.0f} MB"
        times = f"{cost.step:.3f} s | {cost.total:.1f} s"
        yield f"| {name_of(name)} | {cost.trained:,} | {sizes} | {times} |"


def choices(lines: Lines, task: str, methods: Sequence[str], budgets: Sequence[int]) -> list[str]:
    """Return the table of what cross-validation measured, the chosen setting in bold."""

    def row(name: str, budget: int) -> str:
        best = chosen(lines, Job("final", task, name, budget, 0))
        texts = []
        for number in range(len(settings(name, task))):
            wanted = ("choose", task, name, budget, number)
            found = [line["balanced_accuracy"] for line in lines if _choice(line) == wanted]
            text = f"{100 * statistics.fmean(found):.0f}" if len(found) == FOLDS else "-"
            texts.append(f"**{text}**" if number == best else text)
        return ", ".join(texts)

    table = _table(methods, budgets, row)
    words = ["settings", "---", *("; ".join(map(str, settings(name, task))) for name in methods)]
    return [_with(line, word) for line, word in zip(table, words, strict=True)]


def told(test: Contrast | None) -> str:
    """Return a difference in words."""
    if test is None or test.difference is None:
        return ""
    if test.p_holm is None:
        return f"{test.difference:+.1f} points, {_seeds(test.count)}"
    low, high = test.interval or (test.difference, test.difference)
    return f"{test.difference:+.1f} points ({low:+.1f} to {high:+.1f}, p = {test.p_holm:.2g})"


def name_of(method: str) -> str:
    """Return a method's name: as it is typed, or in words if it is no adapter."""
    words = {"lp_ft": "LP-FT", "full": "full fine-tuning", "scratch": "from scratch"}
    return words.get(method, method.replace("_", " ")) if method in ROOM else f"`{method}`"


def _table(
    methods: Sequence[str], budgets: Sequence[int], cell: Callable[[str, int], str]
) -> list[str]:
    head = "| method | " + " | ".join(f"{budget} a class" for budget in budgets) + " |"
    rows = (" | ".join(cell(name, budget) for budget in budgets) for name in methods)
    body = (f"| {name_of(name)} | {row} |" for name, row in zip(methods, rows, strict=True))
    return [head, "|---" * (len(budgets) + 1) + "|", *body]


def _with(line: str, word: str) -> str:
    """Put a second column into a line of a table."""
    first, _, rest = line[1:].partition("|")
    return f"|{first}| {word} |{rest}" if word != "---" else f"|{first}|---|{rest}"


def _choice(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("kind", "task", "method", "budget", "setting"))


def _score(cell: Cell | None) -> str:
    if cell is None:
        return ""
    values = list(cell.scores.values())
    accuracy = statistics.fmean(cell.accuracies.values())
    half = f" ± {interval(values):.1f}" if len(values) > 1 else ""
    few = f", {_seeds(len(values))}" if len(values) < 5 else ""
    return f"{cell.mean:.1f}{half} ({accuracy:.1f}{few})"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
