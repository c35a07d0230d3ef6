"""What keeps a large model's training in memory changes nothing else: pieces, checkpointing, autocast, LoRA, budgets."""

from dataclasses import replace
from functools import partial
from weakref import WeakSet

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from PIL import Image
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from pairuni_nb import rollout
from pairuni_nb.janus import nano_folder
from pairuni_nb.pairing import make_pairs
from pairuni_nb.plan import Work, matrices, memory, shape_of
from pairuni_nb.rewards import scene_reward
from pairuni_nb.rollout import JanusPolicy, Sampling, gap, noise
from pairuni_nb.settings import PRO, TrainSettings
from pairuni_nb.prepare import add_lora, merge_lora, prepare, round_frozen, without_lora
from pairuni_nb.run_folder import log_line, read_metrics
from pairuni_nb.step import train_step
from pairuni_nb.train import finish, train
from pairuni_nb.world import records
from test_rollout import ASK, DRAW, nano_policy, random_nano, rollouts, saved

pytestmark = pytest.mark.long


WAITS = {
    getattr(torch.ops.aten, name).default
    for name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero")
}  # ask the device for a number


class Watch(TorchDispatchMode):
    "The most numbers in a tensor of each width that operations make, and how often one asks the device for a number."

    def __init__(self):
        super().__init__()
        self.largest, self.asked = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.ndim:
                self.largest[x.shape[-1]] = max(self.largest.get(x.shape[-1], 0), x.numel())
        self.asked += func in WAITS
        return out


def gradients(policy, r):
    "Log-probs, and the gradient of a weighted sum of them by name"
    policy.zero_grad()
    logp = policy(r)
    (logp * torch.linspace(-1, 1, logp.numel()).view_as(logp)).sum().backward()
    return logp.detach(), {
        n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None
    }


def same(a, b):
    "Two results of `gradients`, up to rounding"
    assert torch.allclose(a[0], b[0], atol=1e-5) and a[1].keys() == b[1].keys()
    for n in a[1]:
        assert (a[1][n] - b[1][n]).abs().max() < 1e-4 * max(1e-3, a[1][n].abs().max()), n


# in pieces


@pytest.mark.parametrize("task, scoring", [("u", "guided"), ("g", "guided"), ("g", "cond")])
def test_pieces_and_checkpoints_change_nothing(task, scoring):
    r = rollouts(task, Sampling(0.8, 5.0, scoring))
    whole, few = JanusPolicy(*random_nano()), JanusPolicy(*random_nano(), chunk=5000)
    expected = gradients(whole, r)
    same(gradients(few, r), expected)
    few.checkpoint_layers()
    same(gradients(few, r), expected)
    assert saved(lambda: few(r)) < saved(lambda: whole(r)) / 3
    assert gap(r, few(r)) < 1e-4


def test_logits_come_a_few_at_a_time():
    r, policy = rollouts("u", Sampling()), JanusPolicy(*random_nano(), chunk=5000)
    weight = policy.model.lm_head.weight
    with Watch() as part:
        policy(r).sum().backward()
    with Watch() as naive:
        policy.logits(r).log_softmax(-1).gather(-1, r.tokens[..., None]).sum().backward()
    assert (
        naive.largest[len(weight)]
        == r.tokens.numel() * len(weight)
        > weight.numel()
        >= part.largest[len(weight)]
    )


@pytest.mark.parametrize("task", ["u", "g"])
def test_heads_see_the_completion_alone(task):
    r, policy, seen = rollouts(task, Sampling()), JanusPolicy(*random_nano()), dict(u=0, g=0)
    for name, head in (
        ("u", policy.model.lm_head),
        ("g", policy.model.model.generation_head.vision_head),
    ):
        head.register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: seen[name] + out.shape[:-1].numel()})
        )
    policy(r)
    assert seen == {task: r.tokens.numel(), "ug".replace(task, ""): 0}


# rollouts to a budget


