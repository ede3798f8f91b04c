import errno
import json
import os
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from lightning_peft.lightning.callbacks._steps import StepTimer
from lightning_peft.lightning.callbacks.efficiency import EfficiencyMonitor, _peak, _reset_peak
from lightning_peft.lightning.callbacks.freeze import BackboneFreeze
from lightning_peft.lightning.callbacks.peft import PEFT
from tests.support.trainers import quiet_trainer

START = {
    "trainable_parameters", "full_trainable_parameters", "frozen_parameters", "total_parameters",
    "trainable_share",
    "gradient_bytes", "full_gradient_bytes", "optimizer_state_bytes", "full_optimizer_state_bytes",
    "checkpoint_bytes", "full_checkpoint_bytes",
}  # fmt: skip
END = START | {"step_flops", "step_seconds", "samples_per_second", "peak_process_rss_bytes"}


class Net(L.LightningModule):
    def __init__(self, **options):
        super().__init__()
        sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
        options = {**sizes, "num_classes": 2, **options}
        self.net = timm.create_model("vit_tiny_patch16_224", pretrained=False, **options)
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch, batch_idx):
        nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def data(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(24, 3, 16, 16, generator=generator)
        return DataLoader(TensorDataset(images, torch.tensor([0, 1] * 12)), batch_size=4)

    train_dataloader = val_dataloader = data


def trainer(*callbacks, **options):
    return quiet_trainer(*callbacks, **{"max_epochs": 2, **options})


def test_the_figures_of_a_run_with_an_adapter(tmp_path, capsys):
    net = Net()
    base = sum(p.numel() for p in net.parameters())
    monitor = EfficiencyMonitor()
    runner = trainer(PEFT("lora", rank=2), monitor, default_root_dir=tmp_path)
    runner.fit(net)
    report = json.loads((tmp_path / "efficiency.json").read_text())
    assert report == monitor.report
    assert report.keys() == END

    trained = [p for p in net.parameters() if p.requires_grad]
    assert report["trainable_parameters"] == sum(p.numel() for p in trained)
    assert report["total_parameters"] == sum(p.numel() for p in net.parameters()) > base
    assert report["trainable_share"] == report["trainable_parameters"] / report["total_parameters"]
    assert report["gradient_bytes"] == sum(p.nbytes for p in trained)
    assert report["full_trainable_parameters"] == base  # the adapter is no part of it
    assert report["full_gradient_bytes"] == 4 * base
    state = runner.optimizers[0].state
    held = sum(t.nbytes for entry in state.values() for t in entry.values())
    assert report["optimizer_state_bytes"] == held
    # AdamW: two moments and a step a tensor
    tensors = sum(1 for _ in Net().parameters())
    assert report["full_optimizer_state_bytes"] == 8 * base + 4 * tensors
    assert report["checkpoint_bytes"] == held + report["gradient_bytes"]
    assert report["full_checkpoint_bytes"] == 12 * base + 4 * tensors
    assert 1e8 < report["peak_process_rss_bytes"] < 1e11

    printed = capsys.readouterr().out
    assert "Efficiency, at the start" in printed
    assert "Efficiency, at the end" in printed
    assert f"{report['trainable_parameters']:,}" in printed


def test_full_fine_tuning_is_its_own_comparison(tmp_path):
    monitor = EfficiencyMonitor(verbose=False)
    trainer(monitor, default_root_dir=tmp_path, max_epochs=1).fit(Net())
    names = "trainable_parameters", "gradient_bytes", "optimizer_state_bytes", "checkpoint_bytes"
    for key in names:
        assert monitor.report[key] == monitor.report[f"full_{key}"] > 0


def test_what_is_predicted_at_the_start_is_what_is_measured_at_the_end(tmp_path):
    class Look(L.Callback):
        def on_train_batch_start(self, *args):
            self.early = self.early if hasattr(self, "early") else dict(monitor.report)

    look, monitor = Look(), EfficiencyMonitor(verbose=False)
    trainer(BackboneFreeze(), monitor, look, default_root_dir=tmp_path, max_epochs=1).fit(Net())
    assert look.early.keys() == START
    assert look.early["trainable_parameters"] == 18
    assert all(monitor.report[key] == value for key, value in look.early.items())


def test_flops_agree_with_torch(tmp_path):
    monitor = EfficiencyMonitor(verbose=False)
    trainer(monitor, default_root_dir=tmp_path, max_steps=2).fit(Net())
    net = Net()
    batch = next(iter(net.data()))
    with FlopCounterMode(display=False) as reference:
        net.training_step(batch, 0).backward()
    assert monitor.report["step_flops"] == reference.get_total_flops()


@pytest.mark.parametrize("flops", [True, False])
def test_monitoring_changes_nothing(tmp_path, flops):
    def run(*callbacks):
        L.seed_everything(2, verbose=False)
        net = Net(drop_rate=0.1, proj_drop_rate=0.1)
        trainer(*callbacks, default_root_dir=tmp_path).fit(net)
        return net

    plain = run()
    watched = run(EfficiencyMonitor(flops=flops, verbose=False))
    assert torch.equal(torch.stack(plain.losses), torch.stack(watched.losses))
    assert all(map(torch.equal, plain.parameters(), watched.parameters()))


def test_a_compiled_module_is_counted_too(tmp_path):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    def run(compiled):
        net = Net()
        net.net = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
        if compiled:
            net.net.compile(backend=backend)
        monitor = EfficiencyMonitor(verbose=False)
        options = {"max_steps": 3, "limit_val_batches": 0, "default_root_dir": tmp_path}
        trainer(monitor, **options).fit(net)
        return monitor.report["step_flops"]

    assert run(True) == run(False) > 0
    assert graphs  # the batches after the counted one ran compiled


def test_on_a_gpu_the_peak_is_of_allocated_memory_since_training_began(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1234)
    gpu = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 1)))
    _reset_peak(gpu)
    assert calls == [torch.device("cuda", 1)]
    assert _peak(gpu) == {"peak_cuda_bytes": 1234}


