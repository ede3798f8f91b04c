"""What is made again in the backward pass: the gradients are the same, and less is kept."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_peft.kernels import low_rank_linear
from lightning_peft.kernels.rebuild import recipe_of


def tensors(dtype=torch.float64):
    torch.manual_seed(0)
    shapes = (3, 7, 6), (4, 6), (4,), (2, 6), (4, 2)
    x, weight, bias, a, b = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return x.requires_grad_(), weight, bias, a.requires_grad_(), b.requires_grad_()


def norm(**options):
    return nn.LayerNorm(6, dtype=torch.float64, **options).requires_grad_(False)


MADE = {
    "gelu": (F.gelu, "default"),
    "gelu, tanh": (lambda x: F.gelu(x, approximate="tanh"), "default"),
    "silu": (F.silu, "default"),
    "gate": (lambda x: F.silu(x) * torch.sin(x), "default"),
    "layer norm": (norm(), "low"),
    "layer norm without a bias": (norm(bias=False), "low"),
    "layer norm without a weight": (norm(elementwise_affine=False), "low"),
}


def slopes(make, memory, dropout=0.0, training=False):
    x, weight, bias, a, b = tensors()
    torch.manual_seed(1)
    options = {"dropout": dropout, "memory": memory, "training": training}
    out = low_rank_linear(make(x), weight, bias, a, b, 0.5, **options)
    out.square().sum().backward()
    return x.grad, a.grad, b.grad


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("training", [False, True])
def test_the_gradients_are_those_of_what_was_kept(made, dropout, training):
    make, memory = MADE[made]
    assert recipe_of(make(tensors()[0]), memory) is not None
    for got, expected in zip(
        slopes(make, memory, dropout, training), slopes(make, "high", dropout), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("made", MADE)
def test_what_is_made_again_is_what_was_there(made):
    make, memory = MADE[made]
    x = make(tensors()[0])
    torch.testing.assert_close(recipe_of(x, memory).make(), x)


@pytest.mark.parametrize("made", MADE)
def test_nothing_is_kept_that_is_not_there_in_any_case(made):
    make, memory = MADE[made]
    x, weight, bias, a, b = tensors()
    value = make(x)
    there = {t.data_ptr() for t in (weight, bias, a, b, *saved_by(value.grad_fn))}

    def kept(memory):
        out = low_rank_linear(value, weight, bias, a, b, 1.0, memory=memory)
        (node, _), *_ = out.grad_fn.next_functions  # below the view that gives the shape
        return {t.data_ptr() for t in node.saved_tensors if t is not None}

    assert kept(memory) <= there
    assert kept("high") - there == {value.data_ptr()}


def saved_by(node):
    found = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]


@pytest.mark.parametrize(
    ("make", "memory"),
    [
        (F.gelu, "high"),
        (norm(), "default"),
        (torch.tanh, "low"),
        (lambda x: 2 * x, "low"),
        (lambda x: x * torch.ones(6, dtype=x.dtype), "low"),  # a frozen factor keeps no input
        (lambda x: F.gelu(x).transpose(0, 1), "low"),
        (lambda x: F.gelu(x.detach()), "low"),  # without a graph nothing keeps its input
    ],
)
def test_what_has_another_history_is_kept(make, memory):
    assert recipe_of(make(tensors()[0]), memory) is None


def test_activation_checkpointing_decides_for_itself():
    x, weight, bias, a, b = tensors()

    def function(x):
        return low_rank_linear(F.gelu(x), weight, bias, a, b, 0.5, memory="low")

    checkpoint(function, x, use_reentrant=False).square().sum().backward()
    for got, expected in zip((x.grad, a.grad, b.grad), slopes(F.gelu, "high"), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_change_in_place_is_an_error_as_it_is_in_torch():
    x, weight, bias, a, b = tensors()
    before = x * 1
    value = F.gelu(before)
    out = low_rank_linear(value, weight, bias, a, b, 0.5, memory="default")
    before.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("looks", ["a hook", "retain_grad", "evaluation"])
def test_the_gradient_of_an_activation_can_be_looked_at(looks):
    x, weight, bias, a, b = tensors()
    value = F.gelu(x)
    seen = []
    if looks == "a hook":
        value.register_hook(seen.append)
    if looks == "retain_grad":
        value.retain_grad()
    training = looks != "evaluation"
    out = low_rank_linear(value, weight, bias, a, b, 0.5, memory="low", training=training)
    if looks == "evaluation":
        seen = list(torch.autograd.grad(out.sum(), value))
    else:
        out.sum().backward()
    expected = torch.ones(3, 7, 4).double() @ (weight + 0.5 * b @ a)
    torch.testing.assert_close(seen[0] if seen else value.grad, expected)


def test_an_activation_with_two_users_gets_the_gradient_of_both():
    x, weight, bias, a, b = tensors()
    value = F.gelu(x)
    out = low_rank_linear(value, weight, bias, a, b, 0.5, memory="low", training=True)
    (out.sum() + value.square().sum()).backward()
    got = x.grad.clone()
    x.grad = None
    value = F.gelu(x)
    (low_rank_linear(value, weight, bias, a, b, 0.5).sum() + value.square().sum()).backward()
    torch.testing.assert_close(got, x.grad)