@pytest.mark.parametrize("task", ["u", "g"])
def test_a_budget_changes_nothing(task):
    policy, whole = nano_policy(), rollouts(task, Sampling())
    prompts, gb = whole.prompts, 3.2e-3 if task == "u" else 5.5e-3
    n = policy.rows_that_fit(gb, prompts, Sampling())
    assert (
        1 < n < 12 and n % 4 and policy.rows_that_fit(1e-9, prompts, Sampling()) == 1
    )  # groups are torn apart
    r = policy.sample(prompts, 4, noise(0, 0, range(3), 4, 36), Sampling(), gb=gb)
    for name, x in whole.by_row().items():
        assert torch.allclose(x.float(), r.by_row()[name].float(), atol=1e-4), name
    rows = torch.tensor([1, 6, 7])
    some, T = (
        policy.sample(prompts, 4, noise(0, 0, range(3), 4, 36), Sampling(), rows),
        whole.mask[rows].sum(1).max(),
    )
    assert torch.equal(some.tokens, whole.tokens[rows, :T]) and torch.equal(
        some.group, whole.group[rows]
    )


@pytest.mark.parametrize("precision, size", [("fp32", 4), ("bf16", 2)])
@pytest.mark.parametrize(
    "task, rows, logits, sampling",
    [
        ("u", 1, 1, Sampling(max_new_tokens=7)),
        ("g", 1, 1, Sampling(1.0, 1.0)),
        ("g", 2, 1, Sampling(1.0, 0.5)),
        ("g", 2, 2, Sampling(1.0, 5.0, "cond")),
    ],
)
def test_a_rollouts_bytes_by_hand(task, rows, logits, sampling, precision, size):
    policy = JanusPolicy(*random_nano(), precision)
    policy.model.config.text_config.num_key_value_heads = 2  # of 4
    prompts = policy.image_prompts(DRAW) if task == "g" else policy.text_prompts(ASK)
    tokens = prompts.input_ids.shape[1] + (36 if task == "g" else 7)
    a_token = 2 * 4 * 64 * size  # keys and values, layers, half of the width
    words = 128 if task == "g" else len(policy.processor.tokenizer)
    each = rows * a_token * tokens + logits * 6 * 4 * words  # float32, six copies
    assert policy.rows_that_fit(0.25, prompts, sampling) == int(0.25e9 / each)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_prompt_leaves_as_its_rollouts_take_over(monkeypatch, precision):
    policy, there, seen = JanusPolicy(*random_nano(), precision), WeakSet(), []

    class Prompt(rollout.Prompt):
        def __init__(self):
            super().__init__()
            there.add(self)

    name = "Slots" if precision == "bf16" else "Shared"
    plain = getattr(rollout, name)

    class Kept(plain):
        def __init__(self, layer, rows, **kwargs):
            seen.append((len(there), layer.keys.dtype))
            super().__init__(layer, rows, **kwargs)

    monkeypatch.setattr(rollout, "Prompt", Prompt)
    monkeypatch.setattr(rollout, name, Kept)
    policy.sample(policy.image_prompts(DRAW), 1, noise(0, 0, range(len(DRAW)), 1, 36), Sampling())
    n = policy.model.config.text_config.num_hidden_layers
    assert seen == [
        (n - i, torch.bfloat16 if precision == "bf16" else torch.float32) for i in range(n)
    ]


def test_images_are_decoded_in_pieces():
    r = rollouts("g", Sampling())
    assert (
        abs(nano_policy().images(r).astype(int) - nano_policy().images(r, chunk=5 * 48 * 48)).max()
        <= 1
    )


def test_no_more_pixels_are_decoded_at_a_time_than_asked_for(monkeypatch):
    decoded, decode = [], JanusPolicy.decode
    monkeypatch.setattr(
        JanusPolicy, "decode", lambda self, x: decoded.append(len(x)) or decode(self, x)
    )
    nano_policy().images(rollouts("g", Sampling()), chunk=5 * 48 * 48)
    assert decoded == [5, 5, 2]


