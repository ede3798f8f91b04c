"""Timing of training steps, without waiting for the device."""

from __future__ import annotations

from collections import deque
from time import perf_counter

from lightning_peft.evaluation.efficiency import median

__all__ = ["StepTimer"]

_FIRST = 3  # warm-up of allocators, autotuning and caches
_KEPT = 4096


class StepTimer:
    """A timer of the intervals between the starts of consecutive batches."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._samples: int | None = None
        self._skipped: list[tuple[float, int | None]] = []
        self._steady: deque[tuple[float, int | None]] = deque(maxlen=_KEPT)
        self._alone: deque[tuple[float, int | None]] = deque(maxlen=_KEPT)

    def start(self, samples: int | None) -> None:
        """Note the start of a batch.

        Args:
            samples: The number of its samples, if it is known.
        """
        now = perf_counter()
        if self._began is not None:
            step = (now - self._began, self._samples)
            if len(self._skipped) < _FIRST:
                self._skipped.append(step)
            else:
                self._steady.append(step)
        self._began, self._samples = now, samples

    def end(self) -> None:
        """Note the end of a batch whose work is known to be finished."""
        if self._began is not None:
            self._alone.append((perf_counter() - self._began, self._samples))

    def interrupt(self) -> None:
        """Note that something other than training follows."""
        self._began = None

    def median(self) -> tuple[float | None, float | None]:
        """Return the median seconds of a step and the mean samples of those steps.

        If a run is too short for steady steps, the skipped ones (except the very first) are used,
        or the times from start to end of the batches.
        """
        steps = list(self._steady) or self._skipped[1:] or list(self._alone)
        if not steps:
            return None, None
        sizes = [samples for _, samples in steps if samples is not None]
        return median(seconds for seconds, _ in steps), sum(sizes) / len(sizes) if sizes else None
