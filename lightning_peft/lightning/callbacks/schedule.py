"""Callbacks that add a warm-up and a decay to the optimizer that the module makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.callbacks._schedule import OnResume, Schedule, no_length
from lightning_peft.lightning.lengths import Length, as_length
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.run_length import RunLength
from lightning_peft.lightning.schedules import Kind

__all__ = ["Schedule", "WarmupConstant", "WarmupCosine", "WarmupLinear", "WarmupStableDecay"]


class WarmupCosine(Schedule):
    """Warm up linearly, then decay along half a cosine. See :class:`Schedule`.

    Loshchilov and Hutter, 2017 (https://arxiv.org/abs/1608.03983).

    Args:
        warmup: The warm-up: a fraction of the run (0.1 or ``"10%"``), optimizer steps (500 or
            ``"500 steps"``) or epochs (``"2 epochs"``).
        final: The fraction of the rate that is left at the end.
        total_steps: The optimizer steps of the run, if the trainer cannot know them.
        on_resume: What a resumed run follows: ``"remaining"``, a schedule over the steps that are
            done and those that remain, or ``"keep"``, that of its checkpoint.
        replace: Whether to take the place of schedulers that ``configure_optimizers`` returns, in
            whatever form. The full rate is the one that the optimizer was made with, or the highest
            of a scheduler that overwrites it (``OneCycleLR``, ``CyclicLR``); a line says so.

    >>> import lightning_peft as lp
    >>> callbacks = [lp.PEFT("lora"), lp.WarmupCosine(warmup=0.1)]
    """

    kind: ClassVar[Kind] = "cosine"


class WarmupLinear(Schedule):
    """Warm up linearly, then decay linearly. See :class:`Schedule`.

    Args:
        warmup: The warm-up: a fraction of the run (0.1 or ``"10%"``), optimizer steps (500 or
            ``"500 steps"``) or epochs (``"2 epochs"``).
        final: The fraction of the rate that is left at the end.
        total_steps: The optimizer steps of the run, if the trainer cannot know them.
        on_resume: What a resumed run follows: ``"remaining"``, a schedule over the steps that are
            done and those that remain, or ``"keep"``, that of its checkpoint.
        replace: Whether to take the place of schedulers that ``configure_optimizers`` returns, in
            whatever form. The full rate is the one that the optimizer was made with, or the highest
            of a scheduler that overwrites it (``OneCycleLR``, ``CyclicLR``); a line says so.

    >>> import lightning_peft as lp
    >>> callbacks = [lp.PEFT("lora"), lp.WarmupLinear(warmup="10%")]
    """

    kind: ClassVar[Kind] = "linear"


class WarmupConstant(Schedule):
    """Warm up linearly, then keep the full rate. See :class:`Schedule`.

    With a warm-up in steps or epochs the length of the run need not be known.

    Args:
        warmup: The warm-up: a fraction of the run (0.1 or ``"10%"``), optimizer steps (500 or
            ``"500 steps"``) or epochs (``"2 epochs"``).
        total_steps: The optimizer steps of the run, if the trainer cannot know them.
        on_resume: What a resumed run follows: ``"remaining"``, a schedule over the steps that are
            done and those that remain, or ``"keep"``, that of its checkpoint.
        replace: Whether to take the place of schedulers that ``configure_optimizers`` returns, in
            whatever form. The full rate is the one that the optimizer was made with, or the highest
            of a scheduler that overwrites it (``OneCycleLR``, ``CyclicLR``); a line says so.

    >>> import lightning_peft as lp
    >>> callbacks = [lp.PEFT("lora"), lp.WarmupConstant(warmup="500 steps")]
    """

    kind: ClassVar[Kind] = "constant"

    def __init__(
        self,
        warmup: float | int | str = 0.1,
        *,
        total_steps: int | None = None,
        on_resume: OnResume = "remaining",
        replace: bool = False,
    ) -> None:
        super().__init__(
            warmup, final=1.0, total_steps=total_steps, on_resume=on_resume, replace=replace
        )

    def _length(self, trainer: pl.Trainer, length: RunLength | None) -> int | None:
        if self.total_steps is None and not self.needs_length():
            return None
        return super()._length(trainer, length)

    def needs_length(self) -> bool:
        """See :meth:`Schedule.needs_length`."""
        return self._is_a_part()

    def _end(self, warmup_steps: int) -> int:
        return max(warmup_steps, 1)


class WarmupStableDecay(Schedule):
    """Warm up linearly, keep the full rate, decay linearly over the last part of the run.

    Hu et al., "MiniCPM", 2024 (https://arxiv.org/abs/2404.06395). See :class:`Schedule`.

    Args:
        warmup: The warm-up: a fraction of the run (0.1 or ``"10%"``), optimizer steps (500 or
            ``"500 steps"``) or epochs (``"2 epochs"``).
        decay: The length of the decay at the end, given like the warm-up.
        final: The fraction of the rate that is left at the end.
        total_steps: The optimizer steps of the run, if the trainer cannot know them.
        on_resume: What a resumed run follows: ``"remaining"``, a schedule over the steps that are
            done and those that remain, or ``"keep"``, that of its checkpoint.
        replace: Whether to take the place of schedulers that ``configure_optimizers`` returns, in
            whatever form. The full rate is the one that the optimizer was made with, or the highest
            of a scheduler that overwrites it (``OneCycleLR``, ``CyclicLR``); a line says so.

    >>> import lightning_peft as lp
    >>> callbacks = [lp.PEFT("lora"), lp.WarmupStableDecay(warmup="2 epochs", decay=0.2)]
    """

    kind: ClassVar[Kind] = "warmup_stable_decay"

    def __init__(
        self,
        warmup: float | int | str = 0.1,
        *,
        decay: float | int | str = 0.1,
        final: float = 0.0,
        total_steps: int | None = None,
        on_resume: OnResume = "remaining",
        replace: bool = False,
    ) -> None:
        self.decay = decay
        super().__init__(
            warmup, final=final, total_steps=total_steps, on_resume=on_resume, replace=replace
        )

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from no_length(self.decay, "decay")

    def _lengths(self) -> list[Length]:
        return [*super()._lengths(), as_length(self.decay, "decay")]

    def _decay(self, total_steps: int, epoch_steps: Sequence[int] | int | None) -> float:
        length = as_length(self.decay, "decay")
        if length.unit == "part":
            return length.amount
        steps = length.steps(total_steps, _from_the_end(epoch_steps, total_steps))
        if steps > total_steps:
            raise ScheduleError(
                f"the decay of {steps} steps is longer than the run of {total_steps} steps: decay "
                "for less, or train for longer"
            )
        return steps / total_steps


def _from_the_end(epoch_steps: Sequence[int] | int | None, total: int) -> list[int] | int | None:
    """Return the steps of the epochs of a run, the last one first."""
    if epoch_steps is None or isinstance(epoch_steps, int):
        return epoch_steps
    epochs: list[int] = []
    while not epochs or sum(epochs) < total:
        epochs.append(epoch_steps[min(len(epochs), len(epoch_steps) - 1)] or 1)
    return epochs[::-1]
