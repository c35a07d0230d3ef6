"""Run by test_two_families.py in two processes: the step of policies that are no Janus, by one and by two."""

import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from pairuni_nb import processes
from pairuni_nb.diffusion import load_checkpoint, policy_for
from pairuni_nb.pairing import load_pairs
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.step import roll_out_sides
from pairuni_nb.world import question_text
from test_emu3 import BagPolicy
from two_processes import PLAIN, SMALL, apart, shared, step, whole

JUDGES = dict(u=answer_accuracy, g=scene_reward)
MASKED = replace(SMALL, cfg_weight=3.0, max_new_tokens=12)
EMU3 = replace(SMALL, cfg_weight=3.0, max_new_tokens=8)
BAG = replace(SMALL, cfg_weight=1.0, max_new_tokens=1)


def masked(rows):
    "A policy whose rollouts bring the step in which each token was revealed."
    return policy_for(*load_checkpoint("nano-diffusion"))


def emu3(rows):
    "A policy whose head is a part of the table of words."
    return policy_for(*load_checkpoint("nano-emu3"))


def bag(rows):
    "The policy of 16_emu3 that is no transformer."
    texts = [question_text(row["question"], row["choices"]) for row in rows]
    torch.manual_seed(0)
    return BagPolicy(texts + [row["prompt"] for row in rows], sorted({r["answer"] for r in rows}))


def parts(side):
    "What all processes must know alike of a side."
    r = side.rollouts
    kept = dict(tokens=r.tokens, mask=r.mask, group=r.group, advantages=side.advantages)
    return kept if r.step is None else kept | dict(step=r.step)


def told(policy, s, ways, rows, accelerator):
    "How far two processes are from one."
    ids, together = list(range(len(rows))), processes.rank_and_size
    sides, _ = roll_out_sides(policy, rows, ids, 0, s, JUDGES)
    processes.rank_and_size = lambda: (0, 1)
    single, _ = roll_out_sides(policy, rows, ids, 0, s, JUDGES)
    one, opt = shared("one", policy, accelerator, torch.optim.SGD, 1.0)
    step(one, opt, single, s, PLAIN)
    processes.rank_and_size = together
    differ, steps = [], 0
    for task, side in single.items():
        mine = parts(sides[task])
        differ += [f"{k}_{task}" for k, x in parts(side).items() if not torch.equal(x, mine[k])]
        steps = max(steps, int(mine.get("step", torch.zeros(1)).max()))
    said = dict(differ=differ, steps=steps, moved=apart(whole(one), whole(policy)))
    for way in ways:
        other, opt = shared(way, policy, accelerator, torch.optim.SGD, 1.0)
        step(other, opt, sides, s, accelerator)
        said[way] = apart(whole(other), whole(one))
    return said


def main(folder):
    torch.set_num_threads(1)
    accelerator = processes.launch(SMALL, folder, "cpu", None)
    pairs = load_pairs(folder / "pairs")
    rows = [pairs[i] for i in range(3)]
    said = dict(
        masked=told(masked(rows), MASKED, ("ddp", "fsdp"), rows, accelerator),
        emu3=told(emu3(rows), EMU3, ("ddp", "fsdp"), rows, accelerator),
        bag=told(bag(rows), BAG, ("ddp",), rows, accelerator),
    )
    if dist.get_rank() == 0:
        (Path(folder) / "said.json").write_text(json.dumps(said))
    dist.barrier()
    accelerator.end_training()
