"""The commands of the command line."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["COMMANDS", "Command"]


USAGE_ERROR = 2
"""Exit status of a mistyped command line, as argparse has it."""


class Command(NamedTuple):
    """A command: the module that serves it, and what it does.

    ``module`` is relative to ``lightning_peft.cli``; its ``main(args)`` is called.
    """

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "train": Command("app", "adapt a backbone; the default command"),
    "methods": Command("commands.methods", "list the methods with their papers"),
    "plan": Command("commands.plan", "show what a method would do to a model"),
    "rank": Command("commands.rank", "measure which pretrained model suits the data"),
    "show": Command("commands.show", "draw the data, its augmentation and the schedule"),
    "continue": Command("commands.continuing", "resume an interrupted sweep"),
    "soup": Command("commands.soup", "average the best checkpoints of runs"),
    "export": Command("commands.export", "write a trained model for serving"),
    "predict": Command("commands.predict", "predict images or texts, or answer prompts"),
    "compare": Command("commands.compare", "compare runs: table, tests, pictures, report"),
}
