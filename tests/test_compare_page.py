"""Two runs side by side: each column tells its own run, and both are on the same step."""

import json
import re
import shutil

import pytest
from test_report_look import ALL, MARKUP

from pairuni_nb.cli import main
from pairuni_nb.pairing import make_pairs
from pairuni_nb.records import write_json
from pairuni_nb.report import beside, looks_of
from pairuni_nb.settings import TrainSettings
from pairuni_nb.train import train
from pairuni_nb.world import records


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A run, and another one that differs in a reward of step 2 and has no step 1 to look into."
    base = tmp_path_factory.mktemp("runs")
    pairs = make_pairs(records("u", 40, 0), records("g", 40, 0), clusters=10)[0]
    few = dict(steps=2, pairs_per_step=3, rollouts=2, eval_items=4, eval_every=1)
    train(pairs, base / "one", TrainSettings(**few), device="cpu")
    shutil.copytree(base / "one", base / "other")
    shutil.rmtree(base / "other/rollouts/000001")
    file = base / "other/rollouts/000002/g.json"
    told = json.loads(file.read_text())
    told["rewards"][0] = [0.11, 0.12]
    write_json(file, told)
    return base / "one", base / "other"


def columns(text, n):
    "The text of each pair on the page, by column."
    cells = re.findall(r"<article class=pair>.*?</article>", text, re.S)
    return [cells[i::n] for i in range(n)]


def test_each_column_tells_its_own_run(runs):
    text = beside(list(runs))
    assert re.findall(r"<label for=.run-\d.>(\w+)<", text) == ["one", "other"]
    assert re.findall(r"<div class=.run-(\d). role=group aria-label=.(\w+)", text)[:2] == [
        ("1", "one"),
        ("2", "other"),
    ]
    first, second = columns(text, 2)
    assert len(first) == len(second) == len(looks_of(runs[0])[2])
    told = lambda cells: "".join(cells).count("<dd>0.11</dd>")
    assert (told(first), told(second)) == (0, 1)
    assert first[1:] == second[1:]
    assert [part[0] for part in columns(beside([runs[1], runs[0]]), 2)] == [second[0], first[0]]


def test_only_steps_that_both_kept(runs):
    text = beside(list(runs))
    assert re.findall(r"<label for=.at-\d+.>(\d+)<", text) == ["2"]
    assert re.findall(r"<label for=.at-\d+.>(\d+)<", beside([runs[0]] * 2)) == ["1", "2"]


def test_other_pairs_and_two_of_one_name_are_told(runs, tmp_path):
    copy = shutil.copytree(runs[1], tmp_path / "one")
    assert "other pairs" not in beside([runs[0], copy])
    assert f">{copy}</label>" in beside([runs[0], copy])
    file = copy / "rollouts/000002/g.json"
    told = json.loads(file.read_text())
    write_json(file, told | dict(prompts=[MARKUP] * len(told["prompts"])))
    text = beside([runs[0], copy])
    assert "The runs had other pairs" in text and "<script" not in text and "<img src=x" not in text


def test_on_the_command_line(runs, tmp_path, capsys):
    page = tmp_path / "both.html"
    assert not main(["compare", *map(str, runs), "--out", str(page)])
    assert page.read_text() == beside(list(runs)) and "drawn to" in capsys.readouterr().out
    bare = shutil.copytree(runs[0], tmp_path / "bare", ignore=shutil.ignore_patterns("rollouts"))
    nowhere = ["--out", str(tmp_path / "none.html")]
    assert main(["compare", str(runs[0]), str(bare), *nowhere])
    said = capsys.readouterr()
    assert "kept rollouts of no step in common" in said.err and "Traceback" not in said.err
    assert not said.out and sorted(p.name for p in tmp_path.iterdir()) == ["bare", "both.html"]


@pytest.fixture
def opened(runs, new_page, tmp_path):
    """The page of a run and of a copy with longer answers, as wide as is asked."""
    wordy = shutil.copytree(runs[0], tmp_path / "wordy")
    for file in wordy.glob("rollouts/*/u.json"):
        told = json.loads(file.read_text())
        write_json(file, told | dict(texts=[text + " and so on" * 60 for text in told["texts"]]))
    file = tmp_path / "both.html"
    file.write_text(beside([runs[0], wordy]), encoding="utf-8")

    def at(width):
        page = new_page(viewport=dict(width=width, height=800), offline=True)
        page.goto(file.as_uri())
        return page

    return at


def places(page, run):
    """Where a run's drawings and answers begin in the second step, if they are seen."""
    groups = page.locator(f"#step-2 .run-{run} .group:visible").all()
    return [group.bounding_box()["y"] for group in groups]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 768, 390])
def test_every_width_can_be_read(opened, width):
    page = opened(width)
    page.locator("#at-1").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#step-2").is_visible() and not page.locator("#step-1").is_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert min(page.evaluate(ALL).values()) >= 4.5


@pytest.mark.browser
def test_side_by_side_the_same_group_stands_at_one_height(opened):
    page = opened(1280)
    page.locator("label[for=at-2]").click()
    assert len(places(page, 1)) > 1 and places(page, 1) == places(page, 2)
    left, right = page.locator("#step-2 .run-1, #step-2 .run-2").all()[:2]
    boxes = left.bounding_box(), right.bounding_box()
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    names = [page.locator(f"label[for=run-{i}]").bounding_box()["x"] for i in (1, 2)]
    assert abs(names[1] - boxes[1]["x"]) < 8 and names[0] < names[1]
    assert not page.locator("[name=run]").first.is_visible()  # nothing to choose here


@pytest.mark.browser
def test_on_a_phone_a_tap_changes_the_run_and_nothing_else(opened):
    page = opened(390)
    page.locator("label[for=at-2]").click()
    page.mouse.wheel(0, 400)
    page.wait_for_function("scrollY === 400")
    first = places(page, 1)
    assert len(first) > 1 and not places(page, 2)
    page.locator("label[for=run-2]").click()
    assert places(page, 2) == first and not places(page, 1)
    assert page.evaluate("scrollY") == 400
    page.locator("label[for=at-1]").click()  # another step keeps the run
    assert page.locator("#step-1 .run-2 article:visible").count() > 0
    assert page.locator("#step-1 .run-1 article:visible").count() == 0
    page.locator("#run-2").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#step-1 .run-1 article:visible").count() > 0
