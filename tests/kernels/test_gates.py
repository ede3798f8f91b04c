"""Gated MLPs and RMS norms, as Llama has them: the gradients are the same, and less is kept."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

import lightning_peft as lp
from lightning_peft.kernels import low_rank_linear
from tests.support.graphs import kept_below

WIDE = (3, 7, 4)


class Gated:
    """Two adapted layers with a gate between them, and one behind it."""

    def __init__(self, act=F.silu, dropout=0.0, dtype=torch.float64):
        torch.manual_seed(0)
        self.x = torch.randn(3, 7, 6, dtype=dtype).requires_grad_()
        self.norm = nn.RMSNorm(6, dtype=dtype).requires_grad_(False)
        nn.init.normal_(self.norm.weight)
        shapes = {"gate": (4, 6), "up": (4, 6), "down": (6, 4)}
        self.layers = {
            name: (
                torch.randn(m, n, dtype=dtype),
                None,
                torch.randn(2, n, dtype=dtype).requires_grad_(),
                torch.randn(m, 2, dtype=dtype).requires_grad_(),
                0.5,
            )
            for name, (m, n) in shapes.items()
        }
        self.trained = [t for layer in self.layers.values() for t in layer[2:4]]
        self.act, self.dropout = act, dropout
        self.plain: set[str] = set()

    def layer(self, name, x, options):
        if name in self.plain:
            return F.linear(x, self.layers[name][0])
        return low_rank_linear(x, *self.layers[name], **options)

    def __call__(self, memory, training=True):
        options = {"dropout": self.dropout, "memory": memory, "training": training}
        x = self.norm(self.x)
        active = self.act(self.layer("gate", x, options))
        return self.layer("down", active * self.layer("up", x, options), options)

    def slopes(self, memory, **options):
        torch.manual_seed(1)
        out = self(memory, **options)
        inputs = [self.x, *self.trained]
        return torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)


def same(one, other):
    for got, expected in zip(one, other, strict=True):
        torch.testing.assert_close(got, expected)


def kept(out, shape=WIDE):
    """Count the storages of a shape that the graph below a tensor keeps."""
    size = torch.Size(shape).numel()
    return len({t.data_ptr() for t in kept_below(out) if t.numel() == size})


@pytest.mark.parametrize("memory", ["default", "low", "gates", "lowest"])
@pytest.mark.parametrize("act", [F.silu, F.gelu])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_gradients_are_those_of_what_was_kept(memory, act, dropout):
    gated = Gated(act, dropout)
    same(gated.slopes(memory), gated.slopes("high"))


@pytest.mark.parametrize("plain", ["gate", "up"])
def test_only_what_an_adapted_layer_gives_is_made_again(plain):
    gated = Gated()
    gated.plain = {plain}
    gated.trained = [t for n, layer in gated.layers.items() if n != plain for t in layer[2:4]]
    same(gated.slopes("lowest"), gated.slopes("high"))
    assert kept(gated("lowest")) == 1


def test_how_many_wide_tensors_are_kept():
    gated = Gated()
    counts = {m: kept(gated(m)) for m in ("high", "default", "low", "gates", "lowest")}
    # both factors, the activation and the product; the last two are made again
    assert counts == {"high": 4, "default": 2, "low": 2, "gates": 0, "lowest": 0}
    assert kept(gated("high"), (3, 7, 6)) - kept(gated("low"), (3, 7, 6)) == 1  # of the norm


@pytest.mark.parametrize("looks", ["a hook", "retain_grad", "evaluation"])
def test_the_gradient_of_the_activation_can_be_looked_at(looks):
    seen = []

    def act(x):
        value = F.silu(x)
        if looks == "a hook":
            value.register_hook(lambda grad: seen.append(grad.clone()))
        if looks == "retain_grad":
            value.retain_grad()
        values.append(value)
        return value

    def run(memory):
        values.clear()
        seen.clear()
        grads = gated.slopes(memory, training=looks != "evaluation")
        out = gated(memory, training=looks != "evaluation")
        if looks == "a hook":
            return grads, seen[0]
        if looks == "evaluation":
            return grads, torch.autograd.grad(out.square().sum(), values[-1])[0]
        out.square().sum().backward()
        return grads, values[-1].grad

    values = []
    gated = Gated(act)
    (got, one), (expected, other) = run("lowest"), run("high")
    same([*got, one], [*expected, other])


def test_many_gradients_at_once():
    gated = Gated()
    rows = torch.eye(6, dtype=torch.float64)[:, None, None].expand(6, 3, 7, 6)
    for memory in ("default", "lowest"):
        inputs = [gated.x, *gated.trained]
        got = torch.autograd.grad(gated(memory), inputs, grad_outputs=rows, is_grads_batched=True)
        expected = [torch.autograd.grad(gated("high"), inputs, row) for row in rows]
        same(got, [torch.stack(each) for each in zip(*expected, strict=True)])


def test_a_change_in_place_is_an_error_as_it_is_in_torch():
    gated = Gated()
    gated.plain = {"gate", "up"}
    changed = []
    gated.act = lambda x: changed.append(x) or F.silu(x)
    out = gated("default")
    with torch.no_grad():
        changed[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


CONFIG = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "use_cache": False,
}  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_that_of_peft(kind, dtype):
    torch.manual_seed(0)
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**CONFIG)),
        "gemma": lambda: GemmaForCausalLM(GemmaConfig(**CONFIG)),
    }
    base = made[kind]().to(dtype)
    ids = torch.randint(50, (2, 9))

    def step(model):
        torch.manual_seed(1)
        factors = {
            name.removeprefix("base_model.model."): parameter
            for name, parameter in model.named_parameters()
            if "lora_" in name
        }
        with torch.no_grad():
            for _, parameter in sorted(factors.items()):
                parameter.copy_(torch.randn_like(parameter) / 10)
        out = model.train()(input_ids=ids, labels=ids).loss
        size = sum(kept(out, (2, 9, width)) for width in (32, 48))
        out.backward()
        return {name: p.grad for name, p in factors.items()}, size

    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS)
    expected, most = step(peft.get_peft_model(copy.deepcopy(base), config))
    sizes = [most]
    for memory in ("default", "low", "lowest"):
        model = copy.deepcopy(base)
        lp.adapt(model, lp.LoRA(rank=2, targets=TARGETS), head=False, memory=memory)
        got, size = step(model)
        sizes.append(size)
        assert got.keys() == expected.keys()
        tolerance = 1e-4 if dtype == torch.float32 else 0.1  # another order of roundings
        for name, grad in got.items():
            error = (grad - expected[name]).norm() / expected[name].norm()
            assert error < tolerance, (memory, name)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_activation_checkpointing_decides_for_itself():
    gated = Gated()
    inputs = [gated.x, *gated.trained]
    out = checkpoint(lambda x: gated("lowest"), gated.x, use_reentrant=False)
    same(torch.autograd.grad(out.square().sum(), inputs), gated.slopes("high"))
