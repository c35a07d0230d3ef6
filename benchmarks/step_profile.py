"""Where a training step's time goes: each phase's calls and seconds, the mean over some steps of the default run.

    python benchmarks/step_profile.py

Writes benchmarks/step_profile.csv. Phases nest (a prefill runs inside a sampling or a scoring), so the indented ones
are parts of the line above them.
"""

import csv
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


def watch(owner, name, phase, spent, calls):
    "Time every call of owner.name under a phase."
    inner = getattr(owner, name)

    def timed(*a, **k):
        t = time.perf_counter()
        try:
            return inner(*a, **k)
        finally:
            key = phase(*a) if callable(phase) else phase
            spent[key] += time.perf_counter() - t
            calls[key] += 1

    setattr(owner, name, timed)


def main():
    s, spent, calls = preset("nano").train, Counter(), Counter()
    pairs, _ = make_pairs(records("u", 600, 0), records("g", 600, 0), clusters=120, seed=0)
    policy = JanusPolicy(*load_janus())
    opt = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=s.lr)
    side = lambda prompts_or_rollouts: (
        "text" if getattr(prompts_or_rollouts, "task") == "u" else "images"
    )
    watch(JanusPolicy, "text_prompts", "prompts of questions, vision tower", spent, calls)
    watch(JanusPolicy, "image_prompts", "prompts of drawings", spent, calls)
    watch(JanusPolicy, "sample", lambda p, prompts, *a: f"sample {side(prompts)}", spent, calls)
    watch(JanusPolicy, "images", "VQ decode", spent, calls)
    watch(JanusPolicy, "forward", lambda p, rollouts, *a: f"score {side(rollouts)}", spent, calls)
    watch(Accelerator, "backward", "backward", spent, calls)
    watch(torch.optim.AdamW, "step", "optimiser", spent, calls)
    rewards = dict(u=answer_accuracy, g=scene_reward)
    for task, reward in list(rewards.items()):
        watch(
            rewards_box := type("Box", (), dict(reward=staticmethod(reward))),
            "reward",
            f"reward {dict(u='answers', g='drawings')[task]}",
            spent,
            calls,
        )
        rewards[task] = rewards_box.reward
    accelerator, total = Accelerator(cpu=True), 0.0
    for step in range(STEPS + 2):  # two to warm up
        if step == 2:
            spent.clear()
            calls.clear()
            total = time.perf_counter()
        ids = steps.rows_of_step(len(pairs), s.pairs_per_step, s.seed, step)
        steps.train_step(policy, opt, [pairs[i] for i in ids], ids, step, s, rewards, accelerator)
    total = (time.perf_counter() - total) / STEPS
    rows = [
        dict(
            phase=k,
            calls_a_step=calls[k] / STEPS,
            seconds_a_step=round(v / STEPS, 4),
            share=round(v / STEPS / total, 3),
        )
        for k, v in spent.most_common()
    ]
    rest = total - sum(r["seconds_a_step"] for r in rows)
    rows += [
        dict(
            phase="rest",
            calls_a_step=1,
            seconds_a_step=round(rest, 4),
            share=round(rest / total, 3),
        ),
        dict(phase="step", calls_a_step=1, seconds_a_step=round(total, 4), share=1),
    ]
    with CSV.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(
        f"{torch.get_num_threads()} threads, P {s.pairs_per_step}, K {s.rollouts}, micro-batch {s.micro_batch}, mean of {STEPS} steps"
    )
    for r in rows:
        print(
            f"{r['phase']:36s} {r['calls_a_step']:5.0f} calls  {r['seconds_a_step']:7.3f} s  {r['share']:6.1%}"
        )


if __name__ == "__main__":
    main()
