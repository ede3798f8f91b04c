"""What the benchmarks measure, on models so small that it takes a second; no time is asserted."""

from __future__ import annotations

import argparse
import importlib
import logging
import time
from pathlib import Path

import lightning
import pytest
import torch

SMALL = {"depth": 2, "img_size": 64}


@pytest.fixture
def benchmark(monkeypatch, caplog):
    # benchmarks say this for their own process, which is that of the other tests here
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    yield importlib.import_module
    torch.set_num_threads(threads)


def options(**more):
    given = {"backbone": "vit_tiny_patch16_224", "batch": 2, "rank": 2, "targets": "all-linear"}
    return argparse.Namespace(**{**given, "model_settings": SMALL, **more})


@pytest.mark.slow  # the profiler takes a second a variant
def test_less_is_allocated_the_more_is_made_again(benchmark):
    figures = benchmark("activation_memory").measured(options(batch=8))
    order = ("peft, checkpointed", "low", "lightning-peft", "high", "peft")
    ratios = [figures[name]["ratio"] for name in order]
    assert ratios == sorted(set(ratios))
    assert figures["peft"]["ratio"] == 1


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # of torch 2.11
@pytest.mark.parametrize(
    ("name", "size", "method", "changes"),
    [
        ("vit", 512, "lora", {"depth": 1}),
        pytest.param(*("vit", 512, "linear_probe", {"depth": 1}), marks=pytest.mark.slow),
        pytest.param(
            *("convnext", 128, "houlsby", {"depths": (1, 1, 1, 1)}), marks=pytest.mark.slow
        ),
        pytest.param(*("bert", 512, "bitfit", {"num_hidden_layers": 1}), marks=pytest.mark.slow),
        pytest.param(
            *("bert", 512, "full", {"num_hidden_layers": 1, "attention_probs_dropout_prob": 0.0}),
            marks=pytest.mark.slow,
        ),
        ("decoder", 512, "lora", {"num_hidden_layers": 1}),
    ],
)
def test_what_a_step_needs_is_within_a_tenth_of_what_was_planned(
    benchmark, name, size, method, changes
):
    planned_memory = benchmark("planned_memory")
    found = planned_memory.compared(planned_memory.MODELS[name][0], size, method, **changes)
    assert found["planned"] == pytest.approx(found["measured"], rel=0.1)


def test_the_peak_is_that_of_what_was_alive_together(benchmark):
    class Peaks(torch.nn.Module):
        def forward(self, x):
            for _ in range(3):  # one after the other: they do not add up
                torch.empty(1_000_000, dtype=torch.uint8)
            return x

    images, labels = torch.randn(2, 3), torch.tensor([0, 1])
    model = torch.nn.Sequential(Peaks(), torch.nn.Linear(3, 2))
    found = benchmark("activation_memory").peak_bytes(model, images, labels)
    assert 1_000_000 <= found < 1_100_000


def test_variants_have_the_same_weights_and_train_the_same(benchmark):
    lora_step = benchmark("lora_step")
    images = torch.randn(2, 3, 64, 64)
    models = lora_step.variants(options(), images)
    with torch.no_grad():
        outputs = {name: model.eval()(images) for name, model in models.items()}
    for name, output in outputs.items():
        torch.testing.assert_close(output, outputs["full"], msg=name)
    counts = {
        n: sum(p.numel() for p in m.parameters() if p.requires_grad) for n, m in models.items()
    }
    assert counts["low"] == counts["high"] == counts["lightning-peft"] == counts["peft"]
    assert counts["limit"] == 0


def test_ratios_are_to_the_same_round(benchmark):
    timers = {"limit": iter([9, 1, 2, 4]), "ours": iter([9, 2, 6, 8])}
    given = {name: (lambda times=times: next(times)) for name, times in timers.items()}
    figures = benchmark("lora_step").interleaved(given, rounds=3)
    assert figures["ours"]["times"] == [2, 6, 8]  # the first round is not in it
    assert figures["ours"]["ratio"] == 2
    assert figures["ours"]["spread"] == [2, 3]


def test_the_optimizer_steps_only_when_it_is_asked_to(benchmark):
    lora_step = benchmark("lora_step")
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    for optimizer in (False, True):
        model = lora_step.variants(options(), images, ["lightning-peft"])["lightning-peft"]
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        lora_step.step_of("lightning-peft", model, images, labels, optimizer)()
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert bool(moved) is optimizer
        assert all("lora_" in name for name in moved)


