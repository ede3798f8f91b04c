"""An update in the weight under what surrounds a model; the reference is a plain forward."""

from __future__ import annotations

import copy
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import lightning_peft as lp
from tests.contract.cases import CASES, REFUSED, Case
from tests.contract.test_promises import adapted, evaluated, move, relative
from tests.contract.test_runtime import gradients, loss_of
from tests.support.outside import OUTSIDE
from tests.support.zoo import ZOO, build, example_input

BACKBONES = (
    *("attention", "attention_kv", "torch_encoder", "lstm", "conv_transposed", "own_forward"),
    *("weight_normed", "eva", "tv_vit"),
)
METHODS = ("lora", "dora", "hf:hra", "lora_qv", "ssf")
IN_WEIGHT = [
    case
    for case in CASES
    if case.label in METHODS
    and case.backbone in BACKBONES
    and (case.label, case.backbone) not in REFUSED
]
FEW = ("lora-attention", "ssf-eva", "hf:hra-conv_transposed", "dora-lstm")


def sampled(*quick: str, of: list[Case] = IN_WEIGHT) -> Any:
    slow = pytest.mark.slow
    marked = [
        case if str(case) in quick else pytest.param(case, marks=slow, id=str(case)) for case in of
    ]
    return pytest.mark.parametrize("case", marked, ids=str)


def ready(case: Case) -> tuple[nn.Module, lp.Adaptation, Tensor, Tensor]:
    """Return a model whose adapter was moved, its adaptation, inputs and its outputs."""
    model, adaptation = adapted(case)
    move(adaptation)
    inputs = example_input(case.backbone)
    assert isinstance(inputs, Tensor)
    return model, adaptation, inputs, evaluated(model, case)


def of_peft(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]


# the code of torch's recurrent layers is not compiled at all
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@sampled(of=[c for c in IN_WEIGHT if c.backbone != "lstm"])
def test_it_is_compiled_in_one_graph(case: Case) -> None:
    model, adaptation, inputs, expected = ready(case)
    slopes = gradients(model, case)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative(compiled(inputs).detach(), expected) < 1e-5
    for name, gradient in gradients(compiled, case).items():
        own = slopes[name.removeprefix("_orig_mod.")]
        torch.testing.assert_close(gradient, own, rtol=1e-4, atol=1e-5, msg=name)
    with torch.no_grad(), adaptation.disabled():
        assert relative(compiled(inputs), model(inputs)) < 1e-5
    with torch.no_grad():
        assert relative(compiled(inputs), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("case", [c for c in IN_WEIGHT if str(c) in FEW], ids=str)
def test_inductor_gives_the_same_numbers(case: Case) -> None:
    model, _, inputs, expected = ready(case)
    slopes = gradients(model, case)
    torch._dynamo.reset()
    compiled = torch.compile(model)
    assert relative(compiled(inputs).detach(), expected) < 1e-5
    for name, gradient in gradients(compiled, case).items():
        own = slopes[name.removeprefix("_orig_mod.")]
        torch.testing.assert_close(gradient, own, rtol=1e-4, atol=1e-5, msg=name)


# peft's HRA detaches the weight in a way that torch.export refuses for plain layers too
@sampled("lora-lstm", "ssf-eva", of=[c for c in IN_WEIGHT if c.label != "hf:hra"])
def test_unmerged_it_is_exported(case: Case) -> None:
    model, _, inputs, expected = ready(case)
    exported = torch.export.export(model, (inputs,)).module()
    assert relative(exported(inputs).detach(), expected) < 1e-5


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet")
@sampled("lora-attention", "ssf-eva", "hf:hra-conv_transposed")
def test_gradients_of_each_sample_are_those_of_its_own_backward(case: Case) -> None:
    model, _, inputs, _ = ready(case)
    named = dict(model.named_parameters())
    trained = {name: p.detach() for name, p in named.items() if p.requires_grad}

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, values, (sample[None],)).square().sum()

    found = vmap(grad(loss), (None, 0))(trained, inputs)
    for i in range(len(inputs)):
        model.zero_grad()
        model(inputs[i : i + 1]).square().sum().backward()
        for name in trained:
            own = named[name].grad
            expected = torch.zeros_like(named[name]) if own is None else own
            torch.testing.assert_close(found[name][i], expected, rtol=1e-3, atol=1e-4, msg=name)


