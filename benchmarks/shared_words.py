"""Where both sides need a word that is half forgotten: do their gradients meet, and do scores?

    OMP_NUM_THREADS=1 python benchmarks/shared_words.py agree
    OMP_NUM_THREADS=1 python benchmarks/shared_words.py learn
    python benchmarks/shared_words.py table

`agree` takes 160 pictures of one thing, 16 rollouts a side, at five shares of what is kept of its
words, and tells the cosine of U's with G's gradient by what two pictures have in common, over
the eleven rows of the words and over the whole language model; standard errors by resampling
pictures (benchmarks/shared_words_agree.csv, about 4 CPU minutes; "of one colour" is the share of
such pairs). `learn` trains answers alone,
drawing alone, aligned pairs and random ones from a share of 0.15, ten seeds each: the words alone,
four pairs a step and one, and everything (benchmarks/shared_words.csv, about an hour of one core).
Rows that are there are not made again. Settings were chosen on seeds 100 and 101.
"""

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from agreement import halves
from rows import append, read
from torch.nn.functional import normalize

from pairuni_nb.encoders import features
from pairuni_nb.evaluate import interval
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.shared_words import SETTINGS, as_pair, examples, forgetful, held_out, learn
from pairuni_nb.shared_words import only_words_learn, scored, word_rows, word_table
from pairuni_nb.similarity import similarity
from pairuni_nb.step import backward_passes, ceiling, roll_out_sides
from pairuni_nb.world import render, to_pil

HERE = Path(__file__).parent
CSV, AGREE = HERE / "shared_words.csv", HERE / "shared_words_agree.csv"
KEPT = (1.0, 0.6, 0.3, 0.15, 0.0)
MODES = ("u", "g", "aligned", "random")
# name -> steps, pairs a step, learning rate
WAYS = {
    "words": dict(steps=40, pairs_per_step=4, lr=3e-3),
    "words, 1 pair": dict(steps=160, pairs_per_step=1, lr=3e-3),
    "all": dict(steps=40, pairs_per_step=4, lr=3e-3),
}


def gradients(policy, own):
    "Each picture's U and G gradient: {task: {where: (n, D)}}."
    s, accelerator = replace(SETTINGS, rollouts=16), Accelerator(cpu=True)
    judges = dict(u=answer_accuracy, g=scene_reward)
    trunk = {id(p) for p in policy.language_model.parameters()}
    table, rows = word_table(policy), word_rows(policy)
    names = [n for n, p in policy.named_parameters() if id(p) in trunk]
    (words,) = (n for n, p in policy.named_parameters() if p is table)
    found = {task: {"words": [], "all": []} for task in "ug"}
    for i, example in enumerate(own):
        sides, _ = roll_out_sides(policy, [as_pair(example, example)], [i], 0, s, judges)
        parts = backward_passes(policy, sides, s, accelerator, False, True)[2]
        for task in "ug":
            gradient = parts[task, 0]
            found[task]["words"].append(gradient[words][rows].flatten())
            found[task]["all"].append(torch.cat([gradient[n].flatten() for n in names]))
    return {task: {k: torch.stack(v) for k, v in own.items()} for task, own in found.items()}


def in_common(own):
    "name -> (n, n) bool: what the picture of U shares with the picture of G."
    things = [next(cell for cell in scene.cells if cell) for scene, _ in own]
    shape, colour = (np.array(names) for names in zip(*things))
    same_shape, same_colour = shape[:, None] == shape, colour[:, None] == colour
    itself = np.eye(len(own), dtype=bool)
    return {
        "one picture": itself,
        "colour and shape": same_colour & same_shape & ~itself,
        "colour": same_colour & ~same_shape,
        "shape": same_shape & ~same_colour,
        "neither": ~same_shape & ~same_colour,
    }


def mean_and_error(cosines, which, rng, draws=200):
    "Mean over some cells, and its standard error over pictures."

    def mean(rows):
        inside = which[np.ix_(rows, rows)]
        return cosines[np.ix_(rows, rows)][inside].mean() if inside.any() else np.nan

    n = len(cosines)
    again = [mean(rng.integers(0, n, n)) for _ in range(draws)]
    return mean(np.arange(n)), float(np.nanstd(again))


def alikeness(own):
    "The similarity of pictures that pairing takes, (n, n)."
    f = features(to_pil(render([scene for scene, _ in own])))
    return similarity(f, f)


