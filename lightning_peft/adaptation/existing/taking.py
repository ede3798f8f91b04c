"""Taking a ``PeftModel`` as it is: its adapters become an adaptation, nothing is put into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from lightning_peft.adaptation.checks import Checks, as_names, parameters_named
from lightning_peft.adaptation.existing.handle import ExistingAdaptation
from lightning_peft.adaptation.existing.reading import as_injection, behind_copies, head_of
from lightning_peft.adaptation.handle import ATTRIBUTE
from lightning_peft.adaptation.precision import AdapterDtype
from lightning_peft.anatomy.fast_path import fast_path_off
from lightning_peft.errors import MethodError, TargetError, some
from lightning_peft.methods.existing import Existing, configs_of
from lightning_peft.methods.from_peft.wrapped import (
    WRAPPED_IN_VAIN,
    active_configs,
    holds_peft,
    is_peft_model,
)

__all__ = ["EXISTING", "refuse_existing", "take_existing"]

EXISTING = "lp.PEFT('existing')"


def take_existing(
    model: nn.Module,
    method: Existing,
    *,
    head: str | Sequence[str] | Literal[False] | None = None,
    also_train: str | Sequence[str] = (),
    batchnorm: str = "frozen",
    backbone_dropout: str = "train",
    adapter_dtype: AdapterDtype = None,
) -> ExistingAdaptation:
    """Make an adaptation of a ``PeftModel``; see :func:`adapt` for the arguments.

    Raises:
        MethodError: If it is none, trains nothing, or has a tuner that its wrapper does not train.
        TargetError: If ``also_train`` matches nothing.
    """
    checks = Checks()
    with checks:
        _refuse_what_does_not_work(model, method, head)
    more: tuple[str, ...] = ()
    with checks:
        more = _used(model, parameters_named(model, also_train))
    checks.done()
    injection = as_injection(model, more)
    adaptation = ExistingAdaptation(
        model=model,
        method=dataclasses.replace(method, configs=configs_of(model)),
        injection=injection,
        also_train=as_names(also_train),
        batchnorm=batchnorm,
        backbone_dropout=backbone_dropout,
    )
    fast_path_off(injection.fast_path)
    model.__dict__[ATTRIBUTE] = adaptation
    adaptation.set_adapter_dtype(adapter_dtype)
    adaptation.freeze()
    adaptation.hold_modes()
    return adaptation


def refuse_existing(model: nn.Module) -> None:
    """Refuse a model that has adapters of ``peft`` already, for any method but ``"existing"``.

    Args:
        model: The backbone.

    Raises:
        MethodError: With the two ways that work.
    """
    path = holds_peft(model)
    if path is None:
        return
    where = f"in '{path}' " if path else ""
    if is_peft_model(model.get_submodule(path)):
        way = f"Take it as it is with {EXISTING}, or build the backbone without get_peft_model"
    else:
        way = "Build the backbone without them (no add_adapter, no inject_adapter_in_model)"
    raise MethodError(
        f"expected a backbone without an adapter, got one that has adapters of peft {where}already."
        f" {way}, and give the callback the method."
    )


def _used(model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parameters without those whose copy is trained instead."""
    behind = behind_copies(model) if is_peft_model(model) else frozenset()
    used = tuple(name for name in names if name not in behind)
    if names and not used:
        raise TargetError(
            f"also_train: expected parameters that the forward uses, got {some(names, 3)}, whose "
            "copy is trained already (modules_to_save). Leave them out."
        )
    return used


def _refuse_what_does_not_work(model: Any, method: Existing, head: Any) -> None:
    if not is_peft_model(model):
        raise MethodError(
            f"existing: expected a PeftModel (from peft.get_peft_model or "
            f"peft.PeftModel.from_pretrained), got {type(model).__name__}. Wrap the model with "
            "peft, or give the callback a method."
        )
    checks = Checks()
    with checks:
        method.refuse_others(configs_of(model))
    with checks:
        for config in active_configs(model).values():
            kind = getattr(config.peft_type, "value", str(config.peft_type))
            if kind in WRAPPED_IN_VAIN:
                raise MethodError(f"existing: {kind} {WRAPPED_IN_VAIN[kind]}.")
    with checks:
        if head and as_names(head) != head_of(model):  # which a checkpoint has noted
            raise MethodError(
                f"existing: expected no head, got {head!r}: the PeftModel says what it trains. "
                "Name the module in modules_to_save of the config of peft, or in also_train."
            )
    with checks:
        if not any(p.requires_grad for p in model.parameters()):
            raise MethodError(
                "existing: expected a PeftModel that trains something, got one that is frozen. "
                "Load it with PeftModel.from_pretrained(..., is_trainable=True)."
            )
    checks.done()
