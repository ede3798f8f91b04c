"""The notebooks run from top to bottom, only shorter, and are kept without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "notebooks"
SAYS = {
    "one_callback.ipynb": "the same outputs: True",
    "folder_of_images.ipynb": "digits.safetensors differs by ",
    "language_model.ipynb": "adapter_model.safetensors",
}
SHOWS = {
    "one_callback.ipynb": {"text/html"},
    "folder_of_images.ipynb": {"image/png"},
    "language_model.ipynb": {"text/html"},
}


def read(name):
    return nbformat.read(NOTEBOOKS / name, as_version=4)


def test_every_notebook_is_here():
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_it_is_kept_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow  # a kernel imports torch anew for each; the example of the same name is quick
@pytest.mark.parametrize("name", SAYS)
def test_it_runs(name, tmp_path):
    notebook = read(name)
    shorter = 0
    for cell in notebook.cells:
        shorter += "STEPS = 100" in cell.source
        cell.source = cell.source.replace("STEPS = 100", "STEPS = 3")
    assert shorter == 1
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "byte_lm").symlink_to(NOTEBOOKS.parent / "byte_lm")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = {
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        for kind in output.get("data", ())
    }
    assert SHOWS[name] <= kinds
    said = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert SAYS[name] in said
