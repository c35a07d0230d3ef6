"""The first main job (90 steps, guidance 5, guided scores) before and after the work on speed.

    python benchmarks/main_job.py                           # five seeds; an hour of one core
    python benchmarks/main_job.py --seeds 0 1 --threads 2   # as users start it, on two quiet cores

`pairuni train` at commit 4a3d83c and at the one checked out, in turn, with the same seed, settings
and installed packages; which of the two goes first changes with the seed. It runs in a clone of
each commit, so what is not committed is not measured. Writes benchmarks/main_job.csv, a row for
each run: wall and CPU seconds of the whole process, and the held-out scores. The CPU seconds of
one thread leave out what else the machine does (its wall seconds do not, and are not summed up);
those of two count their waiting for each other.
Rows that are there are not run again; at the end the medians, their ratio and the paired
differences of the scores are printed.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rows import append, read

from pairuni_nb.evaluate import interval
from pairuni_nb.records import read_json

ROOT = Path(__file__).parents[1]
CSV = Path(__file__).with_suffix(".csv")
COMMITS = {"before": "4a3d83c", "after": "HEAD"}
# what `pairuni train` did at 4a3d83c without a word
JOB = "--steps 90 --cfg-weight 5 --cfg-scoring guided"
SCORES = ("accuracy", "score")


def cloned(commit, folder):
    "The project as it was, in a folder of its own."
    subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
    subprocess.run(["git", "checkout", "-q", commit], cwd=folder, check=True)
    return folder


def run(project, seed, threads, out):
    "Wall and CPU seconds of `pairuni train`, with its imports, and where its scores are."
    command = f"-m pairuni_nb.cli train {JOB} --seed {seed} --device cpu --out {out}"
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command.split()],
        cwd=project,
        env=os.environ | dict(PYTHONPATH=str(project), OMP_NUM_THREADS=str(threads)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wall = time.perf_counter() - start
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
    return dict(wall_seconds=round(wall, 1), cpu_seconds=round(cpu, 1))


def scores(out):
    "Held-out scores before and after training, as fractions."
    told = read_json(out / "result.json", "")
    pairs = [(name, when) for name in SCORES for when in ("before", "after")]
    return {f"{name}_{when}": round(told[when][f"{name}_mean"], 6) for name, when in pairs}


def measure(seeds, threads):
    "A row for each seed and commit that the CSV does not hold."
    done = {(row["commit"], int(row["seed"]), int(row["threads"])) for row in read(CSV)}
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        projects = {name: cloned(commit, home / name) for name, commit in COMMITS.items()}
        for seed in seeds:
            for name in ("before", "after") if seed % 2 == 0 else ("after", "before"):
                if (name, seed, threads) not in done:
                    out = home / f"{name}-{seed}"
                    told = dict(commit=name, seed=seed, threads=threads)
                    append(CSV, told | run(projects[name], seed, threads, out) | scores(out))


def table(threads):
    "Medians and their ratio; scores after training, after against before the work on speed."
    rows = [row for row in read(CSV) if int(row["threads"]) == threads]
    both = {row["seed"] for row in rows if row["commit"] == "before"}
    both = sorted(both & {row["seed"] for row in rows if row["commit"] == "after"})

    def column(commit, key):
        own = {row["seed"]: float(row[key]) for row in rows if row["commit"] == commit}
        return np.array([own[seed] for seed in both])

    for key in ("wall_seconds", "cpu_seconds") if threads > 1 else ("cpu_seconds",):
        before, after = column("before", key), column("after", key)
        for name, each in (("before", before), ("after", after)):
            spread = f"{each.min():.0f} to {each.max():.0f}"
            print(f"{key} {name}: {np.median(each):.0f} ({spread}, {len(each)} runs)")
        ratio = before / after
        print(f"{key} before / after: {np.median(ratio):.2f} ({ratio.min():.2f}-{ratio.max():.2f})")
    for key in SCORES:
        change = 100 * (column("after", f"{key}_after") - column("before", f"{key}_after"))
        mean, half = interval(change)
        told = f"{mean:+.1f}" if half is None else f"{mean:+.1f} ± {half:.1f}"
        print(f"{key}: {told} points, after against before")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=range(5))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    measure(asked.seeds, asked.threads)
    table(asked.threads)
