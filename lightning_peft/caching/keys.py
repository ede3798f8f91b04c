"""The key of a sample: a hash of the backbone's inputs for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

__all__ = ["KEY_BYTES", "batch_size", "digest", "plain_leaf", "sample_keys"]

KEY_BYTES = 16
"""Length of a key; two samples share one with a probability below 1e-19."""

_SEED = 0x5EED
_WEIGHTS: dict[tuple[torch.device, int], Tensor] = {}


def plain_leaf(leaf: Any) -> bool:
    """Whether a leaf of a pytree is a plain value, the same whenever it prints the same."""
    return leaf is None or isinstance(leaf, bool | int | float | str | torch.dtype | torch.device)


def batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Return the length of the first dimension of the first tensor; None without a tensor."""
    for leaf in tree_flatten((args, kwargs))[0]:
        if isinstance(leaf, Tensor):
            return leaf.shape[0] if leaf.ndim else None
    return None


def sample_keys(args: tuple[Any, ...], kwargs: dict[str, Any], context: bytes) -> list[bytes]:
    """Return the key of each sample in a batch.

    A sample is its row of every tensor whose first dimension is the batch, together with everything
    that belongs to no single sample: other tensors, plain values, shapes and dtypes.

    Args:
        args: The positional arguments of the backbone's forward.
        kwargs: Its keyword arguments.
        context: Other conditions that the features depend on, such as the frozen weights.

    Returns:
        A key of `KEY_BYTES` bytes for each sample, in order.

    Raises:
        ValueError: If no tensor says how large the batch is.
    """
    size = batch_size(args, kwargs)
    if size is None:
        raise ValueError("expected a batch of tensors, got arguments without one")
    leaves, spec = tree_flatten((args, kwargs))
    common = hashlib.blake2b(context, digest_size=KEY_BYTES)
    common.update(repr(spec).encode())
    rows: list[list[bytes]] = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            common.update(repr(leaf).encode())
            continue
        of_batch = leaf.ndim > 0 and leaf.shape[0] == size
        shape = tuple(leaf.shape[1:]) if of_batch else tuple(leaf.shape)
        common.update(f"{of_batch} {shape} {leaf.dtype}".encode())
        if of_batch:
            rows.append(_row_digests(leaf.detach()))
        else:
            common.update(digest([leaf]))
    keys = []
    for parts in zip(*rows, strict=True):
        key = common.copy()
        for part in parts:
            key.update(part)
        keys.append(key.digest())
    return keys


def digest(tensors: Iterable[Tensor]) -> bytes:
    """Return a hash of the whole content of tensors, `KEY_BYTES` long.

    It is the same for the same bytes on one kind of device.
    """
    whole = hashlib.blake2b(digest_size=KEY_BYTES)
    for tensor in tensors:
        whole.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        whole.update(_row_digests(tensor.detach().reshape(1, -1))[0])
    return whole.digest()


def _row_digests(tensor: Tensor) -> list[bytes]:
    """Hash each row's bytes."""
    flat = tensor.contiguous().reshape(len(tensor), -1)
    if flat.dtype.is_complex:
        flat = torch.view_as_real(flat).reshape(len(tensor), -1)
    if not flat.shape[1]:
        return [b"" for _ in range(len(flat))]
    if flat.device.type == "cpu":
        return [
            hashlib.blake2b(memoryview(row), digest_size=KEY_BYTES).digest()
            for row in flat.view(torch.uint8).numpy()
        ]
    return _on_device(flat)


def _on_device(flat: Tensor) -> list[bytes]:
    """Hash rows on their device, so that only 16 bytes a row cross the bus.

    Two multilinear hashes modulo 2**64 with random weights (Lemire and Kaser, "Strongly universal
    string hashing is fast", 2014). Two rows that differ in a word of 32 bits collide in one of them
    with probability 2**-33 at most: the word's difference has no more than 31 factors of two.
    """
    width = flat.element_size()
    words = flat.view(torch.int32) if width >= 4 else flat.view(_INTEGERS[width])
    sums = []
    for lane in range(2):
        weights = _weights(words.device, words.shape[1], lane)
        # row by row: the words of a whole batch as 64-bit integers would be a large copy
        sums.append(torch.stack([(row.to(torch.int64) * weights).sum() for row in words]))
    return [row.tobytes() for row in torch.stack(sums, 1).cpu().numpy()]


_INTEGERS = {1: torch.uint8, 2: torch.int16}


def _weights(device: torch.device, length: int, lane: int) -> Tensor:
    """Return random weights, the same in every process, since processes share files."""
    known = _WEIGHTS.get((device, lane))
    if known is None or len(known) < length:
        generator = torch.Generator().manual_seed(_SEED + lane)
        full = torch.iinfo(torch.int64)
        known = torch.randint(
            full.min, full.max, (length,), dtype=torch.int64, generator=generator
        ).to(device)
        _WEIGHTS[device, lane] = known
    return known[:length]
