"""The plan by hand: shares that do not come out even, guidance below 1, the slowest of three."""

from dataclasses import replace
from itertools import combinations

import pytest

from pairuni_nb.plan import (
    EMU3,
    JANUS_PRO_1B,
    SAVERS,
    Card,
    Work,
    activation_bytes,
    advice,
    allowed,
    cure,
    gb_lines,
    kv_bytes,
    layer_bytes,
    matrices,
    memory,
    peak,
    plan,
    rows_at_once,
    sampling_seconds,
    seconds,
    tasks,
    tokens_through,
    update_bytes,
    update_seconds,
)
from pairuni_nb.settings import TrainSettings

S = TrainSettings(pairs_per_step=16, rollouts=8, cfg_weight=5.0, cfg_scoring="cond")


def test_a_device_takes_the_larger_share():
    u, g = tasks(JANUS_PRO_1B, Work(S, devices=3))
    assert (u.prompts, u.rows) == (g.prompts, g.rows) == (6, 43)


@pytest.mark.parametrize("weight, drawn", [(0.5, 2), (1.0, 1), (5.0, 2)])
@pytest.mark.parametrize("scoring", ["cond", "guided"])
def test_guidance_at_any_weight_but_1_draws_twice(weight, drawn, scoring):
    g = tasks(JANUS_PRO_1B, Work(replace(S, cfg_weight=weight, cfg_scoring=scoring)))[1]
    assert (g.drawn, g.scored) == (drawn, drawn if scoring == "guided" else 1)
    assert tokens_through(g) == drawn * (g.rows * g.new + g.prompts * g.prompt)


def test_the_last_layer_of_a_janus_head_has_a_bias_and_an_emu3_has_one_layer():
    janus, emu3 = (tasks(shape, Work(S))[1] for shape in (JANUS_PRO_1B, EMU3))
    W, V = JANUS_PRO_1B.width, JANUS_PRO_1B.image_vocab
    assert janus.last == (W + 1) * V and janus.head == (W + 1) * (W + V)
    assert emu3.last == emu3.head == EMU3.width * EMU3.image_vocab


def test_one_rollout_at_least_and_no_more_than_there_are():
    for t in tasks(JANUS_PRO_1B, Work(S)):
        assert rows_at_once(JANUS_PRO_1B, replace(S, rollout_gb=1e-6), t) == 1
        assert rows_at_once(JANUS_PRO_1B, replace(S, rollout_gb=1e6), t) == t.rows


def test_guided_scores_keep_both_halves_of_prompts_and_rollouts():
    s = replace(S, cfg_scoring="guided", micro_batch=16)
    once, twice = (tasks(JANUS_PRO_1B, Work(x))[1] for x in (replace(s, cfg_scoring="cond"), s))
    kept = [update_bytes(JANUS_PRO_1B, s, t)["activations"] for t in (once, twice)]
    assert kept[1] == 2 * kept[0]


def test_a_prompts_tokens_attend_to_the_prompt():
    for checkpointing in (False, True):
        s = replace(S, gradient_checkpointing=checkpointing)
        whole = activation_bytes(JANUS_PRO_1B, s, 0, 0, 2, 640)  # prompts alone
        asking = layer_bytes(JANUS_PRO_1B, s.precision, 2, 640, 640)
        inputs = JANUS_PRO_1B.layers * 4 * JANUS_PRO_1B.width * 2 * 640
        cache = JANUS_PRO_1B.layers * 2 * 640 * 2 * JANUS_PRO_1B.kv_width * 4
        wanted = inputs + cache + asking if checkpointing else JANUS_PRO_1B.layers * asking
        assert whole == wanted


def test_a_sharded_run_samples_from_a_copy_that_is_cast_already():
    work = Work(replace(S, precision="bf16", shard=True), devices=4)
    sample = memory(JANUS_PRO_1B, work)["sample"]
    assert "bfloat16 casts" not in sample
    assert "bfloat16 casts" in memory(JANUS_PRO_1B, work.with_settings(shard=False))["sample"]


CARD = Card(gb=1, tflops=100, tflops_fp32=10, bandwidth=100, utilisation=0.5, layer_ms=2)


@pytest.mark.parametrize(
    "precision, work, took",
    [
        ("bf16", dict(trunk=1e14), 2),
        ("fp32", dict(trunk=1e14), 20),
        ("bf16", dict(fp32=1e14), 20),  # heads and decoder, whatever the trunk computes in
        ("bf16", dict(trunk=1e14, fp32=1e13), 4),  # one after the other
        ("bf16", dict(read=1e11), 2),
        ("bf16", dict(layers=1000), 2),  # the host is as fast at any use of the card
        ("bf16", dict(trunk=1e14, read=1e11, layers=1500), 3),  # at the same time
    ],
)
def test_seconds_are_those_of_the_slowest(precision, work, took):
    assert seconds(CARD, precision, **work) == pytest.approx(took)


