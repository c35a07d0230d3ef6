"""One step on rollouts, rewards and weights made by hand moves every weight as plain loops say."""

import copy
import math
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hand_made import END, HandMade, Prompts, code, pair, reward, value
from pairuni_nb import processes
from pairuni_nb.processes import add_up
from pairuni_nb.rollout import Rollouts, Sampling
from pairuni_nb.settings import TrainSettings
from pairuni_nb.step import Side, ceiling, compares, describe, rows_of_step, train_step

PAIRS = [
    pair("retrieved", 0.25, 3, 0),
    pair("aligned", 1.0, 1, 1),
    pair("random", 0.36, 2, 3),
    pair("retrieved", 0.64, 0, 2),
]
ONE_SIDED = [
    pair("single", 1.0, g=2),
    pair("retrieved", 0.25, 3, 0),
    pair("single", 0.5, u=1),
    pair("retrieved", 0.64, 4, 5),
]
IDS = [40, 7, 19, 5]
S = TrainSettings(rollouts=4, max_new_tokens=5, max_grad_norm=1e9)

# settings that a step reads, each with another value, under which it must move otherwise
CHANGES = dict(
    weighting=("linear", "none", "softmax", "reward"),
    sample_by_weight=(True,),
    advantage=("best",),
    rollouts=(3,),
    clip_eps=(0.02,),
    clip_eps_high=(0.4,),
    num_iterations=(2,),
    loss_type=("dapo", "dr_grpo"),
    beta=(0.5,),
    max_grad_norm=(0.05,),
    temperature=(0.7,),
    cfg_weight=(2.0,),
    cfg_scoring=("cond",),
    max_new_tokens=(2,),
    mask_truncated=(True,),
    importance_cap=(1.1,),
    precision=("bf16",),
    seed=(1,),
)
UNCHANGED = dict(
    micro_batch=3, rollout_gb=0.5, agreement_every=0
)  # the update does not depend on them
# what test_guard_runs looks at, and of the instruction what is asked
ELSEWHERE = {"steps", "pairs_per_step", "lr", "warmup", "eval_every", "eval_items", "save_every"}
ELSEWHERE |= {"gradient_checkpointing", "lora_rank", "train_vision", "shard"}
ELSEWHERE |= {"instruction", "plain_reward", "rollouts_every", "keep"}
ELSEWHERE |= {"sides", "combine"}  # test_step


def plain_advantages(values, K):
    "Rewards less their group's mean, over its standard deviation; 0 where nothing is to compare."
    advantages = []
    for start in range(0, len(values), K):
        group = values[start : start + K]
        known = [v for v in group if v is not None]
        mean = sum(known) / max(len(known), 1)
        spread = math.sqrt(sum((v - mean) ** 2 for v in known) / max(len(known) - 1, 1))
        flat = len(set(known)) < 2
        advantages += [0.0 if v is None or flat else (v - mean) / (spread + 1e-4) for v in group]
    return advantages


def plain_weights(rows, values, s):
    "One a pair of a side; the similarity of all but retrieved pairs counts as 1."
    similar = [row["similarity"] if row["kind"] == "retrieved" else 1.0 for row in rows]
    if s.sample_by_weight or s.weighting == "none":
        return [1.0] * len(rows)
    if s.weighting == "softmax":
        pulls = [math.exp(10 * x) for x in similar]
        return [len(rows) * pull / sum(pulls) for pull in pulls]
    if s.weighting == "reward":
        groups = [values[i : i + s.rollouts] for i in range(0, len(values), s.rollouts)]
        known = [[v for v in group if v is not None] for group in groups]
        means = [sum(group) / max(len(group), 1) for group in known]
        return [mean * len(rows) / sum(means) for mean in means]
    return [math.sqrt(x) if s.weighting == "sqrt" else x for x in similar]


def best_of(values, K):
    "1 for the best of each group of K, if one is better than another."
    advantages = []
    for start in range(0, len(values), K):
        group = values[start : start + K]
        known = [v for v in group if v is not None]
        advantages += [float(len(set(known)) > 1 and v == max(known)) for v in group]
    return advantages


def plain_values(drawn):
    "Rewards of some rollouts, each by its own record and tokens."
    values = []
    for group, tokens in zip(drawn.group.tolist(), drawn.tokens):
        i = int(drawn.prompts.numbers[group])
        values.append(value(drawn.task, i, code(tokens)))
    return values


