"""Adapter parameters that the module's own optimizer leaves out: added on request, or named."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_peft.adaptation.handle import Adaptation
from lightning_peft.anatomy.names import parameter_at
from lightning_peft.errors import MethodError, some
from lightning_peft.lightning.callbacks._regroup import Part, check_schedulers, regroup
from lightning_peft.lightning.callbacks._replaced import schedulers_on
from lightning_peft.lightning.class_names import is_a
from lightning_peft.lightning.namespace import pl, pl_import
from lightning_peft.lightning.teachers import student_beside

__all__ = ["AddToOptimizer", "check_rate", "give_to_optimizers"]

AddToOptimizer = bool | float

_NAME = "peft"
"""The name of the groups."""

_UNABLE = ("_MockOptimizer", "ZeroRedundancyOptimizer", "PostLocalSGDOptimizer")


def check_rate(value: Any) -> None:
    """Check the setting ``add_to_optimizer``.

    Args:
        value: The setting.

    Raises:
        MethodError: If it is neither a truth value nor a learning rate.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, bool) and not (number and 0 < value < float("inf")):
        raise MethodError(
            "expected add_to_optimizer to be True, False or a learning rate above 0, got "
            f"{value!r}."
        )


def give_to_optimizers(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    adaptations: dict[str, Adaptation],
    add: AddToOptimizer,
) -> None:
    """See to it that each trained parameter of the adapted backbones is in an optimizer.

    Args:
        trainer: The trainer, before the states of its optimizers are restored.
        pl_module: The module.
        adaptations: Its adaptations, by path.
        add: Whether to add those that are not, or their rate.

    Raises:
        MethodError: If some are in none and may not be added, or there is no optimizer for them.
    """
    within = {id(p) for o in trainer.optimizers for p in _parameters_of(o)}
    lost = {path: names for path, a in adaptations.items() if (names := _left_out(a, within))}
    if not lost:
        return
    optimizers = [o for o in trainer.optimizers if not is_a(o, *_UNABLE)]
    problems = [
        problem
        for path, names in lost.items()
        for problem in _problems(pl_module, path, adaptations[path], names, within)
    ]
    if not optimizers:
        if not pl_module.automatic_optimization and not add:
            return  # the module may have optimizers of its own, which nobody else knows
        problems = [
            f"expected an optimizer for the {sum(map(len, lost.values()))} trained parameters of "
            f"{', '.join(map(repr, lost))}, got none from configure_optimizers of "
            f"{type(pl_module).__name__}, so that nothing would be trained. Return one, or remove "
            "the PEFT callback."
        ]
    elif add and not problems:
        chosen = {path: _optimizer_for(adaptations[path], optimizers) for path in lost}
        unclear = [path for path, optimizer in chosen.items() if optimizer is None]
        if not unclear:
            for path, names in lost.items():
                optimizer = chosen[path]
                assert optimizer is not None
                _add(trainer, optimizer, path, adaptations[path], names, add)
            return
        problems = [
            f"add_to_optimizer: expected one optimizer that trains something of '{path}', got "
            f"{len(optimizers)} optimizers of which none or several do. Put the trained "
            "parameters of that backbone into one of them in configure_optimizers."
            for path in unclear
        ]
    elif not problems:
        problems = [
            f"expected every trained parameter of '{path}' in an optimizer, configure_optimizers "
            f"left out {some(names)}. Give PEFT(..., add_to_optimizer=True), which adds them as "
            "a group of their own at the optimizer's rate (or add_to_optimizer=1e-3), or give "
            "the optimizer lp.parameter_groups(self, lr=...)."
            for path, names in lost.items()
        ]
    raise MethodError(" ".join(problems))


def _left_out(adaptation: Adaptation, within: set[int]) -> list[str]:
    return [
        name
        for name in adaptation.trained_names()
        # the trained names already include what BackboneFreeze trains later
        if (p := parameter_at(adaptation.model, name)).requires_grad and id(p) not in within
    ]


def _problems(
    pl_module: nn.Module, path: str, adaptation: Adaptation, names: list[str], within: set[int]
) -> list[str]:
    """Return what speaks against training a backbone of which the optimizers have nothing."""
    if any(id(p) in within for p in adaptation.model.parameters()):
        return []
    student = student_beside(pl_module, path, adaptation, within)
    if student is None:
        return []
    return [
        f"'{path}' looks like a teacher, which is not to be trained: the optimizer has nothing of "
        f"it, and trains '{student}', which is of the same class. Adapt that one: "
        f"PEFT(..., backbone={student!r})."
    ]


def _optimizer_for(adaptation: Adaptation, optimizers: list[Optimizer]) -> Optimizer | None:
    if len(optimizers) == 1:
        return optimizers[0]
    own = {id(parameter) for parameter in adaptation.model.parameters()}
    found = [o for o in optimizers if any(id(p) in own for p in _parameters_of(o))]
    return found[0] if len(found) == 1 else None


def _add(
    trainer: pl.Trainer,
    optimizer: Optimizer,
    path: str,
    adaptation: Adaptation,
    names: list[str],
    add: AddToOptimizer,
) -> None:
    schedulers = schedulers_on(trainer, optimizer)
    check_schedulers(schedulers, "add_to_optimizer")
    before = len(optimizer.param_groups)
    parameters = {name: parameter_at(adaptation.model, name) for name in names}
    regroup(optimizer, [Part(_NAME, parameters, None if add is True else float(add))], schedulers)
    rates = {float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups[before:]}
    pl_import("utilities.rank_zero").rank_zero_info(
        f"PEFT: {type(optimizer).__name__} of configure_optimizers left out {len(names)} trained "
        f"parameters of '{path or type(trainer.lightning_module).__name__}' ({some(names, 3)}); "
        f"they are now a group of their own at a learning rate of "
        f"{', '.join(f'{rate:.3g}' for rate in sorted(rates))}."
    )


def _parameters_of(optimizer: Any) -> list[Any]:
    groups = getattr(optimizer, "param_groups", ())
    return [parameter for group in groups for parameter in group["params"]]
