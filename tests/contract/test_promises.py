"""The promises of the package, each over every method on every backbone."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import lightning_peft as lp
from lightning_peft.adaptation.handle import Adaptation
from lightning_peft.adaptation.modes import is_held
from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.names import parameter_at
from tests.contract.cases import CASES, REFUSED, Case
from tests.contract.expected import (
    FAR,
    NO_WAY_BACK,
    NOT_IDENTITY,
    NOT_MERGEABLE,
    without_effect,
)
from tests.support.outside import OUTSIDE
from tests.support.zoo import build, example_input, output_of, pristine

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term"),
    pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`"),
]

PASSING = [case for case in CASES if (case.label, case.backbone) not in REFUSED]
REFUSING = [case for case in CASES if (case.label, case.backbone) in REFUSED]


def marked(cases: list[Case]) -> list:
    """Leave most of the tuners of peft, and of what is unusual, to the slow tests."""
    return [
        pytest.param(case, marks=pytest.mark.slow, id=str(case)) if _is_slow(case) else case
        for case in cases
    ]


# one of each kind of layer, library and place of a weight; `make test-all` runs the others too
CORE = ("vit", "swin", "convnext", "resnet", "bert", "gpt2", "eva", "tv_vit", "mlp")


_LABELS = tuple(dict.fromkeys(case.label for case in CASES))


def _is_slow(case: Case) -> bool:
    if case.label.startswith("hf:"):
        return case.backbone != "vit"
    if case.label == "lora" or case.backbone == "vit":
        return False
    if case.label == "ssf" and case.backbone in OUTSIDE:
        return False
    if case.backbone not in CORE:
        return True
    # each method on a third of them, each of them with a third of the methods
    return (_LABELS.index(case.label) + CORE.index(case.backbone)) % 3 > 0


def adapted(case: Case) -> tuple[nn.Module, Adaptation]:
    model = build(case.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return model, lp.adapt(model, case.method)


def move(adaptation: Adaptation, scale: float = 0.1) -> None:
    """Take everything trained away from its initial value."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def evaluated(model: nn.Module, case: Case) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return output_of(model, case.backbone)


@functools.cache
def backbone_output(case_backbone: str) -> torch.Tensor:
    """Return the output of a backbone that was never adapted.

    It is frozen: torch multiplies in another way by a weight that requires a gradient.
    """
    with torch.no_grad():
        return output_of(build(case_backbone).requires_grad_(False), case_backbone)


