"""``PEFT(merge_at_end=True)``: after a fit the module is one of its own classes again."""

from __future__ import annotations

import pickle
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

import lightning_peft as lp
from tests.lightning.test_checkpoint_kinds import METHODS, Module, data, fitted, outputs
from tests.support.runs import equal, state_of, trainer


@pytest.mark.parametrize("average", [False, True], ids=["", "average"])
def test_the_module_is_plain_and_computes_what_the_adapted_one_did(
    tmp_path: Path, average: bool
) -> None:
    extra = [WeightAveraging()] if average else []
    adapted = fitted(tmp_path, "slim", extra=extra)[0]
    extra = [WeightAveraging()] if average else []
    module, tr, _ = fitted(tmp_path, "slim", extra=extra, merge_at_end=True)
    assert torch.allclose(outputs(module), outputs(adapted), atol=1e-5)

    fresh = Module()
    assert [n for n, _ in module.named_modules()] == [n for n, _ in fresh.named_modules()]
    assert all(type(a) is type(b) for a, b in zip(module.modules(), fresh.modules(), strict=True))
    assert not any("peft" in key for part in module.modules() for key in part.__dict__)
    assert {n: p.requires_grad for n, p in module.named_parameters()} == {
        n: p.requires_grad for n, p in fresh.named_parameters()
    }
    assert equal(state_of(pickle.loads(pickle.dumps(module))), state_of(module))

    tr.save_checkpoint(tmp_path / "plain.ckpt")  # as Lightning alone does
    fresh.load_state_dict(torch.load(tmp_path / "plain.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(outputs(fresh), outputs(module))
    assert torch.equal(
        outputs(Module.load_from_checkpoint(tmp_path / "plain.ckpt")), outputs(fresh)
    )

    before = state_of(module)
    tr.test(module, data(), verbose=False)
    assert equal(state_of(module), before)
    with pytest.raises(lp.BackboneMismatchError, match="again, train with checkpoints='merged'"):
        tr.test(module, data(), ckpt_path="best", verbose=False)


def test_the_best_checkpoint_is_tested_if_checkpoints_are_merged(tmp_path: Path) -> None:
    module, tr, keep = fitted(tmp_path, "merged", merge_at_end=True)
    (found,) = tr.test(module, data(), ckpt_path="best", verbose=False)
    assert found["val_loss"] == pytest.approx(float(keep.best_model_score), abs=1e-5)
    assert lp.find_adaptation(module.net) is None
    assert not any("peft" in key for key in module.__dict__)
    tr.fit_loop.max_epochs = 3  # a further fit adapts the merged weights anew, and merges again
    tr.fit(module, data(), data())
    assert lp.find_adaptation(module.net) is None
    with pytest.raises(lp.BackboneMismatchError, match="a module that is built anew"):
        tr.fit(module, data(), ckpt_path=keep.best_model_path)


def test_a_run_that_was_stopped_is_not_merged_and_resumes(tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *args: object) -> None:
            raise RuntimeError("stopped")

    L.seed_everything(0, verbose=False)
    module = Module()
    keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=4)
    peft = lp.PEFT(METHODS["lora"], merge_at_end=True)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, peft, keep, Stop(), max_epochs=2).fit(module, data())
    assert lp.find_adaptation(module.net) is not None


def test_code_that_loads_the_best_checkpoint_behind_the_fit_goes_on_working(tmp_path: Path) -> None:
    module, _, keep = fitted(tmp_path, "merged", merge_at_end=True)
    module.load_state_dict(torch.load(keep.best_model_path, weights_only=True)["state_dict"])
