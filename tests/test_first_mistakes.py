"""A stranger's first mistakes: what was meant is named, and nothing is begun for a text that is empty."""

import csv
import re

import numpy as np
import pytest
from PIL import Image
from program import pairuni

from pairuni_nb import pairing
from pairuni_nb.cli import COMMANDS, JOBS, main
from pairuni_nb.pairing import load_pairs

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")
TINY = "--steps 1 --pairs-per-step 2 --rollouts 2 --eval-items 4 --device cpu"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Toy pairs, built once."""
    out = tmp_path_factory.mktemp("pairs") / "toy pairs"
    assert main(["pair", "--out", str(out), *"--n-u 40 --n-g 40 --clusters 8".split()]) == 0
    return out


def said(capsys, line):
    """The sentence with which a command refuses."""
    capsys.readouterr()
    assert pairuni(line) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence


def test_every_command_is_known_by_its_name():
    """So that a mistyped flag is answered with its command's own help."""
    assert [job.__name__.lower() for job in JOBS] == COMMANDS


GROUPS = dict(train="One run of Pair.GRPO", plan="One run of Pair.GRPO")
GROUPS |= dict(pair="How records become pairs", evaluate="A checkpoint and how to sample")


@pytest.mark.parametrize("command", GROUPS)
def test_a_group_of_flags_is_called_by_its_own_words(command, capsys):
    """tyro hands a comment down to a field that has none, and `settings` was a place on the Hub."""
    assert pairuni(f"{command} --help") == 0
    shown = " ".join(re.sub("[-─│╭╮╰╯]+", " ", capsys.readouterr().out).split())
    assert re.search(f"(settings|model) options {GROUPS[command]}", shown), shown


def test_a_mistyped_run_is_told_its_name(capsys, tmp_path):
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/settings.json").write_text("{}")
    for line in ("train --resume runs/mien", "report runs/mien", "compare runs/mine runs/mien"):
        told = said(capsys, line)
        assert "no folder 'runs/mien', perhaps you meant runs/mine" in told, told
    assert "no folder 'far/off': name one" in said(capsys, "report far/off")
    (tmp_path / "runs/notes").mkdir()
    assert "'runs/notes' holds no settings.json" in said(capsys, "compare runs/mine runs/notes")
    assert "pairuni train --resume runs/mine" in said(capsys, "report runs/mine")


def test_mistyped_pairs_are_told_their_name(capsys, tmp_path):
    (tmp_path / "my_pairs").mkdir()
    assert "perhaps you meant my_pairs" in said(capsys, "train --pairs my_pair")


@pytest.mark.parametrize("text", ["''", "'  '"])
def test_an_empty_text_asks_for_nothing(text, capsys, tmp_path):
    Image.new("RGB", (24, 24)).save(tmp_path / "a.png")
    assert "no prompt: say what to draw" in said(capsys, f"sample draw {text}")
    assert "no question: ask about the image" in said(capsys, f"sample ask a.png {text}")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def table(folder, choices):
    """Questions as a CSV, captions beside their pictures."""
    rng = np.random.default_rng(0)
    (folder / "g").mkdir()
    with open(folder / "u.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image", "question", "choices", "answer"])
        for i in range(12):
            image = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8))
            image.save(folder / f"g/{i}.png")
            (folder / f"g/{i}.txt").write_text(f"thing {i}, on a table")
            out.writerow([f"g/{i}.png", f"what stands out in {i}?", choices, "a cat"])


def test_choices_in_a_cell_are_shown_how(capsys, tmp_path):
    table(tmp_path, "a cat|a dog")
    told = said(capsys, "pair u.csv g --out pairs")
    assert "row 2: choices are 'a cat|a dog'" in told and 'as ["red", "blue"]' in told, told


def test_what_rules_cannot_write_is_said_and_what_comes_next(capsys, tmp_path):
    table(tmp_path, '["a cat", "a dog"]')
    assert pairuni("pair u.csv g --out 'my pairs' --clusters 6 --delta 0 --seed 1") == 0
    told = capsys.readouterr().out
    assert re.search(r"dropped \(rules cannot write .*--complete llm can\) [1-6]", told), told
    assert told.endswith("written to my pairs: train with --pairs 'my pairs'\n")


def test_a_run_is_stopped_while_its_pairs_are_read(pairs, capsys, monkeypatch):
    """Between the line that names the run folder and the first step, Ctrl-C still says how to go on."""

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        real, calls = pairing.load_pairs, []

        def second(path, look=True):
            calls.append(path)
            return real(path) if len(calls) == 1 else stopped()

        m.setattr(pairing, "load_pairs", second)
        assert pairuni(f"train --pairs '{pairs}' --out run {TINY}") == 130
    told = capsys.readouterr().err
    assert "nothing was saved yet" in told and "pairuni train --resume run, from its start" in told
    assert pairuni("train --resume run --device cpu") == 0


def test_a_picture_is_looked_at_once(pairs, monkeypatch):
    """Not again in the run's own copy, whose digest `train` compares; its rows are the same."""
    looked, real = [], pairing.read_image
    monkeypatch.setattr(pairing, "read_image", lambda *a, **k: looked.append(1) or real(*a, **k))
    rows = load_pairs(pairs)
    once = len(looked)
    assert once >= len(rows)
    assert pairuni(f"train --pairs '{pairs}' --out run {TINY}") == 0
    assert len(looked) == 2 * once
    assert list(load_pairs("run/pairs", look=False)["u_id"]) == list(rows["u_id"])
