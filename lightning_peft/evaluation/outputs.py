"""Converting the outputs of a head to probabilities, or to numbers with a unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_peft.errors import DataError, near
from lightning_peft.evaluation.metric_names import TASKS, Task

__all__ = ["Outputs", "check_task", "head_size"]


def check_task(task: str, known: Sequence[str] = TASKS) -> None:
    """Refuse an unknown task.

    Raises:
        DataError: With similar names.
    """
    if task not in known:
        raise DataError(
            f"Expected a task out of {', '.join(known)}, got '{task}'. {near(task, known)}"
        )


def head_size(task: str, num_classes: int) -> int:
    """Return the number of outputs of the head: 1 for a binary task, else ``num_classes``."""
    return 1 if task == "binary" else num_classes


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The conversion of the outputs of a head.

    Attributes:
        task: ``"multiclass"`` (softmax), ``"binary"`` (the sigmoid of one output is the probability
            of class 1), ``"multilabel"`` (a sigmoid for each label) or ``"regression"``.
        temperature: The divisor of logits (Guo et al., "On Calibration of Modern Neural
            Networks", ICML 2017); 1 leaves them unchanged.
        mean: Mean of each target in training, for ``"regression"``.
        std: Standard deviation of each target, for ``"regression"``.
    """

    task: Task = "multiclass"
    temperature: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return probabilities or numbers, in float32.

        Args:
            outputs: The outputs of the head, shape ``(B, K)``.

        Returns:
            Shape ``(B, K)``; for ``"binary"`` ``(B, 2)``, the probabilities of both classes.
        """
        values = outputs.float()
        if self.task == "regression":
            if self.mean is None or self.std is None:
                return values
            return values * values.new_tensor(self.std) + values.new_tensor(self.mean)
        values = values / self.temperature
        if self.task == "multiclass":
            return values.softmax(-1)
        if self.task == "multilabel":
            return values.sigmoid()
        return torch.cat([(-values).sigmoid(), values.sigmoid()], -1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, which :meth:`from_dict` reads."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any] | None) -> Outputs:
        """Rebuild from the result of :meth:`to_dict`; None is a classifier's softmax.

        Raises:
            DataError: If it is not such a mapping.
        """
        if found is None:
            return cls()
        try:
            check_task(str(found["task"]))
            mean, std = (
                None if found.get(name) is None else tuple(float(v) for v in found[name])
                for name in ("mean", "std")
            )
            return cls(found["task"], float(found.get("temperature", 1.0)), mean, std)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"Expected outputs as a mapping with a task, got {found!r}: {error}"
            ) from error
