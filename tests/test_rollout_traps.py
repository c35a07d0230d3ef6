"""Edge cases of sampling and scoring that would interrupt the lesson in nbs/11_rollout.ipynb."""

import copy
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaModel

import pairuni_nb.rollout as R
from pairuni_nb.rollout import JanusPolicy, Sampling, gap, join, noise, unconditional
from test_rollout import ASK, DRAW, nano_policy, random_nano, rollouts
from test_train_memory import WAITS


@pytest.fixture
def fresh():
    "A policy that a test may change"
    return JanusPolicy(*random_nano())


def sample_text(policy, sampling, k=8):
    return policy.sample(
        policy.text_prompts(ASK), k, noise(0, 0, range(3), k, sampling.max_new_tokens), sampling
    )


# temperature


@pytest.mark.parametrize("task", ["u", "g"])
def test_temperature_is_used_in_both_passes(task):
    cold, warm = rollouts(task, Sampling(0.5)), rollouts(task, Sampling(1.0))
    with torch.no_grad():
        assert gap(cold, nano_policy()(cold)) < 1e-4
        assert (
            gap(cold, nano_policy()(replace(cold, sampling=warm.sampling))) > 0.1
        )  # another record, another score
    assert (cold.logp.sum() / cold.mask.sum()).exp() > (warm.logp.sum() / warm.mask.sum()).exp()


def test_greedy_rollouts_are_not_scored():
    r = nano_policy().sample(nano_policy().image_prompts(DRAW), 1, None, Sampling(temperature=0))
    assert (r.logp == 0).all()
    with pytest.raises(ValueError, match="greedy"):
        nano_policy()(r)


@pytest.mark.parametrize(
    "bad",
    [
        dict(temperature=-1.0),
        dict(temperature=float("nan")),
        dict(temperature=float("inf")),
        dict(cfg_weight=-1.0),
        dict(cfg_weight=float("nan")),
        dict(cfg_weight=float("inf")),
        dict(max_new_tokens=0),
        dict(cfg_scoring="Guided"),
        dict(cfg_scoring="none"),
    ],
)
def test_bad_sampling_is_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)


# truncation: every token of the vocabulary can come, in both tasks


@pytest.mark.parametrize("task", ["u", "g"])
def test_first_tokens_follow_the_whole_softmax(task, fresh):
    head = fresh.model.lm_head if task == "u" else fresh.model.model.generation_head.vision_head
    head.weight.data.mul_(
        0.1
    )  # nearly flat: a hidden top 50 would leave out most of the vocabulary
    k, sampling = 6000, Sampling(max_new_tokens=1)
    prompts = fresh.text_prompts(ASK[:1]) if task == "u" else fresh.image_prompts(DRAW[:1])
    if task == "g":
        fresh.image_tokens = 1  # one step is enough
    r = fresh.sample(prompts, k, noise(0, 0, [0], k, 1), sampling)
    with torch.no_grad():
        want = fresh.logits(r.index([0]))[0, 0].softmax(-1) * k
    seen = r.tokens[:, 0].bincount(minlength=len(want))
    chi2, n = ((seen - want) ** 2 / want).sum(), len(want) - 1
    assert (want > 5).sum() > 2 * 50 and abs(chi2 - n) < 5 * (
        2 * n
    ) ** 0.5  # chi-square has mean n and variance 2n
    assert (seen > 0).sum() > 0.95 * len(want)  # all of them, but for the rare miss


def test_no_number_of_the_noise_is_used_twice():
    "In another rollout, prompt, step or seed it is another, at other places too."
    parts = [noise(seed, step, ["a", "b"], 3, 40) for seed in (0, 1) for step in (0, 1)]
    numbers = torch.cat(parts).flatten()
    assert len(numbers.unique()) == len(numbers) == 4 * 2 * 3 * 40


# guidance


