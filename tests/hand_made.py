"""A policy, pairs and rewards made by hand: each output says which record it is of."""

import re
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from pairuni_nb.pairing import pair_row
from pairuni_nb.rollout import Rollouts

V, END = 5, 1  # tokens: 0 pads, 1 ends an answer, 2 to 4 are words


def picture(n, side=16):
    "A picture that carries a number in its first pixel."
    pixels = np.random.default_rng(n).integers(0, 256, (side, side, 3), np.uint8)
    pixels[0, 0] = n
    return Image.fromarray(pixels)


def number(image):
    return int(np.asarray(image)[0, 0, 0])


def u_record(i):
    asked = dict(question=f"question {i}?", choices=[f"yes {i}", f"no {i}"], answer=f"yes {i}")
    return asked | dict(id=f"u{i}", image=picture(2 * i + 1), scene="")


def g_record(i):
    return dict(id=f"g{i}", image=picture(2 * i + 2), scene="", prompt=f"draw {i}")


def pair(kind, similarity, u=None, g=None):
    "A pair row of record u and record g, by their numbers."
    u, g = (None if i is None else make(i) for i, make in ((u, u_record), (g, g_record)))
    return pair_row(kind, similarity, u, g)


def code(tokens):
    "One number for some tokens."
    return sum(int(token) * V**place for place, token in enumerate(tokens))


def value(task, i, told):
    "What an output of record i is worth; None: nobody can tell."
    if (told + i) % 7 == 0:
        return None
    return ((told // 3 + 3 * i + (task == "g")) % 5) / 4


def reward(task, seen=None):
    "A reward that knows which record each output is of, and refuses a mix-up."

    def judge(prompts, outputs, truths):
        values = []
        for prompt, output, truth in zip(prompts, outputs, truths, strict=True):
            i, told = map(int, output.split()) if task == "u" else map(int, output[0, 0, :2])
            assert truth["id"] == f"{task}{i}"
            assert number(truth["image"]) == (2 * i + 1 if task == "u" else 2 * i + 2)
            assert prompt == (f"question {i}?" if task == "u" else f"draw {i}")
            values.append(value(task, i, told))
        if seen is not None:
            seen.append((task, values))
        return values

    return judge


class Prompts:
    "Records by their numbers."

    def __init__(self, task, numbers):
        self.task, self.numbers = task, torch.tensor(numbers)

    def __len__(self):
        return len(self.numbers)


def place_in_group(rollouts):
    "Of each row, how many rows before it are of the same prompt."
    return [int((rollouts.group[:r] == g).sum()) for r, g in enumerate(rollouts.group)]


class HandMade(torch.nn.Module):
    "What a step and an evaluation ask of a JanusPolicy, over three small tables of logits."

    pad, image_tokens, device = 0, 3, torch.device("cpu")

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.said, self.drawn, self.undirected = (
            torch.nn.Parameter(0.4 * torch.randn(9, V)) for _ in range(3)
        )
        self.register_buffer("eos", torch.tensor([END]))
        self.calls = []  # what `sample` was given, and what it drew
        self.passes = []  # how many rows were scored at once
        self.instructions = set()  # what was asked behind the questions

    def text_prompts(self, questions, images):
        numbers = []
        for asked, image in zip(questions, images, strict=True):
            found = re.fullmatch(r"question (\d+)\?\nyes \1, no \1(?:\n(.+))?", asked)
            i = int(found[1])
            assert number(image) == 2 * i + 1  # the question is asked of its own picture
            numbers.append(i)
            self.instructions.add(found[2] or "")
        return Prompts("u", numbers)

    def image_prompts(self, prompts):
        return Prompts("g", [int(prompt.removeprefix("draw ")) for prompt in prompts])

    def length(self, task, sampling):
        return self.image_tokens if task == "g" else sampling.max_new_tokens

    def sample(self, prompts, k, noise, sampling, rows=None, gb=8.0):
        R, T = len(prompts) * k, self.length(prompts.task, sampling)
        assert noise.shape == (R, T)
        assert rows is None or rows.tolist() == list(range(R))
        tokens = 1 + (noise * (V - 1)).long()
        mask, ended = torch.ones(R, T, dtype=torch.bool), torch.ones(R, dtype=torch.bool)
        if prompts.task == "u":
            stop = tokens == END
            mask, ended = stop.cumsum(1) - stop.long() == 0, stop.any(1)
        longest = int(mask.sum(1).max())
        tokens, mask = tokens.masked_fill(~mask, self.pad)[:, :longest], mask[:, :longest]
        group = torch.arange(len(prompts)).repeat_interleave(k)
        none = torch.zeros(mask.shape)
        drawn = Rollouts(prompts, group, tokens, mask, ended, none, none, sampling)
        drawn = self.recorded(drawn)
        self.calls.append(dict(noise=noise, sampling=sampling, gb=gb, rollouts=drawn))
        return drawn

    @torch.no_grad()
    def recorded(self, drawn):
        "Rollouts whose log-probs are off by up to 0.5, so that ratios differ from 1."
        place = torch.arange(drawn.tokens.numel()).view_as(drawn.logp)
        logp = self(drawn) + 0.5 * torch.sin(place) * drawn.mask
        return replace(drawn, logp=logp, sample_logp=logp + 0.3 * torch.cos(place) * drawn.mask)

    def forward(self, rollouts):
        self.passes.append(len(rollouts))
        places = torch.arange(rollouts.tokens.shape[1])
        numbers = rollouts.prompts.numbers[rollouts.group]
        table = self.said if rollouts.task == "u" else self.drawn
        logits = table[(numbers[:, None] + places) % len(table)]  # (R, T, V)
        s = rollouts.sampling
        if rollouts.task == "g" and s.scores_guided:
            logits = self.undirected[places] + s.cfg_weight * (logits - self.undirected[places])
        logp = (logits / s.temperature).log_softmax(-1)
        return logp.gather(-1, rollouts.tokens[..., None])[..., 0] * rollouts.mask

    def texts(self, rollouts):
        "The record's number and the code of the tokens."
        numbers = rollouts.prompts.numbers[rollouts.group].tolist()
        return [f"{i} {code(row)}" for i, row in zip(numbers, rollouts.tokens)]

    def images(self, rollouts):
        "The same in two colours, and in the third which drawing of its prompt it is."
        numbers = rollouts.prompts.numbers[rollouts.group].tolist()
        pixels = []
        for i, row, n in zip(numbers, rollouts.tokens, place_in_group(rollouts)):
            pixels.append((i, code(row), n))
        return np.array(pixels, np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
