"""Pairing at the paper's scale against scikit-learn: k-means, neighbours, retrieved pairs, memory.

    python benchmarks/pairing_scale.py                       # 1k to 20k G images: about 12 minutes on 2 quiet CPU cores
    python benchmarks/pairing_scale.py --sizes 60000         # the paper's 47k x 60k
    python benchmarks/pairing_scale.py --million             # faiss on 1M x 256

Each writes its sizes into benchmarks/pairing_scale.csv and leaves the others. Features are synthetic, clustered and seeded, 2,048 wide; K and U : G are
the paper's. Times: one process, every method at 1, 2, ... threads, best of a few runs where they are short; leave OMP_NUM_THREADS unset.
Peaks: one child process for each method, features included. Pairs that differ from scikit-learn's are listed in pairing_scale_differ.csv.
"""
import argparse
import csv
import os
import resource
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
from pairuni_nb.search import clustered, inertia, kmeans, nearest, nearest_faiss, unique_rows

OUT, WIDTH, N, SEED, DELTA = Path(__file__).with_suffix(".csv"), 2048, 32, 0, .6
COLUMNS = ("n_u", "n_g", "k", "stage", "method", "threads", "seconds", "peak_gb", "inertia", "recall", "pairs", "differ")


def sides(n_g):
    "How many U images and clusters go with so many G images."
    n_u = round(n_g*47/60)
    return n_u, round((n_u + n_g)*5000/107_000)


def limit(g, u):
    "The 32-bit product, a block at a time, and nothing else."
    g, u = torch.from_numpy(g), torch.from_numpy(u)
    for block in g.split(1024): block@u.T


def sklearn_nearest(g, u, n=N):
    "Brute force; on unit rows the order of distances is that of cosines."
    d, index = NearestNeighbors(n_neighbors=n, algorithm="brute").fit(u).kneighbors(g)
    return index, 1 - d.astype(float)**2/2


def stages(f, n_u, k):
    "What is measured: (stage, method) -> a call. The search compares what k-means would leave; here, everything."
    u, g = f[:n_u], f[n_u:]
    def whole():
        labels, centers, _ = kmeans(f, k, SEED)
        rest = np.setdiff1d(np.arange(len(f)), nearest_members(f, labels, centers))
        return retrieve(f[rest[rest >= n_u]], f[rest[rest < n_u]], N, DELTA)
    return {("kmeans", "scikit-learn"): lambda: MiniBatchKMeans(k, random_state=SEED, n_init=1).fit(f).cluster_centers_,
            ("kmeans", "pairuni"): lambda: kmeans(f, k, SEED)[1],
            ("kmeans", "pairuni-fp32"): lambda: kmeans(f, k, SEED, dtype=torch.float32)[1],
            ("search", "scikit-learn"): lambda: sklearn_nearest(g, u),
            ("search", "pairuni"): lambda: nearest(g, u, N),
            ("search", "pairuni-fp32"): lambda: nearest(g, u, N, dtype=torch.float32),
            ("search", "limit"): lambda: limit(g, u),
            ("search", "faiss-16"): lambda: nearest_faiss(g, u, N, probes=16),
            ("search", "faiss-64"): lambda: nearest_faiss(g, u, N, probes=64),
            ("duplicates", "pairuni"): lambda: unique_rows(f, .98),
            ("whole", "pairuni"): whole}


def greedy(index, s):
    "Algorithm 1's choice, as plain loops over ready-made neighbours: {g: (u, s)}."
    taken, pairs = set(), {}
    for g, (near, sims) in enumerate(zip(index.tolist(), s.tolist())):
        hit = next(((u, v) for u, v in zip(near, sims) if u >= 0 and v > DELTA and u not in taken), None)
        if hit: pairs[g] = hit; taken.add(hit[0])
    return pairs


def differing(ours, theirs):
    "G images whose partner differs: (g, our u, s, their u, s, why). A tie moves one partner; whoever wanted that one comes after."
    rows = []
    for g in sorted(set(ours) | set(theirs)):
        (u, s), (v, t) = ours.get(g, (-1, 0.)), theirs.get(g, (-1, 0.))
        if u == v: continue
        moved = {x for row in rows for x in (row[1], row[3])} & {u, v}
        rows.append((g, u, s, v, t, "tie" if abs(s - t) < 1e-6 else "follows" if moved else "UNEXPLAINED"))
    return rows


