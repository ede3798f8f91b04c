"""The mean of low-rank updates, reduced to the rank of a single one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_peft.adaptation.handle import Adaptation
from lightning_peft.errors import MethodError, some

__all__ = ["low_rank_layers", "mean_factors"]


def low_rank_layers(adaptation: Adaptation) -> list[tuple[str, str]]:
    """Return the names of the factors ``A`` and ``B`` of every LoRA layer.

    Args:
        adaptation: The adapted backbone.

    Raises:
        MethodError: If a layer's update is not exactly ``B A``, or there is no such layer.
    """
    from peft.tuners.lora import LoraLayer

    pairs, other = [], []
    for path, module in adaptation.model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for key in module.lora_A:
            second = module.lora_B[key]
            grouped = getattr(module.get_base_layer(), "groups", 1) != 1
            grouped |= getattr(module, "num_experts", 1) != 1  # the factors of many updates
            if module.lora_variant or grouped or not hasattr(second, "weight"):
                other.append(path)
            pairs.append((f"{path}.lora_A.{key}.weight", f"{path}.lora_B.{key}.weight"))
        if len(module.lora_embedding_A):
            other.append(path)
    if other or not pairs:
        found = some(other) or "no LoRA layer"
        raise MethodError(
            f"averaging updates: expected LoRA on linear layers or ungrouped convolutions, got "
            f"'{adaptation.method.name}' ({found}). Average the parameters instead."
        )
    return pairs


def mean_factors(
    firsts: Sequence[Tensor], seconds: Sequence[Tensor], shares: Sequence[float]
) -> tuple[Tensor, Tensor, float, float]:
    """Return the factors of the nearest matrix of rank ``r`` to the mean of ``B A``.

    With the members' factors side by side, the mean is one product ``[s1 B1 ...] [A1; ...]``. Two
    QR decompositions leave a square matrix of ``r`` times the number of members between them.

    Args:
        firsts: ``A`` of each member, ``(r, in)``, or ``(r, in, height, width)`` of a convolution.
        seconds: ``B`` of each member, ``(out, r)`` or ``(out, r, 1, 1)``.
        shares: The share of each member.

    Returns:
        ``A`` and ``B``, the norm of the difference to the mean, and the norm of the mean.
    """
    rank = firsts[0].shape[0]
    left = torch.cat([s * b.flatten(1).double() for s, b in zip(shares, seconds, strict=True)], 1)
    right = torch.cat([a.flatten(1).double() for a in firsts], 0)
    outer, upper = torch.linalg.qr(left)
    inner, lower = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(upper @ lower.T)
    rank_kept = min(rank, len(values))
    root = values[:rank_kept].sqrt()
    second = torch.zeros(left.shape[0], rank, dtype=left.dtype, device=left.device)
    first = torch.zeros(rank, right.shape[1], dtype=left.dtype, device=left.device)
    second[:, :rank_kept] = outer @ (u[:, :rank_kept] * root)
    first[:rank_kept] = root[:, None] * (v[:rank_kept] @ inner.T)
    return (
        first.reshape(firsts[0].shape).to(firsts[0].dtype),
        second.reshape(seconds[0].shape).to(seconds[0].dtype),
        float(values[rank_kept:].norm()),
        float(values.norm()),
    )
