"""The callback on two processes (gloo, on the CPU)."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.multiprocessing import ProcessRaisedException

import lightning_peft as lp
from tests.contract.cases import REFUSED, SETTINGS
from tests.support.ranks import Images, run_ranks, whole
from tests.support.trainers import quiet_trainer

# torch's threads are idle at the fork, and the children run on one thread each
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


class Keep(L.Callback):
    """Leaves the weights of each rank."""

    def __init__(self, directory):
        self.directory = directory

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), self.directory / f"{trainer.global_rank}.pt")


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        *((method, "vit") for method in ("lora", "fact_tk", "ladder")),
        ("ssf", "eva"),  # in the weight
    ],
)
def test_every_rank_ends_with_the_same_adapter(method, backbone, tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # set by the launcher; put back afterwards
        monkeypatch.delenv(name)
    module = Images(backbone)
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
    head = next(name for name in start if name.endswith("head.weight"))
    assert not torch.equal(first[head], start[head])


def test_every_rank_is_pulled_to_one_start_and_has_one_average(tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    module = Images()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    stages = lp.BackboneFreeze(unfreeze=[{"epoch": 1, "layers": "last:1"}])
    callbacks = [lp.PEFT("linear_probe"), stages, lp.L2SP(0.5), EMAWeightAveraging(decay=0.5)]
    options = {"max_epochs": 3, "devices": 2, "strategy": "ddp_fork"}
    quiet_trainer(*callbacks, Keep(tmp_path), **options).fit(module)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    moved = {name for name, value in first.items() if not torch.equal(value, start[name])}
    assert any(name.startswith("net.blocks.1.") for name in moved)
    assert not any(name.startswith("net.blocks.0.") for name in moved)


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


ON_THE_VIT = [name for name in lp.list_methods() if name != "hf" and (name, "vit") not in REFUSED]


def fit_every_method(world: int, directory) -> None:
    """Train every method for a few steps: a second step finds what the first did not use."""
    differing = {}
    for name in ON_THE_VIT:
        module = Images()
        method = lp.create_method(name, **SETTINGS.get(name, {}))
        trainer = quiet_trainer(lp.PEFT(method), strategy="ddp", devices=world, max_epochs=1)
        trainer.fit(module)
        mine = whole(module)
        for key, value in mine.items():
            first = value.clone()
            torch.distributed.broadcast(first, src=0)
            if not torch.equal(first, value):
                differing.setdefault(name, []).append(key)
    (directory / f"{trainer.global_rank}.json").write_text(json.dumps(differing))


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_no_method_leaves_a_parameter_unused_or_ranks_apart(world, tmp_path):
    run_ranks(world, fit_every_method, world, tmp_path)
    assert len(ON_THE_VIT) > 20
    for rank in range(world):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {}


class Rates(L.Callback):
    """Keeps the learning rate of every step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def schedule(world, directory):
    rates = Rates()
    module = Images(batch_size=1)
    trainer = quiet_trainer(
        lp.PEFT("lora", rank=2),
        lp.WarmupCosine(warmup=0.5),
        rates,
        strategy="ddp",
        devices=world,
        max_epochs=2,
        accumulate_grad_batches=2,
        use_distributed_sampler=False,
    )
    trainer.fit(module)
    (directory / f"{trainer.global_rank}.json").write_text(json.dumps(rates.seen))


def test_a_schedule_is_as_long_as_the_run_under_accumulation_on_two_ranks(tmp_path):
    run_ranks(2, schedule, 2, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first) == 4  # 8 images, 2 ranks, 2 batches a step, 2 epochs
    assert max(first) == first[2] == pytest.approx(1e-2)  # the warm-up is half of the run
    assert first[3] < first[2]


class Breaks(Images):
    def training_step(self, batch, batch_idx):
        if self.global_rank == 1 and batch_idx == 1:
            raise RuntimeError("rank 1 has lost its disk")
        return super().training_step(batch)


def break_one():
    trainer = quiet_trainer(lp.PEFT("lora", rank=2), strategy="ddp", devices=2, max_epochs=2)
    trainer.fit(Breaks())


def test_a_rank_that_fails_stops_the_others_with_its_own_error():
    with pytest.raises(ProcessRaisedException, match="rank 1 has lost its disk"):
        run_ranks(2, break_one)


@pytest.mark.slow
def test_spawned_processes_train_too(tmp_path):
    module = Images()
    trainer = quiet_trainer(
        lp.PEFT("lora", rank=2),
        Keep(tmp_path),
        strategy="ddp_spawn",
        devices=2,
        max_epochs=1,
        use_distributed_sampler=False,
    )
    trainer.fit(module)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