@pytest.mark.parametrize("task", ["u", "g"])
def test_sampling_does_not_wait_for_the_device(task, monkeypatch):
    policy, asked = JanusPolicy(*random_nano()), []
    prompts = policy.image_prompts(DRAW) if task == "g" else policy.text_prompts(ASK)
    if task == "u":
        monkeypatch.setattr(
            torch.Tensor, "all", lambda x, *a: False
        )  # the one question that is asked, on a GPU at every 16th token
    for T in (6, 18):
        policy.image_tokens = T
        with Watch() as watch:
            policy._decode(
                prompts, torch.arange(3), noise(0, 0, range(3), 1, T), Sampling(max_new_tokens=T)
            )
        asked.append(watch.asked)
    assert asked[0] == asked[1]


# precision


def bf16_policy():
    return JanusPolicy(*random_nano(), precision="bf16")


@pytest.mark.parametrize("task", ["u", "g"])
def test_bf16_computes_low_and_keeps_high(task):
    policy, full = bf16_policy(), rollouts(task, Sampling())
    r = policy.sample(full.prompts, 4, noise(0, 0, range(3), 4, 36), Sampling())
    logp, grads = gradients(policy, r)
    assert logp.dtype == torch.float32 and all(g.dtype == torch.float32 for g in grads.values())
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert ((r.logp - logp) * r.mask).abs().mean() < 0.05  # some processors: no difference
    lost = ((nano_policy()(r).detach() - logp) * r.mask).abs()
    assert lost.max() > 1e-3 and lost.mean() < 0.1


def test_the_cache_holds_what_attention_reads():
    policy, kept = bf16_policy(), []
    prompts = policy.image_prompts(DRAW)
    for kind in (partial(rollout.Slots, room=2), partial(rollout.Shared, room=2, k=1)):
        with torch.inference_mode(), policy.autocast(True):
            _, cache, _ = policy.prefill(prompts, torch.arange(3), False, kind)
        kept += cache.layers
    tensors = [x for slots in kept[:4] for x in slots.buffers]
    tensors += [x for shared in kept[4:] for x in shared.prompt + shared.own]
    assert {x.dtype for x in tensors} == {torch.bfloat16} and len(tensors) == 24


def test_what_a_gradient_goes_through_is_not_rounded():
    "Rollouts add their gradients to their prompt's keys: in bfloat16 small ones would be lost."
    for kept, asks in ((torch.float32, True), (torch.bfloat16, False)):
        x = torch.randn(1, 1, 2, 4, requires_grad=asks)
        with torch.autocast("cpu", torch.bfloat16):
            layer = rollout.Prompt()
            layer.update(x, 2 * x)
        assert layer.keys.dtype == layer.values.dtype == kept


def test_frozen_eyes_see_in_the_precision_of_the_trunk():
    asked = ASK, [Image.new("RGB", (48, 48), c) for c in ("red", "green", "blue")]
    low, full = (policy.text_prompts(*asked).features for policy in (bf16_policy(), nano_policy()))
    assert not (low.requires_grad or full.requires_grad)
    assert 1e-3 < (low - full).abs().max() < 0.3


def test_old_log_probs_are_recomputed_in_bf16(tmp_path):
    pairs, _ = make_pairs(records("u", 60, 0), records("g", 60, 0), clusters=12)
    s = TrainSettings(
        pairs_per_step=2,
        rollouts=2,
        steps=1,
        eval_items=4,
        precision="bf16",
        gradient_checkpointing=True,
    )
    train(pairs, tmp_path / "run", s, device="cpu")
    step = read_metrics(tmp_path / "run")[1]
    assert (
        step["gap_g"] > 1e-3 and abs(step["ratio_max_g"] - 1) < 1e-6
    )  # the ratio is exact though the sampler was not


@pytest.mark.parametrize("pure", [True, False])
def test_weights_move_at_a_rate_of_1e_6(pure):
    model, processor = random_nano()
    policy = JanusPolicy(model.bfloat16() if pure else model, processor, "fp32" if pure else "bf16")
    weight = policy.model.model.language_model.layers[0].mlp.up_proj.weight
    before, opt = weight.detach().clone(), torch.optim.AdamW([weight], lr=1e-6, weight_decay=0.0)
    for _ in range(3):
        gradients(policy, rollouts("g", Sampling(), 1)) if not pure else policy(
            rollouts("g", Sampling(), 1)
        ).sum().backward()
        opt.step()
    moved = (weight != before).float().mean()
    assert moved < 0.05 if pure else moved > 0.9


