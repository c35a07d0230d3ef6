"""Parts of the report by hand: groups, looks, drawings and steps as they are chosen and counted."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pairuni_nb.records import write_json
from pairuni_nb.report import (
    Group,
    Made,
    Rise,
    drawings_of,
    in_words,
    looked_at,
    rises,
    scores_of,
    steps_looked_at,
)


def made(reward, advantage, moved, count=1):
    return Made(reward, advantage, advantage, -1.0, -1.0 + moved, "x", None, count)


def test_a_group_counts_answers_as_often_as_they_were_given():
    rows = [made(1.0, 0.2, 0.1, 3), made(0.5, -0.1, 0.2, 1), made(0.0, -0.1, -0.4, 2)]
    group = Group("u", "what?", [], "a", None, rows)
    assert group.mean_move(1) == pytest.approx(0.1)
    assert group.mean_move(-1) == pytest.approx((0.2 - 2 * 0.4) / 3)
    assert group.moved.startswith("The update moved 5 of 6 rollouts")
    assert group.largest("reward") == 1 and group.largest("advantage") == 0.2
    assert Group("u", "what?", [], "a", None, [made(2.5, 0, 0)]).largest("reward") == 2.5


def test_drawings_that_changed_most_come_first(tmp_path):
    changes = ((0, 1), (100, 150), (1, 0), (9, 9))  # before, after; 0 - 1 is no 255
    for when, name in enumerate(("before", "after")):
        (tmp_path / "samples" / name).mkdir(parents=True)
        for i, greys in enumerate(changes):
            image = np.full((4, 4, 3), greys[when], np.uint8)
            Image.fromarray(image).save(tmp_path / "samples" / name / f"{i:03}.png")
    assert [prompt for prompt, *_ in drawings_of(tmp_path, list("abcd"))] == list("bacd")


def told_group(n, **more):
    "A look's file of n pairs with two rollouts each, as a run writes it."
    told = dict(pairs=[4 + i for i in range(n)], kinds=["aligned"] * n, similarity=[1.0] * n)
    told |= dict(prompts=[f"p{i}" for i in range(n)], weights=[1.0] * n, rewards=[[0.0, 1.0]] * n)
    told |= {name: [[0.5, -0.5]] * n for name in ("normalised", "advantages")}
    told |= {name: [[-1.0, -1.0]] * n for name in ("logp_before", "logp_after")}
    return told | dict(texts=["x"] * 2 * n, choices=[None] * n, answers=["a"] * n) | more


def test_a_look_is_read_by_the_numbers_of_its_pairs(tmp_path):
    for number, grey in (4, 40), (5, 50), (0, 0), (1, 10):
        image = Image.new("RGB", (4, 4), (grey,) * 3)
        image.save(tmp_path / f"u-{number:03}.png")
        image.save(tmp_path / f"g-{number:03}-1.png")
    write_json(tmp_path / "u.json", told_group(2, kinds=["aligned", "single"]))
    write_json(tmp_path / "g.json", told_group(1, pairs=[6], kinds=["single"]))
    pairs = looked_at(tmp_path)
    kinds = [(pair.kind, "".join(g.task for g in pair.groups)) for pair in pairs]
    assert kinds == [("aligned", "u"), ("single", "u"), ("single", "g")]  # one side or the other
    for pair, grey in zip(pairs, (40, 50)):
        shown = Image.open(BytesIO(b64decode(pair.groups[0].picture.data)))
        assert shown.getpixel((0, 0)) == (grey,) * 3
    # equal answers that were judged otherwise stay apart, the best advantage first
    assert [(x.reward, x.count) for x in pairs[0].groups[0].made] == [(0.0, 1), (1.0, 1)]


def test_twelve_steps_are_chosen_evenly(tmp_path):
    for step in range(1, 31):
        (tmp_path / "rollouts" / f"{step:06}").mkdir(parents=True)
    (tmp_path / "rollouts" / "000030 copy").mkdir()  # somebody's
    steps = steps_looked_at([tmp_path])
    assert len(steps) == 12 and (steps[0], steps[-1]) == (1, 30)
    assert steps == [round(1 + 29 * i / 11) for i in range(12)]


def test_a_fall_may_be_clear_and_a_zero_is_no_nothing():
    clear = [
        Rise("score", (0.5, 0), (0.4, 0), (d, 0.1), "scene", {}).clear for d in (-0.2, 0.05, 0.2)
    ]
    assert clear == [True, False, True]
    assert [in_words(value) for value in (0, False, "", None, {})] == ["0", "False", *["none"] * 3]


def test_a_score_that_too_few_items_have_is_none():
    after = {f"{name}_mean": 0.5 for name in ("accuracy", "score", "score/a")}
    after |= {f"{name}_ci": 0.1 for name in ("accuracy", "score", "score/a")}
    for missing in ("score", "score/a"):
        none = {f"{missing}_mean": None, f"{missing}_ci": None}
        told = [name for name in ("accuracy", "score", "score/a") if name != missing]
        for pair in ((after | none, after), (after, after | none)):
            assert [name for name, *_ in rises(*pair)] == told


def test_only_a_later_evaluation_of_a_run_on_its_way_is_of_a_quarter():
    lines = [
        dict(step=step, sec_eval=1.0, eval_score_mean=0.5, eval_score_ci=0.1) for step in (0, 5)
    ]
    told = [
        scores_of(lines[:n], "scene", {}, done)[1]
        for n, done in ((1, False), (2, False), (2, True))
    ]
    assert told == ["step 0", "step 5, a quarter of the items", "after"]
