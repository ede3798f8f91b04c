"""The rate that short runs find: held against loops of plain torch, and known functions."""

import logging
import math
import os
from itertools import pairwise

import lightning.pytorch as pl
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.lightning.rates.folds import in_folds
from lightning_peft.lightning.rates.search import _descend, grid
from lightning_peft.lightning.rates.trials import RateTrial, tried

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(40, 3, generator=GENERATOR)
TARGETS = INPUTS @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(
    40, 1, generator=GENERATOR
)


class Fit(pl.LightningModule):
    def __init__(self, rate, logged="val/loss"):
        super().__init__()
        self.net, self.rate, self.logged = nn.Linear(3, 1), rate, logged

    def training_step(self, batch, _):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log(self.logged, F.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), self.rate)


def whole():
    return DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=40)


def build(rate):
    return Fit(rate), []


def by_hand(rate, steps, seed=3):
    """The mean held-out loss over the folds, by a loop of plain torch."""
    losses = []
    for fold in in_folds(whole(), 2, seed):
        (train,), (held,) = list(fold.train), list(fold.measured)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(net.parameters(), rate)
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(net(train[0]), train[1]).backward()
            optimizer.step()
        losses.append(F.mse_loss(net(held[0]), held[1]).item())
    return sum(losses) / 2


def test_the_losses_are_those_of_a_loop_of_plain_torch():
    rates, said = [1e-3, 3e-2, 0.3], []
    options = {"rates": rates, "steps": 7, "seed": 3, "trainer": {"accelerator": "cpu"}}
    found = lp.find_rate(build, whole(), **options, say=said.append)
    expected = [by_hand(rate, 7) for rate in rates]
    assert [trial.loss for trial in found.trials] == pytest.approx(expected, rel=1e-4)
    assert found.rate == rates[expected.index(min(expected))]
    assert [line.partition(" (")[0] for line in said] == [
        f"rate {rate:g}: held-out loss {loss:.3f}"
        for rate, loss in zip(rates, expected, strict=True)
    ]
    assert f"{found.rate:g}" in str(found).partition("  <- found")[0].splitlines()[-1]


def test_the_search_ends_between_two_rates_that_are_worse():
    found = lp.find_rate(build, whole(), start=1e-2, steps=7, trainer={"accelerator": "cpu"})
    losses = {trial.rate: trial.loss for trial in found.trials}
    rates, place = grid(found.rate)
    for beside in {max(place - 1, 0), min(place + 1, len(rates) - 1)} - {place}:
        assert losses[rates[beside]] > losses[found.rate]
    assert found.rate == 0.1  # the highest of the grid, where this is still too low


@pytest.mark.parametrize("least", [1e-6, 2e-5, 3e-4, 1e-2, 0.1])
@pytest.mark.parametrize("start", [1e-5, 1e-3, 0.05])
def test_the_lowest_of_a_function_with_one_valley_is_found(least, start):
    asked = []

    def loss(rate):
        asked.append(rate)
        return abs(math.log(rate / least))

    rates, place = grid(start)
    assert _descend((rates, place), lambda one, than: loss(one) < loss(than)) == min(
        rates, key=lambda r: abs(math.log(r / least))
    )
    assert len(set(asked)) <= abs(place - grid(least)[1]) + 3


def test_a_rate_is_better_by_more_than_the_standard_error_of_the_paired_differences():
    shared = 5 * torch.randn(50, generator=GENERATOR, dtype=torch.float64)
    noise = torch.randn(50, generator=GENERATOR, dtype=torch.float64)
    error = stats.sem(noise.numpy())

    def trial(each):
        return RateTrial(1e-3, float(each.mean()), {}, 1.0, 0.5, each)

    for margin in (-1.1, -0.9, 0.9, 1.1):
        other = trial(shared + noise - noise.mean() + margin * error)
        assert trial(shared).is_better(other) == (margin > 1)
        assert other.is_better(trial(shared)) == (margin < -1)
    one, two = (RateTrial(1e-3, loss, {}, 1.0, 0.5) for loss in (0.2, 0.3))
    assert one.is_better(two)
    assert not two.is_better(one)