# LoRA


def test_lora_trains_the_language_model_alone_and_is_merged(need):
    need("peft")
    policy, r = JanusPolicy(*random_nano()), rollouts("g", Sampling())
    with torch.no_grad():
        before = policy(r)
    add_lora(policy, 4)
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert trained and all("language_model" in n and "lora_" in n for n in trained)
    with torch.no_grad():
        assert torch.equal(policy(r), before)
    torch.manual_seed(0)
    for p in trained.values():
        p.data.normal_(0, 0.1)
    with torch.no_grad():
        after, reference = policy(r), without_lora(policy)(r)
        assert (
            (after - before).abs().max() > 0.1
            and torch.allclose(reference, before, atol=1e-6)
            and torch.equal(policy(r), after)
        )
        merge_lora(policy)
        assert torch.allclose(policy(r), after, atol=1e-3) and not any(
            "lora" in n for n, _ in policy.named_parameters()
        )


def test_a_lora_run_resumes_and_leaves_an_ordinary_janus(tmp_path, need):
    need("peft")
    pairs, _ = make_pairs(records("u", 60, 0), records("g", 60, 0), clusters=12)
    s, calls = (
        TrainSettings(
            pairs_per_step=2,
            rollouts=2,
            steps=2,
            eval_items=4,
            eval_every=9,
            save_every=1,
            lora_rank=4,
            lr=1e-2,
            beta=0.1,
            gradient_checkpointing=True,
        ),
        [],
    )

    def fails_in_step_2(*args):
        calls.append(1)
        return scene_reward(*args) if len(calls) < 3 else 1 / 0

    with pytest.raises(ZeroDivisionError):
        train(pairs, tmp_path, s, rewards=dict(g=fails_in_step_2), device="cpu")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 1 and all(
        "lora_" in n for n in state["model"]
    )  # what is frozen is not in it
    train(pairs, tmp_path, s, device="cpu", resume=True)
    kl = [m["kl_g"] for m in read_metrics(tmp_path) if "kl_g" in m]
    assert kl[0] < 1e-6 < 1e-4 < kl[1]
    names = lambda folder: set(safe_open(folder / "model.safetensors", "pt").keys())
    assert names(tmp_path / "checkpoint") == names(nano_folder())


# what is frozen is cast once


class Casts(TorchDispatchMode):
    "Where the tensors lie that are cast to bfloat16."

    def __init__(self):
        super().__init__()
        self.of = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (
            func in (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)
            and out.dtype == torch.bfloat16 != args[0].dtype
        ):
            self.of.append(args[0].data_ptr())
        return out


def test_lora_casts_no_frozen_matrix_and_computes_the_same(need):
    need("peft")
    seen = []
    for rounded in (False, True):
        torch.manual_seed(0)
        policy = add_lora(bf16_policy(), 4)
        for p in policy.parameters():
            if p.requires_grad:
                p.data.normal_(0, 0.1)
        if rounded:
            round_frozen(policy)
        frozen = {
            m.weight.data_ptr()
            for m in policy.model.model.language_model.modules()
            if isinstance(m, torch.nn.Linear) and not m.weight.requires_grad
        }
        prompts = policy.image_prompts(DRAW)
        with Casts() as casts:
            r = policy.sample(prompts, 2, noise(0, 0, range(3), 2, 36), Sampling())
        seen.append(
            (
                r.tokens,
                r.logp,
                policy(r).detach(),
                sum(at in frozen for at in casts.of),
                sum(p.nbytes for p in policy.parameters()),
            )
        )
        assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32} and len(
            frozen
        ) == 28
    (*before, many, large), (*after, none, small) = seen
    assert (
        all(torch.equal(a, b) for a, b in zip(before, after)) and many == 28 * 36 and none == 0
    )  # 35 tokens and the prompt
    shape = shape_of(policy.model.config)
    planned = memory(shape, Work(replace(PRO, lora_rank=4)))["sample"]["weights"]
    assert large - small == 2 * matrices(shape) and round(planned * 1e9) == small


