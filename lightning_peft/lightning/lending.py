"""A module's own ``on_load_checkpoint`` finds the entries that a slim checkpoint leaves out."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_peft.lightning.checkpoint_kinds import full_state, present_state
from lightning_peft.lightning.checkpoint_record import CHECKPOINT_KEY

__all__ = ["lend_frozen", "take_back"]

_ATTRIBUTE = "_lightning_peft_lent"


def lend_frozen(pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Fill a slim checkpoint with the module's own frozen tensors, under the module's own names.

    Args:
        pl_module: The module, adapted or not yet, before its own hook.
        checkpoint: The loaded checkpoint; changed in place until :func:`take_back`.
    """
    recorded, state = checkpoint.get(CHECKPOINT_KEY), checkpoint.get("state_dict")
    if not isinstance(recorded, dict) or recorded.get("checkpoints", "slim") != "slim":
        return
    if not isinstance(state, dict):
        return
    own = full_state(pl_module, pl_module.state_dict())
    lent = {name: tensor for name, tensor in own.items() if name not in state}
    checkpoint["state_dict"] = {**state, **lent}
    pl_module.__dict__[_ATTRIBUTE] = lent


def take_back(pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Take what was lent out of a checkpoint again, unless the module's own hook has replaced it.

    Args:
        pl_module: The module, adapted.
        checkpoint: The loaded checkpoint; changed in place.
    """
    lent = pl_module.__dict__.pop(_ATTRIBUTE, None)
    if lent is not None:
        state = checkpoint["state_dict"]
        left = {name: t for name, t in state.items() if t is not lent.get(name)}
        checkpoint["state_dict"] = present_state(pl_module, left)
