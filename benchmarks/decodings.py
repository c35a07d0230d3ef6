"""Trained models decoded greedily at guidance 1, 2 and 3, beside the start: decodings.csv.

    pairuni ablate combine --rows u          # trains the reference and understanding alone
    python benchmarks/decodings.py runs/ablate
    python benchmarks/decodings.py runs/ablate --drawings

On each seed's own 500 held-out items a side. Lines that the CSV already holds are not made again.
`--drawings` pictures the first held-out prompts of seed 0 before and after instead: drawings.png.
"""

import argparse
import textwrap
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rows import KEYS, append, read

from pairuni_nb.ablate import sources
from pairuni_nb.diffusion import load_checkpoint, policy_for
from pairuni_nb.evaluate import evaluate
from pairuni_nb.records import read_json
from pairuni_nb.rollout import Sampling
from pairuni_nb.run_folder import read_drawings
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


def drawings(run, file, n=8):
    "The first held-out prompts of a run, drawn before and after it."
    prompts = read_json(run / "samples" / "before.json", "train it")["prompts"][:n]
    fig = Figure(figsize=(1.25 * n, 3.3), layout="constrained", dpi=100)
    for axes, when in zip(fig.subplots(2, n), ("before", "after")):
        axes[0].set_ylabel(when)
        for ax, drawing in zip(axes, read_drawings(run, when)):
            ax.imshow(drawing)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        if when == "before":
            for ax, prompt in zip(axes, prompts):
                ax.set_title("\n".join(textwrap.wrap(prompt, 17)), fontsize=7)
    fig.savefig(file)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what `pairuni ablate --out` made")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--drawings", action="store_true")
    args = parser.parse_args()
    runs = args.folder / "runs"
    torch.set_num_threads(1)
    if args.drawings:
        drawings(runs / "reference,seed=0", HERE / "drawings.png")
    else:
        decode_all(runs, args.seeds, HERE / "decodings.csv", preset("nano"))


if __name__ == "__main__":
    main()
