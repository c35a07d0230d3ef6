"""Figures of an evaluation on outputs made by hand, whose scores are known."""

import statistics
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from hand_made import HandMade, g_record, number, place_in_group, u_record
from pairuni_nb.evaluate import evaluate, evaluate_g, evaluate_u, mean_ci
from pairuni_nb.rewards import scene_reward
from pairuni_nb.rollout import Sampling, noise
from pairuni_nb.world import Scene, records, render

S = Sampling(0.8, 2.5, "cond", 4, "be brief")
SAID = ["<think>a</think><answer>{}</answer>", "{}", "<think></think><answer>{}</answer>"]
# what is answered to the questions 0 to 5: right, wrong, right without form, ..
ANSWERS = [
    SAID[0].format("yes 0"),
    SAID[0].format("no 1"),
    SAID[1].format("yes 2"),
    SAID[0].format("b"),
    SAID[2].format("yes 4"),
    SAID[0].format("A"),
]
RIGHT, FORM = [1, 0, 0, 0, 0, 1], [1, 1, 0, 1, 0, 1]


class Scripted(HandMade):
    "It answers question i by ANSWERS[i], and draws what it is told to: by record, then drawing."

    def __init__(self, drawings=None):
        super().__init__()
        self.drawings = drawings

    def texts(self, rollouts):
        return [ANSWERS[int(i)] for i in rollouts.prompts.numbers[rollouts.group]]

    def images(self, rollouts):
        drawings = self.drawings or [(10 * i, 10 * i + i) for i in range(9)]
        numbers = rollouts.prompts.numbers[rollouts.group].tolist()
        pixels = []
        for i, n in zip(numbers, place_in_group(rollouts)):
            pixels.append(np.broadcast_to(np.uint8(drawings[i][n]), (48, 48, 3)))
        return np.stack(pixels)


def by_number(prompts, images, truths):
    "A tenth of what is drawn, for the first drawing of each record alone."
    scores = []
    for prompt, image, truth in zip(prompts, images, truths, strict=True):
        i = int(truth["id"][1:])
        assert prompt == f"draw {i}" and number(truth["image"]) == 2 * i + 2
        assert image.shape == (48, 48, 3) and (image == 10 * i).all()
        scores.append(None if i == 3 else i / 10)
    return scores


def interval(values):
    "Mean, and half of the 95 % interval of a normal mean."
    return statistics.mean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5


def close(figure):
    return pytest.approx(figure, rel=1e-6)


U, G = [u_record(i) for i in range(6)], [g_record(i) for i in range(5)]


def test_an_interval_by_hand():
    assert mean_ci([1, 2, None, 3, 4]) == (2.5, pytest.approx(1.96 * 1.2909944 / 2))
    assert mean_ci([0, 1]) == (0.5, pytest.approx(0.98))


@pytest.mark.parametrize("chunk", [4, 128])
def test_answers_are_scored_each_by_its_record(chunk):
    told = evaluate_u(Scripted(), U, S, 7, chunk=chunk)
    assert told["accuracy"] == close(interval(RIGHT))
    assert told["well_formed"] == close(interval(FORM))
    formed = [right for right, form in zip(RIGHT, FORM) if form]
    assert told["accuracy_formed"] == close(interval(formed))
    for i, (sample, record) in enumerate(zip(told["samples"], U, strict=True)):
        for name in ("question", "choices", "answer"):
            assert sample[name] == record[name]
        assert (sample["completion"], sample["matcher"]) == (ANSWERS[i], "choice")


