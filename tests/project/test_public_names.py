"""The public names: one list, which type checkers and the package itself read."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lightning_peft as lp

STUB = ast.parse(Path(lp.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
IMPORTS = {
    alias.asname: (node.module, alias.name)
    for node in STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def test_the_package_offers_what_type_checkers_see():
    assert lp.__all__ == sorted(IMPORTS)
    assert set(dir(lp)) >= {*IMPORTS, "__version__"}
    annotated = {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign)}
    assert annotated == {"__version__"}


def test_no_module_of_the_root_has_a_public_name():
    # once imported, lightning_peft/soup.py would take the place of lp.soup
    modules = {path.stem for path in Path(lp.__file__).parent.iterdir()}
    assert not IMPORTS.keys() & modules


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_a_name_is_what_its_module_has(name):
    module, original = IMPORTS[name]
    assert original == name
    assert getattr(lp, name) is getattr(import_module(module), name)


def test_type_checkers_are_told_that_the_package_has_types():
    assert Path(lp.__file__).with_name("py.typed").is_file()


def test_another_name_is_none():
    with pytest.raises(AttributeError, match="'lightning_peft' has no attribute 'LoRa'"):
        lp.LoRa  # noqa: B018


def test_the_import_brings_nothing_heavy():
    code = (
        "import sys, lightning_peft as lp; dir(lp); "
        "print([m for m in ('torch', 'lightning', 'timm', 'peft', 'ast') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
