"""A backbone between the pretrained one and a random one."""

import pytest
import timm
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def degraded(tmp_path_factory):
    """The shipped weights with noise of 0.6 of each tensor's own deviation mixed into them."""
    model = timm.create_model("glyph_vit", pretrained=True)
    random = torch.Generator().manual_seed(0)
    noisy = {
        name: value + 0.6 * value.std() * torch.randn(value.shape, generator=random)
        if value.is_floating_point() and value.dim() > 1
        else value
        for name, value in model.state_dict().items()
    }
    path = tmp_path_factory.mktemp("weights") / "degraded.safetensors"
    save_file({name: value.contiguous() for name, value in noisy.items()}, path)
    return path


@pytest.fixture(autouse=True)
def timed_briefly(monkeypatch):
    """Time a forward pass by three of them, whatever they take."""
    monkeypatch.setattr("lightning_peft.ranking.features.MOST_SECONDS", 0.0)
