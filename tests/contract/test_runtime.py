"""What surrounds a model changes nothing: compiling, checkpointing, autocast, export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lightning_peft as lp
from tests.contract import tuners
from tests.contract.cases import CASES, REFUSED, Case
from tests.contract.expected import NO_WAY_BACK
from tests.contract.test_promises import adapted, move, relative
from tests.support.zoo import ZOO, build, example_input, output_of, pristine

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term"),
    pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`"),
]

PASSING = [
    case for case in CASES if case.backbone in ZOO and (case.label, case.backbone) not in REFUSED
]
IMAGES = ("vit", "swin", "convnext", "resnet")
# every method on one backbone, and LoRA and BitFit on one of each kind; the rest is slow
SAMPLE = {
    *((case.label, "vit") for case in PASSING if not case.label.startswith("hf:")),
    ("conv_adapter", "convnext"),
    *((label, backbone) for label in ("lora", "bitfit") for backbone in ("resnet", "swin", "bert")),
    # in the weight
    *(("lora", "eva"), ("ssf", "eva"), ("dora", "tv_vit")),
}


# compiling takes seconds
COMPILED = {("lora", "vit")}


def sampled(cases: list[Case], sample: set[tuple[str, str]] = SAMPLE) -> list:
    return [
        case
        if (case.label, case.backbone) in sample
        else pytest.param(case, marks=pytest.mark.slow, id=str(case))
        for case in cases
    ]


def loss_of(model: nn.Module, case: Case) -> torch.Tensor:
    output = output_of(model, case.backbone).float()
    target = torch.arange(output[..., 0].numel()) % output.shape[-1]
    return nn.functional.cross_entropy(output.flatten(0, -2), target)


def gradients(model: nn.Module, case: Case) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        loss_of(model, case).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", sampled(PASSING), ids=str)
def test_a_few_steps_lower_the_loss(case: Case) -> None:
    model, adaptation = adapted(case)
    optimizer = torch.optim.AdamW(adaptation.trained_parameters(), lr=3e-3, weight_decay=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        before = float(loss_of(model, case).detach())
        for _ in range(12):
            optimizer.zero_grad()
            loss_of(model, case).backward()
            optimizer.step()
        after = float(loss_of(model, case).detach())
    assert after < before


@pytest.mark.parametrize("case", sampled(PASSING), ids=str)
def test_autocast_runs_and_gives_finite_gradients(case: Case) -> None:
    model, adaptation = adapted(case)
    move(adaptation, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, case)
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name


# written out, since asking the models would build all of them when the tests are collected
WITH_CHECKPOINTING = (
    *("vit", "vit_reg_avg", "deit_distilled", "swin", "swinv2", "beit", "eva", "convnext"),
    *("resnet", "efficientnet", "mixer"),
)
CHECKPOINTED = [case for case in PASSING if case.backbone in WITH_CHECKPOINTING]


@pytest.mark.parametrize("backbone", ZOO)
def test_what_has_gradient_checkpointing_is_tested_with_it(backbone: str) -> None:
    has_it = hasattr(pristine(backbone), "set_grad_checkpointing")
    assert has_it == (backbone in WITH_CHECKPOINTING)


@pytest.mark.parametrize("case", sampled(CHECKPOINTED), ids=str)
def test_gradient_checkpointing_gives_the_same_gradients(case: Case) -> None:
    model, adaptation = adapted(case)
    move(adaptation)
    expected = gradients(model, case)
    model.set_grad_checkpointing(True)
    got = gradients(model, case)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


# dynamo looks at what peft's DoRA detaches
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("case", sampled(PASSING, COMPILED), ids=str)
def test_compiled_it_gives_the_same_numbers(case: Case) -> None:
    model, adaptation = adapted(case)
    move(adaptation)
    expected, slopes = loss_of(model, case).detach(), gradients(model, case)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(loss_of(compiled, case).detach(), expected, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(compiled, case).items():
        own = slopes[name.removeprefix("_orig_mod.")]
        torch.testing.assert_close(gradient, own, rtol=1e-4, atol=1e-5, msg=name)


EXPORTED = [
    case
    for case in PASSING
    if case.method.mergeable and case.backbone in IMAGES and case.label not in NO_WAY_BACK
]


# ... and exporting does
TRACED = {*((label, "vit") for label in ("lora", "ssf", "fact_tt", "norm")), ("lora", "resnet")}


@pytest.mark.parametrize("case", sampled(EXPORTED, TRACED), ids=str)
def test_merged_it_is_exported(case: Case) -> None:
    _, adaptation = adapted(case)
    move(adaptation)
    try:
        plain = adaptation.merge_and_unload().eval()
    except lp.MethodError as error:
        pytest.skip(f"not mergeable here: {error}")
    inputs = example_input(case.backbone)
    exported = torch.export.export(plain, (inputs,)).module()
    with torch.no_grad():
        assert relative(exported(inputs), plain(inputs)) < 1e-5


@pytest.mark.parametrize("case", sampled(PASSING), ids=str)
def test_it_is_planned_on_the_meta_device(case: Case) -> None:
    with torch.device("meta"):
        model = ZOO[case.backbone]()
    if case.label in map(tuners.label, tuners.NEEDS_WEIGHTS):
        with torch.device("meta"), pytest.raises(lp.MethodError, match="peft reads the weights"):
            lp.adapt(model, case.method)
        return
    with torch.device("meta"):
        adaptation = lp.adapt(model, case.method)
    real, other = adapted(case)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert adaptation.report().to_dict() == other.report().to_dict()
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in real.named_parameters()]


MERGED = [
    case
    for case in PASSING
    if case.method.mergeable and case.backbone == "vit" and case.label not in NO_WAY_BACK
]


@pytest.mark.parametrize("case", sampled(MERGED), ids=str)
def test_merged_in_bfloat16_the_difference_is_measured(case: Case) -> None:
    model = build(case.backbone).bfloat16()
    adaptation = lp.adapt(model, case.method)
    move(adaptation)
    inputs = example_input(case.backbone).bfloat16()
    if case.label == "hf:lily":
        with pytest.raises(lp.MethodError, match="not supported for Lily"):
            adaptation.merge(inputs)
        return
    report = adaptation.merge(inputs)
    changes_weights = bool(adaptation.adapter_names())
    assert (report.weight_difference > 0) == changes_weights
    assert report.weight_difference <= 2**-8  # half a unit in the last place of the largest weight
    assert report.output_difference is not None
    assert report.output_difference < 0.1
