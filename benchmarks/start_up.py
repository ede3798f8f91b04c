"""What starting costs: ``import lightning_peft`` beyond what it needs, and ``--help``.

Each figure is the median of several fresh interpreters, run in turn so that a drift of the
machine's speed hits all of them. Run it with ``python benchmarks/start_up.py``.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

CASES = {
    "python": ["-c", "pass"],
    "import lightning_peft": ["-c", "import lightning_peft"],
    "import torch": ["-c", "import torch"],
    "import lightning, torch": ["-c", "import lightning.pytorch, torch"],
    "the same, then lightning_peft.PEFT": [
        "-c",
        "import lightning.pytorch, torch, lightning_peft; lightning_peft.PEFT",
    ],
    "lightning-peft --help": ["-m", "lightning_peft.cli", "--help"],
}


def cpu_and_wall(arguments: list[str]) -> tuple[float, float]:
    """Run an interpreter and give its CPU seconds and its wall seconds."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    used = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return used, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="fresh interpreters for each figure")
    runs = parser.parse_args().runs
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(runs + 1):  # the first round warms the file cache up
        for name, arguments in CASES.items():
            times[name].append(cpu_and_wall(arguments))
    print(f"{'':<40}{'CPU s':>8}{'wall s':>8}")
    for name, pairs in times.items():
        cpu, wall = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
        print(f"{name:<40}{cpu:>8.2f}{wall:>8.2f}")


if __name__ == "__main__":
    main()
