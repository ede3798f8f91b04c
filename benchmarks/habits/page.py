"""Write ``docs/habits.md``: ``python -m benchmarks.habits.page``.

``--check`` says whether the page is current, ``--results`` takes another file of results.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.current import stale
from benchmarks.evidence.page import METRIC, TITLES
from benchmarks.evidence.store import Store
from benchmarks.evidence.summary import HEADLINE
from benchmarks.habits.findings import accuracy_alone, of_habits, of_ranking
from benchmarks.habits.plan import jobs
from benchmarks.habits.recipes import COMMON, REGULAR, TASKS, contrasts
from benchmarks.habits.run import RESULTS
from benchmarks.habits.summary import measured
from benchmarks.habits.tables import Lines, checkpoints, foretold, ranked, scores, values

__all__ = ["main", "page"]

PAGE = Path("docs/habits.md")
ABOUT = Path(__file__).with_name("about.md")


def page(lines: Lines) -> str:
    """Return the page for these results."""
    return "\n".join(_page(lines)) + "\n"


def _page(lines: Lines) -> Iterator[str]:
    counts = {task: 2 * len(contrasts(task)) for task in TASKS}
    yield ABOUT.read_text(encoding="utf-8").format(
        labels=COMMON["labels"],
        rate=COMMON["rate"],
        steps=COMMON["cells"]["steps"],
        comparisons=counts["cells"],
        text_comparisons=counts["reviews"],
        **REGULAR,
    )
    asked = sum(1 for _ in jobs())
    hours = sum(line["all_cpu_seconds"] for line in lines) / 3600
    yield f"{len(lines)} of {asked} runs are in these figures: {hours:.1f} hours of one core."
    if len(lines) < asked:
        yield "What was not measured yet is left out, or its cell says how many seeds it has."
    yield ""
    with_habits = [t for t in TASKS if any(_is(line, "habits", t) for line in lines)]
    rankings = {task: found for task in TASKS if (found := measured(lines, task))}
    yield "## What was found"
    yield ""
    for task in with_habits:
        yield from of_habits(lines, task, TITLES[task])
    for task, found in rankings.items():
        yield from of_ranking(found, TITLES[task])
    yield ""
    for task in with_habits:
        yield f"## {TITLES[task]}: the habits"
        yield ""
        yield f"{METRIC[HEADLINE[task]]}, points that each habit adds:"
        yield ""
        yield from values(lines, task)
        yield ""
        yield f"{METRIC[HEADLINE[task]]} in percent, mean and interval over the seeds:"
        yield ""
        yield from scores(lines, task)
        yield ""
    if with_habits:
        yield "## Evaluation"
        yield ""
        yield "**Which weights.** The runs that hold a fifth of the labelled items out are tested"
        yield "with the weights that these chose and with the last ones, means over the recipes:"
        yield ""
        yield from checkpoints(lines, with_habits)
        yield ""
        yield "**Which metric.** What accuracy alone would have said:"
        yield ""
        for task in with_habits:
            yield from accuracy_alone(lines, task, TITLES[task], METRIC[HEADLINE[task]])
        yield ""
    for task, found in rankings.items():
        yield f"## {TITLES[task]}: choosing the pretrained model"
        yield ""
        count = len(found.seeds)
        over = f"over {count} seeds" if count > 1 else "of one seed"
        yield f"{METRIC[HEADLINE[task]]} after fine-tuning in percent, {over}, and the scores of"
        yield "the frozen features, means over the seeds (probe and 5-NN in percent):"
        yield ""
        yield from ranked(found)
        yield ""
        yield "Kendall's tau of each score with this, with 95 % intervals; *its first reaches* is"
        yield "what fine-tuning makes of the model that the score puts first."
        if count == 1:
            yield "With one seed, the intervals know nothing of the chance of a seed."
        yield ""
        yield from foretold(found)
        yield ""


def _is(line: object, kind: str, task: str) -> bool:
    return isinstance(line, dict) and (line["kind"], line["task"]) == (kind, task)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or say whether it is current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(argv)
    if not options.results.exists():
        parser.error(f"expected results in {options.results}, which is missing: make habits")
    written, path = page(Store(options.results, COMMON).lines), options.page
    if options.check:
        return stale(path, written, "python -m benchmarks.habits.page")
    path.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
