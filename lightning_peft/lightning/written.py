"""Frozen tensors that the module itself writes to in training: said, and saved from then on.

A slim checkpoint leaves out what is frozen, since the backbone that is built anew has it. That is
wrong for a weight that an exponential average or the module's own code changes, and for a buffer
that it fills (a queue, a centre, a running scale).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.handle import Adaptation, find_adaptations
from lightning_peft.anatomy.names import shared_names
from lightning_peft.errors import some
from lightning_peft.lightning.further_names import join
from lightning_peft.lightning.hooks import after_hook
from lightning_peft.lightning.namespace import pl_import

__all__ = ["note_written", "watch_frozen"]

_KEY = "lightning_peft.written"
_ATTRIBUTE = "_lightning_peft_frozen"
_CODES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def watch_frozen(pl_module: nn.Module) -> None:
    """Look at the frozen tensors when a training starts and when it ends.

    Args:
        pl_module: The LightningModule; calling it again has no effect.
    """
    after_hook(pl_module, "on_train_start", _KEY, _begin)
    after_hook(pl_module, "on_train_end", _KEY, _end)


def note_written(pl_module: nn.Module) -> None:
    """Let checkpoints hold the frozen tensors that have changed since the training started.

    Args:
        pl_module: The LightningModule, about to be saved; outside of a training nothing happens.
    """
    before: dict[str, dict[str, int]] | None = pl_module.__dict__.get(_ATTRIBUTE)
    if before is None:
        return
    found: list[str] = []
    for path, adaptation in find_adaptations(pl_module).items():
        was = before.get(path, {})
        if adaptation.follows is None:
            changed = [n for n, code in _codes(adaptation) if n in was and was[n] != code]
            adaptation.written.update(changed)
            found += [join(path, name) for name in changed]
    if found:
        pl_import("utilities.rank_zero").rank_zero_warn(
            f"PEFT: expected frozen tensors to stay as they are in training, got {len(found)} that "
            f"the module itself has changed: {some(sorted(found), 4)}. Checkpoints hold them from "
            "now on, so that a run resumes; an adapter directory and a reload into the pretrained "
            "backbone will differ. Train them by name (also_train=...), or keep the module from "
            "writing to them."
        )


def _begin(pl_module: nn.Module) -> None:
    pl_module.__dict__[_ATTRIBUTE] = {
        path: dict(_codes(adaptation)) for path, adaptation in find_adaptations(pl_module).items()
    }


def _end(pl_module: nn.Module) -> None:
    note_written(pl_module)
    pl_module.__dict__.pop(_ATTRIBUTE, None)


@torch.no_grad()
def _codes(adaptation: Adaptation) -> Iterator[tuple[str, int]]:
    """Yield a sum over the bits of each frozen tensor, which any change of one number changes."""
    state = adaptation.model.state_dict()
    # a tensor that modules share is saved under the first of its names
    saved = adaptation.state_names() | set(shared_names(adaptation.model))
    names, sums = [], []
    for name, tensor in state.items():
        if name not in saved and _is_plain(tensor):
            bits: Any = tensor.detach().contiguous().view(_CODES[tensor.element_size()])
            names.append(name)
            sums.append(bits.sum(dtype=torch.int64))
    if sums:  # one transfer from the device, not one for each tensor
        together = torch.stack([number.to(sums[0].device) for number in sums]).tolist()
        yield from zip(names, together, strict=True)


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        and tensor.dim() > 0  # a count (of batches, of steps) is no weight
        and tensor.element_size() in _CODES
        and not tensor.is_complex()
    )
