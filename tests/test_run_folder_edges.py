"""A run folder by hand: what it refuses to go on with, what it writes down, which saves stay."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pairuni_nb.pairing import make_pairs
from pairuni_nb.records import write_json
from pairuni_nb.run_folder import (
    TOLD,
    begin_run,
    check_same,
    contact_sheet,
    first_of_each_kind,
    kept_if_measured,
    last_save,
    log_line,
    numbers,
    old_settings,
    read_drawings,
    read_metrics,
    save_best,
    save_samples,
    set_aside,
    without_cost,
)
from pairuni_nb.settings import TrainSettings
from pairuni_nb.world import records


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    "A run that has not made a step, and its pairs as lists."
    run = tmp_path_factory.mktemp("begun") / "run"
    pairs = make_pairs(records("u", 20, 0), records("g", 20, 0), clusters=4)[0]
    begin_run(run, pairs, TrainSettings(), dict(model=None))
    return run, {name: list(pairs[name]) for name in TOLD}


@pytest.mark.parametrize(
    "name", ["kind", "similarity", "u_id", "g_id", "question", "answer", "prompt"]
)
def test_a_run_goes_on_with_no_other_pairs(begun, name):
    run, pairs = begun
    check_same(run, TrainSettings(), None, pairs)
    last = pairs[name][-1]
    other = last + 1e-6 if name == "similarity" else f"{last}!"
    with pytest.raises(ValueError, match="its pairs are no longer those"):
        check_same(run, TrainSettings(), None, pairs | {name: [*pairs[name][:-1], other]})


def test_a_stop_before_the_first_measurement_leaves_what_can_go_on(tmp_path):
    (tmp_path / "run/pairs").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), kept_if_measured(tmp_path / "run"):
        raise KeyboardInterrupt
    assert (tmp_path / "run/pairs").exists()


@pytest.mark.parametrize("name", ["steps", "lr", "clip_eps_high"])
def test_true_is_no_number(name, tmp_path):
    write_json(tmp_path / "settings.json", {"model": None, name: True})
    with pytest.raises(ValueError, match=f"{name} is True, which is no"):
        old_settings(tmp_path)


def test_a_line_is_json_and_goes_to_the_trackers_with_its_step(tmp_path):
    told = []
    accelerator = SimpleNamespace(
        is_main_process=True, log=lambda metrics, step: told.append((step, metrics))
    )
    metrics = dict(a=0.5, b=math.nan, c=math.inf, d=-math.inf, e=None, sec_step=2.0, peak_gb=3.0)
    log_line(tmp_path, accelerator, 7, metrics)
    assert read_metrics(tmp_path) == [
        dict(step=7, a=0.5, b=None, c=None, d=None, e=None, sec_step=2.0, peak_gb=3.0)
    ]
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()
    assert told == [(7, metrics)]
    log_line(tmp_path, SimpleNamespace(is_main_process=False, log=lambda *_, **__: 0), 8, metrics)
    (line,) = without_cost(read_metrics(tmp_path))
    assert line.keys() == set("abcde") | {"step"}


def test_an_evaluation_keeps_its_first_items(tmp_path):
    asked = [dict(image=Image.new("RGB", (4, 4), (9 * i, 0, 0))) for i in range(5)]
    told = dict(images=np.zeros((5, 4, 4, 3), np.uint8), items={}, protocol={})
    told |= dict(prompts=list("abcde"), samples=list(range(5)))
    save_samples(tmp_path / "samples", "before", told, asked, n=3)
    kept = json.loads((tmp_path / "samples/before.json").read_text())
    assert (kept["prompts"], kept["answers"]) == (list("abc"), [0, 1, 2])
    assert len(read_drawings(tmp_path, "before")) == 3
    assert [image[0, 0, 0] for image in read_drawings(tmp_path, "asked")] == [0, 9, 18]


def test_the_first_of_each_kind_and_side_is_looked_at():
    told = [("aligned", "q", "p"), ("aligned", "q", "p"), ("single", "q", None)]
    told += [("retrieved", "q", "p"), ("single", None, "p"), ("single", None, "p")]
    rows = [dict(zip(("kind", "question", "prompt"), row)) for row in told]
    assert [rows.index(row) for row in first_of_each_kind(rows)] == [0, 2, 3, 4]


def test_numbers_keep_five_digits():
    x = torch.tensor([[1.234567, math.nan], [-0.00012345678, math.inf]])
    assert numbers(x) == [[1.2346, None], [-0.00012346, None]]


@pytest.mark.parametrize("n, cols, rows", [(8, 4, 2), (9, 4, 3), (3, 3, 1)])
def test_a_sheet_has_no_empty_row(n, cols, rows):
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((n, 6, 5, 3), np.uint8)
    sheet = np.asarray(contact_sheet(images, cols, scale=1))
    assert sheet.shape == (rows * 10, cols * 9, 3)
    seen = [sheet[10 * (i // cols) + 4, 9 * (i % cols) + 4, 0] for i in range(n)]
    assert seen == list(range(n))


def save(run, step):
    torch.save(dict(step=step), run / "state.pt")


@pytest.mark.parametrize("keep, left", [(1, []), (2, [5]), (3, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_as_many_saves_stay_as_are_asked_for(keep, left, tmp_path):
    for step in range(1, 7):
        set_aside(tmp_path, keep)
        save(tmp_path, step)
    assert sorted(int(p.stem[6:]) for p in tmp_path.glob("state-*.pt")) == left
    assert last_save(tmp_path).name == "state.pt"
    (tmp_path / "state.pt").unlink()
    newest = last_save(tmp_path)
    assert newest is None if not left else int(newest.stem[6:]) == left[-1]
    set_aside(tmp_path, 1)  # the setting was lowered: what it no longer asks for goes
    assert last_save(tmp_path) is None


def test_the_best_is_the_first_of_equal_means_of_both_tasks(tmp_path):
    policy = torch.nn.Linear(1, 1)
    scored = [(0.5, 0.3), (0.3, 0.5), (0.9, None), (0.6, 0.9), (None, None)]
    best = []
    for step, (u, g) in enumerate(scored):
        save_best(tmp_path, policy, step, dict(accuracy_mean=u, score_mean=g))
        kept = torch.load(tmp_path / "best.pt", weights_only=True)
        best.append((kept["step"], round(kept["score"], 6)))
    assert best == [(0, 0.4), (0, 0.4), (2, 0.9), (2, 0.9), (2, 0.9)]
