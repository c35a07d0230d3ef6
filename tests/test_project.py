"""The notebooks, the package and the tests say the same thing, in an order one can read."""

from pathlib import Path

import nbformat
import pytest

from pairuni_nb.settings import check

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MAX_BYTES = 400_000


def test_exports_are_in_step():
    problems = check(ROOT, "pairuni_nb")
    if problems:
        pytest.fail(f"run pairuni-export and commit what it changes:\n{problems}", pytrace=False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_can_be_read_on_the_web(path):
    assert path.stat().st_size < MAX_BYTES, (
        f"{path.name} is too large; draw smaller or fewer figures"
    )
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs, f"{path.name} has no outputs; execute it and commit it"
    assert all(output.output_type != "error" for output in outputs), (
        f"{path.name} holds a traceback; mend the cell and execute it again"
    )
    assert "widgets" not in notebook.metadata, (
        f"{path.name} holds widget state, which GitHub refuses; run pairuni-export"
    )
