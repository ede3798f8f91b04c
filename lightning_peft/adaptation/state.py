"""The state of an adaptation, and what may be done in it: every way in and out of it asks here.

A tensor means something else in each state: merged, a weight that is trained in place holds the
adapter too; switched off, it holds the pretrained value; sharded, a part of it. So what reads or
writes tensors either is right in a state, or is refused before anything has changed.
``docs/states.md`` shows the table, and a test carries out each of its cells.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from lightning_peft.errors import MethodError, PEFTError

__all__ = ["ADAPTED", "OPERATIONS", "REFUSED", "STATES", "State", "was_merged", "was_unloaded"]

STATES = {
    "beside": "The adapter is beside the weights and on, as after `adapt`.",
    "merged": "Between `merge()` and `unmerge()`: the adapter is in the weights.",
    "disabled": "Inside `with adaptation.disabled()`.",
    "averaged": "In a `fit` with `WeightAveraging`, whose average shares the frozen tensors.",
    "sharded": "FSDP2 has sharded the backbone.",
    "unloaded": "After `unload()` or `merge_and_unload()`, when the model is a plain one.",
}
"""The states, each with when it is."""

OPERATIONS = (
    "state_dict()",
    "load_state_dict()",
    "save()",
    "saving a checkpoint",
    "loading a checkpoint",
    "load_adapter()",
    "average_adapters()",
    "merge()",
    "unmerge()",
    "merge_and_unload()",
    "unload()",
    "disabled()",
    "disabled(), trained in place",
    "export_model()",
    "adapt()",
    "AdapterSwitch()",
    "AdapterSwitch.activate()",
)
"""What reads or writes the state."""

ADAPTED = "is adapted already: expected a backbone without an adaptation"
_MERGED = (
    "expected an adapter beside the weights, got one that is merged into them. Call unmerge() first"
)
_KEEP_OR_NOT = (
    "expected an adapter beside the weights, got one that is merged into them. Call "
    "merge_and_unload() to leave it there, or unmerge() first"
)
_NOT_MERGED = "expected a merged adapter, got one that is not merged"
_DISABLED = (
    "expected an adapter that is on, got one that is switched off. Leave `with "
    "adaptation.disabled()` first"
)
_AVERAGED = (
    "expected frozen weights of the model's own, got some that an average shares. Wait until the "
    "run with WeightAveraging has ended"
)
_SHARDED = (
    "expected whole tensors, got some that FSDP2 has sharded. Save a checkpoint, and load it into "
    "a module that is not sharded"
)
_UNLOADED = "expected an adaptation of a model, got one that was unloaded. Adapt the model again"

_TENSORS = ("state_dict()", "load_state_dict()", "save()")
_CHECKPOINTS = ("saving a checkpoint", "loading a checkpoint")
_FILES = ("load_adapter()", "average_adapters()")
_WEIGHTS = ("merge()", "merge_and_unload()", "unload()")
_OFF = ("disabled()", "disabled(), trained in place")
_SWITCH = "AdapterSwitch.activate()"

REFUSED: dict[tuple[str, str], str] = {
    **{(state, "unmerge()"): _NOT_MERGED for state in STATES},
    **{(state, "adapt()"): ADAPTED for state in STATES},
    **{(state, "AdapterSwitch()"): ADAPTED for state in STATES},
    **{("merged", o): _MERGED for o in (*_TENSORS, *_CHECKPOINTS, *_FILES, "merge()", *_OFF)},
    ("merged", "unload()"): _KEEP_OR_NOT,
    ("merged", _SWITCH): _MERGED,
    **{("disabled", o): _DISABLED for o in (*_TENSORS, *_CHECKPOINTS, *_FILES, *_WEIGHTS)},
    **{("disabled", o): _DISABLED for o in ("export_model()", _SWITCH)},
    **{("averaged", o): _AVERAGED for o in _WEIGHTS},
    **{("sharded", o): _SHARDED for o in ("load_state_dict()", "save()", *_FILES, *_WEIGHTS)},
    **{("sharded", o): _SHARDED for o in (_OFF[1], "export_model()", _SWITCH)},
    **{("unloaded", o): _UNLOADED for o in (*_TENSORS, "unmerge()", *_WEIGHTS, *_OFF, _SWITCH)},
}
"""Why an operation is refused, by state and operation; all others are right."""

del REFUSED["merged", "unmerge()"], REFUSED["unloaded", "adapt()"]
del REFUSED["unloaded", "AdapterSwitch()"]

_PLAIN_AGAIN: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_MERGED_AWAY: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class State:
    """The state of one adaptation.

    Args:
        model: The adapted backbone.

    Attributes:
        merged: Whether the adapter is folded into the weights.
        disabled: Whether it is switched off.
        unloaded: Whether it was taken out of the model.
        shares: Whether a running average shares the frozen tensors; a copy of the model has its
            own tensors, so that it is not part of one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.merged = False
        self.disabled = False
        self.unloaded = False
        self.shares: Callable[[], bool] | None = None
        _PLAIN_AGAIN.discard(model)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "shares": None}

    def now(self) -> Iterator[str]:
        """Yield the states of :data:`STATES` that hold now; several may."""
        if self.unloaded:
            yield "unloaded"
            return
        found = {
            "merged": self.merged,
            "disabled": self.disabled,
            "averaged": self.shares is not None and self.shares(),
            "sharded": _is_sharded(self.model),
        }
        yield from [name for name, holds in found.items() if holds] or ["beside"]

    def ask(self, operation: str, error: type[PEFTError] = MethodError) -> None:
        """Refuse an operation that would be wrong now, with all reasons.

        Args:
            operation: One of :data:`OPERATIONS`.
            error: The class of the error.

        Raises:
            PEFTError: Of this class.
        """
        assert operation in OPERATIONS
        reasons = [REFUSED.get((state, operation)) for state in self.now()]
        told = dict.fromkeys(reason for reason in reasons if reason)
        if told:
            raise error(f"{operation}: {'; '.join(told)}.")

    def leave(self) -> None:
        """Note that the model is a plain one again."""
        self.unloaded = True
        _PLAIN_AGAIN.add(self.model)
        if self.merged:
            _MERGED_AWAY.add(self.model)


def was_unloaded(model: nn.Module) -> bool:
    """Whether an adaptation was taken out of this model, and none was put in since."""
    return model in _PLAIN_AGAIN


def was_merged(model: nn.Module) -> bool:
    """Whether an adapter was merged into this model and left there, whatever came later."""
    return model in _MERGED_AWAY


def _is_sharded(model: nn.Module) -> bool:
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(m, fsdp.FSDPModule) for m in model.modules())
