"""A look into a step shows what the step did, and changes nothing of it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import pairuni_nb.train
from pairuni_nb.diffusion import load_checkpoint, policy_for
from pairuni_nb.janus import load_janus
from pairuni_nb.pair_grpo import group_advantage, pair_weight
from pairuni_nb.pairing import make_pairs
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.rollout import JanusPolicy
from pairuni_nb.run_folder import Watch, first_of_each_kind, read_metrics, without_cost
from pairuni_nb.settings import TrainSettings
from pairuni_nb.step import roll_out_sides, update
from pairuni_nb.train import train, watch_of
from pairuni_nb.world import records

S = TrainSettings(steps=3, pairs_per_step=6, rollouts=4, eval_items=4, eval_every=9, micro_batch=5)
PLAIN = SimpleNamespace(
    backward=torch.Tensor.backward, clip_grad_norm_=torch.nn.utils.clip_grad_norm_
)


def toy_pairs(**settings):
    return make_pairs(records("u", 60, 0), records("g", 60, 0), clusters=12, **settings)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A run with its looks, the same run without any, and what its steps held."
    tmp, kept = tmp_path_factory.mktemp("looks"), {}

    def keep(step, metrics, sides):
        kept[step] = sides

    train(toy_pairs(), tmp / "run", S, device="cpu", callback=keep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairuni_nb.train, "watch_of", lambda *_: None)
        train(toy_pairs(), tmp / "blind", S, device="cpu")
    return tmp, kept


def told(run, step, task):
    return json.loads((run / "rollouts" / f"{step:06}" / f"{task}.json").read_text())


def test_looking_changes_no_number(made):
    tmp, _ = made
    runs = [without_cost(read_metrics(tmp / name)) for name in ("run", "blind")]
    assert runs[0] == runs[1]
    assert not (tmp / "blind/rollouts").exists()
    a, b = (load_janus(tmp / name / "checkpoint")[0] for name in ("run", "blind"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize("step", [1, 3])
def test_a_look_holds_what_the_step_held(made, step):
    tmp, kept = made
    assert sorted(p.name for p in (tmp / "run/rollouts").iterdir()) == ["000001", "000003"]
    for task, side in kept[step].items():
        look, K = told(tmp / "run", step, task), S.rollouts
        kinds = [pair["kind"] for pair in side.pairs]
        groups = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        assert look["pairs"] == list(range(len(groups))) and len(groups) == 2
        for i, group in enumerate(groups):
            pair, rows = side.pairs[group], range(group * K, group * K + K)
            A = group_advantage(side.rewards[group][None])[0]
            w = pair_weight([pair["similarity"]], [pair["kind"] == "aligned"], "sqrt")
            assert look["rewards"][i] == pytest.approx(side.rewards[group].tolist(), rel=1e-4)
            assert look["normalised"][i] == pytest.approx(A.tolist(), rel=1e-4)
            assert look["advantages"][i] == pytest.approx((w * A).tolist(), rel=1e-4)
            assert look["kinds"][i] == pair["kind"] and look["similarity"][i] == pair["similarity"]
            place = tmp / "run/rollouts" / f"{step:06}"
            shown = np.asarray(Image.open(place / f"{task}-{i:03}.png"))
            assert np.array_equal(shown, np.asarray(pair[f"{task}_image"].convert("RGB")))
            for k, row in enumerate(rows):
                if task == "u":
                    assert look["texts"][i * K + k] == side.outputs[row]
                else:
                    drawn = np.asarray(Image.open(place / f"g-{i:03}-{k}.png"))
                    apart = np.abs(drawn.astype(int) - side.outputs[row])  # decoded once more
                    assert apart.max() <= 1
                tokens = side.rollouts.mask[row].sum()
                mean = (side.rollouts.logp[row].sum() / tokens).item()  # as the sampler recorded it
                assert look["logp_before"][i][k] == pytest.approx(mean, abs=2e-5)


def test_log_probs_follow_a_large_step(tmp_path):
    """One group, plain descent: what has an advantage becomes likelier, and its opposite less likely."""
    policy, row = JanusPolicy(*load_janus()), toy_pairs()[0]
    rewards = dict(u=answer_accuracy, g=scene_reward)
    s = replace(S, rollouts=8, sides="g")
    sides, _ = roll_out_sides(policy, [row], [0], 0, s, rewards)
    watch = Watch(policy, [row], 3)
    watch.before(sides)
    update(policy, torch.optim.SGD(policy.parameters(), lr=0.01), sides, s, PLAIN)
    watch.save(tmp_path / "look", sides)
    look = json.loads((tmp_path / "look/g.json").read_text())
    moved = np.subtract(look["logp_after"], look["logp_before"])[0]
    with torch.no_grad():
        now = policy(sides["g"].rollouts).mean(1)
    assert look["logp_after"][0] == pytest.approx(now.tolist(), abs=2e-5)
    assert np.corrcoef(moved, look["advantages"][0])[0, 1] > 0.8
    assert not list(tmp_path.rglob(".*"))


def test_a_whole_step_is_kept_where_the_setting_asks():
    s = replace(S, rollouts_every=4, steps=9, eval_every=3)
    rows = [toy_pairs()[i] for i in range(6)]
    watched = [watch_of(None, rows, done, s) for done in range(1, 10)]
    pairs = [len(watch.watched) if watch else 0 for watch in watched]
    few = len(first_of_each_kind(rows))
    assert pairs == [few, 0, few, 6, 0, few, 0, 6, few] and few < 6


def test_pairs_that_lack_a_side_are_looked_at_too(tmp_path):
    pairs = make_pairs(records("u", 40, 0), records("g", 40, 0), mix="unpaired")[0]
    train(pairs, tmp_path / "run", replace(S, steps=1), device="cpu")
    u, g = (told(tmp_path / "run", 1, task) for task in "ug")
    assert u["kinds"] == g["kinds"] == ["single"] and {*u["pairs"], *g["pairs"]} == {0, 1}
    names = {p.name for p in (tmp_path / "run/rollouts/000001").glob("*.png")}
    assert names == {f"u-{u['pairs'][0]:03}.png", f"g-{g['pairs'][0]:03}.png"} | {
        f"g-{g['pairs'][0]:03}-{k}.png" for k in range(4)
    }


@pytest.mark.parametrize("model, own", [("nano-emu3", {}), (None, dict(precision="bf16"))])
def test_every_family_and_precision_can_be_looked_at(model, own, tmp_path):
    s = replace(S, steps=1, pairs_per_step=2, rollouts=2, mask_truncated=True, **own)
    policy = policy_for(*load_checkpoint(model, "cpu", torch.float32), s.precision)
    rows = [toy_pairs()[i] for i in (0, -1)]
    rewards = dict(u=answer_accuracy, g=scene_reward)
    sides, _ = roll_out_sides(policy, rows, [0, 1], 0, s, rewards)
    sides["u"].rollouts.mask[0] = False  # an answer that was cut off and counts for nothing
    watch = Watch(policy, rows, 3)
    watch.before(sides)
    watch.save(tmp_path / "look", sides)
    for task in "ug":
        look = json.loads((tmp_path / "look" / f"{task}.json").read_text())
        assert look["logp_before"] == look["logp_after"]  # no update, no change, in bf16 neither
        assert (look["logp_before"][0][0] is None) == (task == "u")
        assert all(x < 0 for group in look["logp_before"] for x in group if x is not None)


def test_a_look_shows_the_advantage_that_the_loss_took(tmp_path):
    "Not GRPO's where the settings ask for another, and nothing breaks where a weight is 0."
    changes = dict(advantage="best", weighting="reward", steps=1)
    train(toy_pairs(), tmp_path / "run", replace(S, **changes), device="cpu")
    for task in "ug":
        look = told(tmp_path / "run", 1, task)
        for r, a, w, wa in zip(
            *(look[k] for k in ("rewards", "normalised", "weights", "advantages"))
        ):
            best = [float(x == max(r) and max(r) > min(r)) for x in r]
            assert a == pytest.approx([b * (w > 0) for b in best], rel=1e-4)
            assert wa == pytest.approx([w * b for b in best], rel=1e-4)
