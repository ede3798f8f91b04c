"""The callback beside averages of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

import lightning_peft as lp
from tests.support.runs import Classifier, differing, images, state_of, trainer


def test_weight_averaging_comes_after_and_its_checkpoints_are_slim_too(tmp_path: Path) -> None:
    with pytest.raises(lp.MethodError, match="expected PEFT before WeightAveraging"):
        trainer(tmp_path, WeightAveraging(), lp.PEFT()).fit(Classifier(), images())

    def run(epochs: int, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
        module = Classifier()
        keep = ModelCheckpoint(tmp_path / f"{epochs}", filename="{epoch}", save_top_k=-1)
        averaging = WeightAveraging()
        trainer(tmp_path, lp.PEFT("lora", rank=2), averaging, keep, max_epochs=epochs).fit(
            module, images(), ckpt_path=ckpt_path
        )
        return state_of(module)

    torch.manual_seed(0)
    whole = run(3)
    saved = torch.load(tmp_path / "3" / "epoch=0.ckpt", weights_only=True)
    assert not any("base_layer.weight" in name for name in saved["current_model_state"])
    assert not any("base_layer.weight" in name for name in saved["state_dict"])
    torch.manual_seed(1)
    assert differing(run(4, tmp_path / "3" / "epoch=2.ckpt"), whole)  # it trained on
    torch.manual_seed(1)
    resumed = trainer(tmp_path, lp.PEFT("lora", rank=2), WeightAveraging(), max_epochs=3)
    module = Classifier()
    resumed.fit(module, images(), ckpt_path=tmp_path / "3" / "epoch=0.ckpt")
    assert differing(state_of(module), whole) == set()


class Remembering(EMAWeightAveraging):
    """Keep what was trained, and what the average was, after every step."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.trained, self.averaged = [], []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        self.trained.append(state_of(pl_module))
        self.averaged.append(state_of(self._average_model.module))


def test_an_exponential_average_is_of_what_is_trained_and_leaves_the_rest_bit_equal(
    tmp_path: Path,
) -> None:
    module = Classifier()
    before = state_of(module)
    ema = Remembering(decay=0.7)
    keep = ModelCheckpoint(tmp_path, monitor="val_loss", filename="best", save_weights_only=True)
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2), ema, keep, max_epochs=3)
    tr.fit(module, images(), images())

    expected = ema.trained[0]
    for now in ema.trained[1:]:
        expected = {name: 0.7 * expected[name] + 0.3 * now[name] for name in now}
    trained = set(torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"])
    after = state_of(module)
    for name in trained:
        assert torch.allclose(after[name], expected[name], atol=1e-7), name
    # 0.7 x + 0.3 x is not x: the frozen part must not be averaged with itself
    assert differing(before, plain(module)) == {"net.head.weight", "net.head.bias"}
    # and one backbone is in memory, not two
    copied = dict(ema._average_model.module.named_parameters())
    shared = {name for name, p in module.named_parameters() if copied[name] is p}
    assert shared == set(after) - trained


def test_a_weights_only_checkpoint_holds_the_average_that_was_judged(tmp_path: Path) -> None:
    module, ema = Classifier(), Remembering(decay=0.7)
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_weights_only=True, save_top_k=-1,
                           monitor="val_loss")  # fmt: skip
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2), ema, keep, max_epochs=2)
    tr.fit(module, images(), images())
    saved = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, ema.averaged[1][name]) for name, tensor in saved.items())
    assert any(not torch.equal(tensor, ema.trained[1][name]) for name, tensor in saved.items())
    judged = keep.best_model_score
    fresh = Classifier()
    (found,) = trainer(tmp_path, lp.PEFT("lora", rank=2)).validate(
        fresh, images(), ckpt_path=keep.best_model_path, verbose=False
    )
    assert found["val_loss"] == pytest.approx(float(judged))


