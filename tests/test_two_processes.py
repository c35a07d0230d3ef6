"""Two processes do what one does."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pairuni_nb.processes import launch
from two_processes import HERE, SMALL, by_one, by_two, same_run

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "What two processes left, and beside it the run of one."
    tmp = tmp_path_factory.mktemp("two")
    by_one(tmp)
    by_two(tmp, ["--config_file", HERE.parent / "configs" / "8_gpus.yaml"], "--shard")
    return tmp


def test_two_processes_draw_what_one_draws(folder):
    assert json.loads((folder / "said.json").read_text())["rollouts"]


@pytest.mark.parametrize("name", ["ddp fp32", "fsdp fp32", "ddp bf16", "fsdp bf16"])
def test_two_processes_make_the_update_of_one(folder, name):
    said = json.loads((folder / "said.json").read_text())[name]
    assert said["apart"] < 1e-6 < 1e-3 < said["moved"] and said["stats"] < 1e-5


def test_a_policy_goes_back_to_its_state_as_copies_and_sharded(folder):
    assert json.loads((folder / "said.json").read_text())["resumed"] == dict(ddp=0, fsdp=0)


def test_a_sharded_run_is_the_run_of_one(folder):
    same_run(folder / "one", folder / "run")
    line = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert line["reward_g/scene_reward 2"] == pytest.approx(0.75 * line["reward_g"], abs=1e-6)
    assert {p.name for p in (folder / "run").iterdir()} == {
        p.name for p in (folder / "one").iterdir()
    } | {"pairs", "report.html"}


def test_two_processes_look_into_a_step_as_one(folder):
    one, two = (folder / run / "rollouts/000001" for run in ("one", "run"))
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    for file in sorted(one.iterdir()):
        if file.suffix == ".png":  # some were sampled by the other process
            a, b = (np.asarray(Image.open(look / file.name), int) for look in (one, two))
            assert np.abs(a - b).max() <= 1, file.name
            continue
        a, b = (json.loads((look / file.name).read_text()) for look in (one, two))
        assert a.keys() == b.keys() and a.get("texts") == b.get("texts")
        for name in ("rewards", "advantages", "logp_before", "logp_after"):
            assert np.allclose(a[name], b[name], atol=1e-3), (file.name, name)


def test_sharding_one_process_is_refused(tmp_path):
    with pytest.raises(ValueError, match="several processes"):
        launch(replace(SMALL, shard=True), tmp_path, "cpu", None)
