"""A short form of ``benchmarks/fuzz_runs.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import fuzz_runs

    yield fuzz_runs.fuzz
    for name in ("fuzz_runs", "fuzz_run_mutations", "fuzz_mutations"):
        sys.modules.pop(name, None)


QUICK = ("export", "predict", "compare", "against")
"""The commands that do not compose a config or train."""


@pytest.mark.parametrize(
    "only", [QUICK, pytest.param((*QUICK, "soup", "continue"), marks=pytest.mark.slow)]
)
def test_spoiled_runs_are_read_or_refused_and_nothing_else_happens(fuzz, only) -> None:
    directories = 10 if only == QUICK else 100
    report = fuzz(directories=directories, seed=7, only=only)
    assert report["findings"] == []
    assert report["directories"] == directories
    refused = sum(n for key, n in report["outcomes"].items() if key.endswith(" 2"))
    assert refused > report["commands"] // 5
