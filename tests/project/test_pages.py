"""The generated pages of the documentation say what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import lightning_peft as lp
from lightning_peft.cli.config.help import REGULARISERS

DOCS = Path(__file__).parents[2] / "docs"


def pages():
    spec = importlib.util.spec_from_file_location("make_pages", DOCS / "make_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGES


@pytest.mark.parametrize("name", pages())
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


def test_every_test_that_the_page_of_promises_names_is_there():
    text = (DOCS / "promises.md").read_text(encoding="utf-8")
    contract = "".join(
        path.read_text(encoding="utf-8") for path in (DOCS.parent / "tests/contract").glob("*.py")
    )
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 7
    assert [name for name in named if f"def {name}(" not in contract] == []
    assert all((DOCS.parent / path).exists() for path in re.findall(r"`(tests/[\w/.]+)`", text))


def test_the_page_of_regularisation_has_every_key_of_the_help():
    text = (DOCS / "regularisation.md").read_text(encoding="utf-8")
    assert [key for key in REGULARISERS if f"`{key}`" not in text] == []


def nav(entries):
    """Yield the files that a part of the navigation names."""
    for entry in entries:
        (target,) = entry.values() if isinstance(entry, dict) else (entry,)
        if isinstance(target, str):
            yield target
        else:
            yield from nav(target)


def test_the_navigation_names_every_page_once():
    # its tags build objects of the site's own environment, which is not here
    text = re.sub(r"!!python\S+", "", (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"))
    named = [target for target in nav(yaml.safe_load(text)["nav"]) if "://" not in target]
    here = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(named) == sorted(here)


def test_the_reference_has_every_public_name_once():
    text = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("reference/*.md"))
    assert sorted(re.findall(r"^::: lightning_peft\.(\w+)$", text, flags=re.M)) == lp.__all__


@pytest.mark.parametrize("name", lp.__all__)
def test_a_public_name_has_an_example(name):
    # they are doctests, which the test command runs
    assert ">>> " in (getattr(lp, name).__doc__ or ""), f"{name} has no example"
