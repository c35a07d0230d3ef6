"""Trained models decoded greedily at guidance 1, 2 and 3, beside the start: decodings.csv.

    pairuni ablate combine --rows u          # trains the reference and understanding alone
    python benchmarks/decodings.py runs/ablate

On each seed's own 500 held-out items a side. Lines that the CSV already holds are not made again.
"""

import argparse
from pathlib import Path

import torch
from rows import KEYS, append, read

from pairuni_nb.ablate import sources
from pairuni_nb.diffusion import load_checkpoint, policy_for
from pairuni_nb.evaluate import evaluate
from pairuni_nb.rollout import Sampling
from pairuni_nb.settings import preset

HERE = Path(__file__).parent
MODELS = {"start": None, "pair-grpo": "reference", "u": "sides=u"}  # name, and of its run folder
WEIGHTS = (1.0, 2.0, 3.0)


def decode(checkpoint, held, seed, cfg_weight):
    "Greedy figures of a checkpoint, or of the start, on the seed's held-out items."
    policy = policy_for(*load_checkpoint(checkpoint))
    figures = evaluate(policy, *held, Sampling(0.0, cfg_weight), seed)["figures"]
    return {key: round(figures[f"{key}_mean"], 4) for key in KEYS}


def decode_all(runs, seeds, file, base):
    "Each line that the CSV does not hold yet, of every run that is there."
    there = {(r["model"], int(r["seed"]), float(r["cfg_weight"])) for r in read(file)}
    for seed in seeds:
        _, _, *held = sources(base, seed)
        for model, run in MODELS.items():
            checkpoint = run and runs / f"{run},seed={seed}" / "checkpoint"
            if checkpoint and not checkpoint.exists():
                print(f"{model} of seed {seed} left out: no {checkpoint}")
                continue
            for weight in WEIGHTS:
                if (model, seed, weight) in there:
                    continue
                line = dict(model=model, seed=seed, temperature=0.0, cfg_weight=weight)
                append(file, line | decode(checkpoint, held, seed, weight))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what `pairuni ablate --out` made")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    runs = args.folder / "runs"
    torch.set_num_threads(1)
    decode_all(runs, args.seeds, HERE / "decodings.csv", preset("nano"))


if __name__ == "__main__":
    main()
