"""Does training raise both held-out scores? Pair-GRPO, one side alone, controls; a CSV row a run.

    export OMP_NUM_THREADS=1
    python benchmarks/evidence.py run pair-grpo u g grpo shuffled sft --seeds 0 1 2 3 4
    python benchmarks/evidence.py decoding
    python benchmarks/evidence.py table
    python benchmarks/evidence.py drawings

Each seed has its own pairs, rollout noise and fresh held-out set of 500 items a side. `u` and `g`
train one side of the same pairs alone; `shuffled` deals each step's rewards to random rollouts;
`sft` continues the supervised warm start for the CPU seconds that the seed's pair-grpo run took.
`decoding` scores the start and the checkpoints of the runs that are there greedily, at guidance 1,
2 and 3; `drawings` pictures the first held-out prompts of seed 0 before and after. Rows that a CSV
already holds are not run again; run folders stay in runs/evidence.
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

from pairuni_nb.evaluate import evaluate, interval
from pairuni_nb.janus import load_janus, warm_start
from pairuni_nb.pairing import make_pairs
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.rollout import JanusPolicy, Sampling
from pairuni_nb.run_folder import read_drawings
from pairuni_nb.settings import preset
from pairuni_nb.train import train
from pairuni_nb.world import records

HERE = Path(__file__).parent
CSV, DECODING = HERE / "evidence.csv", HERE / "decoding.csv"
RUNS = HERE.parent / "runs" / "evidence"
WAYS = ((0.0, 1.0), (0.0, 2.0), (0.0, 3.0))  # temperature, guidance
CONDITIONS = ("pair-grpo", "u", "g", "grpo", "shuffled", "sft")
KEYS = ("accuracy", "accuracy_formed", "well_formed", "score", "full", "diversity")


def shuffled(reward, seed):
    "The same rewards, dealt to random rollouts."
    rng = np.random.default_rng(seed)
    return lambda *a: [float(v) for v in rng.permutation(reward(*a))]


def scores(checkpoint, seed, sampling):
    "Figures of a checkpoint, or of a model, on the seed's held-out set, with the true rewards."
    parts = checkpoint if isinstance(checkpoint, tuple) else load_janus(checkpoint)
    n = preset("nano").train.eval_items
    held = [records(side, n, 10_000 + seed, "heldout") for side in "ug"]
    return evaluate(JanusPolicy(*parts), *held, sampling, seed)["figures"]


def before_and_after(checkpoint, seed):
    "The scores of the start and of what came of it."
    sampling = Sampling.of(preset("nano").train)
    return dict(before=scores(None, seed, sampling), after=scores(checkpoint, seed, sampling))


def quiet(*line):
    "A log that keeps nothing."


def supervised(seed, seconds):
    "Continue the warm start for some CPU seconds; its steps, and the scores before and after."
    trial, processor = load_janus()
    t0 = time.process_time()
    warm_start(trial, processor, steps=20, pool=200, log=quiet)
    steps = int(20 * seconds / (time.process_time() - t0))
    model, processor = load_janus()
    model.requires_grad_(True)
    warm_start(model, processor, steps=steps, lr=5e-4, seed=100 + seed, pool=8000, log=quiet)
    return steps, before_and_after((model, processor), seed)


def reinforced(condition, seed):
    "One RL run; its steps, and the scores before and after."
    weighting = "none" if condition == "grpo" else "sqrt"
    s = replace(preset("nano").train, seed=seed, weighting=weighting)
    sides = condition if condition in ("u", "g") else "ug"
    s = replace(s, eval_every=10_000, save_every=10_000, sides=sides)
    pairs, _ = make_pairs(records("u", 2000, seed), records("g", 2000, seed), seed=seed)
    out = RUNS / f"{condition}-{seed}"
    if condition != "shuffled":
        return s.steps, train(pairs, out, s, device="cpu")
    dealt = dict(u=shuffled(answer_accuracy, seed), g=shuffled(scene_reward, seed))
    train(pairs, out, s, device="cpu", rewards=dealt)
    return s.steps, before_and_after(out / "checkpoint", seed)


def seconds_of(condition, seed, rows):
    "CPU seconds that a run took."
    own = [r for r in rows if (r["condition"], int(r["seed"])) == (condition, seed)]
    if not own:
        raise SystemExit(f"{CSV} has no {condition} run of seed {seed}: run that first")
    return float(own[0]["cpu_seconds"])


def row_of(condition, seed, steps, seconds, result):
    "A run's CSV row."
    row = dict(condition=condition, seed=seed, steps=steps, cpu_seconds=round(seconds, 1))
    for key in KEYS:
        for when in ("before", "after"):
            row[f"{key}_{when}"] = round(result[when][f"{key}_mean"], 4)
    return row


def run(condition, seed, rows):
    "One run; its CSV row."
    t0 = time.process_time()
    if condition == "sft":
        steps, result = supervised(seed, seconds_of("pair-grpo", seed, rows))
    else:
        steps, result = reinforced(condition, seed)
    return row_of(condition, seed, steps, time.process_time() - t0, result)


def decode(model, seed, temperature, cfg_weight):
    "A checkpoint under one way of decoding; its CSV row."
    checkpoint = None if model == "start" else RUNS / f"{model}-{seed}" / "checkpoint"
    figures = scores(checkpoint, seed, Sampling(temperature, cfg_weight))
    row = dict(model=model, seed=seed, temperature=temperature, cfg_weight=cfg_weight)
    return row | {key: round(figures[f"{key}_mean"], 4) for key in KEYS}


def read(file):
    return list(csv.DictReader(file.open())) if file.exists() else []


def append(file, row):
    new = not file.exists()
    with file.open("a", newline="") as f:
        writer = csv.DictWriter(f, row, lineterminator="\n")
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
            start = np.mean([float(r[f"{key}_before"]) for r in own])
            half = interval(rise)[1] or float("nan")  # one seed has none
            print(
                f"{condition:10s} {key:16s} {start:.3f} -> {start + rise.mean():.3f}   "
                f"rise {rise.mean():+.3f} +- {half:.3f}   ({len(rise)} seeds)"
            )


def drawings(run, n=8):
    "The first held-out prompts of a run, drawn before and after it."
    prompts = json.loads((run / "samples" / "before.json").read_text())["prompts"][:n]
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
    fig.savefig(HERE / "drawings.png")


def run_all(conditions, seeds):
    "Every run that the table does not hold yet."
    for condition, seed in itertools.product(conditions, seeds):
        rows = read(CSV)
        if (condition, str(seed)) not in [(r["condition"], r["seed"]) for r in rows]:
            append(CSV, run(condition, seed, rows))


def decode_all(seeds):
    "Every way of decoding that the table does not hold yet."
    names = ("model", "seed", "temperature", "cfg_weight")
    models = ("start", *CONDITIONS)
    for seed, model, (temperature, cfg_weight) in itertools.product(seeds, models, WAYS):
        if model != "start" and not (RUNS / f"{model}-{seed}" / "checkpoint").exists():
            continue
        way = [model, str(seed), str(temperature), str(cfg_weight)]
        if way not in [[r[name] for name in names] for r in read(DECODING)]:
            append(DECODING, decode(model, seed, temperature, cfg_weight))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("conditions", nargs="+", choices=CONDITIONS)
    for command in (runs, commands.add_parser("decoding")):
        command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    commands.add_parser("table")
    commands.add_parser("drawings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "run":
        run_all(args.conditions, args.seeds)
    elif args.command == "decoding":
        decode_all(args.seeds)
    elif args.command == "table":
        table(read(CSV))
    else:
        drawings(RUNS / "pair-grpo-0")


if __name__ == "__main__":
    main()
