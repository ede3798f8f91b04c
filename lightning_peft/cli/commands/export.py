"""Serve ``lightning-peft export``: write a run or an adapter to a file for serving."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_peft.cli.commands.command import add_calibrated, run_command
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.trust.words import add_trust, trust_of

if TYPE_CHECKING:
    from lightning_peft.adaptation.serving.exporting import ExportReport

__all__ = ["main"]


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft export``.

    Args:
        args: The words after the command.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-peft export",
        description="Write a trained model for serving, read the file back and compare its output. "
        "A JSON file next to it holds the preprocessing and the names of the classes.",
    )
    parser.add_argument("directory", type=Path, help="a run directory or an adapter directory")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="GROUP=CHOICE | KEY=VALUE",
        help="the backbone of an adapter directory: model=timm model.backbone=vit_base_patch16_224",
    )
    parser.add_argument(
        "--to",
        default="safetensors",
        metavar="FORMAT",
        help="safetensors (merged weights under the backbone's own names), adapter, torch-export "
        "or onnx; safetensors by default",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PATH",
        help="file to write; for a model of texts a directory, with the tokeniser",
    )  # fmt: skip
    parser.add_argument(
        "--classes", type=int, help="classes of the head, if the adapter directory has no head"
    )
    add_calibrated(parser)
    add_trust(parser)
    return run_command(parser, args, _serve)


def _serve(options: argparse.Namespace) -> int:
    found = _export(options)
    print(found if isinstance(found, str) else _told(found))
    return 0


def _export(options: argparse.Namespace) -> ExportReport | str:
    directory: Path = options.directory
    is_adapter = (directory / "adapter_config.json").is_file()
    if options.overrides and not is_adapter:
        raise ConfigError(
            [
                f"a run has its own config: expected no overrides with {directory}, got "
                f"{' '.join(options.overrides)}. To choose the backbone, export "
                f"{directory / 'adapter'}."
            ]
        )
    if options.calibrated is not None and is_adapter:
        raise ConfigError(
            [
                f"--calibrated: an adapter directory holds no temperature, got {directory}. Export "
                "the directory of the run, whose serving.json has it."
            ]
        )
    trust = trust_of(options)
    from rich.console import Console

    from lightning_peft.adaptation.serving.exporting import check_format, export_model
    from lightning_peft.cli.commands.export_language import check_language_export, export_language
    from lightning_peft.cli.config.quiet import quiet
    from lightning_peft.cli.jobs.served import load_run, load_with_backbone
    from lightning_peft.cli.jobs.served_language import (
        is_of_language,
        load_language_run,
        load_with_language_model,
        of_texts,
    )

    check_format(options.to)
    console = Console(stderr=True)
    with quiet(), console.status(f"exporting to {options.to}"):
        language = None
        if is_of_language(directory):
            if options.calibrated is not None:
                raise ConfigError(
                    ["--calibrated: a language model has no temperature of a run. Leave it out."]
                )
            check_language_export(options.out, options.to)
            language = load_language_run(directory, trust)
        elif is_adapter:
            language = load_with_language_model(directory, options.overrides)
        if language is not None:
            return export_language(language, options.out, options.to)
        if is_adapter:
            served = load_with_backbone(directory, options.overrides, options.classes)
        else:
            served = load_run(directory, calibrated=options.calibrated, trust=trust)
        if served.preprocessing is None:
            return export_language(of_texts(served), options.out, options.to)
        return export_model(
            served.backbone,
            options.out,
            options.to,
            preprocessing=served.preprocessing,
            class_names=served.class_names,
            outputs=served.outputs,
        )


def _told(report: ExportReport) -> str:
    from lightning_peft.cli.comparing.wording import size

    lines = [f"wrote       {report.path} ({size(report.bytes)})", f"facts       {report.card}"]
    if report.output_difference is not None:
        told = f"{report.output_difference:.1e} of the largest output"
        lines.append(f"difference  {told}, read back and run on random images")
    if not report.any_batch:
        lines.append("batch       accepts only the number of images that it was traced with")
    if report.note:
        lines.append(f"note        {report.note}")
    return "\n".join(lines)
