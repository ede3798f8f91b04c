"""What is made again in the backward pass: the gradients are the same, and less is kept."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.activations import NewGELUActivation

from lightning_peft.kernels import low_rank_linear, rebuild
from lightning_peft.kernels.histories import recipe_of
from tests.support.graphs import kept_below


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
    "gelu, in steps": (NewGELUActivation(), "default"),
    "silu": (F.silu, "default"),
    "gate": (lambda x: F.silu(x) * torch.sin(x), "default"),
    "layer norm": (norm(), "low"),
    "layer norm without a bias": (norm(bias=False), "low"),
    "rms norm": (nn.RMSNorm(6, dtype=torch.float64).requires_grad_(False), "low"),
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
    there = {t.data_ptr() for t in (weight, bias, a, b, *kept_below(value))}

    def kept(memory):
        out = low_rank_linear(value, weight, bias, a, b, 1.0, memory=memory)
        (node, _), *_ = out.grad_fn.next_functions  # below the view that gives the shape
        return {t.data_ptr() for t in node.saved_tensors if t is not None}

    assert kept(memory) <= there
    assert kept("high") - there == {value.data_ptr()}


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


@pytest.mark.parametrize("made", MADE)
def test_what_was_written_to_since_is_kept(made):
    make, memory = MADE[made]

    def written(x):
        value = make(x)
        with torch.no_grad():
            value[..., :3] = 0
        return value

    assert recipe_of(written(tensors()[0]), memory) is None
    for got, expected in zip(slopes(written, memory), slopes(written, "high"), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0, 100])
def test_a_layer_norm_in_half_precision_is_as_exact_as_it_was(dtype, mean):
    torch.manual_seed(0)
    x = (torch.randn(50, 64) + mean).to(dtype).requires_grad_()
    norm = nn.LayerNorm(64, dtype=dtype).requires_grad_(False)
    exact = F.layer_norm(x.double(), (64,))
    value = norm(x)
    kept = (value - exact).square().mean().sqrt()
    made = (recipe_of(value, "low").make() - exact).square().mean().sqrt()
    assert made < 2 * kept


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


# --- the first product of an MLP ----------------------------------------------------------------


class MLP:
    """Two adapted layers with an activation between them."""

    def __init__(self, act, before=None, dropout=0.0, dtype=torch.float64):
        self.x, self.weight, self.bias, self.a, self.b = tensors(dtype)
        shapes = (6, 4), (2, 4), (6, 2)
        self.weight2, self.a2, self.b2 = (torch.randn(shape, dtype=dtype) for shape in shapes)
        self.trained = [self.a, self.b, self.a2.requires_grad_(), self.b2.requires_grad_()]
        self.act, self.before, self.dropout = act, before, dropout

    def __call__(self, memory, training=True):
        options = {"dropout": self.dropout, "memory": memory, "training": training}
        x = self.x if self.before is None else self.before(self.x)
        hidden = low_rank_linear(x, self.weight, self.bias, self.a, self.b, 0.5, **options)
        args = self.act(hidden), self.weight2, None, self.a2, self.b2, 0.5
        return low_rank_linear(*args, **options)

    def slopes(self, memory, **options):
        torch.manual_seed(1)
        out = self(memory, **options)
        return torch.autograd.grad(out.square().sum(), [self.x, *self.trained])


@pytest.mark.parametrize("act", [F.gelu, F.silu, NewGELUActivation()])
@pytest.mark.parametrize("before", [None, norm(), torch.tanh])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_first_product_is_made_again_and_the_gradients_are_the_same(act, before, dropout):
    mlp = MLP(act, before, dropout)
    for got, expected in zip(mlp.slopes("lowest"), mlp.slopes("high"), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_is_made_by_the_same_products_in_the_same_dtype(dtype, autocast):
    mlp = MLP(F.gelu, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for got, expected in zip(mlp.slopes("lowest"), mlp.slopes("low"), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize(("memory", "kept"), [("lowest", False), ("low", True), ("high", True)])
def test_what_the_first_layer_gives_is_not_kept(memory, kept):
    mlp = MLP(F.gelu)
    assert any(t.numel() == 3 * 7 * 4 for t in kept_below(mlp(memory))) is kept


@pytest.mark.parametrize("why", ["evaluation", "frozen A", "looked at"])
def test_it_is_kept_where_something_else_needs_it(why):
    mlp = MLP(F.gelu)
    if why == "frozen A":
        mlp.a.requires_grad_(False)
        mlp.trained.remove(mlp.a)
    if why == "looked at":
        mlp.act = looked_at
    training = why != "evaluation"
    for got, expected in zip(
        mlp.slopes("lowest", training=training), mlp.slopes("high", training=training), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_it_is_kept_where_it_was_written_to_since():
    mlp = MLP(lambda hidden: F.gelu(zeroed(hidden)))
    for got, expected in zip(mlp.slopes("lowest"), mlp.slopes("high"), strict=True):
        torch.testing.assert_close(got, expected)


def zeroed(hidden):
    with torch.no_grad():
        hidden[..., :2] = 0
    return hidden


def test_a_first_layer_that_is_checkpointed_is_run_again_once():
    mlp = MLP(F.gelu)
    calls = []

    def first(x):
        calls.append("first")
        args = mlp.weight, mlp.bias, mlp.a, mlp.b, 0.5
        return low_rank_linear(x, *args, memory="lowest", training=True)

    hidden = checkpoint(first, mlp.x, use_reentrant=False)
    args = F.gelu(hidden), mlp.weight2, None, mlp.a2, mlp.b2, 0.5
    out = low_rank_linear(*args, memory="lowest", training=True)
    assert calls == ["first"]
    got = torch.autograd.grad(out.square().sum(), [mlp.x, *mlp.trained])
    assert calls == ["first"] * 2
    for one, expected in zip(got, mlp.slopes("high"), strict=True):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("memory", ["default", "low", "lowest"])
def test_many_gradients_at_once(memory):
    mlp = MLP(F.gelu, norm())
    rows = torch.eye(6, dtype=torch.float64)[:, None, None].expand(6, 3, 7, 6)
    got = torch.autograd.grad(
        mlp(memory), [mlp.x, *mlp.trained], grad_outputs=rows, is_grads_batched=True
    )
    expected = [torch.autograd.grad(mlp("high"), [mlp.x, *mlp.trained], row) for row in rows]
    for one, each in zip(got, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(each))


def looked_at(x):
    value = F.gelu(x)
    value.retain_grad()
    return value


def test_layers_that_share_an_input_make_it_once(monkeypatch):
    x, weight, bias, a, b = tensors()
    calls = []
    make = rebuild._MADE["layer_norm"]
    monkeypatch.setitem(rebuild._MADE, "layer_norm", lambda *t: calls.append(1) or make(*t))
    value = norm()(x)
    together = [low_rank_linear(value, weight, bias, a, b, s, memory="low") for s in (1, 2, 3)]
    loss = sum(out.square().sum() for out in together)
    first = torch.autograd.grad(loss, [a, b], retain_graph=True)
    assert len(calls) == 1
    second = torch.autograd.grad(loss, [a, b])
    assert len(calls) == 2
    plain = [low_rank_linear(value, weight, bias, a, b, s) for s in (1, 2, 3)]
    expected = torch.autograd.grad(sum(out.square().sum() for out in plain), [a, b])
    for one, other, right in zip(first, second, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, right)
    with torch.no_grad():  # has no backward pass to wait for
        low_rank_linear(value, weight, bias, a, b, 1, memory="low")
    assert value.grad_fn.metadata["lightning_peft"].users == 3
    assert value.grad_fn.metadata["lightning_peft"]._value is None  # not kept afterwards
