"""Faults of public code, one at a time, in a real run: which figure tells, and what it costs.

    OMP_NUM_THREADS=1 python benchmarks/clinic.py run
    python benchmarks/clinic.py table

A fault is a patch from outside; the library holds none. The job is the main job (preset nano:
guidance 2, conditional scores) made small: 40 steps of 8 pairs, 8 rollouts, 200 held-out items a
side. Healthy runs on seeds of their own give each figure's usual range (clinic_range.csv). On the
other seeds each fault is run, and health: clinic.csv keeps the held-out scores before and after,
and the first step in which each figure was outside its range and half of that on either side, 0
for never. (Half was chosen on the seeds of the ranges: of 165 figures of a run beside the other
four's, three leave that; without it 37 did.) Rows that are there are not run again; run folders
stay in runs/clinic. Evaluations are always healthy.
"""

import argparse
import functools
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rows import append, read

import pairuni_nb.rollout
import pairuni_nb.step
from pairuni_nb.ablate import differences, how_long, settings_of, smallest_effect, sources
from pairuni_nb.evaluate import evaluate, interval
from pairuni_nb.janus import load_janus
from pairuni_nb.pair_grpo import group_advantage, modulate, policy_loss
from pairuni_nb.pairing import as_dataset, pair_records
from pairuni_nb.records import read_json, write_json
from pairuni_nb.rollout import JanusPolicy, Policy, Sampling, draw
from pairuni_nb.settings import preset
from pairuni_nb.step import roll_out, weighted_side
from pairuni_nb.train import train

HERE = Path(__file__).parent
CSV, RANGE = HERE / "clinic.csv", HERE / "clinic_range.csv"
RUNS = HERE.parent / "runs" / "clinic"
BASE = preset("nano")
HELD = 200  # items a side; a run itself scores but four, for a seed's start is scored once
JOB = replace(BASE.train, steps=40, pairs_per_step=8, rollouts=8, eval_items=HELD)
JOB = replace(JOB, eval_every=10_000, save_every=10_000)
# healthy runs that give the ranges; the job was chosen on seed 9
RANGE_SEEDS = {"healthy": range(9, 14), "healthy, 3 updates": (9,)}
SIDED = "gap loss ratio_mean ratio_max clip reward flat spread adv_std entropy norm"
SIDED += " rarest off_weight"  # these two are not in the log
FIGURES = [f"{name}_{task}" for name in SIDED.split() for task in "ug"]
FIGURES += ["grad_norm", "well_formed", "truncated", "answer_tokens", "cos_uu", "cos_gg", "cos_ug"]
SCORES = ("accuracy", "score", "well_formed", "diversity")
UPDATES = dict(num_iterations=3)  # of each batch, where the ratio is to leave 1
TOP_K = 3  # of 128 picture codes: 0.92 of a guided token's mass at the start, where 50 hold all


def shift():
    "Pictures and answers: the state of a token scores that token (ULM-R1), not the next."
    whole = Policy.states

    def states(self, rollouts):
        longer = replace(rollouts, tokens=F.pad(rollouts.tokens, (0, 1)))
        return whole(self, longer)[:, 1:]

    return patch.object(Policy, "states", states)


def temperature():
    "Drawn at 1, scored at a default of 0.9 (ULM-R1)."
    whole = Policy._logp_of

    def logp_of(self, task, sampling, states, tokens):
        return whole(self, task, replace(sampling, temperature=0.9), states, tokens)

    return patch.object(Policy, "_logp_of", logp_of)


def truncated_draw(probs, u):
    "Only from the likeliest tokens."
    least = probs.topk(TOP_K).values[:, -1:]
    return draw(probs.where(probs >= least, 0.0), u)


def top_k():
    "Rollouts come from the likeliest tokens; scores know nothing of it (`generate`'s default)."

    def rolled(*args):
        with patch.object(pairuni_nb.rollout, "draw", truncated_draw):
            return roll_out(*args)

    return patch.object(pairuni_nb.step, "roll_out", rolled)


def weight_first():
    "The pair weight multiplies rewards, and the group's spread takes it out again."

    def side_of(*args):
        side = weighted_side(*args)
        side.advantages = group_advantage(modulate(side.rewards, side.weights)).flatten()
        return side

    return patch.object(pairuni_nb.step, "weighted_side", side_of)


