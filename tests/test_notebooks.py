"""Notebooks run from top to bottom, and their two forms say the same."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py"))


# A notebook judges 120 words with the real model: some 30 s.
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path):
    notebook = jupytext.read(FOLDER / f"{name}.py")
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_both_forms_hold_the_same_cells(name):
    script, notebook = jupytext.read(FOLDER / f"{name}.py"), jupytext.read(FOLDER / f"{name}.ipynb")
    assert [cell.source for cell in script.cells] == [cell.source for cell in notebook.cells]
    assert any(cell.get("outputs") for cell in notebook.cells), "outputs are committed"
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000
