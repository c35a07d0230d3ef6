"""Run by test_processes.py in two processes: the same step by one process, by DDP and by FSDP, and a whole run with FSDP by `-m pairuni_nb.train`."""
import copy
import json
import runpy
import sys
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from pairuni_nb import train as T
from pairuni_nb.janus_nano import load_janus
from pairuni_nb.pairing import load_pairs
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.rollout import JanusPolicy
from pairuni_nb.settings import TrainSettings

SMALL = TrainSettings(pairs_per_step=3, rollouts=3, micro_batch=4, loss_type="dapo", steps=2, eval_items=4, eval_every=1, save_every=1, max_grad_norm=.5)


def step(policy, sides, s, accelerator):
    "One SGD update as train_step makes it, and its statistics"
    opt = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.)  # first: after scoring, some of FSDP's parameters are whole
    for side in sides.values(): side.old_logp = T.score(policy, side.rollouts, s.micro_batch)
    return T.update(policy, opt, sides, s, accelerator)


def whole(policy):
    "Trained weights by name, put together"
    return {n.removeprefix("module."): (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in policy.named_parameters() if p.requires_grad}


def apart(a, b):
    "Largest difference of two dicts of tensors"
    return max((a[n] - b[n]).abs().max().item() for n in a)


def resumed(policy, sides, accelerator, folder):
    "How far a sharded policy is from itself after going back to a saved state and stepping again"
    opt = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-4)
    T.update(policy, opt, sides, SMALL, accelerator)
    T.save_state(folder, policy, opt, 1)
    T.update(policy, opt, sides, SMALL, accelerator)
    first = whole(policy)
    dist.barrier()
    assert T.load_state(folder, policy, opt) == 1
    T.update(policy, opt, sides, SMALL, accelerator)
    return apart(first, whole(policy))


def main(folder):
    torch.set_num_threads(1)
    pairs, accelerator, said = load_pairs(folder/"pairs"), T.launch(SMALL, folder, "cpu", None), {}
    start = JanusPolicy(*load_janus())
    rows, ids = [pairs[i] for i in range(3)], [0, 1, 2]
    sides, _ = T.collect(start, rows, ids, 0, SMALL, dict(u=answer_accuracy, g=scene_reward))
    alone, T.process = T.process, lambda: (0, 1)
    single, _ = T.collect(start, rows, ids, 0, SMALL, dict(u=answer_accuracy, g=scene_reward))
    said["rollouts"] = all(torch.equal(sides[t].rollouts.tokens, single[t].rollouts.tokens) and torch.equal(sides[t].advantages, single[t].advantages)
                           and torch.equal(sides[t].rollouts.mask, single[t].rollouts.mask) for t in "ug")
    for precision in "bf16", "fp32":
        start.precision = precision
        T.process, one = lambda: (0, 1), copy.deepcopy(start)
        stats = step(one, single, SMALL, accelerator)
        T.process, expected, before = alone, whole(one), whole(start)
        for name in ("ddp", "fsdp"):
            policy = copy.deepcopy(start)
            if name == "fsdp": policy.checkpoint_layers(); policy.chunk = 5000; T.shard(policy)
            else: policy = accelerator.prepare_model(policy)
            own = step(policy, sides, SMALL, accelerator)
            said[f"{name} {precision}"] = dict(apart=apart(whole(policy), expected), moved=apart(expected, before), stats=max(abs(own[k] - stats[k]) for k in stats if not k.startswith("gap")))
    said["resumed"] = resumed(policy, sides, accelerator, folder)
    if dist.get_rank() == 0: (folder/"said.json").write_text(json.dumps(said))
    flags = [word for f in fields(SMALL) if getattr(SMALL, f.name) != f.default for word in (f"--{f.name.replace('_', '-')}", str(getattr(SMALL, f.name)))]
    sys.argv = ["train", "--pairs", str(folder/"pairs"), "--out", str(folder/"run"), "--device", "cpu", "--shard", *flags]
    runpy.run_module("pairuni_nb.train", run_name="__main__")


if __name__ == "__main__": main(Path(sys.argv[1]))
