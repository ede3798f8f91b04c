"""The quick start of DoRA is ``peft``'s own start, bit for bit, and leaves ``peft`` as it was."""

import copy
import threading

import peft
import pytest
import timm
import torch
from peft.tuners.lora import dora
from torch import nn

import lightning_peft as lp
from lightning_peft.methods.from_peft import dora_start

OWN = dora.DoraLinearLayer.update_layer
TINY = {"img_size": 32, "depth": 2, "num_classes": 3}


def vit(dtype=torch.float32):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **TINY).to(dtype)


def by_peft(model, seed, **settings):
    """Adapt the same layers by `peft` alone; gives the state under peft's names."""
    layers = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    torch.manual_seed(seed)
    config = peft.LoraConfig(use_dora=True, r=4, target_modules=layers, **settings)
    return peft.inject_adapter_in_model(config, model).state_dict()


@pytest.fixture
def calls(monkeypatch):
    """Counts how many layers go peft's own way."""
    found = []

    def counted(self, *args, **kwargs):
        found.append(type(self).__name__)
        return OWN(self, *args, **kwargs)

    monkeypatch.setattr(dora.DoraLinearLayer, "update_layer", counted)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_parameter_is_that_of_peft(dtype, calls):
    model = vit(dtype)
    reference = by_peft(copy.deepcopy(model), seed=3, lora_alpha=16)
    assert len(calls) == 8
    calls.clear()
    torch.manual_seed(3)
    lp.adapt(model, "dora", rank=4, alpha=16, targets="all-linear")
    assert calls == []
    own = model.state_dict()
    assert own.keys() == reference.keys()
    assert sum("magnitude" in name for name in own) == 8
    for name, tensor in reference.items():
        if "magnitude" in name and dtype != torch.float32:  # ours are norms in float32
            torch.testing.assert_close(own[name].to(dtype), tensor)
        else:
            assert torch.equal(own[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_output_is_the_backbones_in_half_precision_too(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Conv1d(8, 8, 1), nn.Linear(8, 8), nn.Linear(8, 2))
    model.to(dtype).eval()
    tokens = torch.arange(8)[None]
    expected = model(tokens)
    lp.adapt(model, "dora", rank=2, targets=["0", "1", "2"], head="3")
    magnitudes = {n: p.dtype for n, p in model.named_parameters() if "magnitude" in n}
    assert list(magnitudes.values()) == [torch.float32] * 3
    assert torch.equal(model.eval()(tokens), expected)


def test_the_random_state_afterwards_is_that_of_peft():
    model = vit()
    by_peft(copy.deepcopy(model), seed=3, lora_alpha=16)
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    lp.adapt(model, "dora", rank=4, head=False, targets="all-linear")
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("start", ["pissa", False])
def test_a_start_that_is_not_zero_goes_the_way_of_peft(start, calls):
    model = vit()
    reference = by_peft(copy.deepcopy(model), seed=3, init_lora_weights=start)
    torch.manual_seed(3)
    settings = {"use_dora": True, "r": 4, "init_lora_weights": start}
    lp.adapt(model, lp.HF("lora", targets="all-linear", **settings))
    assert len(calls) == 16
    own = model.state_dict()
    for name, tensor in reference.items():
        assert torch.equal(own[name], tensor), name
    assert {name.split(".")[-2] for name in own.keys() - reference.keys()} <= {"initial_factors"}


def test_convolutions_and_embeddings_go_the_way_of_peft(calls):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Conv1d(8, 8, 1), nn.Linear(8, 8), nn.Linear(8, 2))
    lp.adapt(model, "dora", rank=2, targets=["0", "1", "2"], head="3")
    assert sorted(calls) == ["DoraConv1dLayer", "DoraEmbeddingLayer"]


def test_a_backbone_without_weights_goes_the_way_of_peft(calls):
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", **TINY)
    lp.adapt(model, "dora", rank=2, targets="qkv")
    assert len(calls) == 2


def test_peft_is_as_it_was_afterwards_and_after_an_error():
    with dora_start.quick_dora_start():
        assert dora.DoraLinearLayer.update_layer is not OWN
    with pytest.raises(KeyError, match="mine"), dora_start.quick_dora_start():
        raise KeyError("mine")
    assert dora.DoraLinearLayer.update_layer is OWN


LONG = 300  # seconds, so that a busy machine is not taken for a thread that hangs


def test_two_threads_leave_peft_as_it_was():
    entered, leave = threading.Event(), threading.Event()

    def first():
        with dora_start.quick_dora_start():
            entered.set()
            leave.wait(LONG)

    def second():
        with dora_start.quick_dora_start():
            pass

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(LONG)
    threads[1].start()
    threads[1].join(0.2)  # it waits for the first
    leave.set()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert dora.DoraLinearLayer.update_layer is OWN


@pytest.mark.parametrize(
    "place",
    [
        ("peft.tuners.lora.gone", "DoraLinearLayer", "update_layer"),
        ("peft.tuners.lora.dora", "Gone", "update_layer"),
        ("peft.tuners.lora.dora", "DoraLinearLayer", "gone"),
    ],
)
def test_a_peft_without_the_place_is_left_alone(place, monkeypatch, calls):
    monkeypatch.setattr(dora_start, "_PLACE", place)
    model = vit()
    lp.adapt(model, "dora", rank=4, targets="qkv")
    assert len(calls) == 2
