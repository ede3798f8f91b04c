"""Run the suite of small models: ``python -m tests.small_models.run``.

Every line is measured in a fork of this process with a limit of time, and written when it is known;
a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.small_models.checks import Line, measure
from tests.small_models.lines import lines
from tests.small_models.results import RESULTS, read, write
from tests.support.forks import in_a_fork

__all__ = ["main", "run_lines"]


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; return 1 if something is wrong, and else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument(
        "--only", metavar="REGEX", type=re.compile, help="measure lines whose key has a match"
    )
    parser.add_argument("--again", action="store_true", help="measure also what has a line")
    parser.add_argument("--limit", type=float, default=120, help="seconds for each line")
    options = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    wanted = [line for line in lines() if options.only is None or options.only.search(line.key)]
    done = read(options.out)
    if not options.again and options.only is None and all(line.key in done for line in wanted):
        options.again = True
    if not options.again and options.only is None:
        wanted = [line for line in wanted if line.key not in done]
    found = run_lines(wanted, options.out, options.limit)
    print(", ".join(f"{n} {status}" for status, n in Counter(found.values()).most_common()))
    return int(any(status in ("wrong", "not run") for status in found.values()))


def run_lines(wanted: list[Line], out: Path, limit: float) -> dict[str, str]:
    """Measure lines one after the other, write each, and return what each came to.

    Args:
        wanted: The lines.
        out: The file of results.
        limit: Seconds for each.
    """
    for name in ("peft", "bitsandbytes", "torch._dynamo", "transformers.integrations.bitsandbytes"):
        import_module(name)  # before the forks, each of which would import it anew
    found: dict[str, str] = {}
    for line in wanted:
        began = time.monotonic()
        result: dict[str, Any] = in_a_fork(partial(measure, line), limit)
        write(out, {"key": line.key, **result})
        found[line.key] = result["status"]
        wrong = [f"{k}: {v}" for k, v in result.get("checks", {}).items() if v[:5] == "wrong"]
        told = wrong or ([result["message"]] if result["status"] != "ok" else [])
        seconds = time.monotonic() - began
        print(f"{result['status']:10} {line.key} {seconds:.0f} s", *told, sep="\n    ", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
