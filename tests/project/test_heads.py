"""The survey of ``benchmarks/heads.py`` over classes of transformers, in short and as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

EXCEPTIONS = {
    *("GraniteSpeech5ForCTC", "LasrForCTC", "ParakeetForCTC", "MgpstrForSceneTextRecognition"),
    *("OmDetTurboForObjectDetection", "RTDetrForObjectDetection"),
    *(f"{kind}ForMaskedImageModeling" for kind in ("DeiT", "FocalNet", "Swin", "Swinv2", "ViT")),
    *(f"{kind}ForSequenceClassification" for kind in ("Gte", "NomicBert", "Perceiver")),
    *("Data2VecVisionForImageClassification", "PerceiverForImageClassificationLearned"),
    "Nemotron3DiarizationForAudioFrameClassification",
}
"""The classes of docs/heads.md whose head is another than ``from_pretrained`` would say."""


@pytest.mark.slow
def test_the_exceptions_of_the_whole_survey_are_known(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from heads import survey

    findings = survey(seconds=600)
    assert {f.kind for f in findings if f.agrees is False} <= EXCEPTIONS
    assert sum(found.agrees is True for found in findings) >= 1364


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
