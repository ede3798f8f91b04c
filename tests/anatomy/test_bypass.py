"""Bypassed modules, held against what hooks see when the model really runs."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import FalconMambaConfig, FalconMambaForCausalLM

import lightning_peft as lp
from lightning_peft.anatomy import bypassed
from tests.support.zoo import ZOO, output_of


def everything(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules()]


BYPASSED = {
    "swinv2": ["attn.qkv"],
    "beit": ["attn.qkv"],
    "eva": ["attn.qkv"],
    "tv_swin": ["attn.qkv", "attn.proj"],
    "tv_vit": ["self_attention.out_proj"],
}


@pytest.mark.parametrize("name", ZOO)
def test_families(name, model_of, anatomy_of):
    expected = {
        f"{block}.{part}" for block in anatomy_of(name).blocks for part in BYPASSED.get(name, [])
    }
    assert set(bypassed(model_of(name), everything(model_of(name)))) == expected


@pytest.mark.parametrize("name", ZOO)
def test_agrees_with_hooks_on_a_run(name, model_of):
    model = model_of(name)
    called: set[str] = set()
    # T5 keeps an embedding that nothing calls: a copy of it is in each stack.
    own = [
        n
        for n, m in model.named_modules()
        if n and m._parameters and not isinstance(m, nn.Embedding)
    ]
    hooks = [
        model.get_submodule(n).register_forward_hook(lambda *_, n=n: called.add(n)) for n in own
    ]
    try:
        with torch.no_grad():
            output_of(model, name)
    finally:
        for hook in hooks:
            hook.remove()
    assert set(bypassed(model, own)) == set(own) - called


def test_only_what_is_asked_for_is_told(model_of):
    assert list(bypassed(model_of("beit"), ["blocks.1.attn.qkv", "blocks.1.attn.proj"])) == [
        "blocks.1.attn.qkv"
    ]
    assert bypassed(model_of("beit"), []) == {}
    assert bypassed(model_of("beit"), ["no.such.module"]) == {}


def test_the_reason_names_the_reader(model_of):
    reason = bypassed(model_of("beit"), ["blocks.0.attn.qkv"])["blocks.0.attn.qkv"]
    assert "`blocks.0.attn` (Attention) reads `qkv.weight`" in reason


def test_beit_without_bias_calls_its_qkv():
    model = timm.create_model(
        "beit_base_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=2, qkv_bias=False
    )
    assert bypassed(model, ["blocks.0.attn.qkv"]) == {}


class Base(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        for name, value in attributes.items():
            setattr(self, name, value)


def linear(x, weight):
    return F.linear(x, weight)


def apply(x, module):
    return F.linear(x, module.weight)


def dtype_of(weight):
    return weight.dtype


class Reads(Base):
    def forward(self, x):
        return F.linear(x, self.a.weight)


class Calls(Base):
    def forward(self, x):
        return self.a(x.to(self.a.weight.dtype)).reshape(self.a.weight.shape[0], -1)


class Alias(Base):
    def forward(self, x):
        layer = self.a
        weight = layer.weight
        return x @ weight.t()


class LooksAtAlias(Base):
    def forward(self, x):
        weight = self.a.weight
        return self.a(x.to(weight.dtype)) if weight.is_cuda else self.a(x)


class ThroughFunction(Base):
    def forward(self, x):
        return linear(apply(x, self.b), self.a.weight)


class AsksAFunction(Base):
    def forward(self, x):
        return self.a(x.to(dtype_of(self.a.weight)))


class Condition(Base):
    def forward(self, x):
        if self.flag is None:
            return self.a(x)
        return F.linear(x, self.a.weight)


class Expression(Base):
    def forward(self, x):
        return self.a(x) if not self.flag else F.linear(x, self.a.weight)


class Depends(Base):
    def forward(self, x):
        if x.sum() > 0:
            return self.a(x)
        return F.linear(x, self.a.weight)


class Method(Base):
    def forward(self, x):
        return self._project(x)

    def _project(self, x):
        return F.linear(x, self.a.weight)


class Unreached(Base):
    def forward(self, x):
        return self.a(x)

    def fuse(self):
        return self.a.weight @ self.b.weight

    def reset_parameters(self):
        nn.init.zeros_(self.a.weight)


class Super(Reads):
    def forward(self, x):
        return super().forward(x)


class Property(Base):
    @property
    def joined(self):
        return torch.cat([self.a.weight, self.b.weight])

    def forward(self, x):
        return F.linear(x, self.joined)


class Loop(Base):
    def forward(self, x):
        for layer in self.layers:
            x = F.linear(x, layer.weight)
        return x


class LoopCalls(Base):
    def forward(self, x):
        for index, layer in enumerate(self.layers):
            x = layer(x.to(self.layers[index].weight.dtype))
        return x


class Comprehension(Base):
    def forward(self, x):
        return F.linear(x, torch.cat([layer.weight for layer in self.layers]))


class Handed(Base):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.a, x, self.a.weight)


class Indexed(Base):
    def forward(self, x):
        return self.layers[1](F.linear(x, self.layers[0].weight))


class Twice(Base):
    def forward(self, x):
        return linear(linear(x, self.a.weight), self.b.weight)


class ByName(Base):
    def forward(self, x):
        return F.linear(x, getattr(self, "a").weight)  # noqa: B009


class ByUnknownName(Base):
    def forward(self, x):
        return getattr(self, "ab"[x.shape[0] % 2])(F.linear(x, self.a.weight))


class ByUnknownIndex(Base):
    def forward(self, x):
        x = F.linear(x, self.layers[0].weight)
        return self.layers[x.shape[0] % 2](x)


class EitherOfTwo(Base):
    def forward(self, x):
        if x.sum() > 0:  # noqa: SIM108
            layer = self.a
        else:
            layer = self.b
        return layer(F.linear(x, self.a.weight + self.b.weight))


class InAList(Base):
    def forward(self, x):
        for layer, other in zip(self.layers, [self.a, self.b], strict=False):
            x = other(F.linear(x, layer.weight))
        return x


class CallsTheWhole(Base):
    def __init__(self):
        super().__init__(sequence=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))

    def forward(self, x):
        return self.sequence(F.linear(x, self.sequence[0].weight))


class OnlyAsked(Base):
    def forward(self, x):
        if isinstance(self.a, nn.Linear) and hasattr(self.a, "weight"):
            return F.linear(x, self.a.weight)
        return x


class Changes(Base):
    def forward(self, x):
        count = 0
        for _ in range(x.shape[0]):
            count += 1
        return self.a(x) if count > 0 else F.linear(x, self.a.weight)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4))

    def added(self, x):
        return x + self.table


class OtherMethod(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Table()

    def forward(self, x):
        return self.inner.added(x)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Base()

    def forward(self, x):
        return F.linear(x, self.inner.a.weight)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Reads(), {"a"}),
        (Calls(), set()),
        (Alias(), {"a"}),
        (LooksAtAlias(), set()),
        (ThroughFunction(), {"a", "b"}),
        (AsksAFunction(), set()),
        (Condition(flag=None), set()),
        (Condition(flag=1), {"a"}),
        (Expression(flag=False), set()),
        (Expression(flag=True), {"a"}),
        (Depends(), set()),
        (Method(), {"a"}),
        (Unreached(), set()),
        (Super(), {"a"}),
        (Property(), {"a", "b"}),
        (Loop(), {"layers.0", "layers.1"}),
        (LoopCalls(), set()),
        (Comprehension(), {"layers.0", "layers.1"}),
        (Handed(), set()),
        (Indexed(), {"layers.0"}),
        (Twice(), {"a", "b"}),
        (ByName(), {"a"}),
        (ByUnknownName(), set()),
        (ByUnknownIndex(), set()),
        (EitherOfTwo(), set()),
        (InAList(), {"layers.0", "layers.1"}),
        (CallsTheWhole(), set()),
        (OnlyAsked(), {"a"}),
        (Changes(), set()),
        (OtherMethod(), {"inner"}),
        (Nested(), {"inner.a"}),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, nn.Module) else "",
)
def test_ways_to_read_a_weight(model, expected):
    assert set(bypassed(model, everything(model))) == expected


def test_without_source_nothing_is_known():
    scope: dict[str, object] = {"Base": Base, "F": F}
    exec(
        "class Typed(Base):\n    def forward(self, x):\n        return F.linear(x, self.a.weight)",
        scope,
    )
    model = scope["Typed"]()
    assert bypassed(model, everything(model)) == {}


def test_a_compiled_model():
    assert list(bypassed(torch.compile(Reads()), ["_orig_mod.a"])) == ["_orig_mod.a"]


@pytest.mark.parametrize("quantised", [False, True])
def test_a_config_that_says_whether_it_is_quantised_decides_the_branch(quantised):
    config = FalconMambaConfig(
        vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1, intermediate_size=32
    )
    model = FalconMambaForCausalLM(config)
    if quantised:
        model.config._is_quantized = True  # then the layer is called
    name = "backbone.layers.0.mixer.dt_proj"
    assert list(bypassed(model, [name])) == ([] if quantised else [name])


def test_what_peft_refuses_in_mamba_is_left_out_and_told():
    model = FalconMambaForCausalLM(
        FalconMambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1)
    )
    adaptation = lp.adapt(model, "lora", rank=1)
    assert not any(site.module.endswith("out_proj") for site in adaptation.sites)
    assert any("out_proj.weight" in line and "peft refuses" in line for line in adaptation.left_out)
    plain = FalconMambaForCausalLM(model.config)
    with pytest.raises(lp.MethodError, match="'out_proj' is incompatible with Mamba-based models"):
        lp.adapt(plain, "lora", rank=1, targets=["in_proj", "out_proj"])
