"""Two processes do what one does."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pairuni_nb.pairing import make_pairs, save_pairs
from pairuni_nb.train import launch, read_metrics, train
from pairuni_nb.world import records
from two_processes import SMALL

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "What two processes left, and beside it the run of one."
    tmp = tmp_path_factory.mktemp("two")
    pairs, _ = make_pairs(records("u", 60, 0), records("g", 60, 0), clusters=12)
    save_pairs(pairs, tmp/"pairs", {}, {})
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(HERE.parent/"configs"/"8_gpus.yaml"), "--num_processes", "2", "--main_process_port", "0",
               str(HERE/"two_processes.py"), str(tmp)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    train(pairs, tmp/"one", SMALL, device="cpu")
    return tmp


def test_two_processes_draw_what_one_draws(folder):
    assert json.loads((folder/"said.json").read_text())["rollouts"]


@pytest.mark.parametrize("name", ["ddp fp32", "fsdp fp32", "ddp bf16", "fsdp bf16"])
def test_two_processes_make_the_update_of_one(folder, name):
    said = json.loads((folder/"said.json").read_text())[name]
    assert said["apart"] < 1e-6 < 1e-3 < said["moved"] and said["stats"] < 1e-5


def test_a_sharded_policy_goes_back_to_its_state(folder):
    assert json.loads((folder/"said.json").read_text())["resumed"] == 0


def test_a_sharded_run_is_the_run_of_one(folder):
    one, two = ([{k: v for k, v in m.items() if not k.startswith("sec_")} for m in read_metrics(folder/run)] for run in ("one", "run"))
    assert [m["step"] for m in one] == [m["step"] for m in two] == [0, 1, 1, 2, 2]  # each line once
    for a, b in zip(one, two): assert a.keys() == b.keys() and all(a[k] == pytest.approx(b[k], abs=1e-3, nan_ok=True) for k in a)
    assert {p.name for p in (folder/"run").iterdir()} == {p.name for p in (folder/"one").iterdir()} | {"pairs", "report.html"}


def test_sharding_one_process_is_refused(tmp_path):
    with pytest.raises(ValueError, match="several processes"): launch(replace(SMALL, shard=True), tmp_path, "cpu", None)
