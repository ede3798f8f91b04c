"""``lightning-peft continue DIR``: go on with a sweep that was interrupted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.cli.commands.command import run_command
from lightning_peft.cli.sweeps.record import read_arguments

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
    return run_command(parser, args, _go_on)


def _go_on(options: argparse.Namespace) -> int:
    words = read_arguments(options.directory)
    from lightning_peft.cli.app import main as train

    sys.argv = [sys.argv[0], *words]  # what the jobs start their other ranks with
    return train(words)
