"""The sections of docstrings are whole, also where a reflow has joined their items.

ruff's D417 compares `Args` with the signature. It sees neither `Attributes` nor `Raises`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import lightning_peft

ROOT = Path(lightning_peft.__file__).parent
SECTION = re.compile(r"^(Args|Attributes|Raises):\n((?:(?: .*)?\n?)*)", flags=re.MULTILINE)
ITEM = re.compile(r"\*{0,2}(\w+): \S")


def problems_in(source: str) -> Iterator[str]:
    """Yield the lines of sections that begin no item, and the fields that are not described."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        for section, text in SECTION.findall(ast.get_docstring(node) or ""):
            lines = [line[4:] for line in text.splitlines() if line.strip()]
            items = [line for line in lines if not line.startswith(" ")]
            names = [match[1] for line in items if (match := ITEM.match(line))]
            yield from (f"{node.name}, {section}: '{i}'" for i in items if not ITEM.match(i))
            if section == "Attributes":
                yield from (f"{node.name} has no '{f}'" for f in fields_of(node) - set(names))


def fields_of(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """Return the public fields of a class that its body declares and its ``__init__`` takes."""
    return {
        part.target.id
        for part in node.body
        if isinstance(part, ast.AnnAssign)
        and isinstance(part.target, ast.Name)
        and not part.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(part.annotation)
        and "init=False" not in ast.unparse(part)
    }


def test_sections_are_whole():
    found = {
        str(path.relative_to(ROOT)): problems
        for path in sorted(ROOT.rglob("*.py"))
        if (problems := list(problems_in(path.read_text(encoding="utf-8"))))
    }
    assert not found


def test_a_reflow_is_found():
    broken = '''
class Plan:
    """A plan.

    Attributes:
        path: A path. backbone: A module. frozen:
        The names.

    Raises:
        Error: If it is
        wrong.
    """

    path: str
    backbone: str
'''
    assert list(problems_in(broken)) == [
        "Plan, Attributes: 'The names.'",
        "Plan has no 'backbone'",
        "Plan, Raises: 'wrong.'",
    ]
