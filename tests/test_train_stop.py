"""A run that is asked to stop finishes its step, saves, says the truth, and goes on to the same end."""

import signal

import pytest
from program import CLI, Python

from pairuni_nb.cli import main
from pairuni_nb.run_folder import read_metrics, without_cost

pytestmark = pytest.mark.long

SMALL = "--steps 5 --pairs-per-step 2 --rollouts 4 --eval-items 4 --eval-every 2 --save-every 4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Toy pairs and a whole run."""
    tmp = tmp_path_factory.mktemp("stop")
    assert main(f"pair --n-u 60 --n-g 60 --clusters 12 --out {tmp}/pairs".split()) == 0
    assert main(train(tmp, tmp / "whole")) == 0
    return tmp


def train(folder, run):
    """The words of a small run."""
    return f"train --device cpu --pairs {folder}/pairs --out {run} {SMALL}".split()


def lines(run):
    """How many lines of metrics the run has written."""
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_step_is_finished_and_saved(folder, tmp_path, number):
    run = tmp_path / "run"
    process = Python(CLI, *train(folder, run))
    process.until(lambda: lines(run) >= 2)  # an evaluation and a step
    process.send(number)
    code = process.wait()
    out, said = process.said()
    steps = max(line["step"] for line in read_metrics(run))
    assert code == 130 and 1 <= steps < 5
    assert f"stopped; step {steps} is done and saved; the run goes on with pairuni train" in said
    assert (run / "report.html").exists() and "report" in out
    assert main(["train", "--resume", str(run), "--device", "cpu"]) == 0
    whole = without_cost(read_metrics(folder / "whole"))
    assert without_cost(read_metrics(run)) == whole


def test_what_was_saved_can_be_scored(folder, tmp_path, capsys):
    run = tmp_path / "run"
    words = [*train(folder, run), "--keep", "2", "--save-every", "1"]
    process = Python(CLI, *words)
    process.until(lambda: lines(run) >= 5)  # three steps and the evaluation after the second
    process.send(signal.SIGKILL)
    process.wait()
    saves = sorted(p.name for p in run.glob("*.pt"))
    assert "best.pt" in saves and "state.pt" in saves and len(saves) == 3
    capsys.readouterr()
    for name in (run, run / "best.pt", run / saves[1]):
        assert main(f"evaluate --items 4 --device cpu --checkpoint {name}".split()) == 0
        assert '"accuracy_mean"' in capsys.readouterr().out


def test_changed_pairs_and_settings_are_noticed(folder, tmp_path, capsys):
    run = tmp_path / "run"
    process = Python(CLI, *train(folder, run), "--steps", "3")
    process.until(lambda: lines(run) >= 2)
    process.send(signal.SIGKILL)
    process.wait()
    pairs = run / "pairs" / "pairs.parquet"
    kept = pairs.read_bytes()
    assert main(f"pair --n-u 50 --n-g 50 --clusters 9 --out {tmp_path}/other".split()) == 0
    pairs.write_bytes((tmp_path / "other" / "pairs.parquet").read_bytes())
    assert main(["train", "--resume", str(run), "--device", "cpu"]) == 2
    assert "no longer those it was started with" in capsys.readouterr().err
    pairs.write_bytes(kept)
    assert main(["train", "--resume", str(run), "--device", "cpu"]) == 0
