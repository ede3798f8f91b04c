"""What a plan says is what adapting does, and making one changes nothing."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import lightning_peft as lp
from lightning_peft.adaptation.plan import on_meta
from tests.support.fast import nothing_too_small
from tests.support.zoo import build, example_input


def test_a_plan_is_what_adapting_does_and_changes_nothing():
    model = build("vit")
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    plan = lp.plan(model, "lora", rank=2)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert lp.find_adaptation(model) is None
    adaptation = lp.adapt(model, "lora", rank=2)
    assert plan.report == adaptation.report()
    assert sum(layer.trained for layer in plan.layers) == plan.report.trained
    assert sum(layer.total for layer in plan.layers) == plan.report.total
    assert [layer.name for layer in plan.layers][1:] == ["blocks.0", "blocks.1", "head"]
    assert plan.layers[1].sites == ("qkv", "proj", "fc1", "fc2")


def test_gradients_and_optimizer_are_those_of_what_is_trained():
    plan = lp.plan(build("vit"), "bitfit")
    assert plan.memory.gradients == 4 * plan.report.trained
    assert plan.memory.optimizer == 2 * plan.memory.gradients
    assert plan.full.gradients == 4 * plan.report.total
    assert plan.memory.activations is None
    assert "activations" not in str(plan)


def saved_bytes(model, inputs):
    """The bytes that a forward pass saves for the backward pass."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), inputs]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(inputs)
    del output
    return sum(size for size, _ in kept.values())


def held_bytes(model, inputs):
    """The bytes that are allocated in a forward pass and still there at its end."""
    model(inputs)  # what is made at the first call only
    gc.collect()  # what is older must not be let go while this is counted
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            output = model(inputs)
    finally:
        gc.enable()
    events = record.profiler.kineto_results.events()
    held = sum(event.nbytes() for event in events if event.name() == "[memory]")
    return held - output.untyped_storage().nbytes()


@pytest.mark.parametrize("method", ["full", "lora", "lora_fa", "ladder", "linear_probe", "houlsby"])
def test_activations_are_those_that_autograd_keeps(method):
    model = build("vit").train()
    inputs = example_input("vit")
    planned = lp.plan(model, method, inputs=inputs, memory="high").memory.activations
    lp.adapt(model, method, memory="high")
    assert planned == pytest.approx(saved_bytes(model, inputs), rel=0.1)


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # of torch 2.11
@nothing_too_small()
def test_what_is_made_again_is_not_among_them():
    model, inputs = build("vit").train(), example_input("vit")
    planned = {}
    for memory in ("high", "default", "low", "lowest"):
        planned[memory] = lp.plan(model, "lora", rank=2, inputs=inputs, memory=memory).memory
        adapted = copy.deepcopy(model)
        lp.adapt(adapted, "lora", rank=2, memory=memory)
        expected = pytest.approx(held_bytes(adapted, inputs), rel=0.1)
        assert planned[memory].activations == expected
    kept = [memory.activations for memory in planned.values()]
    assert kept == sorted(set(kept), reverse=True)


def test_methods_that_keep_less_are_seen_to_keep_less():
    model, inputs = build("vit"), example_input("vit")
    kept = {
        method: lp.plan(model, method, inputs=inputs, **settings).memory.activations
        for method, settings in (
            ("full", {}),
            ("lora", {"rank": 2}),
            ("lora_fa", {"rank": 2}),
            ("linear_probe", {}),
        )
    }
    assert kept["linear_probe"] < kept["lora_fa"] < kept["lora"] <= kept["full"] * 1.05


def test_a_plan_is_json_and_a_table():
    plan = lp.plan(build("resnet"), "conv_adapter", inputs=example_input("resnet"))
    assert plan.to_dict()["memory"]["total"] == plan.memory.total
    assert "full fine-tuning" in str(plan)


def test_a_refusal_is_that_of_adapting():
    with pytest.raises(lp.MethodError, match="expected a plain vision transformer"):
        lp.plan(build("resnet"), "vpt_deep")


