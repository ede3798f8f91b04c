"""Run peft's own configurations through this package: ``python -m tests.peft_suite.run``.

The lists are read out of the tests of the installed ``peft``. Without ``--only`` the results are
written, from which the page is made.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.peft_suite.compare import compare
from tests.peft_suite.results import RESULTS, write
from tests.peft_suite.rows import LISTS, rows

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; return 1 if a row is different, and else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument(
        "--only", metavar="REGEX", type=re.compile, help="run rows whose 'list/name' has a match"
    )
    options = parser.parse_args(argv)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for part in LISTS:
        found[part] = _run_list(part, options.only)
    counts = Counter(line["status"] for lines in found.values() for line in lines.values())
    print(_told(counts))
    if options.only is None:
        write(options.out, version("peft"), found)
    return int(counts["different"] > 0)


def _run_list(part: str, only: re.Pattern[str] | None) -> dict[str, dict[str, Any]]:
    wanted = [row for row in rows(part) if only is None or only.search(row.key)]
    found: dict[str, dict[str, Any]] = {}
    began = time.monotonic()
    for row in wanted:
        line = found[row.name] = compare(row)
        if line["status"] in ("different", "refused") or only is not None:
            print(f"{_blank()}{line['status']:10} {row.key}\n    {line['message']}", flush=True)
        _progress(f"{part} {len(found)} of {len(wanted)}")
    counts = Counter(line["status"] for line in found.values())
    if wanted:
        seconds = time.monotonic() - began
        print(f"{_blank()}{part}: {_told(counts)} ({seconds:.0f} s)", flush=True)
    return found


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "no rows"


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"{_blank()}{text}", end="", file=sys.stderr, flush=True)


def _blank() -> str:
    return "\r\x1b[K" if sys.stderr.isatty() else ""


if __name__ == "__main__":
    sys.exit(main())
