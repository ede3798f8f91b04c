"""Random states in checkpoints, so that a resumed run draws the same numbers.

Lightning does not save them, so dropout and the order of shuffled data differ after a resume.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import torch
from torch import distributed, nn

from lightning_peft.errors import CheckpointError
from lightning_peft.lightning.checkpoint import CHECKPOINT_KEY
from lightning_peft.lightning.hooks import after_hook
from lightning_peft.system.randomness import random_state, restore_random_state

__all__ = ["resume_random_state"]

_KEY = "lightning_peft.random"
_ALONE = "lightning_peft_random"
"""The key in a checkpoint of a module that is not adapted."""

_ATTRIBUTE = "_lightning_peft_random_state"


def resume_random_state(pl_module: nn.Module) -> None:
    """Add the random state of every process to this module's checkpoints.

    Args:
        pl_module: The LightningModule; calling it again has no effect.
    """
    after_hook(pl_module, "on_save_checkpoint", _KEY, _save)
    after_hook(pl_module, "on_load_checkpoint", _KEY, _load)
    after_hook(pl_module, "on_fit_start", _KEY, _go_on)


def _save(pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
    if "optimizer_states" not in checkpoint:  # no run resumes from it
        return
    kept = checkpoint.get(CHECKPOINT_KEY)
    if kept is None:
        kept = checkpoint.setdefault(_ALONE, {})
    kept["random_state"] = random_state()
    kept["random_states"] = _of_every_rank()


def _load(pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
    kept = checkpoint.get(CHECKPOINT_KEY) or checkpoint.get(_ALONE) or {}
    pl_module.__dict__[_ATTRIBUTE] = kept.get("random_states") or [kept.get("random_state")]


def _go_on(pl_module: nn.Module) -> None:
    """Restore the random state just before the first iterator over the data draws from it."""
    states = pl_module.__dict__.pop(_ATTRIBUTE, None) or []
    trainer: Any = pl_module.trainer
    # the state of one process must not be restored in all of them
    if trainer.ckpt_path is None or trainer.world_size != len(states):
        return
    state = states[trainer.global_rank]
    if state is None:
        return
    try:
        restore_random_state(state)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint's random state cannot be restored: {error}. Was it tampered with?"
        ) from error
    _draw_anew(trainer)


def _draw_anew(trainer: Any) -> None:
    """Make the iterator over the data again, if it was made before the state was restored.

    It draws when it is made, and a schedule that needs the run's length makes Lightning create it
    early.
    """
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is None:
        return
    loaders = fetcher.combined_loader.flattened
    if not any(hasattr(loader, "load_state_dict") for loader in loaders):  # it would lose its place
        iter(fetcher)


def _of_every_rank() -> list[Any]:
    """Collect the random states of all processes; empty if there is only one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    size = distributed.get_world_size()
    # after an exception, a checkpoint may be made on one rank only: the others never answer
    if size == 1 or sys.exc_info()[0] is not None:
        return []
    buffer = io.BytesIO()
    torch.save(random_state(), buffer)  # tensors in torch.distributed's own pickles do not survive
    gathered: list[Any] = [None] * size
    distributed.all_gather_object(gathered, buffer.getvalue())
    return [torch.load(io.BytesIO(part), weights_only=True) for part in gathered]
