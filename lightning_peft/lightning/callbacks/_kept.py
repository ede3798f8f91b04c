"""Let a resumed run follow the schedule of its checkpoint (``on_resume="keep"``)."""

from __future__ import annotations

from typing import Any

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.callbacks._trainer import warn_on_rank_zero
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.run_length import RunLength
from lightning_peft.lightning.schedules import MultiplierLR

__all__ = ["keep_schedule"]


def keep_schedule(
    schedule: Any, scheduler: MultiplierLR, trainer: pl.Trainer, length: RunLength | None
) -> None:
    """Follow the schedule of the checkpoint, and say what that means for a run of this length.

    Args:
        schedule: The callback, a ``Schedule``. If its shape is another than that of the
            checkpoint, the length alone is kept.
        scheduler: The scheduler of an optimizer, its state restored.
        trainer: The trainer.
        length: The length of the run; ``None`` under manual optimization.

    Raises:
        ScheduleError: If the checkpoint has none, or all that it leaves to do is at a rate of 0.
    """
    name, kept = type(schedule).__name__, scheduler.restored
    if kept is None:
        raise ScheduleError(
            f"{name}: on_resume='keep' expects a checkpoint that was made with a schedule, got "
            "none. Use on_resume='remaining'."
        )
    if (kept.kind, kept.final) != (schedule.kind, schedule.final):
        kept = schedule.multiplier(kept.total_steps, None if length is None else length.epochs)
    scheduler.multiplier = kept
    scheduler.refresh()
    done, total = scheduler.last_epoch, kept.total_steps
    end = int(length.total) if length is not None and length.known else None
    if end is None or end in (total, done):
        return
    if done >= total and kept(done) == 0:
        raise ScheduleError(
            f"{name}: on_resume='keep' keeps the schedule of {total} steps, which are all done and "
            f"end at a rate of 0, but the run goes on to step {end}: nothing would be learned. Use "
            "on_resume='remaining'."
        )
    when = f"from step {total} on" if end > total else "in the last step"
    warn_on_rank_zero(
        trainer,
        f"{name}: on_resume='keep' keeps the schedule of {total} steps, of which {done} are done, "
        f"and the run ends after {end} steps: {when} its rate is {kept(min(end - 1, total)):.3g} "
        "of the full one.",
    )
