"""benchmarks/answers.py: answers by kind of picture, which together are what `evaluate` says."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pairuni_nb.ablate import sources
from pairuni_nb.evaluate import evaluate_u
from pairuni_nb.janus import load_janus
from pairuni_nb.rollout import JanusPolicy, Sampling
from pairuni_nb.settings import preset

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import answers  # noqa: E402

NANO = preset("nano")
BASE = replace(
    NANO, train=replace(NANO.train, eval_items=12), pair=replace(NANO.pair, n_u=20, n_g=1)
)


def lines_of(file):
    return list(csv.DictReader(file.open()))


@pytest.fixture
def made(tmp_path, monkeypatch):
    "The start, and a run that learned nothing, in questions of five at a time and three tries."
    monkeypatch.setattr(answers, "CHUNK", 5)
    monkeypatch.setattr(answers, "by_kind", few_tries)
    checkpoint = tmp_path / "reference,seed=3" / "checkpoint"
    model, processor = load_janus()
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    answers.answer_all(tmp_path, [3], tmp_path / "answers.csv", BASE)
    return tmp_path


by_kind = answers.by_kind


def few_tries(policy, records, seed):
    return by_kind(policy, records, seed, 3)


def test_kinds_together_are_the_whole_and_equal_models_answer_alike(made):
    lines = lines_of(made / "answers.csv")
    start, trained = ([r for r in lines if r["model"] == m] for m in answers.MODELS)
    assert [dict(r, model="") for r in start] == [dict(r, model="") for r in trained]
    u, _, held, _ = sources(BASE, 3)
    policy = JanusPolicy(*load_janus())
    for pictures, records in (("held out", held), ("trained on", u[:12])):
        own = [r for r in start if r["pictures"] == pictures]
        n = [int(r["questions"]) for r in own]
        right = sum(k * float(r["greedy"]) for k, r in zip(n, own))
        whole = evaluate_u(policy, records, Sampling(0.0), 3)["accuracy"][0]
        assert sum(n) == 12 and right / 12 == pytest.approx(whole, abs=1e-3)
        mean, best = ([float(r[key]) for r in own] for key in ("sampled", "reached"))
        assert all(m <= b for m, b in zip(mean, best)) and 0 < sum(mean) < sum(best)


def test_lines_that_are_there_are_not_made_again(made, monkeypatch, capsys):
    written = (made / "answers.csv").read_text()
    monkeypatch.setattr(answers, "load_checkpoint", None)
    answers.answer_all(made, [3], made / "answers.csv", BASE)
    assert (made / "answers.csv").read_text() == written
    monkeypatch.setitem(answers.MODELS, "other", "nowhere")
    answers.answer_all(made, [3], made / "answers.csv", BASE)
    assert "other of seed 3 left out" in capsys.readouterr().out
