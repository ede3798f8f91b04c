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
    # the attention of the meta device is another kernel, which keeps other small things
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
