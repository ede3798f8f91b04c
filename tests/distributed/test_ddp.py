"""The callback on two processes (gloo, on the CPU)."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from tests.trainers import quiet_trainer
from tests.zoo import CLASSES, build

# torch's threads are idle at the fork, and the children run on one thread each
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


class Images(L.LightningModule):
    def __init__(self, backbone):
        super().__init__()
        self.net = build(backbone)

    def training_step(self, batch):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(8, 3, 32, 32, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(8) % CLASSES), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Keep(L.Callback):
    """Leaves the weights of each rank."""

    def __init__(self, directory):
        self.directory = directory

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), self.directory / f"{trainer.global_rank}.pt")


@pytest.mark.parametrize("method", ["lora", "ssf", "fact_tk", "ladder"])
def test_every_rank_ends_with_the_same_adapter(method, tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # set by the launcher; put back afterwards
        monkeypatch.delenv(name)
    module = Images("vit")
    start = {name: value.clone() for name, value in module.state_dict().items()}
    method = lp.create_method(method, **({"rank": 2} if method in ("lora", "fact_tk") else {}))
    options = {"max_epochs": 2, "devices": 2, "strategy": "ddp_fork"}
    quiet_trainer(lp.PEFT(method), Keep(tmp_path), **options).fit(module)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    new = set(first) - set(start)
    assert new
    assert not torch.equal(first["net.head.weight"], start["net.head.weight"])


class Synchronise(L.Callback):
    """Does what ``Trainer(sync_batchnorm=True)`` does, which wants a GPU."""

    def on_fit_start(self, trainer, pl_module):
        nn.SyncBatchNorm.convert_sync_batchnorm(pl_module)


def test_frozen_batchnorm_stays_still_when_it_is_synchronised():
    module = Images("resnet")
    callbacks = [Synchronise(), lp.PEFT("conv_adapter")]
    quiet_trainer(*callbacks, max_epochs=1).fit(module)
    layers = [m for m in module.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert layers
    assert all(int(layer.num_batches_tracked) == 0 for layer in layers)
