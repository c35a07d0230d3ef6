"""What is asked for is asked everywhere: in rollouts, evaluation and samples, and a checkpoint says so."""

from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from pairuni_nb.evaluate import evaluate
from pairuni_nb.janus import load_janus
from pairuni_nb.jobs import Model, load_model
from pairuni_nb.pairing import make_pairs
from pairuni_nb.rollout import FORM_WANTED, JanusPolicy, Sampling
from pairuni_nb.settings import TrainSettings, preset
from pairuni_nb.step import roll_out, side_rows
from pairuni_nb.train import train
from pairuni_nb.world import records

S = TrainSettings(
    steps=1, pairs_per_step=2, rollouts=2, eval_items=4, instruction="form", temperature=0.7
)


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(records("u", 40, 0), records("g", 40, 0), clusters=8)[0]


@pytest.fixture
def asked(monkeypatch):
    """Every question that a policy is asked."""
    found, real = [], JanusPolicy.text_prompts

    def text_prompts(self, questions, images=None):
        found.extend(questions)
        return real(self, questions, images)

    monkeypatch.setattr(JanusPolicy, "text_prompts", text_prompts)
    return found


def test_the_real_presets_ask_for_the_form_and_nano_does_not():
    for name in ("janus-pro-1b", "janus-pro-7b", "janus-pro-1b-24gb"):
        assert Sampling.of(preset(name).train).instruction == FORM_WANTED
        assert preset(name).train.plain_reward > 0
    assert not Sampling.of(preset("nano").train).instruction
    assert not preset("nano").train.plain_reward
    assert "<think>" in FORM_WANTED and "</answer>" in FORM_WANTED


def test_rollouts_and_evaluation_ask_alike(pairs, asked):
    policy = JanusPolicy(*load_janus())
    truths = side_rows([pairs[i] for i in range(2)], "u")
    roll_out(policy, truths, "u", [0, 1], 0, S)
    result = evaluate(policy, records("u", 2, 0), [], Sampling.of(S))
    assert len(asked) == 4 and all(text.endswith("\n" + FORM_WANTED) for text in asked)
    assert result["protocol"]["instruction"] == FORM_WANTED


def test_a_checkpoint_says_how_it_was_asked(pairs, asked, tmp_path):
    train(pairs, tmp_path / "run", S, device="cpu")
    for name in (tmp_path / "run", tmp_path / "run" / "checkpoint"):
        sampling = load_model(Model(str(name), device="cpu"))[1]
        assert asdict(sampling) == asdict(Sampling.of(S)), name
    sampling = load_model(Model(str(tmp_path / "run"), device="cpu", instruction="be brief"))[1]
    assert sampling.instruction == "be brief" and sampling.temperature == 0.7


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "CMYK"])
def test_images_of_every_mode_are_looked_at(mode):
    policy = JanusPolicy(*load_janus())
    plain = records("u", 1, 0)[0]["image"]
    a = policy.text_prompts(["what?"], [plain.convert(mode)])
    b = policy.text_prompts(["what?"], [plain.convert(mode).convert("RGB")])
    assert a.features.equal(b.features)


def test_sides_are_cut_off_to_whole_pixels_as_deepseek_does():
    policy = JanusPolicy(*load_janus())
    processor = policy.processor.image_processor
    side, least = processor.size["height"], processor.min_size
    for width, height in ((640, 427), (427, 640), (100, 99), (48, 48), (1000, 3)):
        longest = max(width, height)
        wanted = [max(int(length / longest * side), least) for length in (width, height)]
        image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
        assert list(policy.to_size(image).size) == wanted
    same = Image.new("RGB", (side, side))
    assert policy.to_size(same) is same


def test_the_token_of_an_image_is_no_text():
    policy = JanusPolicy(*load_janus())
    with pytest.raises(ValueError, match="stands for an image"):
        policy.image_prompts(["a cat <image_placeholder>"])


def test_a_prompt_that_does_not_fit_is_named_before_the_first_step(pairs, tmp_path):
    rows = [dict(pairs[i]) for i in range(3)]
    rows[1]["prompt"] = "a red square " * 900
    from datasets import Dataset

    with pytest.raises(ValueError, match="the prompt of pair 1 needs .* positions"):
        train(Dataset.from_list(rows), tmp_path / "run", S, device="cpu")
    assert not (tmp_path / "run").exists()
