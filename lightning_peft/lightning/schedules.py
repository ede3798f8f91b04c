"""Learning-rate schedules as functions: step -> multiplier of each group's own rate.

A schedule does not set the rate itself, only the fraction of it that is used, so groups with
different rates (LoRA+, layer-wise decay, a faster head) keep their proportions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_peft.errors import ScheduleError, near

__all__ = ["Kind", "Multiplier", "MultiplierLR", "lr_multiplier"]

Kind = Literal["cosine", "linear", "constant", "warmup_stable_decay"]
"""The shape after the warm-up."""


def lr_multiplier(
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    kind: Kind = "cosine",
    *,
    final: float = 0.0,
    decay_fraction: float = 0.1,
) -> float:
    r"""Return the fraction of the full learning rate that is used at one optimizer step.

    With step :math:`s`, total :math:`T`, warm-up :math:`W`, final :math:`f` and
    :math:`D = \mathrm{round}(\mathtt{decay\_fraction} \cdot T)`:

    .. math::

        m(s) = \begin{cases}
            (s + 1) / W & s < W \\
            f + (1 - f)\,(1 + \cos \pi p) / 2, \quad p = (s - W) / (T - W) & \text{cosine} \\
            f + (1 - f)\,(1 - p), \quad p = (s - W) / (T - W) & \text{linear} \\
            1 & \text{constant} \\
            f + (1 - f)\,(1 - p), \quad p = (s - (T - D)) / D & \text{warmup\_stable\_decay}
        \end{cases}

    with :math:`p` cut to :math:`[0, 1]`. Steps count from 0, so step 0 already trains with
    :math:`1 / W` of the rate (a warm-up from 0 wastes it), the warm-up's last step, :math:`W - 1`,
    with the full rate, and the run's last step, :math:`T - 1`, still with a little more than
    :math:`f`. From step :math:`T` on it stays :math:`f` (constant: 1).

    Cosine: Loshchilov and Hutter, 2017 (https://arxiv.org/abs/1608.03983). Warm-up, stable, decay:
    Hu et al., "MiniCPM", 2024 (https://arxiv.org/abs/2404.06395).

    Args:
        step: The optimizer step, from 0.
        total_steps: The optimizer steps of the whole run.
        warmup_steps: How many of them warm up.
        kind: The shape after the warm-up.
        final: The fraction of the rate that is left at the end.
        decay_fraction: The fraction of the run that decays; for ``"warmup_stable_decay"`` only.

    Returns:
        The multiplier, in (0, 1] for every step before ``total_steps``.

    Raises:
        ScheduleError: If the arguments are invalid.

    >>> [lr_multiplier(step, 6, 2, "linear") for step in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    schedule = Multiplier(total_steps, warmup_steps, kind, final, decay_fraction)
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ScheduleError(f"expected a step from 0, got {step!r}")
    return schedule(step)


@dataclass(frozen=True)
class Multiplier:
    """A schedule whose length is known; call it with a step, as in :func:`lr_multiplier`.

    Attributes:
        total_steps: The optimizer steps of the whole run.
        warmup_steps: How many of them warm up.
        kind: The shape after the warm-up.
        final: The fraction of the rate that is left at the end.
        decay_fraction: The fraction of the run that decays; for ``"warmup_stable_decay"`` only.

    Raises:
        ScheduleError: If the values are invalid; all problems are listed at once.
    """

    total_steps: int
    warmup_steps: int = 0
    kind: Kind = "cosine"
    final: float = 0.0
    decay_fraction: float = 0.1

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ScheduleError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        counts = {"total_steps": self.total_steps, "warmup_steps": self.warmup_steps}
        least = {"total_steps": 1, "warmup_steps": 0}
        bad = [
            name
            for name, value in counts.items()
            if isinstance(value, bool) or not isinstance(value, int) or value < least[name]
        ]
        for name in bad:
            yield f"expected {name} to be a whole number from {least[name]}, got {counts[name]!r}"
        if self.kind not in get_args(Kind):
            yield f"unknown kind of schedule {self.kind!r}. {near(str(self.kind), get_args(Kind))}"
        for name in ("final", "decay_fraction"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                yield f"expected {name} to be a number in [0, 1], got {value!r}"
                bad.append(name)
        if bad:
            return
        if self.warmup_steps > self.total_steps:
            yield (
                f"the warm-up of {self.warmup_steps} steps is longer than the run of "
                f"{self.total_steps} steps: warm up for less, or train for longer"
            )
        elif self.kind == "warmup_stable_decay" and self.stable_until < self.warmup_steps:
            yield (
                f"the warm-up of {self.warmup_steps} steps and the decay of "
                f"{self.total_steps - self.stable_until} steps do not fit into the run of "
                f"{self.total_steps} steps: shorten one of them, or train for longer"
            )

    @property
    def stable_until(self) -> int:
        """The first step of the decay, for a schedule that only decays at its end."""
        return self.total_steps - round(self.decay_fraction * self.total_steps)

    def __call__(self, step: int) -> float:
        """Return the multiplier at a step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        start = self.stable_until if self.kind == "warmup_stable_decay" else self.warmup_steps
        length = self.total_steps - start
        # a schedule without a decay (all of it warm-up, or decay_fraction=0) ends at its last step
        progress = (step - start) / length if length else float(step >= self.total_steps)
        progress = min(max(progress, 0.0), 1.0)
        left = (1 + math.cos(math.pi * progress)) / 2 if self.kind == "cosine" else 1 - progress
        return self.final + (1 - self.final) * left


class MultiplierLR(LRScheduler):
    """Set ``lr = initial_lr * multiplier(step)`` in every parameter group.

    Unlike torch's own schedulers it keeps no list with one entry for each group: each group's full
    rate is its own ``initial_lr``, so a group that is added during a run is scheduled from its
    first step on with the rate that it was added with, and groups keep their proportions.

    Only the position is restored from a state dict; the shape is this object's own. A run that is
    resumed with another length or shape follows the new one.

    Args:
        optimizer: The optimizer, with the full rates in its groups.
        multiplier: The schedule.

    Attributes:
        restored: The schedule of the last loaded state.
    """

    def __init__(self, optimizer: Optimizer, multiplier: Multiplier) -> None:
        self.multiplier = multiplier
        self.restored: Multiplier | None = None
        super().__init__(optimizer)
        # a group that was added since the last step still has its full rate when the optimizer
        # steps
        self._new_groups = optimizer.register_step_pre_hook(self._before_step)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates of all groups at the current step."""
        factor = self.multiplier(max(self.last_epoch, 0))
        return [_full_rate(group) * factor for group in self.optimizer.param_groups]

    def refresh(self, step: int | None = None) -> None:
        """Set the rates of all groups again.

        Args:
            step: The optimizer step to move to; None is the current one.
        """
        if step is not None:
            self.last_epoch = step
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            _set_rate(group, rate)
        self._last_lr = [_copy(group["lr"]) for group in self.optimizer.param_groups]
        self.base_lrs = [_full_rate(group) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and the shape for information."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "multiplier": asdict(self.multiplier),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Move to a saved position; the optimizer's state has to be loaded before.

        Raises:
            ScheduleError: If the state is another scheduler's.
        """
        if "last_epoch" not in state_dict or "multiplier" not in state_dict:
            raise ScheduleError(
                f"expected the state of a {type(self).__name__}, got one with the keys "
                f"{sorted(state_dict)}: the checkpoint was made with another learning-rate "
                "scheduler. Resume with that one, or load the weights only."
            )
        self._step_count = state_dict.get("_step_count", state_dict["last_epoch"] + 1)
        self.restored = Multiplier(**state_dict["multiplier"])
        self.refresh(state_dict["last_epoch"])

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if any("initial_lr" not in group for group in optimizer.param_groups):
            self.refresh()


def _full_rate(group: dict[str, Any]) -> Any:
    """Return a group's full rate; a new group has it in ``lr``."""
    if "initial_lr" not in group:
        group["initial_lr"] = _copy(group["lr"])
    return _copy(group["initial_lr"])


def _set_rate(group: dict[str, Any], rate: Any) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)  # a captured or compiled step reads this very tensor
    else:
        group["lr"] = rate


def _copy(rate: Any) -> Any:
    return rate.clone() if isinstance(rate, Tensor) else rate
