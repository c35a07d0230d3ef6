"""What stands beside the training loop: pairs, the warm start, rollouts, rewards, defaults."""

import numpy as np
import pytest
import torch
from PIL import Image

import pairuni_nb.janus
import pairuni_nb.nano_emoji
from pairuni_nb.completion import parse_caption, verify, verify_text
from pairuni_nb.encoders import features, unit
from pairuni_nb.janus import (
    IMAGE_BLOCK,
    answer_text,
    draw_scenes,
    image_loss,
    load_janus,
    text_loss,
    to_pixels,
    to_tokens,
    train_vision,
    user_turn,
    warm_start,
)
from pairuni_nb.nano_emoji import concept_reward, emoji_rows, make_emoji
from pairuni_nb.pairing import cluster, make_pairs, nearest_members
from pairuni_nb.records import same_number
from pairuni_nb.rewards import target_similarity
from pairuni_nb.rollout import (
    ImagePrompts,
    JanusPolicy,
    Rollouts,
    Sampling,
    gap,
    join,
    unconditional,
)
from pairuni_nb.search import kmeans
from pairuni_nb.settings import PairSettings, TrainSettings
from pairuni_nb.similarity import similarity
from pairuni_nb.step import rows_of_step
from pairuni_nb.world import Scene, caption, question, question_text, records, split_of
from test_nano_emoji import made_up

# pairs


def stamped(source, n, first):
    "Toy records whose pictures carry a number of their own in their first pixel."
    rows = records(source, n, 0)
    for i, row in enumerate(rows):
        row["image"].putpixel((0, 0), (first + i, 0, 0))
    return rows


@pytest.fixture(scope="module")
def toy():
    return stamped("u", 30, 0), stamped("g", 34, 100)


