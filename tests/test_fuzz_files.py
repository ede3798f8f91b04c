"""A short form of ``benchmarks/fuzz_files.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import fuzz_files

    yield fuzz_files.fuzz
    for name in ("fuzz_files", "fuzz_mutations"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_spoiled_files_load_or_are_refused_and_nothing_else_happens(fuzz) -> None:
    report = fuzz(files=300, seed=7)
    assert report["findings"] == []
    assert report["files"] == 300
    assert sum(report["outcomes"].values()) == 300
    assert report["outcomes"]["AdapterFileError"] > 50
    assert report["outcomes"]["CheckpointError"] > 20
    assert report["outcomes"]["loaded"] > 10
