"""Randomness that is a function of where it is used, not of what ran before it.

Lightning saves no state of random generators, so whatever draws from the global one differs after a
resume. What is seeded by (seed, epoch, position) is the same in the run that was never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["generator", "mix_seed", "seeded"]


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
