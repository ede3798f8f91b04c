"""Count which entries of LoRA move in half precision, and compare the loss with peft.

    python benchmarks/half_precision.py                  # 300 steps at a learning rate of 1e-4

The shipped backbone learns scikit-learn's handwritten digits: rank 8 on every linear layer and a
new head, Adam, batch 32, the same batches and initial values for every variant. `as cast` is what
`precision="bf16-true"` makes of a module whose adapter does not keep its dtype
(`adapter_dtype="bfloat16"`), and `peft` is `get_peft_model` on the backbone in bfloat16, with
`autocast_adapter_dtype=True` and the head in `modules_to_save`, in a loop of its own.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from functools import partial
from typing import Any

import lightning as L
import peft
import timm
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_peft as lp

RANK, BATCH, CLASSES = 8, 32, 10
LAST = 20
"""The loss is the mean over this many last steps."""


def backbone(seed: int) -> nn.Module:
    """Build the pretrained backbone with a new head."""
    torch.manual_seed(seed)
    return timm.create_model("glyph_vit", pretrained=True, num_classes=CLASSES)


def batches(steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Draw the batches of a run."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, (24, 24), mode="bilinear")
    targets = torch.tensor(digits.target)
    random = torch.Generator().manual_seed(seed)
    chosen = [torch.randint(len(targets), (BATCH,), generator=random) for _ in range(steps)]
    return [(images[index], targets[index]) for index in chosen]


class Learner(L.LightningModule):
    """What a user writes; nothing in it is about precision."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__()
        self.net, self.rate = net, rate
        self.losses: list[float] = []
        self.start: dict[str, Tensor] = {}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Compute the loss, in float32 as is usual."""
        loss = F.cross_entropy(self.net(batch[0]).float(), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train what requires a gradient."""
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.rate)

    def on_train_start(self) -> None:
        """Keep the initial values, as the optimizer has them."""
        self.start = {n: p.detach().clone() for n, p in self.named_parameters() if p.requires_grad}

    def figures(self) -> dict[str, Any]:
        """Return the shares of entries that moved, and the loss."""
        now = dict(self.named_parameters())
        kinds = {"A": "lora_A", "B": "lora_B", "head": "head"}
        shares = {
            kind: [(now[n] != p).float().mean().item() for n, p in self.start.items() if key in n]
            for kind, key in kinds.items()
        }
        found: dict[str, Any] = {kind: statistics.mean(values) for kind, values in shares.items()}
        return {**found, "loss": statistics.mean(self.losses[-LAST:])}


def by_lightning(precision: str, dtype: str | None, steps: int, rate: float, seed: int) -> Learner:
    """Train with a trainer and the callback."""
    module = Learner(backbone(seed), rate)
    trainer = L.Trainer(
        callbacks=[lp.PEFT("lora", rank=RANK, adapter_dtype=dtype)],
        precision=precision,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches(steps, seed), batch_size=None))
    return module


def by_peft(steps: int, rate: float, seed: int) -> Learner:
    """Train with peft alone, in a plain loop."""
    net = backbone(seed)
    targets = [
        name
        for name, part in net.named_modules()
        if isinstance(part, nn.Linear) and "blocks." in name
    ]
    config = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=targets, modules_to_save=["head"]
    )
    module = Learner(peft.get_peft_model(net.bfloat16(), config, autocast_adapter_dtype=True), rate)
    module.net.train()
    module.on_train_start()
    optimizer = module.configure_optimizers()
    for index, (images, target) in enumerate(batches(steps, seed)):
        optimizer.zero_grad()
        module.training_step((images.bfloat16(), target), index).backward()
        optimizer.step()
    return module


VARIANTS = {
    "float32": partial(by_lightning, "32-true", None),
    "bf16-true": partial(by_lightning, "bf16-true", None),
    "bf16-true, as cast": partial(by_lightning, "bf16-true", "bfloat16"),
    "peft, bfloat16": by_peft,
    "16-true": partial(by_lightning, "16-true", None),
}


def measured(name: str, steps: int, rate: float, seed: int = 0) -> dict[str, Any]:
    """Train a variant.

    Returns:
        The shares of entries of ``A``, ``B`` and ``head`` that moved, and the ``loss``.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return VARIANTS[name](steps, rate, seed).figures()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    table = Table("variant", "A moved", "B moved", "head moved", "loss, each seed")
    for name in VARIANTS:
        runs = [measured(name, given.steps, given.rate, seed) for seed in range(given.seeds)]
        shares = [f"{statistics.mean(run[k] for run in runs):.1%}" for k in ("A", "B", "head")]
        table.add_row(name, *shares, ", ".join(f"{run['loss']:.3f}" for run in runs))
        print(name, runs, flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
