"""A short form of ``benchmarks/fuzz_files.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import fuzz_files

    yield fuzz_files.fuzz
    for name in ("fuzz_files", "fuzz_mutations"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("files", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_spoiled_files_load_or_are_refused_and_nothing_else_happens(fuzz, files: int) -> None:
    report = fuzz(files=files, seed=7)
    assert report["findings"] == []
    assert report["files"] == files
    assert sum(report["outcomes"].values()) == files
    assert report["outcomes"]["AdapterFileError"] > files // 6
    assert report["outcomes"]["CheckpointError"] > files // 15
    assert report["outcomes"]["loaded"] > files // 30
