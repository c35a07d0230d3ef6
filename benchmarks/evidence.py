"""Does training raise both held-out scores? Five seeds of Pair-GRPO, plain GRPO and two controls, one CSV row a run.

    OMP_NUM_THREADS=1 python benchmarks/evidence.py run pair-grpo grpo shuffled sft --seeds 0 1 2 3 4
    python benchmarks/evidence.py table

Each seed has its own pairs, rollout noise and fresh held-out set of 500 items a side. `shuffled` deals each step's
rewards to random rollouts; `sft` continues the supervised warm start for as long as that seed's pair-grpo run took.
Rows that the CSV already holds are not run again.
"""
import argparse
import csv
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

from pairuni_nb.evaluate import evaluate
from pairuni_nb.janus_nano import load_janus, warm_start
from pairuni_nb.pairing import make_pairs
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.rollout import JanusPolicy, Sampling
from pairuni_nb.settings import preset
from pairuni_nb.train import train
from pairuni_nb.world import records

CSV = Path(__file__).with_name("evidence.csv")
KEYS = ("accuracy", "accuracy_formed", "well_formed", "score", "full", "diversity")


def shuffled(reward, seed):
    "The same rewards, dealt to random rollouts."
    rng = np.random.default_rng(seed)
    return lambda *a: [float(v) for v in rng.permutation(reward(*a))]


def supervised(seed, s, seconds):
    "Continue the warm start for some seconds; scores before and after on the seed's held-out set."
    model, processor = load_janus()
    sampling = Sampling(s.temperature, s.cfg_weight, s.cfg_scoring, s.max_new_tokens)
    held = [records(side, s.eval_items, 10_000 + s.seed, "heldout") for side in "ug"]
    scores = lambda: evaluate(JanusPolicy(model, processor), *held, sampling, s.seed)["figures"]
    before, t0 = scores(), time.perf_counter()
    trial, _ = load_janus()
    warm_start(trial, processor, steps=10, pool=200, log=lambda *_: None)
    steps = int(10*seconds/(time.perf_counter() - t0))
    t0 = time.perf_counter()
    model.requires_grad_(True)
    warm_start(model, processor, steps=steps, lr=5e-4, seed=100 + seed, pool=8000, log=lambda *_: None)
    return dict(before=before, after=scores(), seconds=time.perf_counter() - t0)


def run(condition, seed, rows):
    "One run; its CSV row."
    s = replace(preset("nano"), seed=seed, method="grpo" if condition == "grpo" else "pair-grpo", eval_every=10_000, save_every=10_000)
    if condition == "sft": result = supervised(seed, s, float(next(r["seconds"] for r in rows if (r["condition"], int(r["seed"])) == ("pair-grpo", seed))))
    else:
        pairs, _ = make_pairs(records("u", 2000, seed), records("g", 2000, seed), seed=seed)
        out = Path(tempfile.mkdtemp())/"run"
        result = shuffled_run(pairs, out, s, seed) if condition == "shuffled" else train(pairs, out, s, device="cpu")
        shutil.rmtree(out.parent)
    row = dict(condition=condition, seed=seed, steps=s.steps, seconds=round(result["seconds"], 1))
    for key in KEYS: row |= {f"{key}_{when}": round(result[when][f"{key}_mean"], 4) for when in ("before", "after")}
    return row


def shuffled_run(pairs, out, s, seed):
    "Train on dealt-out rewards, evaluate with the true ones."
    result = train(pairs, out, s, device="cpu", rewards=dict(u=shuffled(answer_accuracy, seed), g=shuffled(scene_reward, seed)))
    held = [records(side, s.eval_items, 10_000 + s.seed, "heldout") for side in "ug"]
    sampling = Sampling(s.temperature, s.cfg_weight, s.cfg_scoring, s.max_new_tokens)
    true = lambda path: evaluate(JanusPolicy(*load_janus(path)), *held, sampling, s.seed)["figures"]
    return dict(result, before=true(None), after=true(out/"checkpoint"))


def table(rows):
    "Mean rise over seeds with its 95 % t-interval."
    for condition in dict.fromkeys(r["condition"] for r in rows):
        own = [r for r in rows if r["condition"] == condition]
        for key in KEYS:
            rise = np.array([float(r[f"{key}_after"]) - float(r[f"{key}_before"]) for r in own])
            half = student.ppf(.975, len(rise)-1)*rise.std(ddof=1)/len(rise)**.5 if len(rise) > 1 else float("nan")
            start = np.mean([float(r[f"{key}_before"]) for r in own])
            print(f"{condition:10s} {key:16s} {start:.3f} -> {start + rise.mean():.3f}   rise {rise.mean():+.3f} +- {half:.3f}   ({len(rise)} seeds)")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    r = sub.add_parser("run")
    r.add_argument("conditions", nargs="+", choices=("pair-grpo", "grpo", "shuffled", "sft"))
    r.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    sub.add_parser("table")
    a = p.parse_args()
    read = lambda: list(csv.DictReader(CSV.open())) if CSV.exists() else []
    if a.command == "table": return table(read())
    torch.set_num_threads(1)
    for condition in a.conditions:
        for seed in a.seeds:
            if any((x["condition"], int(x["seed"])) == (condition, seed) for x in read()): continue
            row = run(condition, seed, read())
            new = not CSV.exists()
            with CSV.open("a", newline="") as f:
                writer = csv.DictWriter(f, row)
                if new: writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)


if __name__ == "__main__": main()
