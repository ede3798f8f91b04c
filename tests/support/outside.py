"""Backbones with what the clean ones of the zoo do not have: layers and models that go wrong.

Each has `features` or `blocks` that are adapted and a `head`, takes the batch of `example` and
returns logits `(B, 3)` or `(B, N, V)`. `TARGETS` names what a low-rank method adapts where "auto"
would choose other layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

CLASSES = 3
WIDTH = 16
VOCABULARY = 37


class Net(nn.Module):
    """Features and a head over their mean."""

    def __init__(self, *features: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(x.flatten(2).mean(2) if x.ndim == 4 else x.mean(1))


class Attends(nn.Module):
    """Attention between the tokens and one of half the width, as torch has it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        other = normed[..., : self.attention.kdim]
        return x + self.attention(normed, other, other, need_weights=False)[0]


def attention() -> nn.Module:
    """Two blocks with `nn.MultiheadAttention`."""
    return Net(Attends(), Attends())


def attention_kv() -> nn.Module:
    """`nn.MultiheadAttention` with separate weights for query, key and value, without biases."""
    return Net(*(Attends(kdim=8, vdim=8, bias=False) for _ in range(2)))


def torch_encoder() -> nn.Module:
    """The encoder of torch, whose inference runs past its modules."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, dropout=0.0, batch_first=True)
    return Net(*nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).layers)


def _conv(**options: Any) -> nn.Module:
    return Net(
        nn.Conv2d(3, WIDTH, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, **options),
        nn.Tanh(),
    )


def conv_strided() -> nn.Module:
    """A convolution with stride, 3 x 2 kernel and uneven padding."""
    return Net(nn.Conv2d(3, WIDTH, (3, 2), stride=(2, 1), padding=(0, 1)), nn.Tanh())


def conv_dilated() -> nn.Module:
    """A dilated convolution."""
    return _conv(dilation=2, padding=2)


def conv_same() -> nn.Module:
    """A convolution with `padding="same"`."""
    return _conv(padding="same", dilation=(2, 1))


def conv_reflect() -> nn.Module:
    """A convolution that pads by reflection."""
    return _conv(padding=1, padding_mode="reflect")


def conv_circular() -> nn.Module:
    """A convolution that pads around."""
    return _conv(padding=(2, 1), padding_mode="circular", stride=2)


def conv_grouped() -> nn.Module:
    """A dilated convolution in groups."""
    return _conv(groups=2, dilation=2)


def conv_transposed() -> nn.Module:
    """A transposed convolution."""
    return Net(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, WIDTH, 3, stride=2), nn.Tanh())


def standardised() -> nn.Module:
    """Convolutions that standardise their weight, of timm."""
    from timm.layers import ScaledStdConv2d, StdConv2d

    return Net(StdConv2d(3, 8, 3), nn.ReLU(), ScaledStdConv2d(8, WIDTH, 3), nn.Tanh())


def weight_normed() -> nn.Module:
    """Layers with `weight_norm`."""
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    return Net(weight_norm(first), nn.Tanh(), weight_norm(second), nn.Tanh())


def spectral_normed() -> nn.Module:
    """Layers with `spectral_norm`."""
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    return Net(spectral_norm(first), nn.Tanh(), spectral_norm(second), nn.Tanh())


class Equalised(nn.Linear):
    """A linear layer with a forward of its own: the weight is scaled, the output is squashed."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.weight * self.in_features**-0.5, self.bias))


def own_forward() -> nn.Module:
    """Subclasses of `nn.Linear` with a forward of their own."""
    return Net(Equalised(WIDTH, WIDTH), nn.LayerNorm(WIDTH), Equalised(WIDTH, WIDTH))


class Recurs(nn.Module):
    """A recurrent layer, of which the states are the output."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(WIDTH, 8, batch_first=True, bidirectional=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def lstm() -> nn.Module:
    """An LSTM."""
    return Net(Recurs(nn.LSTM, num_layers=2))


def gru() -> nn.Module:
    """A GRU."""
    return Net(Recurs(nn.GRU))


class Twice(nn.Module):
    """One layer under two names, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = self.first
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def two_names() -> nn.Module:
    """One module under two names."""
    return Net(Twice(), nn.Tanh())


