"""A run does what its settings say, and nothing that is held out comes in by any door."""

import copy
import inspect
import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

import pairuni_nb.train
from hand_made import g_record, pair, u_record
from pairuni_nb.cli import main
from pairuni_nb.evaluate import evaluate, held_out, mean_ci, split_pairs
from pairuni_nb.jobs import Evaluate, Model, Pair, Train, build_pairs, held_of, pairs_of
from pairuni_nb.janus import load_janus
from pairuni_nb.pairing import as_dataset, load_pairs, make_pairs, save_pairs
from pairuni_nb.prepare import prepare
from pairuni_nb.report import rises
from pairuni_nb.rewards import answer_accuracy, graded_accuracy, scene_reward
from pairuni_nb.rollout import FORM_WANTED, JanusPolicy, Sampling, noise
from pairuni_nb.run_folder import digest, old_settings, read_metrics
from pairuni_nb.settings import PairSettings, TrainSettings
from pairuni_nb.step import rows_of_step, train_step
from pairuni_nb.train import default_rewards, learning_rate, train
from pairuni_nb.world import Scene, caption, records, split_of

# every setting but those of the hardware, unlike its default
S = TrainSettings(
    weighting="linear",
    steps=3,
    pairs_per_step=3,
    rollouts=2,
    lr=3e-4,
    warmup=2,
    clip_eps=0.1,
    clip_eps_high=0.3,
    num_iterations=2,
    micro_batch=4,
    loss_type="dapo",
    beta=0.05,
    max_grad_norm=0.5,
    temperature=0.9,
    cfg_weight=3.0,
    cfg_scoring="cond",
    max_new_tokens=14,
    instruction="form",
    plain_reward=0.5,
    mask_truncated=True,
    importance_cap=2.0,
    combine="balance",
    agreement_every=1,
    eval_every=2,
    eval_items=8,
    rollouts_every=2,
    save_every=1,
    keep=2,
    gradient_checkpointing=True,
    rollout_gb=4.0,
    seed=3,
)


def toy_pairs():
    return make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=6)[0]


def real_pairs():
    "Sixty pairs without scenes; every text and picture says which record it is of."
    rows = [pair("retrieved", 0.5, i, i) for i in range(50)]
    rows += [pair("retrieved", 0.5, i, 50 + i) for i in range(10)]  # ten questions come twice
    return as_dataset(rows)


# what a run does, written down


@contextmanager
def written_down():
    "Lists of what a run gives to its steps and evaluations, to the sampler and to a tracker."
    seen = SimpleNamespace(steps=[], evals=[], sampled=[], logged=[], saved=[])
    step, evaluate, save = (
        getattr(pairuni_nb.train, name) for name in ("train_step", "evaluate", "save_state")
    )
    sample, log = JanusPolicy.sample, Accelerator.log

    def given(function, args, kwargs):
        return dict(inspect.signature(function).bind(*args, **kwargs).arguments)

    def a_step(*args, **kwargs):
        call = given(step, args, kwargs)
        seen.steps.append(call | dict(lr={group["lr"] for group in call["opt"].param_groups}))
        return step(*args, **kwargs)

    def an_evaluation(*args, **kwargs):
        call = given(evaluate, args, kwargs)
        seen.evals.append(call)
        call["result"] = evaluate(*args, **kwargs)
        return call["result"]

    def a_save(*args, **kwargs):
        call = given(save, args, kwargs)
        seen.saved.append((call["step"], call["keep"]))
        return save(*args, **kwargs)

    def a_sample(*args, **kwargs):
        call = given(sample, args, kwargs)
        seen.sampled.append((call["sampling"], call.get("gb")))
        return sample(*args, **kwargs)

    def a_line(self, values, step=None, *args, **kwargs):
        seen.logged.append((step, set(values)))
        return log(self, values, step, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairuni_nb.train, "train_step", a_step)
        patch.setattr(pairuni_nb.train, "evaluate", an_evaluation)
        patch.setattr(pairuni_nb.train, "save_state", a_save)
        patch.setattr(JanusPolicy, "sample", a_sample)
        patch.setattr(Accelerator, "log", a_line)
        yield seen


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "A run on toy pairs: its pairs, its folder, what it returned and what it did."
    out, pairs = tmp_path_factory.mktemp("toy") / "run", toy_pairs()
    with written_down() as seen:
        result = train(pairs, out, S, device="cpu")
    return SimpleNamespace(pairs=pairs, out=out, result=result, seen=seen)


