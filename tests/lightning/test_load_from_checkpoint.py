"""Loading into classes with objects in their hyperparameters and loaders of their own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightning_peft as lp
from tests.lightning.test_checkpoint_kinds import METHODS, Module, Net, data
from tests.support.runs import equal, state_of, trainer


class Activation:
    """An object in the hyperparameters."""


class WithObjects(Module):
    def __init__(self, seed: int = 0, kind: Any = None) -> None:
        super().__init__(seed)
        self.save_hyperparameters()


def saved(tmp_path: Path, module: Any, **settings: Any) -> Path:
    tr = trainer(tmp_path, lp.PEFT(METHODS["lora"], **settings))
    tr.fit(module, data())
    tr.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_the_advice_names_every_class_and_both_ways_work(tmp_path: Path) -> None:
    module = WithObjects(kind=[Activation(), nn.GELU()])
    path = saved(tmp_path, module)
    with pytest.raises(lp.CheckpointError) as caught:
        lp.load_from_checkpoint(WithObjects, path)
    message = str(caught.value)
    assert "GELU" in message
    assert f"{__name__}.Activation" in message
    assert "weights_only=False" in message
    assert "\x1b" not in message
    trusted = lp.load_from_checkpoint(WithObjects, path, weights_only=False)
    with torch.serialization.safe_globals([Activation, nn.GELU]):
        allowed = lp.load_from_checkpoint(WithObjects, path)
    for loaded in (trusted, allowed):
        assert equal(state_of(loaded), state_of(module))


class OwnLoader(Module):
    """chemprop's: it reads the file, adds what files of earlier releases lack, and passes it on."""

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = None, **kwargs: Any):
        content = torch.load(checkpoint_path, map_location, weights_only=False)
        state = content["state_dict"]
        assert state["net.blocks.0.scale"].shape == (6,)
        buffer = io.BytesIO()
        torch.save(content, buffer)
        buffer.seek(0)
        return super().load_from_checkpoint(buffer, map_location, weights_only=False, **kwargs)


def test_a_loader_of_the_class_is_given_what_it_takes(tmp_path: Path) -> None:
    module = OwnLoader()
    slim = saved(tmp_path, module)
    with pytest.raises(lp.CheckpointError, match=r"net.blocks.0.scale.*checkpoints='full'"):
        lp.load_from_checkpoint(OwnLoader, slim)
    module = OwnLoader()
    full = saved(tmp_path / "full", module, checkpoints="full")
    loaded = lp.load_from_checkpoint(OwnLoader, full)
    assert type(loaded) is OwnLoader
    assert equal(state_of(loaded), state_of(module))


class Reads(Module):
    """Reads a frozen buffer and a frozen weight in its hook, by the names that it has given."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        assert torch.equal(state["net.blocks.0.scale"], torch.full((6,), 0.5))
        assert torch.equal(state["net.blocks.0.fc.weight"], Module().net.blocks[0].fc.weight)
        assert set(Net().state_dict()) <= {name.removeprefix("net.") for name in state}


def test_a_hook_of_the_module_finds_what_a_slim_checkpoint_leaves_out(tmp_path: Path) -> None:
    module = Reads()
    path = saved(tmp_path, module)
    loaded = lp.load_from_checkpoint(Reads, path)
    assert equal(state_of(loaded), state_of(module))
    resumed = Reads()
    trainer(tmp_path, lp.PEFT(METHODS["lora"]), max_epochs=1).fit(resumed, data(), ckpt_path=path)
    assert equal(state_of(resumed), state_of(module))
