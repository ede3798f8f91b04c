"""Runs that are killed at random moments end as runs that are left alone; the short form."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.kill_runs import SCENARIOS, kill_and_resume

# torch's threads are idle at the fork, and the children run on one thread each
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

KILLS = 2


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """One run trains in this very process, on one thread."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


OFTEN = "lora, dropout, schedule"


@pytest.mark.parametrize(
    "scenario", [s if s == OFTEN else pytest.param(s, marks=pytest.mark.slow) for s in SCENARIOS]
)
def test_killed_and_resumed_it_ends_bit_equal(scenario: str, tmp_path: Path) -> None:
    outcome = kill_and_resume(scenario, KILLS, random.Random(0), tmp_path)
    assert outcome.kills >= KILLS
    assert outcome.runs >= 1
    assert outcome.unequal == []
    assert outcome.equal == outcome.runs
