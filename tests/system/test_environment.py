"""Environment variables that are set for a while."""

import os

import pytest

from lightning_peft.system.environment import variable


def fails_with(value):
    with variable("FOR_A_WHILE", value):
        assert os.environ.get("FOR_A_WHILE") == value
        raise ValueError("in the middle")


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("value", [None, "new"])
def test_a_variable_is_set_for_a_while(monkeypatch, before, value):
    monkeypatch.delenv("FOR_A_WHILE", raising=False)
    if before is not None:
        monkeypatch.setenv("FOR_A_WHILE", before)
    with pytest.raises(ValueError, match="in the middle"):
        fails_with(value)
    assert os.environ.get("FOR_A_WHILE") == before
