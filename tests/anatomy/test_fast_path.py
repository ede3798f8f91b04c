from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_peft.anatomy import fast_path_layers, fast_path_off, fast_path_on

PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


class Replaced(nn.Module):
    """A layer in another's place, as `peft` makes it: it still shows the weight that it wraps."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer = base
        self.delta = nn.Linear(base.in_features, base.out_features)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + self.delta(x)


@pytest.fixture
def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.fixture
def adapted(encoder):
    layers = fast_path_layers(encoder, ["layers.1.linear1"])
    encoder.layers[1].linear1 = Replaced(encoder.layers[1].linear1)
    return encoder, layers


def outputs(model: nn.Module, padding: torch.Tensor | None):
    """The eval output without gradients, and the one in train mode (without dropout)."""
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        inference = model.eval()(x, src_key_padding_mask=padding)
        reference = model.train()(x, src_key_padding_mask=padding)
    model.eval()
    kept = ~PADDING if padding is not None else slice(None)
    return inference[kept], reference[kept]


# What torch says of its own nested tensors, which the trap consists of.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_the_adapter_counts_in_eval_once_the_fast_path_is_off(adapted, padding):
    model, layers = adapted
    inference, reference = outputs(model, padding)
    assert not torch.allclose(inference, reference, atol=1e-3)  # the trap is there
    fast_path_off(layers)
    torch.testing.assert_close(*outputs(model, padding))


def test_only_the_layers_around_an_adapter_and_their_encoder(encoder):
    assert fast_path_layers(encoder, ["layers.1.linear1"]) == [encoder, encoder.layers[1]]
    assert fast_path_layers(encoder, ["layers.0"]) == [encoder, encoder.layers[0]]
    assert fast_path_layers(encoder, ["no.such"]) == []
    assert fast_path_layers(nn.Sequential(nn.Linear(2, 2)), ["0"]) == []


def test_it_is_given_back_as_it_was(encoder):
    encoder.layers[0].activation_relu_or_gelu = 2
    before = [dict(module.__dict__) for module in encoder.modules()]
    layers = fast_path_layers(encoder, ["layers.0.linear1"])
    fast_path_off(layers)
    fast_path_off(layers)
    assert encoder.layers[0].activation_relu_or_gelu == 0
    fast_path_on(layers)
    assert [dict(module.__dict__) for module in encoder.modules()] == before
    fast_path_on(layers)
    assert encoder.layers[0].activation_relu_or_gelu == 2


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
def test_a_copy_has_it_off_too_and_can_have_it_back(adapted, copied):
    model, layers = adapted
    fast_path_off(layers)
    twin = copied(model)
    torch.testing.assert_close(*outputs(twin, None))
    fast_path_on(fast_path_layers(twin, ["layers.1.linear1"]))
    assert twin.use_nested_tensor
    assert twin.layers[1].activation_relu_or_gelu == 1
    assert model.layers[1].activation_relu_or_gelu == 0


def test_another_module_is_refused():
    with pytest.raises(TypeError, match="that `fast_path_layers` found .* got Linear"):
        fast_path_off([nn.Linear(2, 2)])
