"""A schedule in the place of those that the module makes, in every shape that it may return."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import lr_scheduler as torch_schedulers

import lightning_peft as lp
from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.callbacks.schedule import WarmupCosine
from lightning_peft.lightning.schedules import lr_multiplier
from tests.lightning.callbacks.test_schedule_length import Manual
from tests.support.scheduling import RATE, Net, expected, trainer


def step(optimizer):
    return torch_schedulers.StepLR(optimizer, 1, 0.1)


def warm(optimizer):  # begins at a rate of 0
    return torch_schedulers.LambdaLR(optimizer, lambda epoch: epoch / 100)


def one_cycle(optimizer):  # overwrites the rates and the momentum of the optimizer
    return torch_schedulers.OneCycleLR(optimizer, [RATE, 16 * RATE], total_steps=99)


def cyclic(optimizer):
    return torch_schedulers.CyclicLR(optimizer, 1e-5, [RATE, 16 * RATE])


def plateau(optimizer):
    scheduler = torch_schedulers.ReduceLROnPlateau(optimizer)
    return {"scheduler": scheduler, "monitor": "nothing that is logged"}


def chained(optimizer):
    parts = [warm(optimizer), step(optimizer)]
    return torch_schedulers.SequentialLR(optimizer, parts, milestones=[3])


class Epochs:
    """A scheduler of timm's kind, for which the module overrides ``lr_scheduler_step``."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = 0.0

    def step(self, epoch):
        raise AssertionError("not to be stepped")

    def state_dict(self):
        return {}

    load_state_dict = state_dict


class Scheduled(Net):
    def __init__(self, make, shape):
        super().__init__()
        self.make, self.shape, self.momentum = make, shape, []

    def configure_optimizers(self):
        groups = super().configure_optimizers().param_groups
        optimizer = torch.optim.SGD(
            [{k: g[k] for k in ("params", "lr")} for g in groups], momentum=0.5
        )
        return self.shape(optimizer, self.make(optimizer))

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        self.momentum += [group["momentum"] for group in optimizer.param_groups]


class OfTimm(Scheduled):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(epoch=self.current_epoch)


def lists(optimizer, scheduler):
    return [optimizer], [scheduler]


def mapping(optimizer, scheduler):
    return {"optimizer": optimizer, "lr_scheduler": scheduler}


def mappings(optimizer, scheduler):
    return ({"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}},)


@pytest.mark.parametrize(
    ("module", "make", "shape"),
    [
        (Scheduled, step, lists),
        pytest.param(Scheduled, warm, mapping, marks=pytest.mark.slow),
        (Scheduled, one_cycle, mappings),
        pytest.param(Scheduled, cyclic, lists, marks=pytest.mark.slow),
        (Scheduled, plateau, mapping),
        pytest.param(Scheduled, chained, lists, marks=pytest.mark.slow),
        (OfTimm, Epochs, lists),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_takes_their_place_with_the_full_rates(module, make, shape, said):
    net = module(make, shape)
    trainer(WarmupCosine(3, replace=True)).fit(net)
    assert net.used == expected(12, 3)
    assert set(net.momentum) == {0.5}
    assert "takes the place of" in said()
    assert "full learning rate is 0.1, 1.6" in said()


def test_without_it_the_message_names_it():
    with pytest.raises(ScheduleError, match=r"\(StepLR\).* of Scheduled .*replace=True"):
        trainer(WarmupCosine(3)).fit(Scheduled(step, lists))
    with pytest.raises(ScheduleError, match="expected replace to be True or False, got 1"):
        WarmupCosine(3, replace=1)


class Stepping(Manual):
    """Steps its own schedulers by hand."""

    own = 2

    def configure_optimizers(self):
        optimizers = super().configure_optimizers()
        return list(optimizers), [step(optimizer) for optimizer in optimizers[: self.own]]

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        for scheduler in self.lr_schedulers():
            scheduler.step()


def test_a_module_that_steps_its_schedulers_by_hand_steps_no_schedule_twice():
    net, plain = Stepping(), Manual()
    trainer(WarmupCosine(2, total_steps=12, replace=True)).fit(net)
    trainer(WarmupCosine(2, total_steps=12)).fit(plain)
    assert net.rates == plain.rates
    assert net.rates[0] == [RATE * lr_multiplier(s, 12, 2) for s in range(12)]

    fewer = Stepping()
    fewer.own = 1
    message = r"a scheduler for each optimizer.*manual.*got 1 \(StepLR\) for 2"
    with pytest.raises(ScheduleError, match=message):
        trainer(WarmupCosine(2, total_steps=12, replace=True)).fit(fewer)


def test_resumed_it_goes_on_and_a_scheduler_of_before_is_refused(tmp_path):
    def run(path, *, replace=True, epochs=2):
        L.seed_everything(3, verbose=False)
        net = Scheduled(one_cycle, lists)
        keep = ModelCheckpoint(tmp_path / str(replace), filename="{epoch}", save_top_k=-1)
        schedule = [WarmupCosine(3, total_steps=12, replace=True)] if replace else []
        options = {"enable_checkpointing": True, "max_epochs": epochs}
        trainer(*schedule, keep, **options).fit(net, ckpt_path=path)
        return net

    whole = run(None)
    resumed = run(tmp_path / "True" / "epoch=0.ckpt")
    assert resumed.used == whole.used[6:]
    run(None, replace=False, epochs=1)
    with pytest.raises(ScheduleError, match="made with another learning-rate scheduler"):
        run(tmp_path / "False" / "epoch=0.ckpt")


def test_callbacks_that_add_groups_ask_nothing_of_a_scheduler_that_goes():
    freeze = lp.BackboneFreeze(backbone="", unfreeze=[lp.Stage(0, "all", 0.5)])
    net = Scheduled(one_cycle, lists)
    trainer(freeze, WarmupCosine(3, replace=True)).fit(net)
    assert net.used[2] == [RATE, 16 * RATE, 0.5, 0.5]
