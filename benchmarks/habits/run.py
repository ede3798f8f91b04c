"""Run the habits: ``python -m benchmarks.habits.run``; a second call goes on where it stopped.

--only cells rank      some tasks, kinds (habits, rank), recipes or candidates
--processes 2          runs at the same time, of one thread each
--list                 what is still to do, and about how long it takes
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.evidence.run import Runner, clock, warm_up
from benchmarks.evidence.store import Store
from benchmarks.habits.plan import jobs, matching
from benchmarks.habits.recipes import COMMON
from benchmarks.habits.work import measure

__all__ = ["RESULTS", "main"]

RESULTS = Path("benchmarks/results/habits.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="tasks, kinds, recipes, candidates")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="say what is left, and stop")
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is installed
    os.environ.setdefault("TQDM_DISABLE", "1")
    asked = [job for job in jobs() if matching(options.only, job)]
    store = Store(options.out, COMMON)
    runner = Runner(store, measure, partial(print, flush=True), choose=lambda lines, job: 0)
    if options.list:
        done = store.done()
        left = [job for job in asked if job.key not in done]
        print(f"{len(left)} of {len(asked)} runs left, {clock(runner.seconds(left))} on one core")
        return 0
    warm_up(runner, sorted({job.task for job in asked}))
    runner.run(asked, options.processes)
    for line in runner.failed:
        print(f"failed: {line}")
    return min(len(runner.failed), 100)


if __name__ == "__main__":
    raise SystemExit(main())
