"""Serve ``lightning-peft predict`` for a run that tags words."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.trust.printable import printable

if TYPE_CHECKING:
    from lightning_peft.cli.jobs.served import Served

__all__ = ["tag_words"]

SHOWN = 20
"""The most texts that are printed."""


def tag_words(served: Served, options: argparse.Namespace) -> None:
    """Tag the words of every text of a file, and print or write them.

    A word that was cut off has no tag.

    Args:
        served: The model, on its device.
        options: Of ``lightning-peft predict``.

    Raises:
        ConfigError: If options are of no use here.
        PEFTError: If the file cannot be read; all problems are listed.
    """
    from lightning_peft.data.unlabelled import read_words

    if options.top != 1:
        raise ConfigError(["--top: a run on words gives each word one tag. Leave it out."])
    words = read_words(options.data, str(served.text_column), served.encoding)
    names = served.class_names
    found = [
        [None if k is None else (str(k) if names is None else names[k]) for k in row]
        for row in _tags(served, words, options.batch)
    ]
    cut = sum(None in row for row in found)
    if cut:
        print(f"{cut} of {len(words)} texts are longer than the run reads; their last words have "
              "no tag")  # fmt: skip
    if options.out == "-":
        _print(words, found)
        return
    _write(Path(options.out), words, found)
    print(f"wrote  {options.out} ({len(words)} texts)")


def _tags(served: Served, words: Sequence[Sequence[str]], size: int) -> Iterator[list[int | None]]:
    """Yield the tag of each word, from its first token."""
    import torch

    from lightning_peft.anatomy.forward import first_tensor

    assert served.words is not None
    device = next(served.backbone.parameters()).device
    for start in range(0, len(words), size):
        part = words[start : start + size]
        tokens = served.words(part)
        inputs = tokens.padded(range(len(part)))
        with torch.inference_mode():
            logits = first_tensor(served.backbone(**{k: v.to(device) for k, v in inputs.items()}))
        called = logits.argmax(-1).cpu()
        for row, one, firsts in zip(called, part, tokens.firsts, strict=True):
            yield [int(row[firsts[i]]) if i in firsts else None for i in range(len(one))]


def _write(
    path: Path, words: Sequence[Sequence[str]], tags: Sequence[Sequence[str | None]]
) -> None:
    from lightning_peft.evaluation.csv_rows import RowWriter
    from lightning_peft.system.atomic import written_whole

    with (
        written_whole(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        if path.suffix == ".jsonl":
            for one, other in zip(words, tags, strict=True):
                line = {"tokens": one, "tags": other}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            return
        writer = RowWriter(file)
        writer.writerow(["tokens", "tags"])
        writer.writerows(
            [" ".join(one), " ".join(tag or "-" for tag in other)]
            for one, other in zip(words, tags, strict=True)
        )


def _print(words: Sequence[Sequence[str]], tags: Sequence[Sequence[str | None]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for one, other in list(zip(words, tags, strict=True))[:SHOWN]:
        text = Text()
        for word, tag in zip(one, other, strict=True):
            text.append(printable(word))
            if tag not in (None, "O"):
                text.append(f"[{printable(str(tag))}]", style="bold green")
            text.append(" ")
        console.print(text)
    if len(words) > SHOWN:
        console.print(f"and {len(words) - SHOWN} more: --out tags.jsonl writes all of them")
