"""Several adapters on one backbone: every method, to the bit, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_peft as lp
from tests.contract.cases import CASES, REFUSED, Case
from tests.support.zoo import build, example_input, output_of

pytestmark = pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term")

# every method and tuner on a transformer, and those that have something of their own elsewhere
QUICK = ("hf:vera", "hf:shira")
SWITCHED = [
    pytest.param(
        case,
        id=str(case),
        marks=[pytest.mark.slow]
        if case.label.startswith("hf:") and case.label not in QUICK
        else [],
    )
    for case in CASES
    if (case.label, case.backbone) not in REFUSED
    and (
        case.backbone == "vit"
        or (case.label, case.backbone)
        in {("conv_adapter", "resnet"), ("full", "resnet"), ("last_blocks", "bert")}
    )
]


def save(directory: Path, case: Case, seed: int) -> Path:
    model = build(case.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adaptation = lp.adapt(model, case.method)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in adaptation.trained_parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    adaptation.save(directory)
    return directory


def part(inputs: object, index: list[int]) -> object:
    if isinstance(inputs, dict):
        return {key: value[index] for key, value in inputs.items()}
    return inputs[index]


def more(inputs: object) -> object:
    """Make the example batch one of five samples that differ."""
    index = [0, 1, 0, 1, 0]
    if isinstance(inputs, dict):
        return {k: v[index].roll(1, 1) if k == "input_ids" else v[index] for k, v in inputs.items()}
    return inputs[index] * torch.linspace(0.5, 1.5, 5).view(-1, *(1,) * (inputs.ndim - 1))


def alone(case: Case, directory: Path) -> Callable[[object], torch.Tensor]:
    """Load one adapter, and give the function that it computes."""
    model = lp.load_adapter(build(case.backbone), directory).eval()
    return torch.no_grad()(partial(output_of, model, case.backbone))


@pytest.mark.parametrize("case", SWITCHED, ids=str)
def test_each_request_gets_what_its_adapter_alone_would_give(case, tmp_path):
    directories = {name: save(tmp_path / name, case, seed) for seed, name in enumerate("abc")}
    backbone = build(case.backbone)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    adapters = lp.AdapterSwitch(backbone, directories)
    adapters.model.eval()
    inputs = more(example_input(case.backbone))

    functions = {name: alone(case, where) for name, where in directories.items()}
    whole = {name: function(inputs) for name, function in functions.items()}
    assert not torch.equal(whole["a"], whole["b"])
    for name in ("b", "a", "c", "a"):
        with adapters.use(name), torch.no_grad():
            assert torch.equal(output_of(backbone, case.backbone, inputs), whole[name])
    assert adapters.active == "a"

    mixed = adapters(inputs, ["b", "a", "b", "c", "a"])
    for name, index in (("a", [1, 4]), ("b", [0, 2]), ("c", [3])):
        expected = functions[name](part(inputs, index))
        assert torch.equal(mixed[index], expected), name
    assert torch.equal(adapters(inputs, "c"), whole["c"])

    now = backbone.state_dict()  # what no adapter brings is as it was
    frozen = before.keys() & now.keys() - adapters.adaptation.state_names()
    assert all(torch.equal(now[name], before[name]) for name in frozen)


LORA = Case("vit", lp.LoRA(rank=2), "lora")


def test_heads_may_have_other_numbers_of_classes(tmp_path):
    model = build("vit")
    model.reset_classifier(5)
    adaptation = lp.adapt(model, LORA.method)
    nn.init.normal_(model.head.weight)
    adaptation.save(tmp_path / "five")
    images = more(example_input("vit"))
    expected = model.eval()(images)

    adapters = lp.AdapterSwitch(
        build("vit"), {"three": save(tmp_path / "three", LORA, 0), "five": tmp_path / "five"}
    )
    adapters.model.eval()
    assert torch.equal(adapters(images, "five"), expected)
    found = adapters.groups(images, ["five", "three", "three", "five", "three"])
    assert found["five"][0].tolist() == [0, 3]
    assert found["five"][1].shape == (2, 5)
    assert found["three"][1].shape == (3, 3)
    with pytest.raises(
        lp.MethodError, match=r"got those of five \(5,\), three \(3,\). Call groups"
    ):
        adapters(images, ["five", "three", "three", "five", "three"])


def test_adapters_come_and_go_and_follow_the_model(tmp_path):
    images = more(example_input("vit"))
    one, two = (save(tmp_path / name, LORA, seed) for seed, name in enumerate(("one", "two")))
    adapters = lp.AdapterSwitch(build("vit"), {"one": one})
    adapters.model.eval()
    adapters.add("two", two)
    assert adapters.names == ("one", "two")
    assert torch.equal(adapters(images, "two"), alone(LORA, two)(images))
    # values that are not in the model move when they are needed
    adapters.model.double()
    double = adapters(images.double(), "two")
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), alone(LORA, two)(images), atol=1e-5)
    with pytest.raises(lp.MethodError, match="got 'one', which is active: activate another"):
        adapters.remove("one")
    adapters.activate("two")
    adapters.remove("one")
    with pytest.raises(lp.MethodError, match="no adapter 'one'. Did you mean|Known: two"):
        adapters.activate("one")


def test_threads_take_turns(tmp_path):
    directories = {name: save(tmp_path / name, LORA, seed) for seed, name in enumerate("ab")}
    adapters = lp.AdapterSwitch(build("vit"), directories)
    adapters.model.eval()
    images = more(example_input("vit"))
    expected = {name: alone(LORA, where)(images) for name, where in directories.items()}
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(20):
            with adapters.use(name) as model, torch.no_grad():
                if not torch.equal(model(images), expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_adapters_of_other_structures_are_refused_together_and_the_backbone_stays(tmp_path):
    good = save(tmp_path / "good", LORA, 0)
    larger = save(tmp_path / "larger", Case("vit", lp.LoRA(rank=4), "lora"), 0)
    biases = save(tmp_path / "biases", Case("vit", lp.BitFit(), "bitfit"), 0)
    backbone = build("vit")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(lp.AdapterFileError, match="(?s)'larger' .* 4 instead of 2.*'biases'"):
        lp.AdapterSwitch(backbone, {"good": good, "larger": larger, "biases": biases})
    elsewhere = build("vit", seed=5)
    lp.adapt(elsewhere, LORA.method).save(tmp_path / "elsewhere")
    with pytest.raises(lp.BackboneMismatchError, match="another backbone"):
        lp.AdapterSwitch(backbone, {"good": good, "elsewhere": tmp_path / "elsewhere"})
    assert backbone.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(parameter.requires_grad for parameter in backbone.parameters())

    adapters = lp.AdapterSwitch(backbone, {"good": good})
    with pytest.raises(lp.AdapterFileError, match="4 instead of 2"):
        adapters.add("larger", larger)
    assert adapters.active == "good"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["good"], "for each of 5 samples, got 1"),
        (["good", "god", "bad", "good", "good"], "no adapter 'god'. Did you mean 'good'.*'bad'"),
    ],
)
def test_a_batch_that_names_no_adapters_is_refused(names, message, tmp_path):
    adapters = lp.AdapterSwitch(build("vit"), {"good": save(tmp_path / "good", LORA, 0)})
    with pytest.raises(lp.MethodError, match=message):
        adapters(more(example_input("vit")), names)


def test_what_cannot_be_switched_is_refused(tmp_path):
    good = save(tmp_path / "good", LORA, 0)
    with pytest.raises(lp.MethodError, match="at least one adapter"):
        lp.AdapterSwitch(build("vit"), {})
    backbone = build("vit")
    adapters = lp.AdapterSwitch(backbone, {"good": good, "other": save(tmp_path / "o", LORA, 1)})
    with pytest.raises(lp.MethodError, match="adapted already"):
        lp.AdapterSwitch(backbone, {"good": good})
    adapters.adaptation.merge()
    with pytest.raises(lp.MethodError, match="merged into them"):
        adapters.activate("other")
    with pytest.raises(lp.MethodError, match=r"the same number of samples, got \[2, 5\]"):
        adapters({"x": torch.zeros(2, 1), "y": torch.zeros(5, 1)}, "good")
