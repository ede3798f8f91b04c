"""The generated pages of the documentation say what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def pages():
    spec = importlib.util.spec_from_file_location("make_pages", DOCS / "make_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGES


@pytest.mark.parametrize("name", ["methods.md", "matrix.md", "states.md"])
def test_the_page_is_current(name):
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == pages()[name](), f"run `python docs/make_pages.py`: {name} has gone stale"


def test_every_test_that_the_page_of_traps_names_is_there():
    text = (DOCS / "traps.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 40
    lost = [
        f"{path}::{name}"
        for path, name in named
        if f"def {name}(" not in (DOCS.parent / path).read_text(encoding="utf-8")
    ]
    assert not lost
    assert not re.findall(r"\|\s*\|\s*$", text, flags=re.M)  # no line without a test