def agree(kept, n=160):
    "Rows of the CSV."
    own, rows = examples(n, 1), []
    told, relations, alike = gradients(forgetful(kept), own), in_common(own), alikeness(own)
    others, by_pixels = ~np.eye(n, dtype=bool), {}
    quarters = np.quantile(alike[others], [0, 0.25, 0.5, 0.75, 1])
    for low, high, name in zip(quarters, quarters[1:], ("least", "less", "more", "most")):
        by_pixels[f"pixels {name} alike"] = others & (alike >= low) & (alike <= high)
    nearest = np.where(others, alike, -1).argmax(1)
    by_pixels["its nearest"] = np.arange(n) == nearest[:, None]  # whom pairing would take
    same_colour = relations["colour"] | relations["colour and shape"]
    for name, which in by_pixels.items():
        share = same_colour[which].mean()
        rows.append(dict(kept=kept, where="of one colour", question=name, mean=share, se=""))
    relations |= by_pixels
    for where in ("words", "all"):
        rng = np.random.default_rng(0)
        u, g = (told[task][where] for task in "ug")
        kept_rows = (u.norm(dim=1) > 0) & (g.norm(dim=1) > 0)  # flat groups have no direction
        u, g = u[kept_rows], g[kept_rows]
        left = kept_rows.numpy()
        cosines = (normalize(u, dim=1) @ normalize(g, dim=1).T).numpy()
        for name, which in relations.items():
            mean, error = mean_and_error(cosines, which[np.ix_(left, left)], rng)
            rows.append(dict(kept=kept, where=where, question=name, mean=mean, se=error))
        half_u, half_g = halves(u, rng), halves(g, rng)
        whole = dict(whole=torch.cosine_similarity(u.mean(0), g.mean(0), dim=0).item())
        whole |= {"halves of U": half_u, "halves of G": half_g}
        whole["ceiling"] = ceiling(half_u, half_g)
        whole |= {
            "norm of U": u.norm(dim=1).mean().item(),
            "norm of G": g.norm(dim=1).mean().item(),
        }
        whole["pictures"] = len(u)
        rows += [dict(kept=kept, where=where, question=q, mean=x, se="") for q, x in whole.items()]
    return [row | {k: round(row[k], 5) for k in ("mean", "se") if row[k] != ""} for row in rows]


def run(way, mode, seed):
    "One run; its CSV row."
    began, s = time.process_time(), replace(SETTINGS, **WAYS[way])
    policy, held = forgetful(0.15), held_out()
    before = scored(policy, held)
    only_words_learn(policy, freeze_rest=way != "all")
    learn(policy, mode, seed, s)
    after = scored(policy, held)
    row = dict(way=way, mode=mode, seed=seed)
    for task in "ug":
        row |= {f"{task}_before": before[task], f"{task}_after": after[task]}
    row = {name: round(x, 4) if isinstance(x, float) else x for name, x in row.items()}
    return row | dict(cpu_seconds=round(time.process_time() - began, 1))


def rises(rows, way, mode, task):
    "seed -> points."
    own = [r for r in rows if (r["way"], r["mode"]) == (way, mode)]
    return {r["seed"]: 100 * (float(r[f"{task}_after"]) - float(r[f"{task}_before"])) for r in own}


def table(rows):
    "Rises over seeds, and aligned against random."
    for way, mode in itertools.product(WAYS, MODES):
        told = [interval(list(rises(rows, way, mode, task).values())) for task in "ug"]
        if told[0][1] is not None:
            print(f"{way:14} {mode:8}", *[f"{m:+6.1f} +- {h:.1f}" for m, h in told])
    for way, task in itertools.product(WAYS, "ug"):
        aligned, random = (rises(rows, way, mode, task) for mode in ("aligned", "random"))
        both = [aligned[seed] - random[seed] for seed in aligned if seed in random]
        if len(both) > 1:
            mean, half = interval(both)
            print(f"{way:14} aligned above random, {task}: {mean:+.1f} +- {half:.1f} ({len(both)})")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("agree", "learn", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=range(10))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    if args.what == "agree":
        there = {float(r["kept"]) for r in read(AGREE)}
        for kept in KEPT:
            if kept not in there:
                for row in agree(kept):
                    append(AGREE, row)
    if args.what == "learn":
        for way, seed, mode in itertools.product(args.ways, args.seeds, MODES):
            there = [(r["way"], r["mode"], r["seed"]) for r in read(CSV)]
            if (way, mode, str(seed)) not in there:
                append(CSV, run(way, mode, seed))
    if args.what == "table":
        table(read(CSV))


if __name__ == "__main__":
    main()
