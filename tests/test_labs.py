"""The labs' runs: sealed letters are what the folded answer says, and the log alone tells them apart."""

from functools import cache

import nbformat
import pytest
from test_exercises import EXERCISES, NOTEBOOKS, solution


@cache
def lab(page, until):
    """What a page knows after its code cells, up to the one that holds some words."""
    space = {}
    for cell in nbformat.read(NOTEBOOKS[page], as_version=4).cells:
        if cell.cell_type == "code" and "#| hide_input" not in cell.source:
            exec_like_a_notebook(cell, page, space)
        if until in cell.source:
            return space
    raise AssertionError(f"{page} holds no {until!r}")


def exec_like_a_notebook(cell, page, space):
    """Run a cell so that `inspect` finds the source of what it defines."""
    import linecache

    name = f"<{page} {cell.id}>"
    linecache.cache[name] = (len(cell.source), None, cell.source.splitlines(True), name)
    exec(compile(cell.source, name, "exec"), space)


@pytest.fixture(scope="module")
def runs():
    """Letter -> fault, and the logs under their letters and "right"."""
    space = lab("learn/03_labs.ipynb", 'logs = {"right"')
    return space["SEALED"], space["logs"]


def test_the_folded_answer_names_what_the_letters_hide(runs):
    space = {}
    exec(solution(EXERCISES["learn/03_labs.ipynb", "diagnoses"]), space)
    assert space["diagnoses"]() == runs[0]


def diagnosis(told):
    """The fault that a log shows, by the columns that the page's answer names."""
    first, last = map(float, told["reward"].split())
    if last < first:
        return "sign"
    if told["counted"] < told["words"] - 0.1:
        return "end"
    if told["counted"] > told["words"] + 0.1:
        return "padding"
    if told["silent"] < told["flat"] - 0.1:
        return "centre" if abs(told["loss"]) > 1 else "batch"
    if told["gap"] > 0.01:
        return "temperature"
    if abs(told["ratio"] - 1) < 1e-6:
        return "old"
    if abs(told["ret/al"] - 0.64) < 0.01:
        return "weight"
    return "right"


def test_every_fault_shows_in_the_log_and_the_right_step_shows_none(runs):
    sealed, logs = runs
    assert len(logs) == 9
    for letter, told in logs.items():
        assert diagnosis(told) == sealed.get(letter, "right"), (letter, told)
    assert logs["right"]["gap"] < 1e-5 and abs(logs["right"]["loss"]) < 1e-5


def test_what_the_page_says_of_rewards(runs):
    sealed, logs = runs
    ends = {sealed.get(k, "right"): float(told["reward"].split()[1]) for k, told in logs.items()}
    assert ends["sign"] < 0.2 and ends["temperature"] < 0.5
    assert all(ends[name] > 0.6 for name in ends if name not in ("sign", "temperature"))
    assert min(ends["batch"], ends["old"]) > ends["right"]
