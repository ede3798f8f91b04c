"""Checkpoints of a run without the adapter: their weights are a start, and nothing can resume."""

from __future__ import annotations

from typing import Any

from lightning_peft.lightning.namespace import pl_import

__all__ = ["take_weights_only"]


def take_weights_only(checkpoint: dict[str, Any]) -> None:
    """Leave only the weights of a checkpoint, for a fit that starts with them, and say so.

    The optimizer of that run has the parameters of the whole network, in another order than the
    optimizer of an adapted one.

    Args:
        checkpoint: The loaded checkpoint; changed in place.
    """
    checkpoint.pop("loops", None)
    checkpoint |= {"optimizer_states": [], "lr_schedulers": [], "callbacks": {}}
    pl_import("utilities.rank_zero").rank_zero_info(
        "PEFT: this checkpoint is of a run without the adapter. Its weights are those of the "
        "backbone and the head; the steps, the optimizer, the schedule and the states of callbacks "
        "start anew."
    )
