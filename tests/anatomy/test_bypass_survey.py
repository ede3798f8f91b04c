"""What is told from the source, held against a run: which weights are read, in whose call.

One model of every family of timm, some of transformers and torchvision, on the meta device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_peft.anatomy import bypassed


class Run(TorchDispatchMode):
    """Notes which modules are called, and which parameters are read outside of their module's."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.owners: dict[int, set[str]] = {}
        self.within: list[str] = []
        self.called: set[str] = set()
        self.read_past: set[str] = set()
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.enter(name))
            module.register_forward_hook(lambda *_: self.within.pop() and None)
            for parameter in module.parameters(recurse=False):
                self.owners.setdefault(id(parameter), set()).add(name)

    def enter(self, name: str) -> None:
        self.within.append(name)
        self.called.add(name)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):
            owners = self.owners.get(id(leaf), set())
            if not owners & set(self.within):
                self.read_past |= owners
        return function(*args, **(kwargs or {}))


def found_by_a_run(model: nn.Module, inputs: object) -> set[str]:
    run = Run(model.train())
    with run, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return run.read_past - run.called


def agree(build: Callable[[], nn.Module], inputs: object) -> set[str]:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of weights without values
        model = build()
    names = [name for name, module in model.named_modules() if module._parameters]
    found = set(bypassed(model, names))
    assert found == found_by_a_run(model, inputs)
    return found


def images(*shape: int) -> torch.Tensor:
    return torch.empty(2, *shape, device="meta")


def timm_agrees(name: str) -> set[str]:
    shape = timm.get_pretrained_cfg(name).input_size
    return agree(lambda: timm.create_model(name), images(*shape))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("beit_base_patch16_224", 12),
        ("eva02_tiny_patch14_224", 12),
        ("swinv2_tiny_window8_256", 12),
        ("test_coatnet", 3),  # a table of positions, read by a method of its own
    ],
)
def test_families_of_timm(name, count):
    assert len(timm_agrees(name)) == count


@pytest.mark.parametrize(("name", "count"), [("vit_b_16", 12), ("swin_t", 24)])
def test_torchvision(name, count):
    import torchvision

    assert len(agree(lambda: torchvision.models.get_model(name), images(3, 224, 224))) == count


@pytest.mark.parametrize(
    ("kind", "sizes", "count"),
    [
        ("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, 4),
        ("RobertaForSequenceClassification", {"hidden_size": 48, "num_hidden_layers": 2}, 0),
    ],
)
def test_transformers(kind, sizes, count):
    import transformers

    wanted = getattr(transformers, kind)
    ids = torch.ones(2, 5, dtype=torch.long, device="meta")
    found = agree(lambda: wanted(wanted.config_class(**sizes)), {"input_ids": ids})
    assert len(found) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    sorted({*timm.list_modules()} - {"sequencer"}),  # whose LSTMs take minutes on meta
)
def test_one_model_of_each_family_of_timm(family):
    timm_agrees(min(timm.list_models(module=family), key=lambda name: (len(name), name)))
