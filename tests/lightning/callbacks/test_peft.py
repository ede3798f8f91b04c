"""One callback on a trainer that already exists, with modules that know nothing of it."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import peft
import pytest
import torch
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
)
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.utils.data import DataLoader

import lightning_peft as lp
from tests.support.runs import Classifier, Demo, Words, differing, equal, images, state_of, trainer
from tests.support.zoo import build

# --- a module of Lightning's own, untouched --------------------------------------------


def test_lightnings_own_demo_trains_and_its_checkpoint_is_small(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    full = trainer(tmp_path, max_steps=2)
    full.fit(Demo(), DataLoader(Words(), batch_size=4))
    full.save_checkpoint(tmp_path / "full.ckpt")

    module = Demo()
    before = state_of(module)
    small = trainer(tmp_path, lp.PEFT("lora", rank=4), max_steps=2)
    small.fit(module, DataLoader(Words(), batch_size=4))
    small.save_checkpoint(tmp_path / "small.ckpt")
    small.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)

    sizes = {p.stem: p.stat().st_size for p in tmp_path.glob("*.ckpt")}
    adaptation = lp.find_adaptation(module.model)
    assert adaptation is not None
    trained = adaptation.report().trained_bytes
    assert sizes["weights"] < 1.05 * trained + 20_000
    assert sizes["small"] < sizes["full"] / 8

    assert adaptation.head == ("decoder",)
    renamed = {now: old for old, now in adaptation.base_names.items()}
    for name, tensor in module.model.state_dict().items():  # frozen means frozen
        if name in renamed and name not in adaptation.head_names():
            assert torch.equal(tensor, before[f"model.{renamed[name]}"]), name


# a schedule has Lightning make the iterator over the data before a checkpoint is restored
@pytest.mark.parametrize("schedule", [(), (lp.WarmupCosine(warmup=0.2),)], ids=["", "schedule"])
def test_resumed_it_ends_bit_equal_to_the_run_that_was_never_stopped(
    schedule: tuple[L.Callback, ...], tmp_path: Path
) -> None:
    def run(epochs: int, directory: Path, ckpt_path: Path | None = None) -> nn.Module:
        L.seed_everything(1 if ckpt_path is None else 99, verbose=False)  # another process
        module = Demo()
        if ckpt_path is not None:  # the same pretrained backbone
            module.load_state_dict(initial)
        else:
            initial.update(state_of(module))
            L.seed_everything(2, verbose=False)
        loader = DataLoader(Words(), batch_size=4, shuffle=True)
        keep = ModelCheckpoint(directory, filename="{epoch}", save_top_k=-1)
        callbacks = [lp.PEFT("lora", rank=4, dropout=0.1), *schedule, keep]
        trainer(tmp_path, *callbacks, max_epochs=epochs).fit(
            module, loader, ckpt_path=ckpt_path, weights_only=True
        )
        return module

    initial: dict[str, torch.Tensor] = {}
    whole = run(4, tmp_path / "whole")
    resumed = run(4, tmp_path / "resumed", tmp_path / "whole" / "epoch=1.ckpt")
    assert differing(state_of(whole), state_of(resumed)) == set()


# --- every call of a trainer -----------------------------------------------------------


@pytest.mark.parametrize("late", ["init", "setup", "configure_model"])
def test_fit_resume_test_predict_load_and_fit_again(tmp_path: Path, late: str) -> None:
    module = Classifier(late=late)
    keep = ModelCheckpoint(tmp_path / "ckpt", monitor="val_loss", save_last=True)
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2), keep, max_epochs=2)
    tr.fit(module, images(), images())
    trained = state_of(module)
    content = torch.load(keep.best_model_path, weights_only=True)
    adaptation = lp.find_adaptation(module.net)
    assert set(content["state_dict"]) == {f"net.{n}" for n in adaptation.state_names()}

    tr.validate(module, images(), ckpt_path="best", verbose=False)
    tr.test(module, images(), ckpt_path="best", verbose=False)
    predicted = tr.predict(module, images(), ckpt_path=keep.last_model_path)
    assert equal(state_of(module), trained)

    fresh = Classifier(late=late)  # a new process: test straight from a checkpoint
    again = trainer(tmp_path, lp.PEFT("lora", rank=2)).predict(
        fresh, images(), ckpt_path=keep.last_model_path
    )
    assert all(torch.equal(a, b) for a, b in zip(predicted, again, strict=True))

    resumed = Classifier(late=late)
    trainer(tmp_path, lp.PEFT("lora", rank=2), max_epochs=3).fit(
        resumed, images(), images(), ckpt_path=keep.last_model_path
    )
    sites = len(lp.find_adaptation(resumed.net).sites)
    trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(resumed, images())  # a second fit
    assert len(lp.find_adaptation(resumed.net).sites) == sites
    assert set(state_of(resumed)) == set(trained)

    if late != "setup":  # Lightning's load_from_checkpoint does not call setup
        loaded = lp.load_from_checkpoint(Classifier, keep.last_model_path)
        assert type(loaded) is Classifier
        assert equal(state_of(loaded), trained)


def test_a_checkpoint_from_before_the_package_was_added_loads(tmp_path: Path) -> None:
    plain = Classifier()
    tr = trainer(tmp_path)
    tr.fit(plain, images())
    tr.save_checkpoint(tmp_path / "full.ckpt")

    module = Classifier()
    expected = trainer(tmp_path).predict(plain, images())
    got = trainer(tmp_path, lp.PEFT("lora", rank=2)).predict(
        module, images(), ckpt_path=tmp_path / "full.ckpt"
    )
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("weights_only", [False, True], ids=["with its optimizer", "weights only"])
def test_fitting_starts_with_the_weights_of_a_run_without_the_adapter(
    weights_only: bool, tmp_path: Path, said
) -> None:
    plain = Classifier()
    first = trainer(tmp_path, max_epochs=2)
    first.fit(plain, images())
    first.save_checkpoint(tmp_path / "full.ckpt", weights_only=weights_only)

    def fitted(module: Classifier, path: Path | None) -> dict[str, torch.Tensor]:
        L.seed_everything(1, verbose=False)
        peft = lp.PEFT("lora", rank=2)
        trainer(tmp_path, peft, max_epochs=2).fit(module, images(), ckpt_path=path)
        return state_of(module)

    by_hand = Classifier()
    by_hand.load_state_dict(plain.state_dict())
    expected = fitted(by_hand, None)
    assert "without the adapter" not in said()
    assert equal(fitted(Classifier(), tmp_path / "full.ckpt"), expected)
    assert "the schedule and the states of callbacks start anew" in said()


def broken(path: Path, change) -> Path:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path.with_name("broken.ckpt"))
    return path.with_name("broken.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda c: c["state_dict"].pop("net.blocks.0.attn.qkv.lora_A.default.weight"),
            r"1 missing: net\.blocks\.0\.attn\.qkv\.lora_A\.default\.weight",
            id="missing",
        ),
        pytest.param(
            lambda c: c["state_dict"].update(x=torch.zeros(1), y=torch.zeros(1)),
            "2 unknown: x, y",
            id="unknown",
        ),
        pytest.param(
            lambda c: c["lightning_peft"].update(format_version=9),
            "version 1 or older, got 9",
            id="9",
        ),
        pytest.param(
            lambda c: c["lightning_peft"]["adaptations"]["net"]["method"].update(rank=7),
            "another adaptation: 'net' was adapted with .*7",
            id="method",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, change, message: str) -> None:
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2))
    tr.fit(Classifier(), images())
    tr.save_checkpoint(tmp_path / "good.ckpt")
    path = broken(tmp_path / "good.ckpt", change)
    module = Classifier()
    with pytest.raises(lp.CheckpointError, match=message):
        trainer(tmp_path, lp.PEFT("lora", rank=2)).test(module, images(), ckpt_path=path)


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2))
    tr.fit(Classifier(), images())
    tr.save_checkpoint(tmp_path / "good.ckpt")
    other = Classifier()
    other.net = build("vit", seed=7)
    with pytest.raises(lp.BackboneMismatchError, match="'net': values of the frozen"):
        trainer(tmp_path, lp.PEFT("lora", rank=2)).test(
            other, images(), ckpt_path=tmp_path / "good.ckpt"
        )
    with pytest.warns(UserWarning, match="another backbone"):
        trainer(tmp_path, lp.PEFT("lora", rank=2, strict_backbone=False)).test(
            other, images(), ckpt_path=tmp_path / "good.ckpt", verbose=False
        )


def test_a_checkpoint_without_our_key_cannot_be_loaded_by_us(tmp_path: Path) -> None:
    tr = trainer(tmp_path)
    tr.fit(Classifier(), images())
    tr.save_checkpoint(tmp_path / "full.ckpt")
    with pytest.raises(lp.CheckpointError, match="one without the key 'lightning_peft'"):
        lp.load_from_checkpoint(Classifier, tmp_path / "full.ckpt")


# --- what it refuses -------------------------------------------------------------------


def test_two_callbacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(lp.MethodError, match="expected one PEFT callback"):
        trainer(tmp_path, lp.PEFT("lora"), lp.PEFT("bitfit")).fit(Classifier(), images())


def test_another_method_at_the_second_fit_is_refused(tmp_path: Path) -> None:
    module = Classifier()
    trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(module, images())
    with pytest.raises(lp.MethodError, match="is adapted with LoRA.*already"):
        trainer(tmp_path, lp.PEFT("bitfit")).fit(module, images())


def test_the_boring_model_is_adapted_up_to_the_rank_that_it_has(tmp_path: Path) -> None:
    module = BoringModel()
    trainer(tmp_path, lp.PEFT("lora"), limit_train_batches=2, limit_val_batches=0).fit(module)
    assert lp.find_adaptation(module).report().sites == {"layer (lora of rank 2)": 1}


def test_a_rank_larger_than_a_layer_that_is_named_is_refused(tmp_path: Path) -> None:
    peft = lp.PEFT("lora", rank=4, targets=["layer"])
    with pytest.raises(
        lp.MethodError, match=r"no larger than the layer, got 4 for layer \(at most 2\)"
    ):
        trainer(tmp_path, peft).fit(BoringModel())


def test_an_optimizer_without_the_adapter_is_refused(tmp_path: Path) -> None:
    module = Classifier()
    module.configure_optimizers = lambda: torch.optim.SGD(module.net.head.parameters(), lr=0.1)
    with pytest.raises(lp.MethodError, match="left out blocks.0.attn.qkv.lora_A.*and .* more"):
        trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(module, images())


class Bypass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x.mean((2, 3)))


def test_an_adapter_without_a_gradient_is_found_within_two_steps(tmp_path: Path) -> None:
    module = Classifier()
    module.net = Bypass()
    with pytest.raises(
        lp.MethodError, match=r"no gradient: net.unused.lora_A.*exclude=\[.unused.\]"
    ):
        trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(module, images())
    module = Classifier()
    module.net = Bypass()
    trainer(tmp_path, lp.PEFT("lora", rank=2, check_gradients=False)).fit(module, images())


# --- equal to peft ---------------------------------------------------------------------


def test_lora_through_lp_equals_lora_through_peft(tmp_path: Path) -> None:
    ours, theirs = build("vit"), build("vit")
    adaptation = lp.adapt(ours, lp.LoRA(rank=4, targets=["qkv", "fc1"]))
    for name in adaptation.adapter_names():  # away from zero, where the two would agree anyway
        nn.init.normal_(ours.get_parameter(name), std=0.1)
    wrapped = peft.get_peft_model(
        theirs,
        peft.LoraConfig(r=4, lora_alpha=4, target_modules=["qkv", "fc1"], modules_to_save=["head"]),
    )
    adaptation.save(tmp_path)
    wrapped.load_adapter(str(tmp_path), "default", is_trainable=True)

    x, y = next(iter(images()))
    losses = []
    for model in (ours, wrapped):
        model.train()
        losses.append(nn.functional.cross_entropy(model(x), y))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1])  # another order of the same products
    grads = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    expected = {
        n.removeprefix("base_model.model.").replace("modules_to_save.default.", ""): p.grad
        for n, p in wrapped.named_parameters()
        if p.grad is not None
    }
    assert grads.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(grads[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
