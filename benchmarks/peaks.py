"""The bytes that torch's CPU allocator gives out in a step, however busy the machine is."""

from __future__ import annotations

import gc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

__all__ = ["allocated"]


def allocated(step: Callable[[], object]) -> int:
    """Return the peak of the bytes that a step allocates.

    Args:
        step: What is run, once.

    Returns:
        The largest sum of bytes that were allocated and not freed, from the beginning of the step.
        That something was freed which had been allocated before is not seen.
    """
    gc.collect()
    gc.disable()  # what is older must not be let go while this is counted
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            step()
    finally:
        gc.enable()
    assert record.profiler is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
