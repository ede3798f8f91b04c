"""Updates in the weight, layer by layer, against dense algebra and torch's own functions."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import lightning_peft as lp


def moved(adaptation: lp.Adaptation, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def product(model: nn.Module, at: str) -> torch.Tensor:
    """Return `B A` of LoRA at a name, read from its parameters."""
    named = dict(model.named_parameters())
    up, down = (named[f"{at}.lora_{x}.default.weight"].detach().flatten(1) for x in "BA")
    return up @ down


@pytest.fixture
def attention() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True)).eval()


class Attend(nn.Module):
    """Self-attention of a sequence."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[0](x, x, x, need_weights=False)[0]


def test_attention_gets_each_update_once(attention) -> None:
    plain = copy.deepcopy(attention)
    adaptation = lp.adapt(attention, "lora", rank=2, targets="attention", head=False)
    assert [site.module for site in adaptation.sites] == ["0.in_proj", "0.out_proj"]
    assert isinstance(attention[0], nn.MultiheadAttention)
    moved(adaptation)
    with torch.no_grad():
        plain[0].in_proj_weight += product(attention, "0.in_proj")
        plain[0].out_proj.weight += product(attention, "0.out_proj")
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(Attend(attention)(x), Attend(plain)(x))
    adaptation.merge()
    torch.testing.assert_close(attention[0].in_proj_weight, plain[0].in_proj_weight)
    torch.testing.assert_close(Attend(attention)(x), Attend(plain)(x))


def test_query_key_and_value_are_not_the_output(attention) -> None:
    adaptation = lp.adapt(attention, "lora", rank=2, targets="qkv", head=False)
    assert [site.module for site in adaptation.sites] == ["0.in_proj"]


def test_unloaded_attention_is_torchs_again(attention) -> None:
    names = set(attention.state_dict())
    x = torch.randn(2, 3, 8)
    before = Attend(attention.requires_grad_(False))(x)
    adaptation = lp.adapt(attention, "lora", rank=2, targets="attention", head=False)
    moved(adaptation)
    adaptation.unload()
    assert type(attention[0]) is nn.MultiheadAttention
    assert type(attention[0].out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear
    assert set(attention.state_dict()) == names
    assert torch.equal(Attend(attention)(x), before)


def test_dropout_of_the_update_drops_inputs_for_the_whole_batch(attention) -> None:
    adaptation = lp.adapt(attention, "lora", rank=2, dropout=0.5, targets="qkv", head=False)
    moved(adaptation)
    attention.train()
    torch.manual_seed(3)
    weight = attention[0].in_proj_weight
    torch.manual_seed(3)
    kept = F.dropout(torch.ones(1, 8), 0.5)
    assert {*kept.flatten().tolist()} == {0.0, 2.0}
    expected = attention[0]._parameters["in_proj_weight"] + product(attention, "0.in_proj") * kept
    torch.testing.assert_close(weight, expected)
    adaptation.merge()  # of a model in training mode: nothing is dropped
    adaptation.unmerge()
    attention.eval()
    expected = attention[0]._parameters["in_proj_weight"] + product(attention, "0.in_proj")
    torch.testing.assert_close(attention[0].in_proj_weight, expected)


def test_another_dropout_is_refused_where_there_is_no_input(attention) -> None:
    with pytest.raises(
        lp.MethodError,
        match=r"loha: expected no dropout where the update is in the weight.*got rank_dropout=0.5",
    ):
        lp.adapt(attention, lp.HF("loha", r=2, rank_dropout=0.5, targets="qkv"), head=False)
    with pytest.raises(lp.MethodError, match=r"got lora_dropout=0.1 for 0.in_proj"):
        lp.adapt(attention, "dora", rank=2, dropout=0.1, targets="qkv", head=False)


GEOMETRIES = {
    "dilated": {"dilation": 2},
    "same": {"padding": "same"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": (2, 1), "padding_mode": "circular", "stride": 2},
}


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_convolution_keeps_its_geometry(options) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, **options))
    plain = copy.deepcopy(model)
    adaptation = lp.adapt(model, "lora", rank=2, targets="0", head=False)
    moved(adaptation)
    with torch.no_grad():
        plain[0].weight += product(model, "0").view_as(plain[0].weight)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(model(x), plain(x))