@pytest.mark.parametrize("chunk", [2, 64])
def test_the_first_drawing_is_scored_and_the_second_compared(chunk):
    told = evaluate_g(Scripted(), G, S, 7, by_number, chunk=chunk)
    assert told["score"] == close(interval([0, 0.1, 0.2, 0.4]))
    assert told["diversity"] == close(interval([i / 255 for i in range(5)]))
    assert told["images"][:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert "full" not in told


def nearly(record):
    "A picture that scores one half or more for a record, but not 1: a thing too many."
    scene = Scene.from_json(record["scene"])
    place = scene.cells.index(None)
    cells = (*scene.cells[:place], ("star", "pink"), *scene.cells[place + 1 :])
    picture = render([replace(scene, cells=cells)])
    assert 0.5 <= scene_reward(None, picture, [record])[0] < 1
    return picture[0]


def test_full_marks_are_full():
    rows = [r | dict(prompt=f"draw {i}") for i, r in enumerate(records("g", 9, 1)) if i < 3]
    drawn = [np.asarray(rows[0]["image"]), nearly(rows[1]), nearly(rows[2])]
    told = evaluate_g(Scripted([(first, drawn[0]) for first in drawn]), rows, S)
    assert told["full"] == close(interval([1, 0, 0]))
    assert told["score"] == close(interval(scene_reward(None, np.stack(drawn), rows)))


def test_the_protocol_is_what_was_sampled():
    policy = Scripted()
    told = evaluate(policy, U, G, S, 7, by_number, gb=0.5)
    assert told["protocol"] == asdict(S) | dict(seed=7, n_u=6, n_g=5)
    for call in policy.calls:
        assert (call["sampling"], call["gb"]) == (S, 0.5)
    assert policy.instructions == {"be brief"}
    assert told["prompts"] == [r["prompt"] for r in G]
    assert len(told["samples"]) == 6 and len(told["images"]) == 5
    u, g = evaluate_u(Scripted(), U, S, 7), evaluate_g(Scripted(), G, S, 7, by_number)
    for name, figure in (u | g).items():
        if name not in ("samples", "images", "items"):
            parts = told["figures"][f"{name}_mean"], told["figures"][f"{name}_ci"]
            assert parts == figure, name
    again = Scripted()
    evaluate(again, U, G, S, told["protocol"]["seed"], by_number)
    for call, same in zip(policy.calls, again.calls, strict=True):
        assert torch.equal(call["noise"], same["noise"])


def drawn_with(seed, **chunks):
    "The uniform numbers of an evaluation: of answers (n, T), of drawings (2n, T)."
    policy = Scripted()
    evaluate_u(policy, U, S, seed, **chunks)
    n = len(policy.calls)
    evaluate_g(policy, G, S, seed, by_number, **chunks)
    calls = [call["noise"] for call in policy.calls]
    return torch.cat(calls[:n]), torch.cat(calls[n:])


def test_every_item_has_noise_of_its_own_whatever_the_chunk():
    whole, parts = drawn_with(7), drawn_with(7, chunk=2)
    for a, b in zip(whole, parts):
        assert torch.equal(a, b)
    rows = torch.cat([a[:, :3] for a in whole])
    assert len(rows.unique(dim=0)) == len(rows) == 6 + 2 * 5
    ids = [f"{task}{i}" for task in "ug" for i in range(9)]
    in_training = torch.cat([noise(7, step, ids, 2, 3) for step in range(3)])
    assert not torch.isin(rows, in_training).any()


def test_the_seed_is_of_both_sides():
    def seeds(seed):
        policy = Scripted()
        evaluate(policy, U, G, S, seed, by_number)
        return [call["noise"] for call in policy.calls]

    for a, b in zip(seeds(7), seeds(8), strict=True):
        assert not (a == b).any()


def test_a_side_without_records_is_left_out():
    told = evaluate(Scripted(), [], G, S, 7, by_number)
    assert {name.rsplit("_", 1)[0] for name in told["figures"]} == {"score", "diversity"}
    assert (told["samples"], told["protocol"]["n_u"], told["protocol"]["n_g"]) == ([], 0, 5)
    told = evaluate(Scripted(), U, [], S, 7, by_number)
    assert {name.rsplit("_", 1)[0] for name in told["figures"]} == {
        "accuracy",
        "accuracy_formed",
        "well_formed",
    }
    assert len(told["images"]) == 0 and told["prompts"] == []
