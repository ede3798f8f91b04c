"""The script that runs the tests as other processors would."""

from __future__ import annotations

import pytest

from tools import processors

INSIDE = """
import os

def test_environment():
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "ANY_PROCESSOR")
    assert [os.environ.get(name) for name in names] == {expected}

def test_another():
    pass
"""


@pytest.fixture
def script(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(processors, "LOGS", tmp_path / "logs")

    def call(expected, *words):
        path = tmp_path / "test_inside.py"
        path.write_text(INSIDE.format(expected=expected))
        status = processors.main([*words, "--workers", "0", "--select", str(path)])
        return status, capsys.readouterr().out

    return call


def test_there_are_twelve_and_one_more():
    assert len(processors.combinations(processors.parsed([]))) == 12
    assert len(set(processors.combinations(processors.parsed(["--any-processor"])))) == 13


def test_a_combination_is_the_environment_of_the_tests(script, monkeypatch):
    monkeypatch.setenv("ANY_PROCESSOR", "1")  # what is set around it does not count
    words = ("--capability", "default", "--libraries", "AVX2", "--threads", "2")
    status, out = script(["default", "AVX2", "2", None], *words)
    assert status == 0, out
    assert "torch default, libraries AVX2, threads 2: 2 passed, 0 failed" in out


def test_bytecode_is_kept_as_make_test_keeps_it(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    found = processors.Combination("avx2", "AVX2", 1).environment()
    settings = ("PYTHONDONTWRITEBYTECODE=", "PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode")
    makefile = (processors.ROOT / "Makefile").read_text()
    for setting in settings:
        name, _, value = setting.partition("=")
        assert found[name] == value.replace("$(CURDIR)", str(processors.ROOT))
        assert f" {setting} " in makefile


def test_one_that_is_red_is_told_and_is_the_exit_status(script):
    words = ("--capability", "avx2", "--libraries", "unset", "--threads", "1", "2")
    status, out = script(["avx2", None, "1", None], *words)
    assert status == 1
    first, second = out.splitlines()[:2]
    assert first.startswith("torch avx2, libraries unset, threads 1: 2 passed, 0 failed")
    assert first.endswith("green")
    assert second.startswith("torch avx2, libraries unset, threads 2: 1 passed, 1 failed")
    assert "red, see" in second
