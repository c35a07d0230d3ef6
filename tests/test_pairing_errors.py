"""Bad input to pairing ends in one sentence that names the bad value, and leaves nothing half-written."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from datasets import Image as ImageColumn
from PIL import Image

from pairuni_nb import pairing
from pairuni_nb import records as records_module
from pairuni_nb.completion import complete, scene_oracle
from pairuni_nb.evaluate import is_toy
from pairuni_nb.pairing import (
    COLUMNS,
    as_dataset,
    check_candidates,
    choose,
    load_pairs,
    make_pairs,
    pair_records,
    pair_row,
    retrieve,
    save_pairs,
    stored_rows,
)
from pairuni_nb.records import new_folder, read_image
from pairuni_nb.settings import PairSettings
from pairuni_nb.world import records
from test_records_errors import Nearly


@pytest.fixture
def u():
    return records("u", 12, 0)


@pytest.fixture
def g():
    return records("g", 12, 0)


@pytest.fixture
def pairs(u, g):
    return make_pairs(u, g, clusters=4)[0]


def sentence(call, *words):
    "The call fails with one line that holds all the words."
    with pytest.raises(ValueError) as e:
        call()
    text = str(e.value)
    assert "\n" not in text and len(text) < 500, text
    for word in words:
        assert word in text, text


def test_settings_out_of_range(u, g):
    for delta in (-0.1, 1.5, float("nan")):
        sentence(lambda: make_pairs(u, g, delta=delta), "delta must lie in [0, 1]", f"got {delta}")
    sentence(lambda: make_pairs(u, g, top_n=0), "top_n must be positive, got 0")
    sentence(lambda: make_pairs(u, g, clusters=25), "clusters is 25", "24", "set --clusters")
    sentence(lambda: make_pairs(u, g, clusters=0), "clusters must be positive, got 0")
    whole = make_pairs(u, g, top_n=10**6, clusters=2)[1]
    assert whole == make_pairs(u, g, top_n=len(u), clusters=2)[1]
    with pytest.raises(ValueError, match="top_n is 1000000: .* 60000 G images take 45 GB: lower"):
        check_candidates(10**6, 47_000, 60_000)
    check_candidates(10**6, 2000, 2000)
    sentence(lambda: make_pairs(u, g, mix="both"), "'both'", "unpaired")
    sentence(lambda: make_pairs(u, g, select="best"), "'best'", "medoids")
    sentence(lambda: make_pairs([], g), "no U records")
    sentence(lambda: make_pairs(u, []), "no G records")
    sentence(lambda: make_pairs(u, g, encoder="/no/model"), "encoder '/no/model'")
    sentence(
        lambda: make_pairs(u, g, mix="retrieved", clusters=4, delta=1),
        "no pair could be made",
        "lower delta",
    )
    sentence(lambda: make_pairs(u, g, order="last"), "order 'last'", "best")
    for dedup in (-0.1, 1.5, float("nan")):
        sentence(lambda: make_pairs(u, g, dedup=dedup), "dedup must lie in [0, 1]", f"got {dedup}")
    sentence(lambda: retrieve(np.eye(4)[:, :3][:2], np.eye(4)[:2]), "different widths, 3 and 4")


@pytest.mark.parametrize(
    "value, words",
    [
        (np.nan, ["NaN or infinity"]),
        (0, ["all zeros", "no direction"]),
        (3, ["length 1", "L2-normalise"]),
    ],
)
def test_features_that_cannot_be_compared(u, g, monkeypatch, value, words):
    def spoiled(images, encoder, cache="", ids=None):
        f = (
            np.eye(12, 5, dtype=np.float32)
            + np.eye(12, 5, -5, dtype=np.float32)
            + np.eye(12, 5, -10, dtype=np.float32)
        )
        if images[0] is g[0]["image"]:
            f[3] = value
        return f

    monkeypatch.setattr("pairuni_nb.pairing.features", spoiled)
    sentence(lambda: make_pairs(u, g, clusters=4), f"the G features: row of {g[3]['id']}", *words)
    for bad in (0, 1):
        f = [spoiled([r[0]["image"]], "") for r in (u, g)]
        sentence(lambda: retrieve(f[1 - bad], f[bad]), "features: row 3", *words)
        sentence(lambda: retrieve(f[bad][:0], f[0]), "at least one row")


def test_the_optimal_order_refuses_what_one_matrix_cannot_hold():
    n = 20
    with pytest.raises(ValueError, match="20 G with 20 U images .* too large: take the order best"):
        choose(
            np.repeat(np.arange(n), n),
            np.tile(np.arange(n), n),
            np.full(n * n, 0.9),
            "optimal",
            most=100,
        )


def test_extremes_of_delta_are_allowed(u, g):
    assert make_pairs(u, g, clusters=4, delta=0)[1]["retrieved"] > 0
    assert (
        make_pairs(u, g, clusters=4, delta=1)[1]["retrieved"] == 0
    )  # above 1 is nothing, identical images included


@pytest.mark.parametrize("side", ["u", "g", "both"])
def test_a_medoid_that_cannot_be_completed_is_left_for_retrieval(side, u, g):
    def fill(rows):
        "Records of a side cannot be completed."
        lost = [r for r in rows if side == "both" or ("question" in r) == (side == "u")]
        kept, _ = complete([r for r in rows if r not in lost], scene_oracle)
        return kept, [(r["id"], "not written") for r in lost]

    # one id on both sides must not hide a record
    u, g = ([r | dict(id=f"{i}") for i, r in enumerate(rows)] for rows in (u, g))
    pairs, counts = make_pairs(u, g, fill, clusters=8, delta=0)
    from_u, from_g = (counts[f"aligned_from_{x}"] for x in "ug")
    assert counts["dropped"]["not written"] == counts["medoids"] - from_u - from_g > 0
    assert (from_u > 0, from_g > 0) == (side == "g", side == "u")
    assert counts["retrieved"] + counts["without_partner"] == 12 - from_g
    rows = list(pairs.select_columns(["kind", "origin", "u_id", "g_id"]))
    used = [r["u_id"] for r in rows if r["kind"] == "retrieved" or r["origin"] == "u"]
    assert len(used) == len(set(used))
    # greedily, at no threshold, the rarer side is used up
    assert counts["retrieved"] == min(12 - from_u, 12 - from_g)


def test_missing_or_empty_pairs(tmp_path, pairs):
    sentence(lambda: load_pairs(tmp_path / "nowhere"), "no pairs at", "nowhere")
    (tmp_path / "empty").mkdir()
    sentence(lambda: load_pairs(tmp_path / "empty"), "no pairs at", "empty")
    pairs.select([]).to_parquet(tmp_path / "none.parquet")
    sentence(lambda: load_pairs(tmp_path / "none.parquet"), "none.parquet has no rows")
    (tmp_path / "text.parquet").write_text("hello")
    sentence(
        lambda: load_pairs(tmp_path / "text.parquet"), "text.parquet cannot be read as Parquet"
    )
    pairs.remove_columns(["answer", "prompt"]).to_parquet(tmp_path / "less.parquet")
    sentence(
        lambda: load_pairs(tmp_path / "less.parquet"),
        "lacks the columns answer, prompt",
        "question",
    )


def edited(pairs, tmp_path, row, **values):
    "A Parquet file of the pairs with some values of one row replaced."
    rows = list(pairs)
    rows[row] = rows[row] | values
    file = tmp_path / "edited.parquet"
    Dataset.from_list(rows, features=pairs.features).to_parquet(file)
    return file


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(answer=None), ["no answer"]),
        (dict(answer=" "), ["no answer"]),
        (dict(question=""), ["no question"]),
        (dict(answer="mauve"), ["'mauve' is not among the choices"]),
        (dict(choices=["a", "a", "b", "c"]), ["different choices"]),
        (dict(choices=None), ["two to eight different choices"]),
        (dict(matcher="number"), ["is not a number"]),
        (dict(matcher=None), ["the matcher is None"]),
        (dict(prompt=None), ["no prompt"]),
        (dict(kind="married"), ["'married'", "aligned"]),
        (dict(similarity=1.2), ["similarity is 1.2"]),
        (dict(similarity=None), ["similarity is None"]),
        (dict(u_image=None), ["u_image", "no image"]),
    ],
)
def test_bad_rows_of_pairs(tmp_path, pairs, values, words):
    file = edited(pairs, tmp_path, 2, **values)
    sentence(lambda: load_pairs(file), "edited.parquet, row 2", *words)


def test_the_matcher_travels_with_the_answer(tmp_path, u, g):
    u = [
        r | dict(choices=[], answer=f"{i},000", matcher="number")
        if i % 2
        else r | dict(matcher="choice")
        for i, r in enumerate(u, 1)
    ]
    u = [r | dict(scene="") for r in u]  # so that the texts alone are verified
    fill = partial(complete, completer=lambda r: dict(prompt=f"a thing, {r['answer']}"))
    for mix in "u-only", "random", "unpaired":
        save_pairs(make_pairs(u, g, fill, mix=mix)[0], tmp_path / mix)
        kept = {r["u_id"]: r["matcher"] for r in load_pairs(tmp_path / mix)}
        assert {i: m for i, m in kept.items() if i} == {r["id"]: r["matcher"] for r in u}
        assert kept.get(None) is None


def test_unreadable_image_of_a_pair(tmp_path, pairs):
    whole = pairs[1]["g_image"]
    rows = pairs.with_format(None).cast_column("g_image", ImageColumn(decode=False)).to_list()
    rows[1]["g_image"]["bytes"] = rows[1]["g_image"]["bytes"][:60]
    broken = Dataset.from_list(rows, features=pairs.features)
    broken.to_parquet(tmp_path / "broken.parquet")
    sentence(
        lambda: load_pairs(tmp_path / "broken.parquet"), "row 1", "g_image", "cannot read the image"
    )
    assert whole.size == (48, 48)


def test_nothing_is_overwritten_or_left_half_written(tmp_path, pairs):
    save_pairs(pairs, tmp_path / "out")
    before = (tmp_path / "out/pairs.parquet").read_bytes()
    sentence(
        lambda: save_pairs(pairs, tmp_path / "out"),
        "/out' is not an empty folder",
        "choose another",
    )
    assert (tmp_path / "out/pairs.parquet").read_bytes() == before
    with pytest.raises(TypeError):
        save_pairs(
            pairs, tmp_path / "bad", settings=dict(function=print)
        )  # json refuses it after the Parquet is written
    with pytest.raises(RuntimeError):
        with new_folder(tmp_path / "half") as part:
            (part / "file").write_text("half")
            raise RuntimeError
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["out"]


def changed(pairs, file, **values):
    "A pair file that somebody else wrote: other values in its first row."
    rows = pairs.with_format("arrow")[:].to_pylist()
    rows[0] |= values
    pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS.arrow_schema), file)
    return file


@pytest.mark.parametrize("column", ("u_image", "g_image"))
@pytest.mark.parametrize("address", ("", "file://"))
def test_a_pair_file_names_no_picture_of_yours(pairs, tmp_path, column, address):
    pairs[0]["u_image"].save(tmp_path / "private.png")
    path = f"{address}{tmp_path / 'private.png'}"
    file = changed(pairs, tmp_path / "p.parquet", **{column: dict(bytes=None, path=path)})
    sentence(lambda: load_pairs(file), "row 0", column, "only a path")


def test_pictures_that_are_paths_are_read_when_pairs_are_saved(u, g, tmp_path):
    u[0]["image"].save(tmp_path / "1.png")
    sides = (side | dict(image=str(tmp_path / "1.png")) for side in (u[0], g[0]))
    rows = Dataset.from_list([pair_row("retrieved", 0.7, *sides)], features=COLUMNS)
    save_pairs(rows, tmp_path / "p")
    (tmp_path / "1.png").unlink()
    back = load_pairs(tmp_path / "p")[0]
    assert np.array_equal(np.asarray(back["u_image"]), np.asarray(u[0]["image"]))


def test_pairs_without_scenes_are_not_of_the_toy_world(pairs, tmp_path):
    assert is_toy(load_pairs(changed(pairs, tmp_path / "same.parquet")))
    for column in ("u_scene", "g_scene"):
        file = changed(pairs, tmp_path / f"{column}.parquet", **{column: None})
        assert not is_toy(load_pairs(file)) and load_pairs(file)[0][column] == ""


def test_a_side_that_is_not_there_has_no_scene(u, g, tmp_path):
    rows = [pair_row("single", 1.0, u=u[0]), pair_row("single", 1.0, g=g[0])]
    save_pairs(rows, tmp_path / "p")
    back = load_pairs(tmp_path / "p")
    assert is_toy(back) and back[0]["g_scene"] is None and back[1]["u_scene"] is None


NOTHING = '{"kind": "placed", "style": "plain", "cells": [%s]}' % ", ".join(["null"] * 9)


@pytest.mark.parametrize("scene", ("{", "{}", NOTHING, NOTHING.replace("plain", "tartan")))
def test_a_scene_that_no_drawing_can_be_held_against(pairs, tmp_path, scene):
    file = changed(pairs, tmp_path / "p.parquet", g_scene=scene)
    sentence(lambda: load_pairs(file), "row 0", "g_scene", "no scene of the toy world")


def test_a_place_for_an_image_in_a_prompt(pairs, tmp_path):
    file = changed(pairs, tmp_path / "p.parquet", prompt="a <image_placeholder>")
    sentence(lambda: load_pairs(file), "row 0", "the prompt holds <image_placeholder>")


def test_clusters_are_a_tenth_of_the_images_that_are_left(u, g):
    u = [
        r | dict(id=f"{r['id']}-{i}", question=f"{r['question']} {i}") for i in range(9) for r in u
    ]
    g = [r | dict(id=f"{r['id']}-{i}") for i in range(9) for r in g]
    counts = make_pairs(u, g, dedup=1.0)[1]
    assert counts["medoids"] == 2 and counts["copies_u"] >= 96
    sentence(lambda: make_pairs(u, g, dedup=1.0, clusters=25), "clusters is 25", "set --clusters")


def opened(rows, folder, ending, edit=None):
    "Records whose pictures were opened from files, as people who read their own do."
    folder.mkdir()
    there = []
    for r in rows:
        r["image"].save(folder / f"{r['id']}{ending}")
        image = Image.open(folder / f"{r['id']}{ending}")
        if edit:
            edit(image)
        there.append(r | dict(image=image, scene=""))
    return there


def turned(image):
    image.putpixel((0, 0), (1, 2, 3))
    image.thumbnail((40, 40))


@pytest.mark.parametrize("ending", (".png", ".jpg"))
@pytest.mark.parametrize("edit", (None, turned))
def test_pictures_opened_from_files_are_kept_as_their_pixels_are(u, g, tmp_path, ending, edit):
    u, g = opened(u, tmp_path / "u", ending, edit), opened(g, tmp_path / "g", ending, edit)

    def completer(r):
        return dict(prompt=f"a thing, {r['answer']}") if "question" in r else None

    fill = partial(complete, completer=completer)
    rows, _ = pair_records(u, g, PairSettings(clusters=6, delta=0.3), fill)
    assert {"aligned", "retrieved"} == {row["kind"] for row in rows}
    pixels = [[np.asarray(row[c]) for c in ("u_image", "g_image")] for row in rows]
    if edit:
        assert pixels[0][0].shape == (40, 40, 3)
    save_pairs(rows, tmp_path / "p")
    in_memory = as_dataset(rows)
    for file in list(tmp_path.glob("?/*" + ending)):
        file.unlink()
    for (a, b), row in zip(pixels, load_pairs(tmp_path / "p"), strict=True):
        assert np.array_equal(a, row["u_image"]) and np.array_equal(b, row["g_image"])
    (row,) = stored_rows(in_memory, [0])
    assert np.array_equal(pixels[0][0], row["u_image"])


def test_pictures_of_other_kinds_are_kept_as_they_are_read(u, g, tmp_path):
    images = [u[0]["image"].convert(mode) for mode in ("RGB", "L", "P", "CMYK", "RGBA")]
    images[-1].putpixel((0, 0), (9, 9, 9, 0))
    rows = [pair_row("retrieved", 0.7, u[0] | dict(image=i), g[0]) for i in images]
    save_pairs(rows, tmp_path / "p")
    for image, row in zip(images, load_pairs(tmp_path / "p"), strict=True):
        want = np.array(image.convert("RGB"))
        if image.mode == "RGBA":
            want[0, 0] = 255  # on white
        assert np.array_equal(want, row["u_image"]), image.mode
    rows[0]["u_image"] = u[0]["image"].convert("F")
    sentence(lambda: as_dataset(rows), "which of its numbers is white")


def of_type(pairs, file, column, values):
    "A pair file with another column in the place of one."
    table = pa.Table.from_batches(pairs.with_format("arrow")[:].to_batches())
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, values).replace_schema_metadata(None), file)
    return file


@pytest.mark.parametrize(
    "column, value, wanted",
    [
        ("choices", '["a", "b"]', "choices is string, but must be a list of texts"),
        ("choices", [["a"]], "must be a list of texts"),
        ("kind", ["aligned"], "must be a text"),
        ("prompt", dict(text="a cat"), "prompt is struct<text: string>, but must be a text"),
        ("answer", b"\xff", "must be a text"),
        ("similarity", "much", "similarity is string, but must be a number"),
        ("similarity", [0.7], "must be a number"),
        ("u_image", [dict(bytes=b"x", path="x.png")], "must be an image"),
        ("g_image", 7, "g_image is int64, but must be an image"),
        ("g_image", dict(bytes=7, path=None), "must be an image"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_columns_of_another_type_are_named(pairs, tmp_path, column, value, wanted):
    file = of_type(pairs, tmp_path / "p.parquet", column, pa.array([value] * len(pairs)))
    sentence(lambda: load_pairs(file), f"p.parquet: the column {column} is", wanted)
    sentence(lambda: load_pairs(file, look=False), f"p.parquet: the column {column} is", wanted)


def test_columns_of_a_type_that_can_be_brought_to_ours(pairs, tmp_path):
    texts = pa.array([f"{i}" for i in range(len(pairs))], pa.large_string())
    file = of_type(pairs, tmp_path / "p.parquet", "prompt", texts.dictionary_encode())
    assert load_pairs(file)["prompt"][:] == texts.to_pylist()
    raw = pairs.with_format("arrow")[:]["g_image"].to_pylist()
    raw = pa.array([image["bytes"] for image in raw])
    for column in "u_image", "g_image":
        file = of_type(pairs, tmp_path / "p.parquet", column, raw)
        assert load_pairs(file)[0][column].size == (48, 48)


@pytest.mark.parametrize("column", ("u_image", "g_image"))
def test_a_jpeg_that_only_a_small_decoding_could_read(pairs, tmp_path, monkeypatch, column):
    large = tmp_path / "large.jpg"
    Image.new("L", (200, 150)).save(large)
    image = dict(bytes=large.read_bytes(), path=None)
    file = changed(pairs, tmp_path / "p.parquet", **{"kind": "retrieved", column: image})
    assert load_pairs(file)[0][column].size == (200, 150)
    monkeypatch.setattr(records_module, "MOST_PIXELS", 10_000)
    sentence(lambda: load_pairs(file), "row 0", column, "200 x 150", "shrink it")
    # who asks for a smaller one gets it
    assert read_image(image, max_side=64).size == (64, 48)


def test_a_disk_that_is_nearly_full_is_not_a_broken_file(pairs, tmp_path, monkeypatch):
    pairs.to_parquet(tmp_path / "p.parquet")
    for room in (100, 5000):
        monkeypatch.setattr(pairing, "nameless_file", lambda: Nearly(room))
        with pytest.raises(OSError, match="pairs cannot be kept in .*No space.*HF_DATASETS_CACHE"):
            load_pairs(tmp_path / "p.parquet")


def test_a_text_that_is_no_utf8_is_named_by_its_rows(pairs, tmp_path):
    texts = pa.array([b"caf\xe9"] * len(pairs)).view(pa.string())
    file = of_type(pairs, tmp_path / "p.parquet", "prompt", texts)
    sentence(
        lambda: load_pairs(file), "p.parquet: a text in rows 0 to", "is not UTF-8: write it anew"
    )


def test_no_pair_at_all_names_the_cure_that_can_help(u, g):
    wordless = partial(complete, completer=lambda record: None)
    with pytest.raises(ValueError, match="top_n 10: let a language model .* --complete llm, or"):
        pair_records(u, g, PairSettings(mix="aligned", clusters=2), wordless)
