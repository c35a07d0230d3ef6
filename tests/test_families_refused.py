"""Checkpoints of a part, of another layout, of no family or not of the preset's: one sentence from
each command, before anything is made, and no file."""

import json
import os
import re
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from pairuni_nb.cli import main, parse
from pairuni_nb.diffusion import checkpoint_config
from pairuni_nb.janus import OURS, checkpoint_path
from pairuni_nb.jobs import Plan, Train, run_train
from pairuni_nb.plan import KNOWN_SHAPES, shape_named
from pairuni_nb.settings import PRESETS, TrainSettings

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


def no_pairs(job):
    pytest.fail("pairs were made for a checkpoint that cannot be trained")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", BROKEN)
def test_one_sentence_says_what_is_wrong(name, command, folders, tmp_path, monkeypatch, capfd):
    if (name, command) == ("no codes", "plan"):
        pytest.skip("the plan reads no weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pairuni_nb.jobs.pairs_of", no_pairs)
    line, folder = COMMANDS[command], str(folders[name])
    words = line.split() if "{}" in line else [*line.split(), folder]
    assert main([word.replace("{}", folder) for word in words]) == 2
    said = capfd.readouterr().err.strip().splitlines()
    other = [text for text in said[:-1] if text.strip() and "%|" not in text]  # but for bars
    assert len(other) < 3, other
    assert "Traceback" not in said[-1] and len(said[-1]) < 500
    assert re.search(BROKEN[name][1], said[-1]), said[-1]
    assert os.listdir(tmp_path) == []


class Begun(Exception):
    "The job passed every check."


def begun(*job):
    raise Begun


def trained_on(preset, model, capfd):
    "What `train` says, or nothing where it would begin."
    words = f"train --preset {preset} --model {model} --pairs . --reward scene --lora-rank 0"
    try:
        assert main([*words.split(), "--device", "cpu", "--out", "made"]) == 2
    except Begun:
        return ""
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert "Traceback" not in said and len(said) < 300
    return said


def refuses(said, preset, model, family):
    "A sentence that names preset, checkpoint, both families, and presets that would do."
    told = f"'{preset}' .* {PRESETS[preset].family}, and .*'{model}' .* {family}: start"
    assert re.search(told, said), said
    offered = said.split("--preset ")[1].split(", or name")[0].split(" or ")
    assert offered == [name for name, p in PRESETS.items() if p.family == family]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_its_own_family_alone(preset, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pairuni_nb.jobs.pairs_of", no_pairs)
    monkeypatch.setattr("pairuni_nb.jobs.begin_job", begun)
    (tmp_path / "runs/first").mkdir(parents=True)
    families = set()
    for name in OURS:
        family = checkpoint_config(name).model_type
        saved = f"runs/first/{name}"  # as a run leaves its checkpoint
        shutil.copytree(checkpoint_path(name), saved)
        for model in (name, saved):
            said = trained_on(preset, model, capfd)
            if family == PRESETS[preset].family:
                assert not said, said
            else:
                refuses(said, preset, model, family)
        families.add(family)
    assert len(families) == 3 and os.listdir(tmp_path) == ["runs"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_plans_its_own_family_alone(preset, capfd):
    for model in (*KNOWN_SHAPES, "janus-nano", "nano-emu3"):
        family = shape_named(model).family
        mine = family == PRESETS[preset].family
        words = ["plan", "--preset", preset, "--model", model]
        assert main(words) == (0 if mine else 2)
        if not mine:
            refuses(capfd.readouterr().err.strip(), preset, model, family)


def test_families_of_presets_are_those_of_their_checkpoints():
    for name, p in PRESETS.items():
        if p.model in KNOWN_SHAPES:
            assert shape_named(p.model).family == p.family, name
        else:
            assert checkpoint_config(p.model).model_type == p.family, name


def test_a_preset_with_a_checkpoint_of_another_family_in_python(monkeypatch):
    monkeypatch.setattr("pairuni_nb.jobs.begin_job", begun)
    with pytest.raises(ValueError, match="'nano-emu3' .* emu3, and .* 'janus-nano' .* janus:"):
        run_train(Train("nano-emu3", model="janus-nano", device="cpu"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_job_of_a_preset_is_what_its_command_starts_from(name):
    p, own = PRESETS[name], TrainSettings()
    assert parse(["train", "--preset", name]) == Train.of(name) == Train(name)
    assert parse(["plan", "--preset", name]) == Plan.of(name) == Plan(name)
    assert (Train(name).model, Train(name).reward) == (p.model, p.reward)
    assert (Plan(name).model, Plan(name).card, Plan(name).devices) == (p.model, p.card, p.devices)
    assert Train(name).settings == Plan(name).settings == p.train
    assert Train(name, settings=own, model="x").settings is own  # what is given is taken
    assert Train(name, model="x").model == "x" and Plan(name, devices=3).devices == 3
    changed = Train.of(name, lr=1e-3, out="run", model="x")
    assert changed == replace(Train(name), model="x", out="run", settings=changed.settings)
    assert changed.settings == replace(p.train, lr=1e-3)
    assert parse(["train", "--preset", name, "--reward", ""]).reward == ""  # given, and empty
    with pytest.raises(TypeError, match="stepz"):
        Train.of(name, stepz=3)
