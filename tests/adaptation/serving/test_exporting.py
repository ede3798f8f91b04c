"""A model in a file: read back by what knows nothing of this package, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import lightning_peft as lp
from lightning_peft.backbones.data_config import data_config
from tests.support.zoo import build, example_input, output_of

HAS_ONNX = all(importlib.util.find_spec(n) for n in ("onnx", "onnxscript", "onnxruntime"))


def adapted(method: object = None, backbone: str = "vit") -> lp.Adaptation:
    adaptation = lp.adapt(build(backbone), method or lp.LoRA(rank=2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    adaptation.model.eval()
    return adaptation


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((got - expected).abs().max() <= 1e-5 * expected.abs().max())


def test_timm_loads_the_merged_weights_by_its_own_names(tmp_path):
    model = timm.create_model("glyph_vit", pretrained=True, num_classes=4)
    adaptation = lp.adapt(model, lp.LoRA(rank=2))
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval()
    images = torch.randn(3, 1, 24, 24)
    expected = model(images)

    report = lp.export_model(adaptation, tmp_path / "m.safetensors", class_names="abcd")
    plain = timm.create_model("glyph_vit", pretrained=False, num_classes=4).eval()
    plain.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert close(plain(images), expected)
    assert report.merged
    assert report.output_difference < 1e-5
    assert report.bytes == (tmp_path / "m.safetensors").stat().st_size
    (tmp_path / "any").touch()
    assert report.path.stat().st_mode == (tmp_path / "any").stat().st_mode
    (tmp_path / "any").unlink()
    # the model goes on as it was
    assert not adaptation.merged
    assert torch.equal(model(images), expected)

    card = json.loads(report.card.read_text())
    assert report.card == tmp_path / "m.safetensors.json"
    assert card["preprocessing"]["input_size"] == [1, 24, 24]
    assert card["preprocessing"]["mean"] == [0.25]
    assert card["class_names"] == list("abcd")
    assert card["architecture"] == "glyph_vit"
    assert card["method"]["name"] == "lora"
    assert card["output_difference"] == report.output_difference
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m.safetensors",
        "m.safetensors.json",
    ]


def test_transformers_loads_the_merged_weights(tmp_path):
    adaptation = adapted(backbone="bert")
    lp.export_model(adaptation, tmp_path / "model.safetensors")
    adaptation.model.config.save_pretrained(tmp_path)
    plain = type(adaptation.model).from_pretrained(tmp_path).eval()
    assert close(output_of(plain, "bert"), output_of(adaptation.model, "bert"))


@pytest.mark.parametrize(
    ("method", "backbone", "merged"),
    [
        pytest.param(lp.LoRA(rank=2), "vit", True, id="merged"),
        pytest.param(
            lp.VPTDeep(prompt_length=2), "vit", False, id="prompts", marks=pytest.mark.slow
        ),
        pytest.param(lp.AdaptFormer(), "vit", False, id="bottlenecks"),
        pytest.param(lp.LoRA(rank=2), "bert", True, id="text", marks=pytest.mark.slow),
    ],
)
def test_a_graph_is_loaded_without_this_package_and_takes_any_batch(
    method, backbone, merged, tmp_path
):
    adaptation = adapted(method, backbone)
    inputs = example_input(backbone)
    path = tmp_path / "new" / "model.pt2"
    report = lp.export_model(adaptation, path, "torch-export", example_inputs=inputs)
    assert (report.merged, report.any_batch) == (merged, True)
    assert report.output_difference < 1e-5
    assert ("cannot be merged" in report.note) != merged

    program = torch.export.load(path).module()
    if isinstance(inputs, dict):  # a text of another length, and another number of them
        inputs = {key: torch.cat([value, value, value])[:, :-2] for key, value in inputs.items()}
        assert close(program(**inputs), output_of(adaptation.model, backbone, inputs))
    else:
        inputs = torch.cat([inputs, inputs.flip(0), inputs])
        assert close(program(inputs), adaptation.model(inputs))


def test_a_model_that_reads_its_batch_size_is_exported_with_that_size(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(x) * (2.0 if int(x.shape[0]) == 3 else 1.0)

    model, inputs = Fixed().eval(), torch.randn(3, 4)
    path = tmp_path / "fixed.pt2"
    report = lp.export_model(model, path, "torch-export", example_inputs=inputs)
    assert not report.any_batch
    assert close(torch.export.load(path).module()(inputs), model(inputs))


def test_an_adapter_is_exported_in_the_format_of_peft(tmp_path):
    import peft

    adaptation = adapted()
    report = lp.export_model(adaptation, tmp_path / "adapter", "adapter")
    theirs = peft.PeftModel.from_pretrained(build("vit"), str(tmp_path / "adapter")).eval()
    images = example_input("vit")
    assert close(
        theirs(images), adaptation.model(images)
    )  # peft's forward is another one than ours
    assert report.card == tmp_path / "adapter" / "export.json"
    assert not report.merged


@pytest.mark.skipif(not HAS_ONNX, reason="the extra `onnx` is not installed")
@pytest.mark.parametrize("method", [lp.LoRA(rank=2), lp.VPTDeep(prompt_length=2)])
def test_onnxruntime_computes_what_the_model_does(method, tmp_path):
    import onnxruntime

    adaptation = adapted(method)
    path = tmp_path / "model.onnx"
    report = lp.export_model(adaptation, path, "onnx")
    images = torch.randn(5, 3, 32, 32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert close(torch.from_numpy(got), adaptation.model(images))
    assert report.any_batch


def test_onnx_without_its_packages_names_the_extra(tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(lp.MissingExtraError, match=r"lightning-peft\[onnx\]"):
        lp.export_model(adapted(), tmp_path / "m.onnx", "onnx")
    assert not list(tmp_path.iterdir())


class Noise(nn.Module):
    """Gives another output each time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x) + torch.randn(len(x), 2)