def test_figures_are_logged_under_their_keys(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = EfficiencyMonitor(verbose=False)
    trainer(monitor, logger=logger, log_every_n_steps=1).fit(Net())
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    assert {f"efficiency/{key}" for key in END} <= set(columns)
    last = dict(zip(columns, rows[-1].split(","), strict=True))
    assert float(last["efficiency/step_flops"]) == monitor.report["step_flops"]
    assert (tmp_path / "lightning_logs/version_0/efficiency.json").exists()


def test_every_key_is_in_the_documentation():
    for key in END | {"peak_cuda_bytes"}:
        assert f"efficiency/{key} " in EfficiencyMonitor.__doc__, key


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_that_was_written_is_measured(tmp_path, weights_only):
    checkpoint = ModelCheckpoint(tmp_path / "c", save_weights_only=weights_only)
    monitor = EfficiencyMonitor(verbose=False)
    trainer(
        monitor, checkpoint, enable_checkpointing=True, default_root_dir=tmp_path, max_epochs=1
    ).fit(Net())
    (path,) = (tmp_path / "c").glob("*.ckpt")
    assert monitor.report["checkpoint_bytes"] == path.stat().st_size
    full = monitor.report["full_gradient_bytes"]
    state = 0 if weights_only else monitor.report["full_optimizer_state_bytes"]
    assert monitor.report["full_checkpoint_bytes"] == full + state


def test_an_optimizer_that_cannot_be_predicted_is_null(tmp_path):
    class Closure(Net):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=1)

    monitor = EfficiencyMonitor()
    trainer(monitor, default_root_dir=tmp_path, max_steps=2).fit(Closure())
    written = json.loads((tmp_path / "efficiency.json").read_text())
    assert written["full_optimizer_state_bytes"] is None
    assert written["full_checkpoint_bytes"] is None
    assert written["optimizer_state_bytes"] > 0


def test_fast_dev_run_writes_nothing(tmp_path, capsys):
    monitor = EfficiencyMonitor()
    trainer(monitor, fast_dev_run=True, default_root_dir=tmp_path).fit(Net())
    assert not list(tmp_path.iterdir())
    assert monitor.report["step_flops"] > 0
    assert "unknown" in capsys.readouterr().out  # no second step, so no time of one


