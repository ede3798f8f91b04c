"""An adapter beside codes computes what it computes beside the weights that these stand for."""

from __future__ import annotations

import pytest
import torch

import lightning_peft as lp
from tests.quantized.models import MODELS, bnb, dense, llama, output, perturbed, tokens, vit

CASES = [
    ("llama", 4, "lora", {"rank": 2}),
    ("llama", 8, "lora", {"rank": 2}),
    ("bert", 4, "bitfit", {}),
    ("bert", 8, "ssf", {}),
    ("vit", 4, "houlsby", {}),
    ("vit", 4, "fact_tt", {"rank": 2}),
    ("vit", 8, "repadapter", {}),
    ("llama", 4, "dora", {"rank": 2}),
    ("bert", 4, "hf", {"tuner": "oft"}),
    ("llama", 8, "hf", {"tuner": "loha", "r": 2}),
]


@pytest.mark.parametrize(("name", "bits", "method", "settings"), CASES)
def test_outputs_and_gradients_are_those_of_the_dense_model(name, bits, method, settings) -> None:
    coded = lp.adapt(MODELS[name](bits), method, **settings)
    plain = lp.adapt(dense(MODELS[name](bits)), method, **settings)
    perturbed(coded)
    with torch.no_grad():
        for key, tensor in plain.state_dict().items():
            tensor.copy_(coded.state_dict()[key])
    outputs = []
    for adaptation in (coded, plain):
        torch.manual_seed(3)  # for the adapter's own dropout
        outputs.append(output(adaptation.model.train()))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for found in outputs:
        found.square().mean().backward()
    for mine, theirs in zip(coded.trained_parameters(), plain.trained_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_ranks_and_counts_are_those_of_the_dense_model() -> None:
    narrow = {"rank": 40, "targets": "all-linear"}
    coded, plain = lp.adapt(llama(), "lora", **narrow), lp.adapt(dense(llama()), "lora", **narrow)
    assert coded.report().sites == plain.report().sites
    assert coded.report().trained == plain.report().trained
    assert coded.report().total == plain.report().total
    assert {p.dtype for p in coded.trained_parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("method", "settings", "match"),
    [
        ("full", {}, "full: expected weights of floating-point numbers to train, got codes"),
        ("last_blocks", {"n": 1}, "last_blocks: expected weights .* keep it out of the quanti"),
        ("lora", {"also_train": "*.q_proj"}, "got codes, which have no gradient, in .*q_proj"),
        ("hf", {"tuner": "hira"}, "hira: expected layers of .* got codes in .*nf4.*Use 'lora'"),
        ("hf", {"tuner": "lokr"}, "lokr: expected layers of floating-point numbers"),
    ],
)
def test_what_needs_numbers_is_refused(method, settings, match) -> None:
    model = llama()
    before = [type(module) for module in model.modules()]
    with pytest.raises(lp.MethodError, match=match):
        lp.adapt(model, method, **settings)
    assert [type(module) for module in model.modules()] == before


def test_dora_beside_int8_on_a_cpu_is_refused() -> None:
    with pytest.raises(lp.MethodError, match="expected DoRA on a GPU .* base in 4 bits"):
        lp.adapt(llama(8), "dora", rank=2)


def test_a_quantised_head_is_refused_unless_it_is_no_head() -> None:
    model = vit()
    model.head = bnb.nn.Linear4bit(64, 5, quant_type="nf4").to("cpu")
    with pytest.raises(lp.MethodError, match="got codes.*head.weight.*or pass head=False"):
        lp.adapt(model, "lora", rank=2)
    assert lp.adapt(model, "lora", rank=2, head=False).report().head == 0


def test_an_evaluation_does_not_pack_the_codes() -> None:
    adaptation = lp.adapt(llama(), "lora", rank=2)
    layer = adaptation.model.model.layers[0].mlp.up_proj.base_layer
    codes = layer.weight.detach().clone()
    with torch.no_grad():
        output(adaptation.model.eval())
    assert torch.equal(layer.weight, codes)
    output(adaptation.model.train()).square().mean().backward()  # packed codes give no gradient
    first = adaptation.trained_parameters()[1]
    assert first.grad is not None
    assert first.grad.any()


def test_the_plan_counts_the_codes_and_what_they_need() -> None:
    given = {"input_ids": tokens(), "labels": tokens()}
    model = llama()
    coded, plain = (lp.plan(m, "lora", rank=2, inputs=given) for m in (model, dense(llama())))
    held = {id(p): p.nbytes for p in model.parameters()}
    held |= {id(b): b.nbytes for b in model.buffers()}
    for layer in model.modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            state = layer.weight.quant_state
            parts = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            held |= {id(tensor): tensor.nbytes for tensor in parts}
    assert coded.memory.weights == sum(held.values()) + coded.memory.gradients
    assert coded.memory.gradients == plain.memory.gradients
    assert coded.memory.peak < plain.memory.peak
    assert coded.full == plain.full
    assert coded.report.total == plain.report.total
