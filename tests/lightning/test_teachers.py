"""Teacher and student: the student is adapted, its copy follows, and no teacher is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import lightning_peft as lp
from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.lightning.teachers import student_of
from tests.lightning.test_checkpoint_kinds import METHODS, Module, Net, data
from tests.support.runs import differing, equal, state_of, trainer
from tests.support.zoo import build

MOMENTUM = 0.9


class Momentum(Module):
    """BYOL's loop, written as lightly does: a deep copy, and a ``zip`` of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net)
        self.teacher.requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        for teacher, student in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            teacher.data = teacher.data * MOMENTUM + student.data * (1 - MOMENTUM)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        self.update()
        with torch.no_grad():
            target = self.teacher(batch[0])
        loss = super().training_step(batch, index)
        return loss + nn.functional.mse_loss(self.net(batch[0] + 0.1), target)


def run(tmp_path: Path, module: Any, epochs: int = 2, path: Any = None, **settings: Any) -> Any:
    L.seed_everything(0, verbose=False)
    keep = ModelCheckpoint(tmp_path / str(path is None), filename="{epoch}", save_top_k=-1)
    tr = trainer(tmp_path, lp.PEFT(METHODS["lora"], **settings), keep, max_epochs=epochs)
    tr.fit(module, data(), ckpt_path=path)
    return module


def test_the_teacher_follows_and_the_run_resumes_bit_equal(tmp_path: Path, said: Any) -> None:
    module = run(tmp_path, Momentum())
    assert "'teacher' is a teacher of 'net'" in said()
    student, teacher = lp.find_adaptation(module.net), lp.find_adaptation(module.teacher)
    assert not any(p.requires_grad for p in module.teacher.parameters())
    pairs = zip(module.net.named_parameters(), module.teacher.parameters(), strict=True)
    for (name, mine), other in pairs:
        trained = name in student.trained_names()
        assert torch.equal(mine, other) != trained, name  # the base is the pretrained one
    assert teacher.steppers() == []

    resumed = run(tmp_path, Momentum(), path=tmp_path / "True" / "epoch=0.ckpt")
    assert differing(state_of(module), state_of(resumed)) == set()
    loaded = lp.load_from_checkpoint(Momentum, tmp_path / "True" / "epoch=1.ckpt")
    assert equal(state_of(loaded), state_of(module))
    assert not any(p.requires_grad for p in loaded.teacher.parameters())


def test_the_average_of_the_adapter_is_the_one_by_hand(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Watched(Momentum):
        def update(self) -> None:
            seen.append(self.net.head.weight.detach().clone())
            super().update()

    module = run(tmp_path, Watched())
    average = seen[0]
    for weight in seen:
        average = average * MOMENTUM + weight * (1 - MOMENTUM)
    assert torch.allclose(module.teacher.head.weight, average, atol=1e-6)
    merged = run(tmp_path / "merged", Momentum(), merge_at_end=True)
    assert [n for n, _ in merged.named_parameters()] == [
        n for n, _ in Momentum().named_parameters()
    ]


class Inside(L.LightningModule):
    """anomalib's Stfpm: one attribute holds both, the optimizer has parameters of the student."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"teacher": Net(), "student": Net()})
        self.model["teacher"].requires_grad_(False).eval()

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        with torch.no_grad():
            target = self.model["teacher"](batch[0])
        return nn.functional.mse_loss(self.model["student"](batch[0]), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model["student"].head.parameters(), lr=0.1)


def test_of_a_pair_with_other_weights_the_student_alone_is_adapted(
    tmp_path: Path, said: Any
) -> None:
    module = Inside()
    before = state_of(module.model["teacher"])
    run(tmp_path, module, add_to_optimizer=True)
    assert "no adapter in 'model.teacher', frozen and of the same class" in said()
    assert list(find_adaptations(module)) == ["model.student"]
    assert equal(state_of(module.model["teacher"]), before)
    assert not any(p.requires_grad for p in module.model["teacher"].parameters())


@pytest.mark.parametrize("add", [True, False])
def test_advice_never_trains_a_teacher(tmp_path: Path, add: bool) -> None:
    class Chosen(Inside):
        def __init__(self) -> None:
            super().__init__()
            self.model["teacher"].requires_grad_(True)  # left out of the optimizer alone

    message = r"'model.teacher' looks like a teacher.*backbone='model.student'"
    with pytest.raises(lp.MethodError, match=message):
        run(tmp_path, Chosen(), backbone="model.teacher", add_to_optimizer=add)


def test_blocks_of_which_some_are_frozen_are_no_pair(tmp_path: Path) -> None:
    module = Module()
    module.net.blocks[0].requires_grad_(False)
    run(tmp_path, module)
    assert list(find_adaptations(module)) == ["net"]


def test_an_encoder_is_the_student_although_the_projection_behind_it_is_larger() -> None:
    """MoCo: four networks, of which the pretrained one is a model of a library."""
    module = nn.Module()
    module.encoder, module.projection = build("resnet"), nn.Sequential(nn.Linear(9, 4000))
    module.encoder_ema, module.projection_ema = (
        copy.deepcopy(module.encoder),
        copy.deepcopy(module.projection),
    )
    for part in (module.encoder_ema, module.projection_ema):
        part.requires_grad_(False)
    assert sum(p.numel() for p in module.projection.parameters()) > sum(
        p.numel() for p in module.encoder.parameters()
    )
    assert student_of(module) == "encoder"
