"""The runs that nbs/learn/04_curves and 06_name_the_run read: trained, and cut down.

    OMP_NUM_THREADS=1 python benchmarks/curves.py          # default, shuffled, collapsed: 9 CPU min
    OMP_NUM_THREADS=1 python benchmarks/curves.py long     # one more: 15
    OMP_NUM_THREADS=1 python benchmarks/curves.py lab      # six short ones: 10

`default` is `pairuni train` as it comes (preset nano, 150 steps, seed 0), `long` the same with 400
steps; `shuffled` deals each step's rewards to random rollouts for 40 steps, and `collapsed` takes
30 steps at a learning rate 30 times as high, chosen to collapse. All log the KL to their start:
beta is 1e-12, and `default` has every figure of a run with beta 0 through step 78, where rounding
parts the two. The lab's six take 40 steps with seed 1. Runs stay in --out: the same command goes
on with them.

Writes benchmarks/curves/NAME: metrics.jsonl with the figures that the page plots, three digits
each, and three steps of rollouts/ with drawings of 32 colours (of `long` every second step's
figures and no drawings). Of the lab,
benchmarks/curves/lab: NAME.jsonl, NAME.png with twelve held-out drawings after the run, start.png
with those before it, and their prompts in prompts.json.
"""

import argparse
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from pairuni_nb import step
from pairuni_nb.ablate import shuffled
from pairuni_nb.jobs import Pair, build_pairs
from pairuni_nb.pairing import as_dataset
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.run_folder import read_drawings, read_metrics
from pairuni_nb.settings import preset
from pairuni_nb.train import train

CURVES = Path(__file__).with_suffix("")
BASE = replace(preset("nano").train, beta=1e-12)
SHORT = replace(BASE, steps=40, eval_every=20, seed=1)
RUNS = dict(
    default=BASE,
    long=replace(BASE, steps=400),
    shuffled=replace(BASE, steps=40),
    collapsed=replace(BASE, steps=30, lr=30 * BASE.lr),
)
LAB = {  # name -> settings; `faults_of` adds what is no setting
    "healthy": SHORT,
    "random rewards": SHORT,
    "rate too high": replace(SHORT, lr=10 * SHORT.lr),
    "answers only": replace(SHORT, sides="u"),
    "first choice": SHORT,
    "guided logp": SHORT,
}
SIDES = ("reward", "flat", "spread", "entropy", "kl", "gap", "clip_low", "clip_high", "norm")
KEPT = {"step", "grad_norm", "cos_ug", "ceiling", "well_formed", "truncated", "answer_tokens", "lr"}
KEPT |= {f"{name}_{task}" for name in SIDES for task in "ug"}
PLOTTED = {f"{name}_{task}" for name in SIDES[:-1] for task in "ug"} | {"step", "grad_norm"}
PLOTTED |= {f"eval_{name}_{what}" for name in ("accuracy", "score") for what in ("mean", "ci")}
N_DRAWINGS = 12


def first_choice(prompts, completions, truths):
    "Accuracy by an answer key that always names the first choice."
    keys = [truth | dict(answer=truth["choices"][0]) for truth in truths]
    return answer_accuracy(prompts, completions, keys)


def guided_logp(right):
    "`roll_out` that keeps the log-probability each token was drawn with, guidance and all."

    def faulty(*args):
        rollouts, outputs, counts = right(*args)
        return replace(rollouts, logp=rollouts.sample_logp), outputs, counts

    return patch.object(step, "roll_out", faulty)


def faults_of(name, seed):  # -> rewards, a context
    "What is wrong with a run beside its settings."
    rewards = dict(u=answer_accuracy, g=scene_reward)
    if name in ("shuffled", "random rewards"):
        rewards = {task: shuffled(reward, seed) for task, reward in rewards.items()}
    if name == "first choice":
        rewards["u"] = first_choice
    return rewards, guided_logp(step.roll_out) if name == "guided logp" else nullcontext()


def run(name, folder, s):
    "Train one, or go on with it."
    if (folder / "result.json").exists():
        return
    rewards, fault = faults_of(name, s.seed)
    begun = (folder / "settings.json").exists()
    pairs = as_dataset(build_pairs(Pair(out="", settings=preset("nano").pair))[0])
    with fault:
        train(pairs, folder, s, None, rewards, "cpu", resume=begun)


def kept(line, names):
    "A line of metrics without what the page does not plot."
    short = {}
    for key, value in line.items():
        if key in names:
            short[key] = value if value is None or key == "step" else float(f"{value:.3g}")
    return short


def as_lines(metrics, names):
    "Those figures of each line that a page plots."
    lines = [json.dumps(kept(line, names), separators=(",", ":")) for line in metrics]
    return "".join(f"{line}\n" for line in lines)


def few_colours(image, file, n=32):
    "Save it with n of them."
    image.convert("RGB").quantize(n).save(file, optimize=True)


def cut_down(folder, to, s):
    "The part of a run folder that 04_curves reads."
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    metrics = read_metrics(folder)
    if long := s.steps > 200:
        metrics = [line for line in metrics if line["step"] % 2 == 1 or "sec_eval" in line]
    names = KEPT | {key for line in metrics for key in line if key.startswith("eval_")}
    (to / "metrics.jsonl").write_text(as_lines(metrics, names))
    if long:
        return
    looks = sorted((folder / "rollouts").iterdir())
    for look in sorted({looks[0], looks[len(looks) // 2], looks[-1]}):
        shown = to / "rollouts" / look.name
        shutil.copytree(look, shown)
        for file in shown.glob("*.png"):
            few_colours(Image.open(file), file)
        for file in shown.glob("*.json"):
            file.write_text(json.dumps(json.loads(file.read_text()), separators=(",", ":")))


def sheet(folder, when, file):
    "Drawings of the first held-out prompts, in a row."
    few_colours(Image.fromarray(np.hstack(read_drawings(folder, when)[:N_DRAWINGS])), file, 128)


def cut_for_lab(folder, to, name):
    "The part of a run folder that 06_name_the_run reads."
    to.mkdir(parents=True, exist_ok=True)
    (to / f"{name}.jsonl").write_text(as_lines(read_metrics(folder), PLOTTED))
    sheet(folder, "after", to / f"{name}.png")
    sheet(folder, "before", to / "start.png")
    told = json.loads((folder / "samples/after.json").read_text())
    (to / "prompts.json").write_text(json.dumps(told["prompts"][:N_DRAWINGS], indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*RUNS, "lab", []], default=[])
    parser.add_argument("--out", type=Path, default=Path("curves"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.names or ("default", "shuffled", "collapsed"):
        if name in RUNS:
            run(name, args.out / name, RUNS[name])
            cut_down(args.out / name, CURVES / name, RUNS[name])
            continue
        for fault, s in LAB.items():
            run(fault, args.out / "lab" / fault, s)
            cut_for_lab(args.out / "lab" / fault, CURVES / "lab", fault)
