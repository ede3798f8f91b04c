"""Randomness that survives a stop.

Lightning saves no state of random number generators, so whatever draws from the global one differs
after a resume: other dropout masks, another order of the data. Two remedies: what is seeded by
(seed, epoch, position) is the same in the run that was never stopped, and :func:`random_state`
collects the generators' state as plain types that a checkpoint can hold.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["generator", "mix_seed", "random_state", "restore_random_state", "seeded"]


def mix_seed(*keys: int | str) -> int:
    """Mix keys into one seed, the same on every machine and in every version.

    Args:
        *keys: What the randomness depends on, such as ``(seed, epoch, position)``.

    Returns:
        A seed in ``[0, 2**63)``.

    >>> mix_seed(0, 1) == mix_seed(0, 1), mix_seed(0, 1) == mix_seed(1, 0)
    (True, False)
    """
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`mix_seed`."""
    return torch.Generator().manual_seed(mix_seed(*keys))


@contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Seed torch's global CPU generator for a block, and put its state back afterwards.

    For library code that takes no generator, such as the transforms of torchvision.
    """
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which reseeds every CUDA device as well
        torch.default_generator.manual_seed(mix_seed(*keys))
        yield


def random_state() -> dict[str, Any]:
    """Collect the state of torch, torch.cuda, numpy and Python.

    Returns:
        Tensors, numbers, strings and lists only: ``torch.load(weights_only=True)`` reads it.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "torch.cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys).copy()), position, has_gauss, gauss],
        "python": [version, torch.tensor(internal, dtype=torch.int64), next_gauss],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`random_state` collected.

    The state of GPUs is put back only where there are as many as there were.

    Args:
        state: What :func:`random_state` gave.
    """
    torch.set_rng_state(state["torch"].cpu())
    cuda = [tensor.cpu() for tensor in state["torch.cuda"]]
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy(), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), next_gauss))