def test_an_average_leaves_indices_in_integer_buffers_alone(tmp_path: Path) -> None:
    module = Classifier("swin")
    before = {n: b.clone() for n, b in module.named_buffers() if not b.is_floating_point()}
    assert before
    ema = EMAWeightAveraging(decay=0.7)
    trainer(tmp_path, lp.PEFT("lora", rank=2), ema, max_epochs=2).fit(module, images(), images())
    after = dict(module.named_buffers())
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_an_average_beside_tied_weights_and_late_stages(tmp_path: Path) -> None:
    """A stage trains more of the backbone later: it is averaged too, and tied weights stay tied."""
    module, ema = Classifier(), Remembering(decay=0.7)
    module.net.blocks[1].mlp.fc1.weight = module.net.blocks[0].mlp.fc1.weight
    stages = lp.BackboneFreeze(unfreeze=[{"epoch": 1, "layers": "last:1"}])
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2, targets="attention"), stages, ema, max_epochs=2)
    tr.fit(module, images(), images())
    expected = ema.trained[0]
    for now in ema.trained[1:]:
        expected = {n: 0.7 * t + 0.3 * now[n] if t.is_floating_point() else t
                    for n, t in expected.items()}  # fmt: skip
    after = state_of(module)
    for name, tensor in after.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


def plain(module: nn.Module) -> dict[str, torch.Tensor]:
    """Give the state of a module that LoRA adapts under the names of the backbone's own."""
    return {n.replace(".base_layer", ""): t for n, t in state_of(module).items() if "lora" not in n}


def test_stochastic_weight_averaging_averages_what_is_trained(tmp_path: Path) -> None:
    def run(ckpt_path: Path | None = None) -> Classifier:
        torch.manual_seed(0)
        module = Classifier()
        before.update(state_of(module))
        swa = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1)
        keep = ModelCheckpoint(tmp_path / str(ckpt_path is None), filename="{epoch}", save_top_k=-1)
        tr = trainer(tmp_path, lp.PEFT("lora", rank=2), swa, keep, max_epochs=4)
        tr.fit(module, images(), images(), ckpt_path=ckpt_path)
        return module

    before: dict[str, torch.Tensor] = {}
    module = run()
    after = {
        n.replace(".base_layer", ""): t for n, t in state_of(module).items() if "lora" not in n
    }
    assert differing(before, after) == {"net.head.weight", "net.head.bias"}
    assert lp.find_adaptation(module.net) is not None


@pytest.mark.parametrize(
    "averaging",
    [WeightAveraging, lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)],
    ids=["running", "stochastic"],
)
def test_a_run_killed_behind_its_last_checkpoint_still_ends_in_the_average(
    averaging, tmp_path: Path
) -> None:
    def run(ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = Classifier()
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        tr = trainer(tmp_path, lp.PEFT("lora", rank=2), averaging(), keep, max_epochs=3)
        tr.fit(module, images(), images(), ckpt_path=ckpt_path)
        return state_of(module)

    whole = run()
    assert differing(run(tmp_path / "epoch=2.ckpt"), whole) == set()


@pytest.mark.parametrize(("method", "backbone"), [("lora", "tv_vit"), ("ssf", "eva")])
def test_updates_in_a_weight_are_averaged_and_a_run_with_them_resumes_bit_equal(
    method: str, backbone: str, tmp_path: Path
) -> None:
    def run(where: str, start: Path | None = None) -> tuple[Classifier, Remembering]:
        module, ema = Classifier(backbone), Remembering(decay=0.7)
        keep = ModelCheckpoint(tmp_path / where, filename="{epoch}", save_top_k=-1)
        torch.manual_seed(0)
        fit = trainer(tmp_path, lp.PEFT(method), ema, keep, max_epochs=2)
        fit.fit(module, images(), ckpt_path=start, weights_only=True)
        return module, ema

    whole, ema = run("whole")
    for before, after, now in zip(ema.averaged, ema.averaged[1:], ema.trained[1:], strict=False):
        for name, value in after.items():
            expected = torch.lerp(before[name], now[name], 0.3)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7, msg=name)
    moved = differing(ema.averaged[0], ema.averaged[-1])
    assert any("in_proj.lora_B" in name or "qkv.adapter_ssf" in name for name in moved)
    assert not any(name.endswith(("in_proj_weight", "qkv.weight")) for name in moved)
    resumed, _ = run("resumed", tmp_path / "whole" / "epoch=0.ckpt")
    assert differing(state_of(resumed), state_of(whole)) == set()
