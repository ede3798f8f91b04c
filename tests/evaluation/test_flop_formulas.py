"""Operations that torch's own counter counts wrongly or not at all, against hand counts."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_peft.evaluation.efficiency import count_flops
from lightning_peft.evaluation.flop_formulas import formula_of

CONVOLUTIONS = {
    "1d": (nn.Conv1d, {}, (7,)),
    "2d": (nn.Conv2d, {"padding": 1}, (6, 5)),
    "strided, dilated": (nn.Conv2d, {"stride": 2, "dilation": 2, "padding": 3}, (6, 5)),
    "3d": (nn.Conv3d, {}, (4, 3, 4)),
    "transposed": (nn.ConvTranspose2d, {"stride": 2, "output_padding": 1}, (3, 4)),
}


def step(module, *inputs):
    """A forward and its backward."""
    output = module(*inputs)
    (output[0] if isinstance(output, tuple) else output).sum().backward()


@pytest.mark.parametrize("trains", ["inputs", "weights", "both"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_grouped_convolution_counts_as_much_as_its_groups_one_by_one(name, groups, trains):
    """The reference is torch's own counter, on convolutions that have one group."""
    kind, options, size = CONVOLUTIONS[name]
    whole = kind(4, 8, 3, groups=groups, **options)
    parts = [kind(4 // groups, 8 // groups, 3, **options) for _ in range(groups)]
    inputs = torch.randn(2, 4, *size, requires_grad=trains != "weights")
    for module in (whole, *parts):
        module.requires_grad_(trains != "inputs")
    with FlopCounterMode(display=False) as reference:
        for part, piece in zip(parts, inputs.detach().chunk(groups, 1), strict=True):
            step(part, piece.requires_grad_(trains != "weights"))
    assert count_flops(step, whole, inputs) == reference.get_total_flops() > 0


def test_a_depthwise_convolution_by_hand():
    convolution = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    inputs = torch.randn(2, 8, 5, 5, requires_grad=True)
    forward = 2 * (2 * 8 * 5 * 5) * (3 * 3)  # each of 400 results adds nine products
    assert count_flops(convolution, inputs) == forward
    assert count_flops(step, convolution, inputs) == 3 * forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["one kernel", "decomposed"])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_a_recurrent_layer_by_hand(kind, gates, dtype):
    """Two layers in two directions: each of 15 elements meets each weight once."""
    module = kind(8, 6, 2, batch_first=True, bidirectional=True, dtype=dtype)
    inputs = torch.randn(3, 5, 8, dtype=dtype)
    first, second = 2 * gates * 6 * (8 + 6), 2 * gates * 6 * (12 + 6)
    assert count_flops(module, inputs) == 2 * 15 * (first + second)
    assert sum(p.numel() for n, p in module.named_parameters() if "weight" in n) == first + second


def test_the_backward_pass_of_an_lstm_by_hand():
    """Its kernel computes the gradients of all inputs and all weights."""
    module = nn.LSTM(8, 6, batch_first=True)
    forward = 2 * 15 * 24 * (8 + 6)
    assert count_flops(step, module, torch.randn(3, 5, 8)) == 3 * forward


@pytest.mark.parametrize("weights", [False, True])
def test_an_lstm_of_a_graphics_card_by_hand(weights):
    """Such a kernel does not run here, so that its formula is called as the counter would."""
    tensors = [torch.empty(24, 8), torch.empty(24, 6), torch.empty(24), torch.empty(24)]
    inputs, forward = torch.empty(5, 3, 8), 2 * 15 * 24 * (8 + 6)
    assert formula_of(torch.ops.aten._cudnn_rnn)(inputs, tensors, 4) == forward
    backward = formula_of(torch.ops.aten._cudnn_rnn_backward)
    mask = [True, True, True, weights]
    assert backward(inputs, tensors, 4, mask) == (2 if weights else 1) * forward


def product(*shapes, dtype=torch.float32):
    return [torch.ones(shape, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("function", "inputs", "by_hand"),
    [
        (torch.mv, product((4, 5), (5,)), 2 * 4 * 5),
        (torch.dot, product((5,), (5,)), 2 * 5),
        (torch.addmv, product((4,), (4, 5), (5,)), 2 * 4 * 5),
        (torch.addbmm, product((3, 2), (6, 3, 4), (6, 4, 2)), 2 * 6 * 3 * 4 * 2),
        (torch._int_mm, product((32, 16), (16, 24), dtype=torch.int8), 2 * 32 * 16 * 24),
        (nn.Bilinear(4, 5, 6), product((3, 4), (3, 5)), 3 * 3 * 4 * 5 * 6),
    ],
    ids=["matrix and vector", "vectors", "addmv", "addbmm", "integers", "bilinear"],
)
def test_other_products_by_hand(function, inputs, by_hand):
    assert count_flops(function, *inputs) == by_hand


@pytest.mark.parametrize("shapes", [((8, 16), (2, 16, 24)), ((3, 8, 16), (3, 16, 24))])
def test_products_in_groups_by_hand(shapes):
    """Eight rows are divided among two experts, or three experts have eight rows each."""
    a, b = (torch.empty(shape) for shape in shapes)
    groups = 1 if a.ndim == 2 else 3
    assert formula_of(torch.ops.aten._grouped_mm)(a, b) == 2 * groups * 8 * 16 * 24


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_fused_encoder_layer_counts_as_its_parts():
    """The reference is torch's counter in training mode, where the layer runs part by part."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    inputs = torch.randn(2, 4, 8)
    with FlopCounterMode(display=False) as reference:
        layer(inputs)
    layer.eval()
    with torch.no_grad():
        assert count_flops(layer, inputs) == reference.get_total_flops()
        padded = nn.TransformerEncoder(layer, 1)
        mask = torch.tensor([[False, False, False, True], [False] * 4])
        fewer = count_flops(lambda: padded(inputs, src_key_padding_mask=mask))
    # seven tokens in place of eight, and 9 + 16 pairs of them in place of 16 + 16
    dense = 2 * (4 * 8 * 8 + 2 * 8 * 16)
    assert fewer == 7 * dense + (9 + 16) * 2 * 2 * 8
