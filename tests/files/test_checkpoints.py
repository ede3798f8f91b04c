"""Hyperparameters that are written into a checkpoint afterwards."""

import torch

from lightning_peft.files.checkpoints import keep_hyperparameters


def checkpoint(path, **content):
    torch.save({"state_dict": {"weight": torch.ones(2)}, **content}, path)
    return path


def test_they_are_added_and_all_else_is_as_it_was(tmp_path):
    path = checkpoint(tmp_path / "best.ckpt", hyper_parameters={"lr": 0.1})
    path.chmod(0o640)
    link = tmp_path / "link.ckpt"
    link.symlink_to(path)
    keep_hyperparameters(link, temperature=2.0)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    found = torch.load(path, weights_only=True)
    assert found["hyper_parameters"] == {"lr": 0.1, "temperature": 2.0}
    assert torch.equal(found["state_dict"]["weight"], torch.ones(2))


def test_a_module_without_any_and_a_sharded_checkpoint_are_left_alone(tmp_path):
    path = checkpoint(tmp_path / "plain.ckpt")
    before = path.read_bytes()
    keep_hyperparameters(path, temperature=2.0)
    assert path.read_bytes() == before
    (tmp_path / "sharded.ckpt").mkdir()
    keep_hyperparameters(tmp_path / "sharded.ckpt", temperature=2.0)
    assert not list((tmp_path / "sharded.ckpt").iterdir())
