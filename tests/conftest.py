"""What holds for all tests."""

import pytest


@pytest.fixture(autouse=True)
def nothing_is_too_small_for_the_fast_forward(monkeypatch):
    """The models of the tests are tiny, and it is the fast forward that is to be tested on them."""
    monkeypatch.setattr("lightning_peft.kernels.fast_layers.SMALL", 0)
