"""Write ``docs/small-models.md`` from the results: ``python -m tests.small_models.page``."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.small_models.bases import BASES
from tests.small_models.checks import Line
from tests.small_models.lines import EXPERTS, lines
from tests.small_models.models import KINDS, MODELS, Small
from tests.small_models.results import RESULTS, STATUS, read

__all__ = ["main", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "small-models.md"
ASKED = {
    "trained": "what is trained is the adapter and the head, all of it moves, and nothing else; "
    "the base in the module is the fresh one, bit for bit",
    "loss": "the loss of the last epoch is below that of the first",
    "resume": "a run that dies in its third epoch and goes on from its checkpoint ends with the "
    "same bits; the checkpoint holds what is trained and no more",
    "files": "`adaptation.save()`, and `lp.load_adapter` into a fresh base gives the same bits",
    "peft": "`PeftModel.from_pretrained` alone loads the directory into a fresh base: same output, "
    "same answers",
    "merge": "merged, the output is the same up to rounding; codes are made anew by bitsandbytes, "
    "or this is refused where they cannot hold the adapter; unmerged, all is as before",
    "dense": "`merge(dequantize=True)` of a quantised base gives the same output (int8 rounds the "
    "inputs of its layers too, which dense layers do not: up to 0.1 there)",
    "generate": "a merged language model answers a prompt as before, by the same logits",
}
TOLD = {
    "ok": "all of it holds",
    "refused": "refused, before anything was trained",
    "base fails": "the base itself fails, without an adapter",
    "wrong": "something does not hold",
    "not run": "not finished in time",
}


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or say whether it is current."""
    written = page(read(RESULTS))
    if "--check" in (sys.argv[1:] if arguments is None else arguments):
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == written
        if not current:
            print("docs/small-models.md has gone stale: run `python -m tests.small_models.page`")
        return int(not current)
    PAGE.write_text(written, encoding="utf-8")
    return 0


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return the page for these results."""
    return "\n".join(_page(found)) + "\n"


def _page(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    known = {line.key: found[line.key] for line in lines() if line.key in found}
    notes: dict[str, int] = {}
    yield "# Small models of transformers"
    yield ""
    names = {key.partition("/")[0] for key in known}
    yield "Look here whether LoRA has been tried on your architecture of transformers. Small"
    yield "models are built from their configs, with random weights, and trained with"
    yield '`callbacks=[PEFT("lora")]` in a Lightning trainer on the CPU: once in float32, and'
    yield "once each as `from_pretrained` quantises them with bitsandbytes to 4 bits (nf4) and"
    yield f"to 8. Measured are {len(names)} models, {len(known)} of {len(lines())} lines; an"
    yield 'empty cell is not measured yet. Rows *and experts* are those with `targets=["auto",'
    yield '"experts"]`. (`make test-models` writes this page.)'
    yield ""
    yield "| | " + " | ".join(BASES) + " |"
    yield "|---" * (len(BASES) + 1) + "|"
    for status in STATUS:
        counts = Counter(k.split("/")[1] for k, line in known.items() if line["status"] == status)
        if counts:
            yield f"| {TOLD[status]} | " + " | ".join(str(counts[base]) for base in BASES) + " |"
    yield ""
    yield "| check | what has to hold |"
    yield "|---|---|"
    for name, told in ASKED.items():
        yield f"| {name} | {told} |"
    for kind, title in KINDS.items():
        kept = [small for small in MODELS.values() if small.kind == kind]
        rows = [row for small in kept for row in _rows(small, known)]
        if rows:
            yield ""
            yield f"## {title[0].upper()}{title[1:]}"
            yield ""
            yield "| model | places | trained | " + " | ".join(BASES) + " |"
            yield "|---|---|---|" + "---|" * len(BASES)
            yield from (_row(name, cells, notes) for name, cells in rows)
    yield ""
    yield "## What the numbers say"
    yield ""
    for text, number in notes.items():
        yield f"{number}. {text}"


def _rows(
    small: Small, known: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, list[dict[str, Any] | None]]]:
    for words, more in (({}, ""), (EXPERTS, " and experts")):
        cells = [known.get(Line(small, base, words).key) for base in BASES]
        if any(cells):
            yield f"{small.name.replace(' ', 'Model')}{more}", cells


def _row(name: str, cells: list[dict[str, Any] | None], notes: dict[str, int]) -> str:
    counted = next((c for c in cells if c and "trained" in c), None)
    trained = f"{counted['trained']:,} of {counted['total']:,}" if counted else ""
    places = str(counted["places"]) if counted else ""
    shown = " | ".join(_cell(cell, notes) for cell in cells)
    return f"| {name} | {places} | {trained} | {shown} |"


def _cell(line: dict[str, Any] | None, notes: dict[str, int]) -> str:
    if line is None:
        return ""
    told = {"ok": "yes"}.get(line["status"], line["status"])
    numbers = [notes.setdefault(_short(text), len(notes) + 1) for text in _notes(line)]
    return " ".join([told, *(f"({number})" for number in sorted(set(numbers)))])


def _notes(line: dict[str, Any]) -> Iterator[str]:
    """Yield what is to be said of a line, alike where it is alike."""
    if line["kept"]:
        yield (
            f"refused at first, with the way out: {', '.join(line['kept'])} is trained whole and "
            "has to be kept out of the quantisation (`llm_int8_skip_modules`)"
        )
    for key, value in line.get("words", {}).items():
        yield (
            f"refused at first, with the way out, which was taken: `{key}={value}`, since a router "
            "of this model gives no gradient in some steps"
        )
    if line["status"] in ("refused", "base fails", "not run") or not line.get("checks"):
        yield line["message"]
        return
    for name, result in line["checks"].items():
        if result.startswith("wrong"):
            yield f"{name}: {result}"
        if name == "peft" and result.startswith("open"):
            yield result.removeprefix("open: ")
        if name == "peft" and "merged; unmerged" in result:
            yield "`peft` alone computes the same once it has merged: " + _UNMERGED
        if name == "trained" and "without an adapter" in result:
            ends = dict.fromkeys(re.sub(r"^.*?(\w+\.\w+)$", r"\1", n) for n in
                                 result.partition("adapter: ")[2].split(", "))  # fmt: skip
            yield f"linear layers without an adapter: {', '.join(ends)}"
    for text in line.get("left out", []):
        if "fused experts" not in text:
            yield f"told at the start: {re.sub(r': [0-9,]+ parameters', '', text)}"
    merge = line["checks"].get("merge", "")
    if "codes that can hold" in merge:
        yield "merging into codes is refused: making codes of the sum changes more than the adapter"
    elif merge.startswith("open: refused"):
        yield f"merging is refused: {merge.removeprefix('open: refused: ')}"


_UNMERGED = "a weight (`dt_proj`) is read past its layer, where its adapter has no effect"


def _short(text: str, most: int = 400) -> str:
    text = " ".join(text.split())
    text = text if len(text) <= most else text[: most - 4].rpartition(" ")[0] + " ..."
    return text.replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
