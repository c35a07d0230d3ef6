"""Bad input to `pairuni` ends in one sentence that names it, exit code 2, and nothing half-written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pairuni_nb.jobs import Train, check_place, check_train, named_rewards, run_train
from pairuni_nb.pairing import load_pairs
from pairuni_nb.records import save_records
from pairuni_nb.rollout import Policy
from pairuni_nb.settings import TrainSettings
from pairuni_nb.run_folder import read_metrics, without_cost
from pairuni_nb.world import records
from program import pairuni

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")
TINY = (
    "--steps 2 --pairs-per-step 2 --rollouts 2 --eval-items 8 --eval-every 1 --save-every 1 "
    "--device cpu"
)
OWN = f"{TINY} --cfg-weight 3 --max-new-tokens 20"  # not as janus-nano is sampled


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A small folder of toy pairs, built once."""
    out = tmp_path_factory.mktemp("pairs") / "toy"
    assert pairuni(f"pair --out {out} --n-u 60 --n-g 60 --clusters 12") == 0
    return out


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory):
    """A finished run, made once; its guidance and answers' length are not janus-nano's."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert pairuni(f"train --pairs {pairs} --out {out} {OWN}") == 0
    return out


def everything(folder):
    """Each file and folder below, with its size and time."""
    return {
        p: (p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.name != "__pycache__"
    }


def refuses(capsys, folder, line, *words):
    """One sentence on stderr that has the words, exit code 2, and the folder as it was."""
    before = everything(folder)
    capsys.readouterr()
    code, said = pairuni(line), capsys.readouterr().err
    *bars, last = said.splitlines()
    assert code == 2 and last.startswith("pairuni: ") and all(word in last for word in words), said
    assert all("%|" in bar for bar in bars if bar), said
    assert everything(folder) == before


@pytest.mark.parametrize(
    "line, words",
    [
        ("train --preset mega", ["unknown preset 'mega'", "nano"]),
        ("train --preset=janus-pro-7b", ["janus-pro-7b", "pairs of your own", "--pairs"]),
        ("train --weighting cubic", ["unknown weighting 'cubic'", "sqrt"]),
        ("train --rollouts 1", ["rollouts", "1"]),
        ("train --lr -1", ["lr", "-1"]),
        ("pair --n-u 99999999999 --out x", ["n_u must be at most 1,000,000", "99,999,999,999"]),
        ("pair --top-n 99999999999 --out x", ["top_n must be at most 1,000,000"]),
        ("pair --seed 99999999999 --out x", ["seed must be at most 4,294,967,295"]),
        ("train --rollouts 99999999999", ["rollouts must be at most 1,000,000"]),
        ("train --rollouts 90000", ["pairs_per_step x rollouts must be at most 1,000,000"]),
        ("sample --n 99999999999 draw 'a star'", ["n must be at most 1,000"]),
        ("sample --seed 99999999999 draw 'a star'", ["seed must be at most 4,294,967,295"]),
        ("sample --max-new-tokens 9999999 draw 'a star'", ["max_new_tokens must be at most"]),
        ("evaluate --items 99999999999", ["items must be at most 1,000,000"]),
        ("evaluate --geneval x --out y --samples 9999", ["samples must be at most 1,000"]),
        ("train --clip-eps-high -1", ["clip_eps_high must be positive", "-1"]),
        ("pair --clusters 0 --out x", ["clusters must be positive", "0"]),
        ("train --device tpu", ["unknown device 'tpu'"]),
        ("train --reward-device tpu", ["unknown device 'tpu'"]),
        ("train --weighting cube", ["unknown weighting 'cube'", "sqrt"]),
        ("train --beta -1", ["beta", "-1"]),
        ("train --clip-eps inf", ["clip_eps", "inf"]),
        ("train --temperature nan", ["temperature", "nan"]),
        ("train --seed -1", ["seed", "-1"]),
        ("pair --seed -1 --out x", ["seed", "-1"]),
        ("evaluate --seed -1", ["seed", "-1"]),
        ("sample draw 'a red circle' --seed -1", ["seed", "-1"]),
        ("pair --complete llm --dry-run --price-out nan --out x", ["prices", "nan"]),
        ("plan --card 3060", ["unknown card '3060'", "RTX 4090"]),
        ("sample draw 'a red circle' --out drawing.xyz", ["drawing.xyz", ".png"]),
        ("sample draw 'a red circle' --out drawing", ["drawing", ".png"]),
        ("sample draw 'a red circle' --out drawing.xbm", ["drawing.xbm", ".png"]),
        ("sample draw 'a red circle' --out drawing.wmf", ["drawing.wmf", ".png"]),
        ("train --tracker notes", ["unknown tracker 'notes'"]),
        ("train --pairs nowhere", ["no pairs at nowhere"]),
        ("train --resume nowhere", ["nowhere", "cannot resume"]),
        ("train --resume nowhere --steps 3", ["--steps", "leave out"]),
        ("train --stepz 3", ["--stepz", "perhaps you meant --steps"]),
        ("train --steps many", ["--steps", "'many'"]),
        ("pair --delta 1.5 --out x", ["delta", "1.5", "[0, 1]"]),
        ("pair --delta -0.1 --out x", ["delta", "-0.1", "[0, 1]"]),
        ("pair --mix pear --out x", ["unknown mix 'pear'"]),
        ("pair only_u --out x", ["only_u", "both sources"]),
        ("pair no_u no_g --out x", ["no_u"]),
        ("pair --n-u 20 --n-g 20 --clusters 50 --out x", ["clusters", "50", "40"]),
        (
            "pair --n-u 20 --n-g 20 --clusters 5 --encoder no/such/encoder --out x",
            ["no/such/encoder"],
        ),
        ("pair", ["--out"]),
        ("evaluate --checkpoint nowhere", ["no folder 'nowhere'", "owner/name"]),
        ("evaluate --items 1", ["items", "1"]),
        ("evaluate --out no/folder/here.json", ["no/folder"]),
        ("evaluate --temperature -1", ["temperature", "-1"]),
        ("sample ask nowhere.png 'what?'", ["nowhere.png"]),
        ("sample draw 'a red circle' --n 0", ["n must be at least 1"]),
        ("sample", ["ask", "draw"]),
        ("trian", ["trian", "train"]),
        ("", ["train"]),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_bad_values_are_named(line, words, capsys, tmp_path):
    refuses(capsys, tmp_path, line, *words)


def test_a_run_that_cannot_be_written_to_is_refused_before_the_work(
    run, capsys, monkeypatch, tmp_path
):
    half = tmp_path / "half"
    shutil.copytree(run, half, ignore=shutil.ignore_patterns("result.json"))

    def refuse(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pairuni_nb.jobs.tempfile.TemporaryDirectory", refuse)
    refuses(capsys, half, f"report {half}", "report.html' cannot be written", "Read-only")
    monkeypatch.setattr("pairuni_nb.jobs.os.access", lambda *_: False)
    refuses(capsys, half, f"train --resume {half}", f"'{half}' cannot be written")


def test_drawings_without_their_sheet_leave_no_folder(capsys, monkeypatch, tmp_path):
    def full(part):
        raise OSError(errno.ENOSPC, "No space left on device")

    sheet = SimpleNamespace(save=full)
    monkeypatch.setattr("pairuni_nb.run_folder.contact_sheet", lambda *_, **__: sheet)
    refuses(capsys, tmp_path, "sample draw 'a star' --n 1 --device cpu", "drawing", "No space")


def test_a_gpu_that_is_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refuses(capsys, tmp_path, "train --device cuda", "device 'cuda'")


def test_a_gpu_that_is_not_there_for_the_judge(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for command in ("train", "evaluate"):
        line = f"{command} --reward clip:x --reward-device cuda"
        refuses(capsys, tmp_path, line, "device 'cuda'", "use cpu")
    monkeypatch.setattr("pairuni_nb.preference.reward_from", lambda spec, device: device)
    assert named_rewards("", "clip:x", "auto") == dict(g="cpu")


@pytest.mark.parametrize("out", ["/proc/xx", "u.jsonl/x"])
@pytest.mark.parametrize(
    "command",
    [
        "pair",
        "train --device cpu",
        "evaluate",
        "evaluate --geneval prompts.jsonl",
        "sample draw 'a red circle'",
        "convert weights.pt",
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    command, out, capsys, tmp_path, monkeypatch
):
    for work in ("build_pairs", "load_model"):
        monkeypatch.setattr(f"pairuni_nb.jobs.{work}", lambda *_: pytest.fail("it began to work"))
    (tmp_path / "u.jsonl").touch()
    out += ".png" if command.startswith("sample") else ""
    refuses(capsys, tmp_path, f"{command} --out {out}", out, "cannot be written")
    assert not [p for p in tmp_path.iterdir() if p.name != "u.jsonl"]


def test_a_place_that_two_commands_try_at_once(tmp_path, monkeypatch):
    "Two runs begin in a folder `runs` that is not there: neither takes it from the other."
    real = os.path.lexists
    monkeypatch.setattr(
        "os.path.lexists", lambda path: real(path) and Path(path) != tmp_path / "runs"
    )
    (tmp_path / "runs").mkdir()
    check_place(tmp_path / "runs/a")
    assert not (tmp_path / "runs/a").exists()
    (tmp_path / "runs/b").mkdir(parents=True)
    check_place(tmp_path / "runs/a")
    assert (tmp_path / "runs/b").exists() and not (tmp_path / "runs/a").exists()


def test_a_journal_that_cannot_be_written_is_told_before_the_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("pairuni_nb.jobs.build_pairs", lambda *_: pytest.fail("it began to work"))
    line = "pair --out x --complete llm --journal /proc/xx"
    refuses(capsys, tmp_path, line, "/proc/xx", "cannot be written")


def test_a_weighting_of_your_own_is_a_setting(monkeypatch):
    from pairuni_nb.pair_grpo import WEIGHTINGS, weighting_of

    for name in ("softmax", "reward"):  # known, and no function of a similarity
        with pytest.raises(ValueError, match=f"'{name}' is made of a whole batch.* sqrt, linear"):
            weighting_of(name)
    job = Train(settings=TrainSettings(weighting="cube"))
    with pytest.raises(ValueError, match="unknown weighting 'cube'"):
        check_train(job)
    monkeypatch.setitem(WEIGHTINGS, "cube", lambda s: s**3)
    assert check_train(job) == job


def test_a_tracker_that_is_not_installed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("pairuni_nb.jobs.find_spec", lambda name: None)
    words = "'wandb' is not installed", "pip install wandb"
    refuses(capsys, tmp_path, "train --tracker wandb", *words)


def test_lora_without_peft_is_told_before_anything_is_read(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("pairuni_nb.jobs.find_spec", lambda name: None)
    line = "train --lora-rank 4 --model nowhere"
    refuses(capsys, tmp_path, line, "LoRA needs", "pairuni_nb[lora]")


def spoil(folder, **changes):
    """Change the first record of a folder of records; None deletes a field."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    row = json.loads(lines[0]) | changes
    lines[0] = json.dumps({k: v for k, v in row.items() if v is not None})
    (folder / "records.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(
    "side, changes, words",
    [
        ("u", dict(answer=None), ["row 0", "answer"]),
        ("u", dict(answer=""), ["u-0", "answer"]),
        ("u", dict(choices=["1", "2", "3", "4"], answer="seven"), ["u-0", "seven", "choices"]),
        ("u", dict(image="images/gone.png"), ["u-0", "gone.png"]),
        ("g", dict(image="records.jsonl"), ["g-0", "records.jsonl"]),
        ("g", dict(prompt="  "), ["g-0", "no prompt"]),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else None,
)
def test_bad_records_are_named(side, changes, words, capsys, tmp_path):
    for source in "ug":
        save_records(records(source, 6, 0), tmp_path / source)
    spoil(tmp_path / side, **changes)
    words = [records(side, 1, 0)[0]["id"] if w in ("u-0", "g-0") else w for w in words]
    refuses(capsys, tmp_path, "pair u g --out x", *words)


def test_scenes_of_another_size_are_named(capsys, tmp_path):
    for side in "ug":
        rows = [r | dict(image=r["image"].resize((64, 60))) for r in records(side, 8, 0)]
        save_records(rows, tmp_path / side)
    line = "pair u g --out pairs --clusters 3"
    refuses(capsys, tmp_path, line, "48 x 48", "64 x 60", "column scene")


@pytest.mark.parametrize("name", ["u", "u.jsonl"])
def test_an_empty_data_set(name, capsys, tmp_path):
    save_records(records("g", 6, 0), tmp_path / "g")
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "records.jsonl").touch()
    (tmp_path / "u.jsonl").touch()
    refuses(capsys, tmp_path, f"pair {name} g --out x", name, "no rows")


