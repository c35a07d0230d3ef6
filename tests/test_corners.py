"""Corners of the commands: pictures of any mode, rewards of your own, what a table says of its power."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from pairuni_nb import ablate, jobs
from pairuni_nb.ablate import power_sentence, smallest_effect, start_decoded
from pairuni_nb.benchmark import ask_prompts
from pairuni_nb.cli import main
from pairuni_nb.janus import load_janus, nano_folder
from pairuni_nb.jobs import Serve, how_it_goes_on, read_sampling
from pairuni_nb.preference import reward_server
from pairuni_nb.rollout import JanusPolicy
from pairuni_nb.settings import preset


@pytest.fixture(scope="module")
def policy():
    return JanusPolicy(*load_janus())


@pytest.mark.parametrize("mode", ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK"))
@pytest.mark.parametrize("size", ((48, 48), (97, 61), (5, 90)))
def test_a_benchmark_reads_pictures_as_training_does(policy, mode, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    asked, trained = ask_prompts(policy, ["q?"], [[image]]), policy.text_prompts(["q?"], [image])
    assert torch.equal(asked.features, trained.features)


def test_a_server_takes_a_reward_of_yours(tmp_path, monkeypatch):
    (tmp_path / "judge_of_mine.py").write_text(
        "def judge(prompts, images, truths):\n    return [0.25]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def serve(reward, port, host):
        made.append(reward)
        server = reward_server(reward, 0, host)
        server.serve_forever = lambda: None
        return server

    monkeypatch.setattr("pairuni_nb.preference.reward_server", serve)
    jobs.run_serve(Serve("judge_of_mine:judge", 0))
    assert made[0](["p"], [], [{}]) == [0.25]
    with pytest.raises(ValueError, match="has no function other"):
        jobs.run_serve(Serve("judge_of_mine:other", 0))
    with pytest.raises(ValueError, match="needs a reward"):
        jobs.run_serve(Serve("", 0))


@pytest.mark.parametrize(
    "said", (dict(temp=1), dict(temperature="1"), dict(temperature=-1), dict(cfg_scoring="both"))
)
def test_a_checkpoint_that_says_no_way_to_sample(tmp_path, capsys, said):
    for file in nano_folder().iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "sampling.json").write_text(json.dumps(said))
    words = ["--checkpoint", str(tmp_path), "--device", "cpu", "--items", "2"]
    assert main(["evaluate", *words]) == 2
    err = capsys.readouterr().err
    assert "sampling.json is damaged" in err and "by flags" in err and "Traceback" not in err


def test_a_checkpoint_that_says_how_to_sample(tmp_path):
    (tmp_path / "sampling.json").write_text('{"temperature": 0.5, "max_new_tokens": 3}')
    assert read_sampling(tmp_path / "sampling.json") == dict(temperature=0.5, max_new_tokens=3)


def lines(**rises):
    "Lines of a table: row=its rise on each seed."
    told = []
    for row, values in rises.items():
        for seed, rise in enumerate(values):
            told.append(dict(row=row, seed=seed, failed="", score_before=0.0, score_after=rise))
    return told


def test_a_row_that_equals_the_reference_hides_no_other_rows_power():
    table = lines(first=[0.1, 0.1, 0.1], same=[0.1, 0.1, 0.1], other=[0.1, 0.2, 0.4])
    seen = smallest_effect([0.0, 0.1, 0.3])
    said = power_sentence(table, ["first", "same", "other"], "score")
    assert said.startswith(f"Drawing: with 3 seeds, a true difference of {seen:.3f} is found")
    said = power_sentence(table, ["first", "same"], "score")
    assert said.endswith("nothing tells its spread.")


def test_rows_of_different_seeds_say_so():
    table = lines(first=[0.1] * 4, few=[0.1, 0.3], many=[0.1, 0.2, 0.3, 0.5])
    said = power_sentence(table, ["first", "few", "many"], "score")
    few, many = smallest_effect([0.0, 0.2]), smallest_effect([0.0, 0.1, 0.2, 0.4])
    low, high = sorted((few, many))
    assert said.startswith(
        f"Drawing: with 2 to 4 seeds, a true difference of {low:.3f} to {high:.3f},"
    )


def test_two_rows_of_a_seed_ask_the_start_once(tmp_path, monkeypatch):
    asked = []

    def decoded(*_):
        asked.append(1)
        time.sleep(0.3)
        return dict(accuracy=0.5, score=0.5, cfg_weight=1.0)

    monkeypatch.setattr(ablate, "decoded", decoded)
    with ThreadPoolExecutor(2) as pool:
        base = preset("nano")
        told = list(pool.map(lambda _: start_decoded(tmp_path, base, ([], []), 0), range(2)))
    assert told[0] == told[1] == dict(accuracy=0.5, score=0.5, cfg_weight=1.0) and len(asked) == 1


@pytest.mark.parametrize("save", ("state.pt", "state-000030.pt"))
def test_a_run_that_kept_a_save_says_so(tmp_path, save):
    assert "nothing was saved yet" in how_it_goes_on(tmp_path, KeyboardInterrupt())
    (tmp_path / save).touch()
    assert "followed its last save" in how_it_goes_on(tmp_path, KeyboardInterrupt())