def same_picture(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def check_rows(pairs, u, g):
    "Every column of a pair is its record's: what the record has as it is, the rest written for it."
    by_id = {r["id"]: r for r in u + g}
    for row in pairs:
        for side, texts in (("u", ("question", "choices", "answer")), ("g", ("prompt",))):
            if row[f"{side}_id"] is None:
                assert all(row[name] is None for name in (f"{side}_image", *texts))
                continue
            record = by_id[row[f"{side}_id"]]
            assert same_picture(row[f"{side}_image"], record["image"])
            assert row[f"{side}_scene"] == record["scene"]
            for name in texts:
                assert row[name] == record.get(name, row[name])
            if texts[0] not in record:  # completed: the scene says whether it is right
                assert verify(record, {name: row[name] for name in texts}) is None
        if row["kind"] == "aligned":
            assert row["u_id"] == row["g_id"] and row["origin"] == row["u_id"][0]


@pytest.mark.parametrize(
    "mix", ["pairs", "aligned", "retrieved", "random", "unpaired", "u-only", "g-only"]
)
def test_a_pair_is_of_its_records(mix, toy):
    pairs, counts = make_pairs(*toy, mix=mix, clusters=12)
    check_rows(pairs, *toy)
    kinds = dict(pairs={"aligned", "retrieved"}, random={"random"}, unpaired={"single"})
    kinds |= {mix_: {"aligned"} for mix_ in ("aligned", "u-only", "g-only")}
    assert set(pairs["kind"]) == kinds.get(mix, {"retrieved"})
    for row in pairs:
        if row["kind"] in ("aligned", "single"):
            assert row["similarity"] == 1
            continue
        shown = features([row["u_image"], row["g_image"]])
        assert row["similarity"] == similarity(shown[:1], shown[1:])[0, 0]
        assert row["similarity"] > 0.6 or mix == "random"
    if mix in ("u-only", "g-only"):
        assert set(pairs["origin"]) == {mix[0]}
    if mix in ("pairs", "retrieved", "random"):
        assert any(not same_picture(r["u_image"], r["g_image"]) for r in pairs)
        used = [[row[f"{side}_id"] for row in pairs if row["kind"] != "aligned"] for side in "ug"]
        assert all(len(set(ids)) == len(ids) for ids in used)
    assert counts["rows"] == len(pairs)


def order_of(pairs):
    return [(row["u_id"], row["g_id"]) for row in pairs.select_columns(["u_id", "g_id"])]


def test_chance_shuffles_both_sides_apart(toy):
    u, g = toy[0], toy[1][:30]
    pairs = order_of(make_pairs(u, g, mix="random")[0])
    assert sorted(i for i, _ in pairs) == sorted(r["id"] for r in u)
    assert sorted(j for _, j in pairs) == sorted(r["id"] for r in g)
    met = [[r["id"] for r in u].index(i) == [r["id"] for r in g].index(j) for i, j in pairs]
    assert sum(met) < 8  # not by row number
    assert [i for i, _ in pairs] != [r["id"] for r in u]


@pytest.mark.parametrize(
    "how", [dict(mix="random"), dict(mix="unpaired"), dict(), dict(select="random")]
)
def test_pairs_have_a_seed(how, toy):
    a, b, c = (order_of(make_pairs(*toy, clusters=12, seed=s, **how)[0]) for s in (0, 0, 1))
    assert a == b != c


def rows_of(n, d=3, seed=0):
    "Unit rows of few values, so that some are equal."
    return unit(np.random.default_rng(seed).choice([-1.0, 1, 2, 3], (n, d))).astype(np.float32)


def test_many_images_are_clustered_by_their_seed():
    f = unit(np.random.default_rng(0).standard_normal((300, 8), np.float32))
    a, b, c = (cluster(f, 12, seed, small=10) for seed in (0, 0, 1))
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    assert not np.array_equal(a[0], c[0])


def test_medoids_beyond_a_part_are_found():
    "More rows than are compared at a time; the nearest of each cluster lie anywhere."
    f, labels = rows_of(9000, 4), np.random.default_rng(1).integers(0, 40, 9000)
    centres = rows_of(40, 4, seed=2)
    inner = np.round((f.astype(float) * centres[labels]).sum(1), 6)
    best = [max(np.flatnonzero(labels == k), key=lambda i: (inner[i], -i)) for k in range(40)]
    assert max(best) > 4096
    assert nearest_members(f, labels, centres).tolist() == sorted(best)


def test_k_means_starts_with_rows_of_its_seed():
    f = unit(np.random.default_rng(0).standard_normal((200, 6), np.float32))
    # one pass only assigns, so these are the centres it starts with
    a, b, c = (kmeans(f, 9, seed, passes=(1, 0, 0))[1] for seed in (0, 0, 1))
    places = [int(np.flatnonzero((f == centre).all(1))[0]) for centre in a]
    assert len(set(places)) == 9 and max(places) > 50
    assert np.array_equal(a, b) and not np.array_equal(a, c)


# the warm start


@pytest.fixture(scope="module")
def janus():
    return load_janus()


def by_hand(prompts, tokens, mask=None):
    "Rollouts of tokens that somebody wrote, one a prompt."
    tokens = torch.as_tensor(tokens)
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    none, group = torch.zeros(tokens.shape), torch.arange(len(tokens))
    sampling = Sampling(cfg_weight=1.0)
    return Rollouts(prompts, group, tokens, mask, mask.any(1), none, none, sampling)


@torch.no_grad()
def test_the_warm_start_teaches_answers_as_the_policy_scores_them(janus):
    (model, processor), policy = janus, JanusPolicy(*janus)
    tok, u = processor.tokenizer, records("u", 4, 0)
    asked, told = [], []
    for i, r in enumerate(u):
        asked.append(question_text(r["question"], r["choices"]))
        told.append(answer_text(r | dict(evidence="so it is " * i)))
    pixels = to_pixels(np.stack([np.asarray(r["image"]) for r in u]))
    turns = [user_turn(IMAGE_BLOCK + q) for q in asked]
    loss = text_loss(model, tok, turns, told, pixels)

    said = [tok(a, add_special_tokens=False).input_ids + [tok.eos_token_id] for a in told]
    T = max(map(len, said))
    tokens = torch.tensor([row + [policy.pad] * (T - len(row)) for row in said])
    mask = torch.tensor([[t < len(row) for t in range(T)] for row in said])
    prompts = policy.text_prompts(asked, [r["image"] for r in u])
    logp = policy(by_hand(prompts, tokens, mask))
    assert loss.item() == pytest.approx(-logp.sum().item() / mask.sum().item(), abs=1e-4)


@torch.no_grad()
def test_the_warm_start_teaches_drawings_as_the_policy_scores_them(janus):
    (model, processor), policy = janus, JanusPolicy(*janus)
    g = records("g", 4, 0)
    captions = [r["prompt"] for r in g]
    pixels = to_pixels(np.stack([np.asarray(r["image"]) for r in g]))
    tokens = to_tokens(model.model.vqmodel, pixels)
    prompts = policy.image_prompts(captions)
    nothing = unconditional(prompts.attention_mask, policy.bos, policy.pad, policy.boi)
    for dropped, read in ((False, prompts), (True, ImagePrompts(nothing, prompts.attention_mask))):
        loss = image_loss(model, processor.tokenizer, captions, tokens, [dropped] * 4)
        logp = policy(by_hand(read, tokens))
        assert loss.item() == pytest.approx(-logp.mean().item(), abs=1e-4)


def test_what_a_model_learns_from_is_never_held_out(janus, monkeypatch):
    drawn, told, hidden = [], [], []
    render, image, text = (
        getattr(pairuni_nb.janus, name) for name in ("render", "image_loss", "text_loss")
    )

    def a_picture(scenes):
        drawn.extend(scenes)
        return render(scenes)

    def a_drawing(model, tok, captions, tokens, dropped):
        told.extend(captions)
        hidden.extend(dropped)
        return image(model, tok, captions, tokens, dropped)

    def a_text(model, tok, prompts, completions, pixels):
        told.extend(c.strip() for c in completions if "<answer>" not in c)
        return text(model, tok, prompts, completions, pixels)

    assert {split_of(scene) for scene in draw_scenes(np.random.default_rng(0), 200)[0]} == {"train"}
    monkeypatch.setattr(pairuni_nb.janus, "render", a_picture)
    monkeypatch.setattr(pairuni_nb.janus, "image_loss", a_drawing)
    monkeypatch.setattr(pairuni_nb.janus, "text_loss", a_text)
    model, processor = load_janus()
    warm_start(model, processor, 2, noise=0.5, pool=200, questions=30, captions=30, log=print)
    train_vision(model.model.vision_model, steps=2, log=print)
    assert len(drawn) > 300 and len(told) > 100
    assert {split_of(scene) for scene in drawn} == {"train"}
    assert {split_of(parse_caption(text)) for text in told} == {"train"}
    assert 0 < sum(hidden) < len(hidden) / 3  # some captions are hidden, for the guidance


def test_nano_emoji_is_made_without_what_is_held_out(tmp_path, monkeypatch):
    made_up(tmp_path, 12)
    read, parts = pairuni_nb.nano_emoji.emoji_rows, []

    def a_part(data, part):
        parts.append(part)
        return read(data, part)

    def stops(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pairuni_nb.nano_emoji.emoji_rows", a_part)
    monkeypatch.setattr("pairuni_nb.nano_emoji.new_nano", stops)
    with pytest.raises(KeyboardInterrupt):
        make_emoji(tmp_path / "model", tmp_path)
    assert sorted(parts) == ["g", "u"]


# rollouts


def test_a_gap_has_no_sign():
    drawn = by_hand(None, [[2, 3], [2, 0]], torch.tensor([[True, True], [True, False]]))
    for sign in (1, -1):
        assert gap(drawn, sign * torch.tensor([[0.1, 0.7], [0.2, 9.0]])) == pytest.approx(0.7)


def test_parts_of_other_lengths_are_filled_up_with_the_pad():
    short, long = by_hand(None, [[5]]), by_hand(None, [[6, 7, 8]])
    both = join([short, long], pad=4)
    assert both.tokens.tolist() == [[5, 4, 4], [6, 7, 8]]
    assert both.mask.tolist() == [[True, False, False], [True] * 3]
    assert both.logp.shape == (2, 3) and not both.logp.any()


# judges


def test_four_choices_and_no_fewer():
    scene = Scene("placed", "plain", (("star", "red"), *[None] * 8))
    record = dict(id="g0", prompt=caption(scene), scene=scene.to_json())
    asked = question(scene, np.random.default_rng(0))
    wrong = [c for c in asked["choices"] if c != asked["answer"]]
    for n in (1, 2):
        few = asked | dict(choices=[asked["answer"], *wrong[:n]])
        assert "four choices" in verify(record, few)


def test_a_whole_truth_exactly_and_others_within_a_twentieth_of_a_percent():
    for said, truth in ((3.14, 3.15), (1234.5, 1235.5), (10000, 10001), (0.5, 0.501), (2, 2.01)):
        assert not same_number(float(said), float(truth)), (said, truth)
    for said, truth in ((2019.5, 2020), (2020.4, 2020), (1000.4, 1000), (-0.0004, 0)):
        assert not same_number(float(said), float(truth)), (said, truth)
    for a, b in ((3.1416, 3.14159), (0.5, 0.5002), (7, 7), (1e9, 1e9)):
        assert same_number(float(a), float(b)), (a, b)


def test_what_is_less_than_unlike_earns_nothing():
    towards = {"own": [1.0, 0.0], "across": [0.0, 1.0], "against": [-1.0, 0.0]}
    looked_at = []

    def features(images):
        looked_at.append(len(images))
        return torch.tensor([towards[i] for i in images])

    reward = target_similarity(features)
    assert reward([""] * 3, list(towards), [dict(image="own")] * 3) == [1, 0, 0]
    assert sorted(looked_at) == [1, 3]  # one target for the three of them
    own, across = dict(image="own"), dict(image="across")
    drawn = ["own", "across", "across", "own"]
    assert reward([""] * 4, drawn, [own, own, across, across]) == [1, 0, 1, 0]


def test_a_photograph_is_shrunk_before_the_eyes_look(janus):
    policy = JanusPolicy(*janus)
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8)) for _ in range(70)]
    features = policy.frozen_eyes()
    seen = features(photos)  # in two parts
    assert seen.shape[0] == 70 and torch.allclose(seen.norm(dim=1), torch.ones(70))
    assert torch.allclose(seen, features([policy.to_size(photo) for photo in photos]), atol=1e-6)
    assert torch.allclose(seen[66:], features(photos[66:]), atol=1e-6)


