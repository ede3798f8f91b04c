"""``PEFT("existing")`` on two processes (gloo, on the CPU)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader, DistributedSampler

import lightning_peft as lp
from tests.lightning.test_existing import CONFIGS, IDS, Module, base
from tests.support.ranks import run_ranks
from tests.support.trainers import quiet_trainer

# torch's threads are idle at the fork, and the children run on one thread each
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


class Descent(Module):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.5)


def train(world: int, kinds: tuple[str, ...], directory: Path) -> None:
    """Train each kind on the same examples a step, whatever the number of processes."""
    rank = int(os.environ.get("RANK", "0"))
    found: dict[str, Any] = {}
    for kind in kinds:
        torch.manual_seed(0)
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        module = Descent(lambda k=kind, d=dropout: peft.get_peft_model(base(**d), CONFIGS[k]()))
        trainer = quiet_trainer(
            lp.PEFT("existing"), lp.WarmupCosine(warmup=0.5), EMAWeightAveraging(decay=0.5),
            max_epochs=2, devices=world, strategy="ddp" if world > 1 else "auto",
            use_distributed_sampler=False,
        )  # fmt: skip
        part = DistributedSampler(IDS, world, rank, shuffle=False)
        trainer.fit(module, DataLoader(IDS, batch_size=2 // world, sampler=part))
        trained = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
        found[kind] = trained
    torch.save(found, directory / f"{world}-{rank}.pt")


@pytest.mark.parametrize(
    "kinds", [("lora", "p"), pytest.param(tuple(CONFIGS), marks=pytest.mark.slow)], ids=len
)
def test_two_processes_train_as_one_with_the_doubled_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    train(1, kinds, tmp_path)
    run_ranks(2, train, 2, kinds, tmp_path)
    one, first, second = (torch.load(tmp_path / f"{n}.pt") for n in ("1-0", "2-0", "2-1"))
    assert set(one) == set(kinds)
    for kind, tensors in one.items():
        assert tensors
        for name, tensor in tensors.items():
            assert torch.equal(first[kind][name], second[kind][name]), (kind, name)
            torch.testing.assert_close(first[kind][name], tensor, rtol=1e-4, atol=1e-6)
