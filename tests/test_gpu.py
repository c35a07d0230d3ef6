"""What must hold on a GPU as on a CPU: `pytest -m gpu` runs the GPU's half."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

from pairuni_nb.janus import load_janus
from pairuni_nb.pairing import make_pairs
from pairuni_nb.processes import shard
from pairuni_nb.rollout import JanusPolicy, Sampling, gap, noise
from pairuni_nb.run_folder import read_metrics
from pairuni_nb.settings import TrainSettings
from pairuni_nb.step import train_step
from pairuni_nb.train import train
from pairuni_nb.world import records

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = TrainSettings(
    steps=2, pairs_per_step=2, rollouts=4, micro_batch=4, eval_items=4, eval_every=2, save_every=2
)


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(records("u", 60, 0), records("g", 60, 0), clusters=12)[0]


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    "Convolutions in float32, as on a CPU"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def every_second(prompts, outputs, truths):
    "A reward that no rounding changes"
    return [float(i % 2) for i in range(len(outputs))]


def policy(device, **kw):
    "janus-nano, as it comes with the package"
    return JanusPolicy(*load_janus(device=device), **kw)


def drawn(own, task):
    "Rollouts by the same noise, wherever they are drawn; prompts of several lengths"
    if task == "u":
        prompts = own.text_prompts(["Which colour is it?", "How many red circles are there here?"])
    else:
        prompts = own.image_prompts(["a red star", "two blue circles and a green square"])
    return own.sample(prompts, 4, noise(0, 0, range(2), 4, 40), Sampling(max_new_tokens=24))


def stepped(own, pairs, device, sampler=None):
    "Metrics of one step, and the trained weights after it"
    trained = [p for p in own.parameters() if p.requires_grad]
    opt = torch.optim.SGD(trained, lr=1.0)
    accelerator = Accelerator(cpu=device == "cpu")
    rows, rewards = [pairs[0], pairs[1]], dict(u=every_second, g=every_second)
    metrics, _ = train_step(own, opt, rows, [0, 1], 0, SMALL, rewards, accelerator, sampler=sampler)
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in trained]
    return metrics, torch.cat([p.detach().flatten().cpu() for p in full])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision, most", [("fp32", 1e-3), ("bf16", 0.5)])
@pytest.mark.parametrize("task", ["u", "g"])
def test_recorded_steps_draw_what_plain_ones_draw(task, precision, most, device):
    own = policy(device, precision=precision)
    plain = drawn(own, task)
    own.recorded = True
    for recorded in (drawn(own, task), drawn(own, task)):  # a second recording, too
        with torch.no_grad():
            assert gap(recorded, own(recorded)) < most
        if precision == "fp32":
            assert torch.equal(recorded.tokens, plain.tokens)
            assert (recorded.logp - plain.logp).abs().max() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("task", ["u", "g"])
def test_the_same_noise_draws_the_same_on_each_device(task, device):
    here, there = drawn(policy("cpu"), task), drawn(policy(device), task)
    assert here.tokens.shape == there.tokens.shape
    assert (here.tokens == there.tokens.cpu()).all(1).float().mean() > 0.7  # roundings may differ


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_is_the_step_of_a_cpu(pairs, device):
    start = torch.cat([p.flatten() for p in policy("cpu").parameters() if p.requires_grad])
    _, weights = stepped(policy("cpu"), pairs, "cpu")
    told_here, weights_here = stepped(policy(device), pairs, device)
    assert told_here["gap_u"] < 1e-3 and told_here["gap_g"] < 1e-3
    assert (weights_here - weights).norm() < 0.01 * (weights - start).norm()


@pytest.mark.parametrize("device", DEVICES)
def test_one_sharded_process_makes_the_step_of_one(pairs, device):
    _, weights = stepped(policy(device), pairs, device)
    own = policy(device)
    whole = copy.deepcopy(own)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        shard(own)
        _, sharded = stepped(own, pairs, device, sampler=whole)
        copied = [p.cpu().flatten() for p in whole.parameters() if p.requires_grad]
    finally:
        dist.destroy_process_group()
    assert (sharded - weights).abs().max() < 1e-5
    assert torch.equal(torch.cat(copied), sharded)  # what samples next


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_in_bfloat16_with_recorded_steps(pairs, tmp_path, device):
    s = replace(SMALL, precision="bf16", gradient_checkpointing=True)
    train(pairs, tmp_path / "run", s, device=device)
    steps = [m for m in read_metrics(tmp_path / "run") if "gap_u" in m]
    assert len(steps) == 2 and all(m["gap_u"] < 0.5 and m["gap_g"] < 0.5 for m in steps)
