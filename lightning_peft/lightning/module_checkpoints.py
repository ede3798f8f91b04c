"""What a module does when it is saved and loaded: the actions behind the hooks of a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.adaptation.state import was_merged
from lightning_peft.errors import BackboneMismatchError
from lightning_peft.lightning.averaging import save_average
from lightning_peft.lightning.checkpoint import (
    CHECKPOINT_KEY,
    complete_checkpoint,
    recorded_in,
    slim_checkpoint,
)
from lightning_peft.lightning.lending import take_back
from lightning_peft.lightning.weights_as_start import take_weights_only
from lightning_peft.lightning.written import note_written

__all__ = ["ATTACHMENT", "bytes_of", "load", "save"]

ATTACHMENT = "_lightning_peft_attachment"
"""The attribute of a module with the settings of its adaptation."""

_MERGED = (
    "the adapter was merged into the weights of this module (merge_at_end=True, or "
    "merge_and_unload()), and the checkpoint is for the backbone of before: expected a module that "
    "is built anew. To test the same one again, train with checkpoints='merged'."
)


def _fits(pl_module: nn.Module) -> bool:
    """Whether a trainer is about to fit a module."""
    trainer: Any = pl_module.__dict__.get("_trainer")
    return trainer is not None and trainer.state.fn == "fit"


def bytes_of(state: Any) -> int:
    """Return the bytes of a state's tensors; each storage counts once."""
    tensors = state.values() if isinstance(state, dict) else ()
    storages = [t.untyped_storage() for t in tensors if isinstance(t, Tensor) and not t.is_sparse]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def save(pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Give a checkpoint of a module the form that its attachment asks for, in place."""
    note_written(pl_module)
    save_average(pl_module, checkpoint)
    attachment = _attachment(pl_module)
    slim_checkpoint(pl_module, checkpoint, "slim" if attachment is None else attachment.checkpoints)
    if "optimizer_states" in checkpoint and CHECKPOINT_KEY in checkpoint:  # a run can resume here
        checkpoint[CHECKPOINT_KEY]["steppers"] = {
            path: [stepper.state_dict() for stepper in adaptation.steppers()]
            for path, adaptation in find_adaptations(pl_module).items()
            if adaptation.steppers()
        }


def load(pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Check a checkpoint that a module is about to load, and complete it, in place."""
    attachment = _attachment(pl_module)
    strict = attachment is None or attachment.strict_backbone
    if attachment is not None and CHECKPOINT_KEY in checkpoint and not find_adaptations(pl_module):
        if _is_plain_again(pl_module, attachment, checkpoint):
            return
        attachment.adapt(pl_module)
    take_back(pl_module, checkpoint)
    try:
        complete_checkpoint(pl_module, checkpoint, strict_backbone=strict)
    except BackboneMismatchError as error:
        if attachment is not None and was_merged(_backbone(pl_module, attachment)):
            raise BackboneMismatchError(_MERGED) from error
        raise
    if CHECKPOINT_KEY not in checkpoint and find_adaptations(pl_module) and _fits(pl_module):
        take_weights_only(checkpoint)
    recorded = checkpoint.get(CHECKPOINT_KEY) or {}
    for path, adaptation in find_adaptations(pl_module).items():
        adaptation.restored_steppers = (recorded.get("steppers") or {}).get(path, [])


def _attachment(pl_module: nn.Module) -> Any:
    """Return the attachment of a module; None if it has none, or none with settings yet."""
    found = pl_module.__dict__.get(ATTACHMENT)
    return found if hasattr(found, "checkpoints") else None


def _is_plain_again(pl_module: nn.Module, attachment: Any, checkpoint: dict[str, Any]) -> bool:
    """Whether a module without its adapter takes the merged weights of a checkpoint as they are.

    Raises:
        BackboneMismatchError: If the adapter is in the backbone's weights, and the checkpoint needs
            those of before.
    """
    if not was_merged(_backbone(pl_module, attachment)):
        return False
    kind = (recorded_in(checkpoint) or {}).get("checkpoints", "slim")
    if kind == "slim":
        raise BackboneMismatchError(_MERGED)
    return bool(kind == "merged")


def _backbone(pl_module: nn.Module, attachment: Any) -> nn.Module:
    found: nn.Module = attachment.find(pl_module)[1]
    return found
