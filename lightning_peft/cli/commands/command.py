"""Steps of every command other than training: parse its words, serve it, print its errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from lightning_peft.cli.config.errors import explain
from lightning_peft.cli.config.words import USAGE_ERROR
from lightning_peft.cli.trust.printable import printable

__all__ = ["add_calibrated", "run_command"]


def add_calibrated(parser: argparse.ArgumentParser) -> None:
    """Add ``--calibrated`` to a command that reads the outputs of a run."""
    parser.add_argument(
        "--calibrated",
        action=argparse.BooleanOptionalAction,
        help="divide the logits by the temperature of the run (an error if it has none); by "
        "default as in its test (calibrate=temperature)",
    )


def run_command(
    parser: argparse.ArgumentParser,
    args: Sequence[str],
    serve: Callable[[argparse.Namespace], int],
) -> int:
    """Run a command.

    Args:
        parser: Reads the words after the command.
        args: The words.
        serve: Does the work and returns the exit status. Its errors about the command line are
            printed, a line for each problem; any other error keeps its traceback.

    Returns:
        The exit status.
    """
    try:
        options = parser.parse_intermixed_args(list(args))
    except SystemExit as stop:  # --help, or words that argparse has refused
        return stop.code if isinstance(stop.code, int) else USAGE_ERROR
    try:
        return serve(options)
    except Exception as error:
        text = explain(error)
        if text is None:
            raise
        for line in text.splitlines():
            print(f"lightning-peft: {printable(line)}", file=sys.stderr)
        return USAGE_ERROR