def test_each_rate_of_the_grid_is_about_a_third_of_the_next():
    rates, place = grid(1e-3)
    assert (rates[0], rates[place], rates[-1]) == (1e-6, 1e-3, 0.1)
    assert all(2.9 < high / low < 3.4 for low, high in pairwise(rates))


def test_a_classifier_is_judged_at_its_best_temperature():
    labels = torch.arange(30) % 2
    noise = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    inputs = 3 * noise + labels.unsqueeze(1)
    data = DataLoader(TensorDataset(inputs, labels), batch_size=30)
    logits = []

    class Kept(lp.ImageClassifier):
        def forward(self, images):
            found = super().forward(images)
            if not self.training:
                logits.append(found.detach())
            return found

    def overconfident(rate):
        return Kept(nn.Linear(3, 2), 2, lr=rate, optimizer=torch.optim.SGD), []

    folds = in_folds(data, 2, seed=0)
    cpu = {"accelerator": "cpu"}
    found = tried(overconfident, 3.0, folds, steps=5, seed=0, monitor="", trainer=cpu)
    held = torch.cat([labels for fold in folds for _, labels in fold.measured])
    scores = torch.cat(logits).double()
    sharpness = torch.logspace(-2, 2, 4001, dtype=torch.float64)
    least = min(F.cross_entropy(scores * value, held).item() for value in sharpness)
    assert found.loss == pytest.approx(least, abs=1e-4)
    assert found.loss < F.cross_entropy(scores, held).item() - 0.1
    assert found.metrics["val/loss"] > found.loss


def test_what_a_search_leaves_is_as_before(monkeypatch):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    levels = [logging.getLogger(name).level for name in ("lightning.pytorch", "lightning_peft")]
    lp.find_rate(build, whole(), rates=[0.1], steps=2, trainer={"accelerator": "cpu"})
    assert torch.equal(torch.rand(3), expected)
    assert (os.environ["PL_SEED_WORKERS"], os.environ.get("PL_GLOBAL_SEED")) == ("1", None)
    assert levels == [
        logging.getLogger(name).level for name in ("lightning.pytorch", "lightning_peft")
    ]


def test_a_rate_that_diverges_comes_last_and_none_is_found_if_all_do():
    options = {"steps": 60, "trainer": {"accelerator": "cpu"}}
    found = lp.find_rate(build, whole(), rates=[0.1, 1e30], **options)
    assert (found.rate, found.trials[1].loss) == (0.1, math.inf)
    assert "1e+30       diverged  diverged" in str(found)
    with pytest.raises(lp.ScheduleError, match=r"stays finite, got none among 1e\+30, 1e\+31"):
        lp.find_rate(build, whole(), rates=[1e30, 1e31], **options)


def test_a_loss_that_is_none_from_the_first_step_diverges():
    class Never(Fit):
        def training_step(self, batch, _):
            return super().training_step(batch, _) * math.nan

    with pytest.raises(lp.ScheduleError, match=r"stays finite, got none among 0\.1:"):
        lp.find_rate(
            lambda rate: (Never(rate), []), whole(), rates=[0.1], steps=2,
            trainer={"accelerator": "cpu"},
        )  # fmt: skip


def test_wrong_arguments_are_told_at_once():
    with pytest.raises(
        lp.ScheduleError,
        match=r"start: .*got -1; rates: .*got 0; steps: .*got 0; folds: .*or more, got 1",
    ):
        lp.find_rate(build, whole(), start=-1, rates=[0, 1e-3], steps=0, folds=1)
    with pytest.raises(lp.ScheduleError, match="rates: expected at least one, got none"):
        lp.find_rate(build, whole(), rates=[])
    with pytest.raises(lp.DataError, match=r"Fit to log 'val/loss'.*got loss: name one, monitor="):
        lp.find_rate(lambda rate: (Fit(rate, "loss"), []), whole(), rates=[0.1], steps=1)
