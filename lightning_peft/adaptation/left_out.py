"""Matrices that a user would expect an adapter at, and that have none, with the word for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_peft.anatomy import Anatomy
from lightning_peft.anatomy.names import inside
from lightning_peft.anatomy.quantised import size_of
from lightning_peft.anatomy.tree import is_adaptable, is_recurrent
from lightning_peft.errors import some
from lightning_peft.methods.base import Method, Plan
from lightning_peft.methods.from_peft.experts import fused_experts
from lightning_peft.methods.from_peft.method import PeftMethod
from lightning_peft.methods.from_peft.targets import refused_by_peft
from lightning_peft.methods.hf import HF
from lightning_peft.methods.in_weight.part import layer_at
from lightning_peft.methods.lora import LoRA

__all__ = ["left_out"]

_CHOSEN_HERE = (None, "auto", "default", "all-linear")
"""Targets that leave the choice to the package, or to ``peft``."""


def left_out(
    model: nn.Module, plan: Plan, found: Anatomy, trained: Iterable[str]
) -> tuple[str, ...]:
    """Return what an adapter leaves out that its targets do not name: a line for each kind.

    That are experts fused into one parameter, recurrent layers, layers that ``peft`` refuses,
    convolutions that hold more than what is adapted, and layers of the names in a config of
    ``peft`` that ``peft`` reads as other places.

    Args:
        model: The backbone, not yet adapted.
        plan: The plan of its adaptation.
        found: The backbone's anatomy.
        trained: Names of the parameters that are trained in place.
    """
    if not plan.steps:
        return ()
    known = set(trained)
    lines: list[str] = []
    if any(getattr(part, "targets", "none") in _CHOSEN_HERE for part, _ in plan.steps):
        for what, names, word in _candidates(model, plan, found):
            lines += _told(model, what, names - known, word)
    for part, own in plan.steps:
        lines += _other_places(model, part, {site.module for site in own}, found)
    return tuple(lines)


def _candidates(
    model: nn.Module, plan: Plan, found: Anatomy
) -> Iterator[tuple[str, set[str], str]]:
    """Yield kinds of matrices without an adapter, their names, and the word that adapts them."""
    sites = [site for _, steps in plan.steps for site in steps]
    adapted = {(site.module, site.parameter) for site in sites}
    parts = [part for part, _ in plan.steps]

    def left(module: str) -> bool:
        return not inside(module, found.head) and not any(inside(m, (module,)) for m, _ in adapted)

    fused = {
        f"{module}.{key}"
        for module, keys in fused_experts(model).items()
        for key in keys
        if not inside(module, found.head) and (module, key) not in adapted
    }
    yield "fused experts", fused, _word_for_experts(parts, fused)
    recurrent = [n for n, module in model.named_modules() if is_recurrent(module) and left(n)]
    yield "recurrent layers", _matrices(model, recurrent), _word(parts, recurrent)
    tuners = [part.tuner_name for part in parts if isinstance(part, PeftMethod)]
    read = {n for tuner in tuners for n in refused_by_peft(tuner, model, found.roles["all-linear"])}
    kernels = _matrices(model, [name for name in read if left(name)])
    yield "layers that kernels read", kernels, "peft refuses to adapt them in this architecture"
    convs = _matrices(model, [name for name in found.roles["convs"] if left(name)])
    if _count(model, convs) > sum(_size(layer_at(model, n)) for n, key in adapted if not key):
        yield "convolutions", convs, _word(parts, ["convs"])


def _matrices(model: nn.Module, modules: Iterable[str]) -> set[str]:
    held = ((n, model.get_submodule(n)._parameters) for n in modules)
    return {
        f"{name}.{key}"
        for name, own in held
        for key, p in own.items()
        if p is not None and not is_lazy(p) and p.ndim > 1
    }


def _size(layer: nn.Module) -> int:
    return math.prod(size_of(layer) or (0,))


def _count(model: nn.Module, names: Iterable[str]) -> int:
    return sum(model.get_parameter(name).numel() for name in names)


def _told(model: nn.Module, what: str, names: set[str], word: str) -> Iterator[str]:
    if not names:
        return
    ends = dict.fromkeys(map(_end, sorted(names)))
    yield f"{what} ({some(list(ends), 3)}: {_count(model, names):,} parameters; {word})"


def _word_for_experts(parts: list[Method], names: Iterable[str]) -> str:
    if any(isinstance(part, HF) and part.tuner == "LORA" for part in parts):
        return f"target_parameters={sorted({_end(name) for name in names})} adapts them"
    own = any(isinstance(part, LoRA) and part.adapts_parameters for part in parts)
    return _call(["experts"], own)


def _word(parts: list[Method], names: list[str]) -> str:
    return _call(names[:3], any(isinstance(part, PeftMethod) for part in parts))


def _call(names: list[str], own: bool) -> str:
    targets = f"targets={['auto', *names]}"
    return f"{targets if own else f'LoRA({targets})'} adapts them"


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _other_places(
    model: nn.Module, method: Method, adapted: set[str], found: Anatomy
) -> Iterator[str]:
    """Yield the layers with names in ``target_modules``, which ``peft`` reads as fused experts."""
    names = method.options.get("target_modules") if isinstance(method, HF) else None
    if not names or isinstance(names, str):
        return
    lost = [
        name
        for name, module in model.named_modules()
        if any(f".{name}".endswith(f".{entry}") for entry in names)
        and is_adaptable(module, name)
        and name not in adapted
        and not inside(name, found.head)
    ]
    if lost:
        count = sum(p.numel() for name in lost for p in model.get_submodule(name).parameters())
        yield (
            f"layers whose names peft reads as fused experts ({some(lost, 3)}: {count:,} "
            "parameters; LoRA(targets=[...]) adapts layers of these names)"
        )
