"""Write ``docs/resources.md`` and its picture: ``python -m benchmarks.resources.page``.

``--check`` says whether the page is current, ``--results`` takes another file of results.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.current import stale
from benchmarks.evidence.store import Store
from benchmarks.resources.models import MODELS, RECIPE
from benchmarks.resources.pictures import draw
from benchmarks.resources.plan import KEYS, ROUNDS, jobs
from benchmarks.resources.summary import Lines, rounds
from benchmarks.resources.tables import (
    against_full,
    against_peft,
    findings,
    losses,
    timed_models,
    trainers,
)

__all__ = ["main", "page"]

DOCS = Path("docs")
RESULTS = Path("benchmarks/results/resources.jsonl")
ABOUT = Path(__file__).with_name("about.md")


def page(lines: Lines) -> str:
    """Return the page for these results."""
    return "\n".join(_page(lines)) + "\n"


def _page(lines: Lines) -> Iterator[str]:
    models = timed_models(lines)
    timed = [rounds(lines, name) for name in models]
    counts = {
        sum(variant in taken for taken in found)
        for found in timed
        for variant in set().union(*found)
    }
    words = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts, default=0))
    titles = ", ".join(f"{MODELS[name].title} ({_sizes(name)})" for name in models)
    yield ABOUT.read_text(encoding="utf-8").format(models=titles, rounds=words)
    for line in lines:
        if line["kind"] == "about":
            found = {
                key: line[key] for key in ("torch", "timm", "transformers", "peft", "lightning")
            }
            versions = ", ".join(f"{name} {number}" for name, number in found.items())
            yield f"Measured on one core of an {line['processor']}, with {versions}."
            yield ""
    asked = {"time": min(map(len, timed), default=0), "loss": ROUNDS["loss"]}
    every = list(jobs(asked))
    have = {tuple(line.get(key) for key in KEYS) for line in lines}
    if left := sum(job.key not in have for job in every):
        yield f"{left} of {len(every)} measurements are still missing; what they give has a dash."
        yield ""
    if told := [*findings(lines)]:
        yield "## What was found"
        yield ""
        yield from told
        yield ""
    yield "![Time and memory of a step against trained parameters](resources.png)"
    yield ""
    yield "## Against full fine-tuning"
    yield ""
    yield "Times and memory are to full fine-tuning, of which seconds and bytes are given."
    yield ""
    for name in models:
        yield f"### {MODELS[name].title}"
        yield ""
        yield f"Batches of {_sizes(name)}."
        yield ""
        yield from against_full(lines, name)
        yield ""
    yield "## Against `peft` alone"
    yield ""
    yield "This package to `peft`: below 1, it takes less. `dora` and `ia3` have the layers of"
    yield "`peft` here, too, and cost the same; `lora` has a forward and backward pass of its own"
    yield "([speed](speed.md)). On EfficientNet-Lite0 a part of the difference is that frozen"
    yield "BatchNorms keep their statistics here; with `peft` alone they take those of each batch."
    yield ""
    yield from against_peft(lines)
    yield ""
    if table := [*trainers(lines)]:
        yield "## Trainers"
        yield ""
        yield "A whole step, from the end of one to that of the next, to one of full fine-tuning in"
        yield "the plain loop: transformers' Trainer with its own optimizer (nothing clipped), and"
        yield "Lightning's with `lp.PEFT`."
        yield ""
        yield from table
        yield ""
    for name, model in MODELS.items():
        if any((line["kind"], line["model"]) == ("loss", name) for line in lines):
            yield from _losses(lines, name, model.learns)


def _losses(lines: Lines, name: str, learns: dict[str, object]) -> Iterator[str]:
    yield "## Time to a loss"
    yield ""
    yield f"How long training takes until the mean loss of three steps is {learns['loss']} or less,"
    yield f"in batches of {learns['items']} of scikit-learn's handwritten digits, with AdamW at the"
    yield "rate of each method's file in `conf/method`; the steps of three seeds, and the time to"
    yield f"full fine-tuning on the same batches. After {learns['most']} steps it is given up."
    yield f"It is measured on `{name}` alone, the pretrained network that this package ships: an"
    yield "adapter on random weights says nothing about one on weights that know something, and on"
    yield "the models above it would take hours."
    yield ""
    yield from losses(lines, name)
    yield ""


def _sizes(name: str) -> str:
    items, size = MODELS[name].sizes
    if name in ("bert_base", "llama"):
        return f"{items} texts of {size} tokens"
    return f"{items} images of {size} pixels"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and its picture, or say whether the page is current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder to write to")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(argv)
    if not options.results.exists():
        parser.error(f"expected results in {options.results}: python -m benchmarks.resources")
    lines = Store(options.results, RECIPE, KEYS).lines
    written, path = page(lines), options.docs / "resources.md"
    if options.check:
        return stale(path, written, "python -m benchmarks.resources.page")
    path.write_text(written, encoding="utf-8")
    draw(lines, options.docs / "resources.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
