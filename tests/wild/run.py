"""Run the suite of foreign modules: ``python -m tests.wild.run``.

Every package has a process of its own, which imports it once, and every module a fork of that
process with a limit of time: a crash costs one line. Each line of the results is written when it is
known, and a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.forks import in_a_fork
from tests.wild.case import Case
from tests.wild.results import RESULTS, read, write

__all__ = ["main", "run_cases"]

MODULES = Path(__file__).parent / "modules"


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; the number of modules whose line is worse than before is returned."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument(
        "--select", default="", help="parts of 'package' or 'package/name', by commas"
    )
    parser.add_argument("--again", action="store_true", help="measure also what has a line")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each module")
    parser.add_argument("--package", help=argparse.SUPPRESS)  # in the process of a package
    options = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    if options.package:
        run_package(options)
        return 0
    before = read(options.out)
    if not options.again and not options.select and _complete(before):
        options.again = True
    for path in sorted(MODULES.glob("*.py")):
        if _wanted(options.select, path.stem):
            command = [sys.executable, "-m", "tests.wild.run", "--package", path.stem]
            command += ["--out", str(options.out), "--limit", str(options.limit)]
            command += ["--select", options.select, *(["--again"] if options.again else [])]
            subprocess.run(command, check=False)
    after = read(options.out)
    worse = [
        name
        for name, line in after.items()
        if line["status"] in ("wrong", "not run")
        and before.get(name, {}).get("status") not in ("wrong", "not run")
    ]
    for name in worse:
        print(f"now {after[name]['status']}: {name}")
    return min(len(worse), 100)


def _complete(lines: dict[str, Any]) -> bool:
    return {name.partition("/")[0] for name in lines} >= {p.stem for p in MODULES.glob("*.py")}


def _wanted(select: str, package: str, name: str = "") -> bool:
    """Whether a part of the selection is in the package's name, and one after a slash in name."""
    asked = [part.partition("/") for part in select.split(",") if part]
    chosen = [wanted for start, _, wanted in asked if start in package]
    return not asked or (bool(chosen) and (not name or any(part in name for part in chosen)))


def run_package(options: argparse.Namespace) -> None:
    """Import one package and run its modules."""
    package = options.package
    try:
        file = importlib.import_module(f"tests.wild.modules.{package}")
    except Exception as error:
        write(options.out, {"package": package, "name": "import", "status": "not run",
                             "message": f"{type(error).__name__}: {error}"})  # fmt: skip
        return
    cases = [case for case in file.CASES if _wanted(options.select, package, case.name)]
    done = {} if options.again else read(options.out)
    cases = [case for case in cases if f"{package}/{case.name}" not in done]
    run_cases(cases, package, version(file.DISTRIBUTION), options.out, options.limit)


def run_cases(cases: list[Case], package: str, release: str, out: Path, limit: float) -> None:
    """Run cases one after the other, each in a fork, and write a line for each."""
    for name in ("tests.wild.battery", "peft", "torch._dynamo"):
        importlib.import_module(name)  # before the forks, each of which would import it anew
    for case in cases:
        began = time.monotonic()
        line = in_a_fork(partial(_measure, case), limit)
        line |= {"name": case.name, "package": package, "version": release}
        write(out, line)
        failed = [f"{k}: {v}" for k, v in line.get("checks", {}).items() if v.startswith("wrong")]
        told = failed or ([line["message"]] if line["message"] and not line.get("checks") else [])
        seconds = time.monotonic() - began
        print(
            f"{line['status']:10} {package}/{case.name} {seconds:.0f} s",
            *told,
            sep="\n    ",
            flush=True,
        )


def _measure(case: Case, folder: Path) -> dict[str, Any]:
    from tests.wild.battery import measure

    return measure(case, folder)


if __name__ == "__main__":
    sys.exit(main())
