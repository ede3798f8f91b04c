"""Teacher and student: two networks of one class, of which one is not trained by gradients.

BYOL, MoCo and DINO average the student into a deep copy of it; distillation compares the two. The
student is the backbone. A teacher that starts as its copy gets the same adapter, which follows but
is not trained: ``zip(student.parameters(), teacher.parameters())`` still pairs like with like.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn

from lightning_peft.adaptation.adapt import adapt
from lightning_peft.adaptation.elsewhere import trained_elsewhere
from lightning_peft.adaptation.fixed import fixed_then
from lightning_peft.adaptation.handle import Adaptation, find_adaptation, find_adaptations
from lightning_peft.anatomy.family import backbones_in
from lightning_peft.anatomy.tree import grow

__all__ = [
    "adapt_teachers",
    "keep_teachers",
    "student_beside",
    "student_of",
    "teachers_of",
    "twins_of",
]


def student_of(pl_module: nn.Module) -> str | None:
    """Find the one student in a module that has a teacher beside it.

    Args:
        pl_module: The module, not adapted.

    Returns:
        The attribute path of the student: one that is or holds a model of a known library, or is
        more than half of what is not the teacher; ``None`` if there is no such pair.
    """
    groups: dict[object, list[tuple[str, nn.Module]]] = {}
    for path, part in pl_module.named_modules():
        # blocks of one network have numbers, and some of them may be frozen
        numbered = any(key.isdigit() for key in path.split("."))
        if path and not numbered and any(True for _ in part.children()):
            groups.setdefault(_kind(part), []).append((path, part))
    students: dict[str, nn.Module] = {}
    taught: set[int] = set()
    for parts in groups.values():
        trained = {path: part for path, part in parts if _is_trained(part)}
        if trained and len(trained) < len(parts):
            students |= trained
            taught |= {
                id(p) for path, part in parts if path not in trained for p in part.parameters()
            }
    outer = {
        path: part
        for path, part in students.items()
        if not any(path.startswith(f"{other}.") for other in students)
    }
    known = [path for path, part in outer.items() if backbones_in(grow(part))]
    if known:  # a projection head may be larger than the encoder before it
        return max(known, key=lambda path: _size(outer[path]))
    # the heads of the two are a pair as well, and so may be those of a backbone that is frozen
    rest = sum(p.numel() for p in pl_module.parameters() if id(p) not in taught)
    large = [path for path, part in outer.items() if 2 * _size(part) > rest]
    return large[0] if large else None


def teachers_of(pl_module: nn.Module, path: str, student: nn.Module) -> dict[str, nn.Module]:
    """Find the copies of a network that are not trained by gradients.

    Args:
        pl_module: The module.
        path: The attribute path of the student.
        student: The student, not adapted.

    Returns:
        By their paths, those of the same class, with the same values and without a gradient.
    """
    if not path or not _is_trained(student):
        return {}
    kind, own = _kind(student), dict(student.named_parameters())
    return {
        name: part
        for name, part in pl_module.named_modules()
        if part is not student
        and type(part) is type(student)
        and not _is_trained(part)
        and _kind(part) == kind
        and all(torch.equal(p, own[key]) for key, p in part.named_parameters())
    }


def adapt_teachers(
    teachers: dict[str, nn.Module], path: str, student: Adaptation, memory: str
) -> None:
    """Give copies of a student its adapter; their own is not trained.

    Args:
        teachers: From :func:`teachers_of`.
        path: The path of the student.
        student: Its adaptation.
        memory: As for :func:`adapt`.
    """
    for teacher in teachers.values():
        with trained_elsewhere(True), fixed_then(student.fixed):
            adaptation = adapt(
                teacher,
                student.method,
                head=student.head or False,
                also_train=student.also_train,
                batchnorm=student.batchnorm,  # type: ignore[arg-type]
                backbone_dropout=student.backbone_dropout,  # type: ignore[arg-type]
                memory=memory,  # type: ignore[arg-type]
                adapter_dtype=student.adapter_dtype,
            )
        adaptation.load_state_dict(student.state_dict())
        adaptation.follow(path)


def keep_teachers(pl_module: nn.Module) -> None:
    """Give the frozen weights of teachers the values of the student's, of which they are averages.

    ``0.99 x + 0.01 x`` is not ``x``: without this the teacher would drift away from its base by
    rounding, and a resumed run would begin without that.

    Args:
        pl_module: The adapted module, after a step.
    """
    adaptations = find_adaptations(pl_module)
    for adaptation in adaptations.values():
        student = adaptations.get(adaptation.follows or "")
        if adaptation.follows is None or student is None or not _is_plain(adaptation.model):
            continue
        kept = adaptation.state_names() | student.state_names()
        pairs = [
            (mine.data, own.data)
            for (name, mine), own in zip(
                adaptation.model.named_parameters(), student.model.parameters(), strict=True
            )
            if name not in kept
        ]
        if pairs:
            mine, own = (list(side) for side in zip(*pairs, strict=True))
            torch._foreach_copy_(mine, own)


def student_beside(
    pl_module: nn.Module, path: str, adaptation: Adaptation, within: Collection[int]
) -> str | None:
    """Find a network of the same class that the optimizers train, instead of an adapted one.

    Args:
        pl_module: The module.
        path: The path of the adapted backbone.
        adaptation: Its adaptation.
        within: The identities of the parameters in the optimizers.
    """
    for name, part in _twins(pl_module, path, adaptation):
        if any(id(p) in within for p in part.parameters()):
            return name
    return None


def twins_of(pl_module: nn.Module, path: str, adaptation: Adaptation) -> list[str]:
    """Return what looks like a teacher of an adapted network and has no adapter.

    Args:
        pl_module: The module.
        path: The path of the adapted backbone.
        adaptation: Its adaptation.

    Returns:
        The paths of networks of the same class and shapes that are frozen. Their values were others
        than the student's when that was adapted, or :func:`teachers_of` would have found them.
    """
    found = _twins(pl_module, path, adaptation)
    return [name for name, part in found if not _is_trained(part)]


def _twins(
    pl_module: nn.Module, path: str, adaptation: Adaptation
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules without an adapter that have the class and the shapes of an adapted one."""
    shapes = {name: tuple(p.shape) for name, p in _base(adaptation)}
    for name, part in pl_module.named_modules():
        if part is adaptation.model or find_adaptation(part) is not None:
            continue
        if name.startswith(f"{path}.") or type(part) is not type(adaptation.model):
            continue
        if {key: tuple(p.shape) for key, p in part.named_parameters()} == shapes:
            yield name, part


def _base(adaptation: Adaptation) -> Iterator[tuple[str, nn.Parameter]]:
    parameters = dict(adaptation.model.named_parameters())
    for before, now in adaptation.base_names.items():
        if now in parameters:
            yield before, parameters[now]


def _kind(module: nn.Module) -> object:
    parameters = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
    return type(module), parameters


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_plain(module: nn.Module) -> bool:
    return all(type(p) in (nn.Parameter, torch.Tensor) for p in module.parameters())
