"""Pairing at the paper's scale against scikit-learn: k-means, neighbours, retrieved pairs, memory.

    python benchmarks/pairing_scale.py --sizes 1000 3000 6000 20000
    python benchmarks/pairing_scale.py --sizes 60000         # the paper's 47k x 60k
    python benchmarks/pairing_scale.py --million             # the search on 1M x 256

Each writes its sizes into benchmarks/pairing_scale.csv and leaves the others; the rows of faiss,
whose code was dropped, stay too. Features are synthetic, clustered and seeded, 2,048 wide; K and
U : G are the paper's. Times: one process, 1, 2, ... threads (what is only there for comparison: all
threads), best of three where runs are short; leave OMP_NUM_THREADS unset. Peaks: a child process
for each method, features included. The search, and the choice of Algorithm 1, are on what the
medoids leave. Pairs that differ from those of scikit-learn's neighbours are listed in
pairing_scale_differ.csv.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from pairuni_nb.pairing import nearest_members, retrieve
from pairuni_nb.search import clustered, inertia, kmeans, nearest, unique_rows

OUT, WIDTH, N, SEED, DELTA = Path(__file__).with_suffix(".csv"), 2048, 32, 0, 0.6
PEAKS_FROM = 6000  # G images; below, the libraries outweigh the features
ASIDE = "pairuni-fp32"  # measured with all threads only, without peaks
COLUMNS = (
    "n_u",
    "n_g",
    "k",
    "stage",
    "method",
    "threads",
    "seconds",
    "peak_gb",
    "inertia",
    "recall",
    "pairs",
    "differ",
)


def sides(n_g):
    "How many U images and clusters go with so many G images."
    n_u = round(n_g * 47 / 60)
    return n_u, round((n_u + n_g) * 5000 / 107_000)


def limit(g, u):
    "The 32-bit product, a block at a time, and nothing else."
    g, u = torch.from_numpy(g), torch.from_numpy(u)
    for block in g.split(1024):
        block @ u.T


def sklearn_nearest(g, u, n=N):
    "Brute force; on unit rows the order of distances is that of cosines."
    d, index = NearestNeighbors(n_neighbors=n, algorithm="brute").fit(u).kneighbors(g)
    return index, 1 - d.astype(float) ** 2 / 2


def without_medoids(f, n_u, k):
    "Features of the G and the U images that are left for the search, by our k-means."
    labels, centers, _ = kmeans(f, k, SEED)
    rest = np.setdiff1d(np.arange(len(f)), nearest_members(f, labels, centers))
    return f[rest[rest >= n_u]], f[rest[rest < n_u]]


def stages(f, n_u, k, left=None):
    "What is measured: (stage, method) -> a call. `left`: what to search in, by default everything."
    g, u = left or (f[n_u:], f[:n_u])
    return {
        ("kmeans", "scikit-learn"): lambda: (
            MiniBatchKMeans(k, random_state=SEED, n_init=1).fit(f).cluster_centers_
        ),
        ("kmeans", "pairuni"): lambda: kmeans(f, k, SEED)[1],
        ("kmeans", "pairuni-fp32"): lambda: kmeans(f, k, SEED, dtype=torch.float32)[1],
        ("search", "scikit-learn"): lambda: sklearn_nearest(g, u),
        ("search", "pairuni"): lambda: nearest(g, u, N),
        ("search", "pairuni-fp32"): lambda: nearest(g, u, N, dtype=torch.float32),
        ("search", "limit"): lambda: limit(g, u),
        ("duplicates", "pairuni"): lambda: unique_rows(f, 0.98),
        ("whole", "pairuni"): lambda: retrieve(*without_medoids(f, n_u, k), N, DELTA),
    }


def greedy(index, s):
    "Algorithm 1's choice, as plain loops over ready-made neighbours: {g: (u, s)}."
    taken, pairs = set(), {}
    for g, (near, sims) in enumerate(zip(index.tolist(), s.tolist())):
        hit = next(
            ((u, v) for u, v in zip(near, sims) if u >= 0 and v > DELTA and u not in taken), None
        )
        if hit:
            pairs[g] = hit
            taken.add(hit[0])
    return pairs


def differing(ours, theirs, g, u):
    """G images whose partner differs: (g, our u, s, their u, s, why), s exact.

    A tie moves one partner; whoever wanted that one comes after.
    """
    rows = []

    def s(i, j):
        if j < 0:  # no partner: at the threshold
            return DELTA
        return float(np.dot(g[i].astype(float), u[j].astype(float)))

    for i in sorted(set(ours) | set(theirs)):
        mine, other = ours.get(i, (-1,))[0], theirs.get(i, (-1,))[0]
        if mine == other:
            continue
        moved = {x for row in rows for x in (row[1], row[3]) if x >= 0} & {mine, other}
        tie = abs(s(i, mine) - s(i, other)) < 1e-6
        rows.append(
            (
                i,
                mine,
                round(s(i, mine), 7),
                other,
                round(s(i, other), 7),
                "tie" if tie else "follows" if moved else "UNEXPLAINED",
            )
        )
    return rows


def timed(call, budget=3.0):
    "Seconds of the fastest run, and its value; short calls run up to three times."
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        value = call()
        best = min(best, time.perf_counter() - start)
        if best > budget:
            break
    return best, value


def child_peak(file, n_u, k, stage, method):
    "Peak memory of one method in a process of its own, GB."
    out = subprocess.run(
        [sys.executable, __file__, "--child", file, str(n_u), str(k), stage, method],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(out.stdout)


def measure(n_g, threads, note):
    "All rows of one size."
    n_u, k = sides(n_g)
    f = clustered(n_u + n_g, WIDTH, SEED)
    left, rows, found = without_medoids(f, n_u, k), {}, {}
    calls = stages(f, n_u, k, left)
    for t in threads:
        torch.set_num_threads(t)
        with threadpool_limits(t):
            for key, call in calls.items():
                if key[1] == ASIDE and t < max(threads):
                    continue
                seconds, found[key] = timed(call)
                row = rows[key, t] = dict(
                    n_u=n_u,
                    n_g=n_g,
                    k=k,
                    stage=key[0],
                    method=key[1],
                    threads=t,
                    seconds=round(seconds, 3),
                )
                if key[0] == "kmeans":
                    row["inertia"] = round(inertia(f, found[key]), 2)
                note(row)
    ours, theirs = [greedy(*found["search", m]) for m in ("pairuni", "scikit-learn")]
    differ = differing(ours, theirs, *left)
    rows[("search", "pairuni"), max(threads)] |= dict(pairs=len(ours), differ=len(differ))
    if n_g < PEAKS_FROM:
        return list(rows.values()), [(n_u, n_g, *row) for row in differ]
    with tempfile.TemporaryDirectory() as d:
        np.save(file := f"{d}/f.npy", f)
        for key in found:
            if key[1] not in (ASIDE, "limit"):
                rows[key, max(threads)]["peak_gb"] = round(child_peak(file, n_u, k, *key), 2)
    return list(rows.values()), [(n_u, n_g, *row) for row in differ]


def million(note):
    "The search on a million rows of width 256, 2,000 queries."
    f = clustered(1_002_000, 256, SEED)
    g, u = f[:2000], f[2000:]
    seconds, _ = timed(lambda: nearest(g, u, N))
    size = dict(n_u=len(u), n_g=len(g), stage="million", method="pairuni")
    row = size | dict(threads=torch.get_num_threads(), seconds=round(seconds, 2))
    note(row)
    return [row]


def write(file, columns, rows, n_g):
    "Replace the rows of one size, but not those of faiss: nothing here measures them again."
    old = list(csv.DictReader(open(file))) if file.exists() else []
    kept = [r for r in old if int(r["n_g"]) != n_g or r.get("method", "").startswith("faiss")]
    rows = kept + [dict(zip(columns, r)) if isinstance(r, tuple) else r for r in rows]
    with open(file, "w", newline="") as f:
        table = csv.DictWriter(f, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda r: int(r["n_g"])))


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[1000, 3000, 6000, 20000, 60000],
        help="numbers of G images",
    )
    p.add_argument(
        "--threads", type=int, nargs="*", default=list(range(1, (os.cpu_count() or 1) + 1))
    )
    p.add_argument("--million", action="store_true", help="a million rows, nothing else")
    p.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        file, n_u, k, stage, method = a.child
        stages(np.load(file), int(n_u), int(k))[stage, method]()
        print(
            int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
        )  # ru_maxrss would count the parent's pages too
        return

    def note(row):
        print(*row.values(), flush=True)

    if a.million:
        return write(OUT, COLUMNS, million(note), 2000)
    for n_g in a.sizes:
        rows, differ = measure(n_g, a.threads, note)
        write(OUT, COLUMNS, rows, n_g)
        write(
            OUT.with_name(OUT.stem + "_differ.csv"),
            ("n_u", "n_g", "g", "u", "s", "u_sklearn", "s_sklearn", "why"),
            differ,
            n_g,
        )


if __name__ == "__main__":
    main()