@pytest.mark.parametrize("w", [0.0, 0.5])
def test_less_than_no_guidance_leaves_the_prompt_behind(w):
    r = rollouts("g", Sampling(1.0, w))
    with torch.no_grad():
        assert gap(r, nano_policy()(r)) < 1e-4
        one, two, less = (
            nano_policy().logits(replace(r, sampling=Sampling(1.0, x))) for x in (1.0, 2.0, w)
        )
    assert (less - one - (1 - w) * (one - two)).abs().max() < 1e-3  # along one line
    assert (less - one).abs().max() > 0.1


# the unconditional prompt


def test_unconditional_prompt_is_built_from_its_own_length():
    policy = nano_policy()
    together, alone = policy.image_prompts(DRAW), [policy.image_prompts([d]) for d in DRAW]
    ids = unconditional(together.attention_mask, policy.bos, policy.pad, policy.boi)
    for p, one in enumerate(alone):
        n = one.input_ids.shape[1]
        assert one.attention_mask.all() and together.attention_mask[p].sum() == n
        assert ids[p, -n:].tolist() == [policy.bos] + [policy.pad] * (n - 2) + [policy.boi]
        assert torch.equal(together.input_ids[p, -n:], one.input_ids[0])


def test_pads_of_the_unconditional_prompt_are_attended(fresh):
    r = rollouts("g", Sampling())
    with torch.no_grad():
        before = fresh(r)
        fresh.model.get_input_embeddings().weight[fresh.pad] += 1.0
        assert (fresh(r) - before).abs().max() > 1e-3  # seen through the unconditional rows ..
        bare = replace(r, sampling=Sampling(cfg_scoring="cond"))
        after = fresh(bare)
        fresh.model.get_input_embeddings().weight[fresh.pad] -= 1.0
        assert (
            fresh(bare) - after
        ).abs().max() < 1e-5  # .. and only there: padding is not attended


# EOS


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_text_ends_at_its_first_eos(fresh, pad_is_eos):
    free = sample_text(fresh, Sampling(max_new_tokens=20))
    ends = free.tokens[:, 3:12].flatten().unique()[::6]  # some tokens that do occur become EOS
    fresh.eos = ends
    if pad_is_eos:
        fresh.pad = ends[0].item()
    r = sample_text(fresh, Sampling(max_new_tokens=20))
    stop = torch.isin(free.tokens, ends)
    for row in range(len(r)):
        n = stop[row].int().argmax().item() + 1 if stop[row].any() else 20
        assert r.mask[row].sum() == n and r.mask[row, :n].all()
        assert torch.equal(r.tokens[row, :n], free.tokens[row, :n])  # the EOS itself is there ..
        assert (r.tokens[row, n:] == fresh.pad).all() and (
            r.logp[row, n:] == 0
        ).all()  # .. and nothing after it
    assert (
        torch.equal(r.ended, stop.any(1))
        and not r.ended.all()
        and r.mask.sum(1).unique().numel() > 2
        and gap(r, fresh(r)) < 1e-4
    )
    assert r.logp[r.mask].max() < 0 and (fresh(r)[~r.mask] == 0).all()
    texts = fresh.texts(r)
    assert texts[0] == fresh.processor.tokenizer.decode(
        [t for t in r.tokens[0, : r.mask[0].sum()].tolist() if t not in ends]
    )


def test_sampling_stops_when_all_rows_have_ended(fresh):
    fresh.eos = torch.arange(fresh.model.config.text_config.vocab_size)  # everything is EOS
    r = sample_text(fresh, Sampling(max_new_tokens=20))
    assert r.tokens.shape[1] == 1 and r.mask.all()
    assert gap(r, fresh(r)) < 1e-4


def test_no_step_is_made_for_nobody(fresh, monkeypatch):
    "Rows may end one by one: when the last has, nothing is drawn, and nothing is read for it."
    drawn, read, pick, further = [], [], R.pick, R.through_layers

    def a_pick(*args):
        drawn.append(1)
        return pick(*args)

    def a_step(*args):
        read.append(1)
        return further(*args)

    monkeypatch.setattr(R, "pick", a_pick)
    monkeypatch.setattr(R, "through_layers", a_step)
    for ends in (False, True):
        drawn.clear()
        read.clear()
        r = sample_text(fresh, Sampling(max_new_tokens=20))
        longest = int(r.mask.sum(1).max())
        assert len(drawn) == longest == len(read) + 1
        assert (longest < 8) == ends
        row = torch.arange(len(r))
        fresh.eos = r.tokens[row, row % 7].unique()  # some end with their first token