def plain_loss(logp, old, ref, drawn, advantages, s):
    "The clipped loss of one side (Eq. 1) by loops, and how often it clips."
    R, T = drawn.tokens.shape
    lengths = drawn.mask.sum(1).tolist()
    if s.mask_truncated:
        lengths = [n if ended else 0 for n, ended in zip(lengths, drawn.ended)]
    high = s.clip_eps if s.clip_eps_high is None else s.clip_eps_high
    total, clipped, tokens = 0.0, dict(low=0, high=0), sum(lengths)
    for r, n in enumerate(lengths):
        row = 0.0
        for t in range(n):
            A, ratio = advantages[r], (logp[r, t] - old[r, t]).exp()
            near = min(max(ratio.item(), 1 - s.clip_eps), 1 + high)
            clips = ratio.item() * A > near * A
            gain = near * A if clips else ratio * A
            if s.importance_cap:
                off = (old[r, t] - drawn.sample_logp[r, t]).exp().item()
                gain = gain * min(off, s.importance_cap)
            row = row - gain
            if clips:
                clipped["low" if A < 0 else "high"] += 1
            if s.beta:
                d = ref[r, t] - logp[r, t]
                row = row + s.beta * ratio * (d.exp() - d - 1)
        divisor = {"grpo": n * R, "dr_grpo": R * T, "dapo": tokens}[s.loss_type]
        total = total + row / max(divisor, 1)
    return total, {name: count / tokens for name, count in clipped.items()}