# settings written = settings used


def test_settings_are_written_and_used(toy):
    written = json.loads((toy.out / "settings.json").read_text())
    assert {name: written[name] for name in asdict(S)} == asdict(S)
    assert (written["model"], written["reward"], written["own_held"]) == (None, "", False)
    assert (written["own_rewards"], written["pairs_sha256"]) == ({}, digest(toy.out / "pairs"))
    assert written["pairs"] == len(toy.pairs) == len(load_pairs(toy.out / "pairs"))
    assert old_settings(toy.out)[0] == S
    assert all(call["s"] == S for call in toy.seen.steps)
    right, judge = toy.pairs[0], toy.seen.steps[0]["rewards"]["u"]
    assert judge(None, [right["answer"]], [right]) == [S.plain_reward]  # right, but without form
    assert len(toy.seen.steps) == 3


def test_what_is_sampled_is_what_the_protocol_says(toy):
    sampling = Sampling(0.9, 3.0, "cond", 14, FORM_WANTED)
    assert {given for given, _ in toy.seen.sampled} == {sampling}
    assert {gb for _, gb in toy.seen.sampled} == {S.rollout_gb}
    assert json.loads((toy.out / "checkpoint" / "sampling.json").read_text()) == asdict(sampling)
    told = [toy.result]
    for name in ("result.json", "checkpoint/evaluation.json", "samples/before.json"):
        told.append(json.loads((toy.out / name).read_text()))
    told.append(json.loads((toy.out / "samples" / "after.json").read_text()))
    for kept in told:
        assert kept["protocol"] == asdict(sampling) | dict(seed=S.seed, n_u=8, n_g=8)
    assert all(call["seed"] == S.seed for call in toy.seen.evals)


RATES = (1.5e-4, 2e-4, 1e-4)  # 3e-4 times 1/2, 1 and 1 of the warm-up, times 1, 2/3 and 1/3


def test_the_rate_rises_and_falls_in_a_line(toy):
    for call, lr in zip(toy.seen.steps, RATES, strict=True):
        assert [*call["lr"]] == [pytest.approx(lr)]
    lines = [line["lr"] for line in read_metrics(toy.out) if "lr" in line]
    assert lines == pytest.approx(RATES)
    s = TrainSettings(lr=1e-3, steps=4)
    assert [learning_rate(i, s) for i in range(4)] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_when_a_run_evaluates_saves_and_logs(toy):
    sizes = [(len(call["u_rows"]), len(call["g_rows"])) for call in toy.seen.evals]
    assert sizes == [(8, 8), (2, 2), (8, 8)]  # a quarter on the way
    assert toy.seen.saved == [(1, 2), (2, 2), (3, 2)]  # the last, too, before it is scored
    looks = sorted((toy.out / "rollouts").iterdir())
    assert [look.name for look in looks] == ["000001", "000002", "000003"]
    groups = [len(json.loads((look / "g.json").read_text())["prompts"]) for look in looks]
    assert groups[1] == 3 > max(groups[0], groups[2])  # the setting asked for the second whole
    lines = read_metrics(toy.out)
    kinds = [(line["step"], "eval_accuracy_mean" in line) for line in lines]
    assert kinds == [(0, True), (1, False), (2, False), (2, True), (3, False), (3, True)]
    assert all(line["truncated"] < 1 for line in lines if "truncated" in line)  # both sides learn
    assert toy.seen.logged == [(line["step"], set(line) - {"step"}) for line in lines]


def test_figures_are_those_of_the_evaluations(toy):
    first, between, last = (call["result"]["figures"] for call in toy.seen.evals)
    lines = [line for line in read_metrics(toy.out) if "eval_accuracy_mean" in line]
    for line, figures in zip(lines, (first, between, last)):
        assert {k: v for k, v in line.items() if "eval_" in k and "change" not in k} == {
            f"eval_{name}": value for name, value in figures.items()
        }
    kept = json.loads((toy.out / "checkpoint" / "evaluation.json").read_text())
    assert (toy.result["before"], toy.result["after"], kept["figures"]) == (first, last, last)
    assert first != last


