"""The state of the random number generators, as plain types that a checkpoint can hold.

Lightning does not keep it, so a run that was stopped and resumed draws other dropout masks and
another order of the data than the run that was never stopped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "restore_random_state"]


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
