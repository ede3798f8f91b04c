"""``PEFT(checkpoints=...)``: what each form holds, who can load it, and how runs resume from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from tests.support.runs import differing, equal, state_of, trainer


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc, self.back = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("scale", torch.full((6,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.back(torch.relu(self.fc(self.norm(x)))) * self.scale


class Net(nn.Module):
    """Three blocks, and an output that is tied to the input: one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 6, bias=False)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(6, 3)
        self.again = nn.Linear(6, 6, bias=False)
        self.again.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.blocks(self.embed(x))))


class Module(L.LightningModule):
    """A user's module, whose network has the weights of a seed unless another one is given."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = Net()
        self.extra = nn.Linear(3, 3)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.extra(self.net(batch[0])), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.extra(self.net(batch[0])), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 6, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(16) % 3), batch_size=4)


METHODS = {
    "lora": lp.LoRA(rank=2, targets=["fc"]),
    "pissa": lp.HF("lora", r=2, targets=["fc"], init_lora_weights="pissa"),
    "in place": lp.BitFit() + lp.LoRA(rank=2, targets=["fc"]),
}


def fitted(tmp_path: Path, kind: str, *, method: Any = None, **settings: Any) -> tuple[Any, ...]:
    L.seed_everything(0, verbose=False)
    module = Module()
    keep = ModelCheckpoint(tmp_path / kind, monitor="val_loss", save_last=True)
    extra = settings.pop("extra", [])
    method = METHODS["lora"] if method is None else method
    tr = trainer(
        tmp_path, lp.PEFT(method, checkpoints=kind, **settings), keep, *extra, max_epochs=2
    )
    tr.fit(module, data(), data())
    return module, tr, keep


def outputs(module: Module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval().net(next(iter(data()))[0])


@pytest.mark.parametrize("method", METHODS)
def test_merged_ones_are_what_the_module_would_have_saved(tmp_path: Path, method: str) -> None:
    module, _, keep = fitted(tmp_path, "merged", method=METHODS[method])
    for name in ("net.blocks.0.norm.weight", "net.embed.weight"):
        assert torch.equal(state_of(module)[name], state_of(Module())[name])  # bit for bit

    saved = torch.load(keep.last_model_path, weights_only=True)["state_dict"]
    plain = Module(seed=1)
    plain.load_state_dict(saved)  # strictly
    assert torch.allclose(outputs(plain), outputs(module), atol=1e-5)
    adaptation = lp.find_adaptation(module.net)
    with torch.no_grad():  # W + s B A, by hand
        layer = module.net.blocks[0].fc
        low = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        dense = layer.base_layer.weight + layer.scaling["default"] * low  # of pissa, of the rest
    assert torch.allclose(saved["net.blocks.0.fc.weight"], dense, atol=1e-6)
    assert not adaptation.merged


def test_full_ones_hold_the_base_under_its_own_names_and_the_adapter_beside(tmp_path: Path) -> None:
    module, _, keep = fitted(tmp_path, "full")
    saved = torch.load(keep.last_model_path, weights_only=True)["state_dict"]
    fresh = Module()
    missing, unexpected = fresh.load_state_dict(saved, strict=False)
    assert missing == []
    assert {name.split(".")[-3] for name in unexpected} == {"lora_A", "lora_B"}
    assert torch.equal(saved["net.blocks.0.fc.weight"], Module().net.blocks[0].fc.weight)

    # the file alone is enough: its base takes the place of another one
    loaded = lp.load_from_checkpoint(Module, keep.last_model_path, seed=5)
    assert equal(state_of(loaded), state_of(module))
    loaded.on_save_checkpoint(again := {"state_dict": loaded.state_dict()})
    assert (
        again["lightning_peft"]["adaptations"]["net"]["fingerprint"]
        == lp.find_adaptation(module.net).fingerprint
    )


@pytest.mark.parametrize("method", ["in place", "pissa"])
def test_a_full_one_needs_its_backbone_if_something_was_kept_of_it(
    tmp_path: Path, method: str
) -> None:
    module, _, keep = fitted(tmp_path, "full", method=METHODS[method])
    saved = torch.load(keep.last_model_path, weights_only=True)["state_dict"]
    base = Module().net.blocks[0].fc.weight
    assert torch.equal(saved["net.blocks.0.fc.weight"], base)  # before pissa rewrote it
    loaded = lp.load_from_checkpoint(Module, keep.last_model_path)
    assert equal(state_of(loaded), state_of(module))
    with pytest.raises(lp.BackboneMismatchError, match="trained on another backbone"):
        lp.load_from_checkpoint(Module, keep.last_model_path, seed=5)


@pytest.mark.parametrize(
    ("kind", "average"),
    [
        pytest.param("slim", False, marks=pytest.mark.slow),
        ("full", False),
        ("merged", False),
        pytest.param("slim", True, marks=pytest.mark.slow),
        pytest.param("full", True, marks=pytest.mark.slow),
        ("merged", True),
    ],
)
def test_a_run_resumes_is_tested_and_loads_from_each(
    tmp_path: Path, kind: str, average: bool
) -> None:
    def extra() -> list[Any]:
        return [WeightAveraging()] if average else []

    module, tr, keep = fitted(tmp_path, kind, extra=extra())
    if not average:  # which Lightning tests with the weights that are not averaged
        (found,) = tr.test(module, data(), ckpt_path="best", verbose=False)
        assert found["val_loss"] == pytest.approx(float(keep.best_model_score), abs=1e-6)

    L.seed_everything(0, verbose=False)
    first = Module()
    half = ModelCheckpoint(tmp_path / "half", save_last=True)
    method = METHODS["lora"]
    one = trainer(tmp_path, lp.PEFT(method, checkpoints=kind), half, *extra(), max_epochs=1)
    one.fit(first, data(), data())
    resumed = Module()
    two = trainer(tmp_path, lp.PEFT(method, checkpoints=kind), *extra(), max_epochs=2)
    two.fit(resumed, data(), data(), ckpt_path=half.last_model_path)
    whole = fitted(tmp_path / "whole", kind, extra=extra())[0]
    assert differing(state_of(whole), state_of(resumed)) == set()
    if not average:
        loaded = lp.load_from_checkpoint(Module, keep.last_model_path)
        assert equal(state_of(loaded), state_of(whole))


class Twice(Module):
    """The backbone has two names."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.again = self.net


