"""The time of a training step, without ever waiting for the device."""

from __future__ import annotations

from collections import deque
from time import perf_counter

from lightning_peft.evaluation.efficiency import median

__all__ = ["StepTimer"]

_FIRST = 3  # allocators, autotuning and caches settle in these
_KEPT = 4096


class StepTimer:
    """Collects the distances between the starts of batches that follow each other directly."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._samples: int | None = None
        self._skipped: list[tuple[float, int | None]] = []
        self._steady: deque[tuple[float, int | None]] = deque(maxlen=_KEPT)
        self._alone: deque[tuple[float, int | None]] = deque(maxlen=_KEPT)

    def start(self, samples: int | None) -> None:
        """Note the start of a batch.

        Args:
            samples: How many samples it has, if that is known.
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
        """Note the end of a batch, where its work is known to be done by then."""
        if self._began is not None:
            self._alone.append((perf_counter() - self._began, self._samples))

    def interrupt(self) -> None:
        """Say that something else than training follows."""
        self._began = None

    def median(self) -> tuple[float | None, float | None]:
        """Give the median seconds of a step and the mean samples of those steps.

        Of a run that is too short for steady steps: of those that would have been skipped (but the
        very first), or from start to end of the batches.
        """
        steps = list(self._steady) or self._skipped[1:] or list(self._alone)
        if not steps:
            return None, None
        sizes = [samples for _, samples in steps if samples is not None]
        return median(seconds for seconds, _ in steps), sum(sizes) / len(sizes) if sizes else None
