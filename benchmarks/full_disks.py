"""Train on small disks that fill up, look at what is left, make room, and go on.

    python benchmarks/full_disks.py --disks 50

Each disk is a ``tmpfs`` of a random size, smaller than what the run writes, so it fills up at a
random file: a checkpoint, the log, a summary, the features of a cache. Then every file on it has to
be whole, no temporary file may be left, the message has to name a file, and the run has to say that
it was interrupted. The disk is made larger, the run goes on as its message says, and its end is
compared with that of a run that always had room.

Mounting needs root, or a namespace: ``unshare --map-root-user --mount python benchmarks/...``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import json
import logging
import multiprocessing
import os
import random
import re
import shlex
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import AsyncCheckpointIO
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.cli import main as command
from lightning_peft.cli.comparing.runs import read_runs
from lightning_peft.files.reading import read_adapter

FULL = os.strerror(errno.ENOSPC)
ENOUGH = 256 << 20
EPOCHS = 4
LEFTOVER = re.compile(r"\.[0-9a-f]{12}\..*|\..*\.(part|tmp|partial.*)")
NAMED = re.compile(
    r"/\S+: expected room for|/\S+: it cannot be written|cannot write in /\S+ \(No|\(in /\S+\)"
)
HINT = re.compile(r"to resume the (?:run|sweep): lightning-peft (.*)")

TINY = (
    *("experiment=smoke", "method=lora", "model=timm", "model.backbone=vit_tiny_patch16_224"),
    *("model.pretrained=false", "data.backbone=glyph_vit", "bootstrap=0"),
    "model.backbone_kwargs={img_size: 24, patch_size: 8, in_chans: 1, embed_dim: 16, depth: 2,"
    " num_heads: 2}",
)


class Module(L.LightningModule):
    """Two layers that are adapted, on noise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(32, 256, generator=generator))
        return DataLoader(data, batch_size=8, shuffle=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def fit(disk: Path, out: Path, *, asynchronous: bool = False, cache: bool = False) -> None:
    """Train the module on a disk; the weights at the end go elsewhere."""
    kept = out if cache else disk
    keep = ModelCheckpoint(kept / "run", save_last=True, save_top_k=-1)
    features = [lp.FeatureCache(directory=disk / "features", min_share=0.0)] if cache else []
    torch.manual_seed(7)
    module = Module()
    adapter = lp.PEFT("linear_probe", head="2") if cache else lp.PEFT("lora", rank=8)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[adapter, *features, keep],
        plugins=[AsyncCheckpointIO()] if asynchronous else None,
    )  # fmt: skip
    trainer.fit(module, ckpt_path="last", weights_only=False)
    torch.save(module.state_dict(), out / "weights.pt")


def serve(disk: Path, out: Path, *words: str, sweep: bool = False) -> None:
    """Run the command on a disk, with the words of its own hint if it is run again."""
    os.chdir(out)
    where = "hydra.sweep.dir" if sweep else "hydra.run.dir"
    more = ("-m", "seed=0,1") if sweep else ()
    status = command(list(words or (*TINY, *more, f"{where}={disk / 'run'}")))
    sys.exit(status)


SCENARIOS: dict[str, Callable[..., None]] = {
    "Lightning": fit,
    "Lightning, asynchronous": lambda *a, **k: fit(*a, **k, asynchronous=True),
    "a feature cache": lambda *a, **k: fit(*a, **k, cache=True),
    "the command": serve,
    "the command, a sweep": lambda *a, **k: serve(*a, **k, sweep=True),
}
"""What fills a disk."""


@dataclass
class Outcome:
    """What was found, in disks.

    Attributes:
        disks: All of them.
        filled: Those that were too small.
        whole: Of these, those on which every file can be read.
        clean: Those without a temporary file.
        named: Those whose message names a file.
        told: Those whose exit status and state are right: 1 and interrupted; or 0 and completed,
            where only a cache, a log or a picture had to be left out.
        ended: Those whose run came to its end, if need be after there was room.
        equal: Those with the numbers of the undisturbed run.
        problems: What was otherwise.
    """

    disks: int = 0
    filled: int = 0
    whole: int = 0
    clean: int = 0
    named: int = 0
    told: int = 0
    ended: int = 0
    equal: int = 0
    problems: list[str] = field(default_factory=list)


WARM = (
    *("hydra", "timm", "torchmetrics", "peft", "matplotlib.figure", "lightning_peft.cli.app"),
    *("lightning_peft.cli.jobs.train", "lightning_peft.cli.jobs.outcome", "jinja2"),
    *("lightning_peft.lightning.modules.image", "lightning_peft.lightning.datamodules.digits"),
)

COLUMNS = ("disks", "filled", "whole", "clean", "named", "told", "ended", "equal")


def fill(scenario: str, disks: int, rng: random.Random, directory: Path) -> Outcome:
    """Fill disks with the runs of a scenario.

    Args:
        scenario: A key of ``SCENARIOS``.
        disks: How many.
        rng: Chooses their sizes.
        directory: A directory on a disk with room.

    Returns:
        What was found.
    """
    outcome = Outcome()
    alone = directory / "alone"
    with _disk(directory / "large", ENOUGH) as large:
        status, text = _run(scenario, large, alone)
        if status:
            raise RuntimeError(f"{scenario}: the undisturbed run failed: {text}")
        used = ENOUGH - _free(large)
        reference = _result(scenario, large, alone)
    for number in range(disks):
        out = directory / f"out{number}"
        size = rng.randrange(4096, max(used, 8192), 4096)
        with _disk(directory / f"disk{number}", size) as disk:
            _one(scenario, disk, out, reference, outcome, f"{scenario}, {size:,} bytes")
    return outcome


