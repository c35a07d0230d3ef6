"""The runs that nbs/learn/04_curves reads: trained, and cut down to what the page shows.

    OMP_NUM_THREADS=1 python benchmarks/curves.py          # all three, about 9 CPU minutes
    OMP_NUM_THREADS=1 python benchmarks/curves.py long     # one more, not committed: 12 minutes

`default` is `pairuni train` as it comes (preset nano, 150 steps, seed 0), `long` the same with 400
steps; `shuffled` deals each step's rewards to random rollouts for 40 steps, and `collapsed` takes
30 steps at a learning rate 30 times as high, chosen to collapse. All log the KL to their start:
beta is 1e-12, and `default` has every figure of a run with beta 0 through step 78, where rounding
parts the two. Runs stay in --out: the same command goes on with them.

Writes benchmarks/curves/NAME: metrics.jsonl with the figures that the page plots, three digits each
(every second step of `long`), and three steps of rollouts/ with drawings of 32 colours.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from pairuni_nb.ablate import shuffled
from pairuni_nb.jobs import Pair, build_pairs
from pairuni_nb.pairing import as_dataset
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.run_folder import read_metrics
from pairuni_nb.settings import preset
from pairuni_nb.train import train

CURVES = Path(__file__).with_suffix("")
BASE = replace(preset("nano").train, beta=1e-12)
RUNS = dict(
    default=BASE,
    long=replace(BASE, steps=400),
    shuffled=replace(BASE, steps=40),
    collapsed=replace(BASE, steps=30, lr=30 * BASE.lr),
)
SIDES = ("reward", "flat", "spread", "entropy", "kl", "gap", "clip_low", "clip_high", "norm")
KEPT = {"step", "grad_norm", "cos_ug", "ceiling", "well_formed", "truncated", "answer_tokens", "lr"}
KEPT |= {f"{name}_{task}" for name in SIDES for task in "ug"}


def run(name, out):
    "Train one, or go on with it."
    folder = out / name
    if (folder / "result.json").exists():
        return
    rewards = dict(u=answer_accuracy, g=scene_reward)
    if name == "shuffled":
        rewards = {task: shuffled(reward, 0) for task, reward in rewards.items()}
    begun = (folder / "settings.json").exists()
    pairs = as_dataset(build_pairs(Pair(out="", settings=preset("nano").pair))[0])
    train(pairs, folder, RUNS[name], None, rewards, "cpu", resume=begun)


def kept(line):
    "A line of metrics without what the page does not plot."
    short = {}
    for key, value in line.items():
        if key in KEPT or key.startswith("eval_"):
            short[key] = value if value is None or key == "step" else float(f"{value:.3g}")
    return short


def cut_down(folder, to, s):
    "The part of a run folder that the page reads."
    shutil.rmtree(to, ignore_errors=True)
    lines = []
    for line in read_metrics(folder):
        if s.steps <= 200 or line["step"] % 2 == 1 or "sec_eval" in line:
            lines.append(json.dumps(kept(line), separators=(",", ":")) + "\n")
    to.mkdir(parents=True)
    (to / "metrics.jsonl").write_text("".join(lines))
    looks = sorted((folder / "rollouts").iterdir())
    for look in sorted({looks[0], looks[len(looks) // 2], looks[-1]}):
        shown = to / "rollouts" / look.name
        shutil.copytree(look, shown)
        for file in shown.glob("*.png"):
            Image.open(file).convert("RGB").quantize(32).save(file, optimize=True)
        for file in shown.glob("*.json"):
            file.write_text(json.dumps(json.loads(file.read_text()), separators=(",", ":")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*RUNS, []], default=[])
    parser.add_argument("--out", type=Path, default=Path("curves"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.names or ("default", "shuffled", "collapsed"):
        run(name, args.out)
        cut_down(args.out / name, CURVES / name, RUNS[name])
