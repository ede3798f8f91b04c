"""LoRA's variants keep the forward of peft: the layer says that it is one, whatever its name."""

import dataclasses

import peft
import pytest
import torch
from torch import nn

import lightning_peft as lp
from lightning_peft.kernels import acceleration_of

BLOCKS = {"target_modules_bd_a": ["0"], "target_modules_bd_b": ["2"], "nblocks": 2}

VARIANTS = {
    "use_dora": lambda: True,
    "use_bdlora": lambda: peft.tuners.lora.config.BdLoraConfig(**BLOCKS),
    "velora_config": lambda: peft.VeloraConfig(),
    "monteclora_config": lambda: peft.MontecloraConfig(),
    "init_lora_weights": lambda: "mica",
    "kasa_config": lambda: peft.KasaConfig(),
}
KNOWN = {field.name for field in dataclasses.fields(peft.LoraConfig)}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))


def result(model, x):
    torch.manual_seed(3)  # some draw in their forward
    output = model.train()(x)
    output.square().sum().backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_computes_what_peft_alone_does(name):
    if name not in KNOWN:
        pytest.skip(f"peft {peft.__version__} has no {name}")
    options = {"r": 4, "target_modules": ["0", "2"], name: VARIANTS[name]()}
    alone = peft.inject_adapter_in_model(peft.LoraConfig(**options), network())
    model = network()
    lp.adapt(model, lp.HF.from_peft(peft.LoraConfig(**options)), head=False)
    torch.manual_seed(1)
    with torch.no_grad():  # it begins as the backbone alone, whatever is wrong
        for key, tensor in alone.named_parameters():
            if "lora_" in key:
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    model.load_state_dict(alone.state_dict())
    plain = network()
    lp.adapt(plain, lp.HF("lora", targets=["0", "2"], r=4), head=False)

    x = torch.randn(500, 16)  # a small input goes to peft in any case
    (expected, slopes), (got, own) = result(alone, x), result(model, x)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)  # the same operations
    assert own.keys() == slopes.keys()
    for key, gradient in slopes.items():
        torch.testing.assert_close(own[key], gradient, rtol=0, atol=0, msg=key)
    assert acceleration_of(model).fast == ()
    assert all("variant of LoRA" in why for why in acceleration_of(model).plain.values())
    assert acceleration_of(plain).fast == ("0", "2")
