"""Injecting ``peft``'s layers into a model, and finding the tensors that they share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_peft.errors import MethodError
from lightning_peft.methods.from_peft.dora_start import quick_dora_start, start_in_float32
from lightning_peft.methods.from_peft.dtypes import copies_of_layers
from lightning_peft.methods.from_peft.parameters import literally

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["ADAPTER_NAME", "SHARED", "inject_tuner", "shared_entries"]

ADAPTER_NAME = "default"
"""The name under which ``peft`` keeps an adapter: its default, so that files are portable."""

SHARED = "_lightning_peft_shared"
"""The attribute of a model with the names of the tensors that a tuner's layers share."""


def inject_tuner(
    config: PeftConfig, model: nn.Module, kind: str, *, converted: bool = False
) -> None:
    """Inject a tuner's layers into a model.

    Args:
        config: The tuner's config, with its targets.
        model: The backbone; changed in place.
        kind: The tuner's name, for the error.
        converted: Whether ``peft`` may replace the targets of a config that was written for an
            older transformers.

    Raises:
        MethodError: If ``peft`` refuses; the model may be half changed by then.
    """
    from peft.functional import cast_adapter_dtype
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    at: list[str] = []
    tuner_class: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    dora = getattr(config, "use_dora", False)
    quick = quick_dora_start() if dora else nullcontext()
    exact: AbstractContextManager[None] = nullcontext() if converted else literally(config, model)
    try:
        # as peft's inject_adapter_in_model does; but that discards the tuner, with the first names
        # of shared tensors, and refuses the tuners for which these names matter
        with quick, exact:
            tuner = _noting(tuner_class, at)(model, config, adapter_name=ADAPTER_NAME)
    except Exception as error:  # whatever peft raises: what it asserts, or indexes in vain
        if any(parameter.is_meta for parameter in model.parameters()):
            raise MethodError(
                f"{kind}: peft reads the weights when it makes this adapter: expected a backbone "
                f"with weights, got one on the meta device ({error})."
            ) from error
        place = f" at {at[-1]} ({_kind_at(model, at[-1])})" if at else ""
        reason = str(error)
        if not reason or isinstance(error, LookupError):  # whose text is no more than a key
            reason = f"{type(error).__name__} {reason}".strip()
        raise MethodError(
            f"{kind}: peft refuses to adapt this {type(model).__name__}{place}: {reason}"
        ) from error
    shared = {name for name, _ in tuner.named_children()} - {"model"}
    model.__dict__[SHARED] = tuple(sorted(shared))
    # a float16 adapter cannot be trained with gradient scaling, a bfloat16 one loses updates
    cast_adapter_dtype(model, ADAPTER_NAME)
    for copied, own in copies_of_layers(model):
        for parameter, like in zip(copied.parameters(), own.parameters(), strict=True):
            parameter.data = parameter.to(like.dtype)
    for module in model.modules():  # peft makes AdaLoRA's constant anew in half precision
        constants = module._modules.get("ranknum")
        if constants is not None:
            constants.requires_grad_(False)
    if dora:
        with quick_dora_start():
            start_in_float32(model, ADAPTER_NAME)


def _noting(tuner_class: Any, at: list[str]) -> Any:
    """Return a tuner's class that notes the name of the layer that it is about to adapt.

    Args:
        tuner_class: The class.
        at: The list that the names are added to.
    """

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        at.append(str(kwargs.get("current_key", "")))
        found = tuner_class._create_and_replace(self, *args, **kwargs)
        at.clear()
        return found

    return type(tuner_class.__name__, (tuner_class,), {"_create_and_replace": noted})


def _kind_at(model: nn.Module, name: str) -> str:
    """Return the class of a layer, which ``peft`` may have wrapped by now."""
    found: Any = dict(model.named_modules()).get(name)
    return type(getattr(found, "base_layer", found)).__name__


def shared_entries(model: nn.Module, names: list[str]) -> dict[str, str]:
    """Return the entries that ``peft`` has once, on the tuner, and the model on every layer.

    Args:
        model: The adapted backbone.
        names: The keys of its state dict.

    Returns:
        The first name in the model, by the name that ``peft``'s tuner has
        (``base_model.vera_A.default``).
    """
    found: dict[str, str] = {}
    for attribute in getattr(model, SHARED, ()):
        for name in names:
            _, inside, rest = name.partition(f".{attribute}.{ADAPTER_NAME}")
            if inside:
                found.setdefault(f"base_model.{attribute}.{ADAPTER_NAME}{rest}", name)
    return found
