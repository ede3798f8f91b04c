"""Read the settings of the methods and their defaults from the source of the classes.

A config names a class and what differs from its defaults; the command line can set every field, and
the help lists them. Importing the classes would import torch, which takes seconds.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

from lightning_peft.cli.config.paths import PACKAGE

__all__ = ["REQUIRED", "Field", "fields_of"]

METHODS = PACKAGE / "methods"

REQUIRED = "???"
"""The default of a field that has none, as OmegaConf writes it."""


class Field(NamedTuple):
    """A setting of a method: its name, its default and its description."""

    name: str
    default: Any
    text: str


@functools.cache
def fields_of(name: str) -> tuple[Field, ...]:
    """Return the fields of a dataclass of ``lightning_peft.methods``, with those of its bases.

    Args:
        name: The name of the class, such as ``"LoRA"``.

    Returns:
        The fields, in the order of the class; none for a class of another package.

    Raises:
        ValueError: If a default is not a literal.
    """
    files = _files()
    if name not in files:
        return ()
    tree = ast.parse(files[name].read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = {
        field.name: field
        for base in reversed(found.bases)
        if isinstance(base, ast.Name)
        for field in fields_of(base.id)
    }
    told = _attributes(ast.get_docstring(found) or "")
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            field = ast.unparse(node.target)
            text = fields[field].text if field in fields else ""
            fields[field] = Field(field, _default(f"{name}.{field}", node.value), text)
    return tuple(field._replace(text=told.get(field.name, field.text)) for field in fields.values())


def _default(name: str, written: ast.expr | None) -> Any:
    if written is None:
        return REQUIRED
    try:
        return ast.literal_eval(written)
    except ValueError:
        raise ValueError(
            f"{name}: expected a literal as the default, which can be read without an import, got "
            f"{ast.unparse(written)}: write the value out."
        ) from None


@functools.cache
def _files() -> dict[str, Path]:
    """Map each class of the methods to the file that defines it."""
    return {
        name: path
        for path in METHODS.rglob("*.py")
        for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), flags=re.M)
    }


def _attributes(docstring: str) -> dict[str, str]:
    """Map each name below ``Attributes:`` of a docstring to its description."""
    section = docstring.partition("\nAttributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.M)
    return {name: " ".join(text.split()) for name, text in entries}
