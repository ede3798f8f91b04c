"""The ``lightning-peft`` command.

A first word that is not an override names a command; without one, ``lightning-peft`` trains.
Nothing heavy is imported here: ``--help`` needs neither Hydra nor torch, and a mistyped word only
Hydra.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lightning_peft.cli.config.words import COMMANDS, USAGE_ERROR
from lightning_peft.errors import near

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lightning-peft``.

    Args:
        argv: The words after the name of the program; by default those of the command line.

    Returns:
        The exit status: 0 for success, 1 for a job that failed, 2 for a mistyped command line.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name, rest = "train", words
    if words and _is_word(words[0]):
        name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(
            f"lightning-peft: unknown command '{name}', and an override is written key=value. "
            f"{near(name, COMMANDS)} See: lightning-peft --help",
            file=sys.stderr,
        )
        return USAGE_ERROR
    if name == "train" and {"-h", "--help"} & set(rest):
        from lightning_peft.cli.config.help import help_text

        print(help_text(rest), end="")
        return 0
    if name == "train" and "--version" in rest:
        from lightning_peft import __version__

        print(f"lightning-peft {__version__}")
        return 0
    status: int = importlib.import_module(f"{__name__}.{COMMANDS[name].module}").main(rest)
    return status


def _is_word(text: str) -> bool:
    """Whether a word is neither a flag nor a Hydra override (``a=1``, ``+a=1``, ``~a``)."""
    return "=" not in text and not text.startswith(("-", "~", "+"))
