"""Show the package's docstrings as Markdown: roles become links, and doctests become code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object

STUB = Path(__file__).parents[2] / "lightning_peft" / "__init__.pyi"
PUBLIC = set(re.findall(r" import (?:\(\s*)?(\w+) as \1\b", STUB.read_text(encoding="utf-8")))
ROLE = re.compile(r":(\w+):`~?([^`]+)`")
FENCE = re.compile(r"^( *)(?:>>> .*\n?)(?:\1(?!\s*$).*\n?)*", flags=re.M)

FORMULA = re.compile(r"^( *)\.\. math:: (.+)$", flags=re.M)
TABLE = re.compile(r"^( *)(=+(?: +=+)+)\n(.*?)\n\1\2\n(.*?)\n\1\2$", flags=re.M | re.S)


def as_markdown(text: str) -> str:
    """Return a docstring without what only Sphinx understands."""
    text = ROLE.sub(_link, text)
    text = FORMULA.sub(r"\1```text\n\1\2\n\1```", text)
    text = re.sub(r"::(?=\n\n)", ":", text).replace("\n:\n\n", "\n\n")
    return FENCE.sub(_fenced, TABLE.sub(_table, text))


def _link(found: re.Match[str]) -> str:
    role, target = found.groups()
    if role == "math":
        return f"`{target}`"
    name = target.removeprefix("lightning_peft.")
    if name in PUBLIC:
        return f"[`{name}`][lightning_peft.{name}]"
    owner, _, member = name.partition(".")
    if owner in PUBLIC:
        return f"[`{owner}.{member}`][lightning_peft.{owner}]"
    return f"`{target}`"


def _table(found: re.Match[str]) -> str:
    """Return a simple table as one of Markdown; a line without a first cell goes on."""
    indent, rule, head, body = found.groups()
    starts = [part.start() for part in re.finditer("=+", rule)]
    ends = [*starts[1:], None]
    rows: list[list[str]] = []
    for line in [head, *body.split("\n")]:
        bare = line.removeprefix(indent)
        cells = [bare[a:b].strip().replace("|", "\\|") for a, b in zip(starts, ends, strict=True)]
        if cells[0] or not rows:
            rows.append(cells)
        else:
            rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], cells, strict=True)]
    rows.insert(1, ["---"] * len(starts))
    return "\n".join(f"{indent}| {' | '.join(row)} |" for row in rows)


def _fenced(found: re.Match[str]) -> str:
    indent, block = found[1], found[0].rstrip("\n")
    return f"{indent}```pycon\n{block}\n{indent}```\n"


class Docstrings(Extension):
    """The extension of griffe that mkdocstrings loads."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of an object before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
