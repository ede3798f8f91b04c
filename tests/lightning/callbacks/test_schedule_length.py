"""How long a schedule is: the optimizer steps of the run, however they are counted."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import RandomDataset
from torch.utils.data import DataLoader, IterableDataset

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.callbacks.schedule import (
    WarmupConstant,
    WarmupCosine,
    WarmupStableDecay,
)
from lightning_peft.lightning.schedules import lr_multiplier
from tests.support.scheduling import RATE, Net, StopAfter, expected, trainer


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({"accumulate_grad_batches": 4}, 4),  # 6 batches: a step after the 4th and after the last
        ({"max_steps": 5}, 5),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"limit_train_batches": 3}, 6),
    ],
    ids=["accumulation", "max_steps", "no epochs", "limited"],
)
def test_the_length_is_counted_in_optimizer_steps(options, total):
    net = Net()
    trainer(WarmupCosine(2), **options).fit(net)
    assert net.used == expected(total, 2)


@pytest.mark.parametrize(
    ("options", "callbacks", "total", "warmup"),
    [
        ({"accumulate_grad_batches": 4, "max_epochs": 3}, [], 6, 2),
        ({"max_steps": 9, "max_epochs": -1}, [], 9, 6),
        ({"max_epochs": 3}, [{0: 3, 1: 2}], 8, 2),
    ],
    ids=["accumulation", "no epochs", "changing accumulation"],
)
def test_an_epoch_of_warmup_is_the_optimizer_steps_of_the_first_epoch(
    options, callbacks, total, warmup
):
    net = Net()
    changing = [L.callbacks.GradientAccumulationScheduler(c) for c in callbacks]
    trainer(WarmupCosine("1 epoch"), *changing, **options).fit(net)
    assert net.used == expected(total, warmup)


@pytest.mark.parametrize("warmup", [2, 500, 0.1])
def test_fast_dev_run(warmup):
    net = Net()
    trainer(WarmupCosine(warmup), fast_dev_run=True).fit(net)
    assert len(net.used) == 1


@pytest.mark.parametrize("options", [{"limit_train_batches": 0}, {"max_steps": 0}])
def test_a_fit_that_trains_nothing_needs_no_schedule(options):
    runner = trainer(WarmupCosine(500), **options)
    runner.fit(Net())
    assert runner.lr_scheduler_configs == []


class Manual(Net):
    """Manual optimization: two optimizers, the second steps every other batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.rates = ([], [])

    def configure_optimizers(self):
        return (
            torch.optim.SGD([self.layer.weight], lr=RATE),
            torch.optim.SGD([self.layer.bias], lr=16 * RATE),
        )

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).sum()
        self.manual_backward(loss)
        for i, optimizer in enumerate(self.optimizers()):
            if batch_idx % (i + 1) == 0:
                self.rates[i].append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                optimizer.zero_grad()


def test_manual_optimization_follows_the_steps_of_each_optimizer():
    net = Manual()
    trainer(WarmupCosine(2, total_steps=12)).fit(net)
    assert net.rates[0] == [RATE * lr_multiplier(s, 12, 2) for s in range(12)]
    assert net.rates[1] == [16 * RATE * lr_multiplier(s, 12, 2) for s in range(6)]


def test_manual_optimization_has_to_say_its_length():
    with pytest.raises(ScheduleError, match=r"manual optimization .* WarmupCosine\(total_steps="):
        trainer(WarmupCosine()).fit(Manual())


class Endless(Net):
    def train_dataloader(self):
        class Stream(IterableDataset):
            def __iter__(self):
                while True:
                    yield torch.ones(32)

        return DataLoader(Stream(), batch_size=1)


@pytest.mark.parametrize(
    ("net", "options"),
    [(Net, {"max_epochs": -1, "max_time": {"seconds": 1}}), (Endless, {})],
    ids=["unbounded", "no length"],
)
def test_a_run_without_a_length_is_refused(net, options):
    with pytest.raises(ScheduleError, match=r"expected a run of known length.*total_steps="):
        trainer(WarmupCosine(), **options).fit(net())


def test_a_run_without_a_length_can_be_given_one_or_need_none():
    for schedule in (WarmupCosine(2, total_steps=4), WarmupConstant("2 steps")):
        net = Endless()
        trainer(schedule, max_epochs=1, limit_train_batches=4).fit(net)
        assert net.used[:2] == expected(4, 2)[:2]


def test_epochs_of_no_known_length_are_refused():
    with pytest.raises(
        ScheduleError, match=r"WarmupConstant: .*in epochs \(1 epoch\) needs epochs"
    ):
        trainer(WarmupConstant("1 epoch"), max_steps=4).fit(Endless())


