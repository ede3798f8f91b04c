"""Letting ``peft`` put its layers into a model, and what its layers share there."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_peft.errors import MethodError
from lightning_peft.methods.from_peft.dora_start import quick_dora_start, start_in_float32

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["ADAPTER_NAME", "SHARED", "inject_tuner", "shared_entries"]

ADAPTER_NAME = "default"
"""The name under which ``peft`` keeps an adapter; its own default, so that files travel."""

SHARED = "_lightning_peft_shared"
"""Under which a model keeps the names of what all layers of a tuner hold together."""


def inject_tuner(config: PeftConfig, model: nn.Module, kind: str) -> None:
    """Inject a tuner's layers into a model.

    Args:
        config: Says which tuner, and where.
        model: The backbone; changed in place.
        kind: The tuner's name, for the error.

    Raises:
        MethodError: If ``peft`` refuses; the model may be half changed by then.
    """
    from peft.functional import cast_adapter_dtype
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    tuner_class: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    dora = getattr(config, "use_dora", False)
    quick = quick_dora_start() if dora else nullcontext()
    try:
        # what peft's inject_adapter_in_model does too; it throws the tuner away, with the first
        # name of what the layers share, and refuses the tuners where that name matters
        with quick:
            tuner = tuner_class(model, config, adapter_name=ADAPTER_NAME)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, KeyError) as error:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise MethodError(
                f"{kind}: peft reads the weights when it makes this adapter: expected a backbone "
                f"with weights, got one on the meta device ({error})."
            ) from error
        raise MethodError(
            f"{kind}: peft refuses to adapt this {type(model).__name__}: {error}"
        ) from error
    shared = {name for name, _ in tuner.named_children()} - {"model"}
    model.__dict__[SHARED] = tuple(sorted(shared))
    # a float16 adapter cannot be trained with gradient scaling, a bfloat16 one loses its updates
    cast_adapter_dtype(model, ADAPTER_NAME)
    if dora:
        with quick_dora_start():
            start_in_float32(model, ADAPTER_NAME)


def shared_entries(model: nn.Module, names: list[str]) -> dict[str, str]:
    """Give the entries that ``peft`` keeps once, on the tuner, and the model on every layer.

    Args:
        model: The adapted backbone.
        names: The keys of its state dict.

    Returns:
        For each name that ``peft``'s tuner has (``base_model.vera_A.default``), the first of the
        names in the model.
    """
    found: dict[str, str] = {}
    for attribute in getattr(model, SHARED, ()):
        for name in names:
            _, inside, rest = name.partition(f".{attribute}.{ADAPTER_NAME}")
            if inside:
                found.setdefault(f"base_model.{attribute}.{ADAPTER_NAME}{rest}", name)
    return found
