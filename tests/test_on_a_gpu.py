"""The command for the day a GPU is there, rehearsed at toy sizes on a CPU."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from program import interpreter

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
DRAWN = {"draw_1b": "ours", "draw_nano": "ours"}
STEPS = {
    "step_1b": "janus-pro-1b",
    "step_24gb": "janus-pro-1b-24gb",
    "step_sharded": "janus-pro-1b sharded",
}


def on_a_gpu(cwd, *arguments, **more):
    "What the command leaves and says, started from another folder"
    env = os.environ | dict(PYTHON=sys.executable, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    command = [ROOT / "scripts" / "on_a_gpu.sh", *arguments]
    return subprocess.run(command, cwd=cwd, env=env | more, capture_output=True, text=True)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    "A folder, after a rehearsal whose wheel and whose tests failed; and what was printed."
    tmp = tmp_path_factory.mktemp("on a gpu")
    (tmp / "bad wheels").mkdir()
    (tmp / "bad wheels" / "broken-1-py3-none-any.whl").touch()
    more = dict(PYTEST_ADDOPTS="--no-such-option")
    with interpreter(tmp_path_factory.mktemp("python")) as python:  # six starts cost half a minute
        more["PYTHON"] = python
        return tmp / "out", on_a_gpu(tmp, "--toy", "out", "bad wheels", **more)


def rows(out, name):
    with open(out / f"{name}.csv") as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize("name", DRAWN)
def test_every_way_to_draw_is_measured_beside_the_plan(left, name):
    drawn = {
        (r["method"], r["unit"]): r for r in rows(left[0], name) if r["measure"] == "card draw"
    }
    for method in ("generate", "ours"):
        for unit in ("images/s", "of limit", "x generate"):
            assert float(drawn[method, unit]["value"]) > 0
    assert float(drawn["ours", "images/s"]["predicted"]) > 0
    assert not [r for r in rows(left[0], name) if r["measure"] == "card step"]


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_measured_beside_the_plan(left, name):
    step = {r["method"]: r for r in rows(left[0], name) if r["measure"] == "card step"}
    for part in ("rollout", "score and update", "whole", "peak"):
        row = step[f"{STEPS[name]} {part}"]
        assert float(row["value"]) > 0 and float(row["predicted"]) > 0
    assert not [r for r in rows(left[0], name) if r["measure"] == "card draw"]


def test_a_part_that_fails_is_told_and_stops_no_other(left):
    out, done = left
    page = (out / "on_a_gpu.txt").read_text()
    assert done.returncode == 1 and done.stdout.endswith(page)
    assert "tests: exit code 4" in page and "no-such-option" in page
    assert page.count("exit code 0") == 5
    assert "wheels: exit code 1: " in page and "2 of the parts failed" in page
    assert "device: the CPU" in page and "torch" in page and "CUDA None" in page
    assert len(page.splitlines()) < 80
    for name in [*DRAWN, *STEPS]:
        assert f"\n{name}.csv\n  " in page


def test_without_a_gpu_nothing_is_measured(tmp_path):
    done = on_a_gpu(tmp_path, "out")
    assert done.returncode == 2 and "PyTorch sees no GPU here" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["out", "nowhere"], "WHEELS is no folder: nowhere"),
        (["--tiny"], "unknown option --tiny"),
        (["a", "b", "c"], "name OUT and WHEELS"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(tmp_path, arguments, told):
    done = on_a_gpu(tmp_path, *arguments)
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
