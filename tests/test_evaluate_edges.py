"""What held-out scores do with few items, odd rewards and a memory budget."""

import json

import numpy as np
import pytest

from pairuni_nb.evaluate import evaluate, evaluate_g, mean_ci
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
