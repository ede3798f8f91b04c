"""Write ``docs/peft.md`` from the results: ``python -m tests.peft_suite.page``, or ``--check``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.peft_suite.results import RESULTS, STATUS, read
from tests.peft_suite.rows import LISTS

__all__ = ["main", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "peft.md"
CHECKS = {
    "trained": "the same parameters are trained, and the two models start with the same output",
    "outputs": "with trained weights that are not zero, copied from one to the other, the outputs "
    "are the same",
    "gradients": "so are the gradients of all that is trained, in training mode without dropout",
    "files": "`adaptation.save()` and `save_pretrained()` write the same names, shapes and values; "
    "`PeftModel.from_pretrained` loads our file and `lp.load_adapter` that of `peft`, each into a "
    "fresh model with the same output",
    "disabled": "switched off, both give the same output; or ours is the backbone's, with the head "
    "that was trained, which stays",
    "merged": "merged, both give the same output, and afterwards the one of before; what `peft` "
    "cannot merge is refused or right",
}


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or say whether it is current."""
    written = page(read(RESULTS))
    if "--check" in (sys.argv[1:] if arguments is None else arguments):
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == written
        if not current:
            print("docs/peft.md has gone stale: run `python -m tests.peft_suite.page`")
        return int(not current)
    PAGE.write_text(written, encoding="utf-8")
    return 0


def page(results: dict[str, Any]) -> str:
    """Return the page for these results."""
    return "\n".join(_page(results)) + "\n"


def _page(results: dict[str, Any]) -> Iterator[str]:
    lists = results["lists"]
    total = {s: sum(found["counts"][s] for found in lists.values()) for s in STATUS}
    yield "# The configurations of peft's own tests"
    yield ""
    yield "Does this package do what `peft` does? Each configuration that the tests of `peft`"
    yield f"{results['peft']} list runs through `lp.adapt(model, config)` and through"
    yield "`peft.get_peft_model(model, config)`, on the same small model with the same weights"
    yield "(the hub's tiny models are built from transformers' configs:"
    yield "`tests/peft_suite/models.py`). (`make test-peft` takes the tests from `peft`'s"
    yield "source release and writes this page.)"
    yield ""
    yield "| list | equal | refused | different | `peft` fails |"
    yield "|---|---|---|---|---|"
    for part, found in lists.items():
        yield f"| {LISTS[part][0]} | {' | '.join(str(found['counts'][s]) for s in STATUS)} |"
    yield f"| all | {' | '.join(str(total[s]) for s in STATUS)} |"
    yield ""
    yield "A configuration is *equal* if all of this holds, up to rounding:"
    yield ""
    for told in CHECKS.values():
        yield f"- {told}."
    yield ""
    yield "Where `lp.adapt` refuses a configuration because it needs `peft`'s own wrapper, the"
    yield "suite does what the message says:"
    yield '`lp.adapt(peft.get_peft_model(model, config), "existing")`.'
    for status, title in (
        ("different", "Different"),
        ("refused", "Refused"),
        ("equal", "Equal, with a remark"),
        ("peft fails", "Where `peft` itself fails"),
    ):
        rows = [(p, n, r) for p, n, r in _rows(lists) if r["status"] == status]
        if rows:
            yield ""
            yield f"## {title}"
            yield ""
            yield from _table(rows)


def _rows(lists: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for part, found in lists.items():
        for name, row in found["rows"].items():
            yield part, name, row


def _table(rows: list[tuple[str, str, dict[str, Any]]]) -> Iterator[str]:
    """Return a table of what is said of rows, the most frequent first."""
    alike: dict[str, list[str]] = {}
    for part, name, row in rows:
        alike.setdefault(_short(row["message"]), []).append(f"{part}: {_short(name, 90)}")
    yield "| rows | what is said | such as |"
    yield "|---|---|---|"
    for message, names in sorted(alike.items(), key=lambda pair: -len(pair[1])):
        yield f"| {len(names)} | {message} | {names[0]} |"


def _short(text: str, most: int = 260) -> str:
    text = text if len(text) <= most else text[: most - 4].rpartition(" ")[0] + " ..."
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
