"""The loop, its saves and its commands with other families: the trainer knows none of them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import AutoConfig, JanusConfig, JanusForConditionalGeneration, JanusProcessor

from hand_made import pair
from pairuni_nb import evaluate, processes, step, train
from pairuni_nb.cli import main
from pairuni_nb.diffusion import FAMILIES, load_checkpoint, policy_for
from pairuni_nb.janus import family_config, load_janus, load_weights
from pairuni_nb.jobs import Train, resume, run_train
from pairuni_nb.pairing import as_dataset, make_pairs
from pairuni_nb.prepare import prepare
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.rollout import JanusPolicy
from pairuni_nb.run_folder import read_metrics
from pairuni_nb.settings import TrainSettings
from pairuni_nb.train import default_rewards
from pairuni_nb.world import records

pytestmark = pytest.mark.long

NAME = "nano-emu3"
TRUNKS = {NAME: "text_model", "nano-diffusion": "language_model"}
each_family = pytest.mark.parametrize("name, trunk", TRUNKS.items())
S = TrainSettings(
    steps=3,
    pairs_per_step=2,
    rollouts=3,
    micro_batch=4,
    cfg_weight=3.0,
    eval_every=2,
    eval_items=4,
    save_every=1,
)


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(records("u", 40, 0), records("g", 40, 0), clusters=8)[0]


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    "Where each family starts; the masked model looks less often than the package's, which is cheap."
    model, processor = load_checkpoint("nano-diffusion")
    model.config.text_steps, model.config.image_steps = 2, 3
    few = str(tmp_path_factory.mktemp("few looks"))
    model.save_pretrained(few)
    processor.save_pretrained(few)
    return {NAME: NAME, "nano-diffusion": few}


@pytest.mark.parametrize("module", [train, step, evaluate, processes])
def test_the_trainer_names_no_family(module):
    code = Path(module.__file__).read_text()
    code = re.sub(r'#.*|"[^"\n]*"', "", code)  # comments, and strings as docstrings are
    assert not re.search(
        r"emu3|diffusion|masked|JanusPolicy|load_janus|vision_model|vqmodel", code, re.IGNORECASE
    )


def weights(folder):
    return load_checkpoint(str(folder))[0].state_dict()


@each_family
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(name, trunk, starts, pairs, tmp_path):
    start, s = starts[name], replace(S, beta=0.05, num_iterations=2, seed=2)

    def breaks(done, *_):
        if done == 2:
            raise RuntimeError("stop")

    train.train(pairs, tmp_path / "whole", s, start, device="cpu")
    with pytest.raises(RuntimeError, match="stop"):
        train.train(pairs, tmp_path / "two", s, start, device="cpu", callback=breaks)
    train.train(pairs, tmp_path / "two", s, start, device="cpu", resume=True)
    one, two = (weights(tmp_path / run / "checkpoint") for run in ("whole", "two"))
    start = weights(start)
    assert all(torch.equal(one[part], two[part]) for part in one)
    moved = {part for part in one if not torch.equal(one[part], start[part])}
    assert any(trunk in part for part in moved)
    assert "lm_head.weight" in moved
    assert not any("vqmodel" in part for part in moved)
    lines = [m for m in read_metrics(tmp_path / "whole") if "gap_u" in m]
    assert len(lines) == 3
    assert max(max(m["gap_u"], m["gap_g"]) for m in lines) < 1e-3


@each_family
def test_a_thin_run_in_bfloat16(name, trunk, starts, pairs, tmp_path, need, capsys):
    need("peft")
    more = dict(lora_rank=4, precision="bf16", gradient_checkpointing=True, lr=1e-2)
    out = tmp_path / "run"
    train.train(pairs, out, replace(S, steps=1, **more), starts[name], device="cpu")
    start, after = weights(starts[name]), weights(out / "checkpoint")
    moved = {part for part in start if not torch.equal(start[part], after[part])}
    assert moved
    assert all(f"{trunk}.layers" in part for part in moved)
    # what came of it answers and draws, as it says itself that it was sampled
    told = ["--checkpoint", str(out), "--seed", "1"]
    picture = tmp_path / "drawn.png"
    assert main(["sample", "draw", "a red star top", "--out", str(picture), *told]) == 0
    assert np.asarray(Image.open(picture)).std() > 10
    Image.fromarray(np.zeros((30, 60, 3), np.uint8)).save(tmp_path / "black.png")
    asked = ["sample", "ask", str(tmp_path / "black.png"), "what colour is top?"]
    assert main([*asked, "--n", "2", *told]) == 0
    scores = tmp_path / "scores.json"
    assert main(["evaluate", "--items", "4", "--out", str(scores), *told]) == 0
    assert json.loads(scores.read_text())["protocol"]["cfg_weight"] == 3


@each_family
def test_one_step_moves_what_is_rewarded(name, trunk, starts, pairs):
    "Plain ascent on one batch raises the log-probs of what earned more than its group."
    made = prepare(starts[name], replace(S, lr=1e-3), Accelerator(cpu=True))
    assert isinstance(made.policy, FAMILIES[made.policy.family][2])
    s = replace(S, pairs_per_step=4, rollouts=4, micro_batch=64)
    rewards = dict(u=answer_accuracy, g=scene_reward)
    rows, ids = [pairs[i] for i in range(4)], list(range(4))
    _, sides = step.train_step(
        made.policy, made.opt, rows, ids, 0, s, rewards, Accelerator(cpu=True)
    )
    with torch.no_grad():
        for side in sides.values():
            rise = (made.policy(side.rollouts) - side.rollouts.logp).sum(1)
            assert (rise * side.advantages).sum() > 0


def test_drawings_without_a_verifier_are_compared_by_the_codes_latents():
    policy = policy_for(*load_checkpoint(NAME))
    rows = as_dataset([pair("aligned", 1.0, i, i) for i in range(3)])
    reward = default_rewards(policy, rows)["g"]
    wide, small = (Image.new("RGB", size, "red") for size in ((48, 48), (31, 90)))
    same, other = np.asarray(wide), np.asarray(Image.new("RGB", (48, 48), "blue"))
    truths = [dict(image=wide), dict(image=small), dict(image=wide)]
    values = reward([""] * 3, np.stack([same, same, other]), truths)
    assert values[0] > 0.999
    assert values[1] > 0.999  # the record's picture is brought to the drawing's size
    assert values[2] < 0.9


class MyConfig(JanusConfig):
    model_type = "my_janus"


class MyJanus(JanusForConditionalGeneration):
    config_class = MyConfig


class MyPolicy(JanusPolicy):
    family, named = "my_janus", "a Janus of mine"


AutoConfig.register("my_janus", MyConfig)


def my_config(path):
    return family_config(path, MyConfig, "a Janus of mine")


def load_mine(path, device="cpu", dtype=None):
    return load_weights(path, my_config(path), MyJanus, JanusProcessor, device, dtype)


@pytest.fixture
def my_folder(tmp_path, monkeypatch):
    "A checkpoint of a family that this program alone knows."
    janus, processor = load_janus()
    said = janus.config.to_dict()
    said.pop("model_type")
    mine = MyJanus(MyConfig(**said))
    mine.load_state_dict(janus.state_dict())
    mine.generation_config = janus.generation_config
    mine.save_pretrained(tmp_path / "mine")
    processor.save_pretrained(tmp_path / "mine")
    monkeypatch.setitem(FAMILIES, MyPolicy.family, (my_config, load_mine, MyPolicy))
    return str(tmp_path / "mine")


def test_a_family_of_your_own_needs_one_line(my_folder, pairs, tmp_path):
    out, s = tmp_path / "run", replace(S, steps=2, eval_every=9)

    def breaks(*_):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train.train(pairs, out, s, my_folder, device="cpu", callback=breaks)
    resume(out, device="cpu")
    assert type(policy_for(*load_checkpoint(str(out / "checkpoint")))) is MyPolicy
    assert main(["evaluate", "--items", "4", "--checkpoint", str(out), "--device", "cpu"]) == 0
    with pytest.raises(ValueError, match="'nano' .* janus, and .* of the family my_janus: call tr"):
        run_train(Train("nano", model=my_folder, device="cpu", out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()
