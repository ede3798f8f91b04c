"""The callback where the loop is not the Trainer's usual one."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
)
from torch import nn

import lightning_peft as lp
from tests.support.runs import Classifier, differing, equal, images, state_of, trainer
from tests.support.zoo import build


class ByHand(Classifier):
    """Manual optimization: one optimizer for the head, one for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self):
        head = list(self.net.head.parameters())
        rest = [p for n, p in self.net.named_parameters() if not n.startswith("head.")]
        return [torch.optim.SGD(head, lr=0.1), torch.optim.AdamW(rest, lr=0.01)]


def test_manual_optimization_with_two_optimizers_resumes_bit_equal(tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = ByHand()
        keep = ModelCheckpoint(tmp_path / str(ckpt_path is None), filename="{epoch}", save_top_k=-1)
        tr = trainer(tmp_path, lp.PEFT("lora", rank=2), keep, max_epochs=epochs)
        tr.fit(module, images(), images(), ckpt_path=ckpt_path)
        return state_of(module)

    whole = run(3)
    assert differing(run(3, tmp_path / "True" / "epoch=0.ckpt"), whole) == set()


class TwoNetworks(L.LightningModule):
    """A generator and a discriminator, of which one is a pretrained backbone to adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.judge, self.make = build("vit"), nn.Linear(4, 3 * 32 * 32)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        fake = self.make(torch.randn(4, 4)).view(4, 3, 32, 32)
        self.toggle_optimizer(first)
        loss = nn.functional.cross_entropy(self.judge(fake.detach()), torch.zeros(4).long())
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        loss = nn.functional.cross_entropy(self.judge(fake), torch.ones(4).long())
        self.manual_backward(loss)
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.judge.parameters(), lr=0.1),
            torch.optim.SGD(self.make.parameters(), lr=0.1),
        ]


def test_toggled_optimizers_leave_the_backbone_frozen(tmp_path: Path) -> None:
    module = TwoNetworks()
    before = state_of(module)
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2, backbone="judge"), max_epochs=2)
    tr.fit(module, images())
    after = {
        n.replace(".base_layer", ""): t for n, t in state_of(module).items() if "lora" not in n
    }
    moved = differing(before, after)
    assert moved == {"judge.head.weight", "judge.head.bias", "make.weight", "make.bias"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's use of jsonargparse
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run")
def test_the_command_line_of_lightning_itself(tmp_path: Path) -> None:
    from lightning.pytorch.cli import LightningCLI

    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return images()

        val_dataloader = train_dataloader

    settings = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(tmp_path),
    }
    words = [f"--trainer.{key}={value}" for key, value in settings.items()]
    cli = LightningCLI(
        Classifier,
        Data,
        args=[
            "fit",
            "--trainer.callbacks+=lightning_peft.PEFT",
            "--trainer.callbacks.method=ssf",
            *words,
        ],
        save_config_callback=None,
        seed_everything_default=0,
    )
    adaptation = lp.find_adaptation(cli.model.net)
    assert adaptation is not None
    assert adaptation.method == lp.SSF()


def test_fabric_takes_an_adapted_model_and_a_few_lines(tmp_path: Path) -> None:
    from lightning.fabric import Fabric

    def run(steps: int, resume: bool) -> dict[str, torch.Tensor]:
        fabric = Fabric(accelerator="cpu", devices=1)
        torch.manual_seed(0)
        net = build("vit")
        adaptation = lp.adapt(net, lp.LoRA(rank=2))
        optimizer = torch.optim.AdamW(adaptation.trained_parameters(), lr=0.01)
        model, optimizer = fabric.setup(net, optimizer)
        done = 0
        if resume:
            held = fabric.load(tmp_path / "state.ckpt")
            adaptation.load_state_dict(held["adapter"])
            optimizer.load_state_dict(held["optimizer"])
            done = held["step"]
        batches = list(fabric.setup_dataloaders(images()))
        for step in range(done, steps):
            x, y = batches[step % len(batches)]
            fabric.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        state = {
            "adapter": adaptation.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": steps,
        }
        fabric.save(tmp_path / "state.ckpt", state)
        return state_of(net)

    whole = run(4, resume=False)
    run(2, resume=False)
    assert equal(run(4, resume=True), whole)


def test_a_requeued_job_of_slurm_goes_on_from_the_checkpoint_that_was_left(tmp_path: Path) -> None:
    def run(epochs: int) -> tuple[L.Trainer, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        module = Classifier()
        tr = trainer(tmp_path, lp.PEFT("lora", rank=2), max_epochs=epochs)
        tr.fit(module, images(), images())
        return tr, state_of(module)

    _, whole = run(3)
    stopped, _ = run(1)
    # what Lightning does when Slurm says that the time is up
    stopped.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    content = torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)
    assert not any("base_layer" in name for name in content["state_dict"])
    _, requeued = run(3)  # it is found by itself
    assert equal(requeued, whole)
