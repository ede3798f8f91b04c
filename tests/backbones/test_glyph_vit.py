"""The shipped backbone: found by timm, loaded offline, verified."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import lightning_peft  # noqa: F401  (its import makes glyph_vit known to timm)
from lightning_peft.backbones import _register, glyph_vit
from lightning_peft.errors import PEFTError

SHIPPED = safetensors.torch.load_file(glyph_vit.WEIGHTS)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))


def test_the_shipped_weights_are_small_and_the_released_ones() -> None:
    assert glyph_vit.WEIGHTS.stat().st_size <= 6_000_000
    glyph_vit.verify_weights()
    model = timm.create_model("glyph_vit")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 1_000_000 <= parameters <= 2_000_000


def test_pretrained_weights_are_loaded() -> None:
    model = timm.create_model("glyph_vit", pretrained=True)
    assert isinstance(model, VisionTransformer)
    assert model.num_classes == glyph_vit.RECORD["num_classes"] >= 62
    for name, value in model.state_dict().items():
        assert torch.equal(value, SHIPPED[name].to(value.dtype)), name


def test_it_is_a_whole_timm_vit(images: torch.Tensor) -> None:
    model = timm.create_model("glyph_vit", pretrained=True, num_classes=10).eval()
    assert isinstance(model.get_classifier(), nn.Linear)
    assert [block.attn.qkv.out_features for block in model.blocks] == [384] * 6
    assert model(images).shape == (2, 10)
    assert model.forward_features(images).shape == (2, 36, 128)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (1, 24, 24)
    assert config["mean"] == (glyph_vit.RECORD["mean"],)
    assert timm.list_pretrained("glyph_vit*") == ["glyph_vit.synthetic"]


def test_without_a_head_it_gives_features(images: torch.Tensor) -> None:
    model = timm.create_model("glyph_vit", pretrained=True, num_classes=0).eval()
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(images).shape == (2, 128)


def test_three_channels_that_are_equal_give_the_output_of_one(images: torch.Tensor) -> None:
    gray = timm.create_model("glyph_vit", pretrained=True, num_classes=0).eval()
    color = timm.create_model("glyph_vit", pretrained=True, num_classes=0, in_chans=3).eval()
    with torch.no_grad():
        torch.testing.assert_close(color(images.expand(-1, 3, -1, -1)), gray(images))


@pytest.mark.parametrize(
    ("options", "side"),
    [
        pytest.param({"drop_path_rate": 0.1, "global_pool": "max"}, 24, id="drop-path-max-pool"),
        pytest.param({"img_size": 32}, 32, id="larger-image"),
        pytest.param({"dynamic_img_size": True}, 28, id="dynamic-size"),
    ],
)
def test_options_of_timm_vits_work(options: dict[str, object], side: int) -> None:
    model = timm.create_model("glyph_vit", pretrained=True, num_classes=4, **options)
    assert model(torch.rand(2, 1, side, side)).shape == (2, 4)


def test_feature_extraction_works(images: torch.Tensor) -> None:
    model = timm.create_model("glyph_vit", pretrained=True, features_only=True, out_indices=2)
    assert [tuple(map_.shape) for map_ in model(images)] == [(2, 128, 6, 6)] * 2


def test_another_patch_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected patch_size=4.*got \(6, 6\)"):
        timm.create_model("glyph_vit", patch_size=6)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1000], id="truncated"),
        pytest.param(lambda content: content[:-1] + bytes([content[-1] ^ 1]), id="one-bit"),
    ],
)
def test_damaged_weights_are_refused(damage, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "glyph_vit.safetensors"
    path.write_bytes(damage(glyph_vit.WEIGHTS.read_bytes()))
    expected = glyph_vit.RECORD["sha256"]
    with pytest.raises(PEFTError, match=f"SHA-256 {expected}, got [0-9a-f]{{64}}.*reinstall"):
        glyph_vit.verify_weights(path)


def test_loading_verifies_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(glyph_vit.RECORD, "sha256", "0" * 64)
    with pytest.raises(PEFTError, match="SHA-256 0{64}, got"):
        timm.create_model("glyph_vit", pretrained=True)
    timm.create_model("glyph_vit", pretrained=False)  # no weights, nothing to verify


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(PEFTError, match=r"got no such file: reinstall"):
        glyph_vit.verify_weights(tmp_path / "absent.safetensors")


def test_own_weights_are_loaded_in_place_of_the_shipped_ones(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    safetensors.torch.save_file({k: v * 0 + 1 for k, v in SHIPPED.items()}, path)
    model = timm.create_model(
        "glyph_vit", pretrained=True, pretrained_cfg_overlay={"file": str(path)}
    )
    assert bool((model.head.weight == 1).all())


HOOKED = (
    "import sys, lightning_peft; from lightning_peft.backbones import _register as r;"
    "assert not {'timm', 'torch', 'matplotlib'} & set(sys.modules);"
    "r.register_when_timm_is_imported();"
    "hooks = lambda: [f for f in sys.meta_path if type(f) is r._AfterTimm];"
    "assert len(hooks()) == 1;"
)


def test_the_import_hook_is_light() -> None:
    subprocess.run([sys.executable, "-c", HOOKED], check=True, timeout=600)


@pytest.mark.slow  # timm is imported anew
def test_the_import_hook_registers_once_timm_comes() -> None:
    code = (
        f"{HOOKED} import timm; assert not hooks();"
        "assert 'exec_module' not in vars(timm.__loader__);"
        "timm.create_model('glyph_vit', pretrained=True, num_classes=10)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_timm_first_registers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(_register, "register", lambda: called.append(True))
    before = list(sys.meta_path)
    _register.register_when_timm_is_imported()  # timm is imported in this process
    assert called == [True]
    assert sys.meta_path == before