def test_a_reference_and_bfloat16_each_score_once_more():
    def passes(**changes):
        s = replace(S, num_iterations=1, **changes)
        t = tasks(JANUS_PRO_1B, Work(s))[0]
        # launching is the slowest by far
        launch = replace(CARD, tflops=1e9, tflops_fp32=1e9, layer_ms=1e6)
        batches = -(-t.rows // s.micro_batch)
        each = 2 * JANUS_PRO_1B.layers * batches * 1e3  # for prompts, then for rollouts
        return update_seconds(JANUS_PRO_1B, s, t, launch) / each

    plain = dict(precision="fp32", beta=0.0, gradient_checkpointing=False)
    assert passes(**plain) == pytest.approx(3)
    assert passes(**plain | dict(beta=0.1)) == pytest.approx(4)
    assert passes(**plain | dict(precision="bf16")) == pytest.approx(4)
    assert passes(**plain | dict(precision="bf16", beta=0.1)) == pytest.approx(5)
    assert passes(**plain | dict(lora_rank=8)) == pytest.approx(2)
    assert passes(**plain | dict(gradient_checkpointing=True)) == pytest.approx(4)


def test_hours_and_tokens_are_of_all_devices_at_the_same_time():
    one, four = (plan(JANUS_PRO_1B, Work(S, n), CARD) for n in (1, 4))
    assert four["tokens"] == one["tokens"]
    for p in one, four:
        assert p["hours"] == pytest.approx(S.steps * sum(p["seconds"].values()) / 3600)


def test_lora_is_not_sharded_and_the_cure_may_need_all_that_can_be_had():
    both = ("--shard", "--lora-rank 32")
    assert not allowed(both, Work(S, 4)) and not allowed(("--shard",), Work(S, 1))
    assert not allowed(("--shard",), Work(replace(S, lora_rank=8), 4))
    assert allowed(("--shard",), Work(S, 4)) and allowed(("--lora-rank 32",), Work(S, 1))
    work, needs = Work(replace(S, precision="bf16", rollout_gb=8.0), 1), {}
    for n in 2, 3:
        for flags in combinations(SAVERS, n):
            changes = {}
            for flag in flags:
                changes |= SAVERS[flag]
            if allowed(flags, work):
                needs[flags] = peak(JANUS_PRO_1B, work.with_settings(**changes))
    two, three = (min(gb for f, gb in needs.items() if len(f) == n) for n in (2, 3))
    assert three < two
    flags, need = cure(JANUS_PRO_1B, work, replace(CARD, gb=(two + three) / 2))
    assert len(flags) == 3 and need == needs[flags]
    assert cure(JANUS_PRO_1B, work, replace(CARD, gb=three / 2))[0] == ()


def test_a_token_reads_the_weights_the_head_and_half_the_answer_behind_the_prompt():
    slow = replace(CARD, tflops=1e9, tflops_fp32=1e9, layer_ms=1e-9)
    for t in tasks(JANUS_PRO_1B, Work(S)):
        s = replace(S, rollout_gb=1e6)
        keys = t.drawn * t.rows * kv_bytes(JANUS_PRO_1B, "fp32") * (t.prompt + t.new / 2)
        read = 4 * matrices(JANUS_PRO_1B) + 4 * t.head + keys
        took = t.new * read / 1e9 / slow.bandwidth / slow.utilisation
        assert sampling_seconds(JANUS_PRO_1B, s, t, slow) == pytest.approx(took, rel=1e-3)
        few = replace(S, rollout_gb=0.3)
        chunks = -(-t.rows // rows_at_once(JANUS_PRO_1B, few, t))
        assert chunks > 1  # each reads all weights again
        again = t.new * (chunks - 1) * (4 * matrices(JANUS_PRO_1B) + 4 * t.head)
        more = again / 1e9 / slow.bandwidth / slow.utilisation
        assert sampling_seconds(JANUS_PRO_1B, few, t, slow) == pytest.approx(took + more, rel=1e-3)


def test_a_micro_batch_is_no_larger_than_the_step():
    t = tasks(JANUS_PRO_1B, Work(S))[0]
    whole, more = replace(S, micro_batch=t.rows), replace(S, micro_batch=8 * t.rows)
    least = replace(CARD, layer_ms=1e-9)
    assert update_seconds(JANUS_PRO_1B, whole, t, least) == pytest.approx(
        update_seconds(JANUS_PRO_1B, more, t, least)
    )


def test_guided_scores_take_one_last_layer():
    s = replace(S, cfg_scoring="guided", num_iterations=1, beta=0.0, precision="bf16")
    t = tasks(JANUS_PRO_1B, Work(s))[1]
    slow = replace(CARD, tflops=1e12, tflops_fp32=1e-3, layer_ms=1e-9)
    # forward, backward, once more because it is checkpointed, and the bfloat16 scoring before
    flops = 5 * t.rows * t.new * 2 * (2 * (t.head - t.last) + t.last)
    took = flops / slow.tflops_fp32 / 1e12 / slow.utilisation
    assert update_seconds(JANUS_PRO_1B, s, t, slow) == pytest.approx(took, rel=1e-3)


def test_a_unit_suits_the_largest_phase():
    lines = gb_lines(dict(sample=dict(a=0.25), step=dict(a=0.5, b=1.0)))
    assert lines[0].startswith("GB") and lines[-1].split() == ["all", "0.2", "1.5"]
    lines = gb_lines(dict(sample=dict(a=0.25)))
    assert lines[0].startswith("MB") and lines[-1].split() == ["all", "250.0"]


def test_no_shard_is_told_only_to_a_run_that_shards():
    tight = replace(CARD, gb=8)
    plain = Work(replace(S, precision="bf16"), 1)
    assert "--lora-rank 32" in advice(JANUS_PRO_1B, plain, tight)
    assert "--no-shard" not in advice(JANUS_PRO_1B, plain, tight)
    sharded = Work(replace(S, precision="bf16", shard=True), 2)
    assert "--no-shard" in advice(JANUS_PRO_1B, sharded, tight)
