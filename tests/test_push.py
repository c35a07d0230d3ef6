"""--push-to-hub, against a fake of the Hub's client: asked before training, private, and nothing lost."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import transformers.utils  # noqa: F401  before a fake takes the place of what it imports
from program import pairuni

from pairuni_nb.jobs import push
from pairuni_nb.pairing import pair_row, save_pairs
from pairuni_nb.records import save_records
from pairuni_nb.world import records

pytestmark = pytest.mark.long

TINY = "train --steps 1 --pairs-per-step 2 --rollouts 2 --eval-items 4 --device cpu"


class Hub:
    """What `HfApi` does with a place, remembered; `fails` is what a call of some name raises."""

    def __init__(self, token="hf_secret", public=(), fails={}):
        self.places = {name: SimpleNamespace(private=False, files={}) for name in public}
        self.token, self.fails, self.calls = token, fails, []

    def __call__(self):  # HfApi()
        return self

    def called(self, name):
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def repo_exists(self, repo_id):
        self.called("repo_exists")
        return repo_id in self.places

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        self.called("create_repo")
        assert exist_ok or repo_id not in self.places
        self.places.setdefault(repo_id, SimpleNamespace(private=bool(private), files={}))

    def model_info(self, repo_id):
        self.called("model_info")
        return self.places[repo_id]

    def upload_folder(self, *, repo_id, folder_path):
        self.called("upload_folder")
        files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        self.places[repo_id].files.update(files)


@pytest.fixture
def hub(few_toys, monkeypatch, tmp_path):
    """Puts a fake in the place of the Hub's client."""
    monkeypatch.chdir(tmp_path)

    def put(**how):
        fake = Hub(**how)
        monkeypatch.setattr(huggingface_hub, "HfApi", fake)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: fake.token)
        return fake

    return put


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    assert pairuni(f"pair --n-u 60 --n-g 60 --clusters 12 --out {folder}/pairs") == 0
    assert pairuni(f"{TINY} --pairs {folder}/pairs --out {folder}/run") == 0
    return folder / "run"


def test_the_real_client_takes_the_calls_of_the_fake():
    """So that the fake is no friendlier than the library."""
    from inspect import signature

    for name, given in dict(
        repo_exists=dict(repo_id="u/n"),
        create_repo=dict(repo_id="u/n", private=True, exist_ok=True),
        model_info=dict(repo_id="u/n"),
        upload_folder=dict(repo_id="u/n", folder_path="f"),
    ).items():
        signature(getattr(huggingface_hub.HfApi, name)).bind(None, **given)
    assert callable(huggingface_hub.get_token)


def test_a_trained_checkpoint_is_pushed_privately_with_its_card(hub, capsys):
    fake = hub()
    assert pairuni(f"{TINY} --out run --push-to-hub me/tiny") == 0
    assert fake.calls == ["repo_exists", "create_repo", "upload_folder"]
    place = fake.places["me/tiny"]
    assert place.private and "pushed to      me/tiny, private" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "sampling.json", "README.md"} <= set(place.files)
    card = place.files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: transformers\n") and "\n# tiny\n" in card
    result = json.loads(Path("run/result.json").read_text())
    assert f"{100 * result['after']['accuracy_mean']:.1f} ±" in card and "janus-nano" in card
    assert "hf_secret" not in card

    # the same finished run, and a Hub that does not answer
    fake = hub(fails=dict(upload_folder=OSError("no route\nto host")))
    with pytest.raises(ValueError) as e:
        push(Path("run"), "me/tiny")
    said = str(e.value)
    assert "'run' is finished and whole" in said and "(no route)" in said and "\n" not in said
    assert "hf upload me/tiny run/checkpoint" in said
    assert Path("run/result.json").exists() and Path("run/checkpoint/model.safetensors").exists()


REFUSED = [
    (dict(token=None), "me/tiny", "needs a token that may write: log in with hf auth login"),
    (dict(token=""), "me/tiny", "needs a token"),
    (dict(), "tiny", "'tiny' is not of the form USER/NAME"),
    (dict(), "me/tiny/more", "not of the form USER/NAME"),
    (dict(public=["me/tiny"]), "me/tiny", "'me/tiny' is public"),
    (dict(fails=dict(repo_exists=OSError("no route"))), "me/tiny", "cannot be asked for: no route"),
    (
        dict(fails=dict(create_repo=RuntimeError("403 Forbidden\nfor url"))),
        "them/tiny",
        "'them/tiny' cannot be written to: 403 Forbidden",
    ),
]


