"""The labs' runs: sealed letters are what the folded answer says, and the log alone tells them apart."""

import json
from functools import cache
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from test_exercises import EXERCISES, NOTEBOOKS, solution

from pairuni_nb.report import lines_with
from pairuni_nb.world import render

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]


@cache
def lab(page, until):
    """What a page knows after its code cells, up to the one that holds some words."""
    space = {}
    for cell in nbformat.read(NOTEBOOKS[page], as_version=4).cells:
        if cell.cell_type == "code":
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


def test_what_the_page_says_of_the_weight():
    space = lab("learn/03_labs.ipynb", 'logs = {"right"')
    share, opposites, clipped = (space[name] for name in ("share", "opposites", "clipped"))
    for before, optimiser in ((True, "SGD"), (True, "Adam"), (False, "Adam")):
        assert share(before, optimiser) == 1
    assert share(False, "SGD") == 0.6
    for w in (0.2, 0.6, 0.9):
        together, apart, sgd = opposites(w)
        assert abs(together - 1) < 1e-3 and abs(sgd - (1 - w) / 2) < 1e-3
        assert abs(apart - (1 - w) / (2 * (1 + w**2)) ** 0.5) < 0.015
    assert clipped(5.0) == [1, 1] and clipped(0.5) == [0.5, 0.3]


def named(lines):
    """The name of a run of `06_name_the_run`, by the clues of the page's answer, in its order."""

    def of(key):
        return np.array(lines_with(lines, key)[1])

    gaps = np.concatenate([of("gap_u"), of("gap_g")])
    accuracy, score = of("eval_accuracy_mean"), of("eval_score_mean")
    if gaps.max() > 1:
        assert 0.3 < of("clip_low_g").max() < 0.4 and of("gap_u").max() < 1e-4
        assert score[[0, -1]].round(2).tolist() == [0.59, 0.34]
        return "guided logp"
    if not len(of("reward_g")):
        assert round(accuracy[-1] - accuracy[0], 2) == 0.17
        return "answers only"
    if of("reward_g")[:8].min() < 0.1 < of("reward_g")[0]:
        assert of("kl_g")[7] > 6 and accuracy[-1] > accuracy[0]
        return "rate too high"
    if of("reward_u")[:10].mean() < 0.25 and accuracy[0] > 0.4:
        return "first choice"
    return "random rewards" if of("flat_u").max() < 0.1 else "healthy"


def test_the_clues_of_a_run_without_a_name_name_it():
    logs = (ROOT / "benchmarks/curves/lab").glob("*.jsonl")
    runs = {file.stem: [json.loads(line) for line in file.open()] for file in logs}
    assert len(runs) == 6 and {name: named(lines) for name, lines in runs.items()} == {
        name: name for name in runs
    }


@pytest.fixture(scope="module")
def drawn():
    """The page of drawings, up to the rewards of its last lab; nothing is trained."""
    matplotlib.use("agg")
    return lab("learn/05_labs.ipynb", "def all_there")


def solved(name, space):
    """The folded solution of an exercise, among the names of its page."""
    exec(solution(EXERCISES["learn/05_labs.ipynb", name]), space := dict(space))
    return space[name]


def test_the_formula_and_the_draws_agree_on_the_entropy(drawn):
    entropy = solved("guided_entropy", drawn)
    for w, (rollouts, *_) in drawn["drawings"].items():
        exact = entropy(*drawn["both_logits"](rollouts), w)
        assert abs(exact - drawn["table"][w]["entropy"]) < 0.03, w


def test_what_the_page_says_of_guidance(drawn):
    table = drawn["table"]
    falls = [row["entropy"] for row in table.values()]
    assert falls == sorted(falls, reverse=True) and falls[0] < np.log(128)
    assert max(table, key=lambda w: table[w]["spread"]) == 1
    assert min(table, key=lambda w: table[w]["spread"]) == 0
    assert {1, 2} == set(sorted(table, key=lambda w: table[w]["mean"])[-2:])


def test_a_painting_changes_one_code_and_the_slider_follows(drawn):
    codes, other = drawn["codes"], drawn["changed"](14, 3)
    assert (codes != other).nonzero()[:, 0].tolist() == [14] and int(other[14]) == 3
    titles = [ax.get_title() for ax in drawn["painting"](14, 3).axes]
    assert titles == ["red circle", "red square"]
    painter = drawn["Painter"]()
    first = painter.image.value
    painter.code.value = int(codes[14])
    assert painter.image.value != first
    assert "reward 1.00" in drawn["painting"](14, int(codes[14])).get_suptitle()


def test_some_places_are_never_noticed_and_some_always(drawn):
    assert drawn["noticed"].shape == (36,)
    assert drawn["noticed"].min() == 0 and drawn["noticed"].max() == 1
    assert 64 < drawn["pixels"].mean() < 120


def test_a_transplanted_cell_is_read_and_the_first_changes_its_colour(drawn):
    cut = solved("transplant", drawn)
    tokens = torch.stack([cut(drawn["codes"], donor, 4) for donor in drawn["donors"].tokens])
    at_home, there = ([c[4] for _, c in r] for r in drawn["readings"][:1] + [read(drawn, tokens)])
    assert [cell[0] for cell in at_home + there] == ["triangle"] * 8
    assert at_home[0][1] == "red" and there[0][1] == "purple"


def read(space, tokens):
    """What the verifier reads in drawings of some codes."""
    return space["read"](space["pictures"](tokens))


def test_a_reward_that_cannot_be_painted_full(drawn):
    scene, cross = drawn["Scene"], ("cross", "purple")
    counts = {n: scene("counted", "plain", (cross,) * n + (None,) * (9 - n)) for n in (1, 2, 9)}
    truth = [dict(scene=counts[2].to_json())] * 3
    pictures = render(list(counts.values()))
    there = drawn["reward_of"](drawn["all_there"])(None, pictures, truth)
    mine = drawn["reward_of"](solved("paid", drawn))(None, pictures, truth)
    assert there == [0.5, 1, 1] and mine == [0.5, 1, 2 / 9]
