"""The fast forward of LoRA, on layers that are too small for it elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lightning_peft.kernels import fast_layers


@contextmanager
def nothing_too_small() -> Iterator[None]:
    """Take the fast forward on the CPU, however little there is to do."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SMALL", "SMALL_CONVOLUTION", "HEAVY"):
            patch.setattr(fast_layers, name, 0)
        yield
