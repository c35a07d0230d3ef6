"""Every notebook runs from the top in a fresh process, and its committed outputs are where that run puts outputs.

Its tests run from the files that were exported from them, and once is enough; the slow run takes them along.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from program import Kernel

from pairuni_nb.testgen import is_bar, keep_functions, notebooks

pytestmark = pytest.mark.long

NOTEBOOKS = notebooks(Path(__file__).parents[1] / "nbs")
CELL_SECONDS = 600  # a cell that hangs, on a machine however busy
SLOW_CELL_SECONDS = 3600


def marks(cell):
    """The directives of a cell, e.g. {"export"} or {"test", "slow"}."""
    lines = [line.split() for line in cell.source.splitlines() if line.startswith("#|")]
    return (
        {line[1].rstrip(":") for line in lines if len(line) > 1}
        if cell.cell_type == "code"
        else set()
    )


def fast(path):
    """A notebook's cells without what is slow, what needs a GPU, and the calls of its tests."""
    cells = nbformat.read(path, as_version=4).cells
    cells = [cell for cell in cells if not marks(cell) & {"slow", "gpu"} and not named_test(cell)]
    for cell in cells:
        if "test" in marks(cell):
            cell.source = keep_functions(cell.source, [])
    return cells


def named_test(cell):
    """Whether the whole cell is one test, `#| test some_name`."""
    return cell.cell_type == "code" and re.search(r"^#\| test \w", cell.source, re.M)


def run(path, cells, timeout):
    """The cells as a fresh kernel leaves them; a cell that fails or takes too long fails the test."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = cells
    kernel = Kernel(path.parent)
    try:
        NotebookClient(notebook, km=kernel, timeout=timeout, startup_timeout=timeout).execute()
    finally:
        kernel.process.kill()
    return notebook.cells


def kinds(cell):
    """Which kinds of output a cell has; warnings and progress bars, which machines show or not, are left aside."""
    told = [o for o in cell.get("outputs", []) if o.get("name") != "stderr" and not is_bar(o)]
    return {o.output_type for o in told}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_the_top(name):
    path = NOTEBOOKS[name]
    committed = {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}
    stale = [
        cell.id
        for cell in run(path, fast(path), CELL_SECONDS)
        if "test" not in marks(cell) and kinds(cell) != kinds(committed[cell.id])
    ]
    assert not stale, (
        f"the committed outputs of cells {stale} are stale; execute {path.name} again and commit it"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_with_its_slow_cells(name):
    path = NOTEBOOKS[name]
    cells = nbformat.read(path, as_version=4).cells
    run(path, [cell for cell in cells if "gpu" not in marks(cell)], SLOW_CELL_SECONDS)
