"""What holds for all tests."""

import os

import pytest
import torch

from tests.support import any_processor

if os.environ.get("ANY_PROCESSOR"):
    any_processor.install()

# The first backward decides whether this process may fork: after a fake tensor has pretended that
# there is a GPU (torch.compile and exports do), it starts threads for it, and every test of several
# ranks behind it in the same process would fail.
torch.zeros((), requires_grad=True).backward()


@pytest.fixture(autouse=True)
def nothing_is_too_small_for_the_fast_forward(monkeypatch):
    """The models of the tests are tiny, and it is the fast forward that is to be tested on them."""
    monkeypatch.setattr("lightning_peft.kernels.fast_layers.SMALL", 0)
