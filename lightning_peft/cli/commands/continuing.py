"""Serve ``lightning-peft continue DIR``: resume an interrupted sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, nullcontext
from pathlib import Path

from lightning_peft.cli.commands.command import run_command
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.sweeps.moved import started_in
from lightning_peft.cli.sweeps.record import FILE, arguments_of, read_arguments
from lightning_peft.cli.trust.sweep_words import problems_of_sweep
from lightning_peft.cli.trust.words import add_trust, checked_jobs, refuse, trust_of
from lightning_peft.files.plain_file import leaves

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
    add_trust(parser)
    return run_command(parser, args, _go_on)


def _misplaced(directory: Path) -> Iterator[str]:
    """Yield a sentence for each log that is a directory, and the reverse: Hydra opens both."""
    for path in sorted(directory.glob("*/*.log")):
        if path.is_dir():
            yield f"{path}: expected a file, got a directory"
    for path in sorted(directory.glob("*/.hydra")):
        if path.is_file():
            yield f"{path}: expected a directory, got a file"


def _go_on(options: argparse.Namespace) -> int:
    directory: Path = options.directory
    trust = trust_of(options)
    record = read_arguments(directory)
    if not trust.all:
        refuse(directory / FILE, list(problems_of_sweep(record, trust)))
        # Hydra and Lightning write where the names in the directory lead
        outside = list(leaves(directory))
        if outside:
            raise ConfigError([*outside, "Remove what is listed, or vouch for it: --trust."])
    misplaced = list(_misplaced(directory))
    if misplaced:
        raise ConfigError([*misplaced, "Remove what is listed; the jobs write it anew."])
    start = started_in(directory / FILE)
    if start is not None:
        print(
            f"lightning-peft: continues in {start}, where the sweep was started: relative paths "
            "begin there",
            file=sys.stderr,
        )
        directory = directory.absolute()
    words = arguments_of(record, directory)
    from lightning_peft.cli.app import main as train

    sys.argv = [sys.argv[0], *words]  # what the jobs start their other ranks with
    with nullcontext() if start is None else chdir(start), checked_jobs(trust):
        return train(words)
