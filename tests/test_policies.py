"""What every policy must pass before it is trained, whatever its family. To add one: `FAMILIES`."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from pairuni_nb.diffusion import DiffusionPolicy, masked_from
from pairuni_nb.emu3 import Emu3Policy, emu3_processor, new_emu3
from pairuni_nb.janus import new_nano, nano_processor, random_janus_pro
from pairuni_nb.rollout import JanusPolicy, Sampling, gap, noise

DRAW = ["a red star top", "two blue circles and a green square, on stripes", "a pink cross left"]
ASK = ["how many stars?\none, two, three, four", "what colour is top?", "where is the red star?"]
PICTURES = [Image.new("RGB", (48, 48), c) for c in ("red", "green", "blue")]
K = 3  # rollouts a prompt


def liven(policy, seed=0):
    "Random weights that give distributions with something to get wrong."
    generator = torch.Generator().manual_seed(seed)
    for name, weight in policy.named_parameters():
        if weight.requires_grad and weight.ndim > 1:
            std = 0.4 if "embed" in name else 1.2 / weight.shape[1] ** 0.5
            weight.data.normal_(0, std, generator=generator)
    return policy


@cache
def built(make):
    return make()


def copied(make):
    "Model and processor, made once: a tokenizer takes half a second to learn its words."
    return deepcopy(built(make))


def janus_nano(**settings):
    return liven(JanusPolicy(*copied(nano_parts), **settings))


def nano_parts():
    processor = nano_processor()
    return new_nano(processor), processor


def janus_pro(**settings):
    "The true grid and vocabularies; pictures are cut to what the test can wait for."
    return liven(JanusPolicy(*copied(pro_parts), **settings))


def pro_parts():
    return random_janus_pro(32, 1)


def nano_emu3(**settings):
    return liven(Emu3Policy(*copied(emu3_parts), **settings))


def emu3_parts():
    processor = emu3_processor()
    return new_emu3(processor), processor


def masked_janus(**settings):
    return liven(DiffusionPolicy(*copied(masked_from), **settings))


def janus_says(policy, task, sampling):  # -> (P, T) as its own generate draws greedily
    ours = dict(do_sample=False)
    if task == "g":
        batch = policy._tokenize(DRAW, generation_mode="image")
        return policy.model.generate(
            **batch, **ours, generation_mode="image", guidance_scale=sampling.cfg_weight
        )
    batch = policy._tokenize(ASK, PICTURES)
    told = policy.model.generate(**batch, **ours, max_new_tokens=sampling.max_new_tokens)
    return told[:, batch["input_ids"].shape[1] :]


def allowed(policy, start):
    "What Emu3's model card lets `generate` choose from, by the tokens so far."
    words = policy.model.config.vocabulary_map
    row, rows = policy.width + 1, policy.height * (policy.width + 1)
    visual = policy.model.vocabulary_mapping.image_tokens
    closing = [words["<|extra_201|>"], words["<|image end|>"], policy.eos[0].item()]

    def choices(row_number, ids):
        t = len(ids) - start
        if t >= rows:
            return [closing[t - rows]]
        return [words["<|extra_200|>"]] if t % row == row - 1 else visual

    return choices


def emu3_says(policy, task, sampling):
    if task == "g":
        batch = policy.processor(
            text=list(DRAW),
            return_for_image_generation=True,
            ratio="1:1",
            image_area=48 * 48,
            padding=True,
            return_tensors="pt",
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]
        says_nothing = ids.clone()
        says_nothing[mask.bool()] = policy.pad
        says_nothing[range(len(ids)), mask.argmax(1)] = policy.bos
        opening = policy.processor.tokenizer("<|image start|>6*6<|image token|>").input_ids
        says_nothing[:, -len(opening) :] = torch.tensor(opening)
        told = policy.model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=6 * 7 + 3,
            prefix_allowed_tokens_fn=allowed(policy, ids.shape[1]),
            guidance_scale=sampling.cfg_weight,
            negative_prompt_ids=says_nothing,
            negative_prompt_attention_mask=mask,
        )[:, ids.shape[1] :]
        return (told[..., None] == policy.words).int().argmax(-1)
    chats = []
    for text in ASK:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        chats.append([{"role": "user", "content": content}])
    text = policy.processor.apply_chat_template(chats, add_generation_prompt=True)
    batch = policy.processor(text=text, images=PICTURES, padding=True, return_tensors="pt")
    own = dict(guidance_scale=1.0, max_new_tokens=sampling.max_new_tokens)
    told = policy.model.generate(**batch, do_sample=False, **own)
    return told[:, batch["input_ids"].shape[1] :]


# name -> how to make one, and what its own library draws greedily, if any library knows it
FAMILIES = {
    "janus-nano": (janus_nano, janus_says),
    "janus-pro": (janus_pro, janus_says),
    "nano-emu3": (nano_emu3, emu3_says),
    "masked-janus": (masked_janus, None),  # no library draws so: see the test of a plain score
}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_task = pytest.mark.parametrize("task", ["u", "g"])


@cache
def policy_of(family):
    return FAMILIES[family][0]()


def shortened(policy, family):
    "The grid of Janus-Pro takes long: 48 of its 576 tokens show a mistake as well."
    if family == "janus-pro":
        policy.image_tokens = 48
    return policy


def ask(policy, task, rows=slice(None)):
    if task == "g":
        return policy.image_prompts(DRAW[rows])
    return policy.text_prompts(ASK[rows], PICTURES[rows])


@cache
def rollouts(family, task, sampling=Sampling()):
    "K rollouts of three prompts of different lengths."
    policy = shortened(policy_of(family), family)
    T = policy.length(task, sampling)
    r = policy.sample(ask(policy, task), K, noise(0, 0, range(3), K, T), sampling)
    assert len(r.prompts.attention_mask.sum(1).unique()) > 1  # there is padding
    return r


@torch.no_grad()
def scored(family, r):
    return policy_of(family)(r)


@each_family
@each_task
@pytest.mark.parametrize("scoring, w", [("guided", 5.0), ("cond", 5.0), ("guided", 1.0)])
def test_recorded_equals_replayed(family, task, scoring, w):
    r = rollouts(family, task, Sampling(0.8, w, scoring))
    logp = scored(family, r)
    assert gap(r, logp) < 2e-4
    assert (r.logp <= 1e-6).all()
    assert r.logp[r.mask].std() > 0.3
    assert (logp[~r.mask] == 0).all()
    assert (r.logp[~r.mask] == 0).all()
    assert torch.equal(r.logp, r.sample_logp) == (task == "u" or scoring != "cond")


@each_family
@each_task
def test_greedy_equals_the_familys_own_generate(family, task):
    policy = policy_of(family)
    if family == "janus-pro" and task == "g":
        policy = FAMILIES[family][0]()  # with its whole grid
    sampling = Sampling(temperature=0, max_new_tokens=12)
    own_generate = FAMILIES[family][1]
    ours = policy.sample(ask(policy, task), 1, None, sampling)
    theirs = own_generate(policy, task, sampling) if own_generate else ours.tokens
    assert torch.equal(ours.tokens, theirs)
    assert len(theirs.unique()) > (10 if own_generate else 5)
    with torch.no_grad():  # and replay picks them again
        assert torch.equal(policy.logits(ours).argmax(-1)[ours.mask], theirs[ours.mask])


@each_family
@each_task
def test_a_row_knows_neither_batch_mates_nor_padding(family, task):
    policy, whole = policy_of(family), rollouts(family, task)
    for p in range(3):
        alone = ask(policy, task, slice(p, p + 1))
        assert alone.attention_mask.all()
        u = noise(0, 0, [p], K, policy.length(task, Sampling()))
        r, part = policy.sample(alone, K, u, Sampling()), whole.index(slice(K * p, K * p + K))
        T = r.tokens.shape[1]
        # a u on the very edge of a bin may fall either way
        same = (r.tokens == part.tokens[:, :T]).all(1)
        assert same.sum() >= K - 1
        assert (r.logp - part.logp[:, :T])[same].abs().max() < 2e-4
        unpadded = replace(part, prompts=alone, group=torch.zeros_like(part.group))
        assert (scored(family, unpadded) - scored(family, part)).abs().max() < 2e-4


@each_family
@each_task
def test_scoring_some_rows_is_taking_some_scores(family, task):
    r, whole = rollouts(family, task), scored(family, rollouts(family, task))
    for rows in (slice(4, 7), [1, 2, 8], torch.tensor([8, 0])):
        assert (scored(family, r.index(rows)) - whole[rows]).abs().max() < 1e-4


@each_family
@each_task
def test_no_token_knows_the_future(family, task):
    "The future is what is drawn later: to the right, or in a later step."
    r = rollouts(family, task)
    place = 8  # nowhere forced
    r = r.index(r.mask[:, place].nonzero()[:, 0])
    when = torch.arange(r.tokens.shape[1]).expand(r.tokens.shape) if r.step is None else r.step
    own = when[:, place : place + 1]
    other = replace(r, tokens=r.tokens.clone())
    other.tokens[:, place] = (other.tokens[:, place] + 1) % 100
    moved = (scored(family, other) - scored(family, r)).abs() > 1e-5
    assert moved[:, place].all()
    moved[:, place] = False
    assert not moved[when <= own].any()
    later = (when > own) & r.mask
    assert later.any()
    assert (moved & later).any(1)[later.any(1)].all()


@each_family
def test_the_picture_is_seen(family):
    policy, r = policy_of(family), rollouts(family, "u")
    other = policy.text_prompts(ASK, PICTURES[::-1])
    moved = (scored(family, replace(r, prompts=other)) - scored(family, r)).abs().amax(1)
    assert (moved.view(3, K)[[0, 2]] > 1e-3).all()
    assert (moved.view(3, K)[1] < 2e-4).all()  # the middle one is the same picture


@each_family
def test_the_prompt_is_drawn(family):
    policy, r = policy_of(family), rollouts(family, "g")
    other = replace(r, prompts=policy.image_prompts([DRAW[0], DRAW[1], "a red star right"]))
    moved = (scored(family, other) - scored(family, r)).abs().amax(1).view(3, K)
    assert (moved[2] > 1e-3).all()
    assert (moved[:2] < 2e-4).all()


@each_family
def test_forced_tokens_are_there_and_count_for_nothing(family):
    policy, r = policy_of(family), rollouts(family, "g")
    forced = policy.forced("g")
    for place, token in forced.items():
        assert (r.tokens[:, place] == token).all()
        assert not r.mask[:, place].any()
    free = [t for t in range(r.tokens.shape[1]) if t not in forced]
    assert r.mask[:, free].all()
    assert (r.tokens[:, free] < policy.vocabulary("g")).all()
    assert policy.forced("u") == {}


@each_family
def test_a_gradient_reaches_what_is_trained_and_nothing_else(family):
    policy = shortened(FAMILIES[family][0](), family)
    for task in "ug":
        policy(rollouts(family, task)).sum().backward()
    got = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert got == {name for name, p in policy.named_parameters() if p.requires_grad}
    core = policy.model.model
    frozen = [module for module in (core.vqmodel, getattr(core, "vision_model", None)) if module]
    assert not any(p.requires_grad for module in frozen for p in module.parameters())
    bare = [p for p in policy.parameters() if p.grad is not None and not p.grad.any()]
    assert not bare


def gradients(policy, family, task):
    policy.zero_grad()
    r = rollouts(family, task)
    (policy(r).sum(1) * torch.linspace(-1, 1, len(r))).sum().backward()
    return [p.grad for p in policy.parameters() if p.grad is not None]


def alike(a, b, part=1e-4):
    return all((x - y).abs().max() <= part * y.abs().max() + 1e-7 for x, y in zip(a, b))


@each_family
@each_task
def test_few_logits_at_a_time_and_recomputed_layers_are_the_same_update(family, task):
    whole = gradients(shortened(FAMILIES[family][0](), family), family, task)
    policy = shortened(FAMILIES[family][0](chunk=4 * policy_of(family).vocabulary(task)), family)
    policy.checkpoint_layers()
    parts = gradients(policy, family, task)
    assert len(parts) == len(whole) > 10
    assert alike(parts, whole)


@each_family
@each_task
def test_recorded_steps_are_the_same_steps(family, task):
    policy = shortened(FAMILIES[family][0](), family)
    policy.recorded = True
    r = rollouts(family, task)
    u = noise(0, 0, range(3), K, policy.length(task, Sampling()))
    again = policy.sample(ask(policy, task), K, u, Sampling())
    # in a vocabulary of 102,400 words a u falls on the edge of a bin now and then
    same = (again.tokens == r.tokens).all(1)
    assert same.sum() > len(r) / 2
    assert (again.logp - r.logp)[same].abs().max() < 2e-4


@each_family
@each_task
def test_a_bfloat16_trunk_keeps_its_heads(family, task):
    policy, full = shortened(FAMILIES[family][0](precision="bf16"), family), rollouts(family, task)
    with torch.no_grad():
        logp = policy(full)
        assert policy.logits(full).dtype == logp.dtype == torch.float32
    off = (logp - full.logp)[full.mask].abs()
    assert 1e-4 < off.mean() < 0.3  # it is rounded, and it is the same model


@each_family
@each_task
def test_lora_begins_as_the_model_and_is_all_that_learns(family, task, need):
    need("peft")
    from pairuni_nb.prepare import add_lora, merge_lora, without_lora

    policy, r = shortened(FAMILIES[family][0](), family), rollouts(family, task)
    policy = add_lora(policy, 2)
    assert (policy(r) - r.logp).abs().max() < 5e-4
    policy(r).sum().backward()
    got = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert got
    assert all("lora_" in name for name in got)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.05)
        moved = policy(r)
        assert (moved - r.logp).abs().max() > 1e-2
        assert (without_lora(policy)(r) - r.logp).abs().max() < 5e-4
        merge_lora(policy)
        assert (policy(r) - moved).abs().max() < 1e-3


@each_family
def test_pictures_and_texts_come_out(family):
    policy = policy_of(family)
    assert [type(text) for text in policy.texts(rollouts(family, "u"))] == [str] * 3 * K
    if family == "janus-pro":
        return  # a cut picture cannot be decoded
    r = rollouts(family, "g")
    drawn = policy.images(r)
    assert drawn.shape == (3 * K, 48, 48, 3)
    assert (policy.images(r, chunk=1) == drawn).mean() > 0.999
    copied = deepcopy(policy)
    assert (copied.images(r) == drawn).all()


@each_family
def test_a_word_that_stands_for_an_image_is_refused(family):
    policy = policy_of(family)
    token = policy.processor.image_token
    with pytest.raises(ValueError, match="stands for an image"):
        policy.text_prompts([f"what is {token}?"], PICTURES[:1])
    with pytest.raises(ValueError, match="stands for an image"):
        policy.image_prompts([f"draw {token}"])
    with pytest.raises(ValueError, match="2 questions but 1 images"):
        policy.text_prompts(ASK[:2], PICTURES[:1])
