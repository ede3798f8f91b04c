"""Several processes for one test, as ``torchrun`` would start them (gloo, on the CPU)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.support.zoo import CLASSES, build


def run_ranks(world: int, function: Callable[..., None], *args: Any) -> None:
    """Run ``function(*args)`` in ``world`` processes; the first error stops all and is raised.

    The processes are forked: what the test has imported need not be imported again.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(
        _as_rank, args=(world, port, function, args), nprocs=world, start_method="fork"
    )


def _as_rank(
    rank: int, world: int, port: int, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    function(*args)


class Images(L.LightningModule):
    """A backbone of the zoo, a layer of its own beside it, eight images in a fixed order."""

    def __init__(
        self, backbone: str = "vit", batch_size: int = 2, optimizer: str = "AdamW"
    ) -> None:
        super().__init__()
        self.batch_size, self.optimizer = batch_size, optimizer
        torch.manual_seed(0)
        self.net = build(backbone)
        self.scale = nn.Linear(CLASSES, CLASSES)

    def setup(self, stage: str) -> None:
        torch.manual_seed(0)  # the adapter, made next, is the same under every strategy

    def training_step(self, batch):
        images, labels = batch
        return nn.functional.cross_entropy(self.scale(self.net(images)), labels)

    def test_step(self, batch):
        self.log("loss", self.training_step(batch), sync_dist=True)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(8, 3, 32, 32, generator=generator)
        data = TensorDataset(images, torch.arange(8) % CLASSES)
        sampler = None
        if torch.distributed.is_initialized():  # Lightning's own would shuffle
            sampler = DistributedSampler(data, shuffle=False)
        return DataLoader(data, batch_size=self.batch_size, sampler=sampler)

    test_dataloader = train_dataloader

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return getattr(torch.optim, self.optimizer)(trained, lr=1e-2)


def whole(module: nn.Module) -> dict[str, torch.Tensor]:
    """Give the weights of a module, put together where they are sharded; on every rank."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in module.named_parameters()
    }


def leave(module: nn.Module, path: Path) -> None:
    """Write the weights of a module for the test to read, from the first rank."""
    weights = whole(module)
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(weights, path)