def plain_update(policy, rollouts, pairs, s, lr, ref):
    "What a step on these rollouts must do to the weights, and the figures that it must log."
    told, sides = {}, []
    for drawn in rollouts:
        rows = [row for row in pairs if row["question" if drawn.task == "u" else "prompt"]]
        values = plain_values(drawn)
        weights = plain_weights(rows, values, s)
        relative = best_of if s.advantage == "best" else plain_advantages
        advantages = relative(values, s.rollouts)
        weighed = [A * weights[r // s.rollouts] for r, A in enumerate(advantages)]
        with torch.no_grad():
            old = drawn.logp if s.precision == "fp32" else policy(drawn)
            sides.append((drawn, weighed, old, ref(drawn)))
    for _ in range(s.num_iterations):
        policy.zero_grad()
        for drawn, weighed, old, ref_logp in sides:
            loss, clipped = plain_loss(policy(drawn), old, ref_logp, drawn, weighed, s)
            loss.backward()
            told[f"loss_{drawn.task}"] = loss.item()
            for name, share in clipped.items():
                told[f"clip_{name}_{drawn.task}"] = share
        trained = [p for p in policy.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trained))
        with torch.no_grad():
            for p in trained:
                p -= lr * p.grad * min(1.0, s.max_grad_norm / norm)
        told["grad_norm"] = norm
    return told


def two_steps(s, pairs=PAIRS, lr=0.5):
    "Weights after two steps of ours and after two plain ones, and their figures."
    ours, ref = HandMade(), HandMade(seed=5)
    plain, told, expected = copy.deepcopy(ours), [], []
    opt = torch.optim.SGD(ours.parameters(), lr=lr)
    judges, accelerator = dict(u=reward("u"), g=reward("g")), Accelerator(cpu=True)
    for step in range(2):
        args = ours, opt, pairs, IDS, step, s, judges, accelerator
        told.append(train_step(*args, ref=ref if s.beta else None)[0])
        drawn = [call["rollouts"] for call in ours.calls[-2:]]
        expected.append(plain_update(plain, drawn, pairs, s, lr, ref))
    ours, plain = (dict(policy.named_parameters()) for policy in (ours, plain))
    return ours, plain, told, expected


def apart(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def usual():
    return two_steps(S)


def test_every_setting_is_looked_at():
    assert {f.name for f in fields(TrainSettings)} == {*CHANGES, *UNCHANGED, *ELSEWHERE}


def test_the_step_is_the_plain_one(usual):
    ours, plain, told, expected = usual
    assert apart(ours, plain) < 1e-5
    assert apart(ours, dict(HandMade().named_parameters())) > 0.1
    for mine, other in zip(told, expected):
        for name in other:
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    assert min(told[0][f"clip_{end}_{task}"] for end in ("low", "high") for task in "ug") > 0


@pytest.mark.parametrize("name, new", [(n, v) for n, values in CHANGES.items() for v in values])
def test_a_setting_acts_as_the_plain_step_says(name, new, usual):
    ours, plain, told, expected = two_steps(replace(S, **{name: new}))
    assert apart(ours, plain) < 1e-5
    assert apart(ours, usual[0]) > 1e-3, f"{name} changes nothing"
    assert told[1]["grad_norm"] == pytest.approx(expected[1]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_saves_memory_changes_no_weight(name):
    s = replace(S, importance_cap=1.1, beta=0.1, num_iterations=2)
    ours, plain, *_ = two_steps(replace(s, **{name: UNCHANGED[name]}), lr=0.05)
    assert apart(ours, plain) < 1e-5


def test_a_pass_has_no_more_rows_than_asked_for():
    policy = HandMade()
    sampled(replace(S, micro_batch=5, precision="bf16", agreement_every=0), policy=policy)
    by_sampler, by_step = policy.passes[:2], policy.passes[2:]
    assert by_sampler == [16, 16]
    assert by_step == [5, 5, 5, 1] * 4  # of both sides: the old log-probs, then the update


def test_sides_that_are_missing_keep_records_pairs_and_weights_together():
    ours, plain, *_ = two_steps(S, ONE_SIDED)
    assert apart(ours, plain) < 1e-5
    other, *_ = two_steps(S, [row | dict(similarity=1.0) for row in ONE_SIDED])
    assert apart(ours, other) > 1e-3


def sampled(s=S, pairs=PAIRS, ids=IDS, step=0, policy=None):
    "What the sampler was given in one step, by task."
    policy = policy or HandMade()
    opt = torch.optim.SGD(policy.parameters(), lr=0.0)
    judges = dict(u=reward("u"), g=reward("g"))
    train_step(policy, opt, pairs, ids, step, s, judges, Accelerator(cpu=True))
    return {call["rollouts"].task: call for call in policy.calls}


def test_the_sampler_is_asked_for_what_the_settings_say():
    s = replace(S, temperature=0.7, cfg_weight=2.5, cfg_scoring="cond", max_new_tokens=4)
    policy = HandMade()
    s = replace(s, rollout_gb=0.25, instruction="be brief")
    for call in sampled(s, policy=policy).values():
        assert call["sampling"] == Sampling(0.7, 2.5, "cond", 4, "be brief")
        assert call["gb"] == 0.25
    assert policy.instructions == {"be brief"}


def test_noise_belongs_to_a_pair_a_task_a_step_and_a_seed():
    noise = {task: call["noise"] for task, call in sampled().items()}
    rows = torch.cat([noise["u"][:, :3], noise["g"]])
    assert len(rows.unique(dim=0)) == len(rows) == 2 * 4 * S.rollouts
    turned = sampled(pairs=PAIRS[::-1], ids=IDS[::-1])
    for task in "ug":
        groups = noise[task].view(4, S.rollouts, -1)
        assert torch.equal(turned[task]["noise"].view(groups.shape), groups.flip(0))
        for other in (sampled(step=1), sampled(replace(S, seed=1)), sampled(ids=[1, 2, 3, 4])):
            assert not (other[task]["noise"] == noise[task]).any()
    twice = sampled(ids=[40, 7, 40, 5])  # a pair may come twice in a step
    for task in "ug":
        assert len(twice[task]["noise"].unique(dim=0)) == 4 * S.rollouts
    some = sampled(pairs=ONE_SIDED)  # U has the pairs 1, 2 and 3, G has 0, 1 and 3
    assert torch.equal(some["u"]["noise"], noise["u"][S.rollouts :])
    kept = noise["g"].view(4, S.rollouts, -1)[[0, 1, 3]].flatten(0, 1)
    assert torch.equal(some["g"]["noise"], kept)


def test_what_samples_may_be_another_than_what_is_trained():
    policy, sampler = HandMade(), HandMade()
    opt = torch.optim.SGD(policy.parameters(), lr=0.5)
    judges = dict(u=reward("u"), g=reward("g"))
    args = policy, opt, PAIRS, IDS, 0, S, judges, Accelerator(cpu=True)
    train_step(*args, sampler=sampler)
    assert len(sampler.calls) == 2 and not policy.calls
    assert apart(dict(policy.named_parameters()), dict(sampler.named_parameters())) > 0.1


# which pairs, when


def test_the_order_has_a_seed_and_every_epoch_its_own():
    epochs = [rows_of_step(12, 12, seed, step) for seed in (0, 1) for step in (0, 1)]
    assert all(sorted(order) == list(range(12)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 4
    fives = sum((rows_of_step(12, 5, 1, step) for step in range(5)), [])
    assert fives[:24] == epochs[2] + epochs[3]  # whatever a step takes


# what a step logs

NAN = math.nan
WORTH = [[1, 0, 0.5, NAN], [0.3, 0.3, 0.3, NAN], [NAN] * 4, [0, 0, 0, 1]]
KINDS = ("retrieved", "aligned", "retrieved", "aligned")


def side(task, tokens, outputs):
    tokens = torch.tensor(tokens)
    mask, none = tokens != 0, torch.zeros(tokens.shape)
    ended = (tokens == END).any(1) | (task == "g")
    group = torch.arange(16) // 4
    logp = torch.full(tokens.shape, -0.25)
    drawn = Rollouts(Prompts(task, []), group, tokens, mask, ended, none, logp, Sampling())
    pairs = [dict(kind=kind, similarity=0.1 * i) for i, kind in enumerate(KINDS)]
    weights, advantages = torch.tensor([0.2, 1, 0.4, 1]), torch.tensor([0.0, 3, 0, 3] * 4)
    return Side(drawn, torch.tensor(WORTH), outputs, pairs, weights, advantages, none)


def test_the_figures_of_a_step_are_counted():
    form = "<think>a</think><answer>b</answer>"
    said = [[2, END, 0], [2, 3, END], [2, 3, 4], [4, 4, 4]] * 4
    u = side("u", said, [form, form, form, "b"] * 4)
    told = describe(dict(u=u, g=side("g", [[2, 3]] * 16, [])))
    for task in "ug":
        assert told[f"reward_{task}"] == pytest.approx((1.5 + 0.9 + 1) / 10)
        assert told[f"missing_{task}"] == pytest.approx(6 / 16)
        assert told[f"flat_{task}"] == 2 / 4  # all equal, and none there
        assert told[f"spread_{task}"] == 2 / 4
        assert told[f"adv_std_{task}"] == pytest.approx(math.sqrt(16 * 1.5**2 / 15))
        assert told[f"entropy_{task}"] == pytest.approx(0.25)
        assert told[f"reward_{task}_retrieved"] == pytest.approx(1.5 / 3)
        assert told[f"reward_{task}_aligned"] == pytest.approx((0.9 + 1) / 7)
    assert told["weight_retrieved"] == pytest.approx(0.3) and told["weight_aligned"] == 1
    assert told["similarity_retrieved"] == pytest.approx(0.1)
    assert told["similarity_aligned"] == pytest.approx(0.2)
    assert told["well_formed"] == 0.75
    assert told["truncated"] == 0.5  # at full length and without an end
    assert told["answer_tokens"] == pytest.approx((2 + 3 + 3 + 3) / 4)


def test_figures_do_not_depend_on_the_parts_of_a_step():
    s = replace(S, beta=0.5, num_iterations=2, mask_truncated=True, agreement_every=1)
    whole, parts = (two_steps(replace(s, micro_batch=n), lr=0.02)[2] for n in (16, 3))
    names = [name for name in whole[0] if not name.startswith("sec_")]
    for figure in ("clip_low", "clip_high", "kl", "ratio_mean", "ratio_max", "loss", "gap_mean"):
        assert {f"{figure}_u", f"{figure}_g"} < set(names)
    for a, b in zip(whole, parts):
        for name in names:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), name
    assert whole[0]["gap_g"] == pytest.approx(0.5, abs=0.01)  # the hand-made sampler's error
    assert 0.2 < whole[0]["gap_mean_g"] < 0.4  # a sine's mean is 2/pi of its most
    rows = torch.sin(torch.arange(48.0)).view(16, 3).sum(1)
    assert whole[0]["gap_seq_g"] == pytest.approx(0.5 * rows.abs().max().item(), abs=1e-4)


def test_sums_add_up_and_largest_values_do_not():
    stats = {}
    for share, clip, ratio in ((0.75, 0.4, 1.5), (0.25, 0.8, 1.2)):
        add_up(stats, "u", dict(clip_low=clip, ratio_max=ratio), share)
    assert stats == dict(clip_low_u=pytest.approx(0.5), ratio_max_u=1.5)


# what several processes share out


def as_process(monkeypatch, rank, size):
    monkeypatch.setattr(processes, "rank_and_size", lambda: (rank, size))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_processes_take_every_row_once_and_pass_in_step(size, n, monkeypatch):
    taken = []
    for rank in range(size):
        as_process(monkeypatch, rank, size)
        taken.append(list(processes.passes(n, 2)))
    assert {len(own) for own in taken} == {-(-n // (2 * size))}
    order = []
    for together in zip(*taken, strict=True):
        assert len({bool(last) for _, _, last in together}) == 1
        for rows, counts, _ in together:
            assert 1 <= len(rows) <= 2
            order += rows.tolist() if counts else []
    assert order == list(range(n))
    assert [bool(last) for *_, last in taken[0]] == [False] * (len(taken[0]) - 1) + [True]


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_a_gradient_is_a_mean_over_processes_so_each_gives_its_sum(counts, last, monkeypatch):
    given = SimpleNamespace(sync_gradients=not last, backward=lambda loss: sums.append(loss))
    sums = []
    as_process(monkeypatch, 1, 3)
    processes.backward(torch.tensor(0.5), counts, last, given)
    assert sums == [1.5 if counts else 0] and given.sync_gradients == last


def test_sums_of_all_processes_and_largest_values_of_any(monkeypatch):
    stats = [
        dict(loss_u=0.25, ratio_max_u=2.0, gap_g=0.1, gap_seq_g=3.0, gap_mean_g=0.5, grad_norm=1.0),
        dict(loss_u=0.5, ratio_max_u=1.0, gap_g=0.3, gap_seq_g=2.0, gap_mean_g=0.5, grad_norm=1.0),
    ]
    monkeypatch.setattr(processes, "gather", lambda own: stats)
    assert processes.of_all(stats[0]) == dict(
        loss_u=0.75, ratio_max_u=2.0, gap_g=0.3, gap_seq_g=3.0, gap_mean_g=1.0, grad_norm=1.0
    )


def test_rollouts_of_processes_are_put_together_without_stand_ins(monkeypatch):
    drawn = sampled()["u"]["rollouts"]
    parts = [drawn.index(slice(0, 9)), drawn.index([0]), drawn.index(slice(9, 16))]
    values, gathered = torch.arange(16.0), []
    cut = [values[:9], values[:1], values[9:]]
    texts = [[f"{i}" for i in part.tolist()] for part in cut]

    def gather(mine):  # the first round only collects
        gathered.append(mine)
        return gathered[:3]

    monkeypatch.setattr(processes, "gather", gather)
    as_process(monkeypatch, 0, 3)
    for counts, *own in zip((True, False, True), parts, cut, texts):
        whole, told, said = processes.gather_rollouts(*own, counts, pad=0)
    assert gathered[1] is None
    for name, x in drawn.by_row().items():
        assert torch.equal(getattr(whole, name), x), name
    assert torch.equal(told, values) and said == [f"{float(i)}" for i in range(16)]


@pytest.mark.parametrize(("noise_u", "noise_g"), [(1, 1), (2, 0.5), (0.1, 3)])
def test_the_ceiling_is_what_sides_that_pull_alike_show(noise_u, noise_g):
    "One signal, and noise of its own in each half of each side."
    D, rng = 400_000, torch.Generator().manual_seed(0)
    signal = torch.randn(D, generator=rng)

    def halves(size):
        return [signal + size * torch.randn(D, generator=rng) for _ in range(2)]

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    (u1, u2), (g1, g2) = halves(noise_u), halves(noise_g)
    seen = cosine(u1 + u2, g1 + g2)
    assert ceiling(cosine(u1, u2), cosine(g1, g2)) == pytest.approx(seen, abs=0.01)


def test_the_ceiling_at_its_ends():
    assert ceiling(1, 1) == 1 and ceiling(0.5, 0.5) == pytest.approx(2 / 3)
    # halves that pull apart, by chance, have nothing in common
    assert ceiling(-0.2, 1) == ceiling(1, 0) == ceiling(-1, 0.5) == ceiling(-1.0000001, 1) == 0


def test_which_steps_compare_the_sides():
    both, one = dict(u=None, g=None), dict(u=None)
    cpu, s = Accelerator(cpu=True), replace(S, agreement_every=3)
    assert [compares(step, both, s, cpu) for step in range(7)] == [True, False, False] * 2 + [True]
    assert not compares(3, one, s, cpu)
    assert not compares(3, both, replace(s, combine="alternate"), cpu)
    assert not compares(0, both, replace(s, agreement_every=0), cpu)
