"""``lightning-peft predict``: the images of a folder through the model of a run."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.command import run_command
from lightning_peft.cli.errors import ConfigError

if TYPE_CHECKING:
    from lightning_peft.cli.served import Served
    from lightning_peft.predicting import Prediction

__all__ = ["main"]

SHOWN = 20
"""Rows of the table on a console, and unreadable files that are named there."""


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft predict``.

    Args:
        args: The words after the command.

    Returns:
        The exit status: 1 where some images could not be read; the rest is written all the same.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-peft predict",
        description="Predict the class, the labels or the numbers of each image below a folder "
        "with the model of a run, prepared as its own data was in evaluation.",
    )
    parser.add_argument("run", type=Path, help="a run's directory")
    parser.add_argument("images", type=Path, help="a folder of images, or of folders of images")
    parser.add_argument(
        "--out", default="-", metavar="CSV", help="the table; '-' prints the head of it (default)"
    )
    parser.add_argument("--top", type=int, default=1, help="classes of each image; 1 by default")
    parser.add_argument("--batch", type=int, default=64, help="images at a time; 64 by default")
    parser.add_argument("--workers", type=int, default=0, help="processes that read; 0 by default")
    parser.add_argument(
        "--device", default="auto", help="such as cuda, mps or cpu; found by itself"
    )
    return run_command(parser, args, _serve)


def _serve(options: argparse.Namespace) -> int:
    unread = _predict(options)
    for item in unread[:SHOWN]:
        print(f"lightning-peft: not read: {item.path}: {item.error}", file=sys.stderr)
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
    if not options.images.is_dir():
        problems.append(f"expected a folder of images, got {options.images}")
    if problems:
        raise ConfigError(problems)
    from lightning_peft.cli.quiet import quiet
    from lightning_peft.cli.served import load_run
    from lightning_peft.predicting import image_files, predict_files

    paths = image_files(options.images)
    if not paths:
        raise ConfigError([f"there is no image below {options.images}"])
    with quiet():
        served = load_run(options.run)
    model = served.backbone.to(_device(options.device))
    found = predict_files(
        model,
        paths,
        mode=served.preprocessing.pil_mode,
        transform=served.transform,
        top=options.top,
        batch_size=options.batch,
        num_workers=options.workers,
        outputs=served.outputs,
    )
    unread: list[Prediction] = []
    header = _header(served, options.top)
    rows = _rows(_watched(found, len(paths)), options, served, unread)
    if options.out == "-":
        _print(rows, header)
    else:
        with _csv(Path(options.out), header) as writer:
            writer.writerows(rows)
        print(f"wrote  {options.out} ({len(paths) - len(unread)} of {len(paths)} images)")
    return unread


def _rows(
    found: Iterable[Prediction],
    options: argparse.Namespace,
    served: Served,
    unread: list[Prediction],
) -> Iterator[list[str]]:
    """Lay out what was read, and put aside what was not."""
    names = served.class_names
    for item in found:
        if item.error:
            unread.append(item)
            continue
        row = [item.path.relative_to(options.images).as_posix()]
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
    """Name the columns: classes, or labels and the probability of each, or numbers."""
    task, names = served.outputs.task, served.class_names or ()
    if task == "regression":
        return ["path", *(names or [f"number_{k}" for k in range(len(served.outputs.mean or "1"))])]
    if task == "multilabel":
        return ["path", "labels", *(f"probability_{name}" for name in names)]
    more = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("class", "probability")]
    return ["path", "class", "probability", *more]


@contextmanager
def _csv(path: Path, header: Sequence[str]) -> Iterator[Any]:
    from lightning_peft.whole import written_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        written_whole(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        yield writer


def _print(rows: Iterator[list[str]], header: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    count = 0
    for row in rows:
        count += 1
        if count <= SHOWN:
            table.add_row(*row)
    console = Console()
    console.print(table)
    if count > SHOWN:
        console.print(f"and {count - SHOWN} more: --out predictions.csv holds them all")


def _watched(found: Iterable[Prediction], total: int) -> Iterable[Prediction]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(found, "Predicting", total, console=console, disable=not console.is_terminal)


def _device(name: str) -> Any:
    import torch

    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ConfigError([f"expected a device such as cuda or cpu, got '{name}'"]) from error
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else found