def test_images_know_no_eos(fresh):
    fresh.eos = torch.arange(512)
    r = fresh.sample(
        fresh.image_prompts(DRAW), 2, noise(0, 0, range(3), 2, 36), Sampling(max_new_tokens=3)
    )
    assert (
        r.tokens.shape == (6, 36)
        and r.mask.all()
        and r.ended.all()
        and torch.equal(r.tokens, rollouts("g", Sampling(), 2).tokens)
    )


# two heads, two vocabularies


@pytest.mark.parametrize(
    "task, own, other", [("u", "lm_head", "generation_head"), ("g", "generation_head", "lm_head")]
)
def test_heads_are_never_mixed(fresh, task, own, other):
    r = rollouts(task, Sampling())
    heads = dict(
        lm_head=fresh.model.lm_head.weight,
        generation_head=fresh.model.model.generation_head.vision_head.weight,
    )
    with torch.no_grad():
        before = fresh(r)
        heads[other].normal_()
        if task == "u":
            fresh.model.model.generation_embeddings.weight.normal_()
        assert torch.equal(fresh(r), before)
        heads[own].normal_()
        assert not torch.allclose(fresh(r), before, atol=0.1)


def test_forward_is_where_the_hooks_hang(fresh):
    calls = []
    fresh.register_forward_hook(lambda *_: calls.append(1))
    for task in "ug":
        fresh(rollouts(task, Sampling()))
    assert len(calls) == 2


def test_ddp_wraps_both_tasks(fresh):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(fresh, find_unused_parameters=True)
        for task, used in (
            ("u", fresh.model.lm_head.weight),
            ("g", fresh.model.model.generation_head.vision_head.weight),
        ):
            r = rollouts(task, Sampling())
            logp = wrapped(r)
            logp.sum().backward()
            assert gap(r, logp) < 1e-4 and used.grad.abs().sum() > 0
    finally:
        dist.destroy_process_group()


# micro-batches


def test_gradient_of_micro_batches_is_the_gradient_of_the_batch(fresh):
    r = rollouts("g", Sampling())
    weight = torch.linspace(-1, 1, len(r))
    (fresh(r).sum(1) * weight).sum().backward()
    whole = fresh.model.model.language_model.layers[0].mlp.up_proj.weight.grad.clone()
    fresh.zero_grad()
    for rows in ([0, 5, 7, 11], [1, 2, 3], [4, 6, 8, 9, 10]):  # groups torn apart
        (fresh(r.index(rows)).sum(1) * weight[rows]).sum().backward()
    assert (
        fresh.model.model.language_model.layers[0].mlp.up_proj.weight.grad - whole
    ).abs().max() < 1e-4 * whole.abs().max()


def test_rollouts_can_be_trained_on_after_inference_mode(fresh):
    r = fresh.sample(fresh.text_prompts(ASK), 2, noise(0, 0, range(3), 2, 24), Sampling())
    assert not any(
        t.is_inference() for t in (r.tokens, r.logp, r.mask, r.group, r.prompts.input_ids)
    )
    fresh(r).sum().backward()


def test_gradient_checkpointing_is_refused(fresh):
    fresh.model.gradient_checkpointing_enable()
    r = rollouts("u", Sampling())
    assert gap(r, fresh(r)) < 1e-4  # in eval mode it does nothing
    with pytest.raises(ValueError, match="checkpointing"):
        fresh.train()(r)


