"""A whole `pairuni pair` from two folders of JPEG files: seconds and peak memory.

    # up to the paper's 47,000 U and 60,000 G: a quarter of an hour on one core, 2 GB of disk
    python benchmarks/pair_folders.py
    python benchmarks/pair_folders.py --sizes 1000

Pictures: toy scenes, 256 pixels a side, each with noise of its own; encoder `pixels`, K as 5,000 of
107,000. The command runs in a process of its own, with one thread. Writes pair_folders.csv beside
this file (the shown one: one run each, other jobs on the other core).
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pairuni_nb.world import records

OUT = Path(__file__).with_suffix(".csv")
CHILD = r"""
import re, sys
from pairuni_nb.cli import main
main(sys.argv[1:])
print("peak", re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
"""


def picture(row, rng):
    "A scene at 256 pixels, with noise in blocks of four."
    large = np.asarray(row["image"].resize((256, 256), Image.BILINEAR)).astype(int)
    noise = rng.integers(-12, 13, (64, 64, 1)).repeat(4, 0).repeat(4, 1)
    return Image.fromarray((large + noise).clip(0, 255).astype(np.uint8))


def write_folder(folder, source, n):
    "n records of the toy world as JPEG files and a records.jsonl."
    folder.mkdir()
    rng = np.random.default_rng(ord(source))
    with open(folder / "records.jsonl", "w") as f:
        for start in range(0, n, 1000):
            for row in records(source, min(1000, n - start), start):
                file = f"{row['id']}.jpg"
                picture(row, rng).save(folder / file, quality=85)
                told = {k: v for k, v in row.items() if k != "scene"} | dict(image=file)
                f.write(json.dumps(told) + "\n")


def measure(n_g):
    "One run: a row of the table."
    n_u = round(n_g * 47 / 60)
    k = round(5000 * (n_u + n_g) / 107000)
    with tempfile.TemporaryDirectory() as d:
        for source, n in (("u", n_u), ("g", n_g)):
            write_folder(Path(d) / source, source, n)
        command = [sys.executable, "-c", CHILD, "pair", f"{d}/u", f"{d}/g", "--out", f"{d}/pairs"]
        command += ["--clusters", str(k), "--encoder", "pixels"]
        one_thread = os.environ | dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        start = time.perf_counter()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=one_thread
        )
        seconds = time.perf_counter() - start
        counts = json.loads((Path(d) / "pairs" / "pairs.json").read_text())["counts"]
    peak = int(re.search(r"peak (\d+)", done.stdout)[1]) / 2**20
    row = dict(n_u=n_u, n_g=n_g, clusters=k, seconds=round(seconds, 1), peak_gb=round(peak, 2))
    return row | {kind: counts[kind] for kind in ("aligned", "retrieved")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = dict(type=int, nargs="*", default=[1000, 10000, 60000], help="numbers of G records")
    parser.add_argument("--sizes", **sizes)
    rows = []
    for n_g in parser.parse_args().sizes:
        rows.append(measure(n_g))
        print(*rows[-1].values(), flush=True)
        with open(OUT, "w", newline="") as f:
            table = csv.DictWriter(f, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
