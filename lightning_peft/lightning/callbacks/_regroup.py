"""Moving parameters of an optimizer to new groups, and extending its schedulers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.callbacks._replaced import every_scheduler
from lightning_peft.lightning.schedules import MultiplierLR

__all__ = ["Part", "check_schedulers", "regroup"]

_EXTENSIBLE = (
    MultiplierLR,
    torch_schedulers.ChainedScheduler,
    torch_schedulers.ConstantLR,
    torch_schedulers.CosineAnnealingLR,
    torch_schedulers.CosineAnnealingWarmRestarts,
    torch_schedulers.ExponentialLR,
    torch_schedulers.LambdaLR,
    torch_schedulers.LinearLR,
    torch_schedulers.MultiplicativeLR,
    torch_schedulers.MultiStepLR,
    torch_schedulers.PolynomialLR,
    torch_schedulers.ReduceLROnPlateau,
    torch_schedulers.SequentialLR,
    torch_schedulers.StepLR,
)


@dataclass(frozen=True)
class Part:
    """Parameters to move to new groups.

    Attributes:
        label: The groups' name, for logs.
        parameters: The parameters, by name.
        lr: Their full rate; ``None`` keeps that of their former group.
    """

    label: str
    parameters: dict[str, nn.Parameter]
    lr: float | None


def check_schedulers(schedulers: Iterable[Any], who: str) -> None:
    """Check that schedulers can be extended to new groups.

    Args:
        schedulers: The schedulers on the optimizer.
        who: Who adds the groups, for the error.

    Raises:
        ScheduleError: If one of them keeps an unknown state for each group.
    """
    strange = [s for s in every_scheduler(schedulers) if not isinstance(s, _EXTENSIBLE)]
    if strange:
        names = ", ".join(sorted({type(scheduler).__name__ for scheduler in strange}))
        known = ", ".join(kind.__name__ for kind in _EXTENSIBLE)
        raise ScheduleError(
            f"{who}: {names} cannot be given new parameter groups: expected one of {known}. Use "
            "one of these, or put a schedule of lightning-peft in its place: "
            "WarmupCosine(replace=True)."
        )


def regroup(optimizer: Optimizer, parts: Iterable[Part], schedulers: Iterable[Any]) -> None:
    """Move parameters of an optimizer to new groups.

    A new group has all options of its parameters' former group except the rate; there is one for
    each former group, so that a split by weight decay is kept. A parameter that is not in the
    optimizer yet gets the options of the first group that holds a parameter of its kind (one
    dimension, or more). Groups that lose all parameters remain, empty, so that their number does
    not shrink.

    Args:
        optimizer: The optimizer, before its first step.
        parts: The parameters to move.
        schedulers: The schedulers on the optimizer, which are extended to the new groups. They
            must have passed :func:`check_schedulers`.
    """
    groups = list(optimizer.param_groups)
    home = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
    moved: list[tuple[str, int, dict[str, nn.Parameter], float | None]] = []
    for part in parts:
        by_home: dict[int, dict[str, nn.Parameter]] = {}
        for name, parameter in part.parameters.items():
            number = home.get(id(parameter))
            number = _akin(groups, parameter) if number is None else number
            by_home.setdefault(number, {})[name] = parameter
        for number in sorted(by_home):
            label = part.label
            if len(by_home) > 1:
                label = f"{label}_{groups[number].get('name', number)}"
            moved.append((label, number, by_home[number], part.lr))

    taken = {id(p) for _, _, parameters, _ in moved for p in parameters.values()}
    for group in groups:
        stays = [id(p) not in taken for p in group["params"]]
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [x for x, keep in zip(group[key], stays, strict=True) if keep]
    for label, number, parameters, lr in moved:
        _add(optimizer, groups[number], label, parameters, lr)
        for scheduler in every_scheduler(schedulers):
            _extend(scheduler, number, optimizer.param_groups[-1])
    for scheduler in every_scheduler(schedulers):
        if isinstance(scheduler, MultiplierLR):
            scheduler.refresh()


def _akin(groups: list[dict[str, Any]], parameter: nn.Parameter) -> int:
    flat = parameter.ndim <= 1
    for number, group in enumerate(groups):
        if any((p.ndim <= 1) == flat for p in group["params"]):
            return number
    return 0


def _add(
    optimizer: Optimizer,
    template: dict[str, Any],
    label: str,
    parameters: dict[str, nn.Parameter],
    lr: float | None,
) -> None:
    group = {key: value for key, value in template.items() if key not in ("params", "param_names")}
    if "param_names" in template:
        group["params"] = list(parameters.items())
    else:
        group["params"] = list(parameters.values())
    group["name"] = label
    now, full = template["lr"], template.get("initial_lr", template["lr"])
    if lr is None:
        group["lr"], rate = _copy(now), _copy(full)
    else:
        part = float(now) / float(full) if float(full) else 1.0
        group["lr"], rate = _like(now, lr * part), _like(full, lr)
    if "initial_lr" in template:
        group["initial_lr"] = rate
    optimizer.add_param_group(group)


def _extend(scheduler: Any, number: int, group: dict[str, Any]) -> None:
    """Add a new group to a scheduler, with the options of the group of that number."""
    if isinstance(scheduler, MultiplierLR):
        return  # it reads the groups themselves
    full = group.get("initial_lr", group["lr"])
    for key, value in (("base_lrs", full), ("_last_lr", group["lr"])):
        if isinstance(getattr(scheduler, key, None), list):
            getattr(scheduler, key).append(_copy(value))
    for key in ("lr_lambdas", "min_lrs"):
        if isinstance(getattr(scheduler, key, None), list):
            getattr(scheduler, key).append(getattr(scheduler, key)[number])


def _copy(rate: Any) -> Any:
    return rate.clone() if isinstance(rate, Tensor) else rate


def _like(rate: Any, value: float) -> Any:
    return rate.new_tensor(value) if isinstance(rate, Tensor) else value
