"""A run that a signal stops ends after its step, and goes on as if it had not been stopped."""

import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.lightning import signals
from lightning_peft.lightning.signals import LISTENER, SIGNALS, Stopped

BATCHES, EPOCHS = 4, 2


class Tiny(pl.LightningModule):
    """A linear model whose batches come in the order of the data, with a dropout that draws."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.3))
        self.validated = []

    def loss(self, batch):
        return self.net(batch[0]).square().mean()

    def training_step(self, batch, index):
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.log("val/loss", self.loss(batch))

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            value = float(self.trainer.callback_metrics["val/loss"])
            self.validated.append((self.trainer.global_step, value))

    def train_dataloader(self):
        return _loader(BATCHES)

    def val_dataloader(self):
        return _loader(3)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3)}]


class Stateful(DataLoader):
    """Lightning takes it for resumable; the batches are alike, so it is."""

    def __iter__(self):
        return super().__iter__()

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def _loader(batches):
    one = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    # an iterator draws a seed for its workers: not from the numbers of the dropout
    return Stateful(TensorDataset(one.repeat(batches, 1)), batch_size=2, generator=torch.Generator())


class SignalIn(pl.Callback):
    """Sends a signal to this very process, the n-th time that a hook is called."""

    def __init__(self, hook, count=1, number=signal.SIGTERM):
        self.left = count

        def send(trainer, *args):
            if trainer.sanity_checking:
                return
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), number)

        setattr(self, hook, send)


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before
    assert not LISTENER.waits
    LISTENER.forget_the_time()
    LISTENER.reset()


def fit(path, *callbacks, ckpt_path=None, stop=True, **options):
    torch.manual_seed(3)
    module = Tiny()
    best = ModelCheckpoint(path, "best", monitor="val/loss", enable_version_counter=False)
    last = ModelCheckpoint(path, "last", enable_version_counter=False)
    trainer = pl.Trainer(
        **{"max_epochs": EPOCHS, **options},
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lp.GracefulStop(grace=20), best, last, *callbacks],
        default_root_dir=path,
    )
    module.best = best
    trainer.fit(module, ckpt_path=ckpt_path)
    return module


def stopped(path, *callbacks, **options):
    with pytest.raises(Stopped) as caught:
        fit(path, *callbacks, **options)
    return caught.value


PLACES = [
    ("on_train_batch_start", 1),
    ("on_before_optimizer_step", 2),
    ("on_train_batch_start", BATCHES),
    ("on_validation_start", 1),
    ("on_validation_batch_start", 2),
    ("on_validation_end", 1),
    ("on_train_epoch_end", 1),
    ("on_train_batch_start", BATCHES + 2),
    ("on_train_batch_start", EPOCHS * BATCHES),
    ("on_validation_batch_end", 5),
    ("on_validation_end", 2),
    ("on_train_epoch_end", 2),
]
LENGTHS = {
    "epochs": {},
    "steps": {"max_epochs": -1, "max_steps": EPOCHS * BATCHES},
    "twice an epoch": {"val_check_interval": 2},
    "accumulated": {"accumulate_grad_batches": 2},
    "every other epoch": {"check_val_every_n_epoch": 2},
}


@pytest.mark.parametrize("options", LENGTHS.values(), ids=LENGTHS.keys())
def test_it_goes_on_as_if_it_had_not_been_stopped(tmp_path, options):
    whole = fit(tmp_path / "whole", **options)
    for hook, count in PLACES:
        path = tmp_path / f"{hook}{count}"
        try:
            fit(path, SignalIn(hook, count), **options)
        except Stopped as stop:
            assert stop.code == 143
        else:
            assert not any(step for step, _ in whole.validated if "validation" not in hook)
            continue
        again = fit(path, ckpt_path=path / "last.ckpt", **options)
        for name, weight in whole.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name]), (hook, count, name)
        assert again.validated == whole.validated[len(whole.validated) - len(again.validated) :]
        assert again.best.best_model_score == whole.best.best_model_score, (hook, count)