def _one(scenario: str, disk: Path, out: Path, reference: Any, outcome: Outcome, name: str) -> None:
    status, text = _run(scenario, disk, out)
    outcome.disks += 1
    cache, by_command = scenario == "a feature cache", scenario.startswith("the command")
    goes_on = status == 0  # a cache, a picture or a log was left out
    if goes_on and FULL not in text:
        return
    outcome.filled += 1
    found: dict[str, str] = {"whole": "", "clean": "", "named": "", "told": ""}
    found["whole"] = ", ".join(path for path in _broken(disk))
    found["clean"] = ", ".join(p.name for p in disk.rglob("*") if LEFTOVER.fullmatch(p.name))
    found["named"] = "" if NAMED.search(text) else f"no file in: {text[-300:]}"
    # as everything that reads runs has it: one that says "running" and whose process is gone is not
    states = [run.status for run in read_runs([disk])[0]] if by_command else []
    good = ("completed",) if goes_on else ("interrupted", "completed")
    wrong = [state for state in states if state not in good]
    if status not in (0, 1) or (cache and status) or wrong or (by_command and "Traceback" in text):
        found["told"] = f"exit status {status}, {wrong}: {text[-300:]}"
    _resize(disk, ENOUGH)
    hint = HINT.search(text) if by_command else None
    status, text = (0, "") if goes_on else _run(scenario, disk, out, *_words(hint))
    found["ended"] = f"exit status {status}: {text[-300:]}" if status else ""
    found["equal"] = found["ended"]
    if not status and not _same(reference, _result(scenario, disk, out)):
        found["equal"] = "other numbers"
    for check, problem in found.items():
        setattr(outcome, check, getattr(outcome, check) + (not problem))
        if problem:
            outcome.problems.append(f"{name}: {check}: {problem}")


def _words(hint: re.Match[str] | None) -> list[str]:
    return shlex.split(hint[1]) if hint else []


def _run(scenario: str, disk: Path, out: Path, *words: str) -> tuple[int, str]:
    """Run a scenario in a process of its own; return its exit status and what it printed."""
    out.mkdir(parents=True, exist_ok=True)
    log = out / "printed.txt"

    def inside() -> None:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        SCENARIOS[scenario](disk, out, *words)

    process = multiprocessing.get_context("fork").Process(target=inside)
    process.start()
    process.join()
    return process.exitcode or 0, log.read_text(errors="replace")


def _broken(disk: Path) -> Iterator[str]:
    """Yield the files that cannot be read as what they are."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".ckpt": lambda path: torch.load(path, weights_only=False),
        ".json": lambda path: json.loads(path.read_text()),
        ".safetensors": lambda path: _safetensors(path),
    }
    for path in disk.rglob("*"):
        if path.is_file() and path.suffix in readers:
            try:
                readers[path.suffix](path)
            except Exception as error:
                yield f"{path.relative_to(disk)} ({type(error).__name__})"


def _safetensors(path: Path) -> None:
    from safetensors.torch import load_file

    load_file(path)
    if path.name.startswith("adapter_"):
        read_adapter(path.parent)


def _result(scenario: str, disk: Path, out: Path) -> Any:
    """Return what the end of a run is compared by: its weights, or its metrics."""
    if not scenario.startswith("the command"):
        return torch.load(out / "weights.pt", weights_only=True)
    found = {}
    for path in sorted((disk / "run").rglob("summary.json")):
        metrics = json.loads(path.read_text()).get("metrics") or {}
        found[str(path.relative_to(disk))] = {
            name: torch.tensor(value) for name, value in metrics.items()
        }
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(torch.equal(one, other))


@contextlib.contextmanager
def _disk(path: Path, size: int) -> Iterator[Path]:
    """Mount a disk of a size."""
    path.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _resize(path: Path, size: int) -> None:
    _mount("-o", f"remount,size={size}", str(path))


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr.strip()}\n{(__doc__ or '').strip().splitlines()[-1]}")


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--disks", type=int, default=50, help="of all scenarios together")
    parser.add_argument("--seed", type=int, default=0, help="of the sizes (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    for name in WARM:  # what it imports, no process has to import again
        importlib.import_module(name)
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    rng = random.Random(args.seed)
    table = Table("disk filled by", *COLUMNS)
    found: dict[str, Any] = {}
    total: Counter[str] = Counter()
    console = Console()
    for scenario in SCENARIOS:
        with TemporaryDirectory() as directory:
            share = -(-args.disks // len(SCENARIOS))
            outcome = fill(scenario, share, rng, Path(directory))
        found[scenario] = vars(outcome)
        total.update({name: getattr(outcome, name) for name in COLUMNS})
        table.add_row(scenario, *(str(getattr(outcome, name)) for name in COLUMNS))
        for problem in outcome.problems:
            console.print(problem, markup=False, highlight=False)
        if args.json:
            args.json.write_text(json.dumps({**found, "all": dict(total)}, indent=2) + "\n")
    table.add_row("all", *(str(total[name]) for name in COLUMNS))
    console.print(table)


if __name__ == "__main__":
    main()
