"""The fast low-rank product against peft's own layer, against dense algebra, and by gradcheck."""

import copy
import io
import itertools
import pickle

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd import forward_ad

import lightning_peft as lp
from lightning_peft.kernels import accelerate, low_rank, low_rank_linear, products
from tests.support.zoo import build, example_input

SHAPES = [(3, 5, 4, 2), (40, 5, 4, 2)]  # rows, inputs, outputs, rank: both orders of the products


def tensors(rows, inputs, outputs, rank, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw(rows, inputs), draw(outputs, inputs), draw(outputs), draw(rank, inputs), draw(
        outputs, rank
    )  # fmt: skip


def test_the_shapes_of_these_tests_take_both_orders():
    forward = {products.merges_forward(n, i, o) for n, i, o, _ in SHAPES}
    backward = {products.merges_backward(n, o) for n, _, o, _ in SHAPES}
    assert forward == backward == {False, True}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3))[1:], ids=str)
def test_gradients_are_those_of_finite_differences(shape, needs):
    x, weight, bias, a, b = tensors(*shape)
    for tensor, flag in zip((x, a, b), needs, strict=True):
        tensor.requires_grad_(flag)
    assert torch.autograd.gradcheck(
        lambda x, a, b: low_rank_linear(x, weight, bias, a, b, 0.7), (x, a, b)
    )


@pytest.mark.parametrize(("shape", "dropout"), [(SHAPES[0], 0.3), (SHAPES[1], 0.0)], ids=str)
def test_so_are_second_derivatives(shape, dropout):
    x, weight, bias, a, b = tensors(*shape)

    def function(x, a, b):
        torch.manual_seed(0)
        return low_rank_linear(x, weight, bias, a, b, 0.7, dropout=dropout)

    given = tuple(tensor.requires_grad_() for tensor in (x, a, b))
    assert torch.autograd.gradgradcheck(function, given)


def test_it_runs_under_inference_mode_as_a_validation_does():
    x, weight, bias, a, b = tensors(*SHAPES[0])
    expected = low_rank_linear(x, weight, bias, a.requires_grad_(), b.requires_grad_(), 0.7)
    with torch.inference_mode():
        assert torch.equal(low_rank_linear(x, weight, bias, a, b, 0.7), expected)


@pytest.mark.parametrize("why", ["made again", "frozen A"])
def test_a_second_derivative_that_would_be_wrong_is_refused(why):
    x, weight, bias, a, b = tensors(*SHAPES[0])
    x.requires_grad_()
    a.requires_grad_(why != "frozen A")
    out = low_rank_linear(
        nn.functional.gelu(x), weight, bias, a, b.requires_grad_(), 0.7, memory="default"
    )
    with pytest.raises(RuntimeError, match="expected the layer's input to be kept"):
        torch.autograd.grad(out.square().sum(), b, create_graph=True)
    torch.autograd.grad(out.square().sum(), b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_output_is_that_of_dense_algebra(shape, bias):
    x, weight, shift, a, b = tensors(*shape)
    expected = x @ (weight + 0.7 * b @ a).T + (shift if bias else 0)
    got = low_rank_linear(x.unsqueeze(0), weight, shift if bias else None, a, b, 0.7)
    torch.testing.assert_close(got, expected.unsqueeze(0))


def kept_bytes(function, known):
    sizes = {}
    skipped = {t.untyped_storage().data_ptr() for t in known}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skipped:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    del output
    return sum(sizes.values())


def test_nothing_is_kept_but_the_input_or_its_projection():
    x, weight, bias, a, b = tensors(40, 5, 4, 2)
    b.requires_grad_(True)
    known = (weight, bias, a, b)
    kept = kept_bytes(lambda: low_rank_linear(x, weight, bias, a, b, 1.0), known)
    assert kept == 40 * 2 * 8  # x A^T alone
    a.requires_grad_(True)
    kept = kept_bytes(lambda: low_rank_linear(x, weight, bias, a, b, 1.0), known)
    assert kept == 40 * 5 * 8  # x alone


def layer(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4))
    config = {"r": 2, "lora_alpha": 6, "target_modules": ["0", "2"], **options}
    model = peft.get_peft_model(net, peft.LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def result(model, x):
    model.zero_grad()
    output = model(x)
    output.square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return output.detach(), gradients


def same(model, plain, x, **tolerance):
    (got, slopes), (expected, own) = result(model, x), result(plain, x)
    torch.testing.assert_close(got, expected, **tolerance)
    assert slopes.keys() == own.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(slopes[name], gradient, msg=name, **tolerance)


@pytest.mark.parametrize("rows", [3, 200])
def test_a_model_of_peft_is_faster_and_the_same(rows):
    plain = layer()
    model = copy.deepcopy(plain)
    done = accelerate(model)
    assert len(done.fast) == 2
    assert not done.plain
    assert str(done) == "2 LoRA layers with the fast forward"
    assert accelerate(model).fast == done.fast  # twice is as good as once
    assert model.state_dict().keys() == plain.state_dict().keys()
    same(model, plain, torch.randn(rows, 6))
    calls = []
    fast = low_rank.low_rank_linear

    def counted(*args, **options):
        calls.append(args)
        return fast(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_peft.kernels.fast_layers.low_rank_linear", counted)
        model(torch.randn(rows, 6))
    assert len(calls) == 2


def not_called(*args, **options):
    raise AssertionError("the fast forward was used")


def two_adapters(model):
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["0", "2"]))
    model.base_model.set_adapter(["default", "second"])


