"""Does the loop that trains a Janus train an Emu3? One CSV row a run.

    export OMP_NUM_THREADS=1
    python benchmarks/nano_emu3.py run pair-grpo --seeds 0 1 2 3 4
    python benchmarks/nano_emu3.py run u --seeds 0 1 2
    python benchmarks/nano_emu3.py run shuffled --seeds 0 1 2 3 4
    python benchmarks/nano_emu3.py decoding --seeds 0 1 2 3 4
    python benchmarks/nano_emu3.py table

Each seed has its own pairs, rollout noise and fresh held-out set. `shuffled` deals each step's
rewards to random rollouts: if that rises, something other than the reward teaches. `u` and `g`
train one side alone, `random` makes strangers the pairs. `decoding` scores drawings before and
after under other guidance weights (200 items), for a run under guidance could look good by mending
that alone. Rows that a CSV already holds are not run again; run folders stay in runs/nano_emu3.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rows import append, read, row_of, table

from pairuni_nb.diffusion import load_checkpoint, policy_for
from pairuni_nb.evaluate import evaluate, evaluate_g, fresh_scenes
from pairuni_nb.pairing import make_pairs
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.rollout import Sampling
from pairuni_nb.settings import preset
from pairuni_nb.train import train
from pairuni_nb.world import records

HERE = Path(__file__).parent
CSV, RUNS = HERE / "nano_emu3.csv", HERE.parent / "runs" / "nano_emu3"
DECODING = HERE / "nano_emu3_decoding.csv"
NAME = "nano-emu3"
# what each changes in how the pairs are trained or made
CONDITIONS = {"pair-grpo": {}, "u": dict(sides="u"), "g": dict(sides="g")}
CONDITIONS |= {"random": dict(mix="random"), "shuffled": {}}


def shuffled(reward, seed):
    "The same rewards, dealt to random rollouts."
    rng = np.random.default_rng(seed)
    return lambda *a: [float(v) for v in rng.permutation(reward(*a))]


def scores(checkpoint, seed, s):
    "Held-out figures of a checkpoint, with the true rewards."
    policy = policy_for(*load_checkpoint(str(checkpoint)))
    held = fresh_scenes(s.eval_items, seed)
    return evaluate(policy, *held, Sampling.of(s), seed)["figures"]


def run(condition, seed, name=NAME, runs=RUNS, **changes):
    "One run of a preset, some of its settings changed; its CSV row."
    t0, changes = time.process_time(), CONDITIONS[condition] | changes
    mix = changes.pop("mix", "pairs")
    s = replace(preset(name).train, seed=seed, eval_every=10_000, save_every=10_000, **changes)
    read = records("u", 2000, seed), records("g", 2000, seed)
    pairs, _ = make_pairs(*read, seed=seed, mix=mix)
    out, dealt = runs / f"{condition}-{seed}", None
    if condition == "shuffled":
        dealt = dict(u=shuffled(answer_accuracy, seed), g=shuffled(scene_reward, seed))
    result = train(pairs, out, s, name, dealt, device="cpu")
    if dealt:  # its own figures are of the dealt rewards
        result = dict(before=scores(name, seed, s), after=scores(out / "checkpoint", seed, s))
    return row_of(condition, seed, s.steps, time.process_time() - t0, result)


def decode(seed):
    "Drawings of the start and of what came of it, under three guidance weights."
    held = records("g", 200, 10_000 + seed, "heldout")
    for model, checkpoint in (
        ("start", NAME),
        ("pair-grpo", RUNS / f"pair-grpo-{seed}" / "checkpoint"),
    ):
        policy = policy_for(*load_checkpoint(str(checkpoint)))
        for w in (1.0, 2.0, 3.0):
            mean, half = evaluate_g(policy, held, Sampling(1.0, w), seed)["score"]
            scored = dict(score=round(mean, 4), half_width=round(half, 4))
            append(DECODING, dict(model=model, seed=seed, cfg_weight=w) | scored)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("condition", choices=tuple(CONDITIONS))
    for command in (runs, commands.add_parser("decoding")):
        command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    commands.add_parser("table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "table":
        return table(read(CSV))
    if args.command == "decoding":
        held = {int(r["seed"]) for r in read(DECODING)}
        for seed in set(args.seeds) - held:
            decode(seed)
        return
    done = [(r["condition"], int(r["seed"])) for r in read(CSV)]
    for seed in args.seeds:
        if (args.condition, seed) not in done:
            append(CSV, run(args.condition, seed))


if __name__ == "__main__":
    main()