def test_an_endless_run_takes_a_warmup_in_epochs_and_refuses_a_part_of_itself():
    net = Net()
    stop = StopAfter(8, None)
    stop.on_train_batch_end = lambda trainer, *args: setattr(
        trainer, "should_stop", trainer.global_step >= 8
    )
    trainer(WarmupConstant("1 epoch"), stop, max_epochs=-1).fit(net)
    assert net.used[:8] == expected(6, 6, "constant", steps=8)
    with pytest.raises(ScheduleError, match=r"a warm-up in percent needs, got max_epochs=-1"):
        trainer(WarmupConstant("10%"), max_epochs=-1).fit(Net())


def test_a_decay_longer_than_the_run_is_refused():
    with pytest.raises(ScheduleError, match=r"the decay of 18 steps is longer than the run of 12"):
        trainer(WarmupStableDecay(0, decay="3 epochs")).fit(Net())


@pytest.mark.parametrize(
    ("accumulation", "total"), [({0: 3}, 4), ({0: 1, 1: 2}, 9)], ids=["constant", "changing"]
)
def test_scheduled_accumulation_is_counted(accumulation, total):
    net = Net()
    trainer(WarmupCosine(2), L.callbacks.GradientAccumulationScheduler(accumulation)).fit(net)
    assert net.used == expected(total, 2)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ScheduleError, match=r"WarmupCosine: the warm-up of 13 .* run of 12 steps"):
        trainer(WarmupCosine(13)).fit(Net())


class Forty(Net):
    """40 samples, which are so many batches as the batch size makes of them."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(RandomDataset(32, 40), batch_size=self.batch_size)


def gone_on(path, schedule, batch_size, done=40, **options):
    """Do so many of the 80 steps of four epochs, and go on with other settings."""
    trainer(WarmupCosine(2), StopAfter(done, path), max_epochs=4).fit(Forty(2))
    net = Forty(batch_size)
    options = {"max_epochs": 4, **options}
    trainer(schedule, **options).fit(net, ckpt_path=path)
    return net


# the loader of this test gives the same batches in every run, so there is nothing to resume in it
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize(
    ("done", "batch_size", "options", "total"),
    [
        (40, 4, {}, 40 + 2 * 10),
        (40, 2, {"accumulate_grad_batches": 3}, 40 + 2 * 7),
        (40, 8, {"accumulate_grad_batches": 2, "max_epochs": 5}, 40 + 3 * 3),
        (30, 2, {"accumulate_grad_batches": 5}, 30 + 2 + 2 * 4),
        (40, 4, {"max_steps": 55}, 55),
    ],
    ids=["batch size", "accumulation", "both and epochs", "in an epoch", "max_steps"],
)
def test_a_run_that_goes_on_is_as_long_as_what_is_done_and_what_remains(
    tmp_path, done, batch_size, options, total
):
    words = rf"total_steps=80.*total_steps={total},.* {done} steps are done and {total - done} rem"
    with pytest.warns(UserWarning, match=words):
        net = gone_on(tmp_path / "a.ckpt", WarmupCosine(2), batch_size, done, **options)
    assert net.used == expected(total, 2)[done:]


def test_going_on_with_the_same_settings_says_nothing(tmp_path):
    net = gone_on(tmp_path / "a.ckpt", WarmupCosine(2), 2)
    assert net.used == expected(80, 2)[40:]


@pytest.mark.filterwarnings("ignore:.*the checkpoint was made with")
@pytest.mark.parametrize(
    ("schedule", "sequence"),
    [
        (WarmupCosine("3 epochs"), expected(60, 20 + 20 + 10)),
        (WarmupCosine(45), expected(60, 45)),  # of the 40 steps of an uninterrupted run too many
        (
            WarmupStableDecay(0, decay="2 epochs"),
            expected(60, 0, "warmup_stable_decay", decay_fraction=20 / 60),
        ),
    ],
    ids=["warm-up in epochs", "warm-up in steps", "decay in epochs"],
)
def test_lengths_in_a_run_that_goes_on_are_of_its_own_epochs(tmp_path, schedule, sequence):
    assert gone_on(tmp_path / "a.ckpt", schedule, 4).used == sequence[40:]


def test_a_warmup_longer_than_the_run_that_goes_on_is_refused(tmp_path):
    with pytest.raises(ScheduleError, match=r"warm-up of 61 .* run of 60 steps"):
        gone_on(tmp_path / "a.ckpt", WarmupCosine(61), 4)


def test_a_decay_in_epochs_is_of_the_last_ones():
    net = Net()
    changing = L.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    trainer(WarmupStableDecay(0, decay="1 epoch"), changing).fit(net)  # 6 steps, and 3
    assert net.used == expected(9, 0, "warmup_stable_decay", decay_fraction=3 / 9)
