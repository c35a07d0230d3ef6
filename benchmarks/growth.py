"""How seconds and GB of a training step grow with rollouts, tokens and width, beside the plan's.

    OMP_NUM_THREADS=1 python benchmarks/growth.py   # under 5 minutes of CPU time

The step is the default run's, 16 pairs, on a janus-nano of random weights that never ends an
answer. One of its sizes changes at a time, and each figure comes from a process of its own: CPU
seconds of one thread in the second of two steps, and the most GB it ever held beyond what it held
before there was a model. The plan takes this CPU for a card: the rates of one matrix product and
of one copy, measured here, and its own assumptions for the rest. Writes benchmarks/growth.csv; the
columns that begin with x are relative to the first row of their kind.
"""

import csv
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from pairuni_nb.janus import nano_processor, new_nano
from pairuni_nb.pairing import make_pairs
from pairuni_nb.plan import Card, Work, peak, shape_of, step_seconds
from pairuni_nb.rollout import JanusPolicy
from pairuni_nb.settings import preset
from pairuni_nb.step import train_step
from pairuni_nb.world import records

CSV = Path(__file__).with_suffix(".csv")
BASE = dict(rollouts=8, tokens=24, width=128)
SIZES = dict(rollouts=(2, 4, 8, 16), tokens=(24, 48, 96, 192), width=(64, 128, 256, 512))


def held(line):
    "GB of this process: VmRSS now, VmHWM at most"
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{line}:\s+(\d+)", status)[1]) * 1.024e-6


def fastest(work):
    "CPU seconds"
    took = []
    for _ in range(5):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


def this_cpu():
    "One thread of it, as the plan takes a card"
    a, x = torch.rand(1024, 1024), torch.empty(2**26, dtype=torch.uint8)
    y = torch.ones_like(x)
    tflops = 2 * 1024**3 / fastest(lambda: a @ a) / 1e12
    return Card(1.0, tflops, tflops, 2 * x.nbytes / fastest(lambda: x.copy_(y)) / 1e9)


def dice(prompts, outputs, truths):
    "A reward"
    return torch.rand(len(outputs)).tolist()


def measure(rollouts, tokens, width):
    "Seconds and GB of a step, and the plan's"
    s = replace(preset("nano").train, rollouts=rollouts, max_new_tokens=tokens)
    pairs, _ = make_pairs(records("u", 100, 0), records("g", 100, 0), clusters=20)
    card, accelerator = this_cpu(), Accelerator(cpu=True)
    before = held("VmRSS")
    policy = JanusPolicy(new_nano(nano_processor(), width=width), nano_processor())
    policy.eos = torch.tensor([-1])
    opt = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=s.lr)
    rows = [pairs[i] for i in range(s.pairs_per_step)]
    ids, rewards = list(range(len(rows))), dict(u=dice, g=dice)
    for step in range(2):
        start = time.process_time()
        train_step(policy, opt, rows, ids, step, s, rewards, accelerator)
        seconds = time.process_time() - start
    prompt_tokens = policy.image_prompts([row["prompt"] for row in rows]).input_ids.shape[1]
    shape, work = shape_of(policy.model.config), Work(s, prompt_tokens=prompt_tokens)
    planned = sum(step_seconds(shape, work, card).values())
    return seconds, planned, held("VmHWM") - before, peak(shape, work)


def child(sizes):
    "What a process of its own measures"
    env = os.environ | dict(OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="65536")  # no holes counted
    command = [sys.executable, __file__, *(str(sizes[name]) for name in BASE)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return [float(x) for x in done.stdout.split()[-4:]]


def main():
    table = []
    for name, sizes in SIZES.items():
        first = None
        for size in sizes:
            changed = BASE | {name: size}
            found = child(changed)
            first = first or found
            figures = zip(("seconds", "seconds_plan", "gb", "gb_plan"), found, first)
            row = dict(grows=name) | changed
            for figure, value, start in figures:
                row |= {figure: round(value, 4), f"x_{figure}": round(value / start, 2)}
            table.append(row)
            print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    with open(CSV, "w", newline="") as f:
        writer = csv.DictWriter(f, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    if sys.argv[1:] == ["--help"]:
        print(__doc__)
    elif len(sys.argv) > 1:
        print(*measure(*map(int, sys.argv[1:])))
    else:
        main()
