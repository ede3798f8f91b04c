"""Text to train on: the documentation of Python in this interpreter."""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

__all__ = ["documentation", "entries"]

_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}


def documentation() -> Iterator[str]:
    """Yield the texts: the topics of ``help()``, and each docstring below its heading."""
    yield from topics.values()
    for heading, docstring in entries():
        yield f"{heading}\n    {docstring.replace(chr(10), chr(10) + '    ')}\n"


def entries() -> Iterator[tuple[str, str]]:
    """Yield heading and docstring of the standard library's modules, classes and functions."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _LEFT_OUT.isdisjoint(parts):
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):  # templates for other versions
                continue
            yield from _of(tree, ".".join(part for part in parts if part != "__init__"))


def _of(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield _heading(node, name), inspect.cleandoc(docstring)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for child in node.body:
                yield from _of(child, f"{name}.{getattr(child, 'name', '')}")


def _heading(node: ast.AST, name: str) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"def {name}({ast.unparse(node.args)}):"
    return f"class {name}:" if isinstance(node, ast.ClassDef) else f"module {name}:"
