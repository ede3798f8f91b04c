"""Test what the first draws of labels said on others: ``python -m benchmarks.evidence.draws``.

A second call goes on where it stopped. The page of the evidence has the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.evidence.plan import Job, all_chosen, fits
from benchmarks.evidence.run import RESULTS as EVIDENCE
from benchmarks.evidence.run import Runner, carry_out, options_of
from benchmarks.evidence.store import Store
from benchmarks.evidence.summary import against, cells
from benchmarks.evidence.tables import Found, Lines, told
from lightning_peft.cli.comparing.significance import Contrast, holm

__all__ = ["RESULTS", "asked", "main", "table"]

RESULTS = Path("benchmarks/results/evidence_new_draws.jsonl")

FINDINGS = (("cells", 10), ("reviews", 25))
"""Task and labels a class of what is tested again."""

SEEDS = range(5, 15)
METHODS = ("full", "lora")

ROWS = (
    ("cells", 10, "", "solar cells, 10 a class"),
    ("cells", 10, "elsewhere_", "the same, new modules"),
    ("reviews", 25, "", "drug reviews, 25 a class"),
)

ABOUT = """\
Among many figures some stand out by chance. Two findings about LoRA were therefore tested again,
one for it and one against it: that it is ahead of full fine-tuning on the cells with 10 labels a
class, on the same and on new modules, and behind it on the reviews with 25. The ten draws of
labels are new, the settings those chosen before, the tested items the same; methods, draws and
tests were fixed before the first of these runs (`python -m benchmarks.evidence.draws`). LoRA
minus full fine-tuning, in points, with Holm's p, of the first draws over all methods, of the new
ones over these three tests."""


def asked() -> Iterator[Job]:
    """Return all runs, seed by seed."""
    for seed in SEEDS:
        for task, budget in FINDINGS:
            for method in METHODS:
                yield Job("final", task, method, budget, seed)


def table(lines: Lines, evidence: Lines) -> Iterator[str]:
    """Return the section of the page.

    Args:
        lines: The results on new draws.
        evidence: Those of the evidence.
    """
    found = {prefix: cells(lines, prefix) for _, _, prefix, _ in ROWS}
    before = {prefix: cells(evidence, prefix) for prefix in found}
    new = [test for row in ROWS if (test := _lora(found, row))]
    if len(new) < len(ROWS):
        return
    yield "## LoRA once more, on new draws of labels"
    yield ""
    yield from ABOUT.splitlines()
    yield ""
    yield "| | first draws | new draws | full fine-tuning | LoRA |"
    yield "|---|---|---|---|---|"
    for row, test in zip(ROWS, holm(new), strict=True):
        task, budget, prefix, words = row
        means = (f"{found[prefix][task, budget, method].mean:.1f}" for method in METHODS)
        texts = (told(_lora(before, row)), f"{told(test)}, {test.count} draws", *means)
        yield f"| {words} | {' | '.join(texts).replace(' points', '')} |"
    yield ""


def _lora(found: Mapping[str, Found], row: tuple[str, int, str, str]) -> Contrast | None:
    """Return LoRA minus full fine-tuning, or nothing if one of them was not measured."""
    task, budget, prefix, _ = row
    tests = against(found[prefix], task, budget)
    return next((test for test in tests if test.first == "lora"), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    from benchmarks.evidence.train import RECIPE

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options = options_of(parser, argv, RESULTS, "tasks, methods", processes=2)
    known = {**{task: "task" for task, _ in FINDINGS}, **dict.fromkeys(METHODS, "method")}
    todo = [job for job in asked() if fits(options.only, known, job)]
    best = all_chosen(Store(EVIDENCE, RECIPE).lines, todo)
    runner = Runner(
        Store(options.out, RECIPE),
        say=partial(print, flush=True),
        choose=lambda _, job: best[job],
    )
    return carry_out(runner, todo, options)


if __name__ == "__main__":
    raise SystemExit(main())
