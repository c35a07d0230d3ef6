"""Does the loop that trains a Janus train a masked-diffusion model? One CSV row a run.

    export OMP_NUM_THREADS=1
    python benchmarks/nano_diffusion.py decoding
    python benchmarks/nano_diffusion.py run pair-grpo --seeds 0 1 2
    python benchmarks/nano_diffusion.py run one-step --seeds 0
    python benchmarks/nano_diffusion.py run shuffled --seeds 0
    python benchmarks/nano_diffusion.py table

Each seed has its own pairs, rollout noise and fresh held-out set (300 items a side). `one-step`
draws alike and scores every token as if all had been hidden: what changes
is the likelihood. `shuffled` deals each step's rewards to random rollouts. `decoding` scores what
the start draws and answers in more steps, fewer steps, by confidence and guided (200 items).
Rows that a CSV already holds are not run again; run folders stay in runs/nano_diffusion.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import nano_emu3
import torch
from rows import append, read, table

from pairuni_nb import diffusion
from pairuni_nb.diffusion import DiffusionPolicy, load_checkpoint, policy_for
from pairuni_nb.evaluate import evaluate
from pairuni_nb.rollout import Sampling
from pairuni_nb.settings import preset
from pairuni_nb.world import records

HERE = Path(__file__).parent
CSV, RUNS = HERE / "nano_diffusion.csv", HERE.parent / "runs" / "nano_diffusion"
DECODING = HERE / "nano_diffusion_decoding.csv"
NAME = "nano-diffusion"
WAYS = (  # text steps, image steps, by confidence, guidance
    (6, 9, False, 1.0),
    (3, 4, False, 1.0),
    (12, 36, False, 1.0),
    (6, 9, True, 1.0),
    (6, 9, False, 2.0),
)


class OneStep(DiffusionPolicy):
    "Draws as ever, and scores each token as if all had been hidden."

    def states(self, rollouts):
        return super().states(replace(rollouts, step=torch.zeros_like(rollouts.step)))

    def _sample_rows(self, *args):
        drawn = super()._sample_rows(*args)
        with torch.no_grad():
            return replace(drawn, logp=self(drawn))


def run(condition, seed):
    "One run; its CSV row."
    if condition == "one-step":
        family = diffusion.FAMILIES[DiffusionPolicy.family]
        diffusion.FAMILIES[DiffusionPolicy.family] = (*family[:2], OneStep)
    return nano_emu3.run(condition, seed, NAME, RUNS, eval_items=300, agreement_every=0)


def decode(way):
    "What the start can do, decoded one way; its CSV row."
    text_steps, image_steps, confident, w = way
    policy = policy_for(*load_checkpoint(NAME))
    policy.model.config.text_steps, policy.model.config.image_steps = text_steps, image_steps
    policy.confident = confident
    sampling = replace(Sampling.of(preset(NAME).train), cfg_weight=w)
    held = [records(side, 200, 10_000, "heldout") for side in "ug"]
    t0 = time.process_time()
    told = evaluate(policy, *held, sampling, 0)["figures"]
    seconds = round(time.process_time() - t0, 1)
    row = dict(text_steps=text_steps, image_steps=image_steps, confident=confident, cfg_weight=w)
    for key in ("accuracy", "well_formed", "score", "diversity"):
        row[key], row[f"{key}_ci"] = (round(told[f"{key}_{part}"], 4) for part in ("mean", "ci"))
    return row | dict(cpu_seconds=seconds)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("condition", choices=("pair-grpo", "one-step", "shuffled"))
    runs.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    commands.add_parser("decoding")
    commands.add_parser("table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "table":
        return table(read(CSV))
    if args.command == "decoding":
        for way in WAYS[len(read(DECODING)) :]:
            append(DECODING, decode(way))
        return
    done = [(r["condition"], int(r["seed"])) for r in read(CSV)]
    for seed in args.seeds:
        if (args.condition, seed) not in done:
            append(CSV, run(args.condition, seed))


if __name__ == "__main__":
    main()
