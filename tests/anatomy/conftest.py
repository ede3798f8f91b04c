from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
from torch import nn

from lightning_peft.anatomy import Anatomy, anatomy
from tests.support.zoo import build


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], nn.Module]:
    """One model of the zoo a session: tests that use it change nothing in it."""
    return lru_cache(maxsize=None)(build)


@pytest.fixture(scope="session")
def anatomy_of(model_of) -> Callable[[str], Anatomy]:
    return lru_cache(maxsize=None)(lambda name: anatomy(model_of(name)))
