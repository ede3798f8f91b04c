"""Checkpoints are written completely or not at all, with the content that Lightning writes."""

import errno
import os
import threading

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.lightning.checkpoint_io import write_whole_checkpoints
from tests.support.trainers import quiet_trainer


class Lines(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 2))

    def training_step(self, batch):
        loss = self.net(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=4)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Mixed(lp.PEFTMixin, Lines):
    peft = "bitfit"


def fails_from(monkeypatch, number):
    """Fail every flush of a file from one on, as a full disk does."""
    calls = []
    own = os.fsync

    def flush(file):
        calls.append(file)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        own(file)

    monkeypatch.setattr(os, "fsync", flush)


@pytest.mark.parametrize("make", [lambda: (Lines(), [lp.PEFT("bitfit")]), lambda: (Mixed(), [])])
def test_on_a_full_disk_the_last_good_checkpoint_is_there(make, tmp_path, monkeypatch):
    fails_from(monkeypatch, 3)  # the first checkpoint and its directory reach the disk
    module, callbacks = make()
    last = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    trainer = quiet_trainer(*callbacks, last, max_epochs=3, enable_checkpointing=True)
    with pytest.raises(lp.DiskError, match=r"last\.ckpt: expected room for at least [\d,]+ bytes"):
        trainer.fit(module)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    left = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert left["epoch"] == 0
    monkeypatch.undo()
    module, callbacks = make()  # there is room again
    trainer = quiet_trainer(*callbacks, last, max_epochs=3, enable_checkpointing=True)
    trainer.fit(module, ckpt_path=tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 2


def test_the_content_is_what_lightning_alone_writes(tmp_path):
    content = {"state_dict": {"a": torch.arange(6.0)[::2]}, "epoch": 3}
    lp.WholeCheckpointIO().save_checkpoint(content, tmp_path / "new" / "ours.ckpt")
    TorchCheckpointIO().save_checkpoint(content, tmp_path / "theirs.ckpt")
    assert (tmp_path / "new" / "ours.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()
    assert lp.WholeCheckpointIO().load_checkpoint(tmp_path / "theirs.ckpt")["epoch"] == 3


def test_a_plugin_with_its_own_way_of_writing_is_left_alone(tmp_path):
    class Own(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            (tmp_path / "own").write_text("mine")

    for plugin in (Own(), AsyncCheckpointIO(Own())):
        trainer = quiet_trainer(plugins=[plugin])
        write_whole_checkpoints(trainer.strategy)
        assert trainer.strategy.checkpoint_io is plugin
    lp.WholeCheckpointIO(Own()).save_checkpoint({}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == ["own"]


def test_addresses_directories_and_options_are_left_to_lightning(tmp_path):
    import fsspec

    ours = lp.WholeCheckpointIO()
    ours.save_checkpoint({"epoch": 1}, "memory://lightning_peft/a.ckpt")
    assert fsspec.filesystem("memory").exists("lightning_peft/a.ckpt")
    ours.remove_checkpoint("memory://lightning_peft/a.ckpt")
    assert not fsspec.filesystem("memory").exists("lightning_peft/a.ckpt")
    with pytest.raises(TypeError, match="storage_options"):
        ours.save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"a": 1})


def test_it_is_put_around_the_trainers_own_once(tmp_path):
    trainer = quiet_trainer()
    write_whole_checkpoints(trainer.strategy)
    found = trainer.strategy.checkpoint_io
    write_whole_checkpoints(trainer.strategy)
    write_whole_checkpoints(None)
    assert isinstance(found, lp.WholeCheckpointIO)
    assert trainer.strategy.checkpoint_io is found


@pytest.mark.parametrize("given", [None, lp.WholeCheckpointIO], ids=["alone", "by hand"])
def test_asynchronous_writing_goes_on_and_removes_nothing_before_its_heir_is_written(
    given, tmp_path, monkeypatch
):
    begin = threading.Event()
    own = torch.save

    def slow(checkpoint, file):
        assert begin.wait(10)
        if checkpoint["epoch"] == 1:
            raise OSError(errno.ENOSPC, "full")
        own(checkpoint, file)

    trainer = quiet_trainer(plugins=[AsyncCheckpointIO(given and given())])
    write_whole_checkpoints(trainer.strategy)
    monkeypatch.setattr(torch, "save", slow)
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, AsyncCheckpointIO)
    for epoch in range(2):
        io.save_checkpoint({"epoch": epoch}, tmp_path / f"{epoch}.ckpt")
        if epoch:
            io.remove_checkpoint(tmp_path / "0.ckpt")
    begin.set()
    with pytest.raises(lp.DiskError, match=r"1\.ckpt: expected room"):
        io.teardown()
    assert os.listdir(tmp_path) == ["0.ckpt"]
    io._error = None
    for epoch in (2, 3):
        io.save_checkpoint({"epoch": epoch}, tmp_path / f"{epoch}.ckpt")
        io.remove_checkpoint(tmp_path / f"{epoch - 2 if epoch == 2 else 2}.ckpt")
    io.teardown()
    assert os.listdir(tmp_path) == ["3.ckpt"]
