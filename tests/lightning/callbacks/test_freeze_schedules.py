"""The learning rates of the stages, under each kind of schedule."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import lr_scheduler

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.callbacks.freeze import BackboneFreeze
from lightning_peft.lightning.callbacks.schedule import WarmupCosine
from lightning_peft.lightning.schedules import lr_multiplier
from tests.support.freezing import STAGES, Record, seeded, trainer


def test_a_learning_rate_finder_finds_the_rate_of_the_head(tmp_path):
    net = seeded(optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=m.lr))
    net.lr = 0.1
    finder = LearningRateFinder(num_training_steps=15, early_stop_threshold=None)
    options = {"default_root_dir": tmp_path, "max_epochs": 8}
    runner = trainer(BackboneFreeze(unfreeze=STAGES), finder, **options)
    runner.fit(net)
    rates = [group["lr"] for group in runner.optimizers[0].param_groups]
    assert rates == [net.lr, 0.03, 0.02]
    assert net.lr != 0.1


def test_learning_rate_monitor_names_the_stages(tmp_path):
    monitor = LearningRateMonitor()
    freeze = BackboneFreeze(unfreeze=STAGES)
    logger = CSVLogger(tmp_path)
    trainer(freeze, monitor, logger=logger, log_every_n_steps=1).fit(seeded())
    assert set(monitor.lrs) == {
        "lr-AdamW/pg1", "lr-AdamW/stage0_epoch1", "lr-AdamW/stage1_epoch2"
    }  # fmt: skip


@pytest.mark.parametrize("first", ["schedule", "freeze"])
def test_a_schedule_applies_to_the_stages_from_the_start_of_the_run(first):
    used = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            used.append([group["lr"] for group in optimizer.param_groups])

    both = [WarmupCosine(0.25), BackboneFreeze(unfreeze=STAGES)]
    trainer(*(both if first == "schedule" else both[::-1]), Look()).fit(seeded())
    factors = [lr_multiplier(step, 12, 3) for step in range(12)]
    assert used == [[0.1 * f, 0.03 * f, 0.02 * f] for f in factors]


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 2)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "WarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.25, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 4)],
        [2],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_modules_own_scheduler_goes_on_with_the_stages(name):
    """Every group follows the schedule that the same scheduler gives a group of its rate."""

    def optimizer(module):
        made = torch.optim.SGD(module.parameters(), lr=0.1)
        scheduler = SCHEDULERS[name](made)
        return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}

    used = []

    class Look(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            used.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    freeze = BackboneFreeze(unfreeze=STAGES)
    trainer(freeze, Look(), max_epochs=5, limit_val_batches=1).fit(seeded(optimizer=optimizer))
    assert len(used) == 5
    for first, second, third in used:
        assert second == pytest.approx(first * 0.3)
        assert third == pytest.approx(first * 0.2)

    weight = nn.Parameter(torch.zeros(1))
    alone = torch.optim.SGD([weight], lr=0.1)
    scheduler = SCHEDULERS[name](alone)
    if name != "ReduceLROnPlateau":
        for rates in used:
            assert rates[0] == pytest.approx(alone.param_groups[0]["lr"])
            alone.step()
            scheduler.step()
    assert len({tuple(rates) for rates in used}) > 1


def test_a_schedulers_state_is_restored_with_the_stages(tmp_path):
    def optimizer(module):
        made = torch.optim.SGD(module.parameters(), lr=0.1)
        return [made], [lr_scheduler.CosineAnnealingLR(made, 4)]

    whole = seeded(optimizer=optimizer)
    trainer(BackboneFreeze(unfreeze=STAGES), Record(tmp_path)).fit(whole)
    rest = seeded(optimizer=optimizer)
    trainer(BackboneFreeze(unfreeze=STAGES)).fit(rest, ckpt_path=tmp_path / "1.ckpt")
    assert all(map(torch.equal, whole.state_dict().values(), rest.state_dict().values()))


@pytest.mark.parametrize("kind", ["OneCycleLR", "CyclicLR"])
def test_schedulers_with_a_state_of_their_own_a_group_are_refused(kind):
    def optimizer(module):
        made = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        options = {
            "OneCycleLR": {"max_lr": 0.1, "total_steps": 12},
            "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2},
        }
        scheduler = getattr(lr_scheduler, kind)(made, **options[kind])
        return [made], [{"scheduler": scheduler, "interval": "step"}]

    with pytest.raises(ScheduleError, match=f"{kind} cannot be given new parameter groups"):
        trainer(BackboneFreeze(unfreeze=STAGES)).fit(seeded(optimizer=optimizer))
