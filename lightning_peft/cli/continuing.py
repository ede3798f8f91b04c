"""``lightning-peft continue DIR``: go on with a sweep that was interrupted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.cli.errors import ConfigError
from lightning_peft.cli.sweep_record import read_arguments

__all__ = ["main"]


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft continue``.

    Args:
        args: The words after the command.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-peft continue",
        description="Go on with a sweep that was interrupted: jobs that are done are not run "
        "again, a job that was under way goes on from its last checkpoint, and a job that failed "
        "is tried again. The same as typing the sweep again with hydra.sweep.dir=DIR.",
    )
    parser.add_argument("directory", type=Path, help="the directory of the sweep")
    try:
        directory = parser.parse_args(list(args)).directory
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        words = read_arguments(directory)
    except ConfigError as error:
        print(f"lightning-peft: {error}", file=sys.stderr)
        return 2
    from lightning_peft.cli.app import main as train

    sys.argv = [sys.argv[0], *words]  # what the jobs start their other ranks with
    return train(words)