@pytest.mark.parametrize(
    ("make", "format", "settings", "message"),
    [
        pytest.param(adapted, "onx", {}, "no format 'onx'. Did you mean 'onnx'", id="format"),
        pytest.param(
            lambda: adapted(lp.VPTDeep()),
            "safetensors",
            {},
            "'vpt_deep' cannot be merged.*Export it as torch-export",
            id="prompts",
        ),
        pytest.param(lambda: build("vit"), "adapter", {}, "got a plain one", id="no adapter"),
        pytest.param(lambda: build("mlp"), "torch-export", {}, "expected example_inputs", id="x"),
        pytest.param(
            lambda: build("vit"),
            "safetensors",
            {"preprocessing": data_config({"input_size": (3, 5, 16)})},
            r"VisionTransformer computes .* \(\d, 3, 5, 16\): AssertionError: Input height",
            id="size",
        ),
        pytest.param(
            lambda: build("vit"),
            "safetensors",
            {"preprocessing": data_config({"input_size": (3, 10**10, 10**10)})},
            "fits into memory, got .*10000000000",
            id="huge",
        ),
        pytest.param(
            Noise,
            "torch-export",
            {"example_inputs": torch.ones(2, 4)},
            "differs from the model's output.*Nothing was written",
            id="random",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    make, format, settings, message, tmp_path
):
    with pytest.raises(lp.ExportError, match=message):
        lp.export_model(make(), tmp_path / "model", format, **settings)
    assert not list(tmp_path.iterdir())


def test_an_old_file_survives_an_export_that_fails(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_text("old")
    with pytest.raises(lp.ExportError, match="Nothing was written"):
        lp.export_model(Noise(), path, "torch-export", example_inputs=torch.ones(2, 4))
    assert path.read_text() == "old"
    with pytest.raises(lp.ExportError, match="cannot write to"):
        lp.export_model(adapted(), Path(path, "below"), "safetensors")
