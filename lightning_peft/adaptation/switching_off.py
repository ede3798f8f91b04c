"""Switching an adapter off for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from lightning_peft.adaptation.state import State
from lightning_peft.anatomy.fast_path import fast_path_off, fast_path_on
from lightning_peft.anatomy.names import parameter_at
from lightning_peft.methods.base import Adapter

__all__ = ["switched_off"]


@contextmanager
def switched_off(
    state: State,
    adapters: Sequence[Adapter],
    originals: dict[str, Tensor],
    fast_path: Sequence[nn.Module],
) -> Iterator[None]:
    """Switch adapters off inside the context, and restore their state after it.

    Args:
        state: The state of the adaptation.
        adapters: The handles on its adapters.
        originals: The pretrained values of parameters that are trained in place. Inside, the
            parameters have them, and this mapping has the trained values.
        fast_path: Layers whose inference fast path would bypass an adapter.
    """
    before = [(adapter, adapter.enabled) for adapter in adapters]
    outermost = not state.disabled
    try:
        if outermost:
            _swap(state.model, originals)
            state.disabled = True
        for adapter, _ in before:
            adapter.set_enabled(False)
        if outermost:
            fast_path_on(fast_path)
        yield
    finally:
        if outermost:
            fast_path_off(fast_path)
        for adapter, enabled in before:
            adapter.set_enabled(enabled)
        if outermost:
            state.disabled = False
            _swap(state.model, originals)


def _swap(model: nn.Module, originals: dict[str, Tensor]) -> None:
    for name, kept in originals.items():
        parameter = parameter_at(model, name)
        now = parameter.detach().clone()
        parameter.data.copy_(kept)
        originals[name] = now
