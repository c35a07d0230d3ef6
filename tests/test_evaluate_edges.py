"""What held-out scores do with few items, odd rewards and a memory budget."""

import json
import tracemalloc

import numpy as np
import pytest
from scipy.spatial import cKDTree

from pairuni_nb.evaluate import (
    evaluate,
    evaluate_g,
    markdown_table,
    mean_ci,
    near_copies,
    same_pictures,
)
from pairuni_nb.janus import load_janus
from pairuni_nb.rollout import JanusPolicy, Sampling
from pairuni_nb.world import records

S = Sampling(1.0, 1.0, "guided", 4)


@pytest.fixture(scope="module")
def policy():
    return JanusPolicy(*load_janus())


@pytest.mark.parametrize("values", [[], [0.5], [0.5, None, float("nan")]])
def test_fewer_than_two_scores_have_no_figure(values):
    assert mean_ci(values) == (None, None)


def test_a_table_keeps_its_columns_whatever_a_cell_says():
    told = markdown_table(["", "a|b"], [[1, "two\n  lines"], ["", None]]).splitlines()
    assert told == ["|  | a\\|b |", "|---|---|", "| 1 | two lines |", "|  | None |"]


def test_figures_are_strict_json(policy):
    figures = evaluate(policy, records("u", 1, 0), records("g", 1, 0), S)["figures"]
    assert (
        figures["accuracy_mean"] is None
        and figures["score_ci"] is None
        and json.dumps(figures, allow_nan=False)
    )


def test_a_reward_of_the_wrong_length_is_named(policy):
    with pytest.raises(ValueError, match="3 values for 2 rollouts"):
        evaluate_g(policy, records("g", 2, 0), S, reward=lambda *_: [1.0, 2.0, 3.0])


def test_a_missing_score_is_not_counted_and_full_marks_are_the_scenes(policy):
    rows = records("g", 3, 0)
    own = evaluate_g(policy, rows, S, reward=lambda *_: np.array([20.0, 22.0, np.nan]))
    assert own["score"][0] == 21 and "full" not in own and "full" in evaluate_g(policy, rows, S)


def test_the_memory_budget_reaches_the_sampler(policy, monkeypatch):
    real, seen = JanusPolicy.sample, []
    monkeypatch.setattr(
        JanusPolicy, "sample", lambda *a, gb=8.0, **kw: (seen.append(gb), real(*a, gb=gb, **kw))[1]
    )
    evaluate(policy, records("u", 2, 0), records("g", 2, 0), S, gb=0.5)
    assert seen == [0.5, 0.5]


def near(a, b):
    "The rule for two thumbnails, written out."
    apart = np.sqrt(np.mean((a - b) ** 2))
    return apart <= 2 + 0.06 * min(a.std(), b.std())


@pytest.mark.parametrize("step", (1, 7, 256))
def test_near_copies_are_those_of_every_pair_compared(step):
    rng = np.random.default_rng(0)
    looks = 255 - rng.uniform(0, 255, (20, 192)) * rng.uniform(0.01, 1, (20, 1))
    looks = np.concatenate([looks, looks + 3 * rng.normal(0, 1, looks.shape), looks[:5] + 0.1])
    looks = looks.clip(0, 255).astype(np.float32)
    found = {
        tuple(sorted(p)) for p in zip(*near_copies(cKDTree(looks), 2 + 0.06 * looks.std(1), step))
    }
    n = range(len(looks))
    assert found == {(i, j) for i in n for j in n if i < j and near(looks[i], looks[j])}
    assert 5 < len(found) < 60


def test_a_picture_alone_and_pictures_alike_need_no_pair():
    assert same_pictures(np.full((1, 192), 5, np.float32)).tolist() == [0]
    assert len(set(same_pictures(np.full((9, 192), 5, np.float32)))) == 1


def test_drawings_near_to_white_are_not_all_compared_with_each_other():
    rng = np.random.default_rng(0)
    thumbs = 255 - rng.uniform(0, 12, (1500, 192)).astype(np.float32)  # thin lines on paper
    thumbs[0] = rng.choice([0, 255], 192)  # and one picture of much contrast
    tracemalloc.start()
    try:
        assert len(set(same_pictures(thumbs))) == 1500
        assert tracemalloc.get_traced_memory()[1] < 50e6  # all pairs at once: 860 MB
    finally:
        tracemalloc.stop()