class Subject:
    """One case, adapted once and moved, for all promises that only look at it.

    Attributes:
        spare: The case adapted once more, which a promise that changed it left for the next one.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.spare: tuple[nn.Module, Adaptation] | None = None
        self.model, self.adaptation = adapted(case)
        self.at_step_0 = evaluated(self.model, case)
        self._head = self._head_values()
        move(self.adaptation)
        self.moved = evaluated(self.model, case)

    def _head_values(self) -> dict[str, torch.Tensor]:
        names = self.adaptation.head_names()
        return {name: parameter_at(self.model, name).detach().clone() for name in names}

    def _set(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            parameter_at(self.model, name).data.copy_(value)

    def twin(self) -> tuple[nn.Module, Adaptation]:
        """Return a second model with the same values; the caller may change it."""
        model, adaptation = self.spare or adapted(self.case)
        self.spare = None
        model.zero_grad()
        adaptation.load_state_dict(self.adaptation.state_dict())
        return model, adaptation

    @contextmanager
    def with_the_backbones_head(self) -> Iterator[None]:
        """Undo the move of the head for a while."""
        moved = self._head_values()
        self._set(self._head)
        yield
        self._set(moved)


_last: list[Subject] = []


def subject_of(case: Case) -> Subject:
    """Return the subject of a case: the last one again, or else a new one."""
    if not _last or _last[0].case != case:
        _last[:] = [Subject(case)]
    return _last[0]


def forget_subject() -> None:
    """Let the next promise make its subject anew."""
    _last.clear()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


@pytest.mark.parametrize("case", marked(REFUSING), ids=str)
def test_refused_before_anything_is_changed(case: Case) -> None:
    model = build(case.backbone)
    before = {n: (id(p), p.requires_grad) for n, p in model.named_parameters()}
    with pytest.raises(lp.PEFTError, match=REFUSED[case.label, case.backbone]):
        lp.adapt(model, case.method)
    assert {n: (id(p), p.requires_grad) for n, p in model.named_parameters()} == before
    assert lp.find_adaptation(model) is None


# the scope makes pytest run all promises of a case one after the other, on one subject
of_each_case = pytest.mark.parametrize("case", marked(PASSING), ids=str, scope="module")


@of_each_case
def test_step_0_is_the_identity_and_every_parameter_is_accounted_for(case: Case) -> None:
    backbone, expected = pristine(case.backbone), backbone_output(case.backbone)
    subject = subject_of(case)
    model, adaptation, got = subject.model, subject.adaptation, subject.at_step_0
    # up to rounding: fast layers add the update into another product, and torch has a kernel for a
    # weight that requires a gradient and another for one that does not
    assert case.method.starts_as_backbone is (case.label not in NOT_IDENTITY)
    if case.label not in NOT_IDENTITY:
        assert relative(got, expected) < 3e-6

    trained = set(adaptation.trained_names())
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    own, added = {n for n, _ in backbone.named_parameters()}, set(adaptation.adapter_names())
    renamed = {now: before for before, now in adaptation.base_names.items()}
    for name, _ in model.named_parameters():  # new, or the backbone's own under a known name
        assert (name in added) != (renamed.get(name) in own)
    in_place = {renamed[name] for name in trained if name in renamed}
    asked = set(case.method.plan(anatomy(backbone), backbone).train)
    head = {n for n in own if n.startswith(adaptation.head)}
    assert in_place <= asked | (head if adaptation.head else set())


@of_each_case
def test_gradients_reach_everything_trained_and_everything_trained_matters(case: Case) -> None:
    model, adaptation = adapted(case)
    model.eval()  # dropout of some models is on in training mode
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    silent = set(adaptation.trained_names())
    for _ in range(2):
        model.zero_grad()
        output = output_of(model, case.backbone)
        nn.functional.cross_entropy(
            output.flatten(0, -2), torch.arange(output[..., 0].numel()) % output.shape[-1]
        ).backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    assert parameter.requires_grad, name
                    if parameter.grad.abs().sum() > 0:
                        silent.discard(name)
                    parameter.sub_(0.1 * parameter.grad.sign())
    assert not {n for n in silent if not without_effect(case, n)}
    for name, before in frozen.items():
        assert torch.equal(parameter_at(model, name), before), name

    before = evaluated(model, case)
    originals = {n: parameter_at(model, n).detach().clone() for n in adaptation.adapter_names()}
    generator = torch.Generator().manual_seed(3)
    for site in adaptation.sites:  # each adapted module on its own
        own = [n for n in originals if n.startswith(f"{site.module}.")]
        for name in own:
            parameter = parameter_at(model, name)
            if parameter.requires_grad:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator))
        if not all(without_effect(case, name) for name in own):
            assert not torch.equal(evaluated(model, case), before), site
        for name in own:
            parameter_at(model, name).data.copy_(originals[name])
    if _last and _last[0].case == case:
        _last[0].spare = model, adaptation


@of_each_case
def test_saved_and_loaded_into_a_fresh_backbone_it_is_bit_equal(case: Case, tmp_path) -> None:
    subject = subject_of(case)
    model, adaptation, expected = subject.model, subject.adaptation, subject.moved
    adaptation.save(tmp_path / "adapter")

    fresh = build(case.backbone)
    assert lp.load_adapter(fresh, tmp_path / "adapter") is fresh
    assert torch.equal(evaluated(fresh, case), expected)

    again, handle = subject.twin()
    assert torch.equal(evaluated(again, case), expected)
    subject.spare = again, handle

    added = set(adaptation.adapter_names())
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and n not in added]
    if frozen and not (case.label == "full" and case.backbone == "fixed"):  # constants only
        other = build(case.backbone, seed=5)
        flags = [p.requires_grad for p in other.parameters()]
        with pytest.raises(lp.BackboneMismatchError, match="trained on another backbone: values"):
            lp.load_adapter(other, tmp_path / "adapter")
        assert lp.find_adaptation(other) is None
        assert [p.requires_grad for p in other.parameters()] == flags
        assert set(other.state_dict()) == set(pristine(case.backbone).state_dict())


@of_each_case
def test_merged_it_is_the_same_function_and_then_a_plain_model(case: Case) -> None:
    close = 1e-5
    if (case.label, case.backbone) in FAR:
        close = 1e-4
        model, adaptation = adapted(case)
        move(adaptation, 0.03)
    else:
        model, adaptation = subject_of(case).twin()
    expected = evaluated(model, case)
    refusal = NOT_MERGEABLE.get((case.label, case.backbone))
    if refusal is None and not case.method.mergeable:
        refusal = "it is not linear"
    if refusal is not None:
        before = {n: p.clone() for n, p in model.named_parameters()}
        with pytest.raises(lp.MethodError, match=refusal):
            adaptation.merge()
        assert not adaptation.merged
        assert all(torch.equal(parameter_at(model, n), p) for n, p in before.items())
        return
    report = adaptation.merge(example_input(case.backbone))
    assert report.weight_difference == 0
    assert report.output_difference is not None
    assert report.output_difference < close
    assert relative(evaluated(model, case), expected) < close
    with pytest.raises(lp.MethodError, match="is merged"):
        adaptation.merge()
    if case.label not in NO_WAY_BACK:
        adaptation.unmerge()
        assert relative(evaluated(model, case), expected) < close

    plain = adaptation.merge_and_unload()
    assert relative(evaluated(plain, case), expected) < close
    assert set(plain.state_dict()) == set(pristine(case.backbone).state_dict())
    assert lp.find_adaptation(plain) is None
    build(case.backbone).load_state_dict(plain.state_dict())


@of_each_case
def test_disabled_it_is_the_backbone_and_afterwards_as_before(case: Case) -> None:
    subject = subject_of(case)
    model, adaptation = subject.model, subject.adaptation
    if case.method.changes_backbone and not case.method.keeps_original:
        with (
            pytest.raises(lp.MethodError, match="keeps no copy of the original"),
            adaptation.disabled(),
        ):
            pass
        return
    expected = backbone_output(case.backbone)
    with subject.with_the_backbones_head():
        mine = evaluated(model, case)
        flags = [p.requires_grad for p in model.parameters()]
        with adaptation.disabled():
            assert torch.equal(evaluated(model, case), expected)
            with adaptation.disabled():
                assert torch.equal(evaluated(model, case), expected)
            assert torch.equal(evaluated(model, case), expected)  # the inner one restored its find
        assert torch.equal(evaluated(model, case), mine)
        assert [p.requires_grad for p in model.parameters()] == flags


@of_each_case
def test_copied_and_pickled_it_lives_on_by_itself(case: Case) -> None:
    subject = subject_of(case)
    model, adaptation, expected = subject.model, subject.adaptation, subject.moved
    if case.label in NO_WAY_BACK:
        with pytest.raises(AttributeError, match="Can't pickle local object"):
            pickle.dumps(model)
        return
    twins = [copy.deepcopy(model)]
    if case.backbone in ("weight_normed", "spectral_normed"):  # torch has no pickles of them
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
            pickle.dumps(model)
    else:
        twins.append(pickle.loads(pickle.dumps(model)))
    for twin in twins:
        assert torch.equal(evaluated(twin, case), expected)
        own = lp.find_adaptation(twin)
        assert own is not None
        assert own.model is twin
        assert own.trained_names() == adaptation.trained_names()
        assert {is_held(m) for m in twin.modules()} == {is_held(m) for m in model.modules()}
        move(own)
        assert torch.equal(evaluated(model, case), expected)
