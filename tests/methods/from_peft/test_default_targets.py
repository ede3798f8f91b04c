"""A config of ``peft`` without targets adapts what ``peft`` alone adapts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import lightning_peft as lp
from tests.support.zoo import build, output_of

# peft says so of Conv1D, and of T5's shared embedding
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]

CONFIGS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=4),
    "lora of some layers": lambda: peft.LoraConfig(r=4, layers_to_transform=[1]),
    "ia3": lambda: peft.IA3Config(),
    "ln_tuning": lambda: peft.LNTuningConfig(),
    "loha": lambda: peft.LoHaConfig(r=2),
}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Give the shape of everything that is trained."""
    return {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("backbone", ["llama", "bert", "gpt2", "t5"])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_what_peft_adapts(name: str, backbone: str) -> None:
    try:
        alone = shapes(peft.inject_adapter_in_model(CONFIGS[name](), build(backbone)))
    except (TypeError, ValueError):
        pytest.skip("peft asks for targets here, or has no such layer")
    ours = build(backbone)
    lp.adapt(ours, CONFIGS[name](), head=False)
    assert shapes(ours) == alone


def test_where_peft_has_no_default_it_is_what_we_choose() -> None:
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        peft.inject_adapter_in_model(peft.LoraConfig(r=4), build("vit"))
    ours, named = build("vit"), build("vit")
    lp.adapt(ours, peft.LoraConfig(r=4))
    lp.adapt(named, lp.LoRA(rank=4))
    assert shapes(ours) == shapes(named)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_it_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    adaptation = lp.adapt(build("bert"), CONFIGS[name](), head=False)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    adaptation.save(tmp_path)
    expected = output_of(adaptation.model.eval(), "bert")
    again = lp.load_adapter(build("bert"), tmp_path).eval()
    assert torch.equal(output_of(again, "bert"), expected)
    alone = peft.PeftModel.from_pretrained(build("bert"), tmp_path).eval()
    torch.testing.assert_close(output_of(alone, "bert"), expected)
