"""`pairuni convert` and `pairuni serve`: a judge from its published file to a run on another machine."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from socket import create_server

import numpy as np
import pytest

from pairuni_nb import jobs
from pairuni_nb.ablate import begin_tables
from pairuni_nb.ablate import main as run_table
from pairuni_nb.cli import main
from pairuni_nb.preference import clip_reward, remote_reward, reward_from
from pairuni_nb.settings import TrainSettings, own_function, preset
from test_preference import drawn, publish


def test_what_is_converted_is_served(tmp_path, capsys):
    _, weights, tokenizer = publish(tmp_path / "published")
    hps = tmp_path / "hps"
    assert (
        main(["convert", str(weights), "--out", str(hps), "--tokenizer", str(tokenizer)]) == 0
        and f"--reward hps:{hps}" in capsys.readouterr().out
    )
    line = f"-m pairuni_nb.cli serve hps:{hps} --port 0 --device cpu"
    with subprocess.Popen(
        [sys.executable, *line.split()],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as server:  # a shell's background job would ignore it
        try:
            line = server.stdout.readline()
            assert line.startswith(f"serving hps:{hps} on 127.0.0.1:"), line
            scores = remote_reward("http://" + line.split(" on ")[1].split(";")[0])(*drawn(5))
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0 and "Traceback" not in server.stderr.read()
        finally:
            server.kill()
    assert np.allclose(scores, clip_reward(str(hps))(*drawn(5)), atol=1e-6)


@pytest.mark.parametrize(
    "argv, why",
    [
        (["convert", "HPS.pt", "--out", "hps"], "there is no file 'HPS.pt'"),
        (["convert", "HPS.pt"], "--out"),
        (["serve", "beauty"], "unknown reward 'beauty'"),
        (["serve", "hps:HPS.pt"], "convert it once with pairuni convert"),
        (["serve", "scene", "--port", "99999"], "cannot serve on 127.0.0.1:99999"),
        (["serve", "scene", "--port", "{taken}"], "choose another --port"),
    ],
)
def test_bad_input_is_one_sentence(argv, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PAIRUNI_DEBUG", raising=False)
    with create_server(("127.0.0.1", 0)) as taken:
        code = main([a.format(taken=taken.getsockname()[1]) for a in argv])
    said = capsys.readouterr().err
    assert (
        code == 2
        and said.startswith("pairuni: ")
        and why in said
        and said.count("\n") == 1
        and not list(tmp_path.iterdir())
    ), said


def test_a_reward_of_yours_says_where_it_went_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    lines = (
        "def two(prompts, outputs): return [0.0]",
        "def torn(prompts, outputs, truths): return np.zeros(3) + np.zeros(4)",
        "def lost(prompts, outputs, truths): return truths[0]['nothing']",
        "def fine(prompts, outputs, truths, scale=2.0): return [scale]",
    )
    Path("mine_0.py").write_text("\n".join(["import numpy as np", *lines]))
    Path("mine_1.py").write_text("import no_such_package")
    with pytest.raises(ValueError, match=r"must take \(prompts, outputs, truths\): too many"):
        own_function("mine_0:two", "reward")
    with pytest.raises(ValueError, match="ValueError .*shapes.* in line 3 of .*mine_0.py: mend"):
        own_function("mine_0:torn", "reward")([], [], [])
    with pytest.raises(KeyError, match="nothing"):  # no bad input to `main`: the trace is shown
        own_function("mine_0:lost", "reward")([], [], [{}])
    assert own_function("mine_0:fine", "reward")([""], [""], [{}]) == [2.0]
    both = reward_from("0.5*mine_0:fine + scene", "cpu")
    lists = [""], np.zeros((1, 48, 48, 3), np.uint8), [dict(scene="")]
    assert both(*lists) == [None]  # where one of them cannot tell
    assert reward_from("0.5*mine_0:fine+2*mine_0:fine")(*lists) == [5.0]
    assert reward_from("mine_0:fine")(*lists) == [2.0]
    with pytest.raises(ValueError, match="reward 'mine_0:gone': the module mine_0 has no function"):
        reward_from("scene+mine_0:gone")
    with pytest.raises(ValueError, match="'no_such_package'; mine_1 needs it"):
        own_function("mine_1:fine", "reward")
    with pytest.raises(ValueError, match="'mine_2'; start in the folder"):
        own_function("mine_2:fine", "reward")
    with pytest.raises(ValueError, match="leave .py out"):
        own_function("mine_0.py:fine", "reward")
    Path("mine_3.py").write_text("import math\n\ndef fine(x:\n")
    with pytest.raises(ValueError, match="SyntaxError .* in line 3 of .*mine_3.py: mend"):
        own_function("mine_3:fine", "weighting")
    Path("mine_4.py").write_text("import math\nmath.sqrt(-1)\n")
    with pytest.raises(ValueError, match="ValueError .* in line 2 of .*mine_4.py: mend"):
        own_function("mine_4:fine", "weighting")


def test_a_weighting_or_an_advantage_of_yours_says_what_is_wrong_before_the_work(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    lines = (
        "def two(given, more): return given",
        "def one(given): return given.mean()",
        "def wild(given): return 1 / (given - 0.6)",
        "def torn(given): raise ValueError('no')",
    )
    Path("own_0.py").write_text("\n".join(lines))
    for flag, name, why in (
        ("weighting", "two", "must take (similarity): missing a required argument"),
        ("weighting", "one", "of shape () of similarities of shape (3,): it must make one weight"),
        ("weighting", "wild", "makes inf of the similarity 0.6"),
        ("weighting", "torn", "raised ValueError (no) in line 4 of "),
        ("weighting", "gone", "the module own_0 has no function gone"),
        ("advantage", "two", "must take (rewards): missing a required argument"),
        ("advantage", "one", "makes shape () of rewards of shape (2, 3)"),
        ("advantage", "wild", "of the rewards [1.0, 1.0, nan]: it must make finite numbers"),
        ("advantage", "torn", "raised ValueError (no) in line 4 of "),
        ("advantage", "gone", "the module own_0 has no function gone"),
    ):
        assert main(["train", f"--{flag}", f"own_0:{name}", "--device", "cpu"]) == 2
        said = capsys.readouterr().err
        assert f"{flag} 'own_0:{name}'" in said and why in said and said.count("\n") == 1, said
    assert main(["train", "--advantage", "worst"]) == 2
    assert "group, best, unified, module:function" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_of_a_sum_a_run_tells_what_each_part_adds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    lines = (
        "def light(prompts, images, truths): return [float(x.mean()) / 255 for x in images]",
        "def brief(prompts, texts, truths): return [-float(len(text)) for text in texts]",
    )
    Path("sum_0.py").write_text("\n".join(lines))
    assert main("pair --n-u 60 --n-g 60 --clusters 12 --out pairs".split()) == 0
    words = "train --device cpu --pairs pairs --steps 2 --pairs-per-step 3 --rollouts 3"
    words += " --eval-items 8 --out run"
    sums = ["--reward", "0.5*sum_0:light+scene", "--reward-u", "accuracy+0.01*sum_0:brief"]
    assert main(words.split() + sums) == 0
    said = capsys.readouterr().out
    assert "of it, light" in said and "of it, scene_reward" in said
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        if "reward_u" in line:
            parts = line["reward_u/answer_accuracy"] + line["reward_u/brief"]
            assert line["reward_u"] == pytest.approx(parts, abs=1e-6) and line["reward_u/brief"] < 0
            parts = line["reward_g/light"] + line["reward_g/scene_reward"]
            assert line["reward_g"] == pytest.approx(parts, abs=1e-6)
            assert 0.25 < line["reward_g/light"] < 0.5
        if "eval_score_mean" in line:
            parts = line["eval_score/light_mean"] + line["eval_score/scene_reward_mean"]
            assert line["eval_score_mean"] == pytest.approx(parts, abs=1e-6)
    result = json.loads(Path("run/result.json").read_text())
    assert result["change_ci"]["score/light"] is not None
    page = Path("run/report.html").read_text()
    assert "of it, light" in page and "what this part adds" in page
    words = "evaluate --checkpoint run --items 8 --device cpu --out scores.json"
    assert main(words.split() + sums[:2]) == 0
    assert "of it, light" in capsys.readouterr().out
    assert "score/light_mean" in json.loads(Path("scores.json").read_text())["figures"]


def test_a_run_that_goes_on_says_that_a_module_of_yours_has_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in "rwa":
        Path(f"goes_on_{name}.py").write_text("def f(*given): return given[-1]")
    judge = "goes_on_r:f"
    s = TrainSettings(weighting="goes_on_w:f", advantage="goes_on_a:f")
    monkeypatch.setattr(jobs, "pairs_of", lambda c: (dict(g_scene=["x"]), {}))
    begun = []
    monkeypatch.setattr("pairuni_nb.run_folder.begin_run", lambda *told: begun.append(told))
    jobs.begin_job(jobs.Train(settings=s, reward=f"0.5*{judge}+0.5*scene"), tmp_path, "")
    said = begun[0][3]
    assert set(said["own_code"]) == {"goes_on_r", "goes_on_w", "goes_on_a"}
    for module in ("pairuni_nb.records.check_run", "pairuni_nb.jobs.go_on"):
        monkeypatch.setattr(module, lambda *given: None)
    monkeypatch.setattr("pairuni_nb.run_folder.old_settings", lambda run: (s, said))
    jobs.resume(tmp_path, device="cpu")
    assert "changed" not in capsys.readouterr().out
    Path("goes_on_w.py").write_text("def f(similarity): return similarity**30")
    Path("goes_on_r.py").write_text("def f(*given): return [0] * len(given[0])")
    jobs.resume(tmp_path, device="cpu")
    words = "changed since the run began, and taken as it is now: goes_on_w, goes_on_r"
    assert words in capsys.readouterr().out


def test_a_table_says_that_a_module_of_yours_has_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in "wv":
        Path(f"table_{name}.py").write_text("def f(similarity): return similarity")
    rows = {"sqrt": {}, "own": dict(average=[dict(weighting="table_w:f"), {}])}
    more = rows | {"other": dict(weighting="table_v:f")}
    base = preset("nano")
    for own in (rows, more, rows):  # what a table does not name is still known
        begin_tables(tmp_path, base, "nano", [], "mine", own)
    assert "changed" not in capsys.readouterr().err
    for name in "wv":
        Path(f"table_{name}.py").write_text("def f(similarity): return similarity**3")
    for _ in range(2):  # until another folder is named
        begin_tables(tmp_path, base, "nano", [], "mine", more)
        assert "first used it: table_w, table_v; runs that" in capsys.readouterr().err
    told = {}
    monkeypatch.setattr("pairuni_nb.ablate.run_row", lambda *given: told.update(base=given[3]))
    run_table([str(tmp_path), "{}", "0"])  # a run reads the same file
    assert told["base"].train == base.train