def test_a_trained_matrix_is_cast_once_for_many_steps_and_kept_for_no_gradient():
    policy = bf16_policy()
    trunk = policy.model.model.language_model.modules()
    trained = {m.weight.data_ptr() for m in trunk if isinstance(m, torch.nn.Linear)}
    with Casts() as casts:
        r = policy.sample(policy.image_prompts(DRAW), 2, noise(0, 0, range(3), 2, 36), Sampling())
    assert sum(at in trained for at in casts.of) == len(trained) == 28
    with Casts() as casts, torch.no_grad():
        policy(r)
    assert sum(at in trained for at in casts.of) == 2 * len(trained)  # the prompt, the drawings


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_a_sharded_policy_is_sampled_in_bf16_and_saved_in_float32(tmp_path, alone):
    pairs, _ = make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=4)
    s = TrainSettings(
        pairs_per_step=2,
        rollouts=2,
        steps=1,
        eval_items=4,
        precision="bf16",
        shard=True,
        lr=1e-4,
        train_vision=True,
    )
    accelerator = Accelerator(cpu=True)
    made = prepare(None, s, accelerator)
    policy, janus, opt, _ = made
    trunk = [
        m.weight
        for m in janus.model.model.language_model.modules()
        if isinstance(m, torch.nn.Linear)
    ]
    assert {w.dtype for w in trunk} == {torch.bfloat16} and all(
        w.dtype == torch.float32 for w in policy.parameters()
    )
    split = {(isinstance(p, DTensor), p.requires_grad) for p in policy.parameters()}
    assert split == {(True, True), (False, False)}  # what is frozen stays whole
    places, before = [w.data_ptr() for w in trunk], trunk[0].clone()
    train_step(
        policy,
        opt,
        [pairs[0], pairs[1]],
        [0, 1],
        0,
        s,
        dict(u=lambda p, texts, t: torch.rand(len(texts)).tolist(), g=scene_reward),
        accelerator,
        None,
        janus,
    )
    assert [w.data_ptr() for w in trunk] == places and (trunk[0] != before).any()
    masters = [p.full_tensor() if isinstance(p, DTensor) else p for p in policy.parameters()]
    assert all(torch.equal(m.to(w.dtype), w) for m, w in zip(masters, janus.parameters()))
    log_line(tmp_path, accelerator, 0, dict(eval_score_mean=0.0))
    (tmp_path / "state").mkdir()  # what only a run that goes on needs
    (tmp_path / "state.pt").touch()
    finish(tmp_path, made, dict(figures={}, change_ci={}, protocol={}), s, accelerator, 0.0)
    assert not list(tmp_path.glob("state*"))
    saved = {p.data_ptr(): n for n, p in janus.model.named_parameters()}
    with safe_open(tmp_path / "checkpoint" / "model.safetensors", "pt") as f:
        for m, w in zip(masters, janus.parameters()):
            assert torch.equal(f.get_tensor(saved[w.data_ptr()]), m)


# the vision tower


def test_the_vision_tower_is_frozen_unless_asked():
    pictures = [Image.new("RGB", (48, 48), c) for c in ("red", "green", "blue")]
    frozen, free = JanusPolicy(*random_nano()), JanusPolicy(*random_nano())
    free.model.model.vision_model.requires_grad_(True)
    scored = []
    for policy in (frozen, free):
        r = policy.sample(
            policy.text_prompts(ASK, pictures), 2, noise(0, 0, range(3), 2, 24), Sampling()
        )
        scored.append(gradients(policy, r))
    assert torch.allclose(scored[0][0], scored[1][0], atol=1e-5)
    towers = [
        any("vision_model" in n and g.abs().sum() > 0 for n, g in grads.items())
        for _, grads in scored
    ]
    assert towers == [False, True] and not any("vqmodel" in n for n in scored[1][1])
