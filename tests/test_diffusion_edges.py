"""Masked diffusion: paths that must not be mixed up, schedules, what is learned from, and what is refused."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.utils import logging

from pairuni_nb import diffusion
from pairuni_nb.cli import main
from pairuni_nb.diffusion import (
    DiffusionPolicy,
    filled,
    hide,
    load_masked,
    masked_from,
    masked_loss,
    policy_for,
    policy_without_weights,
    schedule,
)
from pairuni_nb.emu3 import examples, text_examples
from pairuni_nb.janus import checkpoint_path, load_janus
from pairuni_nb.rollout import JanusPolicy, Sampling, gap, join, noise

DRAW = ["a red star top", "two blue circles and a green square, on stripes"]


@cache
def policy():
    made = DiffusionPolicy(*masked_from())
    generator = torch.Generator().manual_seed(0)
    for name, weight in made.named_parameters():
        if weight.requires_grad and weight.ndim > 1:
            std = 0.4 if "embed" in name else 1.2 / weight.shape[1] ** 0.5
            weight.data.normal_(0, std, generator=generator)
    return made


def drawings(k=3, sampling=Sampling(cfg_weight=1.0)):
    u = noise(0, 0, range(2), k, 36)
    return policy().sample(policy().image_prompts(DRAW), k, u, sampling)


@torch.no_grad()
def scored(rollouts):
    return policy()(rollouts)


@pytest.mark.parametrize("T", [1, 2, 12, 36, 37])
@pytest.mark.parametrize("steps", [1, 2, 9, 36, 50])
def test_a_schedule_reveals_something_each_step_and_all_in_the_end(T, steps):
    seen = [0, *schedule(T, steps)]
    assert len(seen) == min(T, steps) + 1
    assert all(a < b for a, b in zip(seen, seen[1:]))
    assert seen[-1] == T


def test_a_masked_model_begins_as_janus_with_a_mask_of_its_seed():
    first, same, other = (masked_from(seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.mask_embedding, same.mask_embedding)
    assert not torch.equal(first.mask_embedding, other.mask_embedding)
    janus, own = load_janus()[0].state_dict(), other.state_dict()
    assert own.keys() - janus.keys() == {"mask_embedding"}
    assert all(torch.equal(own[name], weight) for name, weight in janus.items())
    told = first.generation_config
    assert (told.max_new_tokens, told.guidance_scale) == (12, 1.0)


def test_a_text_has_ended_where_an_end_was_drawn_anywhere():
    p = DiffusionPolicy(*masked_from())
    u = noise(0, 0, range(2), 4, 12)
    asked, sampling = p.text_prompts(["how many?", "why?"]), Sampling(max_new_tokens=12)
    free = p.sample(asked, 4, u, sampling)
    p.eos = free.tokens[[1, 6], [3, 0]].unique()
    r = p.sample(asked, 4, u, sampling)
    assert torch.equal(r.tokens, free.tokens)  # an end is a token as any other
    assert torch.equal(r.ended, torch.isin(free.tokens, p.eos).any(1))
    assert 0 < r.ended.sum() < len(r)
    assert drawings().ended.all()  # a drawing has no end to miss


def test_every_state_hangs_on_the_prompts_last(monkeypatch):
    "Else --shard waits for ever: it gathers a layer when the gradient of its output arrives."
    p, kept, prefill, r = DiffusionPolicy(*masked_from()), [], DiffusionPolicy.prefill, drawings(1)

    def keeps(*args):
        last, *rest = prefill(*args)
        last.retain_grad()
        kept.append(last)
        return last, *rest

    monkeypatch.setattr(DiffusionPolicy, "prefill", keeps)
    p(r).sum().backward()
    assert len(kept) == 1 and kept[0].grad is not None


@pytest.mark.parametrize("shown", [True, False])
def test_bars_of_loading_are_as_before(shown):
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        policy_without_weights()
        assert logging.is_progress_bar_enabled() == shown
        with pytest.raises(ValueError, match="no folder"):
            policy_without_weights("/nowhere/at/all")
        assert logging.is_progress_bar_enabled() == shown
    finally:
        logging.enable_progress_bar()


def test_equal_drawings_on_two_paths_are_two():
    r = drawings().index([0, 0, 1])
    step = r.step.clone()
    step[1] = 8 - step[1]
    two = scored(replace(r, step=step))
    assert (two[0] - scored(r)[0]).abs().max() < 1e-5
    assert (two[0] - two[1]).abs().max() > 1e-2


def test_a_path_goes_with_its_row():
    r = drawings()
    part = r.index([4, 1])
    assert torch.equal(part.step, r.step[[4, 1]])
    again = join([r.index(slice(0, 2)), r.index(slice(2, 6))], policy().pad)
    assert torch.equal(again.step, r.step)
    assert len(r.step.unique(dim=0)) == len(r)  # every row has an order of its own


def test_an_order_by_lot_knows_nothing_of_the_weights_or_the_prompt():
    r = drawings()
    other = DiffusionPolicy(*masked_from())
    u = noise(0, 0, range(2), 3, 36)
    again = other.sample(other.image_prompts(DRAW[::-1]), 3, u, Sampling(cfg_weight=1.0))
    assert torch.equal(again.step, r.step)
    assert not torch.equal(again.tokens, r.tokens)


def test_an_order_has_nothing_to_do_with_the_numbers_that_draw():
    "What comes early would else be drawn by small numbers, and so be other tokens."
    u = noise(0, 0, range(2), 20, 36)
    told = policy().sample(policy().image_prompts(DRAW), 20, u, Sampling(cfg_weight=1.0))
    pairs = torch.stack([u.flatten(), told.step.flatten().float()])
    assert abs(torch.corrcoef(pairs)[0, 1]) < 0.12  # of 1440 pairs: four standard errors


@pytest.mark.parametrize("confident", [False, True])
def test_a_draw_that_may_be_rejected_has_numbers_of_its_own(confident, monkeypatch):
    p, chances, pick = DiffusionPolicy(*masked_from()), [], diffusion.pick

    def notes(logits, u, sampling):
        chances.append(u)
        return pick(logits, u, sampling)

    monkeypatch.setattr(diffusion, "pick", notes)
    p.confident = confident
    p.sample(p.image_prompts(DRAW), 1, noise(0, 0, range(2), 1, 36), Sampling(cfg_weight=1.0))
    assert len(torch.stack(chances).unique(dim=0)) == (9 if confident else 1)


def test_the_surest_is_the_likeliest_as_guided():
    g = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 2, 8, 5, generator=g)
    new = torch.randint(5, (2, 8), generator=g)
    hidden = torch.rand(2, 8, generator=g) < 0.7
    logits = torch.cat([cond, uncond])
    places = policy().surest(logits, new, hidden, Sampling(cfg_weight=3.0))
    chances = (3 * cond - 2 * uncond).softmax(-1)
    for row in range(2):
        sure = {t: chances[row, t, new[row, t]].item() for t in range(8) if hidden[row, t]}
        wanted = sorted(sure, key=sure.get, reverse=True)
        assert places[row, : len(wanted)].tolist() == wanted and 2 < len(wanted) < 8


def test_confidence_reveals_the_likeliest_draws_and_is_scored_as_drawn():
    p = policy()
    p.confident = True
    try:
        r = drawings(sampling=Sampling(0.9, 3.0))
    finally:
        p.confident = False
    assert gap(r, scored(r)) < 2e-4
    assert not torch.equal(r.step, drawings().step)
    first, chance = schedule(36, 9)[0], r.logp * (r.step == 0)
    by_lot = drawings(sampling=Sampling(0.9, 3.0))
    assert ((r.step == 0).sum(1) == first).all()
    assert chance.sum() > (by_lot.logp * (by_lot.step == 0)).sum()
    assert not torch.equal(r.tokens[0], r.tokens[1])


def test_the_loss_is_the_score_of_what_was_hidden():
    codes = torch.arange(72).view(2, 36)
    told = examples(policy().image_prompts(DRAW), codes, torch.ones(2, 36, dtype=torch.bool))
    hidden = hide(2, 36, np.random.default_rng(5))
    logp = scored(replace(told, step=hidden.long()))  # seen at step 0, asked for at step 1
    by_hand = [-logp[i][hidden[i]].mean() for i in range(2)]
    assert len(hidden.sum(1).unique()) == 2
    with torch.no_grad():
        loss = masked_loss(policy(), told, np.random.default_rng(5))
    assert abs(loss - sum(by_hand) / 2) < 1e-4


def test_every_number_of_tokens_is_hidden_alike():
    hidden = hide(6000, 6, np.random.default_rng(0))
    counts = hidden.sum(1).bincount(minlength=7)
    assert counts[0] == 0
    assert ((counts[1:] - 1000.0) ** 2 / 1000).sum() < 20.5  # 99.9 % point, 5 degrees of freedom
    assert (hidden.float().mean(0) - 3.5 / 6).abs().max() < 0.03


def test_behind_an_answers_end_are_more_ends():
    p = policy()
    told = text_examples(p, ["how many?"] * 2, None, ["two", "a red star and a cross"])
    assert not told.mask.all()
    whole = filled(told, 12, int(p.eos[0]))
    assert whole.tokens.shape == (2, 12)
    assert torch.equal(whole.tokens[:, : told.mask.shape[1]][told.mask], told.tokens[told.mask])
    assert p.texts(whole) == ["two", "a red star and a cross"]
    shortest = told.mask.sum(1).min()
    assert (whole.tokens[0, shortest - 1 :] == p.eos[0]).all()


def test_what_follows_an_end_is_scored_and_not_read():
    p = policy()
    asked = p.text_prompts(["how many?", "what colour is top?"])
    r = p.sample(asked, 2, noise(0, 0, range(2), 2, 12), Sampling(max_new_tokens=12))
    assert r.mask.all()
    tokens = r.tokens.clone()
    tokens[:, 3] = p.eos[0]
    ended = replace(r, tokens=tokens)
    assert all(a != b for a, b in zip(p.texts(ended), p.texts(r)))
    assert (scored(ended)[:, 4:] < 0).all()


def test_a_checkpoint_of_another_family_is_refused(tmp_path, capsys):
    model, processor = masked_from()
    with pytest.raises(ValueError, match="needs a Janus checkpoint, and this one is 'masked_janus"):
        JanusPolicy(model, processor)
    with pytest.raises(
        ValueError, match="needs a masked Janus checkpoint, and this one is 'janus'"
    ):
        DiffusionPolicy(*load_janus())
    with pytest.raises(ValueError, match="'janus' checkpoint, not a masked Janus"):
        load_masked("janus-nano")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'masked_janus' checkpoint, not a Janus"):
        load_janus(str(tmp_path))
    again = policy_for(*load_masked(str(tmp_path), dtype=torch.float32))
    assert torch.equal(again.model.mask_embedding, model.mask_embedding)
    assert main(["plan", "--preset", "nano", "--model", str(tmp_path)]) == 2
    assert "the plan counts token by token" in capsys.readouterr().err


def test_a_checkpoint_says_in_how_many_steps_it_draws(tmp_path):
    model, processor = masked_from()
    model.config.image_steps = 4
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = policy_for(*load_masked(str(tmp_path)))
    assert again.model.dtype == torch.float32
    u = noise(0, 0, range(2), 1, 36)
    drawn = again.sample(again.image_prompts(DRAW), 1, u, Sampling(cfg_weight=1.0))
    assert drawn.step.max() == 3
    asked = again.text_prompts(["how many?"])
    said = again.sample(asked, 2, u, Sampling(max_new_tokens=12))
    assert said.step.max() == 5  # of the six that it answers in
    assert said.tokens.shape == (2, 12)  # whatever noise there is


def test_the_sampler_counts_the_logits_of_all_places():
    prompts, sampling = policy().image_prompts(DRAW), Sampling(cfg_weight=1.0)
    plain = JanusPolicy(*load_janus())
    one_place = 1e9 / plain.rows_that_fit(1.0, plain.image_prompts(DRAW), sampling)
    all_places = 1e9 / policy().rows_that_fit(1.0, prompts, sampling)  # bytes a row
    more = 35 * 6 * 4 * policy().vocabulary("g")
    assert all_places - one_place == pytest.approx(more, rel=0.01)
    assert (policy().at_once(36), plain.at_once(36)) == (36, 1)


@pytest.mark.parametrize("name", ["text_steps", "image_steps"])
def test_no_steps_are_refused(tmp_path, name):
    source = Path(checkpoint_path("nano-diffusion"))
    for file in source.iterdir():
        (tmp_path / file.name).symlink_to(file)
    told = json.loads((source / "config.json").read_text()) | {name: 0}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=f"says {name} 0: at least 1"):
        load_masked(str(tmp_path))


def test_the_benchmarks_one_step_score_is_that_of_all_hidden(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from nano_diffusion import OneStep

    one = OneStep(*load_masked("nano-diffusion"))
    u = noise(0, 0, range(2), 2, 36)
    drawn = one.sample(one.image_prompts(DRAW), 2, u, Sampling(cfg_weight=1.0))
    own = DiffusionPolicy(*load_masked("nano-diffusion"))
    with torch.no_grad():
        hidden = own(replace(drawn, step=torch.zeros_like(drawn.step)))
        assert (own(drawn) - hidden).abs().max() > 0.1
    assert torch.allclose(drawn.logp, hidden, atol=1e-5)
    assert set(drawn.step.unique().tolist()) != {0}
