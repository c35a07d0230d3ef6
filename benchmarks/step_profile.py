"""Where a training step's time goes: each phase's calls and CPU seconds, the mean over some steps.

    OMP_NUM_THREADS=1 python benchmarks/step_profile.py

The run is the default one. CPU seconds leave out what else the machine does. Writes
benchmarks/step_profile.csv.
"""

import csv
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from accelerate import Accelerator

from pairuni_nb import step as steps
from pairuni_nb.janus import load_janus
from pairuni_nb.pairing import make_pairs
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.rollout import JanusPolicy
from pairuni_nb.settings import preset
from pairuni_nb.world import records

CSV = Path(__file__).with_name("step_profile.csv")
STEPS = 12


def timed(function, phase, spent, calls):
    "The same function, its calls timed under a phase: a name, or a function of the arguments."

    def inner(*args, **kwargs):
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            key = phase(*args) if callable(phase) else phase
            spent[key] += time.process_time() - start
            calls[key] += 1

    return inner


def watch(owner, name, phase, spent, calls):
    "Time every call of owner.name under a phase."
    setattr(owner, name, timed(getattr(owner, name), phase, spent, calls))


def side(batch):
    "What prompts or rollouts are about."
    return "text" if batch.task == "u" else "images"


def watch_all(spent, calls):
    "Time the policy's methods, the backward pass and the optimiser."

    def sample_phase(policy, prompts, *rest):
        return f"sample {side(prompts)}"

    def score_phase(policy, rollouts, *rest):
        return f"score {side(rollouts)}"

    watch(JanusPolicy, "text_prompts", "prompts of questions, vision tower", spent, calls)
    watch(JanusPolicy, "image_prompts", "prompts of drawings", spent, calls)
    watch(JanusPolicy, "sample", sample_phase, spent, calls)
    watch(JanusPolicy, "images", "VQ decode", spent, calls)
    watch(JanusPolicy, "forward", score_phase, spent, calls)
    watch(Accelerator, "backward", "backward", spent, calls)
    watch(torch.optim.AdamW, "step", "optimiser", spent, calls)


def row(phase, calls, seconds, total):
    share = round(seconds / total, 3)
    return dict(phase=phase, calls_a_step=calls, seconds_a_step=round(seconds, 4), share=share)


def table(spent, calls, total):
    "Rows of the CSV; what no phase accounts for is the rest."
    rows = [row(p, calls[p] / STEPS, seconds / STEPS, total) for p, seconds in spent.most_common()]
    rest = total - sum(r["seconds_a_step"] for r in rows)
    return rows + [row("rest", 1, rest, total), row("step", 1, total, total) | dict(share=1)]


def main():
    s, spent, calls = preset("nano").train, Counter(), Counter()
    pairs, _ = make_pairs(records("u", 600, 0), records("g", 600, 0), clusters=120, seed=0)
    policy = JanusPolicy(*load_janus())
    opt = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=s.lr)
    watch_all(spent, calls)
    rewards = dict(
        u=timed(answer_accuracy, "reward answers", spent, calls),
        g=timed(scene_reward, "reward drawings", spent, calls),
    )
    accelerator = Accelerator(cpu=True)
    for step in range(STEPS + 2):
        if step == 2:  # the first two warm up
            spent.clear()
            calls.clear()
            start = time.process_time()
        ids = steps.rows_of_step(len(pairs), s.pairs_per_step, s.seed, step)
        steps.train_step(policy, opt, [pairs[i] for i in ids], ids, step, s, rewards, accelerator)
    rows = table(spent, calls, (time.process_time() - start) / STEPS)
    with CSV.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(
        f"{torch.get_num_threads()} threads, P {s.pairs_per_step}, K {s.rollouts}, "
        f"micro-batch {s.micro_batch}, mean of {STEPS} steps"
    )
    for r in rows:
        print(
            f"{r['phase']:36s} {r['calls_a_step']:5.0f} calls  "
            f"{r['seconds_a_step']:7.3f} s  {r['share']:6.1%}"
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["--help"]:
        print(__doc__)
    else:
        main()
