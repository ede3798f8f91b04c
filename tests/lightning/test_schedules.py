import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.schedules import Multiplier, MultiplierLR, lr_multiplier

HALF = (1 + math.cos(math.pi / 2)) / 2  # cosine's midpoint, 0.5 up to rounding

# total 20, warm-up 4: steps 0, in the warm-up, its last, the first after it, midpoint, end, beyond
STEPS = (0, 1, 3, 4, 12, 20, 100)
TABLE = {
    "cosine": (0.25, 0.5, 1.0, 1.0, 0.1 + 0.9 * HALF, 0.1, 0.1),
    "linear": (0.25, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1),
    "constant": (0.25, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0),
    "warmup_stable_decay": (0.25, 0.5, 1.0, 1.0, 1.0, 0.1, 0.1),
}


@pytest.mark.parametrize("kind", TABLE)
@pytest.mark.parametrize("position", range(len(STEPS)), ids=lambda i: f"step{STEPS[i]}")
def test_multiplier_table(kind, position):
    value = lr_multiplier(STEPS[position], 20, 4, kind, final=0.1, decay_fraction=0.2)
    assert value == pytest.approx(TABLE[kind][position], abs=1e-12)


def test_the_stable_part_decays_linearly_at_the_end():
    values = [lr_multiplier(s, 20, 4, "warmup_stable_decay", decay_fraction=0.2) for s in range(21)]
    assert values[4:17] == [1.0] * 13
    assert values[17:] == pytest.approx([0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("kind", TABLE)
def test_no_step_of_a_run_is_wasted(kind):
    values = [lr_multiplier(step, 10, 3, kind) for step in range(10)]
    assert all(0 < value <= 1 for value in values)


@pytest.mark.parametrize("kind", TABLE)
@pytest.mark.parametrize("warmup", [0, 7], ids=["none", "whole run"])
def test_extreme_warmups(kind, warmup):
    decay = 0.0 if warmup else 0.1
    values = [lr_multiplier(s, 7, warmup, kind, decay_fraction=decay) for s in range(8)]
    assert values[6 if warmup else 0] == 1.0
    assert values[7] == (1.0 if kind == "constant" else 0.0)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize(("total", "warmup", "final"), [(30, 5, 0.0), (17, 2, 0.1), (9, 0, 0.3)])
def test_agrees_with_torch(kind, total, warmup, final):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    if kind == "cosine":
        scheduler = CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=final * 0.3)
    else:
        scheduler = LinearLR(optimizer, 1.0, final, total_iters=total - warmup)
    if warmup:
        # LinearLR goes from its start factor to 1 within `total_iters`: (step + 1) / warmup
        start = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
        scheduler = SequentialLR(optimizer, [start, scheduler], milestones=[warmup])
    for step in range(total):
        expected = optimizer.param_groups[0]["lr"]
        ours = 0.3 * lr_multiplier(step, total, warmup, kind, final=final)
        assert ours == pytest.approx(expected, rel=1e-9), step
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, r"expected total_steps to be a whole number from 1, got 0"),
        ({"total_steps": True}, r"expected total_steps to be a whole number from 1, got True"),
        ({"warmup_steps": -1}, r"expected warmup_steps to be a whole number from 0, got -1"),
        ({"warmup_steps": 0.5}, r"expected warmup_steps to be a whole number from 0, got 0.5"),
        ({"kind": "cosin"}, r"unknown kind of schedule 'cosin'. Did you mean 'cosine'\?"),
        ({"final": 2}, r"expected final to be a number in \[0, 1\], got 2"),
        ({"decay_fraction": -0.1}, r"expected decay_fraction to be a number in \[0, 1\]"),
        ({"warmup_steps": 11}, r"warm-up of 11 steps is longer than the run of 10 steps"),
        (
            {"warmup_steps": 6, "kind": "warmup_stable_decay", "decay_fraction": 0.5},
            r"warm-up of 6 steps and the decay of 5 steps do not fit into the run of 10 steps",
        ),
        ({"total_steps": -1, "final": 3}, r"total_steps .* got -1; expected final .* got 3"),
    ],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(ScheduleError, match=message):
        Multiplier(**{"total_steps": 10, **arguments})


@pytest.mark.parametrize("step", [-1, 1.5, True])
def test_a_step_that_is_none_is_refused(step):
    with pytest.raises(ScheduleError, match=r"expected a step from 0"):
        lr_multiplier(step, 10)


def make(lr=0.1, **options):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    optimizer = torch.optim.SGD([{"params": [weight], "lr": lr}], lr=9.0)
    return optimizer, MultiplierLR(optimizer, Multiplier(10, 2, **options))


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def test_every_group_keeps_its_own_rate():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 1.6}])
    scheduler = MultiplierLR(optimizer, Multiplier(10, 2))
    for step in range(12):
        factor = lr_multiplier(step, 10, 2)
        assert rates(optimizer) == [0.1 * factor, 1.6 * factor]
        assert scheduler.get_last_lr() == rates(optimizer)
        optimizer.step()
        scheduler.step()


def test_a_group_added_later_is_scheduled_from_its_first_step():
    optimizer, scheduler = make()
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    late = nn.Parameter(torch.zeros(1))
    late.grad = torch.ones(1)
    optimizer.add_param_group({"params": [late], "lr": 0.8})
    optimizer.step()
    assert late.item() == pytest.approx(-0.8 * lr_multiplier(5, 10, 2))
    scheduler.step()
    factor = lr_multiplier(6, 10, 2)
    assert rates(optimizer) == [0.1 * factor, 0.8 * factor]
    assert scheduler.base_lrs == [0.1, 0.8]


def test_closed_under_its_state_dict():
    optimizer, scheduler = make()
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    states = optimizer.state_dict(), scheduler.state_dict()

    again_optimizer, again = make()
    again_optimizer.load_state_dict(states[0])
    again.load_state_dict(states[1])
    assert again.state_dict() == states[1]
    assert again.restored == scheduler.multiplier
    for _ in range(8):
        assert rates(again_optimizer) == rates(optimizer)
        for o, s in ((optimizer, scheduler), (again_optimizer, again)):
            o.step()
            s.step()


def test_a_restored_schedule_of_another_length_follows_its_own():
    optimizer, scheduler = make()
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    longer = MultiplierLR(make()[0], Multiplier(100, 2))
    longer.optimizer.load_state_dict(optimizer.state_dict())
    longer.load_state_dict(scheduler.state_dict())
    assert rates(longer.optimizer) == [0.1 * lr_multiplier(4, 100, 2)]


def test_the_state_of_another_scheduler_is_refused():
    _, scheduler = make()
    other = CosineAnnealingLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), T_max=5)
    with pytest.raises(ScheduleError, match="made with another learning-rate scheduler"):
        scheduler.load_state_dict(other.state_dict())


def test_a_rate_in_a_tensor_is_changed_in_place():
    rate = torch.tensor(0.5)
    optimizer, scheduler = make(lr=rate)
    held = optimizer.param_groups[0]["lr"]
    optimizer.step()
    scheduler.step()
    optimizer.step()
    scheduler.step()
    scheduler.refresh(6)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == pytest.approx(0.5 * lr_multiplier(6, 10, 2))
