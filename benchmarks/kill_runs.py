"""Kill training runs at random moments, resume them, and compare them with undisturbed runs.

    python benchmarks/kill_runs.py --kills 200

Each run is a process of its own that is sent SIGKILL after a random time: in a step, in validation,
while a checkpoint is written, before the first one exists. The next process resumes from the last
checkpoint, as ``Trainer.fit(ckpt_path="last")`` does, or starts from the beginning, and may be
killed again. When the run finishes, its weights are compared, bit for bit, with those of a run that
was never killed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp

IMAGES, CLASSES, EPOCHS = 24, 3, 4


class Classifier(L.LightningModule):
    """A tiny ViT with dropout, trained on shuffled noise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = timm.create_model(
            "vit_tiny_patch16_224",
            num_classes=CLASSES,
            img_size=32,
            embed_dim=32,
            depth=2,
            num_heads=2,
            proj_drop_rate=0.1,
        )

    def loss(self, batch: Any) -> torch.Tensor:
        """Return the cross-entropy of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val/loss", self.loss(batch))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_images(), batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_images(), batch_size=8)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


class Mixed(lp.PEFTMixin, Classifier):
    """The same module with the mixin, which adapts itself."""

    peft = lp.SSF()


def _images() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.arange(IMAGES) % CLASSES)


SCENARIOS: dict[str, tuple[type[Classifier], Callable[[], list[L.Callback]]]] = {
    "lora, dropout, schedule": (
        Classifier,
        lambda: [lp.PEFT("lora", rank=2, dropout=0.1), lp.WarmupCosine(warmup=0.2)],
    ),
    "adalora": (Classifier, lambda: [lp.PEFT("adalora", rank=1, initial_rank=2)]),
    "staged unfreezing": (
        Classifier,
        lambda: [lp.BackboneFreeze(unfreeze=[lp.Stage(1, layers="last:1"), lp.Stage(2, lr=1e-3)])],
    ),
    "lora, weight averaging": (
        Classifier,
        lambda: [lp.PEFT("lora", rank=2), WeightAveraging()],
    ),
    "mixin, ssf": (Mixed, list),
}
"""What is killed: a module, and the callbacks of its trainer."""


def train(scenario: str, directory: Path) -> None:
    """Train a scenario to its end, from the last checkpoint that its directory holds."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    module_class, callbacks = SCENARIOS[scenario]
    torch.manual_seed(7)
    module = module_class()
    keep = ModelCheckpoint(directory, save_last=True, monitor="val/loss", save_top_k=1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks(), keep],
    )
    trainer.fit(module, ckpt_path="last", weights_only=False)
    weights = directory / "weights.part"
    torch.save(module.state_dict(), weights)
    weights.rename(directory / "weights.pt")


@dataclass
class Outcome:
    """The result of one scenario.

    Attributes:
        kills: Processes that were killed before their end.
        before: Of these, before the first checkpoint.
        runs: Runs that finished after at least one kill.
        equal: Of these, those with the weights of the undisturbed run.
        unequal: What differed.
    """

    kills: int = 0
    before: int = 0
    runs: int = 0
    equal: int = 0
    unequal: list[str] = field(default_factory=list)


def kill_and_resume(scenario: str, kills: int, rng: random.Random, directory: Path) -> Outcome:
    """Kill runs of a scenario until a number of kills has been resumed to the end.

    Args:
        scenario: A key of ``SCENARIOS``.
        kills: How many processes to kill, at least.
        rng: Chooses the moments.
        directory: Where the runs leave their files.

    Returns:
        The result of all runs.
    """
    outcome = Outcome()
    train(scenario, directory / "warm")  # what it imports, no process has to import again
    alone = directory / "alone"
    started = time.perf_counter()
    _process(scenario, alone).join()
    length = time.perf_counter() - started
    reference = torch.load(alone / "weights.pt", weights_only=True)
    for number in itertools.count():
        if outcome.kills >= kills:
            break
        run = directory / f"run{number}"
        killed = 0
        while not (run / "weights.pt").exists():
            process = _process(scenario, run)
            process.join(timeout=rng.uniform(0.0, 0.8 * length) if killed < 5 else None)
            if process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
                outcome.before += not list(run.glob("*.ckpt"))
            process.join()
            if process.exitcode not in (0, -signal.SIGKILL):
                raise RuntimeError(f"{scenario}: a run failed by itself, see above")
        outcome.kills += killed
        if killed:
            outcome.runs += 1
            unlike = _differences(reference, torch.load(run / "weights.pt", weights_only=True))
            outcome.equal += not unlike
            outcome.unequal += unlike
    return outcome


def _process(scenario: str, directory: Path) -> multiprocessing.process.BaseProcess:
    directory.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=train, args=(scenario, directory))
    process.start()
    return process


def _differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    if one.keys() != other.keys():
        return [f"keys: {sorted(set(one) ^ set(other))}"]
    return [name for name in one if not torch.equal(one[name], other[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="of all scenarios together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    table = Table("run", "killed", "before a checkpoint", "finished", "bit-equal")
    found: dict[str, Any] = {}
    total: Counter[str] = Counter()
    for scenario in SCENARIOS:
        with TemporaryDirectory() as directory, _quiet():
            share = -(-args.kills // len(SCENARIOS))
            outcome = kill_and_resume(scenario, share, rng, Path(directory))
        found[scenario] = vars(outcome)
        figures = (outcome.kills, outcome.before, outcome.runs, outcome.equal)
        total.update(dict(zip(("kills", "before", "runs", "equal"), figures, strict=True)))
        table.add_row(scenario, *map(str, figures))
    table.add_row("all", *(str(total[key]) for key in ("kills", "before", "runs", "equal")))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({**found, "all": dict(total)}, indent=2) + "\n")


@contextlib.contextmanager
def _quiet() -> Any:
    """Hide Lightning's messages in every process."""
    import logging

    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


if __name__ == "__main__":
    main()