def timed(call, budget=3.):
    "Seconds of the fastest run, and its value; short calls run up to three times."
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        value = call()
        best = min(best, time.perf_counter() - start)
        if best > budget: break
    return best, value


def child_peak(file, n_u, k, stage, method):
    "Peak memory of one method in a process of its own, GB."
    out = subprocess.run([sys.executable, __file__, "--child", file, str(n_u), str(k), stage, method], capture_output=True, text=True, check=True)
    return float(out.stdout)


def measure(n_g, threads, note):
    "All rows of one size."
    n_u, k = sides(n_g)
    f = clustered(n_u + n_g, WIDTH, SEED)
    rows, found = {}, {}
    for t in threads:
        torch.set_num_threads(t)
        with threadpool_limits(t):
            for key, call in stages(f, n_u, k).items():
                seconds, found[key] = timed(call)
                row = rows[key, t] = dict(n_u=n_u, n_g=n_g, k=k, stage=key[0], method=key[1], threads=t, seconds=round(seconds, 3))
                if key[0] == "kmeans": row["inertia"] = round(inertia(f, found[key]), 2)
                if key[1].startswith("faiss"):
                    row["recall"] = round(np.mean([len(set(p) & set(q))/N for p, q in zip(found[key][0].tolist(), found["search", "pairuni"][0].tolist())]), 4)
                note({c: v for c, v in row.items()})
    ours, theirs = [greedy(*found["search", m]) for m in ("pairuni", "scikit-learn")]
    differ = differing(ours, theirs)
    for t in threads: rows[("search", "pairuni"), t] |= dict(pairs=len(ours), differ=len(differ))
    with tempfile.TemporaryDirectory() as d:
        np.save(file := f"{d}/f.npy", f)
        n_threads = max(threads)
        for key in found: rows[key, n_threads]["peak_gb"] = round(child_peak(file, n_u, k, *key), 2)
    return list(rows.values()), [(n_u, n_g, *row) for row in differ]


def million(note):
    "faiss on a million rows of width 256, 2,000 queries: recall against the exact search."
    f = clustered(1_002_000, 256, SEED)
    g, u = f[:2000], f[2000:]
    seconds, (index, _) = timed(lambda: nearest(g, u, N))
    rows = [dict(n_u=len(u), n_g=len(g), stage="million", method="pairuni", threads=torch.get_num_threads(), seconds=round(seconds, 2))]
    for probes in 16, 64:
        seconds, (got, _) = timed(lambda: nearest_faiss(g, u, N, probes=probes), 0.)
        recall = np.mean([len(set(p) & set(q))/N for p, q in zip(got.tolist(), index.tolist())])
        rows.append(dict(n_u=len(u), n_g=len(g), stage="million", method=f"faiss-{probes}", threads=torch.get_num_threads(), seconds=round(seconds, 2), recall=round(recall, 4)))
        note(rows[-1])
    return rows


def write(file, columns, rows, n_g):
    "Replace the rows of one size."
    old = list(csv.DictReader(open(file))) if file.exists() else []
    rows = [r for r in old if int(r["n_g"]) != n_g] + [dict(zip(columns, r)) if isinstance(r, tuple) else r for r in rows]
    with open(file, "w", newline="") as f:
        table = csv.DictWriter(f, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda r: int(r["n_g"])))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sizes", type=int, nargs="*", default=[1000, 3000, 6000, 20000], help="numbers of G images")
    p.add_argument("--threads", type=int, nargs="*", default=list(range(1, (os.cpu_count() or 1) + 1)))
    p.add_argument("--million", action="store_true", help="faiss on a million rows, nothing else")
    p.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        file, n_u, k, stage, method = a.child
        stages(np.load(file), int(n_u), int(k))[stage, method]()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20)
        return
    note = lambda row: print(row, flush=True)
    if a.million: return write(OUT, COLUMNS, million(note), 2000)
    for n_g in a.sizes:
        rows, differ = measure(n_g, a.threads, note)
        write(OUT, COLUMNS, rows, n_g)
        write(OUT.with_name(OUT.stem + "_differ.csv"), ("n_u", "n_g", "g", "u", "s", "u_sklearn", "s_sklearn", "why"), differ, n_g)


if __name__ == "__main__":
    main()
