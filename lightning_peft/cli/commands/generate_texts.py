"""Serve ``lightning-peft predict`` for a run on language: a text for each one of a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.devices import device_of
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.paths import no_directory
from lightning_peft.cli.trust.printable import printable
from lightning_peft.cli.trust.words import trust_of
from lightning_peft.data.text_tables import is_saved

__all__ = ["NEW_TOKENS", "answer_prompts"]

NEW_TOKENS = 64
"""The most tokens of a text, if neither the user nor the run says it."""

SHOWN = 20
"""The most answers that are printed."""


def answer_prompts(options: argparse.Namespace) -> None:
    """Generate a text after every prompt of a file, and print or write them.

    Args:
        options: Of ``lightning-peft predict``.

    Raises:
        ConfigError: If options are of no use here, or out of range; all are named.
        PEFTError: If the file, or the run, cannot be read.
    """
    problems = [
        f"expected {flag} of at least {least}, got {value}"
        for flag, value, least in (
            ("--batch", options.batch, 1),
            ("--max-new-tokens", options.max_new_tokens, 1),
        )
        if value is not None and value < least
    ]
    for flag, given in (
        ("--top", options.top != 1),
        ("--workers", options.workers != 0),
        ("--calibrated", options.calibrated is not None),
    ):
        if given:
            problems.append(f"{flag}: a run on language writes texts, not classes. Leave it out.")
    if not options.data.is_file() and not is_saved(options.data):
        problems.append(f"expected a file of prompts (.jsonl, .csv, .txt), got {options.data}")
    out = Path(options.out)
    if options.out != "-":
        wrong = no_directory(out.parent)
        wrong = "expected a file to write, got a directory" if out.is_dir() else wrong
        wrong = wrong or ("" if out.suffix in (".jsonl", ".csv") else "expected .jsonl or .csv")
        problems += [f"--out: {wrong}"] if wrong else []
    try:
        device = device_of(options.device)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)

    from lightning_peft.cli.config.quiet import quiet
    from lightning_peft.cli.jobs.served_language import language_task, load_language_run
    from lightning_peft.data.prompts import read_prompts
    from lightning_peft.data.unlabelled import read_columns

    prompts: list[Any] = []
    if language_task(options.run) != "seq2seq":
        prompts = read_prompts(options.data)
    with quiet():
        served = load_language_run(options.run, trust_of(options))
    if served.task == "seq2seq":
        prompts = list(read_columns(options.data, served.text_column, encoding=served.encoding))
    if options.max_new_tokens is None:
        options.max_new_tokens = served.max_new_tokens or NEW_TOKENS
    served.backbone.to(device)
    rows = list(zip(prompts, _answers(served, prompts, options), strict=True))
    if options.out == "-":
        _print(rows)
        return
    _write(out, rows)
    print(f"wrote  {out} ({len(rows)} texts)")


def _answers(served: Any, prompts: Sequence[Any], options: argparse.Namespace) -> Iterator[str]:
    from rich.console import Console
    from rich.progress import track

    from lightning_peft.lightning.modules.generation import Generator
    from lightning_peft.lightning.modules.target_writing import TargetWriter

    writer: Any = Generator(served.backbone, served.tokenizer)
    if served.task == "seq2seq":
        writer = partial(TargetWriter(served.backbone, served.tokenizer), tokenise=served.tokenise)
    starts = range(0, len(prompts), options.batch)
    console = Console(stderr=True)
    for start in track(starts, "Generating", console=console, disable=not console.is_terminal):
        yield from writer(
            prompts[start : start + options.batch],
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch,
            **served.generation,
        )


def _write(path: Path, rows: Sequence[tuple[Any, str]]) -> None:
    from lightning_peft.evaluation.csv_rows import RowWriter
    from lightning_peft.system.atomic import written_whole

    with (
        written_whole(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        if path.suffix == ".jsonl":
            for prompt, text in rows:
                line = {"prompt": prompt, "generated": text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            return
        writer = RowWriter(file)
        writer.writerow(["prompt", "generated"])
        writer.writerows([_written(prompt), text] for prompt, text in rows)


def _print(rows: Sequence[tuple[Any, str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # a prompt must not be read as markup
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("prompt", "generated"):
        table.add_column(name, overflow="fold")
    for prompt, text in rows[:SHOWN]:
        table.add_row(Text(printable(_written(prompt))), Text(printable(text)))
    console = Console()
    console.print(table)
    if len(rows) > SHOWN:
        console.print(f"and {len(rows) - SHOWN} more: --out texts.jsonl writes all of them")


def _written(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
