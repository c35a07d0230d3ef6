"""The notebooks, the package and the tests say the same thing, in an order and a form one can read."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from pairuni_nb.testgen import backward_imports, is_generated, notebooks, out_of_step

ROOT = Path(__file__).parents[1]
NOTEBOOKS = notebooks(ROOT / "nbs")
MAX_BYTES = 400_000


def run(*command):
    """A command's exit code and what it said."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_exports_are_in_step():
    problems = out_of_step(ROOT, "pairuni_nb")
    if problems:
        pytest.fail(f"run pairuni-export and commit what it changes:\n{problems}", pytrace=False)


def test_no_import_runs_up():
    assert backward_imports(ROOT / "nbs", "pairuni_nb") == []


@pytest.mark.parametrize("words", ["check", "format --check"])
def test_lines_fit_and_code_is_formatted(words):
    by_hand = [str(p) for p in (ROOT / "tests").glob("*.py") if not is_generated(p)]
    places = ["nbs", "scripts", "benchmarks", "docs", "setup.py", *by_hand]
    code, said = run(sys.executable, "-m", "ruff", *words.split(), *places)
    assert code == 0, said


def test_notebooks_stay_readable():
    code, said = run(sys.executable, "scripts/readability.py", "--list")
    assert code == 0, said


@pytest.mark.parametrize("module", ["pair_grpo", "step", "train", "pairing"])
def test_training_loads_no_drawing(module):
    program = (
        f"import sys, pairuni_nb.{module}; print({{'matplotlib', 'ipywidgets'}} & set(sys.modules))"
    )
    assert run(sys.executable, "-c", program) == (0, "set()\n")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_can_be_read_on_the_web(name):
    path = NOTEBOOKS[name]
    assert path.stat().st_size < MAX_BYTES, f"{name} is too large; draw smaller or fewer figures"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs, f"{name} has no outputs; execute it and commit it"
    failed = [output for output in outputs if output.output_type == "error"]
    assert not failed, f"{name} holds a traceback; mend the cell and execute it again"
    assert "widgets" not in notebook.metadata, (
        f"{name} holds widget state, which GitHub refuses; run pairuni-export"
    )


def test_the_readmes_picture_is_what_the_first_notebook_shows(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from readme_picture import PICTURE, picture

    assert PICTURE.read_bytes() == picture(), "run scripts/readme_picture.py and commit"
    assert f"](docs/{PICTURE.name})" in (ROOT / "README.md").read_text()
