"""The rates that a schedule gives a run, resumed ones included."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.callbacks.schedule import (
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
)
from lightning_peft.lightning.schedules import Multiplier, MultiplierLR, lr_multiplier
from tests.support.scheduling import BATCHES, Net, StopAfter, expected, trainer


@pytest.mark.parametrize(
    ("schedule", "sequence"),
    [
        (WarmupCosine(0.25), expected(12, 3)),
        (WarmupCosine(4, final=0.2), expected(12, 4, final=0.2)),
        (WarmupLinear(0.25), expected(12, 3, "linear")),
        (WarmupConstant(3), expected(12, 3, "constant")),
        (WarmupConstant(0.25), expected(12, 3, "constant")),
        (
            WarmupStableDecay(2, decay=0.5),
            expected(12, 2, "warmup_stable_decay", decay_fraction=0.5),
        ),
        (WarmupCosine(0.1, total_steps=40), expected(40, 4, steps=12)),
        (WarmupCosine("25%"), expected(12, 3)),
        (WarmupLinear("4 steps"), expected(12, 4, "linear")),
        (WarmupConstant("1 epoch"), expected(12, 6, "constant")),
        (WarmupCosine("0.5 epochs"), expected(12, 3)),
        (
            WarmupStableDecay("2 steps", decay="1 epoch"),
            expected(12, 2, "warmup_stable_decay", decay_fraction=0.5),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, L.Callback) else "",
)
def test_every_step_uses_the_scheduled_rate(schedule, sequence):
    net = Net()
    trainer(schedule).fit(net)
    assert net.used == sequence


def test_a_second_fit_starts_the_schedule_again():
    net, schedule = Net(), WarmupCosine(2)
    for _ in range(2):
        net.used = []
        trainer(schedule, max_epochs=1).fit(net)
        assert net.used == expected(6, 2)


def test_a_trainer_that_goes_on_continues_the_schedule():
    net = Net()
    going = trainer(WarmupCosine(2, total_steps=12), max_epochs=1)
    going.fit(net)
    going.fit_loop.max_epochs = 2
    going.fit(net)
    assert net.used == expected(12, 2)


# the loader of this test gives the same batches in every run, so there is nothing to resume in it
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("step", [4, 6, 9], ids=["in an epoch", "epoch end", "second epoch"])
def test_a_resumed_run_has_the_rates_of_the_uninterrupted_one(tmp_path, step):
    def run(path=None, *callbacks):
        L.seed_everything(3, verbose=False)
        net = Net()
        trainer(WarmupCosine(3), *callbacks).fit(net, ckpt_path=path)
        return net

    whole = run()
    first = run(None, StopAfter(step, tmp_path / "stop.ckpt"))
    rest = run(tmp_path / "stop.ckpt")
    assert first.used[:step] + rest.used == whole.used == expected(12, 3)
    if step == BATCHES:
        assert torch.equal(rest.layer.weight, whole.layer.weight)


def test_resuming_with_another_length_says_so_and_follows_the_new_one(tmp_path):
    trainer(WarmupCosine(2), StopAfter(6, tmp_path / "a.ckpt")).fit(Net())
    net = Net()
    with pytest.warns(UserWarning, match=r"made with .*total_steps=12.*this run has .*steps=18"):
        trainer(WarmupCosine(2), max_epochs=3).fit(net, ckpt_path=tmp_path / "a.ckpt")
    assert net.used == expected(18, 2)[6:]


def test_resuming_a_run_that_had_no_schedule_starts_where_the_run_is(tmp_path):
    trainer(StopAfter(6, tmp_path / "a.ckpt")).fit(Net())
    net = Net()
    trainer(WarmupCosine(2)).fit(net, ckpt_path=tmp_path / "a.ckpt")
    assert net.used == expected(12, 2)[6:]


def test_resuming_from_another_scheduler_is_refused(tmp_path):
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    trainer(StopAfter(6, tmp_path / "a.ckpt")).fit(Scheduled())
    with pytest.raises(ScheduleError, match="made with another learning-rate scheduler"):
        trainer(WarmupCosine(2)).fit(Net(), ckpt_path=tmp_path / "a.ckpt")


def test_the_checkpoint_holds_the_schedule(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    trainer(WarmupCosine(2), checkpoint, enable_checkpointing=True).fit(Net())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["lr_schedulers"]
    assert len(saved) == 1
    assert saved[0]["last_epoch"] == 12
    assert Multiplier(**saved[0]["multiplier"]) == Multiplier(12, 2)


def test_learning_rate_monitor_sees_it(tmp_path):
    monitor = LearningRateMonitor()
    logger = CSVLogger(tmp_path)
    trainer(WarmupCosine(2), monitor, logger=logger, log_every_n_steps=1).fit(Net())
    assert monitor.lrs["lr-SGD/pg1"] == [first for first, _ in expected(12, 2)]
    assert monitor.lrs["lr-SGD/pg2"] == [second for _, second in expected(12, 2)]


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_learning_rate_finder_is_not_distorted(tmp_path, order):
    def find(*callbacks):
        L.seed_everything(5, verbose=False)
        net = Net()
        finder = LearningRateFinder(num_training_steps=15, early_stop_threshold=None)
        both = (finder, *callbacks) if order == "before" else (*callbacks, finder)
        trainer(*both, max_epochs=4, default_root_dir=tmp_path).fit(net)
        return finder, net

    alone, _ = find()
    beside, net = find(WarmupCosine(2))
    assert beside.optimal_lr.results == alone.optimal_lr.results
    # what it suggests is the full rate of the schedule that follows
    found = beside.optimal_lr.suggestion()
    assert net.used[-24:] == [[found * lr_multiplier(s, 24, 2)] * 2 for s in range(24)]


def test_tuner_lr_find_is_not_distorted(tmp_path):
    def find(*callbacks):
        L.seed_everything(5, verbose=False)
        net = Net()
        runner = trainer(*callbacks, max_epochs=4, default_root_dir=tmp_path)
        finder = Tuner(runner).lr_find(net, num_training=15, early_stop_threshold=None)
        net.used = []
        runner.fit(net)
        return finder, net

    alone, _ = find()
    beside, net = find(WarmupCosine(2))
    assert beside.results == alone.results
    full = beside.suggestion()
    assert [first for first, _ in net.used] == [full * lr_multiplier(s, 24, 2) for s in range(24)]


def test_an_optimizer_that_has_a_scheduler_is_refused():
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(ScheduleError, match=r"already has a scheduler \(StepLR\)"):
        trainer(WarmupCosine()).fit(Scheduled())


def test_two_schedules_are_refused():
    with pytest.raises(ScheduleError, match=r"WarmupLinear: .* has a scheduler \(MultiplierLR\)"):
        trainer(WarmupCosine(), WarmupLinear()).fit(Net())


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.* returned .None.*:UserWarning")
def test_no_optimizer_is_refused():
    class Without(Net):
        def configure_optimizers(self):
            return None

    with pytest.raises(ScheduleError, match="Without returns no optimizer"):
        trainer(WarmupCosine()).fit(Without())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmupCosine(True), r"expected warmup as a part of the run .* got True"),
        (lambda: WarmupCosine("0.1"), r"as a part .*'500 steps'.*'2 epochs'.* got '0.1'"),
        (lambda: WarmupCosine("3"), r"0.1 or '10%'.*'500 steps'.*'2 epochs'.* got '3'"),
        (lambda: WarmupCosine(1.0), r"'500 steps'.*'2 epochs'.* got 1.0: .*point .* in \[0, 1\)"),
        (lambda: WarmupLinear(-1), r"WarmupLinear: expected warmup to be from 0, got -1"),
        (lambda: WarmupCosine(final=1.5), r"expected final to be a part .* got 1.5"),
        (lambda: WarmupCosine(total_steps=0), r"expected total_steps .* from 1, got 0"),
        (lambda: WarmupStableDecay(decay=2.0), r"expected decay as a part .* got 2"),
        (lambda: WarmupCosine(-1, final=2, total_steps=0.5), r"warmup .*; .*final .*; .*total_st"),
    ],
)
def test_impossible_arguments_are_refused(make, message):
    with pytest.raises(ScheduleError, match=message):
        make()


def test_the_schedule_belongs_to_the_trainers_own_namespace():
    runner = trainer(WarmupCosine(), max_epochs=1)
    runner.fit(Net())
    (config,) = runner.lr_scheduler_configs
    assert type(config).__module__ == "lightning.pytorch.utilities.types"
    assert isinstance(config.scheduler, MultiplierLR)
