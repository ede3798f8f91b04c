"""Checks of the setting ``memory`` and of the methods that support it."""

from __future__ import annotations

from typing import Any

from lightning_peft.errors import MethodError
from lightning_peft.kernels import Acceleration, memory_problem
from lightning_peft.methods.base import Method
from lightning_peft.methods.registry import list_methods, method_class

__all__ = ["check_memory", "refuse_no_fast_layer"]

SAVING = ("low", "lowest")
"""The settings that have no effect without a fast layer."""


def check_memory(method: Method, memory: Any) -> None:
    """Check a value of ``memory``, before a model is needed.

    Args:
        method: The method.
        memory: The value.

    Raises:
        MethodError: If it is none of the four, or is ``"low"`` or ``"lowest"`` with a method that
            has no fast layers, so that no memory would be saved.
    """
    problem = memory_problem(memory)
    if problem is not None:
        raise MethodError(problem)
    if memory in SAVING and not method.accelerated:
        raise MethodError(
            f"memory='{memory}': expected a method with fast LoRA layers ({_served()}), got "
            f"'{method.name}', whose backward pass it would not change. Leave memory out, or "
            "choose one of these."
        )


def refuse_no_fast_layer(method: Method, done: Acceleration) -> None:
    """Refuse to save memory if no layer of this backbone is fast.

    Raises:
        MethodError: With the reason for each layer.
    """
    if done.memory in SAVING and not done.fast:
        raise MethodError(
            f"memory='{done.memory}': expected a LoRA layer with the fast forward, got none from "
            f"'{method.name}' on this backbone: {done}. Leave memory out, or choose other targets."
        )


def _served() -> str:
    names = [name for name in list_methods() if method_class(name).accelerated is True]
    return ", ".join([*names, "hf with tuner 'lora'"])
