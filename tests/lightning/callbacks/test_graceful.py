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

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def _loader(batches):
    one = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    # an iterator draws a seed for its workers: not from the numbers of the dropout
    return Stateful(
        TensorDataset(one.repeat(batches, 1)), batch_size=2, generator=torch.Generator()
    )


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


def fit(path, *callbacks, ckpt_path=None, **options):
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


def stop_in(path, hook, count, options):
    try:
        fit(path, SignalIn(hook, count), **options)
    except Stopped as stop:
        return stop
    return None


FEW = [
    ("on_train_batch_start", 1),
    ("on_train_batch_start", BATCHES),
    ("on_validation_end", 1),
    ("on_validation_batch_end", 5),
    ("on_train_epoch_end", 2),
]
MORE = [
    ("on_before_optimizer_step", 2),
    ("on_validation_start", 1),
    ("on_validation_batch_start", 2),
    ("on_train_epoch_end", 1),
    ("on_train_batch_start", BATCHES + 2),
    ("on_train_batch_start", EPOCHS * BATCHES),
    ("on_validation_end", 2),
]
STEPS = {"max_epochs": -1, "max_steps": EPOCHS * BATCHES}
LENGTHS = {
    "epochs": {},
    "steps": STEPS,
    "twice an epoch": {"val_check_interval": 2},
    "accumulated": {"accumulate_grad_batches": 2},
    "every other epoch": {"check_val_every_n_epoch": 2},
}


@pytest.mark.parametrize(
    ("options", "places"),
    [pytest.param(STEPS, FEW, id="steps, some places")]
    + [
        pytest.param(options, FEW + MORE, id=name, marks=pytest.mark.slow)
        for name, options in LENGTHS.items()
    ],
)
def test_it_goes_on_as_if_it_had_not_been_stopped(tmp_path, options, places):
    whole = fit(tmp_path / "whole", **options)
    for hook, count in places:
        path = tmp_path / f"{hook}{count}"
        stop = stop_in(path, hook, count, options)
        if stop is None:  # this run does not come there
            assert "check_val_every_n_epoch" in options
            assert hook.startswith("on_validation")
            continue
        assert stop.code == 143
        again = fit(path, ckpt_path=path / "last.ckpt", **options)
        for name, weight in whole.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name]), (hook, count, name)
        assert again.validated == whole.validated[len(whole.validated) - len(again.validated) :]
        assert again.best.best_model_score == whole.best.best_model_score, (hook, count)


@pytest.mark.parametrize(
    ("options", "step"),
    [({}, 2), ({"accumulate_grad_batches": 2}, 1)],
    ids=["every batch", "accumulated"],
)
def test_only_the_open_step_is_waited_for(tmp_path, options, step):
    batch = 2 if step == 2 else 1
    stop = stopped(tmp_path, SignalIn("on_train_batch_start", batch), **options)
    assert stop.checkpoint == tmp_path / "last.ckpt"
    kept = torch.load(stop.checkpoint, weights_only=True)
    assert kept["global_step"] == step
    assert set(kept) >= {"optimizer_states", "lr_schedulers", "loops", "callbacks"}


@pytest.fixture
def interruptible():
    """A shell lets what it starts in the background ignore SIGINT, and so would the callback."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_the_exit_status_names_the_signal(tmp_path, number):
    stop = stopped(tmp_path, SignalIn("on_train_batch_start", 1, number), max_steps=3)
    assert stop.code == 128 + number


def test_averaged_weights_are_never_taken_for_the_weights(tmp_path):
    """They are in their place during a validation, whose end is waited for."""
    stop = stopped(tmp_path, SignalIn("on_validation_batch_start", 1), WeightAveraging())
    kept = torch.load(stop.checkpoint, weights_only=True)
    assert kept["global_step"] == BATCHES + 1
    again = fit(tmp_path, WeightAveraging(), ckpt_path=stop.checkpoint)
    whole = fit(tmp_path / "whole", WeightAveraging())
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_a_validation_alone_ends_at_once(tmp_path):
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[lp.GracefulStop(), SignalIn("on_validation_batch_start", 2)],
        default_root_dir=tmp_path,
    )
    with pytest.raises(Stopped) as caught:
        trainer.validate(Tiny(), verbose=False)
    assert (caught.value.code, caught.value.checkpoint) == (143, None)


def test_without_a_checkpoint_callback_it_is_below_the_directory_of_the_trainer(tmp_path):
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        max_steps=3,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[lp.GracefulStop(), SignalIn("on_train_batch_start")],
        default_root_dir=tmp_path,
    )
    with pytest.raises(Stopped):
        trainer.fit(Tiny())
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_what_others_handle_or_ignore_is_left_to_them(tmp_path):
    heard = []
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sends = [SignalIn("on_train_batch_start", 1, n) for n in (signal.SIGUSR1, signal.SIGHUP)]
        module = fit(tmp_path, *sends)
        assert module.trainer.global_step == EPOCHS * BATCHES
        assert heard == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_handler_of_the_users_own_hears_sigterm_too(tmp_path):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        stopped(tmp_path, SignalIn("on_train_batch_start"))
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_lightnings_requeue_under_slurm_keeps_its_signal(tmp_path, monkeypatch):
    from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    heard = []
    monkeypatch.setattr(
        _SignalConnector,
        "_slurm_sigusr_handler_fn",
        lambda self, number, frame: heard.append(number),
    )
    sends = SignalIn("on_train_batch_start", 1, signal.SIGUSR1)
    with LISTENER.listening():  # as the command does, before there is a trainer
        module = fit(tmp_path, sends, plugins=[SLURMEnvironment(requeue_signal=signal.SIGUSR1)])
    assert heard == [signal.SIGUSR1]
    assert module.trainer.global_step == EPOCHS * BATCHES


@pytest.mark.parametrize("grace", [0, -1, float("nan"), float("inf"), "30", True])
def test_a_grace_period_that_is_none_is_refused(grace):
    with pytest.raises(ValueError, match="GracefulStop: expected grace as a positive number of se"):
        lp.GracefulStop(grace=grace)
