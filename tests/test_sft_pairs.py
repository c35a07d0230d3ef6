"""Supervised training on pairs: what is learned from a pair, and that its control deals only partners."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pairuni_nb.diffusion import load_checkpoint, policy_for
from pairuni_nb.evaluate import interval
from pairuni_nb.janus import IMAGE_BLOCK, image_loss, text_loss, to_pixels, user_turn
from pairuni_nb.world import question_text, records

pytestmark = pytest.mark.long

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import sft_pairs as benchmark  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def few_records():
    "Pairs of 60 records a side are enough here."
    whole, benchmark.rows_of = benchmark.rows_of, benchmark.rows_of.__wrapped__
    benchmark.records = lambda side, n, *a: records(side, min(n, 60), *a)
    yield
    benchmark.rows_of, benchmark.records = whole, records


def test_dealt_pairs_are_the_same_items_beside_others():
    own, dealt = (benchmark.pairs_of(data, 3, 20) for data in ("pairs", "dealt"))
    for names in (("u_id", "question", "answer", "u_scene"), ("g_id", "prompt", "g_scene")):
        told = [Counter(tuple(row[n] for n in names) for row in rows) for rows in (own, dealt)]
        assert told[0] == told[1]
    pictures = [{(row["u_id"], row["g_id"]) for row in rows} for rows in (own, dealt)]
    assert not pictures[0] & pictures[1]
    for row in dealt:  # a prompt stays with its picture
        (whole,) = {r["g_scene"] for r in own if r["prompt"] == row["prompt"]}
        assert whole == row["g_scene"]


def test_too_few_pairs_are_said():
    with pytest.raises(SystemExit, match="seed 3 makes .* pairs of random, not 1000"):
        benchmark.pairs_of("random", 3, 1000)


def test_an_answer_is_learned_with_what_its_own_picture_shows():
    rows = benchmark.pairs_of("pairs", 4, 30)
    for row in rows:
        told = benchmark.thought(row)
        assert told.endswith(f"</think><answer>{row['answer']}</answer>")
        assert told.split("</think>")[0].endswith(f": {row['answer']}")


def test_janus_learns_what_its_own_warm_start_teaches(monkeypatch):
    "The same numbers as `text_loss` and `image_loss`, written for Janus alone."
    monkeypatch.setattr(benchmark, "HIDDEN", 0.5)
    policy = policy_for(*load_checkpoint("janus-nano"))
    rows = benchmark.pairs_of("pairs", 5, 6)
    codes, tok = benchmark.codes_of(policy, rows), policy.processor.tokenizer
    with torch.no_grad():
        told = benchmark.losses_of(policy, rows, codes, np.random.default_rng(1))
        texts = [IMAGE_BLOCK + question_text(row["question"], row["choices"]) for row in rows]
        pixels = to_pixels(np.stack([np.asarray(row["u_image"]) for row in rows]))
        thoughts = [benchmark.thought(row) for row in rows]
        u = text_loss(policy.model, tok, [user_turn(text) for text in texts], thoughts, pixels)
        hidden = (np.random.default_rng(1).random(6) < 0.5).tolist()
        assert any(hidden) and not all(hidden)
        g = image_loss(policy.model, tok, [row["prompt"] for row in rows], codes, hidden)
    torch.testing.assert_close(told["u"], u, atol=1e-4, rtol=0)
    torch.testing.assert_close(told["g"], g, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", benchmark.NAMES)
def test_every_family_learns_both_sides_and_keeps_its_codes(name, monkeypatch):
    monkeypatch.setattr(benchmark, "BATCH", 4)
    policy = policy_for(*load_checkpoint(name))
    rows = benchmark.pairs_of("pairs", 5, 4)
    codes = benchmark.codes_of(policy, rows)
    kept = {k: v.clone() for k, v in policy.model.model.vqmodel.state_dict().items()}

    def now():
        with torch.no_grad():
            told = benchmark.losses_of(policy, rows, codes, np.random.default_rng(2))
        return {task: loss.item() for task, loss in told.items()}

    before = now()
    benchmark.fine_tune(policy, rows * 12, 0, 3e-4)
    after = now()
    assert after["u"] < before["u"] and after["g"] < before["g"], (before, after)
    for key, value in policy.model.model.vqmodel.state_dict().items():
        assert torch.equal(value, kept[key]), key


def test_the_table_pairs_seeds():
    rows = []
    for data, after in (("pairs", (0.5, 0.7)), ("random", (0.4, 0.5))):
        for seed, x in enumerate(after):
            sides = dict(accuracy_before=0.4, accuracy_after=x, score_before=0, score_after=0)
            rows.append(dict(model="janus-nano", data=data, seed=seed) | sides)
    told = [line for line in benchmark.lines_of(rows) if "answers | random" in line][0]
    mean, half = interval([10, 20])  # points of each seed, pairs above random
    assert f"| {mean:+.1f} ± {half:.1f} |" in told
    assert "| +5.0 ± 63.5 |" in told  # 0 and 10 points, t of one degree of freedom 12.7
