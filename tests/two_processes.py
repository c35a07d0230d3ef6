"""Run by test_two_processes.py and test_deepspeed.py in two processes: the same step by one process and by two (DDP and FSDP, or ZeRO if DeepSpeed started them), and a whole run by `-m pairuni_nb.train`."""

import copy
import json
import os
import runpy
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate import DistributedType
from pytest import approx
from torch.distributed.tensor import DTensor

from pairuni_nb import processes
from pairuni_nb.janus import load_janus
from pairuni_nb.pairing import load_pairs, make_pairs, save_pairs
from pairuni_nb.rewards import answer_accuracy, scene_reward, weighted
from pairuni_nb.rollout import JanusPolicy
from pairuni_nb.run_folder import load_state, read_metrics, save_state, without_cost
from pairuni_nb.settings import TrainSettings, preset
from pairuni_nb.step import roll_out_sides, score, update
from pairuni_nb.train import train
from pairuni_nb.world import records

HERE = Path(__file__).parent
SMALL = TrainSettings(
    pairs_per_step=3,
    rollouts=3,
    micro_batch=4,
    loss_type="dapo",
    steps=2,
    eval_items=4,
    eval_every=1,
    save_every=1,
    max_grad_norm=0.5,
)
RUN = replace(SMALL, num_iterations=2, beta=0.05)  # of a whole run
PLAIN = SimpleNamespace(
    backward=torch.Tensor.backward, clip_grad_norm_=torch.nn.utils.clip_grad_norm_
)  # what one process needs of an Accelerator


def by_one(tmp, s=RUN):
    "Pairs, and the run of one process"
    pairs, _ = make_pairs(records("u", 60, 0), records("g", 60, 0), clusters=12)
    save_pairs(pairs, tmp / "pairs", {}, {})
    reward = weighted([(0.25, scene_reward), (0.75, scene_reward)])  # each part is gathered, too
    train(pairs, tmp / "one", s, rewards=dict(g=reward), device="cpu")


def by_two(tmp, launcher, *flags):
    "Run this file in two processes, over the pairs there"
    env = os.environ | dict(
        OMP_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]),
        CUDA_VISIBLE_DEVICES="",
    )
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *map(str, launcher),
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        str(HERE / "two_processes.py"),
        str(tmp),
        *flags,
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]


def same_run(a, b):
    "Two runs' metrics agree, line by line, and so do their trained weights"
    one, two = (without_cost(read_metrics(run)) for run in (a, b))
    assert [m["step"] for m in one] == [m["step"] for m in two] == [0, 1, 1, 2, 2]  # each line once
    for x, y in zip(one, two):
        assert x.keys() == y.keys() and all(
            x[k] == (y[k] if y[k] is None else approx(y[k], rel=1e-3, abs=1e-3)) for k in x
        )
    start, one, two = (
        torch.cat([p.flatten() for p in load_janus(model)[0].parameters()])
        for model in (None, a / "checkpoint", b / "checkpoint")
    )
    assert (one - two).norm() < 0.02 * (one - start).norm()


def shared(name, policy, accelerator, kind, lr):
    "A copy of the policy as the processes share it, and its optimiser"
    policy = copy.deepcopy(policy)
    if name == "fsdp":
        policy.checkpoint_layers()
        policy.chunk = 5000
        processes.shard(policy)
    opt = kind(
        [p for p in policy.parameters() if p.requires_grad], lr=lr
    )  # before scoring: then some of FSDP's parameters are whole
    if name == "ddp":
        policy = accelerator.prepare_model(policy)
    if name == "zero":
        accelerator.free_memory()  # the engine before
        policy.checkpoint_layers()
        policy.chunk = 5000
        policy, opt = accelerator.prepare(policy, opt)
    return policy, opt


def step(policy, opt, sides, s, accelerator, compare=False):
    "One update as train_step makes it, and its statistics"
    for side in sides.values():
        side.old_logp = score(policy, side.rollouts, s.micro_batch, compare)
    return update(policy, opt, sides, s, accelerator, compare)


