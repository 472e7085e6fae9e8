"""The README's examples run as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from probes.prompts import load_template

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_screen_shows_exactly_the_two_commands():
    setup = blocks("bash")[0]
    assert [line.split("#")[0].strip() for line in setup.strip().splitlines()] == ["make demo", "make test"]
    assert README[: README.index(setup)].count("\n") < 15


@pytest.mark.parametrize("language", ["python", "bash"])
def test_examples_are_ten_lines_or_fewer(language):
    example = blocks(language)[-1].strip().splitlines()
    assert len(example) <= 10


# Both examples judge 120 words with the real model: some 30 s each, mostly the captures and fold-wise fits.
def test_the_python_example_runs_as_printed(tmp_path):
    (example,) = blocks("python")
    out = run([sys.executable, "-c", example], tmp_path)
    assert "final-ridge" in out
    assert "(120, 576) (120, 31, 5)" in out
    assert (tmp_path / "runs" / "judge.json").is_file()
    assert (tmp_path / "runs" / "layers.png").is_file()
    # The file that it wrote is read by the example in docs/file-format.md, which does without this package.
    text = (ROOT / "docs" / "file-format.md").read_text(encoding="utf-8")
    (plain,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert run([sys.executable, "-c", plain], tmp_path) == "(120, 5) (120, 576) (120,)\n"


def test_the_command_line_example_runs_as_printed(tmp_path):
    out = run(["bash", "-euo", "pipefail", "-c", blocks("bash")[1]], tmp_path)
    assert "First prompt, as the model sees it:" in out
    assert "120 of 120 items captured" in out
    assert (tmp_path / "runs" / "comparison.csv").is_file()
    assert (tmp_path / "runs" / "figures" / "alignment.png").is_file()
    # What that wrote is what the section on run files looks at.
    out = run(["bash", "-euo", "pipefail", "-c", blocks("bash")[2]], tmp_path)
    assert "runs/cli.h5: no faults" in out
    assert "runs/late.h5: 120 of 120 items, 2 layers" in out
    assert (tmp_path / "runs" / "cli.parquet").is_file()


def test_the_template_example_loads(tmp_path):
    (example,) = blocks("yaml")
    path = tmp_path / "essays.yaml"
    path.write_text(example)
    assert load_template(path).prefill == "Score:"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / target).exists(), target
