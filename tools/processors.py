"""Run the tests as other processors would: with other kernels, and with one thread and two.

    python tools/processors.py                                    # all 12 combinations
    python tools/processors.py --any-processor                    # and one of the strictest kind
    python tools/processors.py --capability avx2 --threads 1 2    # some of them
    python tools/processors.py --select "tests/caching -k split"  # some tests, in pytest's words

A combination is the kernels of torch itself (``ATEN_CPU_CAPABILITY``), those of the libraries that
it calls for products and convolutions (``ONEDNN_MAX_CPU_ISA``, with it
``MKL_ENABLE_INSTRUCTIONS``) and the number of threads (``OMP_NUM_THREADS``). A line says how each
came out as soon as it ends, a table all of them at the end; what pytest said is in
``build/processors/``. The exit status is 1 if one is red.

``--any-processor`` adds a run in which each product is off by up to one unit in the last place, by
what its shapes and strides decide: see ``tests/support/any_processor.py``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "processors"
UNSET = "unset"
CAPABILITIES = ("default", "avx2", UNSET)
LIBRARIES = ("AVX2", UNSET)
THREADS = (1, 2)
ANY = "ANY_PROCESSOR"
VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", ANY),
)


@dataclass(frozen=True)
class Combination:
    """One way to run the tests.

    Attributes:
        capability: The kernels of torch, or "unset" for what the processor can do.
        libraries: The instructions that oneDNN and MKL use, or "unset".
        threads: The threads of each process.
        any_processor: Whether rounding depends on everything that it may depend on.
    """

    capability: str
    libraries: str
    threads: int
    any_processor: bool = False

    @property
    def name(self) -> str:
        """What the lines and the log call it."""
        kind = "any processor, " if self.any_processor else ""
        return f"{kind}torch {self.capability}, libraries {self.libraries}, threads {self.threads}"

    def environment(self) -> dict[str, str]:
        """Return the environment of this process with the variables of the combination."""
        found = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        if self.capability != UNSET:
            found["ATEN_CPU_CAPABILITY"] = self.capability
        if self.libraries != UNSET:
            found["ONEDNN_MAX_CPU_ISA"] = found["MKL_ENABLE_INSTRUCTIONS"] = self.libraries
        if self.any_processor:
            found[ANY] = "1"
        found["OMP_NUM_THREADS"] = str(self.threads)
        # as in `make test`: processes of tests would compile torch and its companions anew
        found["PYTHONDONTWRITEBYTECODE"] = ""
        found["PYTHONPYCACHEPREFIX"] = str(ROOT / "build" / "bytecode")
        # the tests' operations are tiny: threads that wait awake would keep the others from working
        found["OMP_WAIT_POLICY"] = "passive"
        return found


@dataclass(frozen=True)
class Outcome:
    """What became of one combination.

    Attributes:
        passed: Tests that passed.
        failed: Tests that failed, and errors.
        seconds: How long it took.
        green: Whether pytest said that all is well.
        log: What pytest said.
    """

    passed: int
    failed: int
    seconds: float
    green: bool
    log: Path


def run(combination: Combination, command: list[str]) -> Outcome:
    """Run pytest in the environment of a combination."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / (re.sub(r"\W+", "_", combination.name) + ".log")
    started = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *command],
            cwd=ROOT,
            env=combination.environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    seconds = time.perf_counter() - started
    last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error)", last)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return Outcome(counts.get("passed", 0), failed, seconds, done.returncode == 0, log)


def combinations(args: argparse.Namespace) -> list[Combination]:
    """Return the combinations that were asked for."""
    every = itertools.product(args.capability, args.libraries, args.threads)
    found = [Combination(*one) for one in every]
    if args.any_processor:
        found.append(Combination(UNSET, UNSET, 1, any_processor=True))
    return found


def parsed(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--capability", nargs="+", choices=CAPABILITIES, default=CAPABILITIES)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--threads", nargs="+", type=int, default=THREADS)
    parser.add_argument("--any-processor", action="store_true", help="one more combination")
    parser.add_argument("--select", default="", help="paths and options for pytest, in one word")
    parser.add_argument("--slow", action="store_true", help="the slow tests as well")
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="processes, shared out among threads (default: %(default)s)",
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the combinations one after the other; return the exit status."""
    args = parsed(words)
    command = ["-q", "-p", "no:cacheprovider", "--dist=loadfile", "--no-loadscope-reorder"]
    command += [] if args.slow else ["-m", "not slow"]
    command += shlex.split(args.select)
    console = Console(highlight=False, soft_wrap=True)
    outcomes: dict[Combination, Outcome] = {}
    for combination in combinations(args):
        # threads of several processes would wait for each other's cores
        workers = min(args.workers, max(1, args.workers // combination.threads))
        found = run(combination, ["--numprocesses", str(workers), *command])
        outcomes[combination] = found
        console.print(
            f"{combination.name}: {found.passed} passed, {found.failed} failed, "
            f"{found.seconds:.0f} s, {'green' if found.green else f'red, see {found.log}'}"
        )
    table = Table("torch", "libraries", "threads", "passed", "failed", "seconds", "")
    for combination, found in outcomes.items():
        kernels = "any processor" if combination.any_processor else combination.capability
        figures = (found.passed, found.failed, f"{found.seconds:.0f}")
        said = "green" if found.green else "red"
        row = (kernels, combination.libraries, combination.threads, *figures, said)
        table.add_row(*map(str, row))
    console.print(table)
    return 0 if all(found.green for found in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
