"""Notebooks run from top to bottom, their two forms say the same, and what is committed of their outputs is clean."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jupytext
import nbformat.v4
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from tests.notebooks import FOLDER, KERNEL, STORY, execute, faults, outputs, read

N_WORDS = 120
ROOT = FOLDER.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all of them run: the run of words that the first one captures is there for the others."""
    return tmp_path_factory.mktemp("notebooks")


def committed(name: str):
    return jupytext.read(FOLDER / f"{name}.ipynb")


def test_the_story_has_all_notebooks():
    assert sorted(STORY) == sorted(path.stem for path in FOLDER.glob("*.py"))
    assert sorted(STORY) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


# The first captures 120 words with the real model, some 20 s; each of the others takes 5 to 20 s.
@pytest.mark.parametrize("name", STORY)
def test_a_notebook_runs(name, folder):
    run = folder / "runs" / f"words-{N_WORDS}.h5"
    before = run.stat() if run.exists() else None
    notebook = execute(name, folder, N_WORDS)
    assert faults(notebook) == []
    if before is not None:
        assert run.stat().st_mtime_ns == before.st_mtime_ns, "captured again"
    assert {path.name for path in (folder / "runs").glob("words-*.h5")} <= {run.name}


@pytest.mark.parametrize("name", STORY)
def test_both_forms_hold_the_same_cells(name):
    script, notebook = read(name), committed(name)
    assert [(cell.cell_type, cell.source) for cell in script.cells] == [
        (cell.cell_type, cell.source) for cell in notebook.cells
    ]
    assert [cell.metadata.get("tags") for cell in script.cells] == [
        cell.metadata.get("tags") for cell in notebook.cells
    ]
    assert notebook.metadata["kernelspec"]["name"] == script.metadata["kernelspec"]["name"] == KERNEL


@pytest.mark.parametrize("name", STORY)
def test_outputs_are_committed_whole_and_clean(name):
    notebook = committed(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from top to bottom"
    assert faults(notebook) == []
    assert "widgets" not in notebook.metadata
    kinds = {kind for output in outputs(notebook) for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 300_000


@pytest.mark.parametrize("name", STORY)
def test_outputs_show_nothing_of_the_machine(name):
    for output in outputs(committed(name)):
        texts = [output.get("text", ""), *(t for kind, t in output.get("data", {}).items() if kind.startswith("text"))]
        for text in texts:
            assert not re.search(r"(?<![\w.<])/(tmp|root|home|work|usr|var|Users)\b| at 0x[0-9a-f]{6}", text), text
            assert str(ROOT) not in text
            assert str(Path.home()) not in text


@pytest.mark.parametrize("name", STORY)
def test_it_ends_with_what_to_read_next_and_links_lead_somewhere(name):
    texts = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    assert texts[0].startswith("# ")
    assert "## What to read next" in texts[-1]
    links = [link for text in texts for link in re.findall(r"\]\(([^)#]+)\)", text)]
    assert len(links) >= 2
    for link in links:
        assert link.startswith("https://") or (FOLDER / link).is_file(), link


@pytest.mark.parametrize("name", STORY)
def test_code_that_is_committed_names_public_things_only(name):
    code = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "code")
    assert not re.search(r"(probes|figures|run|judge|found|fitted)\.(\w+\.)*_\w", code)


def test_the_kernel_is_the_one_of_this_environment():
    spec = KernelSpecManager().get_kernel_spec(KERNEL)
    assert "ipykernel_launcher" in spec.argv
    assert Path(spec.resource_dir).is_relative_to(sys.prefix)


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (nbformat.v4.new_output("stream", name="stdout", text="fine"), None),
        (nbformat.v4.new_output("display_data", {"text/plain": "fine"}), None),
        (nbformat.v4.new_output("stream", name="stderr", text="UserWarning: no"), "standard error: UserWarning: no"),
        (nbformat.v4.new_output("error", ename="ValueError", evalue="no"), "ValueError: no"),
        (
            nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
            "a widget, which is dead in a saved notebook",
        ),
    ],
)
def test_faults_are_found(output, fault):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    assert faults(notebook) == ([] if fault is None else [fault])
