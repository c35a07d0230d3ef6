"""Does training raise both held-out scores? Five seeds of Pair-GRPO, plain GRPO and two controls, one CSV row a run.

    OMP_NUM_THREADS=1 python benchmarks/evidence.py run pair-grpo grpo shuffled sft --seeds 0 1 2 3 4
    OMP_NUM_THREADS=1 python benchmarks/evidence.py decoding
    python benchmarks/evidence.py table
    python benchmarks/evidence.py drawings

Each seed has its own pairs, rollout noise and fresh held-out set of 500 items a side. `shuffled` deals each step's
rewards to random rollouts; `sft` continues the supervised warm start for the CPU seconds that the seed's pair-grpo
run took. `decoding` scores the start and the pair-grpo checkpoints under other temperatures and guidance weights;
`drawings` pictures the first held-out prompts of seed 0 before and after.
Rows that a CSV already holds are not run again; run folders stay in runs/evidence.
"""

import argparse
import csv
import itertools
import json
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import t as student

from pairuni_nb.evaluate import evaluate
from pairuni_nb.janus import load_janus, warm_start
from pairuni_nb.pairing import make_pairs
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.rollout import JanusPolicy, Sampling
from pairuni_nb.settings import preset
from pairuni_nb.train import train
from pairuni_nb.world import records

CSV, DECODING = (Path(__file__).with_name(name) for name in ("evidence.csv", "decoding.csv"))
RUNS = Path(__file__).parents[1] / "runs" / "evidence"
WAYS = (
    (0.0, 5.0),
    (1.0, 2.0),
    (0.0, 2.0),
)  # (temperature, guidance): greedy, less guidance, both; runs themselves use (1, 5)
KEYS = ("accuracy", "accuracy_formed", "well_formed", "score", "full", "diversity")


def shuffled(reward, seed):
    "The same rewards, dealt to random rollouts."
    rng = np.random.default_rng(seed)
    return lambda *a: [float(v) for v in rng.permutation(reward(*a))]


def scores(checkpoint, seed, sampling):
    "Figures of a checkpoint, or of a model, on the seed's held-out set, with the true rewards."
    policy = JanusPolicy(*(checkpoint if isinstance(checkpoint, tuple) else load_janus(checkpoint)))
    held = [
        records(side, preset("nano").train.eval_items, 10_000 + seed, "heldout") for side in "ug"
    ]
    return evaluate(policy, *held, sampling, seed)["figures"]


def supervised(seed, seconds):
    "Continue the warm start for some CPU seconds; its steps, and the scores before and after."
    trial, processor = load_janus()
    t0 = time.process_time()
    warm_start(trial, processor, steps=20, pool=200, log=lambda *_: None)
    steps = int(20 * seconds / (time.process_time() - t0))
    model, processor = load_janus()
    model.requires_grad_(True)
    warm_start(
        model, processor, steps=steps, lr=5e-4, seed=100 + seed, pool=8000, log=lambda *_: None
    )
    return steps, dict(
        before=scores(None, seed, Sampling()), after=scores((model, processor), seed, Sampling())
    )


def reinforced(condition, seed):
    "One RL run; its steps, and the scores before and after."
    s = replace(
        preset("nano").train,
        seed=seed,
        weighting="none" if condition == "grpo" else "sqrt",
        eval_every=10_000,
        save_every=10_000,
    )
    pairs, _ = make_pairs(records("u", 2000, seed), records("g", 2000, seed), seed=seed)
    dealt = (
        dict(u=shuffled(answer_accuracy, seed), g=shuffled(scene_reward, seed))
        if condition == "shuffled"
        else None
    )
    out = RUNS / f"{condition}-{seed}"
    result = train(pairs, out, s, device="cpu", rewards=dealt)
    if dealt:
        result = dict(
            before=scores(None, seed, Sampling()),
            after=scores(out / "checkpoint", seed, Sampling()),
        )
    return s.steps, result


