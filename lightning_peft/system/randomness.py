"""Random numbers that a stopped and resumed run draws like a run without a stop.

Lightning does not save the state of random number generators, so dropout masks and the order of
the data differ after a resume. There are two remedies: a generator can be seeded by (seed, epoch,
position), and :func:`random_state` collects the states of the generators as plain types that a
checkpoint can hold.
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
    """Return a CPU generator seeded by :func:`mix_seed`."""
    return torch.Generator().manual_seed(mix_seed(*keys))


@contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Seed torch's global CPU generator for a block, and restore its state afterwards.

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
    """Restore the state that :func:`random_state` collected.

    The state of GPUs is restored only if their number is the same as before.

    Args:
        state: The result of :func:`random_state`.
    """
    torch.set_rng_state(state["torch"].cpu())
    cuda = [tensor.cpu() for tensor in state["torch.cuda"]]
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy(), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), next_gauss))
