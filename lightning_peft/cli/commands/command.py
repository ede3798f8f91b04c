"""What every command beside training does: parse its words, serve them, say what was wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from lightning_peft.cli.config.errors import explain
from lightning_peft.cli.config.words import USAGE_ERROR

__all__ = ["add_calibrated", "run_command"]


def add_calibrated(parser: argparse.ArgumentParser) -> None:
    """Let a command that reads a run's outputs be told of its temperature."""
    parser.add_argument(
        "--calibrated",
        action=argparse.BooleanOptionalAction,
        help="divide the logits by the run's temperature, refused where it has none; by default as "
        "its test did (calibrate=temperature)",
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
        serve: Does the work and gives the exit status. What it raises of a mistyped command line is
            told in a line for each problem; any other error keeps its traceback.

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
            print(f"lightning-peft: {line}", file=sys.stderr)
        return USAGE_ERROR