@pytest.mark.parametrize("name", ["vit", "eva", "resnet"])
def test_an_update_in_the_weight_is_compared_with_the_same_update_beside(benchmark, name):
    in_weight = benchmark("in_weight")
    case = in_weight.CASES[name]
    torch.manual_seed(0)
    base, pixels = case.make(True)
    with torch.no_grad():
        for parameter in base.parameters():  # some heads and norms are zero at first
            parameter.add_(0.1 * torch.randn_like(parameter))
    models = in_weight.variants(case, base.requires_grad_(False), rank=2)
    assert ("fast" in models) is (case.plain is not None)
    (weight, layers), (beside, as_many) = models["weight"], models["beside"]
    assert layers == as_many > 0
    beside_names = dict(beside.named_parameters())
    for key, parameter in weight.named_parameters():
        if "lora_" in key:
            place, _, factor = key.removesuffix(".default.weight").rpartition(".lora_")
            with torch.no_grad():
                parameter.normal_()
                layer = {"A": "down", "B": "up"}[factor]
                beside_names[f"{place}.{layer}.weight"].copy_(parameter)
    x = torch.randn(2, 3, pixels, pixels)
    with torch.no_grad():
        outputs = {key: model(x) for key, (model, _) in models.items()}
    for key in set(models) - {"weight", "beside"}:
        torch.testing.assert_close(outputs[key], outputs["limit"], msg=key)
    torch.testing.assert_close(outputs["weight"], outputs["beside"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs["weight"], outputs["limit"], rtol=1e-2)


def test_a_point_of_growth_says_where_it_was_measured(benchmark, tmp_path):
    growth = benchmark("growth")
    point = {"rank": 2, "depth": 1, "batch": 1, "size": 32}
    found = growth.measured_at(point, options(rounds=2), time.perf_counter)
    assert point.items() <= found.items()
    assert found["tokens"] == 5  # 2 x 2 patches and the class token
    low, high = found["to_limit_spread"]
    assert low <= found["to_limit"] <= high
    pytest.importorskip("matplotlib")
    growth.draw({"rank": [found, {**found, "rank": 4}]}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_every_hook_of_the_callbacks_is_timed(benchmark):
    overhead = benchmark("callback_overhead")
    size = {"tiny": 32, "pairs": 2, "block": 2, "steps": 4}
    figures = overhead.measured(options(**size, clock="wall"))
    assert {name.partition(".")[0] for name in figures["hooks"]} == {
        "PEFT", "EfficiencyMonitor", "FiniteLoss",
    }  # fmt: skip
    assert figures["ratio"] == 1 + figures["cost"] / figures["bare"]
    low, high = figures["cost_interval"]
    assert low <= figures["cost"] <= high


def test_callbacks_are_there_in_their_blocks_and_their_cost_is_the_difference(benchmark):
    overhead = benchmark("callback_overhead")
    seen = []

    class Slow(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(batch_idx)
            clock["now"] += 3.0

    class Trained(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def training_step(self, batch, batch_idx):
            clock["now"] += 1.0 + batch_idx  # a machine that becomes slower and slower
            return self.layer(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    clock = {"now": 0.0}
    data = torch.utils.data.TensorDataset(torch.ones(25, 2))
    switch = overhead.Switch(lambda: clock["now"], block=2)
    loader = torch.utils.data.DataLoader(data, 1)
    benchmark("peers").lightning_steps(Trained(), loader, switch, Slow())
    blocks = {0, 3, 4, 7, 8, 11, 12}
    assert seen == [step for step in range(25) if step // 2 in blocks]
    # 3 seconds; in turns, the drift from block to block (2 seconds) is with us and against us
    assert switch.differences().tolist() == [5, 1, 5, 1, 5]


def test_a_peer_that_is_not_installed_is_left_out_with_a_word(benchmark, monkeypatch, capsys):
    peers = benchmark("peers")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    found = peers.peers(options(), torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert list(found) == ["Lightning, lightning-peft", "Lightning, peft"]
    assert "left out, accelerate is not installed" in capsys.readouterr().out
