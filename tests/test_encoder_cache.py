"""The feature cache survives what happens to caches: kills, two writers, damage; and answers only for the same content and encoder."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pairuni_nb.encoders import Encoder, features, load_encoder, pixel_features
from pairuni_nb.world import records

IMAGES = [r["image"] for r in records("u", 40, 3)]
CONTENTS = len({im.tobytes() for im in IMAGES})
RUN = """
import os, signal, sys
from pairuni_nb.encoders import Encoder, features, load_encoder, pixel_features
from pairuni_nb.world import records
calls = []
def encode(images):
    calls.append(1)
    if len(calls) == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
    return pixel_features(images)
features([r["image"] for r in records("u", 40, 3)], Encoder("e", "k"*64, encode), batch_size=4, cache=sys.argv[1])
"""


def rows_in(folder):
    return (
        sqlite3.connect(next(Path(folder).glob("*.sqlite")))
        .execute("select count(*) from features")
        .fetchone()[0]
    )


def counting():
    seen = []
    return seen, Encoder(
        "e", "k" * 64, lambda images: seen.extend(images) or pixel_features(images)
    )


def test_a_killed_job_goes_on_where_it_was(tmp_path):
    assert subprocess.run([sys.executable, "-c", RUN, tmp_path, "6"]).returncode == -signal.SIGKILL
    before = rows_in(tmp_path)
    assert 0 < before < CONTENTS
    seen, e = counting()
    f = features(IMAGES, e, cache=tmp_path)
    assert len(seen) == CONTENTS - before and np.allclose(f, pixel_features(IMAGES), atol=1e-6)


def test_two_jobs_share_a_cache(tmp_path):
    jobs = [subprocess.Popen([sys.executable, "-c", RUN, tmp_path, "0"]) for _ in range(2)]
    assert [j.wait() for j in jobs] == [0, 0] and rows_in(tmp_path) == CONTENTS
    seen, e = counting()
    features(IMAGES, e, cache=tmp_path)
    assert not seen


def test_content_decides_not_the_object(tmp_path):
    red, arrays = Image.new("RGB", (6, 4), "red"), [np.asarray(im) for im in IMAGES[:3]]
    seen, e = counting()
    features(IMAGES[:3] + [red], e, cache=tmp_path)
    features(
        [im.copy() for im in IMAGES[:3]] + arrays + [red.convert("P"), red.convert("RGBA")],
        e,
        cache=tmp_path,
    )
    assert len(seen) == 4  # other objects, other containers, the same pixels
    features([Image.new("RGB", (4, 6), "red")], e, cache=tmp_path)
    assert len(seen) == 5  # the same bytes in another shape


def test_transparent_parts_are_white():
    clear, half = Image.new("RGBA", (30, 30), (255, 0, 0, 0)), Image.new("RGBA", (30, 30), "white")
    half.paste((0, 0, 255, 255), (0, 0, 15, 30)), clear.paste((0, 0, 255, 255), (0, 0, 15, 30))
    a, b = features([clear, half])
    assert np.allclose(a, b)


def test_damage_is_one_sentence(tmp_path):
    _, e = counting()
    (tmp_path / ("k" * 16 + ".sqlite")).write_bytes(b"not a data base" * 100)
    (tmp_path / "file").write_text("")
    for cache in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="feature cache") as error:
            features(IMAGES[:2], e, cache=cache)
        assert "\n" not in str(error.value)


def test_light_encoders_are_not_cached(tmp_path):
    features(IMAGES[:2], cache=tmp_path / "c"), features(["a"], "words", cache=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_preprocessing_and_vocabulary_are_part_of_the_key(tmp_path):
    import shutil
    from test_encoder_parity import image_model

    image_model("clip", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    keys = lambda folder: [
        load_encoder(str(tmp_path / folder), kind).key for kind in ("image", "text")
    ]
    assert keys("a") == keys("b")  # the folder's name does not matter
    for file, old, new in (
        ("preprocessor_config.json", '"shortest_edge": 32', '"shortest_edge": 40'),
        ("processor_config.json", '"shortest_edge": 32', '"shortest_edge": 40'),
        ("tokenizer.json", '"red"', '"rot"'),
    ):
        text = (tmp_path / "b" / file).read_text()
        assert old in text
        (tmp_path / "b" / file).write_text(text.replace(old, new))
    assert all(a != b for a, b in zip(keys("a"), keys("b")))
