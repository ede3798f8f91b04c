"""Write ``docs/evidence.md`` and its pictures: ``python -m benchmarks.evidence.page``.

``--check`` says whether the page is current, ``--results`` takes another file of results.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.current import stale
from benchmarks.evidence.draws import RESULTS as NEW_DRAWS
from benchmarks.evidence.draws import table as on_new_draws
from benchmarks.evidence.heads import heads
from benchmarks.evidence.methods import BASELINES
from benchmarks.evidence.pictures import draw_costs, draw_labels, draw_overview
from benchmarks.evidence.plan import BUDGETS, jobs
from benchmarks.evidence.run import RESULTS
from benchmarks.evidence.starts import HELD, KEYS, table
from benchmarks.evidence.starts import RESULTS as HEAD_STARTS
from benchmarks.evidence.store import Store
from benchmarks.evidence.summary import HEADLINE, adapters, against, cells, costs, on_average
from benchmarks.evidence.tables import Found, Lines, choices, differences, paid, scores, told
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.train import RECIPE

__all__ = ["main", "page"]

DOCS = Path("docs")
HEAD_OF_TIMM = Path("benchmarks/results/evidence_head_of_timm.jsonl")
"""The cells once more, with the new head as timm draws it."""

ABOUT = Path(__file__).with_name("about.md")
TITLES = {
    "cells": "Solar cells",
    "reviews": "Drug reviews",
    "types": "Solar cells by type",
}
METRIC = {"balanced_accuracy": "Balanced accuracy", "f1": "Macro F1"}


def page(lines: Lines) -> str:
    """Return the page for these results."""
    return "\n".join(_page(lines)) + "\n"


def _page(lines: Lines) -> Iterator[str]:
    images, texts = RECIPE["cells"], RECIPE["reviews"]
    words = {"pixels": images["pixels"], "tokens": texts["tokens"], "steps": images["steps"]}
    about = ABOUT.read_text(encoding="utf-8")
    yield about.format(**words, batch=images["batch"], texts=texts["batch"])
    asked = sum(1 for _ in jobs())
    hours = sum(line.get("all_cpu_seconds", 0) for line in lines) / 3600
    runs = sum(line["kind"] in ("choose", "final") for line in lines)  # and no replaced ones
    yield f"{runs:,} of {asked:,} runs are in these figures: {hours:.1f} hours of one core."
    if runs < asked:
        yield "What was not measured yet is left out, or its cell says how many seeds it has."
    yield ""
    found = cells(lines)
    yield "## What was found"
    yield ""
    if findings := [*_findings(found)]:
        yield from findings
        yield ""
        yield "The best adapter was picked by the figures that are shown, which flatters it. Where"
        yield "an interval includes 0, five seeds do not tell which of the two is better."
    else:
        yield "Nothing yet: no adapter and full fine-tuning were both tested."
    yield ""
    for task in TASKS:
        if any(key[0] == task for key in found):
            yield from _task(lines, found, task)
    if NEW_DRAWS.exists():
        yield from on_new_draws(Store(NEW_DRAWS, RECIPE).lines, lines)
    if HEAD_OF_TIMM.exists():
        before = {"cells": RECIPE["cells"] | {"head": 1}, "reviews": RECIPE["reviews"]}
        yield from heads(cells(Store(HEAD_OF_TIMM, before).lines), found)
    if HEAD_STARTS.exists():
        yield from table(Store(HEAD_STARTS, {"held": HELD, **RECIPE}, KEYS).lines)


def _findings(found: Found) -> Iterator[str]:
    for task in TASKS:
        for budget in sorted(BUDGETS):
            tests = {test.first: told(test) for test in against(found, task, budget)}
            if here := adapters(found, task, budget):
                yield _finding(found, task, budget, len(here), tests)
                best = max(here, key=lambda cell: cell.mean).method
                words = _ahead(found, task, budget, best, tests)
                yield f"  {words}"


def _finding(found: Found, task: str, budget: int, count: int, tests: Mapping[str, str]) -> str:
    full = found[task, budget, "full"].mean
    text = f"- **{TITLES[task]}, {budget} labels a class.** Full fine-tuning reaches {full:.1f}."
    if (mean := on_average(found, task, budget)) is not None:
        text += f" The mean of {count} adapters is {told(mean)} from it, in one test."
    named = (("lora", "`lora`"), ("linear_probe", "the linear probe"))
    told_of = [f"{words} is {tests[name]}" for name, words in named if name in tests]
    if told_of:
        text += f" Corrected for all methods, {' and '.join(told_of)} from it."
    return text


def _ahead(found: Found, task: str, budget: int, best: str, tests: Mapping[str, str]) -> str:
    text = "" if best == "lora" else f"The best adapter is `{best}`: {tests[best]}. "
    simple = [found[task, budget, name] for name in BASELINES if (task, budget, name) in found]
    if simple:
        ahead = max(simple, key=lambda cell: cell.mean)
        text += f"Without training, {ahead.method.replace('_', ' ')} reaches {ahead.mean:.1f}."
    return text


def _task(lines: Lines, found: Found, task: str) -> Iterator[str]:
    mine = {key: cell for key, cell in found.items() if key[0] == task}
    budgets = [budget for budget in sorted(BUDGETS) if any(key[1] == budget for key in mine)]
    methods = sorted({key[2] for key in mine}, key=lambda name: -_best(mine, name))
    metric = METRIC[HEADLINE[task]]
    yield f"## {TITLES[task]}"
    yield ""
    yield f"{metric} in percent, mean and interval over the seeds; in brackets the accuracy."
    yield ""
    yield from scores(found, task, methods, budgets)
    yield ""
    yield f"![{metric} against labels](evidence_{task}_labels.png)"
    yield ""
    yield "Minus full fine-tuning, in points, with the 95 % interval and Holm's p:"
    yield ""
    yield from differences(found, task, methods, budgets)
    yield ""
    new = cells(lines, "elsewhere_")
    if any(key[0] == task for key in new):
        yield f"### {TITLES[task]}: new modules"
        yield ""
        yield f"{metric} of the same networks on cells of modules of which nothing was labelled:"
        yield ""
        yield from scores(new, task, methods, budgets)
        yield ""
        yield "Minus full fine-tuning:"
        yield ""
        yield from differences(new, task, methods, budgets)
        yield ""
    yield f"### {TITLES[task]}: what it cost"
    yield ""
    yield "Medians over the tested runs. *Memory* is what a process grew by while it trained; a"
    yield "step and a run, its test included, are in seconds of one processor core."
    yield ""
    spent = costs(lines, task)
    yield from paid(spent)
    yield ""
    if spent:
        yield f"![{metric} against trained parameters](evidence_{task}_costs.png)"
        yield ""
    yield f"### {TITLES[task]}: what was chosen"
    yield ""
    yield "Balanced accuracy in cross-validation of each setting (a rate, and the method's own), in"
    yield "percent; the chosen one is bold."
    yield ""
    yield from choices(lines, task, methods, budgets)
    yield ""


def _best(mine: Found, method: str) -> float:
    return max(cell.mean for key, cell in mine.items() if key[2] == method)


def _pictures(lines: Lines, docs: Path) -> None:
    found = cells(lines)
    for task in TASKS:
        counts = {b: sum(key[:2] == (task, b) for key in found) for b in BUDGETS}
        if not any(counts.values()):
            continue
        draw_labels(found, task, docs / f"evidence_{task}_labels.png")
        if spent := costs(lines, task):
            most = max(counts, key=lambda budget: counts[budget])
            draw_costs(found, spent, task, most, docs / f"evidence_{task}_costs.png")
    spent = {task: of for task in TASKS[:2] if (of := costs(lines, task))}
    if spent:
        draw_overview(found, spent, docs / "evidence.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and its pictures, or say whether the page is current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder to write to")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(argv)
    if not options.results.exists():
        parser.error(f"expected results in {options.results}, which is missing: make evidence")
    lines = Store(options.results, RECIPE).lines
    written, path = page(lines), options.docs / "evidence.md"
    if options.check:
        return stale(path, written, "python -m benchmarks.evidence.page")
    path.write_text(written, encoding="utf-8")
    _pictures(lines, options.docs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
