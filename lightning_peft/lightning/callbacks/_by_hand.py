"""Schedules under manual optimization, where Lightning steps no scheduler."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_peft.lightning.schedules import Multiplier, MultiplierLR

__all__ = ["FollowingLR"]


class FollowingLR(MultiplierLR):
    """A schedule that follows the steps of its optimizer; a module that steps it changes nothing.

    Args:
        optimizer: The optimizer.
        multiplier: The schedule.
    """

    def __init__(self, optimizer: Optimizer, multiplier: Multiplier) -> None:
        self._follows = False
        super().__init__(optimizer, multiplier)
        self._follows = True
        self._handle: RemovableHandle = optimizer.register_step_post_hook(self._after_step)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the module's own loop may step the scheduler that was here before."""
        if not self._follows:  # the first step, which torch's base class makes
            super().step()

    def let_go(self) -> None:
        """Follow no longer."""
        self._handle.remove()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        MultiplierLR.step(self)