def test_shared_parameters_stay_shared_on_meta():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    copied = on_meta(net)
    assert copied[1].weight is copied[0].weight
    assert copied[0].weight.is_meta
    assert not net[0].weight.is_meta


class Attention(nn.Module):
    """Attention with dropout, on two heads."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)
        self.dropout = dropout

    def forward(self, x, mask=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if mask is not None and mask.all():
            mask = None
        if mask is not None:
            mask = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, mask, self.dropout)


TOKENS = torch.zeros(3, 64, 8)


def kept(model, inputs, processor):
    return lp.plan(model, "full", inputs=inputs, processor=processor).memory.activations


def test_attention_keeps_what_its_kernels_keep():
    """By hand: projections, result, a sum for each row; with dropout on a CPU the matrix."""
    vectors, rows, matrix = 3 * 64 * 24, 3 * 2 * 64, 3 * 2 * 64 * 64
    fused = 4 * (vectors + vectors // 3 + rows)
    for dropout, processor in ((0.0, "cpu"), (0.0, "cuda"), (0.5, "cuda")):
        assert kept(Attention(dropout), TOKENS, processor) == fused
    assert kept(Attention(0.5), TOKENS, "cpu") > 2 * 4 * matrix


def test_attention_of_a_module_of_torch_keeps_what_its_kernel_keeps():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)

    class Self(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, x, x, need_weights=False)[0]

    matrix = 4 * 3 * 2 * 64 * 64
    assert kept(Self(), TOKENS, "cpu") == pytest.approx(saved_bytes(Self(), TOKENS), rel=0.01)
    assert kept(Self(), TOKENS, "cpu") < matrix


def test_a_mask_that_masks_nothing_is_seen_to_mask_nothing():
    ones = torch.ones(3, 64, dtype=torch.bool)
    some = ones.clone()
    some[0, 9:] = False
    plain = kept(Attention(), TOKENS, "cpu")
    assert kept(Attention(), {"x": TOKENS, "mask": ones}, "cpu") == plain
    # the mask as numbers to add is kept as well
    assert kept(Attention(), {"x": TOKENS, "mask": some}, "cpu") == plain + 4 * 3 * 64 * 64
    assert kept(Attention(), (TOKENS, some.to("meta")), "cpu") == plain + 4 * 3 * 64 * 64


def test_dropout_keeps_truth_values_on_a_gpu_and_numbers_on_a_cpu():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8, bias=False))
    net = nn.Sequential(nn.Linear(8, 8, bias=False), net)
    numbers = TOKENS.numel()
    # the input of the second layer is kept on both, and the dropout's mask
    assert kept(net, TOKENS, "cpu") == (4 + 4) * numbers
    assert kept(net, TOKENS, "cuda") == (4 + 1) * numbers


def test_a_forward_that_needs_values_is_refused():
    class Chooses(nn.Linear):
        def forward(self, x):
            return super().forward(x[x[:, 0] > 0])

    model = Chooses(4, 2)
    with pytest.raises(lp.MethodError, match=r"expected a Chooses whose forward runs without val"):
        lp.plan(model, "full", inputs=torch.randn(3, 4))
    assert lp.plan(model, "full").memory.peak is None
    with pytest.raises(lp.MethodError, match="processor to be 'cpu' or 'cuda', got 'tpu'"):
        lp.plan(model, "full", processor="tpu")


def test_the_peak_of_a_step_by_hand():
    """Of one product with few rows it is in AdamW's step."""
    plan = lp.plan(nn.Linear(100, 1000, bias=False), "full", inputs=torch.zeros(2, 100))
    weight = 4 * 100 * 1000
    # weight, gradient, two moments, the root of the second, and that by the bias correction
    assert plan.memory.peak == pytest.approx(6 * weight, rel=0.01)
    assert plan.memory.total < plan.memory.peak
    assert "peak" in str(plan)
