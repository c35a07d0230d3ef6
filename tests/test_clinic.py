"""The fault clinic: each patch is the fault that it is named for, and nothing stays patched."""

import inspect
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import pairuni_nb.pair_grpo
import pairuni_nb.rollout
import pairuni_nb.step
from hand_made import HandMade, pair, reward
from pairuni_nb.janus import load_janus
from pairuni_nb.rollout import JanusPolicy, Policy, Sampling, gap
from pairuni_nb.settings import TrainSettings
from pairuni_nb.step import roll_out_sides, train_step
from pairuni_nb.world import records
from test_rollout import DRAW, nano_policy, plain_score, rollouts

pytestmark = pytest.mark.long

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import clinic  # noqa: E402

FAULTS = [clinic.shift, clinic.temperature, clinic.top_k, clinic.weight_first, clinic.no_end]
FAULTS += [clinic.whole_batch, clinic.guided_over_w, clinic.no_ratio]
PARTS = (pairuni_nb.step, pairuni_nb.rollout, pairuni_nb.pair_grpo, Policy)
HALF = Sampling(cfg_weight=2.0, cfg_scoring="cond")  # as the main job draws and scores
PAIRS = [pair("retrieved", 0.25, 3, 0), pair("aligned", 1.0, 1, 1), pair("retrieved", 0.64, 0, 2)]
S = TrainSettings(rollouts=6, max_new_tokens=5, max_grad_norm=1e9)


