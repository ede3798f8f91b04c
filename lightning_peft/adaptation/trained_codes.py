"""Refusing to train what is held as codes, which have no gradient."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from lightning_peft.anatomy.quantised import is_code, scheme_of
from lightning_peft.errors import MethodError, some

__all__ = ["refuse_trained_codes"]


def refuse_trained_codes(model: nn.Module, method: str, chosen: Collection[str]) -> None:
    """Refuse to train the weights of layers that are codes.

    Args:
        model: The backbone, not yet adapted.
        method: The method's name, for the error.
        chosen: Names of the parameters that are to be trained.

    Raises:
        MethodError: Naming them, with the ways out.
    """
    found = [
        name
        for name, parameter in model.named_parameters()
        if name in chosen and is_code(parameter) and _is_weight(model, name)
    ]
    if found:
        raise MethodError(
            f"{method}: expected weights of floating-point numbers to train, got codes, which have "
            f"no gradient, in {some(found, 4)}. Train an adapter beside them ('lora'). A head: "
            "keep it out of the quantisation (llm_int8_skip_modules, ignore_modules), or pass "
            "head=False."
        )


def _is_weight(model: nn.Module, name: str) -> bool:
    """Whether integers are the weight of a layer, and not a count or an index."""
    holder, _, key = name.rpartition(".")
    layer = model.get_submodule(holder)
    return scheme_of(layer) is not None or (key == "weight" and hasattr(layer, "in_features"))
