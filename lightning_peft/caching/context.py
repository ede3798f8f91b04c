"""The conditions that features depend on besides their sample, and reasons not to cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_peft.anatomy.fingerprint import backbone_fingerprint
from lightning_peft.caching.keys import digest
from lightning_peft.caching.search import Split

__all__ = ["context_of", "frozen_tensors", "mode_of", "sampled", "shape_of", "unfit"]


def unfit(backbone: nn.Module) -> str:
    """Return why a backbone's forward cannot be replaced; empty if it can."""
    for name, module in backbone.named_modules():
        where = f"'{name}'" if name else "the backbone"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{where} is a TorchScript module, whose forward is fixed"
        if module._compiled_call_impl is not None or hasattr(module, "_orig_mod"):
            return f"{where} is compiled, and parts of a compiled model cannot be skipped"
        if any(
            getattr(module, flag, False) is True
            for flag in ("grad_checkpointing", "gradient_checkpointing")
        ):
            return f"{where} uses gradient checkpointing, which runs parts of it again"
    return ""


def mode_of(backbone: nn.Module, args: Any, kwargs: Any) -> bytes:
    """Return bytes for the settings that change how modules compute, other than their weights."""
    flags = bytes(module.training for module in backbone.modules())
    kinds = sorted(
        {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    )
    casts = [
        (kind, torch.is_autocast_enabled(kind), str(torch.get_autocast_dtype(kind)))
        for kind in kinds
    ]
    return hashlib.blake2b(flags + repr(casts).encode(), digest_size=16).digest()


def shape_of(args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Return the shapes, dtypes and devices of a batch, and its plain values."""
    return tuple(
        (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in tree_leaves((args, kwargs))
    )


def context_of(backbone: nn.Module, split: Split, mode: bytes) -> bytes:
    """Hash everything that features depend on besides the sample, since they outlive the run.

    Args:
        backbone: The backbone.
        split: Its first part.
        mode: As from :func:`mode_of`.

    Returns:
        16 bytes over the frozen tensors, the modules and where the first part ends.
    """
    units = [(unit.name, unit.calls, repr(unit.module)) for unit in split.splice.units]
    taps = [(tap.name, tap.side, tap.call) for tap in split.splice.taps]
    code = f"{type(backbone).__module__}.{type(backbone).__qualname__}"
    whole = hashlib.blake2b(mode, digest_size=16)
    whole.update(repr((torch.__version__, code, units, taps, split.slots)).encode())
    whole.update(digest(frozen_tensors(backbone, split)))
    return whole.digest()


def sampled(backbone: nn.Module) -> dict[str, str]:
    """Return hashes of samples of the frozen weights, in milliseconds."""
    frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    values: dict[str, str] = backbone_fingerprint(backbone, frozen)["values"]
    return values


def frozen_tensors(backbone: nn.Module, split: Split) -> Iterator[Tensor]:
    """Yield the tensors that the first part may read: its modules', and those next to them."""
    seen: set[int] = set()
    skipped = {part for unit in split.splice.units for part in unit.module.modules()}
    above = {""}
    for name in (*(t.name for t in split.splice.taps), *(u.name for u in split.splice.units)):
        parts = name.split(".")
        above |= {".".join(parts[:n]) for n in range(len(parts))}
    for name, module in backbone.named_modules():
        if module not in skipped and name not in above:
            continue
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and not tensor.requires_grad and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