def functions():
    "Everything a patch could reach."
    return {(part, name): value for part in PARTS for name, value in vars(part).items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_patch_changes_one_thing_and_leaves_nothing_behind(fault):
    before = functions()
    with fault():
        within = functions()
        changed = [name for name in before if within[name] is not before[name]]
        assert len(changed) == 1 and within.keys() == before.keys()
    assert functions() == before
    with pytest.raises(ZeroDivisionError), fault():
        1 / 0
    assert functions() == before


def test_every_fault_is_run_and_every_row_has_its_healthy_one():
    run = {fault for faults, _ in clinic.ROWS.values() for fault in faults}
    assert run == set(FAULTS)
    for row, (faults, changes) in clinic.ROWS.items():
        healthy = clinic.healthy_of(row)
        assert clinic.ROWS[healthy] == ((), changes)
        assert faults or row == healthy
        assert inspect.getdoc(faults[0]) if faults else True


@torch.no_grad()
def test_shift_scores_a_token_by_the_state_that_has_read_it():
    for task in "ug":
        r, policy = rollouts(task, HALF), nano_policy()
        right = policy(r)
        with clinic.shift():
            shifted = policy(r)
        # plain_score takes the states before each token: ask it for the next token's, of this one
        later = replace(r, tokens=torch.cat([r.tokens, r.tokens[:, -1:]], 1))
        later = replace(later, mask=torch.ones_like(later.tokens, dtype=torch.bool))
        states = {}

        def head(name, x, *args):
            states[name] = x
            return whole(name, x, *args)

        whole, policy.head = policy.head, head
        try:
            plain_score(policy, later)
        finally:
            del policy.head
        logits = whole(task, states[task][:, 1:])  # behind each token
        want = logits.log_softmax(-1).gather(-1, r.tokens[..., None])[..., 0] * r.mask
        torch.testing.assert_close(shifted, want, atol=1e-4, rtol=0)
        assert (shifted - right).abs().max() > 0.1
        assert gap(r, policy(r)) < 1e-4


@torch.no_grad()
def test_temperature_scores_at_0_9_what_was_drawn_at_1():
    for task in "ug":
        r, policy = rollouts(task, HALF), nano_policy()
        with clinic.temperature():
            scored = policy(r)
        logp = (policy.logits(r) / 0.9).log_softmax(-1)
        want = logp.gather(-1, r.tokens[..., None])[..., 0] * r.mask
        torch.testing.assert_close(scored, want, atol=1e-4, rtol=0)
        assert (scored - policy(r)).abs().max() > 0.01


@torch.no_grad()
def test_guided_over_w_is_the_formula_of_public_code():
    "cond - (w - 1) / w uncond (Janus-Pro-R1); answers are scored as ever."
    policy, w = nano_policy(), 2.0
    r = rollouts("g", HALF)
    cond = policy.logits(replace(r, sampling=Sampling(cfg_weight=1.0)))
    uncond = policy.logits(replace(r, sampling=Sampling(cfg_weight=0.0, cfg_scoring="guided")))
    logp = (cond - (w - 1) / w * uncond).log_softmax(-1)
    with clinic.guided_over_w():
        scored = policy(r)
        answers = policy(rollouts("u", HALF))
    want = logp.gather(-1, r.tokens[..., None])[..., 0]
    torch.testing.assert_close(scored, want, atol=1e-4, rtol=0)
    torch.testing.assert_close(answers, policy(rollouts("u", HALF)))


@torch.no_grad()
def test_top_k_draws_from_the_likeliest_and_scores_all():
    policy, ids = nano_policy(), [0, 1, 2]
    truths = [dict(prompt=prompt) for prompt in DRAW]
    s = TrainSettings(rollouts=8, cfg_weight=2.0, cfg_scoring="cond")
    rolled = {}
    with clinic.top_k():
        rolled[True], *_ = pairuni_nb.step.roll_out(policy, truths, "g", ids, 0, s)
    rolled[False], *_ = pairuni_nb.step.roll_out(policy, truths, "g", ids, 0, s)
    for cut, r in rolled.items():
        guided = replace(r, sampling=replace(r.sampling, cfg_scoring="guided"))
        logits = policy.logits(guided)
        rank = (logits > logits.gather(-1, r.tokens[..., None])).sum(-1)
        assert (rank.max() < clinic.TOP_K) == cut and rank.max() > 0
        assert gap(r, policy(r)) < 1e-4  # the record is of the whole softmax, and so is the score
        drawn = logits.log_softmax(-1).gather(-1, r.tokens[..., None])[..., 0]
        torch.testing.assert_close(r.sample_logp, drawn, atol=1e-4, rtol=0)


@torch.no_grad()
def test_one_batch_of_truncated_drawings_is_too_little_surprised():
    "What would tell top k, and needs the whole distribution: 11_rollout's surprise."
    policy = JanusPolicy(*load_janus())
    truths = [dict(prompt=r["prompt"]) for r in records("g", 8, 9)]
    s = replace(clinic.JOB, seed=9)
    z = {}
    for name, fault in dict(healthy=nullcontext, sick=clinic.top_k).items():
        with fault():
            r, *_ = pairuni_nb.step.roll_out(policy, truths, "g", list(range(8)), 0, s)
        logp = policy.logits(replace(r, sampling=replace(r.sampling, cfg_scoring="guided")))
        logp = logp.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        off = -r.sample_logp - entropy
        z[name] = (off.mean() / (off.std() / off.numel() ** 0.5)).item()
    assert abs(z["healthy"]) < 3 and z["sick"] < -8, z


def sides_of(*faults, s=S):
    "Both sides of a step of three pairs, rewards and weights known by hand."
    judges = {task: reward(task) for task in "ug"}
    patches = [fault() for fault in faults]
    for one in patches:
        one.start()
    try:
        return roll_out_sides(HandMade(), PAIRS, [0, 1, 2], 0, s, judges)[0]
    finally:
        for one in patches:
            one.stop()


def by_hand(values):
    "A group's rewards minus their mean, over their spread; missing ones count for nothing."
    there = [v for v in values if v == v]
    mean = sum(there) / len(there)
    spread = (sum((v - mean) ** 2 for v in there) / (len(there) - 1)) ** 0.5
    return [(v - mean) / (spread + 1e-4) if v == v and spread else 0.0 for v in values]


def test_weight_first_leaves_no_weight():
    for task, side in sides_of(clinic.weight_first).items():
        weights = torch.tensor([0.5, 1.0, 0.8])
        right = torch.tensor([by_hand(row) for row in side.rewards.tolist()])
        healthy = sides_of()[task].advantages.view(3, -1)
        torch.testing.assert_close(healthy, right * weights[:, None])
        torch.testing.assert_close(side.advantages.view(3, -1), right, atol=5e-3, rtol=0)
        assert (healthy[0] - right[0]).abs().max() > 0.2


def test_whole_batch_takes_one_mean_and_one_spread():
    for task, side in sides_of(clinic.whole_batch).items():
        values = side.rewards.flatten().tolist()
        want = torch.tensor(by_hand(values)).view(3, -1) * torch.tensor([[0.5], [1.0], [0.8]])
        torch.testing.assert_close(side.advantages.view(3, -1), want)
        assert (side.advantages - sides_of()[task].advantages).abs().max() > 0.1


def test_no_end_leaves_out_the_token_that_ends_an_answer_and_no_other():
    healthy, sick = sides_of(), sides_of(clinic.no_end)
    r, cut = healthy["u"].rollouts, sick["u"].rollouts
    missing = r.mask & ~cut.mask
    assert torch.equal(missing, r.mask & (r.tokens == 1))  # 1 ends an answer
    assert missing.any() and not r.ended.all()
    assert not (cut.mask & ~r.mask).any()
    assert torch.equal(healthy["g"].rollouts.mask, sick["g"].rollouts.mask)


def moved(*faults, **settings):
    "What a step leaves: its metrics and weights."
    policy, s = HandMade(), replace(S, **settings)
    opt = torch.optim.SGD(policy.parameters(), lr=0.5)
    judges = {task: reward(task) for task in "ug"}
    patches = [fault() for fault in faults]
    for one in patches:
        one.start()
    try:
        told, _ = train_step(policy, opt, PAIRS, [0, 1, 2], 0, s, judges, Accelerator(cpu=True))
    finally:
        for one in patches:
            one.stop()
    return told, policy


def test_no_ratio_is_plain_policy_gradient_however_often():
    told, policy = moved(clinic.no_ratio, num_iterations=3)
    for task in "ug":
        for name in ("max", "mean"):
            assert told[f"ratio_{name}_{task}"] == pytest.approx(1, abs=1e-6)
        assert told[f"clip_low_{task}"] == told[f"clip_high_{task}"] == 0
    healthy, right = moved(num_iterations=3)
    assert healthy["ratio_max_u"] > 1.2 and healthy["clip_high_u"] > 0
    # the same three steps with the score alone: no ratio, no clip
    plain = HandMade()
    opt = torch.optim.SGD(plain.parameters(), lr=0.5)
    sides = sides_of()
    for _ in range(3):
        opt.zero_grad()
        for side in sides.values():
            r = side.rollouts
            each = (plain(r) * side.advantages[:, None] * r.mask).sum(1) / r.mask.sum(1)
            (-each.mean()).backward()
        opt.step()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(policy.get_parameter(name), p)
    assert not torch.allclose(right.said, plain.said)


def test_first_outside_is_the_first_step_beyond_the_range_and_half_of_it():
    lines = [dict(step=n, x=x) for n, x in enumerate((2.0, 2.4, 2.6, 1.0), 1)]
    lines.insert(1, dict(step=9))  # a step that does not tell it
    assert clinic.first_outside(lines, "x", 1.0, 2.0) == 3
    assert clinic.first_outside(lines, "x", 1.6, 2.6) == 4
    assert clinic.first_outside(lines, "x", 1.0, 2.6) == 0
    assert clinic.first_outside([dict(step=1, x=float("nan"))], "x", 0.0, 1.0) == 1
    clips = [dict(step=1, clip_low_u=0.2, clip_high_u=0.1)]
    assert clinic.figure(clips[0], "clip_u") == pytest.approx(0.3)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    "A clinic of two steps, sixty records a side and four held-out items."
    job = replace(clinic.JOB, steps=2, pairs_per_step=2, rollouts=3, eval_items=4)
    pair = replace(clinic.BASE.pair, n_u=60, n_g=60)
    parts = dict(JOB=job, BASE=replace(clinic.BASE, pair=pair), RANGE_SEEDS=dict(healthy=(9,)))
    parts |= dict(CSV=tmp_path / "a.csv", RANGE=tmp_path / "b.csv", RUNS=tmp_path / "runs")
    for name, value in parts.items():
        monkeypatch.setattr(clinic, name, value)
    yield tmp_path
    for kept in (clinic.given, clinic.start):
        kept.cache_clear()


def test_a_finished_table_is_not_run_again_and_a_lost_row_comes_back_the_same(tiny, monkeypatch):
    for kept in (clinic.given, clinic.start):
        kept.cache_clear()
    clinic.run_all(["healthy", "temperature"], [3])
    rows, ranges = clinic.read(clinic.CSV), clinic.RANGE.read_text()
    assert [r["row"] for r in rows] == ["healthy", "temperature"]
    assert rows[1]["first_gap_u"] == rows[1]["first_gap_g"] == "1"
    assert rows[0]["accuracy_before"] == rows[1]["accuracy_before"]
    assert {r["row"] for r in clinic.read(clinic.RANGE)} == {"healthy"}
    with monkeypatch.context() as m:
        m.setattr(clinic, "train", lambda *a, **k: 1 / 0)
        clinic.run_all(["healthy", "temperature"], [3])
    assert clinic.read(clinic.CSV) == rows
    clinic.CSV.write_text("".join(clinic.CSV.read_text().splitlines(True)[:2]))
    shutil.rmtree(clinic.folder_of("temperature", 3))
    clinic.run_all(["healthy", "temperature"], [3])
    again = clinic.read(clinic.CSV)
    for row in (*rows, *again):
        row.pop("cpu_seconds")
    assert again == rows and clinic.RANGE.read_text() == ranges


def test_the_committed_table_is_what_a_first_step_tells(monkeypatch, tmp_path):
    "One step of one row: what left its range at once does so again, and nothing else."
    row, seed = "temperature", 0
    (kept,) = [r for r in clinic.read(clinic.CSV) if (r["row"], r["seed"]) == (row, str(seed))]
    job = replace(clinic.JOB, steps=1)
    lines, failed = clinic.steps_of(row, seed, tmp_path / "run", job)
    found = clinic.usual(clinic.healthy_of(row), clinic.read(clinic.RANGE))
    assert not failed
    for name in clinic.FIGURES:
        told = clinic.first_outside(lines, name, *found[name])
        assert (told == 1) == (kept[f"first_{name}"] == "1"), name
