"""The likeliest mistakes of a first day: each one sentence that says what, where, and the cure."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from program import pairuni


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "What a new user may have, and began to do."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PAIRUNI_DEBUG", raising=False)
    for place in "images", "pictures", "empty", "moved", "run", "notes":
        Path(place).mkdir()
    for i in range(6):
        Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(f"images/{i}.png")
        shutil.copy(f"images/{i}.png", "pictures")
    rows = [dict(id=f"r{i}", image=f"images/{i}.png") for i in range(6)]
    asked = dict(question="which one?", choices=["one", "two"], answer="two")
    write("u.jsonl", [row | asked for row in rows])
    write("g.jsonl", [row | dict(prompt=f"a picture, number {row['id']}") for row in rows])
    write("captions.jsonl", [row | dict(caption="a picture") for row in rows])
    shutil.copy("u.jsonl", "moved")
    Path("empty.jsonl").touch()
    Path("notes.docx").write_text("dear")
    Path("notes/letter.txt").write_text("dear")
    Path("run/settings.json").write_text("{}")
    Path("run/result.json").write_text("{}")
    return tmp_path


MISTAKES = {
    # a wrong file
    "pair u.json g.jsonl --out p": ["u.json", "no such file", "perhaps you meant u.jsonl"],
    "pair notes.docx g.jsonl --out p": ["notes.docx", "reads no .docx", "a .jsonl, .json, .csv"],
    "pair g.jsonl u.jsonl --out p": ["g.jsonl", "columns of G", "name U first, then G"],
    "train --pairs u.jsonl": ["u.jsonl", "Parquet", "a folder that pairuni pair wrote"],
    # a wrong column
    "pair u.jsonl captions.jsonl --out p": [
        "captions.jsonl",
        "row 0 (id r0)",
        "lacks the columns prompt; it has id, image, caption",
        "--columns-g ours=yours",
    ],
    "pair u.jsonl captions.jsonl --columns-g prompt=captoin --out p": ["lacks the columns captoin"],
    "pair u.jsonl captions.jsonl --columns-g caption=prompt --out p": [
        "'caption=' is not of the form ours=yours",
        "prompt",
    ],
    # nothing there
    "pair u.jsonl empty.jsonl --out p": ["empty.jsonl has no rows", "at least one record"],
    "pair u.jsonl empty --out p": ["empty", "any data files", "a .txt beside each picture"],
    # no images found
    "pair moved/u.jsonl g.jsonl --out p": [
        "moved/u.jsonl",
        "row 0 (id r0)",
        "images/0.png",
        "name theirs with --images-u",
    ],
    "pair u.jsonl pictures --out p": ["pictures", "row 0", "a text beside each picture: 1.txt"],
    "sample ask gone.png what?": ["gone.png", "No such file"],
    # a wrong preset, a missing model
    "train --preset janus-pro": ["unknown preset 'janus-pro'", "janus-pro-1b"],
    "train --model janus-pro": ["no folder 'janus-pro'", "owner/name"],
    # a misspelt flag
    "train --rollout 4": ["--rollout", "perhaps you meant --rollouts"],
    "pair --encodr pixels --out p": ["--encodr", "perhaps you meant --encoder"],
    "pair --u u.jsonl --g g.jsonl --out p": ["Unrecognized options: --u"],
    "pair u.jsonl g.jsonl": ["Missing", "--out"],
    # an out folder that exists, a run that is none
    "pair u.jsonl g.jsonl --out notes": ["'notes' is not an empty folder", "choose another"],
    "train --out notes": ["'notes' is not an empty folder", "choose another"],
    "train --out run": ["'run' holds a finished run", "choose another --out"],
    "train --resume notes": ["'notes' holds no settings.json", "that pairuni train began"],
    "train --resume run": ["'run' is finished", "pairuni report run"],
    "report notes": ["'notes'", "holds no settings.json"],
}


@pytest.mark.parametrize("line, words", MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_nothing(line, words, folder, capsys):
    before = sorted(folder.rglob("*"))
    assert pairuni(line) == 2
    said = capsys.readouterr().err
    assert said.startswith("pairuni: ") and said.count("\n") == 1 and len(said) < 450, said
    assert all(word in said for word in words), said
    assert "Arguments similar" not in said and "Errno" not in said, said
    assert sorted(folder.rglob("*")) == before


def test_a_preset_for_a_gpu_does_not_start_on_a_cpu(folder, capsys, monkeypatch):
    """But for somebody who says so, whose run then asks for the model."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("pairuni_nb.jobs.check_checkpoint", lambda name: None)
    assert pairuni("pair --n-u 20 --n-g 20 --out p") == 0
    line = "train --preset janus-pro-1b --pairs p --reward scene --out r --model gone"
    assert pairuni(line) == 2
    said = capsys.readouterr().err
    assert "'janus-pro-1b' is made for a GPU (H100)" in said and "--device cpu" in said
    assert pairuni(f"{line} --device cpu") == 2
    assert "'gone'" in capsys.readouterr().err and not Path("r").exists()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("pairuni_nb.processes.join_processes", lambda d: pytest.fail(f"on {d}"))
    with pytest.raises(pytest.fail.Exception, match="on auto"):
        pairuni(line)