@pytest.mark.parametrize("kind", ["full", "merged"])
def test_a_backbone_with_two_names_has_both_in_the_file(tmp_path: Path, kind: str) -> None:
    module = Twice()
    tr = trainer(tmp_path, lp.PEFT(METHODS["lora"], checkpoints=kind))
    tr.fit(module, data())
    tr.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    plain = Twice(seed=1)
    missing, unexpected = plain.load_state_dict(saved, strict=False)
    assert missing == []
    assert all(kind == "full" and ".lora_" in name for name in unexpected)
    if kind == "merged":
        assert torch.allclose(outputs(plain), outputs(module), atol=1e-5)
    loaded = lp.load_from_checkpoint(Twice, tmp_path / "last.ckpt")
    assert equal(state_of(loaded), state_of(module))


def test_what_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(lp.MethodError, match=r"expected checkpoints to be one of .* got 'whole'"):
        lp.PEFT("lora", checkpoints="whole")
    with pytest.raises(lp.MethodError, match="checkpoints='merged': expected a method that can be"):
        lp.PEFT("adaptformer", checkpoints="merged")
    with pytest.raises(lp.MethodError, match="merge_at_end=True: expected a method that can be"):
        lp.PEFT("adaptformer", merge_at_end=True)

    class Uncopied(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net.lock = iter(())  # no copy of it can be made
            self.net.generator = (i for i in range(2))

    with pytest.raises(lp.MethodError, match=r"checkpoints='merged': expected a backbone that can"):
        trainer(tmp_path, lp.PEFT("lora", checkpoints="merged")).fit(Uncopied(), data())

    keep = fitted(tmp_path, "merged")[2]
    content = torch.load(keep.last_model_path, weights_only=True)
    content["lightning_peft"]["checkpoints"] = "other"
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(lp.CheckpointError, match="of the form slim, full, merged"):
        lp.load_from_checkpoint(Module, tmp_path / "other.ckpt")
