"""What a user brings to a run: held-out records of their own, and a reward server that is lost on the way."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pairuni_nb.jobs import Train, resume, run_train
from pairuni_nb.pairing import make_pairs
from pairuni_nb.preference import remote_reward
from pairuni_nb.processes import join_processes
from pairuni_nb.settings import TrainSettings
from pairuni_nb.run_folder import begin_run, read_metrics, without_cost
from pairuni_nb.train import train
from pairuni_nb.world import records
from program import pairuni
from test_preference_edges import Server, reply

S = TrainSettings(pairs_per_step=2, rollouts=2, steps=2, eval_items=4, eval_every=9, save_every=1)


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=4)[0].map(
        lambda r: dict(u_scene="", g_scene="")
    )


def draws(seen, stop=None):
    "A reward that notes the prompts it sees, and stops the run at a call."

    def reward(prompts, images, truths):
        seen.append(set(prompts))
        if len(seen) == stop:
            raise KeyboardInterrupt
        return [0.1 * (i % 2) for i in range(len(prompts))]

    return reward


def test_your_own_held_out_records_are_scored_and_all_pairs_trained_on(pairs, tmp_path):
    pairs = pairs.select(range(0, len(pairs), 4))  # of each kind
    held, seen, s = (
        (records("u", 3, 7), records("g", 5, 7)),
        [],
        TrainSettings(**vars(S) | dict(pairs_per_step=len(pairs), rollouts=2, steps=1)),
    )
    result = train(pairs, tmp_path / "run", s, rewards=dict(g=draws(seen)), device="cpu", held=held)
    assert (result["protocol"]["n_u"], result["protocol"]["n_g"]) == (3, 5)
    before, step, after = seen
    assert before == after == {r["prompt"] for r in held[1]} and step == {
        p for p in pairs["prompt"] if p is not None
    }


def test_your_own_held_out_records_survive_a_resume(pairs, tmp_path):
    held, seen = (records("u", 3, 7), records("g", 5, 7)), []
    train(pairs, tmp_path / "whole", S, rewards=dict(g=draws([])), device="cpu", held=held)
    with pytest.raises(KeyboardInterrupt):
        train(pairs, tmp_path / "run", S, rewards=dict(g=draws([], 3)), device="cpu", held=held)
    train(
        pairs,
        tmp_path / "run",
        S,
        rewards=dict(g=draws(seen)),
        device="cpu",
        held=held,
        resume=True,
    )
    strip = lambda run: without_cost(read_metrics(run))
    assert strip(tmp_path / "run") == strip(tmp_path / "whole") and seen[-1] == {
        r["prompt"] for r in held[1]
    }


def test_a_device_is_the_one_that_was_named_or_it_is_said(tmp_path, monkeypatch):
    assert join_processes("auto").device.type == join_processes("cpu").device.type == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # and this process began without
    with pytest.raises(ValueError, match=r"has begun to compute on cpu: .* to use cuda"):
        join_processes("cuda")
    assert join_processes("auto").device.type == "cpu"
    toy, _ = make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=4)
    with pytest.raises(ValueError, match="has begun to compute on cpu"):
        train(toy, tmp_path / "run", S, device="cuda")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "device, there, on_cpu", [("cpu", True, True), ("auto", True, False), ("auto", False, True)]
)
def test_a_gpu_is_left_alone_where_the_cpu_is_named(device, there, on_cpu, monkeypatch):
    asked = []

    def state(cpu, timeout):
        asked.append(cpu)
        return SimpleNamespace(device=torch.device("cpu" if cpu else "cuda"))

    monkeypatch.setattr("pairuni_nb.processes.PartialState", state)
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    join_processes(device)
    assert asked == [on_cpu]


def test_a_job_that_names_no_device_takes_what_its_process_has(tmp_path, monkeypatch):
    asked = []

    def join(device):
        asked.append(device)
        raise InterruptedError

    toy, _ = make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=4)
    begin_run(tmp_path / "run", toy, S, dict(model=None))
    monkeypatch.setattr("pairuni_nb.processes.join_processes", join)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for job in (
        lambda: run_train(Train(out=str(tmp_path / "new"))),
        lambda: resume(tmp_path / "run"),
        lambda: resume(tmp_path / "run", device="cpu"),
    ):
        with pytest.raises(InterruptedError):
            job()
    assert asked == ["auto", "auto", "cpu"]


def server_then(fails):
    "A server that rewards by rank in the batch, but not the requests that `fails` names by number."

    def later(handler):
        n = handler.server.asked
        if fails(n):
            handler.send_error(503)
        else:
            reply(handler, json.dumps(dict(rewards=[0.1, 0.9][: handler.server.batch])).encode())

    server = Server(later)
    server.batch = 2
    return server


def test_a_server_lost_for_two_steps_stops_the_run(tmp_path):
    "Only drawings are asked of the server: answers have their rewards, and the run stops all the same."
    toy, _ = make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=4)
    three = replace(S, steps=3, save_every=9)
    with server_then(lambda n: n > 3) as server:  # the greeting and the evaluation before
        far = remote_reward(server.url, retries=0, wait=0, batch=2)
        with pytest.raises(
            ValueError,
            match="^every reward of steps 1 and 2 .* side g: .* its server answers; step 2 is saved$",
        ):
            train(toy, tmp_path / "run", three, rewards=dict(g=far), device="cpu")
    assert far.missing.total() == 8 and not (tmp_path / "run" / "result.json").exists()
    train(toy, tmp_path / "run", three, rewards=dict(g=draws([])), device="cpu", resume=True)
    steps = [m["step"] for m in read_metrics(tmp_path / "run") if "missing_g" in m]
    assert steps == [1, 2, 3] and (tmp_path / "run" / "result.json").exists()


def test_a_step_without_rewards_may_be_chance(tmp_path):
    toy, _ = make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=4)
    with server_then(lambda n: n in (4, 5)) as server:
        train(
            toy,
            tmp_path / "run",
            S,
            rewards=dict(g=remote_reward(server.url, retries=0, wait=0, batch=2)),
            device="cpu",
        )
    first, second = [m for m in read_metrics(tmp_path / "run") if "missing_g" in m]
    assert (first["missing_g"], second["missing_g"], first["adv_std_g"], first["flat_g"]) == (
        1,
        0,
        0,
        1,
    ) and first["grad_norm"] >= 0  # no NaN


def held_out_alone(stop=None):
    "A reward that knows the held-out records before the first step and nothing later, and stops the run at a call."
    calls = []

    def reward(prompts, images, truths):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return [0.5 if len(calls) == 1 else None] * len(images)

    return reward


def test_the_only_step_without_rewards_stops_the_run(tmp_path):
    toy, _ = make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=4)
    one = TrainSettings(**vars(S) | dict(steps=1))
    with pytest.raises(ValueError, match="^every reward of step 1 is missing on side g"):
        train(toy, tmp_path / "run", one, rewards=dict(g=held_out_alone()), device="cpu")
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not (tmp_path / "run" / "state.pt").exists()  # else --resume would call it done


def test_steps_without_rewards_are_counted_over_a_resume(tmp_path):
    toy, _ = make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=4)
    with pytest.raises(KeyboardInterrupt):
        train(
            toy, tmp_path / "run", S, rewards=dict(g=held_out_alone(3)), device="cpu"
        )  # in its second step
    with pytest.raises(ValueError, match="^every reward of steps 1 and 2 is missing on side g"):
        train(
            toy,
            tmp_path / "run",
            S,
            rewards=dict(g=lambda prompts, images, truths: [None] * len(images)),
            device="cpu",
            resume=True,
        )


def test_one_lost_request_is_missing_counted_and_no_zero(tmp_path):
    toy, _ = make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=4)
    with server_then(lambda n: n == 4) as server:
        far = remote_reward(server.url, retries=0, wait=0, batch=2)
        train(toy, tmp_path / "run", S, rewards=dict(g=far), device="cpu")
    first, second = [m for m in read_metrics(tmp_path / "run") if "reward_g" in m]
    assert (
        first["missing_g"] == 0.5
        and second["missing_g"] == 0
        and first["reward_g"] == pytest.approx(0.5)
    )


@pytest.mark.parametrize("spec", ["{url}", "0.5*scene+0.5*{url}"])
def test_a_server_that_is_down_at_the_start_leaves_no_run_folder(
    spec, few_toys, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("PAIRUNI_DEBUG", raising=False)
    with Server(lambda h: None) as server:
        pass  # its port is free again
    reward = spec.format(url=server.url)
    assert pairuni(f"train --reward {reward} --out {tmp_path}/run --device cpu") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"the reward server {server.url} does not answer" in said
    assert "start it, or correct the address" in said
    assert not (tmp_path / "run").exists()
