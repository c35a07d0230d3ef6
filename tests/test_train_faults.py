"""What stops a run, and what it says: gradients, rewards, files that a killed run left."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from pairuni_nb import pair_grpo, records
from pairuni_nb import train as loop
from pairuni_nb.diffusion import load_checkpoint, policy_for
from pairuni_nb.janus import load_janus
from pairuni_nb.pairing import as_dataset, make_pairs, pair_row
from pairuni_nb.rewards import answer_accuracy, reward_matrix, scene_reward
from pairuni_nb.rollout import JanusPolicy, Sampling
from pairuni_nb.settings import TrainSettings
from pairuni_nb.processes import larger, of_all
from pairuni_nb.run_folder import begin_run, check_same, from_run, load_state, locked, log_line
from pairuni_nb.run_folder import read_metrics, save_state, without_cost
from pairuni_nb.step import roll_out_sides, update
from pairuni_nb.train import check_lengths, decide_split, nothing_learned, read_split, train
from pairuni_nb.world import records as toy_records

pytestmark = pytest.mark.long

S = TrainSettings(
    pairs_per_step=2,
    rollouts=2,
    steps=2,
    eval_items=4,
    eval_every=9,
    save_every=1,
    max_new_tokens=8,
)


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(toy_records("u", 40, 0), toy_records("g", 40, 0), clusters=8)[0]


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(pairs):
    policy = JanusPolicy(*load_janus())
    sides, _ = roll_out_sides(
        policy, [pairs[0], pairs[1]], [0, 1], 0, S, dict(u=answer_accuracy, g=scene_reward)
    )
    sides["g"].advantages[:] = math.nan
    before = [p.detach().clone() for p in policy.parameters()]
    with pytest.raises(ValueError, match="not finite.*--resume"):
        update(policy, torch.optim.AdamW(policy.parameters()), sides, S, Accelerator(cpu=True))
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


@pytest.mark.parametrize("said", ("{}", '{"held": []}', "[1]", "{"))
def test_a_split_of_another_shape_is_damaged(tmp_path, said):
    (tmp_path / "split.json").write_text(said)
    with pytest.raises(ValueError, match="split.json is damaged.*start a new run"):
        read_split(tmp_path, [], None, Accelerator(cpu=True))


def test_a_largest_value_is_nan_where_one_is():
    for a, b in ((0.0, math.nan), (math.nan, 0.0)):
        assert math.isnan(larger(a, b))
    assert math.isnan(of_all(dict(gap_u=math.nan))["gap_u"]) and larger(1.0, 2.0) == 2


def test_metrics_are_strict_json_and_a_torn_line_is_left_out(tmp_path):
    log_line(
        tmp_path,
        Accelerator(cpu=True),
        1,
        dict(reward_g=math.nan, loss_u=0.5, eval_score_mean=None),
    )
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 2, "rew')
    assert read_metrics(tmp_path) == [dict(step=1, reward_g=None, loss_u=0.5, eval_score_mean=None)]
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0], parse_constant=pytest.fail)


def test_a_damaged_state_is_one_sentence(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"PK half a file")
    with pytest.raises(ValueError, match="state.pt' is damaged .*remove it"):
        load_state(tmp_path, None, None)


def test_rewards_by_another_name_and_unknown_weightings_are_refused(pairs, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="rewards are named image: name them u"):
        train(pairs, tmp_path / "run", S, rewards=dict(image=scene_reward), device="cpu")
    with pytest.raises(ValueError, match="unknown weighting 'cube'"):
        train(pairs, tmp_path / "run", TrainSettings(weighting="cube"), device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_checkpoint_and_its_own_pairs(pairs, tmp_path, monkeypatch):
    run = tmp_path / "run"
    begin_run(run, pairs, S, dict(model=None))
    for same in (None, "", "janus-nano"):
        check_same(run, S, same, pairs)
    with pytest.raises(ValueError, match="other settings: model was janus-nano, now nano-emu3"):
        check_same(run, S, "nano-emu3", pairs)
    (tmp_path / "mine").mkdir()
    begin_run(tmp_path / "own", pairs, S, dict(model=str(tmp_path / "mine")))
    monkeypatch.chdir(tmp_path)
    check_same(tmp_path / "own", S, "mine", pairs)
    with pytest.raises(ValueError, match="model was /.*mine, now yours"):
        check_same(tmp_path / "own", S, "yours", pairs)
    (tmp_path / "mine").rename(tmp_path / "yours")
    check_same(tmp_path / "own", S, "yours", pairs)
    other, _ = make_pairs(toy_records("u", 40, 1), toy_records("g", 40, 1), clusters=8)
    for wrong in (other, pairs.select(range(len(pairs) - 1)), pairs.select([1, 0])):
        with pytest.raises(ValueError, match="no longer those it was started with"):
            check_same(run, S, None, wrong)
    with pytest.raises(ValueError, match="other settings: model was janus-nano, now nano-emu3"):
        train(pairs, run, S, "nano-emu3", device="cpu", resume=True)


def test_a_step_is_saved_before_it_is_scored_and_scored_when_the_run_goes_on(
    pairs, tmp_path, monkeypatch
):
    s, whole, run = replace(S, steps=3, eval_every=1, save_every=9), tmp_path / "w", tmp_path / "r"

    def judge(gone_at=0):
        calls = []

        def reward(prompts, images, truths):
            calls.append(1)
            if len(calls) == gone_at:
                raise RuntimeError("the judge is gone")
            return scene_reward(prompts, images, truths)

        return dict(g=reward)

    train(pairs, whole, s, rewards=judge(), device="cpu")
    with pytest.raises(RuntimeError, match="gone"):  # in the evaluation after step 1
        train(pairs, run, s, rewards=judge(gone_at=3), device="cpu")
    assert [m["step"] for m in read_metrics(run)] == [0, 1] and (run / "state.pt").exists()
    with monkeypatch.context() as killed:  # between the line of the evaluation and its save
        killed.setattr(loop, "save_best", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            train(pairs, run, s, rewards=judge(), device="cpu", resume=True)
    assert len(read_metrics(run)) == 3 and not (run / "best.pt").exists()
    train(pairs, run, s, rewards=judge(), device="cpu", resume=True)
    best = [torch.load(folder / "best.pt", weights_only=True) for folder in (run, whole)]
    assert best[0]["step"] == best[1]["step"] and best[0]["score"] == best[1]["score"]
    assert without_cost(read_metrics(run)) == without_cost(read_metrics(whole))
    ends = [load_file(folder / "checkpoint" / "model.safetensors") for folder in (run, whole)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_a_lora_run_leaves_its_additions_alone_and_added(pairs, tmp_path, need):
    peft = need("peft")
    train(pairs, tmp_path / "run", replace(S, lora_rank=4, lr=1e-3), device="cpu")
    start = load_janus()[0].model.language_model
    plain = {name: w.clone() for name, w in start.state_dict().items()}
    thin = peft.PeftModel.from_pretrained(start, tmp_path / "run" / "adapter")
    merged = thin.merge_and_unload().state_dict()
    whole = load_janus(tmp_path / "run" / "checkpoint")[0].model.language_model.state_dict()
    assert all(torch.equal(merged[name], whole[name]) for name in whole)
    assert sum(not torch.equal(plain[name], whole[name]) for name in whole) > 20
    kept = sum(f.stat().st_size for f in (tmp_path / "run" / "adapter").iterdir())
    assert kept < (tmp_path / "run" / "checkpoint" / "model.safetensors").stat().st_size / 5


def test_the_additions_of_a_bfloat16_run_on_its_way_are_not_rounded_away(pairs, tmp_path, need):
    need("peft")
    run, s = tmp_path / "run", replace(S, steps=9, precision="bf16", lora_rank=4, lr=1e-5)

    def stop(done, metrics, sides):
        if done == 2:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train(pairs, run, s, device="cpu", callback=stop)
    model, processor = from_run(run, "cpu")
    policy = policy_for(model, processor)
    asked = policy.image_prompts(["a red star"])
    policy.sample(asked, 2, None, Sampling(temperature=0))  # in one precision
    state = torch.load(run / "state.pt", weights_only=True)["model"]
    down = next(name for name in state if "q_proj" in name and "lora_A" in name)
    added = state[down.replace("lora_A", "lora_B")] @ state[down]
    place = down[down.index("layers.") :].split(".lora_A")[0] + ".weight"
    start = load_janus()[0].model.language_model.get_parameter(place).bfloat16().float()
    moved = model.model.language_model.get_parameter(place) - start
    scale = (moved * added).sum() / (added * added).sum()  # alpha over rank
    assert added.abs().max() > 0 and scale > 0.5
    assert (moved - scale * added).norm() < 0.01 * moved.norm()


def test_an_advantage_of_yours_trains_and_its_pair_weighs_it(pairs, tmp_path, monkeypatch):
    code = "def centred(rewards): return (rewards - rewards.nanmean(1, True)).nan_to_num(0)"
    (tmp_path / "advantages_of_a_test.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    s, met = replace(S, advantage="advantages_of_a_test:centred", steps=1), {}
    tenths = lambda prompts, outputs, truths: [i / 10 for i in range(len(outputs))]
    rewards = dict(u=tenths, g=lambda *lists: [None, *tenths(*lists)[1:]])

    def watch(done, metrics, sides):
        met.update(sides)

    train(pairs, tmp_path / "run", s, rewards=rewards, device="cpu", callback=watch)
    assert set(met) == {"u", "g"} and met["g"].rewards[0].isnan().tolist() == [True, False]
    for side in met.values():
        left = side.rewards - side.rewards.nanmean(1, keepdim=True)
        expected = side.weights[:, None] * left.nan_to_num(0)
        assert torch.allclose(side.advantages.view(expected.shape), expected)


def test_pairs_can_be_drawn_in_proportion_to_their_weight(pairs, tmp_path, monkeypatch):
    "Only one pair has a weight, so each step trains on it alone, twice; its advantages are plain."
    monkeypatch.setitem(pair_grpo.WEIGHTINGS, "third", lambda s: s * (s == s.min()))
    others = [i for i, kind in enumerate(pairs["kind"]) if kind == "retrieved"][:6]
    only = min(others, key=lambda i: pairs[i]["similarity"])
    met, s = [], replace(S, weighting="third", sample_by_weight=True)
    first_wins = lambda prompts, outputs, truths: [1.0 - i % 2 for i in range(len(outputs))]

    def watch(done, metrics, sides):
        met.extend(side for side in sides.values())

    rewards = dict(u=first_wins, g=first_wins)
    train(pairs.select(others), tmp_path / "run", s, None, rewards, "cpu", callback=watch)
    assert len(met) == 4
    for side in met:
        assert [row["u_id"] for row in side.pairs] == [pairs[only]["u_id"]] * 2
        assert side.weights.tolist() == [1, 1] and side.advantages.abs().min() > 0.7


def test_a_weighting_of_your_own_trains_and_the_bar_ends(pairs, tmp_path, monkeypatch, capfd):
    (tmp_path / "weights_of_a_test.py").write_text("def cube(similarity): return similarity**3")
    monkeypatch.syspath_prepend(tmp_path)
    two = pairs.select([i for i, kind in enumerate(pairs["kind"]) if kind == "retrieved"][:2])
    first_wins = lambda prompts, outputs, truths: [1.0 - i % 2 for i in range(len(outputs))]
    s, rewards = replace(S, weighting="weights_of_a_test:cube"), dict(u=first_wins, g=first_wins)
    train(two, tmp_path / "run", s, rewards=rewards, device="cpu")
    assert "2/2" in capfd.readouterr().err
    # two groups of the rewards 1 and 0: advantages are plus and minus 0.5/sqrt(0.5), times s_p^3
    cubes = [(s_p**3 * 0.5 / 0.5**0.5) ** 2 for s_p in two["similarity"]]
    steps = [line for line in read_metrics(tmp_path / "run") if "adv_std_u" in line]
    for line in steps:
        for task in "ug":
            expected = (2 * sum(cubes) / 3) ** 0.5
            assert line[f"adv_std_{task}"] == pytest.approx(expected, rel=1e-3)
    assert max(two["similarity"]) < 0.99 and len(steps) == 2


def no_hub():
    raise ValueError("the Hub says no")


def not_toy(pairs):
    return as_dataset([dict(row, u_scene="", g_scene="") for row in pairs])


@pytest.mark.parametrize(
    "said, few, more",
    (
        (
            "held-out drawings is missing",
            False,
            dict(rewards=dict(g=lambda p, x, t: [None] * len(x))),
        ),
        ("none of the 3 pairs can be held out", True, {}),
        ("every pair shows a held-out picture", True, dict(held="their own")),
        ("the Hub says no", False, dict(ready=no_hub)),
    ),
)
def test_what_is_refused_before_the_first_step_leaves_no_run(pairs, tmp_path, said, few, more):
    (tmp_path / "run").mkdir()  # an empty folder may be named, too
    if few:
        pairs = not_toy([pairs[i] for i in range(3)])
    if "held" in more:
        own = [dict(image=row["u_image"], question="q", choices=None, prompt="p") for row in pairs]
        more = dict(held=(own, []))
    with pytest.raises(ValueError, match=said):
        train(pairs, tmp_path / "run", S, device="cpu", **more)
    assert not list(tmp_path.iterdir())


def test_held_out_records_of_neither_side_hold_no_pair_back(pairs):
    everything = list(range(len(pairs)))
    assert decide_split(not_toy(pairs), ([], [])) == dict(held=[], kept=everything)


def test_a_run_that_goes_on_stays_whatever_is_refused(pairs, tmp_path):
    begin_run(tmp_path / "run", pairs, S, dict(model=None))
    before = {p.name for p in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match="the Hub says no"):
        train(pairs, tmp_path / "run", S, device="cpu", resume=True, ready=no_hub)
    assert before < {p.name for p in (tmp_path / "run").iterdir()}


def test_flat_groups_are_told_once():
    lines = [dict(flat_u=float(x), flat_g=0.0) for x in (1, 0, 1, 1, 1, 1, 1, 1, 0, 1)]
    said = [nothing_learned(lines[:n]) for n in range(len(lines) + 1)]
    assert (
        [n for n, text in enumerate(said) if text] == [7]
        and "for 5 steps" in said[7]
        and "understanding" in said[7]
    )
    assert nothing_learned([dict(flat_g=1.0)] * 5) and not nothing_learned([dict(flat_g=1.0)] * 6)


def test_a_run_killed_beside_its_finished_checkpoint_goes_on(pairs, tmp_path, monkeypatch):
    whole = records.write_json

    def dies(path, value):
        if path.name == "result.json":
            raise KeyboardInterrupt
        whole(path, value)

    monkeypatch.setattr("pairuni_nb.train.write_json", dies)
    with pytest.raises(KeyboardInterrupt):
        train(pairs, tmp_path / "run", S, device="cpu")
    monkeypatch.undo()
    assert (tmp_path / "run" / "checkpoint").exists() and not (
        tmp_path / "run" / "result.json"
    ).exists()
    assert train(pairs, tmp_path / "run", S, device="cpu", resume=True)["after"] and load_janus(
        tmp_path / "run" / "checkpoint"
    )
    scored = [m["step"] for m in read_metrics(tmp_path / "run") if "sec_eval" in m]
    assert scored == [0, S.steps]  # what the dead run had scored is not told twice


def test_a_run_stopped_while_its_end_is_scored_trains_no_step_again(pairs, tmp_path, monkeypatch):
    scores, out = loop.measure, tmp_path / "run"

    def stopped(janus, held, out, step, *rest):
        if step == S.steps:
            raise KeyboardInterrupt
        return scores(janus, held, out, step, *rest)

    monkeypatch.setattr(loop, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(pairs, out, S, device="cpu")
    monkeypatch.setattr(loop, "measure", scores)
    monkeypatch.setattr(loop, "train_step", lambda *args: pytest.fail("trained again"))
    result = train(pairs, out, S, device="cpu", resume=True)
    monkeypatch.undo()
    assert result["after"] == train(pairs, tmp_path / "whole", S, device="cpu")["after"]
    told = [without_cost(read_metrics(tmp_path / run)) for run in ("run", "whole")]
    assert told[0] == told[1]


def test_a_run_says_who_judges(pairs, tmp_path):
    def bright(prompts, images, truths):
        return [float(i.mean()) / 255 for i in images]

    told = []

    def ready():  # all is checked and written
        told.append(json.loads((tmp_path / "run" / "settings.json").read_text())["reward"])
        raise ValueError("enough")

    for rewards in (dict(g=bright), dict(g=scene_reward), None):
        with pytest.raises(ValueError, match="enough"):
            train(pairs, tmp_path / "run", S, rewards=rewards, device="cpu", ready=ready)
    assert told == ["bright", "scene", ""]


def test_a_reward_must_return_a_list(pairs):
    with pytest.raises(ValueError, match="returned no list of values for 2 rollouts"):
        reward_matrix(lambda p, o, t: 0.5, ["a"], [1, 2], [{}], 2)


@pytest.fixture(scope="module")
def half(pairs, tmp_path_factory):
    "A run that was stopped in its second step, its first saved."
    run = tmp_path_factory.mktemp("half") / "run"

    def stop(done, *_):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pairs, run, replace(S, steps=3), device="cpu", callback=stop)
    return run


@pytest.fixture
def half_done(half, tmp_path):
    "A copy of it, and its metrics."
    run = shutil.copytree(half, tmp_path / "run")
    return run, (run / "metrics.jsonl").read_text()


def test_who_may_not_write_to_a_run_leaves_its_metrics_alone(pairs, half_done):
    run, told = half_done
    assert json.loads(told.splitlines()[-1])["step"] == 2  # one that a resume would cut off
    with locked(run), pytest.raises(ValueError, match="another process is writing"):
        train(pairs, run, replace(S, steps=3), device="cpu", resume=True)
    assert (run / "metrics.jsonl").read_text() == told


def test_a_run_that_ended_while_a_second_resume_began_stays_as_it_is(pairs, half_done, monkeypatch):
    (run, told), prepare = half_done, loop.prepare

    def ends_meanwhile(*args):
        (run / "state.pt").unlink()
        (run / "result.json").write_text("{}")
        return prepare(*args)

    monkeypatch.setattr(loop, "prepare", ends_meanwhile)
    with pytest.raises(ValueError, match="is finished"):
        train(pairs, run, replace(S, steps=3), device="cpu", resume=True)
    assert (run / "metrics.jsonl").read_text() == told


def stepped():
    layer = torch.nn.Linear(2, 1)
    opt = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    opt.step()
    return layer, opt


@pytest.mark.parametrize("keep", (1, 2, 3))
def test_a_disk_that_fills_up_in_a_save_costs_no_earlier_one(tmp_path, monkeypatch, keep):
    for step in (10, 20, 30):
        last = stepped()
        save_state(tmp_path, *last, step, keep)

    def full(*_):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="make room, and go on from the last save"):
        save_state(tmp_path, *stepped(), 40, keep)
    again = stepped()
    assert load_state(tmp_path, *again) == 30
    assert torch.equal(again[0].weight, last[0].weight)


def test_deepspeeds_parts_stay_as_long_as_the_saves_that_name_them(tmp_path):
    class Engine:
        def save_checkpoint(self, place, tag, **_):
            (place / tag).mkdir(parents=True)

    for step in (10, 20, 30):
        save_state(tmp_path, Engine(), None, step, 2)
    kept = {torch.load(file)["step"] for file in tmp_path.glob("state*.pt")}
    assert kept == {20, 30} == {int(place.name) for place in (tmp_path / "state").iterdir()}


@pytest.mark.parametrize("side, other", ("ug", "gu"))
def test_a_side_that_no_pair_has_is_not_trained_in_silence(tmp_path, side, other):
    record = toy_records(side, 1, 0)[0]
    rows = as_dataset([pair_row("single", 1.0, **{side: record})])
    with pytest.raises(ValueError, match=f"no pair has a .*sides is '{other}'"):
        train(rows, tmp_path / "run", replace(S, sides=other), device="cpu")
    assert not (tmp_path / "run").exists()


def test_one_reward_for_both_sides_needs_both_before_anything_is_measured(tmp_path, pairs):
    lone = pairs.map(lambda row, i: dict(prompt=None) if i == 3 else {}, with_indices=True)
    with pytest.raises(ValueError, match="needs both sides of every pair, and pair 3 has one"):
        train(lone, tmp_path / "run", replace(S, advantage="unified"), device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mix, told", (("aligned", dict(sides="u")), ("unpaired", {})))
def test_a_side_that_no_step_has_trained_yet_is_no_hindrance_to_a_resume(tmp_path, mix, told):
    records, few = (toy_records("u", 40, 0), toy_records("g", 40, 0)), dict(clusters=8)
    pairs = make_pairs(*records, mix=mix, **few)[0]
    s = replace(S, steps=4, pairs_per_step=1, **told)  # an unpaired step has one side

    def stop(done, metrics, sides):
        if done == 2:
            raise KeyboardInterrupt

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(pairs, whole, s, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(pairs, broken, s, device="cpu", callback=stop)
    train(pairs, broken, s, device="cpu", resume=True)
    assert without_cost(read_metrics(whole)) == without_cost(read_metrics(broken))
    a, b = (load_file(run / "checkpoint" / "model.safetensors") for run in (whole, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_choices_and_instruction_count_to_a_prompts_length():
    policy, record = JanusPolicy(*load_janus()), toy_records("u", 1, 0)[0]
    sampling = Sampling.of(S)
    short = as_dataset([pair_row("single", 1.0, u=record)])
    check_lengths(policy, short, sampling)
    choices = ["red " * 400 + end for end in "abcd"]
    long = pair_row("single", 1.0, u=record | dict(choices=choices, answer=choices[0]))
    for pairs, asked in (
        (as_dataset([long]), sampling),
        (short, replace(sampling, instruction="red " * 1000)),
    ):
        with pytest.raises(ValueError, match="question of pair 0 needs .* positions"):
            check_lengths(policy, pairs, asked)


@pytest.mark.parametrize("task", "ug")
def test_a_prompt_fits_to_the_last_position_and_one_more_is_refused(task):
    policy, text = JanusPolicy(*load_janus()), "red" + " red" * 9
    picture = Image.new("RGB", (48, 48))
    u, g = policy.text_prompts([text], [picture]), policy.image_prompts([text])
    prompt = u if task == "u" else g
    # an answer beside a picture of 36 tokens, or a drawing of 36; and the chat's frame
    words = len(policy.processor.tokenizer(text)["input_ids"])
    frame = prompt.input_ids.shape[1] - words - (36 if task == "u" else 0)
    assert 0 < frame < 32
    needed = prompt.input_ids.shape[1] + (S.max_new_tokens if task == "u" else 36)
    config = policy.model.config.text_config
    config.max_position_embeddings = needed
    loop.check_length(policy, prompt, Sampling.of(S), "text")
    config.max_position_embeddings -= 1
    with pytest.raises(ValueError, match=f"text needs {needed} tokens.* {needed - 1} positions"):
        loop.check_length(policy, prompt, Sampling.of(S), "text")


def test_a_picture_that_an_emu3_reads_counts_as_it_is_read():
    policy = policy_for(*load_checkpoint("nano-emu3"))
    sizes = []
    for size in ((48, 48), (480, 40)):
        columns = dict(question=["how many?"], choices=[None], prompt=[None])
        columns["u_image"] = [Image.new("RGB", size)]
        (prompt,) = policy.text_prompts(["how many?"], columns["u_image"]).input_ids
        sizes.append(len(prompt))
        config = policy.model.config.text_config
        config.max_position_embeddings = len(prompt) + S.max_new_tokens
        check_lengths(policy, columns, Sampling.of(S))
        config.max_position_embeddings -= 1
        with pytest.raises(ValueError, match="question of pair 0 needs"):
            check_lengths(policy, columns, Sampling.of(S))
    assert sizes[0] > sizes[1]  # a strip of 10 to 1 has fewer tokens


@pytest.mark.parametrize("place", (0, 24))
@pytest.mark.parametrize("task, column", (("u", "question"), ("g", "prompt")))
def test_the_longest_of_many_prompts_is_looked_at_wherever_it_stands(task, column, place):
    asked = dict(question="how many?", choices=None, u_image=Image.new("RGB", (48, 48)))
    rows = [asked | dict(prompt="a red star") for _ in range(25)]
    rows[place][column] = "red " * 2000
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    with pytest.raises(ValueError, match=f"{column} of pair {place} needs"):
        check_lengths(JanusPolicy(*load_janus()), columns, Sampling.of(S))


def test_a_split_that_was_decided_stays_as_it_is(tmp_path, pairs):
    "Another version may decide otherwise: a run that goes on must not train on what it held out."
    decided = dict(held=[0, 5], kept=[7, 2])
    (tmp_path / "split.json").write_text(json.dumps(decided))
    assert read_split(tmp_path, not_toy(pairs), None, Accelerator(cpu=True)) == decided
    assert json.loads((tmp_path / "split.json").read_text()) == decided


def test_pairs_are_drawn_by_their_own_weights_where_some_are_held_out(pairs):
    kept = [len(pairs) - 1, 3, 1]
    s = replace(S, weighting="sqrt", sample_by_weight=True)
    own = [pairs[i]["similarity"] ** 0.5 if pairs[i]["kind"] == "retrieved" else 1 for i in kept]
    assert loop.drawing_weights(pairs, kept, s).tolist() == pytest.approx(own)
    assert loop.drawing_weights(pairs, kept, replace(s, sample_by_weight=False)) is None


# asked to stop: after the step, or in its evaluation; what is wrong with its rewards; what is made
AFTER_A_STEP = [
    (1, (False, False), "", []),
    (2, (False, False), "", ["save", "score"]),  # evaluations every 2 steps
    (3, (False, False), "", ["save"]),  # saves every 3
    (1, (True, True), "", ["save", "stopped"]),
    (2, (True, True), "", ["save", "stopped"]),  # nobody waits for the evaluation
    (2, (False, True), "", ["save", "score", "stopped"]),
    (7, (True, True), "", ["save"]),  # the last: only its end is left
    (7, (False, False), "", ["save"]),
    (1, (False, False), "no rewards", ["save", "no rewards; step 1 is saved"]),
    (7, (False, False), "no rewards", ["no rewards"]),
]


@pytest.mark.parametrize("done, asked, fault, made", AFTER_A_STEP)
def test_what_follows_a_step(done, asked, fault, made, monkeypatch):
    s, seen, answers = replace(S, steps=7, eval_every=2, save_every=3), [], list(asked)
    monkeypatch.setattr(loop, "save_state", lambda *_: seen.append("save"))
    monkeypatch.setattr(loop, "score_on_the_way", lambda *_: seen.append("score"))
    stop = SimpleNamespace(by_anyone=lambda: answers.pop(0))
    parts = SimpleNamespace(policy=None, opt=None)
    try:
        loop.save_and_score(parts, None, None, done, s, None, None, fault, stop)
    except loop.Stopped:
        seen.append("stopped")
    except ValueError as e:
        seen.append(str(e))
    assert seen == made


@pytest.mark.parametrize("name", ("before", "", "after"))
def test_only_the_first_evaluation_may_refuse_a_judge_that_knows_nothing(name, monkeypatch):
    result = dict(protocol=dict(n_g=9), figures=dict(score_mean=None), items={})
    monkeypatch.setattr(loop, "evaluate", lambda *_: dict(result))
    for other in ("save_samples", "read_items", "change_widths", "log_line"):
        monkeypatch.setattr(loop, other, lambda *_: {})
    args = None, ([], []), Path("out"), 1, S, None, Accelerator(cpu=True), name
    if name == "before":
        with pytest.raises(ValueError, match="every reward of the held-out drawings"):
            loop.measure(*args)
    else:
        assert loop.measure(*args)["figures"] == dict(score_mean=None)


def test_the_bar_shows_the_last_step_and_one_process_alone_warns():
    shown, said = [], []
    bar = SimpleNamespace(set_postfix=shown.append, write=lambda text, file: said.append(text))
    lines = [dict(flat_g=1.0, reward_g=0.1 * i) for i in range(5)]
    for quiet in (True, False):
        loop.tell(bar, lines, quiet)
        assert len(said) == (not quiet)
    assert shown == [dict(reward_g="0.40")] * 2


def test_one_held_out_drawing_has_no_score_and_stops_nothing():
    def told(n, score):
        return dict(protocol=dict(n_g=n), figures=dict(score_mean=score))

    for fine in (told(1, None), dict(protocol=dict(n_g=0), figures={}), told(2, 0.0)):
        loop.check_judged(fine)
    with pytest.raises(ValueError, match="every reward of the held-out drawings is missing"):
        loop.check_judged(told(2, None))


def test_peak_memory_is_a_gpus_where_one_is_used_and_else_the_process_own(monkeypatch):
    own = loop.peak_gb()
    assert 0.1 < own < 100
    lines = open("/proc/self/status").read() if sys.platform == "linux" else ""
    if "VmHWM" in lines:
        told = int(lines.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
        assert own > 0.98 * told  # a parent's that was larger may count
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)  # a run on the CPU
    assert loop.peak_gb() == pytest.approx(own, rel=0.02)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3e9)
    assert loop.peak_gb() == 3


@pytest.mark.parametrize("side, column", (("u", "question"), ("g", "prompt")))
def test_a_held_out_record_that_is_too_long_is_told_before_the_work(
    pairs, tmp_path, monkeypatch, side, column
):
    monkeypatch.setattr(loop, "measure", lambda *_: pytest.fail("it began to work"))
    held = {task: toy_records(task, 6, 7) for task in "ug"}
    held[side][5][column] = "red " * 2000  # behind the quarter that is scored on the way
    with pytest.raises(ValueError, match=f"{column} of held-out record 5 needs .* positions"):
        train(pairs, tmp_path / "run", S, device="cpu", held=(held["u"], held["g"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("n, scored", ((1, 1), (3, 2), (4, 2), (7, 2), (8, 2), (40, 10)))
def test_an_evaluation_on_the_way_has_a_score_and_so_a_best(monkeypatch, n, scored):
    seen = []
    monkeypatch.setattr(loop, "measure", lambda janus, held, *_: seen.append(held) or {})
    monkeypatch.setattr(loop, "save_best", lambda *_: None)
    made = SimpleNamespace(sampler=None, policy=None)
    loop.score_on_the_way(made, (list(range(n)), []), None, 1, S, None, None)
    assert seen == [[list(range(scored)), []]]


def test_toy_pairs_that_show_a_held_out_picture_are_not_trained_on(pairs):
    held = [dict(scene=pairs[3]["u_scene"]), dict(scene=pairs[3]["u_scene"])], [dict(scene="")]
    kept = decide_split(pairs, held)["kept"]
    seen = [
        i for i, row in enumerate(pairs) if pairs[3]["u_scene"] in (row["u_scene"], row["g_scene"])
    ]
    assert 3 in seen and kept == [i for i in range(len(pairs)) if i not in seen]
    single = as_dataset([pair_row("single", 1.0, u=toy_records("u", 1, 0)[0])])
    everything = list(range(len(pairs)))
    fresh = tuple(toy_records(task, 200, 10_000, "heldout") for task in "ug")
    assert decide_split(pairs, fresh) == decide_split(pairs, None) == dict(held=[], kept=everything)
    assert decide_split(single, ([dict(question="?")], []))["kept"] == [0]  # no scene is no match
