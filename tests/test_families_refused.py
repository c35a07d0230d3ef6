"""Checkpoints of a part, of another layout or of no family: one sentence from each command, and no file."""

import json
import os
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from pairuni_nb.cli import main
from pairuni_nb.janus import checkpoint_path

COMMANDS = {
    "train": "train --device cpu --out made --model",
    "evaluate": "evaluate --device cpu --items 4 --out made --checkpoint",
    "draw": "sample --device cpu --checkpoint {} draw star --out made.png",
    "plan": "plan --preset nano --model",
}


def config_says(**changes):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def without_words(*words):
    def change(folder):
        file = folder / "config.json"
        config = json.loads(file.read_text())
        for word in words or list(config["vocabulary_map"]):
            del config["vocabulary_map"][word]
        file.write_text(json.dumps(config))

    return change


def without_codes(folder):
    file = folder / "model.safetensors"
    kept = {name: x for name, x in load_file(file).items() if "vqmodel" not in name}
    save_file(kept, file, metadata=dict(format="pt"))


def without_processor(folder):
    (folder / "processor_config.json").unlink()


BROKEN = {
    "no words": (without_words(), "vocabulary_map of this Emu3's config.json names no <image>"),
    "one word": (without_words("<|extra_200|>"), r"names no <\|extra_200\|>: without its"),
    "original": (config_says(model_type="Emu3"), "in BAAI's original layout, .* BAAI/Emu3-Chat-hf"),
    "its codes": (config_says(model_type="Emu3VisionVQ"), "original layout, .* hold its codes too"),
    "text half": (config_says(model_type="emu3_text_model"), "is a part .* model_type 'emu3'"),
    "Janus's VQ": (config_says(model_type="janus_vqgan"), "is a part .* model_type 'janus'"),
    "chameleon": (
        config_says(model_type="chameleon"),
        "'chameleon' checkpoint, not a Janus, an Em",
    ),
    "no processor": (without_processor, "tokenizer or image processor is not whole .*fetch its"),
    "no codes": (without_codes, "incomplete: it lacks 331 .*, all in model.vqmodel, the first"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Copies of nano-emu3, each with one thing wrong."
    place, made = tmp_path_factory.mktemp("broken"), {}
    for name, (change, _) in BROKEN.items():
        made[name] = place / name.replace(" ", "-").replace("'", "")
        shutil.copytree(checkpoint_path("nano-emu3"), made[name])
        change(made[name])
    return made


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", BROKEN)
def test_one_sentence_says_what_is_wrong(name, command, folders, tmp_path, monkeypatch, capfd):
    if (name, command) == ("no codes", "plan"):
        pytest.skip("the plan reads no weights")
    monkeypatch.chdir(tmp_path)
    line, folder = COMMANDS[command], str(folders[name])
    words = line.split() if "{}" in line else [*line.split(), folder]
    assert main([word.replace("{}", folder) for word in words]) == 2
    said = capfd.readouterr().err.strip().splitlines()
    other = [text for text in said[:-1] if text.strip() and "%|" not in text]  # but for bars
    assert len(other) < 3, other
    assert "Traceback" not in said[-1] and len(said[-1]) < 500
    assert re.search(BROKEN[name][1], said[-1]), said[-1]
    assert os.listdir(tmp_path) == []