def test_a_held_out_record_that_is_too_long_is_told_before_it_is_scored(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("pairuni_nb.evaluate.evaluate", lambda *_: pytest.fail("it began to work"))
    rows = records("g", 3, 0)
    save_records([*rows[:2], rows[2] | dict(prompt="red " * 2000)], tmp_path / "g")
    refuses(capsys, tmp_path, "evaluate --held-g g", "prompt of held-out record 2", "positions")


LONG, RED = "red " * 2000, dict(tag="colors", prompt="a red star")


@pytest.mark.parametrize(
    "line, what",
    [
        (f"sample draw '{LONG}'", "the prompt needs"),
        (f"sample ask red.png '{LONG}'", "the question needs"),
        ("sample ask red.png why --max-new-tokens 1000", "1000 of them for its completion"),
        (f"sample ask red.png why --instruction '{LONG}'", "the question needs"),
        ("evaluate --geneval long.jsonl --out made", "the prompt of geneval 1 needs"),
        ("evaluate --wise long.json --out made", "the prompt of wise 7 needs"),
        (f"sample --checkpoint nano-emu3 draw '{LONG}'", "the prompt needs"),
    ],
)
def test_what_does_not_fit_the_models_positions_is_told_before_it_draws(
    line, what, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(Policy, "sample", lambda *_: pytest.fail("it began to work"))
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    rows = [RED, RED | dict(prompt=LONG)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    wise = [dict(prompt_id=i, Prompt=text) for i, text in ((2, "a red star"), (7, LONG))]
    (tmp_path / "long.json").write_text(json.dumps(wise))
    refuses(capsys, tmp_path, f"{line} --device cpu", what, "1024 positions: shorten it")


@pytest.mark.parametrize(
    "flags, what",
    [
        ("--samples 2", "add --geneval FILE"),
        ("--wise w.json --samples 2 --out made", "add --geneval FILE"),
        ("--pairs p --held-u u", "score one of them"),
        ("--pairs p --held-g g", "score one of them"),
        ("--geneval x --out made --items 9", "score nothing"),
        ("--geneval x --out made --reward scene", "score nothing"),
        ("--geneval x --out made --held-g g", "score nothing"),
        ("--wise w.json --out made --pairs p", "score nothing"),
        ("--wise w.json --out made --max-new-tokens 9", "score nothing"),
        ("--geneval x --out made --instruction form", "score nothing"),
    ],
)
def test_evaluate_ignores_no_flag(flags, what, capsys, tmp_path):
    refuses(capsys, tmp_path, f"evaluate {flags}", what)


@pytest.mark.parametrize(
    "words, what",
    [
        ("ask red.png what --choices a a", "two to eight different choices, has ['a', 'a']"),
        ("ask red.png what --choices a ''", "no text in a choice"),
        ("ask red.png what --temperature inf", "temperature must be"),
        ("draw star --cfg-weight inf", "cfg_weight must be"),
    ],
)
def test_what_cannot_be_asked_or_drawn_is_one_sentence(words, what, capsys, tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    refuses(capsys, tmp_path, f"sample {words}", what)


def test_what_just_fits_is_drawn(capsys, tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps(RED | dict(prompt="red " * 900)))
    line = "evaluate --geneval one.jsonl --samples 1 --out made --device cpu --seed 1"
    line += " --cfg-weight 2 --temperature 0.5 --checkpoint janus-nano"
    assert pairuni(line) == 0 and (tmp_path / "made/00000/samples/0000.png").exists()


def test_pairs_are_never_written_over(pairs, capsys, tmp_path):
    refuses(capsys, pairs.parent, f"pair --out {pairs}", str(pairs), "not an empty folder")


@pytest.mark.parametrize(
    "command",
    ["train --out run --model", "evaluate --checkpoint", "sample draw 'a star' --checkpoint"],
)
def test_a_checkpoint_that_is_no_janus(command, capsys, tmp_path, pairs):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "empty").mkdir()
    more = f"--pairs {pairs}" if command.startswith("train") else ""
    refuses(capsys, tmp_path, f"{command} bert {more}", "bert", "not a Janus")
    refuses(capsys, tmp_path, f"{command} empty {more}", "empty", "config.json")


def test_images_that_are_none(capsys, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    ask = "sample ask notes.png what?"
    refuses(capsys, tmp_path, ask, "cannot read the image notes.png")
    refuses(capsys, tmp_path, f"{ask} --choices a b c d e", "5 choices")
    draw = "sample draw 'a red circle' --out notes.png"
    refuses(capsys, tmp_path, draw, "notes.png", "exists already")


def test_a_finished_run_stays_as_it_is(run, capsys):
    refuses(capsys, run.parent, f"train --out {run}", str(run), "finished run")
    refuses(capsys, run.parent, f"train --resume {run}", str(run), "finished")


def test_a_half_finished_run_asks_for_resume(capsys, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "settings.json").write_text(
        json.dumps(asdict(TrainSettings()) | dict(model=None, pairs=3))
    )
    refuses(capsys, tmp_path, "train --out half", "half", "--resume half")
    refuses(capsys, tmp_path, "train --resume half", "no pairs")


def test_a_model_is_looked_for_before_pairs_are_made(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("pairuni_nb.jobs.build_pairs", lambda *_: pytest.fail("pairs came first"))
    line = "train --model nothere --out run"
    refuses(capsys, tmp_path, line, "there is no folder 'nothere'")


def test_a_foreign_folder_is_no_run_folder(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    refuses(capsys, tmp_path, "train --out mine", "mine", "not an empty folder")


def test_a_debugger_gets_the_traceback(monkeypatch):
    monkeypatch.setenv("PAIRUNI_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown weighting"):
        pairuni("train --weighting cubic")


def python(code, *argv):
    """A process of its own."""
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)


PROGRAM = "import sys; from pairuni_nb.cli import main; code = main();"


def test_the_program_itself():
    """In a process of its own: errors without a traceback, and exit codes."""
    for argv in ["--help"], ["train", "--help"]:
        shown = python(PROGRAM + "sys.exit(code)", *argv)
        assert shown.returncode == 0 and "train" in shown.stdout
    bad = python(PROGRAM + "sys.exit(code)", "train", "--weighting", "cubic")
    said = "pairuni: unknown weighting 'cubic': choose one of sqrt, linear, none, square, "
    said += "softmax, reward, or name a function of yours, module:function\n"
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", said)


def test_help_loads_nothing_slow():
    loaded = "print({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules))"
    assert python(PROGRAM + loaded, "train", "--help").stdout.endswith("\nset()\n")


MISTYPED = [
    "train --device gpu",
    "train --reward-device gpu",
    "train --reward-u nowhere_to_be_found:f",
    "train --reward nowhere_to_be_found:f",
    "evaluate --pairs nowhere",
    "evaluate --device gpu",
    "evaluate --seed -1",
    "evaluate --reward nowhere_to_be_found:f",
    "sample draw 'a star' --device gpu",
    "sample ask star.png 'what?' --seed -1",
    "serve nowhere_to_be_found:f",
    "serve scene --device gpu",
]


def test_what_is_mistyped_is_told_before_anything_slow_is_loaded():
    code = """import shlex, sys
from pairuni_nb.cli import main
for line in sys.argv[1:]:
    print(main(shlex.split(line)), {'torch', 'transformers', 'datasets'} & set(sys.modules))
"""
    shown = python(code, *MISTYPED)
    assert shown.stdout.splitlines() == ["2 set()"] * len(MISTYPED), shown.stdout
    told = shown.stderr.splitlines()
    assert len(told) == len(MISTYPED) and "unknown device 'gpu'" in told[0]


def test_train_leaves_a_whole_run(run, pairs):
    whole = "settings.json metrics.jsonl result.json report.html samples checkpoint best.pt pairs"
    assert {p.name for p in run.iterdir()} == {*whole.split(), "split.json", "rollouts"}
    shown = {p.name for p in (run / "samples").iterdir()}
    assert shown == {"before.json", "before", "after.json", "after", "asked"}
    saved = json.loads((run / "settings.json").read_text())
    assert saved["steps"] == 2 and saved["pairs"] == len(load_pairs(pairs))
    assert saved["command"].startswith("pairuni train --pairs")
    after = json.loads((run / "result.json").read_text())["after"]
    assert 0 <= after["accuracy_mean"] <= 1 and 0 <= after["score_mean"] <= 1
    text = (run / "report.html").read_text()
    assert saved["command"] in text
    assert not [word for word in ("<script", "http://", "https://") if word in text]


def test_evaluate_repeats_the_runs_own_figures(run, capsys, tmp_path):
    capsys.readouterr()
    line = f"evaluate --checkpoint {run}/checkpoint --items 8 --device cpu"
    assert pairuni(line) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["figures"] == json.loads((run / "result.json").read_text())["after"]
    assert shown["protocol"]["n_u"] == 8
    assert pairuni(f"{line} --out scores.json") == 0
    assert json.loads((tmp_path / "scores.json").read_text()) == shown
    refuses(capsys, tmp_path, f"{line} --out scores.json", "scores.json", "exists already")


def test_sample_draws(run, tmp_path, monkeypatch):
    def drawn(out, more):
        assert (
            pairuni(
                f"sample draw 'a red circle top-left' --device cpu --out {tmp_path}/{out} {more}"
            )
            == 0
        )
        return Image.open(tmp_path / out)

    one = drawn("one.png", "--n 3")
    assert one.width == 3 * one.height
    assert drawn("same.png", "--n 3").tobytes() == one.tobytes()
    for i, other in enumerate([f"--checkpoint {run}/checkpoint", "--seed 1", "--cfg-weight 1"]):
        assert drawn(f"{i}.png", f"--n 3 {other}").tobytes() != one.tobytes(), other
    monkeypatch.chdir(run)  # who names no checkpoint means janus-nano there, too
    assert drawn("inside.png", "--n 3").tobytes() == one.tobytes()
    jpeg = drawn("alone.jpg", "--n 1")
    assert jpeg.format == "JPEG" and jpeg.size == (one.height, one.height)
    # one by one, as the model made them: the sheet shows each four times as large, in a frame of 2
    for i in range(3):
        single = Image.open(tmp_path / f"one/{i}.png")
        part = one.crop((i * one.height, 0, (i + 1) * one.height, one.height))
        framed = np.asarray(part.resize((52, 52), Image.NEAREST))
        assert np.array_equal(framed[2:-2, 2:-2], np.asarray(single))
    assert pairuni(f"sample ask {tmp_path}/one/0.png 'what colour is top-left?' --n 1") == 0


def test_drawings_of_before_stay(capsys, tmp_path):
    (tmp_path / "star").mkdir()
    (tmp_path / "star" / "0.png").write_text("mine")
    refuses(capsys, tmp_path, "sample draw 'a star' --out star.png", "'star'", "exists already")


def test_sample_answers(capsys, tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")

    def told(more):
        capsys.readouterr()
        line = "sample ask red.png 'what colour is top-left?' --choices red blue --device cpu"
        assert pairuni(f"{line} {more}") == 0
        return capsys.readouterr().out

    one = told("--n 8 --seed 1")
    assert len(one.splitlines()) == 8 and "<answer>" in one
    assert told("--n 8 --seed 1") == one
    assert told("--n 8 --seed 2") != one
    assert len(set(told("--n 8 --temperature 0").splitlines())) == 1


def test_a_killed_run_goes_on_where_it_stopped(run, pairs, capsys, monkeypatch, tmp_path):
    """A broken run, resumed by its name alone, ends with the whole run's metrics."""
    import pairuni_nb.train as train

    real, calls = train.train_step, []

    def breaks(*args, **kw):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kw)

    monkeypatch.setattr(train, "train_step", breaks)
    assert pairuni(f"train --pairs {pairs} --out broken {OWN}") == 130
    monkeypatch.setattr(train, "train_step", real)
    said = (
        "what followed its last save is lost; the run goes on with pairuni train --resume broken\n"
    )
    assert said in capsys.readouterr().err
    assert not (tmp_path / "broken" / "result.json").exists()
    refuses(capsys, tmp_path, "train --out broken", "half-finished", "--resume broken")
    assert pairuni("train --resume broken --device cpu") == 0
    told = capsys.readouterr().out
    assert "points (95 % intervals; 8 items)\n" in told
    assert "points (95 % intervals; 8 items, judge: scene)\n" in told
    broken = read_metrics(tmp_path / "broken")
    assert without_cost(read_metrics(run)) == without_cost(broken)


def test_only_the_first_process_tries_the_place(monkeypatch):
    "Several that make and remove one folder at once find it there, and refuse it."

    def stop(*_):
        raise KeyboardInterrupt

    group, tried = SimpleNamespace(num_processes=2, wait_for_everyone=lambda: None), []
    monkeypatch.setattr("pairuni_nb.processes.join_processes", lambda device: group)
    monkeypatch.setattr("pairuni_nb.jobs.check_place", tried.append)
    monkeypatch.setattr("pairuni_nb.jobs.check_start", stop)
    for group.is_main_process in (True, False):
        with pytest.raises(KeyboardInterrupt):
            run_train(Train(out="run", device="cpu"))
        assert tried == [Path("run")]


def test_ctrl_c_before_there_is_a_run_promises_nothing(capsys, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pairuni_nb.jobs.build_pairs", stop)
    assert pairuni("train --out run --device cpu") == 130
    assert capsys.readouterr().err == "pairuni: stopped\n"
    assert not list(tmp_path.iterdir())


def test_a_failure_before_the_first_score_leaves_nothing(pairs, capsys, monkeypatch, tmp_path):
    def broken(*args, **kw):
        raise ValueError("these pairs are too few")

    monkeypatch.setattr("pairuni_nb.train.held_out", broken)
    refuses(capsys, tmp_path, f"train --pairs {pairs} --out run --device cpu", "too few")
