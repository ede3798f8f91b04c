"""LoRA of convolutions and embeddings, fast, against peft's own layers and by gradcheck."""

import copy
import itertools

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import lightning_peft as lp
from lightning_peft.kernels import fast_layers
from lightning_peft.kernels.convolution import Geometry, low_rank_conv
from tests.kernels.test_low_rank import result, same

PLAIN = Geometry((1, 1), (0, 0), (1, 1))
CASES = {
    "1 x 1": (nn.Conv2d(4, 6, 1), (5, 4, 3, 3)),
    "3 x 3": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5)),
    "stride": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 9)),
    "no bias": (nn.Conv2d(4, 6, (3, 1), bias=False), (2, 4, 5, 5)),
    "1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
    "3d": (nn.Conv3d(4, 6, 3, padding=1), (2, 4, 3, 3, 3)),
    "channels last": (nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (2, 4, 5, 5)),
    "linear of GPT-2": (Conv1D(6, 4), (2, 5, 4)),
}


def adapted(base, **options):
    torch.manual_seed(0)
    net = nn.Sequential(copy.deepcopy(base), nn.GELU())
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["0"], fan_in_fan_out=isinstance(base, Conv1D), **options
    )
    model = peft.get_peft_model(net, config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_dropout": 0.3}], ids=str)
def test_it_is_the_layer_of_peft(case, options):
    base, shape = CASES[case]
    plain = adapted(base, **options)
    model = copy.deepcopy(plain)
    assert len(lp.accelerate(model).fast) == 1
    x = torch.randn(shape)
    torch.manual_seed(2)
    (got, slopes) = result(model, x)
    torch.manual_seed(2)
    (expected, own) = result(plain, x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert slopes.keys() == own.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(slopes[name], gradient, msg=name, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3))[1:], ids=str)
@pytest.mark.parametrize("geometry", [PLAIN, Geometry((2, 1), (1, 0), (1, 2))], ids=str)
def test_gradients_are_those_of_finite_differences(needs, geometry):
    torch.manual_seed(0)
    shapes = [(2, 3, 5, 6), (2, 3, 3, 3), (4, 2, 1, 1)]
    x, a, b = (
        torch.randn(shape, dtype=torch.float64, requires_grad=flag)
        for shape, flag in zip(shapes, needs, strict=True)
    )
    weight, bias = torch.randn(4, 3, 3, 3).double(), torch.randn(4).double()
    assert torch.autograd.gradcheck(
        lambda x, a, b: low_rank_conv(x, weight, bias, a, b, 0.7, geometry), (x, a, b)
    )


def test_so_are_second_derivatives():
    torch.manual_seed(0)
    shapes = [(1, 3, 3, 3), (2, 3, 3, 3), (4, 2, 1, 1)]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weight = torch.randn(4, 3, 3, 3).double()
    geometry = Geometry((1, 1), (1, 1), (1, 1))
    assert torch.autograd.gradgradcheck(
        lambda x, a, b: low_rank_conv(x, weight, None, a, b, 0.7, geometry), given
    )


def test_in_half_precision_the_update_is_not_rounded_into_the_weight():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    a, b = 1e-3 * torch.randn(2, 3, 3, 3), 1e-2 * torch.randn(4, 2, 1, 1)
    a.requires_grad_(True), b.requires_grad_(True)
    exact = low_rank_conv(x, weight, None, a, b, 1.0, PLAIN)
    exact.sum().backward()
    slopes = a.grad.clone(), b.grad.clone()
    a.grad = b.grad = None
    out = low_rank_conv(x.bfloat16(), weight.bfloat16(), None, a, b, 1.0, PLAIN)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    for gradient, slope in zip((a.grad, b.grad), slopes, strict=True):
        assert gradient.dtype == torch.float32
        # products in bfloat16, whose unit in the last place is 0.8 %
        assert (gradient - slope).norm() < 0.05 * slope.norm()


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), "its base is a convolution in 2 groups"),
        (nn.Conv2d(4, 6, 3, padding=2, dilation=2), "its base is dilated, and peft's A is not"),
        (nn.Conv2d(4, 6, 3, padding="same"), "its base pads with padding='same'"),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
    ],
)
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_other_convolutions_say_why_they_stay(base, reason):
    done = lp.accelerate(adapted(base))
    assert not done.fast
    assert reason in str(done)


@pytest.fixture
def taken(monkeypatch):
    calls = []

    def counted(x, *args, **options):
        calls.append(tuple(x.shape))
        return low_rank_conv(x, *args, **options)

    monkeypatch.setattr(fast_layers, "low_rank_conv", counted)
    return calls


READ_AND_WRITTEN = 2 * 4 * 6 * 6 + 2 * 6 * 3 * 3
WEIGHTS = 6 * 4 * 3 * 3


@pytest.mark.parametrize(
    ("small", "heavy", "fast"),
    [
        (READ_AND_WRITTEN, 0, True),
        (READ_AND_WRITTEN + 1, 0, False),
        (0, READ_AND_WRITTEN / WEIGHTS, True),
        (0, (READ_AND_WRITTEN + 1) / WEIGHTS, False),
    ],
)
def test_with_little_to_do_peft_is_as_fast(monkeypatch, taken, small, heavy, fast):
    monkeypatch.setattr(fast_layers, "SMALL_CONVOLUTION", small)
    monkeypatch.setattr(fast_layers, "HEAVY", heavy)
    plain = adapted(nn.Conv2d(4, 6, 3, stride=2, padding=1))
    model = copy.deepcopy(plain)
    lp.accelerate(model)
    x = torch.randn(2, 4, 6, 6)
    same(model, plain, x)
    assert bool(taken) is fast
    lp.accelerate(model, memory="low")  # asked for memory, it is not left to peft
    model(x)
    assert taken


@pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)
def test_a_small_convolution_can_be_traced(monkeypatch):
    monkeypatch.setattr(fast_layers, "SMALL_CONVOLUTION", 10**6)
    plain = adapted(nn.Conv2d(4, 6, 3))
    model = copy.deepcopy(plain)
    lp.accelerate(model)
    traced = torch.jit.trace(model, torch.randn(2, 4, 5, 5))  # without a warning about its size
    x = torch.randn(3, 4, 7, 7)
    torch.testing.assert_close(traced(x), plain(x))


def test_an_image_without_a_batch_is_left_to_peft():
    plain = adapted(nn.Conv2d(4, 6, 3))
    model = copy.deepcopy(plain)
    lp.accelerate(model)
    same(model, plain, torch.randn(4, 5, 5))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}, {"max_norm": 1.0}], ids=str)
def test_an_embedding_is_that_of_peft(options):
    plain = adapted(nn.Embedding(9, 6, **options))
    model = copy.deepcopy(plain)
    assert len(lp.accelerate(model).fast) == 1
    same(model, plain, torch.tensor([[0, 1, 2], [8, 8, 1]]))
    same(model, plain, torch.tensor(3))


def test_a_convolutional_backbone_is_fast_by_itself():
    from tests.support.zoo import build, example_input

    model, plain = build("resnet"), build("resnet")
    plain.load_state_dict(model.state_dict())
    lp.adapt(model, "lora", rank=2)
    fast = [m for m in model.modules() if type(m).__name__ == "FastConv2d"]
    assert fast
    x = example_input("resnet")
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