@pytest.mark.parametrize("how, name, words", REFUSED, ids=[words for *_, words in REFUSED])
def test_what_cannot_be_pushed_is_said_before_training(hub, capsys, how, name, words):
    fake = hub(**how)
    assert pairuni(f"{TINY} --out run --push-to-hub {name}") == 2
    said = capsys.readouterr().err
    *bars, said = said.splitlines()
    assert said.startswith("pairuni: ") and words in said, said
    assert all("%|" in bar for bar in bars if bar), bars  # toy pairs, made before the place
    assert "upload_folder" not in fake.calls and not Path("run").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "--pairs nowhere",
        "--pairs broken",
        "--held-u nowhere.csv",
        "--reward clip:nowhere",
        "--model nowhere",
        "--out broken",
    ],
)
def test_what_refuses_the_training_makes_no_place(hub, capsys, flags):
    fake = hub()
    Path("broken").mkdir()
    Path("broken/pairs.parquet").write_text("none")
    assert pairuni(f"{TINY} --push-to-hub me/tiny {flags}") == 2
    assert "push-to-hub" not in capsys.readouterr().err
    assert not fake.places and "create_repo" not in fake.calls and not Path("runs").exists()


def without_scenes(n, **changes):
    """Pairs of no toy world, in the folder `pairs`."""
    rows = []
    for u, g in zip(records("u", n, 0), records("g", n, 0)):
        rows.append(
            pair_row("retrieved", 0.9, u=u | dict(scene="") | changes, g=g | dict(scene=""))
        )
    save_pairs(rows, "pairs")


@pytest.mark.parametrize(
    "n, changes, flags, words",
    [
        (60, dict(question="red " * 2000), "", "positions"),
        (3, {}, "", "can be held out"),
        (3, {}, "--held-g held", "nothing is left to train on"),
    ],
)
def test_what_training_itself_refuses_makes_no_place(hub, capsys, n, changes, flags, words):
    fake = hub()
    without_scenes(n, **changes)
    save_records([r | dict(scene="") for r in records("g", 3, 0)], "held")
    line = TINY.replace("--eval-items 4", "") if flags else TINY
    assert pairuni(f"{line} --pairs pairs --out run --push-to-hub me/tiny {flags}") == 2
    assert words in capsys.readouterr().err
    assert not fake.places and not Path("run").exists()


def test_a_run_whose_save_is_damaged_makes_no_place(hub, finished, capsys):
    fake = hub()
    shutil.copytree(finished, "run")
    Path("run/result.json").unlink()
    Path("run/state.pt").write_text("none")
    assert pairuni("train --resume run --push-to-hub me/tiny --device cpu") == 2
    assert "is damaged" in capsys.readouterr().err and not fake.places


def test_a_run_that_cannot_be_taken_up_makes_no_place(hub, finished, capsys):
    fake = hub()
    shutil.copytree(finished, "run")
    assert pairuni("train --resume run --push-to-hub me/tiny") == 2
    assert "is finished" in capsys.readouterr().err and not fake.places


def test_a_run_that_is_taken_up_may_be_pushed_and_nothing_is_asked_without_the_flag(hub, capsys):
    fake = hub(token=None, fails=dict(create_repo=AssertionError("asked")))
    assert pairuni(f"{TINY} --out run") == 0 and not fake.calls
    assert not Path("run/checkpoint/README.md").exists()
    Path("run/result.json").unlink()  # as if it had been killed before its end
    assert pairuni("train --resume run --push-to-hub me/tiny --device cpu") == 2
    assert "needs a token" in capsys.readouterr().err and not Path("run/result.json").exists()
    fake = hub()
    assert pairuni("train --resume run --push-to-hub me/tiny --device cpu") == 0
    assert fake.places["me/tiny"].private and "README.md" in fake.places["me/tiny"].files