def instance_norm() -> nn.Module:
    """Convolutions with instance norms."""
    norms = [nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(WIDTH, affine=True)]
    convs = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, WIDTH, 3)]
    return Net(convs[0], norms[0], nn.ReLU(), convs[1], norms[1], nn.Tanh())


class Fixes(nn.Module):
    """A layer whose author fixed a scale and a permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.full((WIDTH,), 1.5), requires_grad=False)
        self.mixing = nn.Parameter(torch.eye(WIDTH).flip(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x) * self.scale @ self.mixing)


def fixed() -> nn.Module:
    """Parameters that the module itself fixed."""
    return Net(Fixes(), Fixes())


class Unet(nn.Module):
    """An encoder and a decoder with a skip between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, WIDTH, 3, stride=2, padding=1), nn.ReLU())
        self.decoder = nn.ConvTranspose2d(WIDTH, 8, 2, stride=2)
        self.segmentation_head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.encoder(x)
        up = torch.tanh(self.decoder(self.deep(skip)) + skip)
        return self.segmentation_head(up).flatten(2).mean(2)


def encoder_decoder() -> nn.Module:
    """A network for segmentation, whose maps are averaged here."""
    return Unet()


class Asks(nn.Module):
    """A forward that asks what its layers are, as scvi's does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if isinstance(layer, nn.Linear) else torch.relu(x)
        return x


def asks() -> nn.Module:
    """A model that asks `isinstance`."""
    return Net(Asks(), nn.Tanh())


def _language_model(kind: str, **options: Any) -> nn.Module:
    import transformers as hf

    config = getattr(hf, f"{kind}Config")(
        vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=1, pad_token_id=0, **options
    )
    return getattr(hf, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(config)


def tied_llama() -> nn.Module:
    """A language model whose output layer is its embedding."""
    return _language_model(
        "Llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=True,
    )  # fmt: skip


def tied_gpt2() -> nn.Module:
    """GPT-2, whose output layer is its embedding."""
    return _language_model("GPT2", n_positions=16, n_embd=32, n_layer=2, n_head=2)


def mixture() -> nn.Module:
    """A mixture of experts whose weights are fused in parameters of three dimensions."""
    return _language_model(
        "Mixtral", hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, num_local_experts=2,
        num_experts_per_tok=2, attn_implementation="eager", experts_implementation="eager",
    )  # fmt: skip


OUTSIDE: dict[str, Callable[[], nn.Module]] = {
    factory.__name__: factory
    for factory in (
        attention, attention_kv, torch_encoder, conv_strided, conv_dilated, conv_same, conv_reflect,
        conv_circular, conv_grouped, conv_transposed, standardised, weight_normed, spectral_normed,
        own_forward, lstm, gru, two_names, instance_norm, fixed, encoder_decoder, asks, tied_llama,
        tied_gpt2, mixture,
    )
}  # fmt: skip

LANGUAGE = ("tied_llama", "tied_gpt2", "mixture")
IMAGES = (
    *("conv_strided", "conv_dilated", "conv_same", "conv_reflect", "conv_circular", "conv_grouped"),
    *("conv_transposed", "standardised", "instance_norm", "encoder_decoder"),
)
TARGETS: dict[str, str] = {
    "conv_grouped": "features.2",
    "conv_transposed": "features.2",
    "encoder_decoder": "decoder",
}
"""What a method with targets adapts there; "auto" elsewhere."""


def example(name: str, seed: int = 0) -> Tensor | dict[str, Tensor]:
    """Give a batch of two for a model of `OUTSIDE`."""
    generator = torch.Generator().manual_seed(seed)
    if name in LANGUAGE:
        ids = torch.randint(2, VOCABULARY, (2, 7), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name in IMAGES:
        return torch.randn(2, 3, 12, 12, generator=generator)
    return torch.randn(2, 5, WIDTH, generator=generator)