def test_rows_take_along_all_that_is_theirs():
    r = rollouts("g", Sampling(cfg_scoring="cond")).index(slice(0, 5))
    r = replace(r, step=torch.arange(len(r))[:, None].expand(r.tokens.shape))
    names = [f.name for f in fields(r) if isinstance(getattr(r, f.name), torch.Tensor)]
    some, again = r.index([3, 1]), join([r.index([0, 1]), r.index([2, 3, 4])], pad=0)
    for name in names:
        assert torch.equal(getattr(some, name), getattr(r, name)[[3, 1]]), name
        assert torch.equal(getattr(again, name), getattr(r, name)), name
    assert len(names) == 7


@pytest.mark.parametrize("task", ["u", "g"])
def test_the_same_words_after_another_prompt_have_another_score(task):
    policy, r = nano_policy(), rollouts(task, Sampling()).index([0, 4, 8])
    same = replace(r, tokens=r.tokens[:1].repeat(3, 1), mask=r.mask[:1].repeat(3, 1))
    with torch.no_grad():
        together, alone = policy(same), torch.cat([policy(same.index([i])) for i in range(3)])
    assert (together - alone).abs().max() < 1e-4
    assert (together[0] - together[1:]).abs().amax(1).min() > 0.01


# precision


@pytest.mark.parametrize("task", ["u", "g"])
def test_bfloat16_trunk_keeps_float32_heads(task):
    model, processor = random_nano()
    policy = JanusPolicy(model.bfloat16(), processor)
    prompts = (
        policy.image_prompts(DRAW)
        if task == "g"
        else policy.text_prompts(
            ASK, [Image.new("RGB", (48, 48), c) for c in ("red", "green", "blue")]
        )
    )
    r = policy.sample(prompts, 4, noise(0, 0, range(3), 4, 36), Sampling())
    with torch.autocast("cpu", torch.bfloat16):
        logp = policy(r)
    assert r.logp.dtype == logp.dtype == torch.float32
    assert 1e-4 < gap(
        r, logp.detach()
    )  # bfloat16 does part: that is why a trainer recomputes old log-probs there
    assert ((r.logp - logp) * r.mask).abs().mean() < 0.1


# pixels


def test_images_are_clamped_not_wrapped(fresh):
    r = rollouts("g", Sampling(), 1)
    fresh.model.model.vqmodel.decoder.conv_out.bias.data[:] = torch.tensor([9.0, -9.0, 0.0])
    drawn = fresh.images(r)
    assert drawn.shape == (3, 48, 48, 3) and drawn.dtype == "uint8"
    assert (drawn[..., 0] == 255).all() and (drawn[..., 1] == 0).all()
    first = (
        fresh.model.decode_image_tokens(r.tokens).detach().permute(0, 3, 1, 2)
    )  # transformers' PIL processor wants channels first
    theirs = fresh.processor.postprocess(list(first))["pixel_values"]
    assert (
        max(abs(a.transpose(2, 0, 1).astype(int) - b).max() for a, b in zip(drawn, theirs)) <= 1
    )  # they cut, we round


def test_answers_are_read_as_they_were_said():
    policy = nano_policy()
    tok, said = policy.processor.tokenizer, "is it so ? it 's not , no .\n  a  b <|User|>"
    tokens = torch.tensor([tok(said, add_special_tokens=False).input_ids])
    r = rollouts("u", Sampling()).index([0])
    r = replace(r, tokens=tokens, mask=torch.ones_like(tokens, dtype=torch.bool))
    assert policy.texts(r) == [said]


def test_a_photograph_is_scaled_as_the_processor_scales(fresh):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (96, 80, 3), np.uint8))
    processor = fresh.processor.image_processor
    theirs, ours = (
        processor([image], return_tensors="pt")["pixel_values"]
        for image in (photo, fresh.to_size(photo))
    )
    assert torch.equal(ours, theirs)


# what a user may hand over


def test_noise_of_a_wrong_shape_is_named():
    policy = nano_policy()
    for shape in ((11, 36), (12, 35)):
        with pytest.raises(ValueError, match="3 prompts x 4 rollouts of 36 tokens"):
            policy.sample(policy.image_prompts(DRAW), 4, torch.rand(shape), Sampling())