def run(condition, seed, rows):
    "One run; its CSV row."
    t0 = time.process_time()
    if condition == "sft":
        steps, result = supervised(
            seed,
            float(
                next(
                    r["cpu_seconds"]
                    for r in rows
                    if (r["condition"], int(r["seed"])) == ("pair-grpo", seed)
                )
            ),
        )
    else:
        steps, result = reinforced(condition, seed)
    row = dict(
        condition=condition, seed=seed, steps=steps, cpu_seconds=round(time.process_time() - t0, 1)
    )
    for key in KEYS:
        row |= {
            f"{key}_{when}": round(result[when][f"{key}_mean"], 4) for when in ("before", "after")
        }
    return row


def decode(model, seed, temperature, cfg_weight):
    "A checkpoint under one way of decoding; its CSV row."
    figures = scores(
        None if model == "start" else RUNS / f"{model}-{seed}" / "checkpoint",
        seed,
        Sampling(temperature, cfg_weight),
    )
    return dict(model=model, seed=seed, temperature=temperature, cfg_weight=cfg_weight) | {
        k: round(figures[f"{k}_mean"], 4) for k in KEYS
    }


def read(file):
    return list(csv.DictReader(file.open())) if file.exists() else []


def append(file, row):
    new = not file.exists()
    with file.open("a", newline="") as f:
        writer = csv.DictWriter(f, row)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def table(rows):
    "Mean rise over seeds with its 95 % t-interval."
    for condition in dict.fromkeys(r["condition"] for r in rows):
        own = [r for r in rows if r["condition"] == condition]
        for key in KEYS:
            rise = np.array([float(r[f"{key}_after"]) - float(r[f"{key}_before"]) for r in own])
            half = (
                student.ppf(0.975, len(rise) - 1) * rise.std(ddof=1) / len(rise) ** 0.5
                if len(rise) > 1
                else float("nan")
            )
            start = np.mean([float(r[f"{key}_before"]) for r in own])
            print(
                f"{condition:10s} {key:16s} {start:.3f} -> {start + rise.mean():.3f}   rise {rise.mean():+.3f} +- {half:.3f}   ({len(rise)} seeds)"
            )


def drawings(run, n=8):
    "The first held-out prompts of a run, drawn before and after it."
    prompts = json.loads((run / "samples" / "before.json").read_text())["prompts"][:n]
    sheets = {when: Image.open(run / "samples" / f"{when}.png") for when in ("before", "after")}
    side = sheets["before"].width // 8  # eight drawings a row
    fig = Figure(figsize=(1.25 * n, 3.3), layout="constrained", dpi=100)
    for axes, (when, sheet) in zip(fig.subplots(2, n), sheets.items()):
        for i, ax in enumerate(axes):
            ax.imshow(sheet.crop((i * side, 0, (i + 1) * side, side)))
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if when == "before":
                ax.set_title("\n".join(textwrap.wrap(prompts[i], 17)), fontsize=7)
        axes[0].set_ylabel(when)
    fig.savefig(Path(__file__).with_name("drawings.png"))


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub = p.add_subparsers(dest="command", required=True)
    r = sub.add_parser("run")
    r.add_argument("conditions", nargs="+", choices=("pair-grpo", "grpo", "shuffled", "sft"))
    d = sub.add_parser("decoding")
    for q in (r, d):
        q.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    for name in ("table", "drawings"):
        sub.add_parser(name)
    a = p.parse_args()
    if a.command == "table":
        return table(read(CSV))
    if a.command == "drawings":
        return drawings(RUNS / "pair-grpo-0")
    torch.set_num_threads(1)
    if a.command == "run":
        for condition, seed in itertools.product(a.conditions, a.seeds):
            if (condition, str(seed)) not in [(x["condition"], x["seed"]) for x in read(CSV)]:
                append(CSV, run(condition, seed, read(CSV)))
    else:
        for seed, model, (t, w) in itertools.product(a.seeds, ("start", "pair-grpo"), WAYS):
            key = (model, str(seed), str(t), str(w))
            if key not in [
                (x["model"], x["seed"], x["temperature"], x["cfg_weight"]) for x in read(DECODING)
            ]:
                append(DECODING, decode(model, seed, t, w))


if __name__ == "__main__":
    main()
