"""Nothing that is not finite is merged; while merged, the state is neither saved nor loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from tests.fixtures.backbone import Tiny, TinyModule, example
from tests.support.trainers import quiet_trainer
from tests.support.zoo import build

MERGEABLE = [
    ("lora", "vit"), ("dora", "vit"), ("lora_fa", "vit"), ("lora_qv", "vit"), ("hydra", "vit"),
    ("fact_tt", "vit"), ("fact_tk", "vit"), ("ssf", "vit"), ("repadapter", "vit"), ("ia3", "vit"),
    ("lora", "resnet"),
]  # fmt: skip
TUNERS = [("ln_tuning", "vit"), ("osf", "vit"), ("boft", "resnet"), ("loha", "resnet")]


def broken_merge_is_refused(model: nn.Module, value: float) -> None:
    adaptation = lp.find_adaptation(model)
    name = adaptation.adapter_names()[-1]
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(lp.MethodError, match=f"finite numbers in the adapter, got .* in {name}"):
        adaptation.merge()
    assert not adaptation.merged
    after = model.state_dict()
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        torch.testing.assert_close(after[key], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("method", "backbone"), MERGEABLE)
def test_an_adapter_that_is_not_finite_is_not_merged(method, backbone, value) -> None:
    model = build(backbone)
    lp.adapt(model, method)
    broken_merge_is_refused(model, value)


@pytest.mark.parametrize(("tuner", "backbone"), TUNERS)
def test_nor_is_one_of_a_tuner_of_peft(tuner, backbone) -> None:
    model = build(backbone)
    targets = ["layer1.0.conv1"] if tuner == "boft" else "auto"  # a size that BOFT can divide
    lp.adapt(model, lp.HF(tuner, targets=targets))
    broken_merge_is_refused(model, float("nan"))


@pytest.mark.parametrize("method", ["lora", "ssf", "lora_qv"])
def test_a_sum_that_overflows_is_not_merged(method) -> None:
    model = build("vit").half()
    adaptation = lp.adapt(model, method)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.fill_(6e4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(lp.MethodError, match="finite numbers in the merged weights"):
        adaptation.merge()
    assert not adaptation.merged
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == before[key].dtype
        assert torch.equal(tensor, before[key]), key


def test_codes_are_no_weights_to_merge_into() -> None:
    model = Tiny()
    adaptation = lp.adapt(model, "ssf")
    layer = model.blocks[0].fc1
    layer.weight = nn.Parameter((layer.weight * 100).to(torch.int8), requires_grad=False)
    with pytest.raises(lp.MethodError, match=r"got codes of torch.int8 in blocks.0.fc1.weight"):
        adaptation.merge()
    assert not adaptation.merged
    assert not any(getattr(module, "folded", False) for module in model.modules())


class Validated(TinyModule):
    def validation_step(self, batch, index) -> None:
        self.model(batch[0])


def fitted(method) -> tuple[Validated, object]:
    module, trainer = Validated(), quiet_trainer(lp.PEFT(method), max_steps=2)
    trainer.fit(module, DataLoader(TensorDataset(example()), batch_size=2))
    return module, trainer


@pytest.mark.parametrize("method", [lp.LoRA(rank=2), ["ssf", "last_blocks"]], ids=str)
def test_no_state_goes_in_or_out_while_it_is_merged(method, tmp_path) -> None:
    module, trainer = fitted(method)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    adaptation = lp.find_adaptation(module.model)
    adaptation.save(tmp_path / "adapter")
    state = adaptation.state_dict()
    expected = module.eval().model(example()).detach()
    adaptation.merge()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    data = DataLoader(TensorDataset(example()), batch_size=2)
    with pytest.raises(lp.MethodError, match=r"saving a checkpoint: .* Call unmerge\(\) first"):
        trainer.save_checkpoint(tmp_path / "merged.ckpt")
    with pytest.raises(lp.MethodError, match=r"loading a checkpoint: .* Call unmerge\(\) first"):
        trainer.fit(module, data, ckpt_path=path)
    with pytest.raises(lp.MethodError, match="loading a checkpoint: expected an adapter beside"):
        trainer.validate(module, data, ckpt_path=path)
    with pytest.raises(lp.MethodError, match=r"load_state_dict\(\): .* merged into them"):
        adaptation.load_state_dict(state)
    with pytest.raises(lp.MethodError, match=r"state_dict\(\): .* merged into them"):
        adaptation.state_dict()
    with pytest.raises(lp.MethodError, match=r"load_adapter\(\): .* merged into them"):
        lp.load_adapter(module.model, tmp_path / "adapter")
    with pytest.raises(lp.AdapterFileError, match="merged into them"):
        adaptation.save(tmp_path / "again")
    assert not (tmp_path / "merged.ckpt").exists()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    adaptation.unmerge()
    torch.testing.assert_close(module.model(example()), expected)

    fresh, trainer = Validated(), quiet_trainer(lp.PEFT(method))
    trainer.validate(fresh, data, ckpt_path=path, verbose=False)
    torch.testing.assert_close(fresh.eval().model(example()).detach(), expected)
