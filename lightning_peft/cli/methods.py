"""``lightning-peft methods``: what there is to adapt a backbone with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lightning_peft.errors import near

__all__ = ["main"]


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft methods``.

    Args:
        args: The words after the command.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-peft methods",
        description="List the methods: name, what is trained, where it comes from; with a pattern, "
        "their settings too.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="a glob on the name, such as '*a'")
    parser.add_argument(
        "--tuners", action="store_true", help="list the tuners that method=hf takes instead"
    )
    try:
        options = parser.parse_args(list(args))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    return _tuners() if options.tuners else _methods(options.pattern)


def _methods(pattern: str) -> int:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lightning_peft.methods.registry import list_methods, method_class

    names = list_methods(pattern)
    if not names:
        print(
            f"lightning-peft: there is no method '{pattern}'. {near(pattern, list_methods())}",
            file=sys.stderr,
        )
        return 2
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("method", "what is trained", "source"):
        table.add_column(column, no_wrap=column != "what is trained")
    detailed = pattern != "*"
    if detailed:
        table.add_column("settings", overflow="fold")
    for name in names:
        cls = method_class(name)
        settings = [", ".join(_settings(cls)) or "-"] if detailed else []
        table.add_row(name, cls.summary, cls.reference, *settings)
    Console().print(table)
    return 0


def _settings(cls: type) -> list[str]:
    import inspect

    return [
        f"{name}={parameter.default!r}" if parameter.default is not parameter.empty else name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]


def _tuners() -> int:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lightning_peft.methods import list_tuners

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tuner")
    table.add_column("method=hf method.tuner=...", overflow="fold")
    for name, refusal in list_tuners().items():
        table.add_row(name.lower(), "yes" if refusal is None else f"no: {refusal}")
    Console().print(table)
    return 0
