import pytest
import timm
from torch import nn

import lightning_peft  # noqa: F401  registers glyph_vit
from lightning_peft.backbones.data_config import DataConfig, data_config
from lightning_peft.errors import DataError


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch16_224.dino", "convnext_tiny"])
def test_a_name_is_what_timm_says(name):
    expected = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    found = data_config(name)
    assert {key: getattr(found, key) for key in expected} == expected


def test_a_model_is_what_it_was_built_for():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, in_chans=1, embed_dim=16, depth=1, num_heads=1
    )
    found = data_config(model)
    assert found.input_size == (1, 32, 32)
    assert found.mean == (0.5,)


def test_the_shipped_backbone():
    found = data_config("glyph_vit")
    assert found.input_size == (1, 24, 24)
    assert len(found.mean) == len(found.std) == 1
    assert found.pil_mode == "L"


def test_changes():
    found = data_config("resnet18", image_size=64, channels=1, std=0.2)
    assert found.input_size == (1, 64, 64)
    assert found.mean == pytest.approx((sum((0.485, 0.456, 0.406)) / 3,))
    assert found.std == (0.2,)
    assert data_config(found) == found
    assert data_config(None) == DataConfig()
    assert data_config({"mean": [0.5]}).mean == (0.5, 0.5, 0.5)


def test_unknown_name():
    with pytest.raises(
        DataError, match=r"timm has no model 'resnet1888'. Did you mean .*'resnet18'"
    ):
        data_config("resnet1888")


def test_unknown_tag():
    with pytest.raises(DataError, match=r"no weights 'resnet18.nowhere'. Did you mean .*'resnet18"):
        data_config("resnet18.nowhere")


def test_a_module_that_does_not_say():
    with pytest.raises(DataError, match=r"Linear does not say .* Pass a mapping"):
        data_config(nn.Linear(2, 2))


def test_unknown_key():
    with pytest.raises(DataError, match=r"'means': Did you mean 'mean'"):
        data_config({"means": 0.5})


def test_statistics_that_do_not_fit():
    with pytest.raises(DataError, match=r"one mean for each of 3 channels.*got \(0.1, 0.2\)"):
        data_config(None, mean=(0.1, 0.2))


def test_values_that_describe_no_image_are_refused_together():
    wrong = {"input_size": [3, "224", 224], "mean": "grey", "crop_pct": 0, "crop_mode": None}
    with pytest.raises(
        DataError,
        match=r"input_size: expected channels, height and width, got .*'224'.*; mean: expected a "
        r"number for each channel, got 'grey'; crop_pct: .* above 0, got 0; crop_mode: .* got None",
    ):
        data_config(wrong)
