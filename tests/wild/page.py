"""Write ``docs/wild.md`` from the results: ``python -m tests.wild.page``, or ``--check``."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.wild.results import RESULTS, read

__all__ = ["main", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "wild.md"
STATUS = {
    "one line": "works with the one line",
    "with words": "works with more settings, which a message or the documentation names",
    "refused": "refused",
    "wrong": "wrong",
    "not run": "not run",
}
CHECKS = {
    "step 0": "the module validates as it does without the callback before the first step",
    "frozen": "the weights in the adapted module are the fresh module's, bit for bit, and what is "
    "frozen is still so after the run",
    "new parts": "what a person calls new in this module (named by hand in the suite) was trained, "
    "whatever the start line calls trained has moved, and the backbone has adapters",
    "loss": "the training loss of the last epoch is below that of the first",
    "validate": "`trainer.validate` gives as many numbers as without the callback",
    "resume": "a run that goes on from its middle ends at the same bits",
    "test": '`trainer.test(ckpt_path="best")`',
    "load": "`lp.load_from_checkpoint` gives a module that validates equally",
    "merge": "after `merge_and_unload` the keys are the plain module's, and it validates equally",
    "own file": "the merged module, saved and loaded in the package's own way, validates equally",
    "package": "where a package makes the trainer itself: its own fit, save, load and predict",
}


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or say whether it is current."""
    written = page(read(RESULTS))
    if "--check" in (sys.argv[1:] if arguments is None else arguments):
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == written
        if not current:
            print("docs/wild.md has gone stale: run `python -m tests.wild.page`")
        return int(not current)
    PAGE.write_text(written, encoding="utf-8")
    return 0


def page(lines: dict[str, dict[str, Any]]) -> str:
    """Return the page for these results."""
    return "\n".join(_page(list(lines.values()))) + "\n"


def _page(lines: list[dict[str, Any]]) -> Iterator[str]:
    counts = Counter(line["status"] for line in lines)
    yield "# One callback on modules of other people"
    yield ""
    packages = len({line["package"] for line in lines})
    yield "Does one callback work on a LightningModule that knows nothing of it? Here are"
    yield f"{len(lines)} modules of {packages} published packages, built small and without"
    yield 'pretrained weights, and trained on made-up data with `callbacks=[PEFT("lora")]`.'
    yield "(`make test-wild` makes an environment of their own, `tests/wild/constraints.txt`,"
    yield "and writes this page.)"
    yield ""
    for status, told in STATUS.items():
        if counts[status]:
            yield f"- **{counts[status]}** {told.replace('works', 'work')}"
    yield ""
    yield "Where a message proposes a setting, such as `backbone='encoder'`, the suite takes it"
    yield "literally and goes on. What is checked for each module:"
    yield ""
    yield "| check | what has to hold |"
    yield "|---|---|"
    for name, told in CHECKS.items():
        yield f"| {name} | {told} |"
    yield ""
    yield "| package | module | result | trained | remarks |"
    yield "|---|---|---|---|---|"
    for line in lines:
        yield (
            f"| {line['package']} {line['version']} | `{line['name']}` | {_result(line)} "
            f"| {_trained(line)} | {_notes(line)} |"
        )
    yield ""
    yield from LEFT_OUT


LEFT_OUT = """\
An open check is one that says nothing about the callback: the module does the same without it, or
has no such step. A module that computes its backbone without gradients (an extractor of fixed
features) is refused with the reason, since an adapter there would learn nothing. Left out:
`litgpt`, which holds transformers below 5, while the others come with transformers 5. Releases that
need Python 3.12 (torchgeo 0.10, scvi-tools 1.5, lightning-uq-box 0.4) are measured in their last
version for Python 3.11.""".splitlines()


def _result(line: dict[str, Any]) -> str:
    if line["status"] != "with words":
        return STATUS[line["status"]].removeprefix("works with the ")
    words = ", ".join(f"{key}={value!r}" for key, value in line["words"].items())
    return f"with `{words}`"


def _trained(line: dict[str, Any]) -> str:
    found = re.search(r"([\d,]+) of ([\d,]+) trained", line.get("checks", {}).get("new parts", ""))
    return f"{found[1]} of {found[2]}" if found else ""


def _notes(line: dict[str, Any]) -> str:
    checks = line.get("checks", {})
    failed = [f"{k}: {v.removeprefix('wrong: ')}" for k, v in checks.items() if v[:5] == "wrong"]
    told = ["with " + v.partition("with ")[2] for k, v in checks.items() if "ok: with" in v]
    opened = [f"open, {k}: {v.removeprefix('open: ')}" for k, v in checks.items() if _is_open(k, v)]
    message = "" if checks and line["status"] in ("one line", "wrong") else line["message"]
    texts = [*failed, *([message] if message else []), *told, *opened]
    return "; ".join(_short(text) for text in texts).replace("|", "\\|")


def _is_open(name: str, value: str) -> bool:
    return value.startswith("open") and name != "package"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 240 else text[:236].rpartition(" ")[0] + " ..."


if __name__ == "__main__":
    sys.exit(main())