@pytest.mark.parametrize(
    "change",
    [
        two_adapters,
        lambda model: model.merge_adapter(),
        lambda model: model.base_model.disable_adapter_layers(),
        lambda model: model.base_model.model[0].base_layer.bias.requires_grad_(True),
        lambda model: model.base_model.model[0].base_layer.register_forward_hook(
            lambda module, args, output: 2 * output
        ),
        lambda model: (
            model.base_model.model[0]
            .lora_B["default"]
            .register_forward_hook(lambda module, args, output: 2 * output)
        ),
        lambda model: model.base_model.model[0].base_layer.register_full_backward_pre_hook(
            lambda module, gradients: None
        ),
        lambda model: model.base_model.model[0].lora_A.update({"default": Doubled(6, 2)}),
        lambda model: model.base_model.model[0].lora_dropout.update({"default": nn.Tanh()}),
    ],
    ids=[
        *("two adapters", "merged", "disabled", "a trained bias", "a hook on the base"),
        *("a hook on B", "a backward hook on the base", "another A", "another dropout"),
    ],
)
def test_what_the_fast_forward_does_not_know_is_done_by_peft(change, monkeypatch):
    plain = layer(target_modules=["0"])
    model = copy.deepcopy(plain)
    accelerate(model)
    torch.manual_seed(1)
    change(model)
    torch.manual_seed(1)
    change(plain)
    x = torch.randn(3, 6)
    monkeypatch.setattr("lightning_peft.kernels.fast_layers.low_rank_linear", not_called)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("on", ["in evaluation", "off in training"])
def test_a_dropout_layer_is_on_or_off_by_its_own_mode(on):
    plain = layer(target_modules=["0"], lora_dropout=0.5)
    model = copy.deepcopy(plain)
    accelerate(model)
    for each in (plain, model):
        each.train(on != "in evaluation")
        for module in each.modules():
            if isinstance(module, nn.Dropout):
                module.train(on == "in evaluation")
    x = torch.randn(3, 6)
    found = []
    for each in (plain, model):
        torch.manual_seed(3)
        found.append(each(x))
    torch.testing.assert_close(*found)
    assert torch.equal(found[1], model(x)) is (on != "in evaluation")


@pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)
def test_forward_mode_differentiation_and_tracing_are_those_of_peft():
    plain = layer()
    model = copy.deepcopy(plain)
    accelerate(model)
    x, direction = torch.randn(3, 6), torch.randn(3, 6)
    found = []
    for each in (plain, model):
        with forward_ad.dual_level():
            found.append(forward_ad.unpack_dual(each(forward_ad.make_dual(x, direction))).tangent)
    torch.testing.assert_close(*found)
    traced = torch.jit.trace(model, x)
    torch.jit.save(traced, io.BytesIO())
    torch.testing.assert_close(traced(x), plain(x))


def test_gradients_by_sample_are_those_of_peft():
    plain = layer()
    model = copy.deepcopy(plain)
    accelerate(model)
    x = torch.randn(3, 6)

    def by_sample(model):
        trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

        def loss(trained, sample):
            return torch.func.functional_call(model, trained, (sample[None],)).square().sum()

        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(trained, x)

    got, expected = by_sample(model), by_sample(plain)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient)


