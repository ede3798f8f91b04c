"""The script that made the shipped backbone: its optimizer, what it writes, and the model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import lightning_peft  # noqa: F401  (its import makes glyph_vit known to timm)
from lightning_peft.backbones import glyph_vit
from tools.glyph_vit import card, muon, pretrain


def test_the_shipped_card_is_the_one_that_the_record_gives() -> None:
    written = glyph_vit.WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    model = timm.create_model("glyph_vit")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = glyph_vit.WEIGHTS.stat().st_size
    assert written == card.model_card(glyph_vit.RECORD, parameters=parameters, size=size)


def test_muon_moves_by_a_semi_orthogonal_matrix() -> None:
    weight = nn.Parameter(torch.zeros(8, 32))
    weight.grad = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    muon.Muon([weight], lr=0.5).step()
    singular = torch.linalg.svdvals(weight.detach() / -0.5)
    assert bool(((singular > 0.6) & (singular < 1.3)).all())
    assert bool((weight * weight.grad).sum() < 0)  # downhill


@pytest.mark.slow
def test_the_script_writes_a_release_that_loads(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one", "two"):
        pretrain.main(
            f"--out {tmp_path / name} --steps 2 --batch-size 8 --fonts cmr10 "
            f"--threads {torch.get_num_threads()}".split()
        )
    weights = tmp_path / "one" / "glyph_vit.safetensors"
    record = json.loads((tmp_path / "one" / "glyph_vit.json").read_text(encoding="utf-8"))
    glyph_vit.verify_weights(weights, record["sha256"])
    assert weights.read_bytes() == (tmp_path / "two" / "glyph_vit.safetensors").read_bytes()
    assert record["recipe"]["steps"] == 2
    assert record["sha256"] in (tmp_path / "one" / "glyph_vit.md").read_text(encoding="utf-8")
    model = timm.create_model(
        "glyph_vit",
        pretrained=True,
        num_classes=record["num_classes"],
        pretrained_cfg_overlay={"file": str(weights), "num_classes": record["num_classes"]},
    )
    images = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    assert bool(model(images).isfinite().all())


def test_the_script_refuses_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        pretrain.main(["--steps", "0"])
    assert "expected --steps of at least 1, got 0" in capsys.readouterr().err
