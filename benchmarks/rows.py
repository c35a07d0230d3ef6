"""Rows of runs in a CSV file: how the other benchmarks here keep and sum up what they measured."""

import csv

import numpy as np

from pairuni_nb.evaluate import interval

KEYS = ("accuracy", "accuracy_formed", "well_formed", "score", "full", "diversity")


def quiet(*line):
    "A log that keeps nothing."


def row_of(condition, seed, steps, seconds, result):
    "A run's row: its figures before and after."
    row = dict(condition=condition, seed=seed, steps=steps, cpu_seconds=round(seconds, 1))
    for key in KEYS:
        for when in ("before", "after"):
            row[f"{key}_{when}"] = round(result[when][f"{key}_mean"], 4)
    return row


def read(file):
    return list(csv.DictReader(file.open())) if file.exists() else []


def append(file, row):
    new = not file.exists()
    with file.open("a", newline="") as f:
        writer = csv.DictWriter(f, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def table(rows):
    "Mean rise over seeds with its 95 % t-interval."
    for condition in dict.fromkeys(r["condition"] for r in rows):
        own = [r for r in rows if r["condition"] == condition]
        for key in KEYS:
            rise = np.array([float(r[f"{key}_after"]) - float(r[f"{key}_before"]) for r in own])
            start = np.mean([float(r[f"{key}_before"]) for r in own])
            half = interval(rise)[1] or float("nan")  # one seed has none
            print(
                f"{condition:10s} {key:16s} {start:.3f} -> {start + rise.mean():.3f}   "
                f"rise {rise.mean():+.3f} +- {half:.3f}   ({len(rise)} seeds)"
            )
