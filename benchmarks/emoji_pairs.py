"""Pairs from real images, scored against the truth: how often does a retrieved pair show the same concept?

    python scripts/fetch_emoji.py && python benchmarks/emoji_pairs.py     # writes benchmarks/emoji_pairs.csv
"""
import csv
from pathlib import Path

import numpy as np

from pairuni_nb.pairing import make_pairs
from pairuni_nb.records_io import load_records
from pairuni_nb.similarity import image_features, similarity

CLUSTERS, TOP_N, SEED = 80, 10, 0
concept = lambda record_id: record_id.split("-", 1)[1]


def main():
    u, g = [load_records(f"data/emoji/{source}", source) for source in "ug"]
    S = similarity(*[image_features([r["image"] for r in rows]) for rows in (g, u)])
    same = np.array([[concept(a["id"]) == concept(b["id"]) for b in u] for a in g])
    print(f"{len(u)} U, {len(g)} G; s of one concept: median {np.median(S[same]):.2f}, of others: {np.median(S[~same]):.2f}; "
          f"the nearest U is the same concept for {same[np.arange(len(g)), S.argmax(1)].mean():.3f} of G (chance {same.mean():.4f})")
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(("mix", "delta", "aligned", "retrieved", "dropped", "without_partner", "median_s", "same_concept"))
        for mix, delta in (("random", .6), ("pairs", .5), ("pairs", .6), ("pairs", .7), ("pairs", .8)):
            pairs, n = make_pairs(u, g, mix=mix, delta=delta, clusters=CLUSTERS, top_n=TOP_N, seed=SEED)
            two = [r for r in pairs.remove_columns(["u_image", "g_image"]) if r["kind"] != "aligned"]
            row = (mix, delta if mix == "pairs" else "", n.get("aligned", 0), len(two), sum(n.get("dropped", {}).values()), n.get("without_partner", ""),
                   f"{np.median([r['similarity'] for r in two]):.3f}", f"{np.mean([concept(r['u_id']) == concept(r['g_id']) for r in two]):.3f}")
            table.writerow(row)
            print(row)


if __name__ == "__main__":
    main()
