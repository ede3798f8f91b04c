"""Frozen tensors that a module writes to in training: said, saved, and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_peft as lp
from tests.lightning.test_checkpoint_kinds import METHODS, Module, data
from tests.support.runs import differing, state_of, trainer

CHANGED = {"net.blocks.0.scale", "net.blocks.1.norm.weight"}


class Writing(Module):
    """Fills a buffer, and moves a frozen weight."""

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        with torch.no_grad():
            self.net.blocks[0].scale.mul_(0.99)
            self.net.blocks[1].norm.weight.data += 0.01
        return super().training_step(batch, index)


@pytest.mark.filterwarnings("ignore:PEFT. expected frozen tensors to stay:UserWarning")
def test_a_run_resumes_with_what_was_written(tmp_path: Path) -> None:
    def run(path: Any = None) -> dict[str, torch.Tensor]:
        L.seed_everything(0, verbose=False)
        module = Writing()
        keep = ModelCheckpoint(tmp_path / str(path is None), filename="{epoch}", save_top_k=-1)
        trainer(tmp_path, lp.PEFT(METHODS["lora"]), keep, max_epochs=2).fit(
            module, data(), ckpt_path=path
        )
        return state_of(module)

    whole = run()
    saved = torch.load(tmp_path / "True" / "epoch=0.ckpt", weights_only=True)["state_dict"]
    assert {name for name in saved if "lora" not in name and "head" not in name} >= CHANGED
    assert "net.blocks.0.norm.weight" not in saved  # what was not written to is left out
    assert differing(run(tmp_path / "True" / "epoch=0.ckpt"), whole) == set()


def test_it_is_said_by_name(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"got 2 that the module itself.*net.blocks.0.scale"):
        trainer(tmp_path, lp.PEFT(METHODS["lora"])).fit(Writing(), data())