def test_switched_off(tmp_path, capsys):
    monitor = EfficiencyMonitor(flops=False, verbose=False)
    trainer(monitor, default_root_dir=tmp_path, max_steps=2).fit(Net())
    assert monitor.report["step_flops"] is None
    assert "Efficiency" not in capsys.readouterr().out


def test_a_second_fit_begins_anew(tmp_path):
    monitor = EfficiencyMonitor(verbose=False)
    trainer(monitor, default_root_dir=tmp_path, max_steps=2).fit(Net())
    first = monitor.report["step_flops"]
    trainer(BackboneFreeze(), monitor, default_root_dir=tmp_path, max_steps=2).fit(Net())
    assert monitor.report["step_flops"] < first


@pytest.mark.parametrize("how", ["raises", "skips"])
def test_counting_ends_with_a_first_batch_that_fails(tmp_path, how):
    class Fails(L.Callback):
        def on_train_batch_start(self, *args):
            if how == "raises":
                raise RuntimeError("no")

    class Skipping(Net):
        def on_train_batch_start(self, batch, batch_idx):
            return -1

    monitor = EfficiencyMonitor(verbose=False)
    runner = trainer(monitor, Fails(), default_root_dir=tmp_path, limit_val_batches=0)
    if how == "raises":
        with pytest.raises(RuntimeError, match="no"):
            runner.fit(Net())
    else:
        runner.fit(Skipping())
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    assert not _get_current_dispatch_mode_stack()


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless somebody moves it."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(
        "lightning_peft.lightning.callbacks._steps.perf_counter", lambda: now.seconds
    )
    return now


def test_the_time_of_a_step_and_the_rate_of_samples(tmp_path, clock):
    class Slow(Net):
        """Steps of a known length; slow where no time should be taken."""

        def training_step(self, batch, batch_idx):
            clock.seconds += 0.02
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self):
            clock.seconds += 0.2

        def on_validation_epoch_start(self):
            clock.seconds += 0.2

    monitor = EfficiencyMonitor(verbose=False)
    trainer(monitor, default_root_dir=tmp_path, val_check_interval=2).fit(Slow())
    assert monitor.report["step_seconds"] == pytest.approx(0.02)
    assert monitor.report["samples_per_second"] == pytest.approx(4 / 0.02)


def test_batches_without_tensors_have_no_rate(tmp_path):
    class Words(IterableDataset):
        def __iter__(self):
            yield from ["a"] * 8

    class Talker(Net):
        def training_step(self, batch, batch_idx):
            return self.net(torch.ones(1, 3, 16, 16)).sum()

    monitor = EfficiencyMonitor(verbose=False)
    runner = trainer(monitor, default_root_dir=tmp_path, max_epochs=1, limit_val_batches=0)
    runner.fit(Talker(), DataLoader(Words(), batch_size=None))
    assert monitor.report["samples_per_second"] is None
    assert monitor.report["step_seconds"] > 0


def test_step_timer(clock):
    timer = StepTimer()
    assert timer.median() == (None, None)
    for samples in (1, 2, 3, 4, 4, None):
        timer.start(samples)
        clock.seconds += 1 if samples is None else samples
    seconds, size = timer.median()
    assert size == 4  # of the steps after the first three, which began with 1, 2 and 3
    assert seconds == 4
    timer.interrupt()
    clock.seconds += 50
    timer.end()
    assert timer.median() == (seconds, size)


def test_a_file_that_cannot_be_written_ends_no_training(tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    monitor = EfficiencyMonitor(verbose=False)
    match = r"EfficiencyMonitor: no efficiency\.json, the training goes on\. .*expected room for"
    with pytest.warns(UserWarning, match=match):
        trainer(monitor, default_root_dir=tmp_path).fit(Net())
    assert monitor.report["samples_per_second"] or monitor.report["trainable_parameters"]
    assert not list(tmp_path.iterdir())