def test_concepts_that_no_picture_tells_are_not_judged(tmp_path):
    made_up(tmp_path, 6)
    g = emoji_rows(tmp_path, "g")
    images = np.stack([np.asarray(r["image"]) for r in g])
    for floor, judged in ((-9.0, 6), (9.0, 0)):
        reward = concept_reward(tmp_path, encoder="pixels", floor=floor, cache=None)
        score = reward([r["prompt"] for r in g], images, g)
        assert sum(s is not None for s in score) == judged


# what a run is without a flag


def test_defaults_are_those_of_the_published_figures():
    "Notebooks' outputs were made with these, and presets name what differs: change all, or none."
    trained_with = dict(
        weighting="sqrt",
        steps=90,
        pairs_per_step=16,
        rollouts=8,
        lr=1.5e-4,
        clip_eps=0.2,
        num_iterations=1,
        micro_batch=64,
        loss_type="grpo",
        beta=0.0,
        max_grad_norm=1.0,
        temperature=1.0,
        cfg_weight=5.0,
        cfg_scoring="guided",
        max_new_tokens=24,
        eval_every=30,
        eval_items=500,
        save_every=30,
        precision="fp32",
        gradient_checkpointing=False,
        rollout_gb=8.0,
        lora_rank=0,
        train_vision=False,
        shard=False,
        seed=0,
    )
    trained_with |= dict(warmup=0, clip_eps_high=None, instruction="", plain_reward=0.0)
    trained_with |= dict(mask_truncated=False, importance_cap=0.0)
    trained_with |= dict(sample_by_weight=False, advantage="group")
    paired_with = dict(
        mix="pairs",
        select="medoids",
        n_u=2000,
        n_g=2000,
        clusters=None,  # 400 of the 4,000 images
        top_n=10,
        delta=0.6,
        order="g",
        dedup=0.0,
        similarity="image",
        encoder="pixels",
        text_encoder="words",
        joint_encoder="",
        weights=(0.5, 0.5, 0.0),
        cache="",
        device="auto",
        seed=0,
    )
    for settings, known in ((TrainSettings(), trained_with), (PairSettings(), paired_with)):
        assert {name: getattr(settings, name) for name in known} == known
    assert Sampling() == Sampling(1.0, 5.0, "guided", 24)