@pytest.mark.parametrize("n", [0, 1, 4])
def test_questions_and_images_of_another_number_are_named(n):
    with pytest.raises(ValueError, match=f"3 questions but {n} images"):
        nano_policy().text_prompts(ASK, [Image.new("RGB", (48, 48))] * n)


def without_boi(model, processor):
    "A checkpoint in which nothing names the token that begins an image."
    model.generation_config.generation_kwargs.clear()
    processor.tokenizer.boi_token_id = None


def test_the_token_that_begins_an_image_may_be_the_tokenizers():
    model, processor = random_nano()
    told = model.generation_config
    boi = told.generation_kwargs["boi_token_id"]
    told.generation_kwargs.clear()
    assert JanusPolicy(model, processor).boi == boi
    processor.tokenizer.boi_token_id = None
    told.boi_token_id = boi  # or stand beside the others
    assert JanusPolicy(model, processor).boi == boi
    told.boi_token_id = boi + 1
    told.generation_kwargs = dict(boi_token_id=boi)  # where it counts most
    assert JanusPolicy(model, processor).boi == boi


@pytest.mark.parametrize(
    "harm, words",
    [
        (without_boi, "boi"),
        (lambda m, p: setattr(m.generation_config, "eos_token_id", None), "eos"),
        (lambda m, p: setattr(p, "num_image_tokens", 576), "processor has 576"),
        (lambda m, p: setattr(m.config.vq_config, "num_patches", 24), "VQ has 576"),
        (lambda m, p: setattr(m.config, "model_type", "llama"), "'llama'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(harm, words):
    model, processor = random_nano()
    harm(model, processor)
    with pytest.raises(ValueError, match=words):
        JanusPolicy(model, processor)


@pytest.mark.parametrize("name", ["bos", "boi"])
def test_a_tokenizer_that_frames_a_prompt_otherwise_is_refused(fresh, name):
    setattr(fresh, name, fresh.pad)
    with pytest.raises(ValueError, match="BOS .. BOI"):
        fresh.image_prompts(DRAW)


def test_several_eos_ids(fresh):
    model = copy.deepcopy(fresh.model)
    model.generation_config.eos_token_id = [5, 9]
    assert JanusPolicy(model, fresh.processor).eos.tolist() == [5, 9]


# steps that a GPU may record


class Tape(TorchDispatchMode):
    "Operations on the tensors they met, as a CUDA graph keeps them; recording runs them once, so the first play does not."

    def __init__(self):
        super().__init__()
        self.ops, self.plays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append((func, args, kwargs or {}, out := func(*args, **(kwargs or {}))))
        return out

    def play(self):
        self.plays += 1
        if self.plays == 1:
            return
        for func, args, kwargs, out in self.ops:
            for old, new in zip(
                *(x if isinstance(x, (tuple, list)) else (x,) for x in (out, func(*args, **kwargs)))
            ):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.mark.parametrize("taped", [False, True])
@pytest.mark.parametrize(
    "task, sampling",
    [
        ("u", Sampling(0.8)),
        ("g", Sampling(0.8)),
        ("g", Sampling(0.8, 5.0, "cond")),
        ("g", Sampling(1.0, 1.0)),
        ("g", Sampling(0.0)),
    ],
)
def test_steps_to_record_draw_the_same(task, sampling, taped, fresh, monkeypatch):
    tapes = []

    def record(step, device):
        with Tape() as tape:
            step()
        tapes.append(tape)
        return tape.play

    monkeypatch.setattr(R, "STRETCH", 10)
    if taped:
        monkeypatch.setattr(R, "record", record)
    fresh.model.model.language_model.double()  # so that sums in another order, as other threads make them, do not show
    prompts = (
        fresh.text_prompts(ASK, [Image.new("RGB", (48, 48), c) for c in ("red", "green", "blue")])
        if task == "u"
        else fresh.image_prompts(DRAW)
    )
    assert not prompts.attention_mask.all()
    expected = fresh.sample(prompts, 4, noise(0, 0, range(3), 4, 36), sampling)
    fresh.recorded = True
    r = fresh.sample(prompts, 4, noise(0, 0, range(3), 4, 36), sampling)
    assert (
        torch.equal(r.tokens, expected.tokens)
        and (r.logp - expected.logp).abs().max() < 1e-5
        and (r.sample_logp - expected.sample_logp).abs().max() < 1e-5
    )
    if taped:
        assert len(tapes) == -(-(r.tokens.shape[1] - 1) // 10) and max(t.plays for t in tapes) == 10
    assert not WAITS & {func for t in tapes for func, *_ in t.ops}
    if sampling.temperature:
        assert gap(r, fresh(r)) < 1e-4


def test_steps_to_record_in_bf16(fresh):
    fresh.precision, fresh.recorded = "bf16", True
    r = fresh.sample(fresh.image_prompts(DRAW), 2, noise(0, 0, range(3), 2, 36), Sampling())
    with torch.no_grad():
        assert 1e-4 < gap(r, fresh(r)) and (r.logp - fresh(r)).abs().mean() < 0.05


# the sampler's own way through the layers


LLAMAS = [
    dict(num_key_value_heads=2, head_dim=16),
    dict(num_key_value_heads=1, attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    dict(rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=4.0)),
]


@pytest.mark.parametrize("task", ["u", "g"])
@pytest.mark.parametrize("rows", [None, [0, 1, 2, 5], [4, 5, 6, 7, 8, 9, 10, 11]])
@pytest.mark.parametrize("changes", LLAMAS)
def test_the_sampler_walks_any_llama_as_the_trunk_does(changes, rows, task, fresh):
    config = copy.deepcopy(fresh.model.config.text_config)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    llama = LlamaModel(config).eval()
    for w in llama.parameters():  # norms and biases, too
        torch.nn.init.normal_(w, w.mean().round().item(), 0.1)
    fresh.model.model.language_model = llama
    fresh.model.config.text_config = config
    prompts = fresh.image_prompts(DRAW) if task == "g" else fresh.text_prompts(ASK)
    rows = None if rows is None else torch.tensor(rows)
    r = fresh.sample(prompts, 4, noise(0, 0, range(3), 4, 36), Sampling(), rows)
    with torch.no_grad():  # the scorer goes through the trunk of transformers
        assert gap(r, fresh(r)) < 2e-4
    assert r.logp.std() > 0.1


def test_rollouts_of_a_prompt_share_its_keys(monkeypatch):
    made, Shared = [], R.Shared

    def watched(layer, rows, room, k):
        made.append(Shared(layer, rows, room, k))
        return made[-1]

    monkeypatch.setattr(R, "Shared", watched)
    rollouts("g", Sampling())  # four of each of three prompts, guided
    assert {(len(x.prompt[0]), len(x.own[0])) for x in made} == {(6, 24)}


@pytest.mark.parametrize("task", ["u", "g"])
def test_weights_that_ran_away_are_told(fresh, task):
    with torch.no_grad():
        for weight in fresh.language_model.parameters():
            weight.mul_(1e18)
    prompts = fresh.text_prompts(ASK) if task == "u" else fresh.image_prompts(DRAW)
    sampling = Sampling(max_new_tokens=3)
    u = noise(0, 0, range(len(prompts)), 2, fresh.length(task, sampling))
    with pytest.raises(ValueError, match="not numbers.*lower --lr"):
        fresh.sample(prompts, 2, u, sampling)


def test_one_drawing_that_ran_away_is_told(fresh):
    prompts = fresh.image_prompts(DRAW)
    only = set(prompts.input_ids[1].tolist()) - set(prompts.input_ids[[0, 2]].flatten().tolist())
    fresh.model.get_input_embeddings().weight.data[only.pop()] = torch.nan
    drawn = partial(fresh.sample, prompts, 2, noise(0, 0, range(3), 2, 36), Sampling())
    assert not drawn(torch.tensor([0, 1, 4, 5])).logp.isnan().any()
    with pytest.raises(ValueError, match="not numbers"):
        drawn()
