"""Two processes do what one does, whatever the policy: revealed step by step, or no transformer."""

import json
import socket

import pytest

from pairuni_nb.pairing import make_pairs, save_pairs
from pairuni_nb.world import records
from program import Python
from two_processes import HERE

pytestmark = pytest.mark.long

CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import two_families; "
)
CODE += "two_families.main(Path(sys.argv[2]))"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    pairs, _ = make_pairs(records("u", 40, 0), records("g", 40, 0), clusters=8)
    save_pairs(pairs, folder / "pairs", {}, {})
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(WORLD_SIZE=2, MASTER_ADDR="localhost", MASTER_PORT=port).items():
            patch.setenv(name, str(value))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        for rank in "01":
            patch.setenv("RANK", rank)
            patch.setenv("LOCAL_RANK", rank)
            both.append(Python(CODE, HERE, folder, cwd=HERE))
    for process in both:
        assert process.wait() == 0, process.said()[1][-3000:]
    return json.loads((folder / "said.json").read_text())


def test_a_masked_models_steps_are_shared_like_its_tokens(said):
    assert said["masked"]["differ"] == []
    assert said["masked"]["steps"] == 8  # the ninth: every step of a drawing was there


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("family", ["masked", "emu3"])
def test_two_processes_make_the_update_of_one(said, family, way):
    assert said[family]["differ"] == []
    assert said[family][way] < 1e-6 < 1e-3 < said[family]["moved"]


def test_two_processes_train_a_policy_of_your_own(said):
    assert said["bag"]["differ"] == []
    assert said["bag"]["ddp"] < 1e-6 < 1e-3 < said["bag"]["moved"]
