"""A whole `pairuni pair` from two folders of JPEG files, up to the paper's 47,000 U and 60,000 G: seconds and peak memory.

    python benchmarks/pair_folders.py                  # about a quarter of an hour on one core, 2 GB of disk for a while
    python benchmarks/pair_folders.py --sizes 1000

Pictures: toy scenes, 256 pixels a side, each with noise of its own; encoder `pixels`, K as 5,000 of 107,000. The command runs in a
process of its own, with one thread. Writes pair_folders.csv beside this file (the shown one: one run each, other jobs on the other core).
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
COLUMNS = "n_u", "n_g", "clusters", "seconds", "peak_gb", "aligned", "retrieved"
CHILD = "import re, sys; from pairuni_nb.cli import main; main(sys.argv[1:]); print('peak', re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"


def write_folder(folder, source, n):
    "n records of the toy world as JPEG files and a records.jsonl."
    folder.mkdir()
    rng = np.random.default_rng(ord(source))
    with open(folder / "records.jsonl", "w") as f:
        for start in range(0, n, 1000):
            for row in records(source, min(1000, n - start), start):
                picture = np.asarray(row["image"].resize((256, 256), Image.BILINEAR)).astype(int)
                picture = (
                    (picture + rng.integers(-12, 13, (64, 64, 1)).repeat(4, 0).repeat(4, 1))
                    .clip(0, 255)
                    .astype(np.uint8)
                )
                Image.fromarray(picture).save(folder / f"{row['id']}.jpg", quality=85)
                f.write(
                    json.dumps(
                        {k: v for k, v in row.items() if k != "scene"}
                        | dict(image=f"{row['id']}.jpg")
                    )
                    + "\n"
                )


def measure(n_g):
    "One run: a row of the table."
    n_u = round(n_g * 47 / 60)
    k = round(5000 * (n_u + n_g) / 107000)
    with tempfile.TemporaryDirectory() as d:
        for source, n in (("u", n_u), ("g", n_g)):
            write_folder(Path(d) / source, source, n)
        start = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                CHILD,
                "pair",
                f"{d}/u",
                f"{d}/g",
                "--out",
                f"{d}/pairs",
                "--clusters",
                str(k),
                "--encoder",
                "pixels",
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"),
        )
        seconds = time.perf_counter() - start
        kinds = json.loads((Path(d) / "pairs" / "pairs.json").read_text())["counts"]
    peak = int(re.search(r"peak (\d+)", done.stdout)[1]) / 2**20
    return dict(
        n_u=n_u,
        n_g=n_g,
        clusters=k,
        seconds=round(seconds, 1),
        peak_gb=round(peak, 2),
        aligned=kinds["aligned"],
        retrieved=kinds["retrieved"],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[1000, 10000, 60000], help="numbers of G records"
    )
    rows = []
    for n_g in parser.parse_args().sizes:
        rows.append(measure(n_g))
        print(*rows[-1].values(), flush=True)
        with open(OUT, "w", newline="") as f:
            table = csv.DictWriter(f, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
