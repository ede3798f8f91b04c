"""Serve ``lightning-peft predict``: predict images, or texts, with a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.commands.command import add_calibrated, run_command
from lightning_peft.cli.commands.generate_texts import NEW_TOKENS, answer_prompts
from lightning_peft.cli.commands.image_inputs import (
    Asked,
    asked_images,
    asked_in_a_table,
    is_table,
)
from lightning_peft.cli.config.devices import device_of
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.paths import no_directory
from lightning_peft.cli.trust.printable import printable
from lightning_peft.cli.trust.words import add_trust, trust_of

if TYPE_CHECKING:
    from lightning_peft.adaptation.serving.predicting import Prediction
    from lightning_peft.cli.jobs.served import Served

__all__ = ["main"]

SHOWN = 20
"""The most rows, and the most unreadable files, that are printed."""


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft predict``.

    Args:
        args: The words after the command.

    Returns:
        The exit status: 1 if some images could not be read; the others are written.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-peft predict",
        description="Predict the class, the labels or the numbers of images, or of each text of a "
        "file, or the tags of its words, with the model of a run. Images and texts are prepared as "
        "in its evaluation. A run on language writes a text after each prompt of a file, and one "
        "on texts with targets a text for each text.",
    )
    parser.add_argument("run", type=Path, help="the directory of a run")
    parser.add_argument(
        "data",
        type=Path,
        nargs="+",
        help="images, folders of them, patterns such as 'photos/*.jpg', or a CSV file with a "
        "column of files; for a run on texts, a file with the same columns of texts; for one on "
        "language, a JSONL, CSV or text file of prompts",
    )
    parser.add_argument(
        "--out",
        default="-",
        metavar="CSV",
        help="file to write (for a run on language or on words also .jsonl); '-' prints the first "
        "rows (default)",
    )
    parser.add_argument("--top", type=int, default=1, help="classes per image; 1 by default")
    parser.add_argument("--batch", type=int, default=64, help="batch size; 64 by default")
    parser.add_argument("--workers", type=int, default=0, help="reading processes; 0 by default")
    parser.add_argument(
        "--device", default="auto", help="such as cuda, mps or cpu; chosen automatically"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=None, metavar="N",
        help=f"for a run on language, the most tokens of a text; {NEW_TOKENS} by default, and for "
        "one on texts with targets as in its evaluation",
    )  # fmt: skip
    add_calibrated(parser)
    add_trust(parser)
    return run_command(parser, args, _serve)


def _serve(options: argparse.Namespace) -> int:
    from lightning_peft.cli.jobs.served_language import is_of_language

    if is_of_language(options.run):
        options.data = _one(options.data, "a file of prompts")
        answer_prompts(options)
        return 0
    if options.max_new_tokens is not None:
        raise ConfigError(["--max-new-tokens: expected a run on language. Leave it out."])
    unread = _predict(options)
    for item in unread[:SHOWN]:
        told = printable(f"cannot read {item.path}: {item.error}")
        print(f"lightning-peft: {told}", file=sys.stderr)
    if unread:
        print(f"lightning-peft: {len(unread)} images could not be read", file=sys.stderr)
    return 1 if unread else 0


def _predict(options: argparse.Namespace) -> list[Prediction]:
    problems = [
        f"expected {flag} of at least {least}, got {value}"
        for flag, value, least in (
            ("--top", options.top, 1),
            ("--batch", options.batch, 1),
            ("--workers", options.workers, 0),
        )
        if value < least
    ]
    tables = any(is_table(path) and path.exists() for path in options.data)
    asked = Asked() if tables else asked_images(options.data)
    problems += asked.problems
    problems += _no_output(options.out)
    try:
        device = device_of(options.device)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    trust = trust_of(options)
    from lightning_peft.cli.config.quiet import quiet
    from lightning_peft.cli.jobs.served import load_run

    with quiet():
        served = load_run(options.run, calibrated=options.calibrated, trust=trust)
    served.backbone.to(device)
    if served.words is not None:
        from lightning_peft.cli.commands.tag_words import tag_words

        options.data = _one(options.data, "a file of words")
        tag_words(served, options)
        return []
    if served.num_classes is not None:  # there are no more classes to show
        options.top = min(options.top, served.num_classes)
    if served.text_column is None:
        if tables:
            asked = asked_in_a_table(_one(options.data, "one CSV file of images"), served)
        keys, found = _images(served, asked, options)
    else:
        keys, found = _texts(served, options)
    unread: list[Prediction] = []
    header = _header(served, options.top)
    rows = _rows(zip(keys, _watched(found, len(keys)), strict=True), served, unread)
    if options.out == "-":
        _print(rows, header)
    else:
        with _csv(Path(options.out), header) as writer:
            writer.writerows(rows)
        noun = "images" if served.text_column is None else "texts"
        print(f"wrote  {options.out} ({len(keys) - len(unread)} of {len(keys)} {noun})")
    return unread


def _one(words: Sequence[Path], wanted: str) -> Path:
    if len(words) > 1:
        raise ConfigError(
            [f"expected {wanted}, got {len(words)} words: {words[0]}, {words[1]} ..."]
        )
    return words[0]


def _no_output(out: str) -> list[str]:
    """Return why the table cannot be written to a path, before anything is predicted."""
    path = Path(out)
    if out == "-":
        return []
    if path.is_dir():
        return [f"--out: expected a CSV file to write, got the directory {out}"]
    wrong = no_directory(path.parent)
    return [f"--out: {wrong}"] if wrong else []


def _images(
    served: Served, asked: Asked, options: argparse.Namespace
) -> tuple[list[str], Iterator[Prediction]]:
    """Return the names of the images, and their predictions."""
    from lightning_peft.adaptation.serving.predicting import predict_files
    from lightning_peft.data.listing import not_read

    if served.decoding is None or not asked.paths:
        raise ConfigError([f"expected images, as the run had, got {options.data[0]}"])
    if told := not_read(asked.others):
        print(f"lightning-peft: {printable(told)}", file=sys.stderr)
    found = predict_files(
        served.backbone,
        asked.paths,
        decoding=served.decoding,
        transform=served.transform,
        top=options.top,
        batch_size=options.batch,
        num_workers=options.workers,
        outputs=served.outputs,
    )
    return asked.names, found


def _texts(served: Served, options: argparse.Namespace) -> tuple[list[str], Iterator[Prediction]]:
    """Return the texts or pairs, and their predictions."""
    from lightning_peft.adaptation.serving.predicting import predict_texts
    from lightning_peft.data.unlabelled import read_columns

    path = _one(options.data, "a file of texts")
    if not is_table(path):
        raise ConfigError([f"expected a file of texts, as the run had, got {path}"])
    texts: Any = read_columns(path, str(served.text_column), served.pair_column, served.encoding)
    found = predict_texts(
        served.backbone,
        texts,
        tokenise=served.transform,
        top=options.top,
        batch_size=options.batch,
        outputs=served.outputs,
    )
    return texts, found


def _rows(
    found: Iterable[tuple[Any, Prediction]], served: Served, unread: list[Prediction]
) -> Iterator[list[str]]:
    """Yield the rows of the table; add what could not be read to ``unread``."""
    names = served.class_names
    for key, item in found:
        if item.error:
            unread.append(item)
            continue
        row = [key] if isinstance(key, str) else list(key)
        called = [str(k) if names is None else names[k] for k in item.classes]
        if served.outputs.task == "regression":
            row += [f"{value:.6g}" for value in item.values]
        elif served.outputs.task == "multilabel":
            row += ["|".join(called), *(f"{value:.6f}" for value in item.values)]
        else:
            for name, probability in zip(called, item.probabilities, strict=True):
                row += [name, f"{probability:.6f}"]
        yield row


def _header(served: Served, top: int) -> list[str]:
    """Return the columns: classes, or labels and the probability of each, or numbers."""
    task, names, mean = served.outputs.task, served.class_names or (), served.outputs.mean
    first = [served.text_column or "path"]
    first += [served.pair_column] if served.pair_column else []
    if task == "regression":
        return [*first, *(names or [f"number_{k}" for k in range(len(mean) if mean else 1)])]
    if task == "multilabel":
        return [*first, "labels", *(f"probability_{name}" for name in names)]
    more = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("class", "probability")]
    return [*first, "class", "probability", *more]


@contextmanager
def _csv(path: Path, header: Sequence[str]) -> Iterator[Any]:
    from lightning_peft.evaluation.csv_rows import RowWriter
    from lightning_peft.system.atomic import written_whole

    with (
        written_whole(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = RowWriter(file)
        writer.writerow(header)
        yield writer


def _print(rows: Iterator[list[str]], header: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # the name of a file or a class must not be read as markup
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(Text(printable(name)))
    count = 0
    for row in rows:
        count += 1
        if count <= SHOWN:
            table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console()
    console.print(table)
    if count > SHOWN:
        console.print(f"and {count - SHOWN} more: --out predictions.csv writes all of them")


def _watched(found: Iterable[Prediction], total: int) -> Iterable[Prediction]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(found, "Predicting", total, console=console, disable=not console.is_terminal)
