"""A run that is killed at any moment ends bit for bit where an unbroken one ends.

    OMP_NUM_THREADS=1 python benchmarks/kill_and_resume.py              # 20 kills, 3 full disks
    OMP_NUM_THREADS=1 python benchmarks/kill_and_resume.py --kills 2    # a quick look

A small run of janus-nano is killed with -9 after a random time, anywhere between its first import
and its last file, and resumed by `pairuni train --resume` until it is through (the command is given
again where there is no run folder yet). Then its metrics, seconds and memory aside, and every
weight are compared with those of the same run left alone. A full disk is a limit on the size of a
file (RLIMIT_FSIZE) that a save of the state cannot keep: the run must end with one sentence, leave
no half-written file, and go on without the limit. Same machine, threads and versions throughout:
with another number of threads sums are taken in another order, and the last digits differ.

Writes benchmarks/kill_and_resume.csv, a row for each broken run.
"""

import argparse
import csv
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from pairuni_nb.pairing import make_pairs, save_pairs
from pairuni_nb.run_folder import read_metrics, without_cost
from pairuni_nb.world import records

CSV = Path(__file__).with_suffix(".csv")
SMALL = "--steps 8 --pairs-per-step 4 --rollouts 4 --eval-items 8 --eval-every 3 --save-every 2"
MANY = "--keep 2"  # earlier saves stay, too
LIMIT = 4_000_000  # bytes: more than the pairs, less than a state


def command(folder, run):
    "The words that start a run, or go on with it."
    words = [sys.executable, "-m", "pairuni_nb.cli", "train", "--device", "cpu"]
    if (run / "settings.json").exists():
        return [*words, "--resume", str(run)]
    return [
        *words,
        "--pairs",
        str(folder / "pairs"),
        "--out",
        str(run),
        *SMALL.split(),
        *MANY.split(),
    ]


def limit_files(size):
    "In the child: no file may grow beyond a size."
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def start(folder, run, limit=None):
    "The run in a process of its own."
    before = partial(limit_files, limit) if limit else None
    return subprocess.Popen(
        command(folder, run),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def finish(folder, run):
    "Let the run come to its end, if it has not."
    if (run / "result.json").exists():
        return
    process = start(folder, run)
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{run} did not go on: {said[-2000:]}")


def debris(run):
    "Hidden files that nobody will ask for again."
    return [p.name for p in [*run.parent.glob(".*"), *run.rglob(".*")]]


def same_end(run, whole):
    "Whether metrics and weights are those of the unbroken run, bit for bit."
    if without_cost(read_metrics(run)) != without_cost(read_metrics(whole)):
        return False
    a, b = (load_file(r / "checkpoint" / "model.safetensors") for r in (run, whole))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def killed(folder, run, whole, seconds, rng):
    "A run killed once, then brought to its end; a row of the CSV."
    wait = rng.uniform(0.5, seconds)
    process = start(folder, run)
    time.sleep(wait)
    process.kill()
    process.communicate()
    steps = len(read_metrics(run)) if (run / "metrics.jsonl").exists() else 0
    finish(folder, run)
    row = dict(how="kill -9", after_s=round(wait, 2), lines_written=steps)
    return row | dict(same=same_end(run, whole), debris=len(debris(run)))


def disk_full(folder, run, whole, limit):
    "A run whose first save does not fit, then brought to its end."
    process = start(folder, run, limit)
    _, said = process.communicate()
    sentence = said.strip().splitlines()[-1]
    told = (
        process.returncode == 2
        and sentence.startswith("pairuni: ")
        and "cannot be saved" in sentence
    )
    left = len(debris(run))
    steps = len(read_metrics(run))
    finish(folder, run)
    row = dict(how=f"no file over {limit / 1e6:.0f} MB", after_s="", lines_written=steps)
    return row | dict(same=told and same_end(run, whole), debris=left + len(debris(run)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--full-disks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=CSV)
    args = parser.parse_args()
    rng, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        pairs, counts = make_pairs(records("u", 60, 0), records("g", 60, 0), clusters=12)
        save_pairs(pairs, folder / "pairs", counts=counts)
        began = time.perf_counter()
        finish(folder, folder / "whole")
        seconds = time.perf_counter() - began
        print(f"the unbroken run took {seconds:.1f} s")
        for i in range(args.kills):
            rows.append(killed(folder, folder / f"k{i}", folder / "whole", seconds, rng))
            print(rows[-1], flush=True)
        for i in range(args.full_disks):
            limit = LIMIT + i * 3_000_000
            rows.append(disk_full(folder, folder / f"d{i}", folder / "whole", limit))
            print(rows[-1], flush=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    bad = [row for row in rows if not row["same"] or row["debris"]]
    print(f"{len(rows) - len(bad)} of {len(rows)} broken runs ended as the unbroken one")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
