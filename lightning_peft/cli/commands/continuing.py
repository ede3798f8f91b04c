"""Serve ``lightning-peft continue DIR``: resume an interrupted sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import chdir, nullcontext
from pathlib import Path

from lightning_peft.cli.commands.command import run_command
from lightning_peft.cli.sweeps.moved import started_in
from lightning_peft.cli.sweeps.record import FILE, read_arguments

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
        description="Resume an interrupted sweep: finished jobs are not run again, an interrupted "
        "job continues from its last checkpoint, and a failed job is tried again. Typing the sweep "
        "again with hydra.sweep.dir=DIR does the same.",
    )
    parser.add_argument("directory", type=Path, help="the directory of the sweep")
    return run_command(parser, args, _go_on)


def _go_on(options: argparse.Namespace) -> int:
    directory: Path = options.directory
    start = started_in(directory / FILE)
    if start is not None:
        print(
            f"lightning-peft: continues in {start}, where the sweep was started: relative paths "
            "begin there",
            file=sys.stderr,
        )
        directory = directory.absolute()
    words = read_arguments(directory)
    from lightning_peft.cli.app import main as train

    sys.argv = [sys.argv[0], *words]  # what the jobs start their other ranks with
    with nullcontext() if start is None else chdir(start):
        return train(words)
