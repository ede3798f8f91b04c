"""The words of the command line."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COMMANDS", "Command"]


USAGE_ERROR = 2
"""Exit status of a mistyped command line, as argparse has it."""


class Command(NamedTuple):
    """One word of the command line: what serves it, and what it does.

    ``module`` is named from here on; its ``main(args)`` is called.
    """

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "train": Command("app", "adapt a backbone; what no command does"),
    "methods": Command("commands.methods", "list the methods, and where they come from"),
    "plan": Command("commands.plan", "what a method would do to a model"),
    "rank": Command("commands.rank", "which pretrained model suits the data, measured"),
    "show": Command("commands.show", "the data, its augmentation and the schedule"),
    "continue": Command("commands.continuing", "go on with a sweep that was interrupted"),
    "soup": Command("commands.soup", "average the best checkpoints of runs"),
    "export": Command("commands.export", "write a trained model for serving"),
    "predict": Command("commands.predict", "classify the images of a folder"),
    "compare": Command("commands.compare", "compare runs: table, tests, pictures, a page"),
}