def test_a_rise_is_as_sure_as_the_same_items_agree(toy):
    items = [call["result"]["items"] for call in toy.seen.evals]
    saved = [json.loads((toy.out / f"samples/{w}.json").read_text()) for w in ("before", "after")]
    assert [told["items"] for told in saved] == [items[0], items[-1]]
    *lines, last = [line for line in read_metrics(toy.out) if "sec_eval" in line]
    assert not any("change" in name for line in lines for name in line)  # a quarter, on the way
    widths = {name: last[f"eval_{name}_change_ci"] for name in items[0]}
    for name in ("accuracy", "score"):
        gains = [b - a for a, b in zip(items[0][name], items[-1][name])]
        more = (name == "accuracy") * 1.96 * 2**0.5 / len(gains)  # answers are right or wrong
        assert widths[name] == pytest.approx(math.hypot(mean_ci(gains)[1], more))
        assert len(gains) == S.eval_items
    assert toy.result["change_ci"] == widths
    told = rises(toy.result["before"], toy.result["after"], widths)
    known = {name: width for name, width in widths.items() if width is not None}
    assert {name: change[1] for name, *_, change in told} == known


def test_a_run_is_its_steps(toy):
    "The checkpoint's weights are those of a loop over `train_step` with an optimiser of its own."
    policy = JanusPolicy(*load_janus())
    ref = copy.deepcopy(policy)
    trained = [p for p in policy.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(trained, lr=1.0, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    rewards = dict(u=graded_accuracy(0.5), g=scene_reward)
    for step, lr in enumerate(RATES):
        ids = rows_of_step(len(toy.pairs), 3, S.seed, step)
        assert toy.seen.steps[step]["ids"] == ids
        opt.param_groups[0]["lr"] = lr
        rows = [toy.pairs[i] for i in ids]
        train_step(policy, opt, rows, ids, step, S, rewards, Accelerator(cpu=True), ref)
    made, start = (load_janus(path)[0] for path in (toy.out / "checkpoint", None))
    moved = 0.0
    for a, b, c in zip(made.parameters(), policy.model.parameters(), start.parameters()):
        assert torch.allclose(a, b, rtol=0, atol=1e-7)
        moved = max(moved, (a - c).abs().max().item())
    assert moved > 1e-4


WITHOUT = replace(S, precision="bf16", train_vision=True, shard=True, advantage="best")
WITHOUT = replace(WITHOUT, sample_by_weight=True)
ONE_SIDE = dict(sides="g", combine="sum")  # no side is left to combine with
WITH_LORA = replace(WITHOUT, lora_rank=2, train_vision=False, shard=False, **ONE_SIDE)


def words(s):
    "The flags of settings that differ from their defaults."
    flags = []
    for f in fields(s):
        value, name = getattr(s, f.name), "--" + f.name.replace("_", "-")
        if value != f.default:
            flags += [name] if value is True else [name, str(value)]
    return flags


@pytest.mark.parametrize("s", [WITH_LORA, WITHOUT], ids=["lora", "shard"])
def test_flags_reach_the_run(s, tmp_path, monkeypatch):
    calls = []

    def stops(*args, **kwargs):
        calls.append(inspect.signature(train).bind(*args, **kwargs).arguments)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pairuni_nb.train.train", stops)
    save_pairs(real_pairs().select(range(5)), "pairs")
    more = ["--pairs", "pairs", "--out", "run", "--device", "cpu"]
    more += ["--reward", "pairuni_nb.rewards:scene_reward"]
    assert main(["train", "--model", "nano-emoji", *more, *words(s)]) == 130
    [call] = calls
    assert call["s"] == old_settings(tmp_path / "run")[0] == s
    assert (len(call["pairs"]), call["device"], call["resume"]) == (5, "cpu", True)
    assert (call["model"], list(call["rewards"])) == ("nano-emoji", ["g"])
    assert call["rewards"]["g"].__wrapped__ is scene_reward


def test_those_flags_are_all_that_there_are():
    default = TrainSettings()
    for s in (WITH_LORA, WITHOUT):
        same = {f.name for f in fields(s) if getattr(s, f.name) == getattr(default, f.name)}
        assert same in ({"train_vision", "shard", "combine"}, {"lora_rank", "sides"})


def test_a_tracker_is_told_the_settings(tmp_path, monkeypatch):
    told = []

    def stops(self, *args, config):
        told.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("pairuni_nb.train.launch", lambda *_: Accelerator(cpu=True))
    monkeypatch.setattr(Accelerator, "init_trackers", stops)
    with pytest.raises(KeyboardInterrupt):
        train(toy_pairs(), tmp_path / "run", S, device="cpu", tracker="tensorboard")
    assert told == [asdict(S)]


# from settings to a model and an optimiser


def made(**settings):
    return prepare(None, replace(TrainSettings(), **settings), Accelerator(cpu=True))


@pytest.fixture(scope="module")
def usual():
    return made()


def test_the_checkpoint_is_the_one_that_was_named(tmp_path, monkeypatch):
    named = prepare("nano-emoji", TrainSettings(), Accelerator(cpu=True)).sampler.model.config
    assert named.vq_config.num_embeddings == 512  # janus-nano has 128
    given = []

    def stops(*args):
        given.append(args[0])
        raise KeyboardInterrupt

    monkeypatch.setattr("pairuni_nb.train.prepare", stops)
    for name in ("nano-emoji", None):
        with pytest.raises(KeyboardInterrupt):
            train(toy_pairs(), tmp_path / "run", S, name, device="cpu")
    assert given == ["nano-emoji", None]


def test_what_trains_is_the_model_but_for_its_eyes_and_its_vq(usual):
    names = {n for n, p in usual.policy.named_parameters() if p.requires_grad}
    assert not any("vision_model" in n or "vqmodel" in n for n in names)
    for part in ("language_model", "lm_head", "generation_head", "aligner", "embed_tokens"):
        assert any(part in n for n in names), part
    [group] = usual.opt.param_groups
    trained = [p for p in usual.policy.parameters() if p.requires_grad]
    assert {id(p) for p in group["params"]} == {id(p) for p in trained}
    assert isinstance(usual.opt, torch.optim.AdamW)
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1.5e-4, (0.9, 0.99), 0.0)
    assert usual.ref is None and usual.policy is usual.sampler
    assert made(lr=2e-5).opt.param_groups[0]["lr"] == 2e-5


def test_train_vision_trains_the_tower_too():
    m = made(train_vision=True)
    names = {n for n, p in m.policy.named_parameters() if p.requires_grad}
    assert any("vision_model" in n for n in names)
    assert not any("vqmodel" in n for n in names)
    assert len(m.opt.param_groups[0]["params"]) == len(names)


def test_precision_is_that_asked_for(usual):
    assert (made(precision="bf16").sampler.precision, usual.sampler.precision) == ("bf16", "fp32")


def test_a_checkpoint_will_say_how_it_was_sampled():
    own = made(cfg_weight=2.5, max_new_tokens=7).sampler.model.generation_config
    assert (own.guidance_scale, own.max_new_tokens) == (2.5, 7)


def test_the_reference_is_a_frozen_copy():
    m = made(beta=0.1)
    mine = {p.data_ptr() for p in m.policy.parameters()}
    for p, q in zip(m.policy.parameters(), m.ref.parameters(), strict=True):
        assert torch.equal(p, q) and not q.requires_grad and q.data_ptr() not in mine


def answers(policy):
    "Two rollouts of one question."
    prompts, sampling = policy.text_prompts(["how many?"]), Sampling(max_new_tokens=4)
    return policy.sample(prompts, 2, noise(0, 0, [0], 2, 4), sampling)


def test_what_trains_is_float32_whatever_was_saved(tmp_path):
    "Steps of a small rate would be lost in bfloat16."
    model, processor = load_janus(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    m = prepare(str(tmp_path), TrainSettings(), Accelerator(cpu=True))
    assert {p.dtype for p in m.policy.parameters()} == {torch.float32}


def matrices(policy):
    "Dtypes of the language model's, by whether they are trained."
    parts = [m for m in policy.language_model.modules() if type(m) is torch.nn.Linear]
    return {(m.weight.requires_grad, m.weight.dtype) for m in parts}


def test_frozen_matrices_are_kept_as_autocast_reads_them(need):
    need("peft")
    low, full = torch.bfloat16, torch.float32
    with_lora = made(precision="bf16", lora_rank=2)
    assert matrices(with_lora.policy) == {(False, low), (True, full)}
    with_reference = made(precision="bf16", beta=0.1)
    assert matrices(with_reference.ref) == {(False, low)}
    assert matrices(with_reference.policy) == {(True, full)}
    assert matrices(made(lora_rank=2).policy) == {(False, full), (True, full)}


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("asked", [False, True])
def test_gradient_checkpointing_computes_layers_twice(asked, rank, need):
    if rank:
        need("peft")
    policy, calls = made(gradient_checkpointing=asked, lora_rank=rank).policy, []
    drawn = answers(policy)
    mlp = policy.language_model.layers[1].mlp
    mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    total = policy(drawn).sum()
    n = len(calls)
    total.backward()
    assert len(calls) == (2 * n if asked else n) > 0


@pytest.mark.parametrize("rank", [2, 3])
def test_lora_has_the_rank_asked_for(rank, need):
    need("peft")
    m = made(lora_rank=rank, beta=0.1)
    trained = {n: p for n, p in m.policy.named_parameters() if p.requires_grad}
    assert all("language_model" in n and "lora_" in n for n in trained)
    assert {min(p.shape) for p in trained.values()} == {rank}
    assert len(m.opt.param_groups[0]["params"]) == len(trained) == 2 * 7 * 4  # of four layers
    layer = m.policy.model.model.language_model.base_model.model.layers[0]
    assert set(layer.mlp.up_proj.scaling.values()) == {2.0}


def test_the_seed_is_of_loras_first_weights_too(tmp_path, monkeypatch, need):
    need("peft")
    real, seen = pairuni_nb.train.prepare, []

    def stops(*args):
        m = real(*args)
        named = m.policy.named_parameters()
        seen.append(torch.cat([p.detach().flatten() for n, p in named if "lora_A" in n]))
        raise KeyboardInterrupt

    monkeypatch.setattr("pairuni_nb.train.prepare", stops)
    pairs = toy_pairs()
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(100 + i)
        with pytest.raises(KeyboardInterrupt):
            train(pairs, tmp_path / "run", replace(S, lora_rank=2, seed=seed), device="cpu")
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


# rewards that nobody named


def test_the_judge_does_not_move_with_the_policy():
    policy, pairs = JanusPolicy(*load_janus()), real_pairs()
    assert default_rewards(policy, toy_pairs()) == dict(u=answer_accuracy, g=scene_reward)
    graded = default_rewards(policy, pairs, 0.5)["u"]
    assert graded(None, ["yes 0"], [pairs[0]]) == [0.5]
    rewards = default_rewards(policy, pairs)
    assert rewards["u"] is answer_accuracy
    images = [pairs[i]["g_image"] for i in range(3)]
    truths = [dict(image=images[i]) for i in (0, 1, 0)]
    before = rewards["g"](None, images, truths)
    assert before[:2] == pytest.approx([1, 1], abs=1e-5) and before[2] < 0.999
    with torch.no_grad():
        for p in policy.model.model.vision_model.parameters():
            p.mul_(1.1).add_(0.05)
    assert rewards["g"](None, images, truths) == before


# held out, at every door


def splits(scenes):
    return {split_of(Scene.from_json(scene)) for scene in scenes}


def numbers(*sides):
    "Ids of records."
    return [r["id"] for rows in sides for r in rows]


def test_toy_runs_never_train_on_a_held_out_scene(toy):
    captions = set()
    for call in toy.seen.steps:
        for row in call["rows"]:
            scenes = row["u_scene"], row["g_scene"]
            assert splits(scenes) == {"train"}
            captions |= {caption(Scene.from_json(scene)) for scene in scenes}
    u, g = held_out(toy.pairs, 8, S.seed)
    for call, n in zip(toy.seen.evals, (8, 2, 8), strict=True):
        assert numbers(call["u_rows"], call["g_rows"]) == numbers(u[:n], g[:n])
        for rows in (call["u_rows"], call["g_rows"]):
            assert splits(r["scene"] for r in rows) == {"heldout"}
            assert not captions & {caption(Scene.from_json(r["scene"])) for r in rows}


def test_held_out_scenes_have_the_runs_seed():
    sides = zip(*(held_out(toy_pairs(), 5, seed) for seed in (0, 1, 0)))
    for rows, others, same in sides:
        scenes = [r["scene"] for r in rows]
        assert len(rows) == 5 and scenes == [r["scene"] for r in same]
        assert scenes != [r["scene"] for r in others]
        assert splits(scenes) == {"heldout"}


# one in ten by a hash that must never change: a run goes on, and is evaluated, by later versions
HELD = [3, 20, 21, 39, 46, 53]


@pytest.fixture(scope="module")
def kept():
    "Real pairs that may be trained on, by number."
    return sorted(set(range(60)) - set(split_pairs(real_pairs())))


def pictures(rows):
    "What pair rows show."
    sides = [row[f"{side}_image"] for row in rows for side in "ug"]
    return {image.tobytes() for image in sides if image}


def test_a_picture_is_held_out_or_trained_on(kept):
    pairs = real_pairs()
    held = split_pairs(pairs)
    assert held == HELD and sorted(kept + held) == list(range(60))
    out, in_training = ([pairs[i] for i in some] for some in (held, kept))
    assert not pictures(out) & pictures(in_training)
    u, g = held_out(pairs, 100, 0)
    assert sorted(numbers(u)) == sorted(row["u_id"] for row in out)
    assert sorted(numbers(g)) == sorted(row["g_id"] for row in out)
    assert all(r["question"] == f"question {r['id'][1:]}?" for r in u)
    assert all(r["prompt"] == f"draw {r['id'][1:]}" for r in g)
    few_u, few_g = held_out(pairs, 2, 0)
    assert numbers(few_u, few_g) == numbers(u[:2], g[:2])
    assert numbers(*held_out(pairs, 100, 1)) == numbers(u, g)  # with another seed, too


@pytest.mark.parametrize(("n", "held"), [(7, 2), (12, 2), (19, 2), (30, 3)])
def test_of_few_pairs_two_are_held_out_for_one_has_no_score(n, held):
    pairs = as_dataset([pair("single", 1.0, u=i) for i in range(n)])
    assert len(split_pairs(pairs)) == held


@pytest.mark.parametrize("size", [5, 20])
def test_pairs_of_one_picture_that_are_too_many_to_hold_out_are_trained_on(size):
    rows = [pair("single", 1.0, u=i) for i in range(30)]
    for row in rows[:size]:
        row["u_image"] = rows[0]["u_image"]
    held = split_pairs(as_dataset(rows))
    assert len(held) == 3 and min(held) >= size  # one and a half times as many is the most


def test_sides_that_are_missing_are_held_out_each_by_its_own_rows():
    rows = [pair("single", 1.0, u=i) for i in range(50)]
    rows += [pair("single", 1.0, g=i) for i in range(50)]
    pairs = as_dataset(rows)
    out = [rows[i]["u_id"] or rows[i]["g_id"] for i in split_pairs(pairs)]
    u, g = held_out(pairs, 100, 0)
    assert sorted(numbers(u, g)) == sorted(out)
    assert {i[0] for i in numbers(u)} == {"u"} and {i[0] for i in numbers(g)} == {"g"}


CHILD = """
import json, sys
from pairuni_nb.evaluate import held_out, split_pairs
from pairuni_nb.pairing import load_pairs
from pairuni_nb.rollout import noise
from pairuni_nb.step import rows_of_step
pairs = load_pairs(sys.argv[1])
held = [r["id"] for rows in held_out(pairs, 100, 0) for r in rows]
drawn = noise(3, 9, ["u1"], 1, 4).tolist()
print(json.dumps([split_pairs(pairs), held, rows_of_step(50, 7, 3, 9), drawn]))
"""


def test_another_process_holds_out_and_draws_the_same(tmp_path):
    save_pairs(real_pairs(), tmp_path / "pairs")
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    command = [sys.executable, "-c", CHILD, str(tmp_path / "pairs")]
    env = os.environ | dict(PYTHONHASHSEED=seed)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    held = numbers(*held_out(real_pairs(), 100, 0))
    drawn = noise(3, 9, ["u1"], 1, 4).tolist()
    assert json.loads(done.stdout) == [HELD, held, rows_of_step(50, 7, 3, 9), drawn]


REAL = TrainSettings(
    rollouts=2, steps=2, eval_items=4, eval_every=1, save_every=1, max_new_tokens=4, cfg_weight=1.0
)


def test_real_pairs_that_are_held_out_stay_out_over_a_resume(kept, tmp_path):
    pairs, calls = real_pairs(), []
    s = replace(REAL, pairs_per_step=len(kept) // 2)

    def breaks(prompts, images, truths):
        calls.append(1)
        if len(calls) == 4:  # in the second step, after the evaluations before and after the first
            raise KeyboardInterrupt
        return [float(image[0, 0, 0]) for image in images]

    rewards = dict(g=breaks)
    with written_down() as seen:
        with pytest.raises(KeyboardInterrupt):
            train(pairs, tmp_path / "run", s, rewards=rewards, device="cpu")
        train(pairs, tmp_path / "run", s, rewards=rewards, device="cpu", resume=True)
    assert [call["step"] for call in seen.steps] == [0, 1, 1]
    first, broken, second = (call["ids"] for call in seen.steps)
    assert broken == second
    for step, chosen in enumerate((first, second)):
        order = rows_of_step(len(kept), s.pairs_per_step, s.seed, step)
        assert chosen == [kept[i] for i in order]
    assert len(set(first + second)) == 2 * s.pairs_per_step  # nearly all that may be seen
    trained = [row for call in seen.steps for row in call["rows"]]
    ids = {row[f"{side}_id"] for row in trained for side in "ug"}
    scored = [call["u_rows"] + call["g_rows"] for call in seen.evals]
    assert [len(rows) for rows in scored] == [8, 4, 8]  # on the way at least two a side
    for rows in scored:
        assert not set(numbers(rows)) & ids
        assert not {r["image"].tobytes() for r in rows} & pictures(trained)
    assert numbers(scored[0]) == numbers(scored[2])
    assert json.loads((tmp_path / "run" / "split.json").read_text()) == dict(held=HELD, kept=kept)
    assert all(call["rewards"]["g"] is breaks for call in seen.steps)
    assert all(call["reward"] is breaks for call in seen.evals)


def test_your_own_held_out_pictures_are_not_trained_on(tmp_path):
    pairs = real_pairs()
    held = [u_record(i) for i in range(5)], [g_record(i) for i in range(48, 52)]
    s = replace(REAL, pairs_per_step=60, steps=1, sides="u")  # drawing for 60 takes long
    by_colour = dict(g=lambda prompts, images, truths: [float(i[0, 0, 0]) for i in images])
    with written_down() as seen:
        train(pairs, tmp_path / "run", s, rewards=by_colour, device="cpu", held=held)
    [step] = seen.steps
    own = {r["image"].tobytes() for rows in held for r in rows}
    assert not own & pictures(step["rows"])
    shown = [i for i, row in enumerate(pairs) if own & pictures([row])]
    assert set(step["ids"]) == set(range(60)) - set(shown) and len(shown) == 12
    assert all(numbers(call["u_rows"], call["g_rows"]) == numbers(*held) for call in seen.evals)


def test_evaluation_holds_out_what_training_held_out(tmp_path):
    save_pairs(real_pairs(), tmp_path / "pairs")
    of_pairs = Evaluate(items=4, pairs=str(tmp_path / "pairs"), model=Model(seed=3))
    scored = numbers(*held_of(of_pairs))
    assert scored == numbers(*held_out(real_pairs(), 4, 0)) and len(scored) == 8
    fresh = held_of(Evaluate(items=6, model=Model(seed=3)))
    assert numbers(*fresh) == numbers(*held_out(toy_pairs(), 6, 3))
    for rows in fresh:
        assert len(rows) == 6 and splits(r["scene"] for r in rows) == {"heldout"}


def test_an_evaluation_samples_as_it_was_told_or_as_the_run_did(toy, tmp_path, monkeypatch):
    given, checkpoint = [], str(toy.out / "checkpoint")

    def notes(*args, **kwargs):
        given.append(inspect.signature(evaluate).bind(*args, **kwargs).arguments)
        figures = dict.fromkeys(("accuracy_mean", "accuracy_ci", "score_mean", "score_ci"), 0.5)
        return dict(figures=figures, protocol=dict(seed=4, n_u=6, n_g=6))

    monkeypatch.setattr("pairuni_nb.evaluate.evaluate", notes)
    flags = ["--checkpoint", checkpoint, "--items", "6", "--seed", "4"]
    other = ["--temperature", "0.5", "--cfg-weight", "2", "--max-new-tokens", "5"]
    other += ["--instruction", "be brief"]
    assert main(["evaluate", *flags, "--out", str(tmp_path / "a.json")]) == 0
    assert main(["evaluate", *flags, *other, "--out", str(tmp_path / "b.json")]) == 0
    told = Sampling(0.5, 2.0, S.cfg_scoring, 5, "be brief")
    assert [call["sampling"] for call in given] == [Sampling.of(S), told]
    u, g = held_out(toy.pairs, 6, 4)
    for call in given:
        assert numbers(call["u_rows"], call["g_rows"]) == numbers(u, g)
        assert (call["seed"], call["reward"]) == (4, scene_reward)
    kept = json.loads((tmp_path / "a.json").read_text())
    assert (kept["checkpoint"], kept["protocol"]["seed"]) == (checkpoint, 4)
    weights, made = given[0]["policy"].model.parameters(), load_janus(checkpoint)[0].parameters()
    assert all(torch.equal(a, b) for a, b in zip(weights, made, strict=True))


def test_a_run_in_bfloat16_scores_again_what_it_scored(tmp_path):
    s = TrainSettings(steps=1, pairs_per_step=2, rollouts=2, eval_items=60, precision="bf16")
    result = train(toy_pairs(), tmp_path / "run", replace(s, agreement_every=0), device="cpu")
    for i, name in enumerate(("run", "run/checkpoint")):
        out, flags = tmp_path / f"{i}.json", ["--items", "60", "--device", "cpu"]
        assert (
            main(["evaluate", "--checkpoint", f"{tmp_path}/{name}", *flags, "--out", f"{out}"]) == 0
        )
        again = json.loads(out.read_text())
        assert (again["protocol"], again["figures"]) == (result["protocol"], result["after"])


@pytest.mark.parametrize("name", ["run", "run/checkpoint"])
def test_a_run_that_trained_its_eyes_is_judged_by_those_it_began_with(name, tmp_path):
    s = replace(REAL, steps=2, train_vision=True, lr=1e-3)
    in_turn = dict(u=lambda prompts, texts, truths: [i % 2 for i in range(len(texts))])
    result = train(real_pairs(), tmp_path / "run", s, rewards=in_turn, device="cpu")
    flags = f"--checkpoint {tmp_path}/{name} --pairs {tmp_path}/run/pairs --items {s.eval_items}"
    words = ["evaluate", *flags.split(), "--device", "cpu", "--out", str(tmp_path / "again.json")]
    assert main(words) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["figures"] == result["after"] and again["reward"].startswith("similarity")


def test_the_pairs_of_a_job_are_of_the_training_scenes(monkeypatch):
    for seed in (0, 1):
        settings = PairSettings(n_u=40, n_g=40, clusters=8, seed=seed)
        rows, *_ = build_pairs(Pair("x", settings=settings))
        scenes = {row[f"{side}_scene"] for row in rows for side in "ug"}
        assert splits(scenes) == {"train"}
        assert scenes <= {r["scene"] for side in "ug" for r in records(side, 40, seed)}
    asked = []

    def notes(job):
        asked.append(job)
        return rows[:1], {}, {}, []

    monkeypatch.setattr("pairuni_nb.jobs.build_pairs", notes)
    pairs_of(Train(settings=replace(S, seed=5)))
    assert asked[0].settings == PairSettings(seed=5)
