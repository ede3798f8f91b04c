"""A short form of ``benchmarks/heads.py``: its survey of the classes of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.slow
def test_heads_of_transformers_are_what_from_pretrained_would_make_anew(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from heads import GROUPS, survey, table

    findings = survey("^(bert|distilbert|vit|segformer|dinov3_vit|siglip_vision_model)$", 600)
    built = [found for found in findings if not found.why_not]
    assert {found.group for found in built} == set(GROUPS)
    # its decoder comes with checkpoints of this pretraining, not with those of the base model
    assert {f.kind for f in built if f.agrees is False} == {"ViTForMaskedImageModeling"}
    assert all(found.blocks for found in built)
    assert sum(found.agrees is True for found in built) > 12
    assert "| classification |" in table(findings)