@sampled(*FEW)
def test_blocks_that_are_run_again_give_the_same_gradients(case: Case) -> None:
    model, _, _, _ = ready(case)
    expected = gradients(model, case)
    owner: Any = model
    blocks = owner.features if hasattr(model, "features") else getattr(model, "blocks", None)
    for block in owner.encoder.layers if blocks is None else blocks:
        inner = block.forward
        block.forward = partial(checkpoint, inner, use_reentrant=False)
    got = gradients(model, case)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@sampled("hf:hra-attention", "lora-own_forward")
def test_threads_do_not_read_each_others_weights(case: Case) -> None:
    model, _, inputs, expected = ready(case)
    wrong: list[float] = []

    def serve() -> None:
        with torch.no_grad():
            wrong.extend(e for _ in range(10) if (e := relative(model(inputs), expected)) > 1e-5)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@sampled(*FEW)
def test_autocast_and_inference_mode_leave_nothing_behind(case: Case) -> None:
    model, _, inputs, expected = ready(case)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            build(case.backbone)(inputs)
    except RuntimeError as error:  # the plain backbone: some processors have no such LSTM
        pytest.skip(f"torch has no bfloat16 for {case.backbone} here: {error}")
    with torch.inference_mode():
        assert relative(model(inputs), expected) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        output, loss = model(inputs), loss_of(model, case)
    assert relative(output.detach().float(), expected) < 0.1
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.equal(evaluated(model, case), expected)


@sampled(*FEW, "lora-lstm")
def test_on_the_meta_device_it_has_the_same_names_and_counts(case: Case) -> None:
    with torch.device("meta"):
        model = {**ZOO, **OUTSIDE}[case.backbone]()
        adaptation = lp.adapt(model, case.method)
    real, other = adapted(case)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert adaptation.report().to_dict() == other.report().to_dict()
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in real.named_parameters()]
    inputs = example_input(case.backbone)
    assert isinstance(inputs, Tensor)
    assert model(inputs.to("meta")).shape == real(inputs).shape


@sampled(*FEW)
def test_a_backbone_of_bfloat16_reads_bfloat16_from_an_adapter_of_float32(case: Case) -> None:
    _, _, inputs, expected = ready(case)
    model = build(case.backbone).bfloat16()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adaptation = lp.adapt(model, case.method)
    move(adaptation)
    names = dict(model.named_parameters())
    assert {names[name].dtype for name in adaptation.adapter_names()} == {torch.float32}
    output = model(inputs.bfloat16())
    assert output.dtype == torch.bfloat16
    output.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in names.values() if p.grad is not None)
    assert relative(output.detach().float(), expected) < 0.15