def test_a_layer_that_standardises_its_weight_merges_into_the_same_function() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    model = nn.Sequential(timm_layers.ScaledStdConv2d(3, 8, 3))
    plain = copy.deepcopy(model)
    adaptation = lp.adapt(model, "lora", rank=2, targets="0", head=False)
    assert not any("gain" in name for name in adaptation.adapter_names())
    assert isinstance(model[0], timm_layers.ScaledStdConv2d)
    moved(adaptation)
    with torch.no_grad():
        plain[0].weight += product(model, "0").view_as(plain[0].weight)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(model(x), plain(x))
    adaptation.merge_and_unload()
    torch.testing.assert_close(model(x), plain(x))
    assert type(model[0]) is timm_layers.ScaledStdConv2d


def test_a_weight_norm_takes_the_merged_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 4)))
    weight = model[0].weight.detach()
    adaptation = lp.adapt(model, "lora", rank=2, targets="0", head=False)
    moved(adaptation)
    x, change = torch.randn(3, 8), product(model, "0")
    expected = F.linear(x, weight + change, model[0].base_layer.bias)
    torch.testing.assert_close(model(x), expected)
    report = adaptation.merge(x)
    assert report.output_difference < 1e-6
    torch.testing.assert_close(model[0].base_layer.weight, weight + change)
    adaptation.unmerge()
    assert torch.equal(model[0].base_layer.weight, weight)
    adaptation.merge_and_unload()
    assert parametrize.is_parametrized(model[0], "weight")
    torch.testing.assert_close(model(x), expected)


def test_a_spectral_norm_does_not_and_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 4))).eval()
    adaptation = lp.adapt(model, "lora", rank=2, targets="0", head=False)
    moved(adaptation)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(lp.MethodError, match="cannot hold the merged weight, which would be"):
        adaptation.merge()
    assert not adaptation.merged
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_a_weight_that_a_hook_computes_is_refused(norm) -> None:
    model = nn.Sequential(norm(nn.Linear(8, 4)))
    with pytest.raises(lp.MethodError, match=r"a hook computes in 0.*torch.nn.utils.parametriza"):
        lp.adapt(model, "lora", rank=2, targets="0", head=False)


class Doubled(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(F.linear(x, 2 * self.weight, self.bias))


def test_a_subclass_with_its_own_forward_runs_it_with_the_sum() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Doubled(8, 4))
    plain = copy.deepcopy(model)
    adaptation = lp.adapt(model, "lora", rank=2, targets="0", head=False)
    assert isinstance(model[0], Doubled)
    moved(adaptation)
    with torch.no_grad():
        plain[0].weight += product(model, "0")
    x = torch.randn(3, 8)
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("method", ["ssf", "hydra"])
def test_what_comes_after_such_a_layer_is_not_merged_into_it(method) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Doubled(8, 4))
    adaptation = lp.adapt(model, method, targets="0", head=False)
    moved(adaptation)
    x = torch.randn(3, 8)
    before = model(x)
    with pytest.raises(lp.MethodError, match=r"0 \(Doubled\) does more with its weight than mult"):
        adaptation.merge()
    assert torch.equal(model(x), before)


def test_a_tuner_that_is_no_sum_is_refused_on_such_a_layer() -> None:
    with pytest.raises(
        lp.MethodError,
        match=r"hra: expected layers whose output is the product with their weight, got 0 \(Doub",
    ):
        lp.adapt(nn.Sequential(Doubled(8, 4)), lp.HF("hra", targets="0"), head=False)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_every_matrix_of_a_recurrent_layer(kind) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": kind(4, 8, 2, batch_first=True)})
    plain = copy.deepcopy(model)
    adaptation = lp.adapt(model, "lora", rank=2, targets="rnn", head=False)
    parts = ["rnn.ih_l0", "rnn.hh_l0", "rnn.ih_l1", "rnn.hh_l1"]
    assert [site.module for site in adaptation.sites] == parts
    assert isinstance(model["rnn"], kind)
    moved(adaptation)
    with torch.no_grad():
        for part in parts:
            name = f"weight_{part.removeprefix('rnn.')}"
            plain["rnn"].get_parameter(name).add_(product(model, part))
    x = torch.randn(3, 5, 4)
    torch.testing.assert_close(model["rnn"](x)[0], plain["rnn"](x)[0])
    for _ in range(2):
        output = model["rnn"](x)[0]
    output.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adaptation.trained_parameters())
    adaptation.merge_and_unload()
    torch.testing.assert_close(model["rnn"](x)[0], plain["rnn"](x)[0])
    assert type(model["rnn"]) is kind