def test_with_little_to_do_peft_is_as_fast(monkeypatch):
    model = layer()
    accelerate(model)
    expected = model(torch.randn(10, 6, generator=torch.Generator().manual_seed(0)))
    calls = []
    monkeypatch.setattr(
        "lightning_peft.kernels.fast_layers.low_rank_linear",
        lambda x, *args, **options: calls.append(len(x)) or low_rank_linear(x, *args, **options),
    )
    monkeypatch.setattr("lightning_peft.kernels.fast_layers.SMALL", 10 * (6 + 5) + 1)
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), expected)
    assert not calls
    model(torch.randn(20, 6))
    assert calls == [20, 20]
    accelerate(model, memory="low")  # asked for memory, it is not left to peft
    model(x)
    assert calls[2:] == [10, 10]


@pytest.mark.parametrize("rows", [3, 200])
def test_dropout_draws_what_peft_draws(rows):
    plain = layer(lora_dropout=0.5)
    model = copy.deepcopy(plain)
    assert len(accelerate(model).fast) == 2
    x = torch.randn(rows, 6)
    torch.manual_seed(1)
    expected, own = result(plain, x)
    torch.manual_seed(1)
    got, slopes = result(model, x)
    torch.testing.assert_close(got, expected)
    for name, gradient in own.items():
        torch.testing.assert_close(slopes[name], gradient, msg=name)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3))[1:], ids=str)
def test_with_dropout_the_gradients_are_those_of_finite_differences(needs):
    x, weight, bias, a, b = tensors(*SHAPES[1])
    for tensor, flag in zip((x, a, b), needs, strict=True):
        tensor.requires_grad_(flag)

    def function(x, a, b):
        torch.manual_seed(0)  # the same draw each time
        return low_rank_linear(x, weight, bias, a, b, 0.7, dropout=0.4)

    assert torch.autograd.gradcheck(function, (x, a, b))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "it is a variant of LoRA (DoraLinearVariant)"),
        ({"lora_bias": True}, "its update has a bias"),
    ],
)
def test_layers_that_cannot_be_fast_say_why(options, reason):
    done = accelerate(layer(**options))
    assert not done.fast
    assert set(done.plain.values()) == {reason}
    assert f"2 as peft has them: {reason}" in str(done)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_autocast_and_low_precision_weights_are_as_exact_as_with_peft(base):
    plain = layer()
    for module in plain.modules():
        if isinstance(module, Linear):
            module.base_layer.to(base)
    model, exact = copy.deepcopy(plain), copy.deepcopy(plain).float()
    accelerate(model)
    x = torch.randn(50, 6)
    expected, slopes = result(exact, x)
    errors = {}
    for name, network in (("fast", model), ("peft", plain)):
        with torch.autocast("cpu", torch.bfloat16):
            got, gradients = result(network, x)
        assert got.dtype == torch.bfloat16
        differences = [got - expected, *(gradients[key] - slopes[key] for key in slopes)]
        errors[name] = [float(difference.norm()) for difference in differences]
        for key, gradient in gradients.items():
            assert gradient.dtype == torch.float32, key
    sizes = [float(t.norm()) for t in (expected, *slopes.values())]
    for fast, own, size in zip(errors["fast"], errors["peft"], sizes, strict=True):
        assert fast < max(2 * own, 0.02 * size)


def test_copies_and_pickles_stay_fast():
    model = layer()
    accelerate(model)
    x = torch.randn(3, 6)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(accelerate(twin).fast) == 2
        assert torch.equal(twin(x), model(x))


def test_compiled_without_a_break_it_is_the_same():
    model = layer()
    accelerate(model)
    x = torch.randn(50, 6)
    expected, slopes = result(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got, gradients = result(compiled, x)
    torch.testing.assert_close(got, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, slopes[name.removeprefix("_orig_mod.")])


def test_the_methods_of_this_package_are_fast_by_themselves():
    model = build("vit")
    lp.adapt(model, "lora", rank=2)
    assert sum(type(module).__name__ == "FastLinear" for module in model.modules()) == 8
    plain = build("vit")
    torch.manual_seed(0)
    assert model(example_input("vit")).shape == plain(example_input("vit")).shape
