"""Run the habits: ``python -m benchmarks.habits.run``; a second call goes on where it stopped.

--only cells rank      some tasks, kinds (habits, rank), recipes or candidates
--processes 2          runs at the same time, of one thread each
--list                 what is still to do, and about how long it takes
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.evidence.run import Runner, carry_out, options_of
from benchmarks.evidence.store import Store
from benchmarks.habits.plan import jobs, matching
from benchmarks.habits.recipes import COMMON
from benchmarks.habits.work import measure

__all__ = ["RESULTS", "main"]

RESULTS = Path("benchmarks/results/habits.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options = options_of(parser, argv, RESULTS, "tasks, kinds, recipes, candidates", processes=1)
    asked = [job for job in jobs() if matching(options.only, job)]
    store = Store(options.out, COMMON)
    runner = Runner(store, measure, partial(print, flush=True), choose=lambda lines, job: 0)
    return carry_out(runner, asked, options)


if __name__ == "__main__":
    raise SystemExit(main())
