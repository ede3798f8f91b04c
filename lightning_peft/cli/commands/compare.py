"""Serve ``lightning-peft compare DIR...``: tables, statistics, pictures and a report on runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from lightning_peft.cli.commands.command import run_command
from lightning_peft.cli.comparing.comparison import Comparison, comparison_of
from lightning_peft.cli.comparing.publish import output_of, publish
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.cli.comparing.tables import as_csv, as_json
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.paths import no_directory
from lightning_peft.cli.runs.summary import finite

__all__ = ["main"]

DESCRIPTION = """\
Compare the runs below directories: a row for each method with the mean over its seeds,
the best first, and tests of the best row against each of the others on the same data,
paired over their common seeds. Failed and unfinished runs are listed as such.
"""

EPILOG = """\
files:
  report.html       everything on one page, which needs nothing but a browser
  comparison.csv    a line for each row of the table
  comparison.json   the same with every seed, the tests and the runs' directories
  comparison.png    accuracy against trained parameters (extra: viz)
  comparison_*.png  accuracy against a swept number, such as shots

examples:
  lightning-peft compare sweeps/2025-01-31/12-00-00
  lightning-peft compare sweeps/before sweeps/after --output before_after
  lightning-peft compare runs --json | jq '.rows[0].accuracy'
"""


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft compare``.

    Args:
        args: The words after the command.

    Returns:
        The exit status.
    """
    return run_command(_parser(), args, _compare)


def _compare(options: argparse.Namespace) -> int:
    directories: list[Path] = options.directories
    wrong = [
        f"expected a directory of runs, got {directory}"
        for directory in directories
        if not directory.is_dir()
    ]
    output: Path | None = options.output
    if output is not None and (in_the_way := no_directory(output)):
        wrong.append(in_the_way)
    if wrong:
        raise ConfigError(wrong)
    runs, unreadable = read_runs(directories)
    if not runs:
        raise ConfigError(_no_runs(directories, unreadable))
    return _serve(options, comparison_of(runs, unreadable))


def _no_runs(directories: Sequence[Path], unreadable: Sequence[Path]) -> list[str]:
    """Return the errors if there is nothing to compare: no file, or no readable one."""
    if unreadable:
        return [
            f"{path}: expected the summary of a run, got a file that cannot be read as one. It may "
            "be cut off, or written by another program."
            for path in unreadable
        ]
    where = " or ".join(map(str, directories))
    return [
        f"there is no summary.json below {where}. By default, runs are in runs/ and sweeps/ of the "
        "directory in which they were started."
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-peft compare",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directories",
        metavar="DIR",
        type=Path,
        nargs="+",
        help="the directory of a sweep, or any directory above runs",
    )
    parser.add_argument(
        "--output",
        "-o",
        metavar="DIR",
        type=Path,
        help="the directory for the files; by default DIR if there is one, otherwise comparison/",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--json", action="store_true", help="print comparison.json and write no files"
    )
    only.add_argument("--csv", action="store_true", help="print comparison.csv and write no files")
    return parser


def _serve(options: argparse.Namespace, comparison: Comparison) -> int:
    if options.json:
        print(json.dumps(finite(as_json(comparison)), indent=2, allow_nan=False))
    elif options.csv:
        print(as_csv(comparison), end="")
    else:
        output = output_of(options.directories, options.output)
        return 0 if publish(comparison, output) else 1
    return 0