def full(p):
    "A parameter, put together"
    if isinstance(p, DTensor):
        return p.full_tensor()
    if not hasattr(p, "ds_id"):
        return p
    from deepspeed import zero

    with zero.GatheredParameters(p):
        return p.clone()


def whole(policy):
    "Trained weights by name, put together"
    return {
        n.removeprefix("module."): full(p).detach().clone()
        for n, p in policy.named_parameters()
        if p.requires_grad
    }


def apart(a, b):
    "Largest difference of two dicts of tensors"
    return max((a[n] - b[n]).abs().max().item() for n in a)


def resumed(name, start, sides, accelerator, folder):
    "How far a policy is from itself after going back to a saved state and stepping again"
    policy, opt = shared(name, start, accelerator, torch.optim.AdamW, 1e-4)
    for done in range(2):
        update(policy, opt, sides, SMALL, accelerator)
        save_state(folder, policy, opt, done)
    update(policy, opt, sides, SMALL, accelerator)
    first = whole(policy)
    dist.barrier()
    policy, opt = shared(name, start, accelerator, torch.optim.AdamW, 1e-4)
    assert load_state(folder, policy, opt) == 1
    update(policy, opt, sides, SMALL, accelerator)
    return apart(first, whole(policy))


def main(folder, *flags):
    torch.set_num_threads(1)
    pairs, accelerator, said = (
        load_pairs(folder / "pairs"),
        processes.launch(SMALL, folder, "cpu", None),
        {},
    )
    names = (
        ("zero",) if accelerator.distributed_type is DistributedType.DEEPSPEED else ("ddp", "fsdp")
    )
    start = JanusPolicy(*load_janus())
    rows, ids = [pairs[i] for i in range(3)], [0, 1, 2]
    sides, _ = roll_out_sides(start, rows, ids, 0, SMALL, dict(u=answer_accuracy, g=scene_reward))
    alone, processes.rank_and_size = processes.rank_and_size, lambda: (0, 1)
    single, _ = roll_out_sides(start, rows, ids, 0, SMALL, dict(u=answer_accuracy, g=scene_reward))
    said["rollouts"] = all(
        torch.equal(sides[t].rollouts.tokens, single[t].rollouts.tokens)
        and torch.equal(sides[t].advantages, single[t].advantages)
        and torch.equal(sides[t].rollouts.mask, single[t].rollouts.mask)
        for t in "ug"
    )
    compared = "fp32" if "ddp" in names else ""  # DeepSpeed keeps its gradients
    for precision in "bf16", "fp32":
        start.precision, compare = precision, precision == compared
        processes.rank_and_size = lambda: (0, 1)
        one, opt = shared("one", start, accelerator, torch.optim.SGD, 1.0)
        stats = step(one, opt, single, SMALL, PLAIN, compare)
        processes.rank_and_size = alone
        expected, before = whole(one), whole(start)
        for name in names:
            policy, opt = shared(name, start, accelerator, torch.optim.SGD, 1.0)
            own = step(policy, opt, sides, SMALL, accelerator, compare)
            said[f"{name} {precision}"] = dict(
                apart=apart(whole(policy), expected),
                moved=apart(expected, before),
                stats=max(abs(own[k] - stats[k]) for k in stats if not k.startswith("gap")),
                compared="cos_ug" in own,
            )
    said["resumed"] = {}
    for name in names:
        said["resumed"][name] = resumed(name, start, sides, accelerator, folder / name)
    if dist.get_rank() == 0:
        (folder / "said.json").write_text(json.dumps(said))
    accelerator.free_memory()
    flags += tuple(
        word
        for f in fields(RUN)
        if getattr(RUN, f.name) != getattr(preset("nano").train, f.name)
        for word in (f"--{f.name.replace('_', '-')}", str(getattr(RUN, f.name)))
    )
    sys.argv = [
        "train",
        "--pairs",
        str(folder / "pairs"),
        "--out",
        str(folder / "run"),
        "--device",
        "cpu",
        "--reward",
        "0.25*scene+0.75*scene",
        *flags,
    ]
    runpy.run_module("pairuni_nb.train", run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