def no_end():
    "The loss does not count the token that ends an answer."

    def side_of(rollouts, *args):
        if rollouts.task == "u":
            mask = rollouts.mask
            end = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True)) & rollouts.ended[:, None]
            rollouts = replace(rollouts, mask=mask & ~end)
        return weighted_side(rollouts, *args)

    return patch.object(pairuni_nb.step, "weighted_side", side_of)


def whole_batch():
    "Mean and spread of all rewards of a side, not of a group's."

    def relative(rewards):
        return group_advantage(rewards.view(1, -1)).view_as(rewards)

    return patch.object(pairuni_nb.step, "group_advantage", relative)


def guided_over_w():
    "Drawn with guidance; scored by guided logits over w (Janus-Pro-R1): a temperature of w."
    whole = Policy.forward

    def forward(self, rollouts):
        s = rollouts.sampling
        if rollouts.task == "g":
            s = replace(s, cfg_scoring="guided", temperature=s.temperature * s.cfg_weight)
        return whole(self, replace(rollouts, sampling=s))

    return patch.object(Policy, "forward", forward)


def no_ratio():
    "The policy now is compared with itself, not with the one that drew: the ratio is always 1."

    def loss(logp, old_logp, *args):
        return policy_loss(logp, logp.detach(), *args)

    return patch.object(pairuni_nb.step, "policy_loss", loss)


# row -> its faults, its settings
ROWS = {
    "healthy": ((), {}),
    "shift": ((shift,), {}),
    "temperature": ((temperature,), {}),
    "top k": ((top_k,), {}),
    "weight first": ((weight_first,), {}),
    "no end": ((no_end,), {}),
    "whole batch": ((whole_batch,), {}),
    "guided / w": ((guided_over_w,), {}),
    "healthy, 3 updates": ((), UPDATES),
    "no ratio, 3 updates": ((no_ratio,), UPDATES),
    # as public code has them: nothing recorded, so the ratio is 1 all the same
    "shift, no ratio": ((shift, no_ratio), {}),
    "temperature, no ratio": ((temperature, no_ratio), {}),
    "guided / w, no ratio": ((guided_over_w, no_ratio), {}),
}


def healthy_of(row):
    "The row that differs in its faults alone."
    settings = ROWS[row][1]
    return next(name for name, (faults, own) in ROWS.items() if not faults and own == settings)


def look(side):
    "Two figures that the log does not have: the rarest token, and how far spreads are off weights."
    r, A = side.rewards, side.advantages.view(side.rewards.shape)
    live = r.amax(1) > r.amin(1)
    off = (A.std(1) - side.weights)[live].abs()
    return dict(
        rarest=side.rollouts.sample_logp.min().item(),
        off_weight=off.max().item() if live.any() else 0.0,
    )


def folder_of(row, seed):
    return RUNS / f"{row},seed={seed}".replace(" / ", " over ")


@functools.lru_cache(1)
def given(seed):
    "Pairs and held-out records of a seed."
    base = replace(BASE, train=JOB)
    u, g, *held = sources(base, seed)
    return as_dataset(pair_records(u, g, settings_of(base, {}, seed)[1])[0]), held


def figures(checkpoint, seed, held):
    "Held-out scores, decoded as the run samples."
    policy = JanusPolicy(*load_janus(checkpoint))
    told = evaluate(policy, *held, Sampling.of(JOB), seed)["figures"]
    return {name: round(told[f"{name}_mean"], 4) for name in SCORES}


@functools.lru_cache(1)
def start(seed):
    return figures(None, seed, given(seed)[1])


def steps_of(row, seed, out, job):
    "Train a row on a seed; each step's figures, and the error that ended it, if one did."
    faults, changes = ROWS[row]
    s, _ = settings_of(replace(BASE, train=job), changes, seed)
    pairs, held = given(seed)
    few, lines, failed = tuple(part[:4] for part in held), [], ""

    def callback(done, metrics, sides):
        own = {f"{k}_{task}": v for task, side in sides.items() for k, v in look(side).items()}
        lines.append(dict(step=done) | metrics | own)

    with ExitStack() as patches:
        for fault in faults:
            patches.enter_context(fault())
        try:
            train(pairs, out, s, device="cpu", held=few, callback=callback)
        except ValueError as error:  # the gradient is not finite
            failed = str(error).split(":")[0]
    return lines, failed