@sampled(
    "lora-attention",
    "dora-conv_transposed",
    "lora-weight_normed",
    of=[case for case in IN_WEIGHT if case.label in ("lora", "dora", "hf:hra")],
)
def test_merging_by_peft_itself_writes_what_is_read_and_unmerging_is_exact(case: Case) -> None:
    model, _, _, expected = ready(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = [layer for layer in of_peft(model) if hasattr(layer, "in_weight")]
    for layer in layers:
        layer.merge(safe_merge=True)
        assert layer.merged
    assert relative(evaluated(model, case), expected) < 1e-5
    changed = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert changed
    for layer in layers:
        layer.unmerge()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(evaluated(model, case), expected)


def test_merging_some_of_the_adapters_in_a_weight_is_refused() -> None:
    model, _ = adapted(next(case for case in IN_WEIGHT if str(case) == "lora-attention"))
    before = copy.deepcopy(model.state_dict())
    for layer in of_peft(model):
        with pytest.raises(lp.MethodError, match=r"expected all active adapters.*got other"):
            layer.merge(adapter_names=["other"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["lora-lstm", "lora_qv-eva"])
def test_unmerged_after_a_cast_the_weights_follow_it(name: str) -> None:
    case = next(case for case in IN_WEIGHT if str(case) == name)
    model, adaptation, inputs, _ = ready(case)
    expected = copy.deepcopy(model).double()(inputs.double())
    adaptation.merge()
    model.double()
    adaptation.unmerge()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert relative(model(inputs.double()).detach(), expected.detach()) < 1e-12


def test_what_peft_alone_cannot_place_is_written_in_our_format_and_loads_again(
    tmp_path: Path,
) -> None:
    for case in IN_WEIGHT:
        if case.label not in ("lora", "hf:hra"):
            continue
        _, adaptation, _, expected = ready(case)
        report = lp.export_model(adaptation, tmp_path / str(case), "adapter")
        config = json.loads((report.path / "adapter_config.json").read_text())
        own = case.backbone not in ("eva", "own_forward")
        assert ("lightning_peft" in config, "peft_type" in config) == (own, not own), case
        assert ("peft alone cannot hold it" in report.note) == own
        twin = build(case.backbone)
        lp.load_adapter(twin, report.path)
        assert torch.equal(evaluated(twin, case), expected)


def test_peft_alone_merges_a_weight_that_is_read_into_our_weights(tmp_path: Path) -> None:
    from peft import PeftModel

    case = next(case for case in IN_WEIGHT if str(case) == "lora-eva")
    _, adaptation, inputs, expected = ready(case)
    assert any(site.in_weight for site in adaptation.sites)
    adaptation.save(tmp_path)
    plain = PeftModel.from_pretrained(build("eva"), str(tmp_path)).merge_and_unload().eval()
    with torch.no_grad():
        assert relative(plain(inputs), expected) < 1e-5
    ours = adaptation.merge_and_unload().state_dict()
    for name, value in plain.state_dict().items():
        own = ours[name.replace("modules_to_save.default.", "")]
        torch.testing.assert_close(value, own, rtol=1e-5, atol=1e-6, msg=name)


def test_a_file_of_peft_for_its_own_attention_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["attention"])
    get_peft_model(build("attention"), config).save_pretrained(tmp_path)
    model = build("attention")
    before = dict(model.state_dict())
    with pytest.raises(lp.MethodError, match=r"out_proj twice: .* got features.0.attention, "):
        lp.load_adapter(model, tmp_path)
    assert list(model.state_dict()) == list(before)


class Encodes(nn.Module):
    """The encoder of torch, with its fast path and nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))
        return found


@pytest.mark.parametrize("label", METHODS)
def test_the_fast_inference_of_torch_with_a_padding_mask_reads_the_updates(label: str) -> None:
    torch.manual_seed(0)
    model = Encodes().eval()
    case = next(case for case in IN_WEIGHT if (case.label, case.backbone) == (label, "attention"))
    adaptation = lp.adapt(model, case.method)
    assert any(site.in_weight for site in adaptation.sites)
    move(adaptation)
    inputs, mask = torch.randn(2, 5, 16), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    for given in ((inputs,), (inputs, mask)):
        slow = model(*given).detach()  # what needs a gradient goes the long way
        with torch.inference_mode():
            assert relative(model(*given), slow) < 1e-5


@pytest.mark.parametrize("name", ["lora-attention", "ssf-eva", "hf:hra-lstm"])
def test_two_adapters_in_a_weight_are_switched_and_averaged(name: str, tmp_path: Path) -> None:
    case = next(case for case in IN_WEIGHT if str(case) == name)
    _, adaptation, inputs, one = ready(case)
    adaptation.save(tmp_path / "one")
    first = {key: value.clone() for key, value in adaptation.state_dict().items()}
    move(adaptation, 0.2)
    two = evaluated(adaptation.model, case)
    adaptation.save(tmp_path / "two")
    switch = lp.AdapterSwitch(build(case.backbone), {n: tmp_path / n for n in ("one", "two")})
    mixed = switch(inputs, ["two", "one"])
    torch.testing.assert_close(mixed[0], two[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed[1], one[1], rtol=1e-5, atol=1e-6)
    second = adaptation.state_dict()
    mean = {key: (first[key] + second[key]) / 2 for key in first}
    adaptation.load_state_dict(lp.soup([first, second]))
    expected, _ = adapted(case)
    expected.load_state_dict({**expected.state_dict(), **mean})
    assert relative(evaluated(adaptation.model, case), evaluated(expected, case)) < 1e-5


@pytest.mark.parametrize("memory", ["low", "lowest"])
def test_saving_memory_is_refused_where_every_update_is_in_a_weight(memory: Any) -> None:
    model = build("attention")
    before = [type(module) for module in model.modules()]
    with pytest.raises(lp.MethodError, match="its update is in the weight that the forward reads"):
        lp.adapt(model, lp.LoRA(rank=2), memory=memory)
    assert [type(module) for module in model.modules()] == before
    adaptation = lp.adapt(build("eva"), lp.LoRA(rank=2), memory=memory)  # the other layers save it
    loss_of(adaptation.model, next(c for c in IN_WEIGHT if c.backbone == "eva")).backward()
    assert all(p.grad is not None for p in adaptation.trained_parameters())
