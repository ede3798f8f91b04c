"""Serve ``lightning-peft methods``: list the methods."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lightning_peft.cli.commands.command import run_command
from lightning_peft.cli.config.errors import ConfigError
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
        description="List the methods: name, what is trained, and the paper; with a pattern also "
        "their settings.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="a glob on the name, such as '*a'")
    parser.add_argument(
        "--tuners", action="store_true", help="list the tuners of method=hf instead"
    )
    parser.add_argument("--family", help="only those of a family, such as 'low-rank'")
    parser.add_argument("--mergeable", action="store_true", help="only those that can be merged")
    parser.add_argument(
        "--backbone", metavar="NAME", help="only those that can adapt this timm model; no weights"
    )
    return run_command(parser, args, lambda o: _tuners() if o.tuners else _methods(o))


def _methods(options: argparse.Namespace) -> int:
    from lightning_peft.methods.registry import list_methods, method_class

    names = list_methods(options.pattern)
    families = sorted({method_class(name).family for name in list_methods()})
    if not names:
        hint = near(options.pattern, list_methods())
        raise ConfigError([f"there is no method '{options.pattern}'. {hint}"])
    if options.family is not None and options.family not in families:
        known = ", ".join(families)
        raise ConfigError([f"there is no family '{options.family}'. Expected one of {known}."])
    refused = {} if options.backbone is None else _refused(options.backbone)
    chosen = [
        name
        for name in names
        if options.family in (None, method_class(name).family)
        and (method_class(name).mergeable or not options.mergeable)
        and not refused.get(name)
    ]
    _print(chosen, detailed=options.pattern != "*")
    for name in names:
        if refused.get(name) and options.pattern != "*":  # asked for by name: say why not
            print(f"{name} cannot adapt {options.backbone}: {refused[name]}", file=sys.stderr)
    return 0


def _print(names: Sequence[str], *, detailed: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lightning_peft.methods.registry import method_class

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("method", "family", "what is trained", "merges", "source"):
        table.add_column(column, no_wrap=column != "what is trained")
    if detailed:
        table.add_column("settings", overflow="fold")
    for name in names:
        cls = method_class(name)
        settings = [", ".join(_settings(cls)) or "-"] if detailed else []
        merges = "in place" if cls.changes_backbone is True else "yes" if cls.mergeable else "no"
        source = cls.reference.removeprefix("https://")
        table.add_row(name, cls.family, cls.summary, merges, source, *settings)
    Console().print(table)


def _refused(backbone: str) -> dict[str, str]:
    import timm
    import torch

    from lightning_peft.adaptation.catalogue import fitting
    from lightning_peft.backbones.data_config import check_timm_name

    check_timm_name(backbone)

    def build() -> torch.nn.Module:
        with torch.device("meta"):
            model: torch.nn.Module = timm.create_model(backbone, num_classes=10)
            return model

    return fitting(build)


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
