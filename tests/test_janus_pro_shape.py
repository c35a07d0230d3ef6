"""Sampler and scorer on Janus-Pro's own grid and vocabularies, at a small width."""

import csv
import time
from dataclasses import replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count, product
from pathlib import Path

import pytest
import torch

from pairuni_nb.rollout import JanusPolicy, Sampling, gap, noise
from test_train_memory import Watch

pytestmark = pytest.mark.long

spec = spec_from_file_location(
    "janus_pro_shape", Path(__file__).parents[1] / "benchmarks" / "janus_pro_shape.py"
)
spec.loader.exec_module(bench := module_from_spec(spec))
DRAW, ASK = bench.PROMPTS[:2], ["What colour is it?", "How many shapes are there in the picture?"]


@cache
def policy():
    "Random weights, scaled up so that mistakes show"
    model, processor = bench.random_janus_pro(width=32, layers=2)
    generator, core = torch.Generator().manual_seed(0), model.model
    for module, std in (
        (core.language_model.layers, 0.1),
        (core.language_model.embed_tokens, 0.5),
        (core.generation_aligner, 0.3),
        (core.generation_embeddings, 1.0),
        (core.generation_head, 0.3),
        (model.lm_head, 0.3),
    ):
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.data.normal_(0, std, generator=generator)
    return JanusPolicy(model, processor)


@cache
def drawn(scoring="guided", weight=5.0):
    sampling = Sampling(1.0, weight, scoring)
    return policy().sample(policy().image_prompts(DRAW), 1, noise(0, 0, range(2), 1, 576), sampling)


@cache
def said():
    return policy().sample(
        policy().text_prompts(ASK), 2, noise(0, 0, range(2), 2, 8), Sampling(max_new_tokens=8)
    )


@pytest.mark.parametrize("scoring, weight", [("guided", 5.0), ("cond", 5.0), ("guided", 1.0)])
def test_recorded_equals_replayed(scoring, weight):
    r = drawn(scoring, weight)
    assert (
        r.tokens.shape == (2, 576)
        and len(r.prompts.attention_mask.sum(1).unique()) == 2
        and (r.tokens >= 8192).any()
    )
    with torch.no_grad():
        assert gap(r, policy()(r)) < 1e-4 and gap(said(), policy()(said())) < 1e-4


def test_greedy_equals_generate():
    batch = policy()._tokenize(DRAW, generation_mode="image")
    theirs = policy().model.generate(
        **batch, generation_mode="image", do_sample=False, guidance_scale=5.0
    )
    ours = policy().sample(policy().image_prompts(DRAW), 1, None, Sampling(temperature=0)).tokens
    assert torch.equal(ours, theirs) and len(ours.unique()) > 50
    batch = policy()._tokenize(ASK)
    theirs = policy().model.generate(**batch, do_sample=False, max_new_tokens=8)[
        :, batch["input_ids"].shape[1] :
    ]
    assert torch.equal(
        policy()
        .sample(policy().text_prompts(ASK), 1, None, Sampling(temperature=0, max_new_tokens=8))
        .tokens,
        theirs,
    )


def test_a_padded_row_is_its_prompt_alone():
    alone = replace(drawn().index([0]), prompts=policy().image_prompts(DRAW[:1]))
    assert not drawn().prompts.attention_mask[0].all() and alone.prompts.attention_mask.all()
    with torch.no_grad():
        assert (policy()(alone) - policy()(drawn().index([0]))).abs().max() < 1e-4


def test_the_prompt_of_a_group_and_its_rows_are_a_plain_loop():
    "The loop of the benchmark, at the same tokens"
    torch.manual_seed(0)
    tokens = bench.plain(policy(), policy().image_prompts(DRAW[:1]), 1, 1.0)
    r = replace(
        drawn(weight=1.0).index([0]),
        prompts=policy().image_prompts(DRAW[:1]),
        tokens=tokens.clone(),
    )
    with torch.no_grad():
        logp = policy().logits(r).log_softmax(-1)
    surprise = (logp.exp() * logp).sum(-1) - logp.gather(-1, tokens[..., None])[..., 0]
    assert abs(surprise.mean() / surprise.std() * 576**0.5) < 4  # drawn from what we score


@pytest.mark.parametrize("task", ["u", "g"])
def test_an_update_in_parts(task):
    r, own = drawn() if task == "g" else said(), policy()
    names = [
        n
        for n, p in own.named_parameters()
        if "layers.0" in n or "lm_head" in n or "generation_head" in n
    ]

    def gradient(chunk, splits):
        own.chunk = chunk
        own.zero_grad()
        with Watch() as watch:
            for rows in splits:
                own(r.index(rows)).sum().backward()
        return {
            n: p.grad.clone()
            for n, p in own.named_parameters()
            if n in names and p.grad is not None
        }, watch.largest

    (whole, most), (parts, few) = (
        gradient(2**31, [slice(None)]),
        gradient(2**20, [[0], list(range(1, len(r)))]),
    )
    V = own.vocabulary(task)
    weight = max(p.numel() for p in own.parameters() if V in p.shape)
    assert most[V] == r.tokens.numel() * V and (few[V] <= 2**20 or few[V] == weight)
    assert len(whole) > 8 and all(
        (whole[n] - parts[n]).abs().max() < 1e-4 * whole[n].abs().max() for n in whole
    )


def test_a_card_is_measured(tmp_path, monkeypatch):
    "The command for a GPU, on a CPU: every row is there, by a clock that moves a second a look."
    clock = count()
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: float(next(clock)))
    small = "--width 32 --layers 1 --tokens 12 --images 2 4 --k 2 --pairs 1 --text-tokens 4"
    run = ["--repeats", "1", "--device", "cpu", "--csv", str(tmp_path / "card.csv")]
    bench.main(["card", *small.split(), *run])
    rows = list(csv.DictReader(open(tmp_path / "card.csv")))
    drawn = {
        (r["rows"], r["method"], r["unit"]): float(r["value"])
        for r in rows
        if r["measure"] == "card draw"
    }
    methods, units = ("generate", "ours"), ("images/s", "of limit", "x generate")
    assert set(drawn) == set(product("24", methods, units))

    # a second each: by hand, how much of it reading takes at the speed of a copy in a second
    model = bench.random_janus_pro(width=32, layers=1)[0]
    trunk = sum(p.numel() for p in model.model.language_model.layers.parameters() if p.ndim == 2)
    head = sum(p.numel() for p in model.model.generation_head.parameters())
    copied = 2 * 2**24
    for n, method in product((2, 4), methods):
        prompts = policy().image_prompts(bench.PROMPTS[: n // 2])
        context = prompts.input_ids.shape[1] + 12 / 2
        keys_values = 2 * n * (2 * 32 * 2) * context  # bfloat16, of an image and its twin
        limit = 12 * (2 * trunk + 4 * head + keys_values) / copied
        assert drawn[str(n), method, "images/s"] == n
        assert drawn[str(n), method, "x generate"] == 1
        assert abs(drawn[str(n), method, "of limit"] - limit) < 1e-3

    step = {r["method"]: float(r["value"]) for r in rows if r["measure"] == "card step"}
    parts = [step[f"janus-pro-1b {part}"] for part in ("rollout", "score", "update")]
    assert min(parts) > 0
    assert sum(parts) <= step["janus-pro-1b whole"]
    assert step["janus-pro-1b peak"] > 0.1
    assert {r["device"] for r in rows} == {"cpu"}
