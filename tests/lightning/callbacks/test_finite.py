import math
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_peft.errors import CheckpointError
from lightning_peft.lightning.callbacks.finite import FiniteLoss, NonFiniteLossError, _Reading
from tests.support.trainers import quiet_trainer


class Toy(pl.LightningModule):
    """Its loss takes the given value at one step, and its gradient at another."""

    def __init__(self, bad_at=None, value=math.nan, bad_gradient_at=None, rank=None):
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.bad_at, self.value, self.bad_gradient_at = bad_at, value, bad_gradient_at
        self.rank = rank
        self.calls = 0
        self.weights = []  # before each training step

    def loss(self, batch):
        self.weights.append(self.net.weight.detach().clone())
        loss = self.net(batch).square().mean()
        here = self.rank is None or self.rank == self.global_rank
        if self.calls == self.bad_at and here:
            loss = loss * 0 + self.value
        if self.calls == self.bad_gradient_at:
            loss = loss + (self.net.weight * 0).sum().sqrt()  # 0, with a gradient of 0 * infinity
        self.calls += 1
        return loss

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.125)


class Manual(Toy):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


def data(n=8, broken=None):
    rows = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    if broken is not None:
        rows[broken] = math.nan
    return DataLoader(rows, batch_size=2)


def plain_trainer(folder, callbacks=(), **options):
    return quiet_trainer(*callbacks, default_root_dir=folder, **{"max_epochs": 2, **options})


def run(module, folder, *callbacks, loader=None, **options):
    options = {"enable_checkpointing": bool(callbacks)} | options
    trainer = plain_trainer(folder, [FiniteLoss(), *callbacks], **options)
    trainer.fit(module, loader or data())
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [Toy, Manual], ids=["automatic", "manual"])
def test_it_stops_before_the_step(tmp_path, kind, value):
    module = kind(bad_at=5, value=value)
    said = rf"finite loss, got {value} \(epoch 1, batch 1, step 5, learning rate 0.125\)"
    with pytest.raises(NonFiniteLossError, match=said):
        run(module, tmp_path)
    assert module.calls == 6
    assert torch.equal(module.net.weight, module.weights[-1])
    assert module.net.weight.isfinite().all()


def test_no_step_is_made_of_a_bad_batch_among_others(tmp_path):
    module = Toy(bad_at=2)
    with pytest.raises(NonFiniteLossError, match=r"epoch 0, batch 2, step 1,"):
        run(module, tmp_path, accumulate_grad_batches=2)
    assert torch.equal(module.net.weight, module.weights[-1])


def test_broken_data_is_named(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"batch 2.*this batch holds NaN or infinity"):
        run(Toy(), tmp_path, loader=data(broken=5))


def test_without_a_reason_it_gives_advice(tmp_path):
    said = r"The weights and this batch are finite. Lower the learning rate.*No checkpoint has"
    with pytest.raises(NonFiniteLossError, match=said):
        run(Toy(bad_at=0), tmp_path)


def test_the_checkpoints_hold_the_good_weights(tmp_path):
    saver = pl.callbacks.ModelCheckpoint(
        tmp_path, save_last=True, save_on_exception=True, every_n_train_steps=3
    )
    module = Toy(bad_at=5)
    with pytest.raises(NonFiniteLossError, match=r"untouched: resume with ckpt_path='.*last.ckpt'"):
        run(module, tmp_path, saver)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    # saved as the error passed: what was trained up to it, and nothing of the bad step
    assert last["global_step"] == 5
    assert torch.equal(last["state_dict"]["net.weight"], module.weights[5])


@pytest.mark.parametrize("weights_only", [False, True], ids=["whole", "weights-only"])
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path, weights_only):
    saver = pl.callbacks.ModelCheckpoint(
        tmp_path,
        filename="good",
        save_last=True,
        every_n_train_steps=1,
        save_weights_only=weights_only,
        enable_version_counter=False,
    )
    module = Toy(bad_gradient_at=3)
    with pytest.raises(
        CheckpointError, match=r"finite weights to save.*1 tensors: net.weight. Noth"
    ):
        run(module, tmp_path, saver)
    for name in ("good", "last"):
        held = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert held["global_step"] == 3
        assert torch.equal(held["state_dict"]["net.weight"], module.weights[3])


def test_a_gradient_that_was_not_finite_is_named_by_the_next_loss(tmp_path):
    module = Toy(bad_gradient_at=3)
    with pytest.raises(NonFiniteLossError, match=r"step 4,.*net.weight is already not finite"):
        run(module, tmp_path)


def test_buffers_may_hold_infinity_but_not_nan(tmp_path):
    module = Toy()
    module.register_buffer("mask", torch.tensor([-math.inf, 0.0]))
    trainer = run(module, tmp_path)
    trainer.save_checkpoint(tmp_path / "fine.ckpt")
    module.mask[1] = math.nan
    with pytest.raises(CheckpointError, match="NaN or infinity in 1 tensors: mask"):
        trainer.save_checkpoint(tmp_path / "not.ckpt")
    assert not (tmp_path / "not.ckpt").exists()


def test_what_is_frozen_is_not_looked_at(tmp_path):
    module = Toy()
    module.frozen = nn.Parameter(torch.tensor(math.nan), requires_grad=False)
    run(module, tmp_path).save_checkpoint(tmp_path / "fine.ckpt")


def test_a_fine_run_is_as_without_it(tmp_path):
    weights = []
    for callbacks in ([], [FiniteLoss()]):
        torch.manual_seed(0)
        module = Toy()
        trainer = plain_trainer(tmp_path, callbacks)
        trainer.fit(module, data())
        weights.append(module.net.weight)
    assert torch.equal(*weights)


def test_what_is_on_its_way_is_read_before_the_step(tmp_path):
    """The path of CUDA, with an event that says when it is waited for."""
    waited = []
    event = SimpleNamespace(synchronize=lambda: waited.append(True))
    callback, module = FiniteLoss(), Toy()
    trainer = SimpleNamespace(optimizers=[], checkpoint_callbacks=[], world_size=1)
    good = _Reading(torch.tensor([0.5, 0.0]), event, "epoch 0, batch 0, step 0", None)
    bad = _Reading(torch.tensor([math.nan, 1.0]), event, "epoch 0, batch 1, step 0", None)
    callback._pending = [good, bad]
    with pytest.raises(NonFiniteLossError, match=r"got nan \(epoch 0, batch 1"):
        callback.on_before_optimizer_step(trainer, module, None)
    assert waited == [True, True]
    assert callback._pending == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(tmp_path):
    module = Toy(bad_at=5)
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, batch 1, step 5"):
        run(module, tmp_path, accelerator="gpu", devices=1)
    assert torch.equal(module.net.weight.cpu(), module.weights[-1].cpu())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_all_ranks_stop_when_one_has_to(tmp_path):
    module = Toy(bad_at=2, rank=1)
    with pytest.raises(Exception, match=r"NonFiniteLossError.*step 2, .* on 1 of 2 ranks"):
        run(module, tmp_path, strategy="ddp_fork", devices=2)
