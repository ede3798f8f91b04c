"""Files that look like files: links out of their directory, pipes, devices."""

import os

import pytest
import torch

from lightning_peft.errors import AdapterFileError, CheckpointError
from lightning_peft.files.checkpoints import check_checkpoint_file, check_resumable
from lightning_peft.files.plain_file import (
    NotPlainError,
    check_plain,
    leaves,
    read_bytes,
    read_text,
)
from lightning_peft.files.reading import read_adapter
from lightning_peft.system.atomic import written_whole


def test_a_file_of_the_directory_is_read_also_by_a_link_within_it(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "a.txt").write_bytes(b"x\r\n")
    (tmp_path / "run" / "checkpoints" / "b.txt").symlink_to("../a.txt")
    (tmp_path / "moved").symlink_to("run")  # the directory itself may be reached by a link
    assert read_text(tmp_path / "run" / "a.txt") == "x\r\n"
    assert read_text(tmp_path / "run" / "checkpoints" / "b.txt", tmp_path / "run") == "x\r\n"
    assert read_text(tmp_path / "moved" / "checkpoints" / "b.txt", tmp_path / "moved") == "x\r\n"
    assert list(leaves(tmp_path / "moved")) == []


def test_what_is_no_file_of_the_directory_is_refused(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "secret").write_text("s")
    (run / "link").symlink_to(tmp_path / "secret")
    (run / "loop").symlink_to(run / "loop")
    os.mkfifo(run / "pipe")
    (run / "zero").symlink_to("/dev/zero")
    with pytest.raises(
        NotPlainError, match=r"link: expected a file of .*run, got a link to .*secret"
    ):
        read_bytes(run / "link")
    with pytest.raises(NotPlainError, match=r"pipe: expected a file, got a named pipe. Remove it"):
        read_bytes(run / "pipe")
    with pytest.raises(NotPlainError, match=r"zero: expected a file, got a device"):
        read_bytes(run / "zero")
    with pytest.raises(NotPlainError, match="expected a file, got a directory"):
        read_bytes(run)
    with pytest.raises(NotPlainError, match="got one with a NUL"):
        check_plain(run / "a\0b")
    with pytest.raises(OSError, match="loop"):
        read_bytes(run / "loop")
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_bytes(run / "nothing")
    (run / "large").write_bytes(bytes(11))
    with pytest.raises(NotPlainError, match="at most 10 bytes, got a larger one"):
        read_bytes(run / "large", most=10)
    told = "\n".join(leaves(run))
    assert [name for name in ("link", "pipe", "zero", "loop") if f"{name}: expected" in told] == [
        "link", "pipe", "zero"]  # fmt: skip


def test_nothing_waits_for_the_writer_of_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="expected a file, got a named pipe"):
        check_checkpoint_file(tmp_path / "last.ckpt")
    os.mkfifo(tmp_path / "adapter_config.json")
    with pytest.raises(AdapterFileError, match="expected a file, got a named pipe"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "adapter_config.json").write_text("{}")
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match="expected a file, got a named pipe"):
        read_adapter(tmp_path)


def test_nobody_else_reads_a_file_before_it_is_whole(tmp_path):
    with written_whole(tmp_path / "a.txt") as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
        temporary.write_text("x")
    (tmp_path / "b.txt").touch()  # as any other program makes one
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_a_resumed_callback_deletes_nothing_further_up(tmp_path):
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    here = tmp_path / "checkpoints"
    key = ModelCheckpoint(dirpath=here).state_key
    path = str(here / ".." / "victim.txt")
    whole = {"pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 1}
    paths = {"kth_best_model_path": path}
    torch.save(whole | {"callbacks": {key: paths}}, tmp_path / "last.ckpt")
    trainer = Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path)
    assert ModelCheckpoint(dirpath=here)._should_remove_checkpoint(trainer, path, "x"), "would"
    with pytest.raises(CheckpointError, match=r"without '\.\.', got '.*victim.txt'"):
        check_resumable(tmp_path / "last.ckpt")
    paths = {"kth_best_model_path": str(here / "a..ckpt")}
    torch.save(whole | {"callbacks": {key: paths}}, tmp_path / "b")
    check_resumable(tmp_path / "b")


def test_what_no_trainer_wrote_is_no_checkpoint_to_resume_from(tmp_path):
    torch.save({"epoch": "0", "pytorch-lightning_version": "2.6.0"}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="of a trainer to resume from.*epoch, global_step"):
        check_resumable(tmp_path / "last.ckpt")
