"""Checkpoints and settings that an Emu3 cannot be trained with: one sentence each."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pairuni_nb.cli import main
from pairuni_nb.diffusion import checkpoint_config, load_checkpoint, policy_for
from pairuni_nb.emu3 import (
    Emu3Policy,
    drawing_size,
    emu3_processor,
    emu3_side,
    film_codes,
    film_images,
    layout,
    new_emu3,
    visual_words,
)
from pairuni_nb.janus import draw_scenes, load_janus
from pairuni_nb.rollout import JanusPolicy, Sampling, gap, noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "An Emu3 with random weights, as transformers saves it."
    out = tmp_path_factory.mktemp("emu3")
    processor = emu3_processor()
    new_emu3(processor).save_pretrained(out)
    processor.save_pretrained(out)
    return out


@pytest.fixture
def changed(folder, tmp_path):
    "The folder, with its config.json changed by a function."

    def change(f):
        out = tmp_path / "changed"
        shutil.copytree(folder, out)
        config = json.loads((out / "config.json").read_text())
        f(config)
        (out / "config.json").write_text(json.dumps(config))
        return str(out)

    return change


def test_a_checkpoint_comes_back_as_it_was(folder):
    model, processor = load_checkpoint(str(folder))
    fresh = new_emu3(emu3_processor())
    for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    policy, ours = policy_for(model, processor), Emu3Policy(fresh, emu3_processor())
    assert isinstance(policy, Emu3Policy)
    assert (policy.area, policy.image_tokens) == (ours.area, ours.image_tokens) == (48 * 48, 45)
    assert policy.picture_pixels == 48 * 48
    assert torch.equal(policy.words, ours.words)
    assert torch.equal(policy.boi, ours.boi)
    own = model.generation_config
    assert (own.guidance_scale, own.max_new_tokens) == (3, 24)


def test_weights_come_in_the_precision_they_were_saved_in_or_the_one_asked_for(folder, tmp_path):
    model, processor = load_checkpoint(str(folder), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for asked, dtype in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        assert load_checkpoint(str(tmp_path), dtype=asked)[0].dtype == dtype


def test_without_a_name_it_is_janus_nano():
    assert isinstance(policy_for(*load_checkpoint()), JanusPolicy)


def test_another_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "chameleon"}')
    with pytest.raises(
        ValueError, match="'chameleon' checkpoint, not a Janus, an Emu3 or a masked Janus: choose"
    ):
        load_checkpoint(str(tmp_path))


def test_a_policy_takes_its_own_family(folder):
    with pytest.raises(ValueError, match="needs a Janus checkpoint, and this one is 'emu3'"):
        JanusPolicy(*load_checkpoint(str(folder)))
    with pytest.raises(ValueError, match="needs an Emu3 checkpoint, and this one is 'janus'"):
        Emu3Policy(*load_janus())


@pytest.mark.parametrize(
    "word", ["<|visual token 000000|>", "<image>", "<|extra_200|>", "<|image token|>"]
)
def test_a_vocabulary_without_image_tokens(changed, word):
    path = changed(lambda config: config["vocabulary_map"].pop(word))
    with pytest.raises(ValueError, match="vocabulary_map .* names no .*it cannot draw") as e:
        checkpoint_config(path)
    assert word in str(e.value)


def test_no_vocabulary_at_all(changed):
    path = changed(lambda config: config.pop("vocabulary_map"))
    with pytest.raises(ValueError, match="vocabulary_map .* names no <image>"):
        load_checkpoint(path)


def test_codes_out_of_order(changed):
    def swap(config):
        words = config["vocabulary_map"]
        a, b = "<|visual token 000003|>", "<|visual token 000004|>"
        words[a], words[b] = words[b], words[a]

    with pytest.raises(ValueError, match="128 visual tokens .* do not follow one another"):
        load_checkpoint(changed(swap))


def test_fewer_words_than_codes():
    words = {word: i for i, word in enumerate(["<image>", "<|image start|>", "<|image token|>"])}
    words |= {"<|extra_200|>": 3, "<|extra_201|>": 4, "<|image end|>": 5}
    words |= {f"<|visual token {i:06d}|>": 6 + i for i in range(4)}
    assert visual_words(words, 4) == (6, [3, 4, 5])
    with pytest.raises(ValueError, match="the 5 visual tokens"):
        visual_words(words, 5)


@pytest.mark.parametrize("name", ["bos", "pad", "eos"])
def test_a_generation_config_that_lacks_an_id(folder, name):
    model, processor = load_checkpoint(str(folder))
    setattr(model.generation_config, f"{name}_token_id", None)
    with pytest.raises(ValueError, match=f"names no {name} token id"):
        Emu3Policy(model, processor)


def test_of_several_ends_each_ends_an_answer_and_the_first_a_drawing(folder):
    model, processor = load_checkpoint(str(folder))
    model.generation_config.eos_token_id = [9, 7]
    policy = Emu3Policy(model, processor)
    assert policy.eos.tolist() == [9, 7]
    assert policy.words[[-1]].tolist() == [9]


@pytest.mark.parametrize("task", ["u", "g"])
def test_weights_in_bfloat16_keep_a_head_in_float32(folder, task):
    policy = Emu3Policy(*load_checkpoint(str(folder), dtype=torch.bfloat16))
    assert policy.model.lm_head.weight.dtype == torch.float32
    if task == "g":
        prompts = policy.image_prompts(["a red star"])
    else:
        prompts = policy.text_prompts(["how many?"])
    r = policy.sample(prompts, 2, noise(0, 0, [0], 2, 45), Sampling(max_new_tokens=6))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logp, states = policy(r), policy.states(r).float()
        exact = states.double() @ policy.model.lm_head.weight.double().T
        assert (policy.head("u", states) - exact).abs().max() < 1e-5
    assert logp.dtype == torch.float32 and gap(r, logp) < 0.1


@pytest.mark.parametrize(
    ("least", "most", "usual", "area", "side"),
    [
        (64, 10**6, None, 720 * 720, 90),
        (64, 10**6, 48 * 48, 48 * 48, 6),
        (80 * 80, 10**6, 48 * 48, 80 * 80, 10),
        (64, 32 * 32, None, 32 * 32, 4),
    ],
)
def test_a_drawing_is_as_large_as_usual_within_what_may_be_read(least, most, usual, area, side):
    processor = emu3_processor()
    processor.image_processor.min_pixels, processor.image_processor.max_pixels = least, most
    vars(processor).pop("image_area", None)
    if usual:
        processor.image_area = usual
    assert drawing_size(processor, 8) == (area, side, side)


def test_codes_per_side_follow_the_checkpoints_own_factor(folder, changed):
    assert emu3_side(str(folder)) == 6
    path = changed(lambda config: config["vq_config"].update(channel_multiplier=[1, 1, 1]))
    assert emu3_side(path) == 12


def test_a_picture_is_read_the_same_beside_a_larger_one():
    policy = policy_for(*load_checkpoint("nano-emu3"))
    rng = np.random.default_rng(0)
    sizes = [(48, 48), (96, 32), (30, 70), (48, 48)]
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    asked = ["what colour is top?"] * 4
    together = policy.text_prompts(asked, pictures)
    assert len(together.attention_mask.sum(1).unique()) == 3
    for i, picture in enumerate(pictures):
        alone = policy.text_prompts(asked[:1], [picture]).input_ids[0]
        assert torch.equal(together.input_ids[i, -len(alone) :], alone)
        assert policy.model.config.image_token_id not in alone


def test_no_more_pixels_are_read_at_a_time_than_memory_holds(folder, monkeypatch):
    policy, read = policy_for(*load_checkpoint(str(folder))), []

    def tokens(pixels, sizes):
        assert len(pixels) == len(sizes) and pixels.shape[2:] == (1024, 512)
        read.append(len(pixels))
        return pixels[:, 0, 0, 0].long()

    monkeypatch.setattr(policy.model.model, "get_image_tokens", tokens)
    numbers = torch.arange(9).view(9, 1, 1, 1).expand(9, 3, 1024, 1024)
    sizes = torch.tensor([[1024, 512]] * 9)
    assert policy.read_pictures(numbers, sizes).tolist() == list(range(9))
    assert read == [4, 4, 1]


def test_pictures_of_more_than_a_part_are_coded_and_come_back_clamped():
    vq = load_checkpoint("nano-emu3")[0].model.vqmodel
    x = draw_scenes(np.random.default_rng(0), 70)[1]
    codes = film_codes(vq, x)
    assert codes.shape == (70, 36) and torch.equal(codes[66:], film_codes(vq, x[66:]))
    drawn = film_images(vq, codes)
    assert np.abs(drawn[66:].astype(int) - film_images(vq, codes[66:])).max() <= 1
    assert np.abs(drawn / 127.5 - 1 - x.permute(0, 2, 3, 1).numpy()).mean() < 0.1
    vq.decoder.conv_out.bias.data[:] = torch.tensor([9.0, -9.0, 0.0])
    drawn = film_images(vq, codes[:2])
    assert (drawn[..., 0] == 255).all() and (drawn[..., 1] == 0).all()


def test_the_frame_of_a_prompt():
    policy = policy_for(*load_checkpoint("nano-emu3"))
    told = policy.processor.tokenizer.decode
    opens = "<|image start|>6*6<|image token|>"
    drawn = policy.image_prompts(["a red star top"]).input_ids[0]
    assert told(drawn) == f"<|extra_203|>a red star top{opens}"
    white = Image.new("RGB", (48, 48), "white")
    asked = policy.text_prompts(["how many?\none, two"], [white]).input_ids[0]
    text = told(asked)
    assert text.startswith(f"<|extra_203|>USER: {opens}<|visual token")
    assert text.endswith("<|extra_200|><|extra_201|><|image end|>how many?\none, two ASSISTANT:")
    assert (asked == policy.words[policy.codes]).sum() == 6  # ends of rows
    assert told(policy.text_prompts(["why?"]).input_ids[0]) == "<|extra_203|>USER: why? ASSISTANT:"


def test_a_layout_by_hand():
    assert layout(1, 1) == {1: 0, 2: 1, 3: 2, 4: 3}
    assert layout(2, 3) == {3: 0, 7: 0, 8: 1, 9: 2, 10: 3}
    assert sorted(layout(6, 6)) == [6, 13, 20, 27, 34, 41, 42, 43, 44]


def refused(capsys, *argv):
    assert main([*map(str, argv)]) == 2
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    return said.splitlines()[-1]  # a bar of the loading may stand before it


def test_the_eyes_look_at_no_more_pictures_at_a_time_than_memory_holds(folder):
    policy = policy_for(*load_checkpoint(str(folder)))
    rng, looked = np.random.default_rng(0), []
    photos = list(rng.integers(0, 256, (5, 48, 48, 3), np.uint8))
    at_once = policy.frozen_eyes()(photos)
    policy.picture_pixels = 2**20  # about as many as 1,024 pixels a side
    encoder = policy.model.model.vqmodel.encoder
    encoder.register_forward_pre_hook(lambda _, given: looked.append(len(given[0])))
    assert torch.allclose(policy.frozen_eyes()(photos), at_once, atol=1e-5)
    assert looked == [2, 2, 1]


def test_the_eyes_see_each_picture_at_one_size_and_alone(folder):
    policy = policy_for(*load_checkpoint(str(folder)))
    rng = np.random.default_rng(0)
    photos = [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((48, 48), (90, 30))
    ]
    eyes = policy.frozen_eyes()
    seen = eyes(photos)
    assert torch.allclose(seen.norm(dim=1), torch.ones(2))
    assert torch.allclose(seen, torch.cat([eyes([photo]) for photo in photos]), atol=1e-6)
    assert torch.allclose(seen, eyes([photo.resize((48, 48)) for photo in photos]), atol=1e-6)


def test_there_is_no_tower_to_train(capsys, folder, tmp_path):
    out = tmp_path / "run"
    started = "train", "--preset", "nano-emu3", "--model", folder, "--out", out
    said = refused(capsys, *started, "--train-vision")
    assert "no vision tower to train: leave train_vision off" in said
    assert not out.exists()


def test_the_plan_counts_an_emu3_by_arithmetic_alone(capsys, folder):
    assert main(["plan", "--preset", "nano-emu3", "--model", str(folder)]) == 0
    small = capsys.readouterr().out
    assert main(["plan", "--preset", "emu3-8b", "--model", "BAAI/Emu3-Chat-hf"]) == 0
    real = capsys.readouterr().out
    assert main(["plan", "--preset", "emu3-8b"]) == 0
    assert capsys.readouterr().out == real  # the two checkpoints are of one shape
    assert "8,762,751,807 parameters" in real
    assert "1,400,443 parameters" in small
