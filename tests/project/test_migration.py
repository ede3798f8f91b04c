"""The Python of the migration pages runs as it stands, one block after the other."""

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "migration"
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.M | re.S)


def blocks(path):
    return BLOCK.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [path.name for path in sorted(PAGES.glob("*.md")) if blocks(path)])
def test_the_code_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks(PAGES / name):
        exec(compile(block, name, "exec"), names)
