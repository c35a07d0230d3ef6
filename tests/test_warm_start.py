"""How the shipped models are made: what they learn from, and the codes that their drawings are made of."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pairuni_nb import diffusion, emu3, janus
from pairuni_nb.diffusion import load_checkpoint, policy_for
from pairuni_nb.janus import (
    crammed_scene,
    descend,
    draw_mixed,
    draw_scenes,
    load_janus,
    misanswer,
    move_codes,
    rehearse,
    scene_pool,
    spread_codes,
    to_images,
    to_pixels,
    to_tokens,
    train_vision,
    train_vq,
)
from pairuni_nb.rollout import Sampling
from pairuni_nb.world import ITEMS, STYLES, caption, question, sample_scene, split_of


def rng_of(seed=0):
    return np.random.default_rng(seed)


@cache
def policy_of(name):
    return policy_for(*load_checkpoint(name))


# pictures


def test_pixels_go_from_minus_one_to_one_and_colours_come_first():
    image = np.zeros((1, 2, 3, 3), np.uint8)
    image[0, 1, 2] = 255, 51, 0
    x = to_pixels(image)
    assert x.shape == (1, 3, 2, 3)
    assert x[0, :, 1, 2].tolist() == pytest.approx([1, -0.6, -1])
    assert x.sum().item() == pytest.approx(-18 + 2 + 0.4)


def test_scenes_come_from_their_sources_in_turn():
    drawn = [sample_scene(rng, s, "train") for rng in [rng_of(3)] for s in "gugg" * 2]
    scenes, x = draw_scenes(rng_of(3), 8, "gugg")
    assert scenes == drawn and x.shape == (8, 3, 48, 48)


def test_a_quarter_of_the_pictures_is_crammed(monkeypatch):
    asked, plain, crammed = [], janus.draw_scenes, janus.draw_crammed
    monkeypatch.setattr(janus, "draw_scenes", lambda r, n: asked.append(n) or plain(r, n))
    monkeypatch.setattr(janus, "draw_crammed", lambda r, n: asked.append(n) or crammed(r, n))
    assert draw_mixed(rng_of(), 12).shape == (12, 3, 48, 48)
    assert asked == [9, 3]


def test_crammed_scenes_are_half_full_of_all_there_is():
    rng = rng_of()
    scenes = [crammed_scene(rng) for _ in range(400)]
    cells = [cell for scene in scenes for cell in scene.cells]
    assert 0.45 < sum(cell is not None for cell in cells) / len(cells) < 0.55
    assert set(cells) == set(ITEMS)
    assert {scene.style for scene in scenes} == set(STYLES)


# the vision tower


class Oracle(nn.Module):
    "A tower that sees each patch's item, and the style in its last patch alone."

    def __init__(self, scenes):
        super().__init__()
        self.scenes, self.scale = scenes, nn.Parameter(torch.ones(()))
        self.config = SimpleNamespace(hidden_size=len(ITEMS) + len(STYLES))

    def forward(self, x):
        h = torch.zeros(len(x), 6, 6, self.config.hidden_size)
        for i, scene in enumerate(self.scenes[-len(x) :]):
            for place, cell in enumerate(scene.cells):
                row, column = 2 * (place // 3), 2 * (place % 3)
                h[i, row : row + 2, column : column + 2, ITEMS.index(cell)] = 1
            h[i, 5, 5, len(ITEMS) + STYLES.index(scene.style)] = 36
        return SimpleNamespace(last_hidden_state=self.scale * h.flatten(1, 2))


def test_the_tower_learns_each_cell_where_it_is_and_the_style(monkeypatch):
    scenes, said, losses, draw = [], [], [], janus.draw_scenes

    def drawn(rng, n):
        found, x = draw(rng, n)
        scenes.extend(found)
        return found, x

    def goes_down(loss, *more):
        losses.append(loss.item())
        descend(loss, *more)

    monkeypatch.setattr(janus, "draw_scenes", drawn)
    monkeypatch.setattr(janus, "descend", goes_down)
    train_vision(Oracle(scenes), 100, batch=16, lr=0.1, log=said.append)
    assert said[0].endswith("cells named 1.000") and losses[-1] < 0.2
    guessed = 2 * np.log(len(ITEMS)) + np.log(len(STYLES))  # full cells, empty ones, the style
    assert losses[0] == pytest.approx(guessed, abs=0.6)


# codes


def test_codes_are_spread_as_a_plain_loop_says():
    z = F.normalize(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    chosen = [0]
    while len(chosen) < 9:
        best = [max(float(a @ z[c]) for c in chosen) for a in z]
        chosen.append(int(np.argmin(best)))
    assert torch.equal(spread_codes(z, 9), z[chosen]) and len(set(chosen)) == 9


@pytest.mark.parametrize("reseed", [True, False])
def test_codes_move_as_a_plain_loop_says(reseed):
    g = torch.Generator().manual_seed(1)
    z = F.normalize(torch.rand(30, 3, generator=g), dim=1)
    codes = torch.cat([z[:5], -z[:2]])  # nothing is near the last two
    idle = torch.tensor([0.0, 3, 0, 0, 0, 20, 19])
    new, waited = codes.clone(), idle.clone()
    index = move_codes(new, waited, z, reseed)
    nearest = [int(np.argmax([float(a @ c) for c in codes])) for a in z]
    assert index.tolist() == nearest and not {5, 6} & {*nearest}
    for k in range(5):
        mean = z[index == k].mean(0)
        assert torch.allclose(new[k], F.normalize(0.9 * codes[k] + 0.1 * mean, dim=0), atol=1e-6)
    worst = int(np.argmin([max(float(a @ c) for c in codes) for a in z]))
    assert torch.equal(new[5], z[worst] if reseed else codes[5])  # 21 steps idle
    assert torch.equal(new[6], codes[6])
    assert waited.tolist() == [0] * 5 + [0 if reseed else 21, 20]


class SmallVQ(nn.Module):
    "Six by six patches, each in three numbers, and back; it notes what is decoded."

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 3, 8, 8), nn.ConvTranspose2d(3, 3, 8, 8)
        self.quantize = SimpleNamespace(embedding=nn.Embedding(16, 3))
        self.decoded = []

    def decode(self, z):
        codes = self.quantize.embedding.weight.clone()
        self.decoded.append((z.detach().permute(0, 2, 3, 1).flatten(0, 2), codes, z.requires_grad))
        return self.up(z)


def test_a_tokenizer_learns_without_codes_then_through_them(monkeypatch):
    torch.manual_seed(0)
    vq, reseeds, said, move = SmallVQ(), [], [], janus.move_codes

    def moved(codes, idle, z, reseed):
        reseeds.append(reseed)
        return move(codes, idle, z, reseed)

    monkeypatch.setattr(janus, "move_codes", moved)
    own = dict(down=lambda vq, x: vq.down(x), up=lambda vq, z: vq.decode(z))
    train_vq(vq, 100, 8, log=said.append, check=lambda vq, seed: f"seed {seed}", seed=5, **own)
    assert reseeds == [True] * 30 + [False] * 30  # from step 40 on, and to step 70 of 100
    for step, (z, codes, learns) in enumerate(vq.decoded):
        assert learns and (z.norm(dim=1) - 1).abs().max() < 1e-5
        off = 1 - (z @ codes.T).amax(1)  # from the nearest code
        assert off.max() < 1e-5 if step >= 40 else off.max() > 1e-3, step
    assert len(said) == 1 and said[0].endswith("seed 5")
    assert not vq.quantize.embedding.weight.requires_grad


def test_a_step_down_is_clipped_and_begins_anew():
    p = nn.Parameter(torch.tensor([30.0, 40.0]))
    opt = torch.optim.SGD([p], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    descend(p.square().sum() / 2, [p], opt, schedule)  # a gradient of length 50
    assert p.tolist() == pytest.approx([29.4, 39.2])
    descend(0.1 * p.sum(), [p], opt, schedule)  # short, and at half the rate
    assert p.tolist() == pytest.approx([29.35, 39.15])


def test_pictures_of_more_than_a_part_come_back_and_are_clamped():
    vq = load_janus()[0].model.vqmodel
    _, x = draw_scenes(rng_of(), 70)
    tokens = to_tokens(vq, x)
    assert torch.equal(tokens[66:], to_tokens(vq, x[66:])) and tokens.shape == (70, 36)
    drawn = to_images(vq, tokens)
    assert (drawn[66:].astype(int) - to_images(vq, tokens[66:])).max() <= 1
    bright = SimpleNamespace(decode=lambda t: torch.tensor([-9.0, 0, 9]).expand(len(t), 2, 2, 3))
    told = to_images(bright, tokens[:1])  # (1, 2, 3, 2): channels come first there
    assert told[0, 0, :, 0].tolist() == [0, 128, 255]


# what is told wrongly


def test_a_wrong_answer_is_another_choice_in_the_evidence_too():
    rng = rng_of()
    for i in range(60):
        q = question(sample_scene(rng, "ug"[i % 2], "train"), rng)
        lie = misanswer(q, rng)
        assert lie["answer"] in q["choices"] and lie["answer"] != q["answer"]
        assert (lie["question"], lie["choices"]) == (q["question"], q["choices"])
        assert lie["evidence"].endswith(lie["answer"])
        start = len(q["evidence"]) - len(q["answer"])
        assert lie["evidence"][:start] == q["evidence"][:start]


class Told(Exception):
    "Carries what a loss was asked for."


def told_by(f, *args):
    with pytest.raises(Told) as e:
        f(*args)
    return e.value.args


def janus_parts(patch):
    policy = policy_of("janus-nano")

    def stop(*args):
        raise Told(*args)

    patch.setattr(janus, "text_loss", stop)
    patch.setattr(janus, "image_loss", stop)
    return policy.model, policy.processor.tokenizer


def janus_answers(patch, n, noise):  # -> questions, answers
    _, _, asked, told, _ = told_by(janus._question_loss, *janus_parts(patch), rng_of(), n, noise)
    return asked, told


def emu3_answers(patch, n, noise):
    patch.setattr(emu3, "text_examples", lambda policy, asked, images, told: (asked, told))
    return emu3.question_examples(None, rng_of(), n, noise)


@pytest.mark.parametrize("answers", [janus_answers, emu3_answers])
def test_a_share_of_the_questions_is_answered_wrongly(answers, monkeypatch):
    right = []

    def asked(scene, rng):
        right.append(question(scene, rng))
        assert split_of(scene) == "train"
        return right[-1]

    for module in (janus, emu3):
        monkeypatch.setattr(module, "question", asked)
    for noise, low, high in ((0.0, 0, 0), (0.25, 0.1, 0.4), (1.0, 1, 1)):
        right.clear()
        questions, told = answers(monkeypatch, 80, noise)
        wrong = []
        for q, text, answer in zip(right, questions, told, strict=True):
            assert q["question"] in text
            wrong.append(not answer.endswith(f"<answer>{q['answer']}</answer>"))
        assert low <= np.mean(wrong) <= high


def janus_drawings(patch, n, noise, pool):  # -> captions, tokens, hidden
    _, _, *told = told_by(janus._drawing_loss, *janus_parts(patch), rng_of(), n, noise, pool)
    return told


def emu3_drawings(patch, n, noise, pool):
    patch.setattr(emu3, "drawing_examples", lambda policy, *told: told)
    return emu3.pool_examples(None, rng_of(), n, noise, pool)


@pytest.mark.parametrize("drawings", [janus_drawings, emu3_drawings])
def test_a_share_of_the_drawings_is_asked_for_wrongly_and_a_tenth_not_at_all(drawings, monkeypatch):
    scenes = draw_scenes(rng_of(7), 30)[0]
    pool = [(scene, torch.full((36,), i)) for i, scene in enumerate(scenes)]
    for noise, low, high in ((0.0, 0, 0), (0.25, 0.1, 0.4), (1.0, 0.8, 1)):
        captions, tokens, hidden = drawings(monkeypatch, 300, noise, pool)
        assert tokens.dtype == torch.long and (tokens == tokens[:, :1]).all()
        drawn = [caption(scenes[i]) for i in tokens[:, 0].tolist()]
        assert len({*tokens[:, 0].tolist()}) == 30
        wrong = [text != truth for text, truth in zip(captions, drawn)]
        assert low <= np.mean(wrong) <= high
        assert 0.04 < np.mean(np.asarray(hidden)) < 0.18


def test_a_pool_holds_scenes_with_their_own_codes():
    vq = load_janus()[0].model.vqmodel
    pool = scene_pool(rng_of(2), 450, vq)
    assert len(pool) == 400
    scenes, x = draw_scenes(rng_of(2), 200, "gugg")
    assert [scene for scene, _ in pool[:200]] == scenes
    assert torch.equal(torch.stack([codes for _, codes in pool[190:200]]), to_tokens(vq, x[190:]))


def test_half_of_emu3s_captions_are_of_crammed_scenes(monkeypatch):
    crammed, sampled, told = [], [], {}

    def cram(rng):
        crammed.append(crammed_scene(rng))
        return crammed[-1]

    def sample(rng, source, split):
        sampled.append(split)
        return sample_scene(rng, source, split)

    def examples(policy, questions, images, answers):
        told.update(questions=questions, images=images, answers=answers)

    monkeypatch.setattr(emu3, "crammed_scene", cram)
    monkeypatch.setattr(emu3, "sample_scene", sample)
    monkeypatch.setattr(emu3, "text_examples", examples)
    emu3.caption_examples(None, rng_of(), 7)
    assert len(crammed) == 3 and sampled == ["train"] * 4
    assert {*map(len, told.values())} == {7}


def test_examples_end_and_are_scored_without_guidance():
    policy = policy_of("nano-emu3")
    tok, ends = policy.processor.tokenizer, int(policy.eos[0])
    told = emu3.text_examples(policy, ["how many?"] * 2, None, ["two", "a red star"])
    for row, mask, text in zip(told.tokens, told.mask, ("two", "a red star")):
        assert row[mask].tolist() == [*tok(text, add_special_tokens=False).input_ids, ends]
    assert told.sampling == Sampling(1.0, 1.0) and told.ended.all()


# the steps


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.vision_model, self.model.vqmodel = nn.Linear(2, 2), nn.Linear(2, 2)
        self.trunk = nn.Linear(2, 1)


def test_a_rehearsal_goes_down_the_sum_and_leaves_eyes_and_codes():
    torch.manual_seed(0)
    net, x, said = Small(), torch.randn(64, 2), []
    start = {name: p.clone() for name, p in net.named_parameters()}

    def losses():
        seen = net.trunk(net.model.vqmodel(net.model.vision_model(x)))
        return dict(one=(seen - 1).square().mean(), two=(seen + 3).square().mean())

    rehearse(net, losses, 100, 0.1, said.append)
    with torch.no_grad():
        assert sum(losses().values()) == pytest.approx(8, abs=0.2)  # all say -1: 4 + 4
    for name, p in net.named_parameters():
        assert torch.equal(p, start[name]) == ("trunk" not in name), name
    assert [text.split(":")[0] for text in said] == ["warm start 50", "warm start 100"]
    assert "one 4.0" in said[1]


@pytest.mark.parametrize("family", ["janus", "emu3", "diffusion"])
def test_a_warm_start_takes_as_many_of_each_kind_as_it_says(family, monkeypatch):
    asked, module = {}, dict(janus=janus, emu3=emu3, diffusion=diffusion)[family]

    def part(name, worth):
        def made(*args):
            asked[name] = [a for a in args if isinstance(a, int | float)]
            return worth

        return made

    def stop(model, losses, steps, lr, log):
        raise Told(losses(), steps, lr)

    monkeypatch.setattr(module, "scene_pool", lambda rng, n, *_: f"pool of {n}")
    monkeypatch.setattr(module, "rehearse", stop)
    sizes = dict(questions=5, drawings=7, noise=0.5, steps=3, lr=0.1, pool=9)
    monkeypatch.setattr(emu3, "mean_loss", lambda policy, worth: worth)
    monkeypatch.setattr(diffusion, "masked_loss", lambda policy, worth, rng: worth)
    full = []
    monkeypatch.setattr(diffusion, "filled", lambda worth, T, eos: full.append(T) or worth)
    names = dict(
        janus=("_question_loss", "_caption_loss", "_drawing_loss"),
        emu3=("question_examples", "caption_examples", "pool_examples"),
        diffusion=("question_examples", "", "pool_examples"),
    )[family]
    for name, worth in zip(names, (1.0, 2.0, 4.0)):
        if name:
            monkeypatch.setattr(module, name, part(name, worth))
    policy = policy_of(
        dict(janus="janus-nano", emu3="nano-emu3", diffusion="nano-diffusion")[family]
    )
    calls = dict(
        janus=lambda: janus.warm_start(policy.model, policy.processor, captions=6, **sizes),
        emu3=lambda: emu3.warm_start_emu3(policy, captions=6, **sizes),
        diffusion=lambda: diffusion.warm_start_masked(policy, **sizes),
    )
    losses, steps, lr = told_by(calls[family])
    assert (steps, lr) == (3, 0.1)
    assert asked[names[0]] == [5, 0.5] and asked[names[2]] == [7, 0.5]
    assert losses["questions"] == 1 and losses["drawing"] == 4
    assert full == ([12] if family == "diffusion" else [])  # places of an answer
    if names[1]:
        assert asked[names[1]] == [6]
        assert losses["captions"] == (1 if family == "janus" else 2)
