"""The generated pages of the documentation say what the code says."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def pages():
    spec = importlib.util.spec_from_file_location("make_pages", DOCS / "make_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGES


@pytest.mark.parametrize("name", ["methods.md", "matrix.md"])
def test_the_page_is_current(name):
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == pages()[name](), f"run `python docs/make_pages.py`: {name} has gone stale"