def test_a_step_of_unpaired_rows_is_half_a_step_of_pairs():
    """`09_pairing` says so, and how to make them equal."""
    u, g = records("u", 64, 0), records("g", 64, 0)

    def asked(mix, P):
        "Questions and prompts of each step of an epoch."
        pairs = make_pairs(u, g, mix=mix)[0]
        steps = [rows_of_step(len(pairs), P, 0, step) for step in range(len(pairs) // P)]
        sides = [[pairs.select(rows)[side] for rows in steps] for side in ("question", "prompt")]
        return [[sum(text is not None for text in step) for step in side] for side in sides]

    assert asked("random", 16) == [[16] * 4] * 2
    questions, prompts = asked("unpaired", 16)
    assert {q + p for q, p in zip(questions, prompts)} == {16}
    assert sum(questions) == sum(prompts) == 64 and len(questions) == 8
    questions, prompts = asked("unpaired", 32)
    assert sum(questions) == sum(prompts) == 64 and len(questions) == 4


@pytest.mark.parametrize(
    ("answer", "prompt", "kept"),
    [
        ("Red fish", "a red fish", True),
        ("a red fish", "A fish, red", True),  # all of its words
        ("a red fish", "a red bird", False),
        ("art", "a party", False),  # words, not letters
    ],
)
def test_an_answer_must_stand_in_the_prompt_word_by_word(answer, prompt, kept):
    fault = verify_text(dict(answer=answer), dict(prompt=prompt))
    assert fault == (None if kept else "the prompt does not contain the answer")


def test_counts_say_which_side_the_aligned_pairs_came_from():
    pairs, counts = make_pairs(records("u", 60, 0), records("g", 90, 0), clusters=20)
    came = [row["u_id"][0] for row in pairs if row["kind"] == "aligned"]  # one record's id, twice
    told = counts["aligned_from_u"], counts["aligned_from_g"]
    assert told == (came.count("u"), came.count("g")) and told[0] != told[1]