def test_bitfit_trains_the_biases_of_a_recurrent_layer() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(4, 8), "out": nn.Linear(8, 2)})
    adaptation = lp.adapt(model, "bitfit", head="out")
    assert {"rnn.bias_ih_l0", "rnn.bias_hh_l0"} < set(adaptation.trained_names())


def test_a_scale_needs_features() -> None:
    with pytest.raises(lp.MethodError, match="expected layers with features to scale, got recur"):
        lp.adapt(nn.ModuleDict({"rnn": nn.LSTM(4, 8)}), "ssf", targets="rnn", head=False)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_initialisation_that_rewrites_weights_needs_parameters(start) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 3))
    with pytest.raises(lp.MethodError, match="rewrites the weights, expected matrices"):
        lp.adapt(model, lp.HF("lora", r=2, init_lora_weights=start, targets="0"), head=False)
    assert lp.find_adaptation(model) is None
    assert not list(model[0].children())


def test_such_an_initialisation_on_attention_is_undone_bit_for_bit(attention) -> None:
    x = torch.randn(2, 3, 8)
    before = Attend(attention.requires_grad_(False))(x)
    method = lp.HF("lora", r=2, init_lora_weights="pissa", targets="qkv")
    adaptation = lp.adapt(attention, method, head=False)
    torch.testing.assert_close(Attend(attention)(x), before)
    moved(adaptation)
    assert not torch.allclose(Attend(attention)(x), before)
    with adaptation.disabled():
        assert torch.equal(Attend(attention)(x), before)
    adaptation.unload()
    assert torch.equal(Attend(attention)(x), before)


def test_two_methods_of_our_own_share_a_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True)).eval()
    methods = [lp.create_method("lora_qv", rank=2), lp.create_method("ssf", targets="qkv")]
    adaptation = lp.adapt(model, methods, head=False)
    moved(adaptation)
    x = torch.randn(2, 3, 8)
    expected = Attend(model)(x)
    adaptation.merge()
    torch.testing.assert_close(Attend(model)(x), expected)
    adaptation.unmerge()
    assert torch.equal(Attend(model)(x), expected)


def test_adaloras_constant_is_no_parameter_to_train() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).to(torch.bfloat16)
    adaptation = lp.adapt(model, "adalora", rank=1, initial_rank=2, targets="0", head=False)
    assert not any("ranknum" in name for name in adaptation.trained_names())


@pytest.mark.parametrize("padding", [None, 0])
def test_an_embedding_is_looked_up_in_the_sum(padding) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8, padding_idx=padding))
    plain = copy.deepcopy(model)
    adaptation = lp.adapt(model, "lora", rank=2, targets="0", head=False)
    assert isinstance(model[0], nn.Embedding)
    moved(adaptation)
    named = dict(model.named_parameters())
    down, up = (named[f"0.lora_embedding_{x}.default"].detach() for x in "AB")
    with torch.no_grad():
        plain[0].weight += (up @ down).T
    ids = torch.randint(0, 11, (3, 5))
    torch.testing.assert_close(model(ids), plain(ids))
    adaptation.merge()
    torch.testing.assert_close(model(ids), plain(ids))


def test_a_forward_that_asks_for_the_class_takes_the_same_branch() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if isinstance(self.layer, nn.Linear) else x

    x = torch.randn(2, 8)
    for method in (lp.LoRA(rank=2), lp.DoRA(rank=2), lp.HF("hra"), lp.HF("vera", r=4)):
        torch.manual_seed(0)
        model = Asks()
        expected = model(x)
        lp.adapt(model, method, head=False)
        torch.testing.assert_close(model(x), expected)


def test_a_class_that_cannot_be_combined_with_another_is_served_as_it_is() -> None:
    class Slotted(nn.Linear):
        __slots__ = ("more",)

    torch.manual_seed(0)
    model = nn.Sequential(Slotted(8, 4))
    plain = copy.deepcopy(model)
    adaptation = lp.adapt(model, "lora", rank=2, targets="0", head=False)
    moved(adaptation)
    with torch.no_grad():
        plain[0].weight += product(model, "0")
    x = torch.randn(3, 8)
    torch.testing.assert_close(model(x), plain(x))