def run(row, seed):
    "What a run leaves; what it left, where it was run before."
    out = folder_of(row, seed)
    file = out / "clinic.json"
    if not file.exists():
        shutil.rmtree(out, ignore_errors=True)
        began, before = time.process_time(), start(seed)
        lines, failed = steps_of(row, seed, out, JOB)
        after = {} if failed else figures(out / "checkpoint", seed, given(seed)[1])
        told = dict(failed=failed, before=before, after=after, lines=lines)
        told["cpu_seconds"] = round(time.process_time() - began, 1)
        write_json(file, told)
    return read_json(file, "remove it")


def figure(line, name):
    "One of a step, or None where the step does not tell it."
    if name in ("clip_u", "clip_g"):
        return line[f"clip_low_{name[-1]}"] + line[f"clip_high_{name[-1]}"]
    return line.get(name)


def ranges(runs):
    "name -> the least and the most of healthy runs, each a list of steps."
    found = {}
    for name in FIGURES:
        values = [figure(line, name) for lines in runs for line in lines]
        values = [x for x in values if x is not None]
        found[name] = min(values), max(values)
    return found


def first_outside(lines, name, low, high):
    "The first step in which a figure is outside its range and half of that on either side."
    room = (high - low) / 2 + 1e-6  # what is always the same rounds a little
    for line in lines:
        x = figure(line, name)
        if x is not None and not low - room <= x <= high + room:
            return line["step"]
    return 0


def usual(healthy, rows):
    "The ranges of a healthy row; made, where the CSV does not hold them."
    own = [r for r in rows if r["row"] == healthy]
    if not own:
        found = ranges([run(healthy, seed)["lines"] for seed in RANGE_SEEDS[healthy]])
        for name, (low, high) in found.items():
            line = dict(row=healthy, figure=name, low=f"{low:.9g}", high=f"{high:.9g}")
            append(RANGE, line)
        own = [r for r in read(RANGE) if r["row"] == healthy]
    return {r["figure"]: (float(r["low"]), float(r["high"])) for r in own}


def line_of(row, seed, told, found):
    "A run's CSV row."
    line = dict(row=row, seed=seed, failed=told["failed"], cpu_seconds=told["cpu_seconds"])
    for name in SCORES:
        for when in ("before", "after"):
            line[f"{name}_{when}"] = told[when].get(name, "")
    firsts = {f"first_{name}": first_outside(told["lines"], name, *found[name]) for name in FIGURES}
    return line | firsts


def run_all(rows, seeds):
    "Every run that the table does not hold yet, seed by seed."
    there = {(r["row"], int(r["seed"])) for r in read(CSV)}
    todo = [(row, seed) for seed in seeds for row in rows if (row, seed) not in there]
    for i, (row, seed) in enumerate(todo):
        began, found = time.perf_counter(), usual(healthy_of(row), read(RANGE))
        append(CSV, line_of(row, seed, run(row, seed), found))
        left = len(todo) - i - 1  # runs, each as long as the last
        print(how_long(left, left, time.perf_counter() - began, 1), flush=True)


def numbers(lines):
    "Rows of the CSV as `pairuni_nb.ablate` reads them."
    plain = ("row", "failed")
    return [{k: v if k in plain else float(v or "nan") for k, v in r.items()} for r in lines]


def costs(lines, row, measure):
    "A row's rise less its healthy one's, in points, one a seed."
    return [100 * x for x in differences(numbers(lines), row, healthy_of(row), measure)]


def found_by(lines, row):
    "figure -> the first step outside in each run of a row; those that never left are not told."
    own = [r for r in lines if r["row"] == row]
    steps = {name: [int(r[f"first_{name}"]) for r in own] for name in FIGURES}
    return {name: firsts for name, firsts in steps.items() if any(firsts)}


def table(lines):
    "Markdown: what tells of each fault, and what it costs."
    print("| row | seeds | found by: first step in each run | answers | drawing |")
    print("|---|---|---|---|---|")
    for row in ROWS:
        n = sum(r["row"] == row for r in lines)
        if not n:
            continue
        steps = sorted(found_by(lines, row).items(), key=lambda one: sum(s or 99 for s in one[1]))
        told = "; ".join(f"{name} {' '.join(map(str, firsts))}" for name, firsts in steps[:8])
        cells = [row, str(n), told]
        for measure in ("accuracy", "score"):
            apart = costs(lines, row, measure)
            mean, half = interval(apart)
            seen = smallest_effect(apart)
            known = row != healthy_of(row) and half is not None
            cells.append(f"{mean:+.1f} ± {half:.1f} ({seen:.1f})" if known else "")
        print("| " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "run":
        run_all(args.rows, args.seeds)
    else:
        table(read(CSV))


if __name__ == "__main__":
    main()
