"""Adaptations that train nothing: the head is outside of the backbone, and trained there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

__all__ = ["is_trained_elsewhere", "trained_elsewhere", "trains_outside"]

_elsewhere: ContextVar[bool] = ContextVar("elsewhere", default=False)


@contextmanager
def trained_elsewhere(elsewhere: bool) -> Iterator[None]:
    """Allow a method that trains nothing in a backbone, such as a linear probe.

    Args:
        elsewhere: Whether something outside of the backbone is trained; if not, it is refused.
    """
    token = _elsewhere.set(elsewhere)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def is_trained_elsewhere() -> bool:
    """Whether an adaptation may train nothing here."""
    return _elsewhere.get()


def trains_outside(module: nn.Module, backbone: nn.Module) -> bool:
    """Whether a module trains parameters outside of its backbone.

    Args:
        module: The module around the backbone.
        backbone: The backbone.
    """
    within = {id(parameter) for parameter in backbone.parameters()}
    return any(p.requires_grad and id(p) not in within for p in module.parameters())
