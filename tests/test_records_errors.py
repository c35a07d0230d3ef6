"""Records from broken, odd or mistyped sources: one sentence each.

What a tar may lack is skipped, counted and named.
"""

import errno
import io
import json

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageColumn
from safetensors import SafetensorError

from pairuni_nb import load
from pairuni_nb.encoders import pixel_features
from pairuni_nb.load import load_records, read_records
from pairuni_nb.records import Store, new_folder, read_image, save_records, write_whole
from pairuni_nb.world import records
from test_load import write_tar


@pytest.fixture
def g():
    return records("g", 12, 0)


def sentence(call, *words):
    "The call fails with one line that holds all the words."
    with pytest.raises(ValueError) as e:
        call()
    text = str(e.value)
    assert "\n" not in text and len(text) < 500, text
    for word in words:
        assert word in text, text


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def captioned(rows):
    return [
        (f"{i:05}", dict(png=png(r["image"]), txt=r["prompt"].encode())) for i, r in enumerate(rows)
    ]


def test_missing_or_empty_records(tmp_path):
    sentence(lambda: load_records(tmp_path / "nowhere", "u"), "nowhere", "records.jsonl")
    (tmp_path / "empty").mkdir()
    sentence(lambda: load_records(tmp_path / "empty", "u"), "empty", "records.jsonl")
    (tmp_path / "a.jsonl").write_text("\n\n")
    sentence(lambda: load_records(tmp_path / "a.jsonl", "g"), "a.jsonl has no rows")
    (tmp_path / "d.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    sentence(lambda: load_records(tmp_path / "d.jsonl", "g"), "d.jsonl", "line 1 is not UTF-8")
    (tmp_path / "a.txt").write_text("hello")
    sentence(lambda: load_records(tmp_path / "a.txt", "g"), "a.txt", ".csv", "reads no .txt")
    (tmp_path / "b.jsonl").write_text('{"image": "x.png", "prompt": "a cat"}\nnonsense')
    sentence(lambda: load_records(tmp_path / "b.jsonl", "g"), "line 2 is not JSON")
    (tmp_path / "c.jsonl").write_text("3\n[1, 2]")
    sentence(lambda: load_records(tmp_path / "c.jsonl", "g"), "line 1 is not a JSON object")


def rewrite(folder, row, **values):
    "Change one line of a folder's records.jsonl; a value of ... removes the column."
    file = folder / "records.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[row] = {k: v for k, v in (rows[row] | values).items() if v is not ...}
    file.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize(
    "source, values, words",
    [
        ("u", dict(answer=...), ["lacks the columns answer", "it has id, image"]),
        ("u", dict(answer=None), ["no answer"]),
        ("u", dict(answer="mauve"), ["'mauve' is not among"]),
        ("u", dict(choices=["yes"]), ["two to eight different choices", "yes"]),
        ("u", dict(choices=...), ["lacks the columns choices"]),
        ("u", dict(matcher="number"), ["is not a number"]),
        ("u", dict(matcher="regex"), ["'regex'", "number"]),
        ("g", dict(prompt=""), ["no prompt"]),
        ("g", dict(prompt=...), ["lacks the columns prompt"]),
        ("g", dict(image="images/none.png"), ["images/none.png"]),
        ("g", dict(image=7), ["no image", "7"]),
        ("g", dict(id="g0-0"), ["g0-0", "twice"]),
    ],
)
def test_bad_records(tmp_path, source, values, words):
    save_records(records(source, 4, 0), tmp_path / "r")
    rewrite(tmp_path / "r", 2, **values)
    sentence(lambda: load_records(tmp_path / "r", source), "row 2", *words)


@pytest.mark.parametrize("scene", ["kitchen", '{"place": "kitchen"}', {"kind": "kitchen"}, 7])
def test_a_scene_column_of_another_meaning(tmp_path, scene):
    save_records(records("u", 4, 0), tmp_path / "u")
    rewrite(tmp_path / "u", 2, scene=scene)
    sentence(
        lambda: load_records(tmp_path / "u", "u"),
        "row 2",
        "kitchen" if scene != 7 else "7",
        "toy world",
        "scene= in --columns-u",
    )
    assert {r["scene"] for r in load_records(tmp_path / "u", "u", columns="scene=")} == {""}


def test_a_byte_order_mark_is_no_part_of_the_json(tmp_path, g):
    save_records(g, tmp_path / "g")
    file = tmp_path / "g/records.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(load_records(tmp_path / "g", "g")) == len(g)


def test_a_limit_or_side_below_zero(tmp_path, g):
    save_records(g, tmp_path / "g")
    sentence(lambda: load_records(tmp_path / "g", "g", limit=-3), "limit is -3", "at least 0")
    sentence(lambda: load_records(tmp_path / "g", "g", max_side=-3), "max_side is -3", "at least 0")


def test_unreadable_image_of_a_record(tmp_path, g):
    save_records(g, tmp_path / "g")
    for content in (b"not an image", (tmp_path / "g/images/000001.png").read_bytes()[:80], b""):
        (tmp_path / "g/images/000003.png").write_bytes(content)
        sentence(
            lambda: load_records(tmp_path / "g", "g"),
            "row 3",
            "cannot read the image images/000003.png",
        )


def test_transparent_images_are_laid_on_white(tmp_path, g):
    from PIL import Image

    save_records(g[:1], tmp_path / "g")
    Image.new("RGBA", (5, 5), (255, 0, 0, 0)).save(tmp_path / "g/images/000000.png")
    assert load_records(tmp_path / "g", "g")[0]["image"].getpixel((2, 2)) == (255, 255, 255)


@pytest.mark.parametrize("dtype, format", [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF")])
def test_sixteen_bit_greys_keep_their_tones(tmp_path, dtype, format):
    from PIL import Image

    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / "x", format)
    assert np.array_equal(
        np.asarray(read_image(str(tmp_path / "x"))), np.repeat((ramp // 256)[..., None], 3, 2)
    )
    assert np.array_equal(
        pixel_features([ramp]),
        pixel_features([np.repeat((ramp // 256)[..., None], 3, 2).astype(np.uint8)]),
    )


@pytest.mark.parametrize("dtype", ["f4", "i4"])
def test_images_of_numbers_without_a_white_are_refused(tmp_path, dtype):
    from PIL import Image

    Image.fromarray((np.eye(8) * 200).astype(dtype)).save(tmp_path / "x.tif")
    sentence(lambda: read_image(str(tmp_path / "x.tif")), "x.tif", "8-bit RGB")


def test_texts_with_odd_line_ends_survive(tmp_path, g):
    g[0]["prompt"] = "one\u2028two\x85three\r\nfour"
    save_records(iter(g), tmp_path / "g")  # an iterator will do
    assert load_records(tmp_path / "g", "g")[0]["prompt"] == g[0]["prompt"]


def test_a_mistyped_path_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "load_dataset", lambda *a, **k: pytest.fail("asked the Hub"))
    for path in tmp_path / "nowhere", "nowhere", "./no/where", "a/b/c":
        sentence(lambda: load_records(path, "g"), str(path), "no such file or folder")


def test_an_id_is_streamed_from_the_hub(monkeypatch, g):
    asked = []

    def fake(*args, **options):
        asked.append((args, options))
        return Dataset.from_list(g).cast_column("image", ImageColumn()).to_iterable_dataset()

    monkeypatch.setattr(load, "load_dataset", fake)
    assert [r["prompt"] for r in load_records("owner/some-set_1.0", "g", limit=3)] == [
        r["prompt"] for r in g[:3]
    ]
    assert asked == [(("owner/some-set_1.0",), dict(split="train", streaming=True))]


def test_a_parquet_file_that_lies_elsewhere(g):
    import fsspec

    with fsspec.open("memory://g.parquet", "wb") as f:
        Dataset.from_list(g).cast_column("image", ImageColumn()).to_parquet(f)
    assert [r["prompt"] for r in load_records("memory://g.parquet", "g")] == [
        r["prompt"] for r in g
    ]


def test_files_that_are_not_what_their_name_says(tmp_path, g):
    for name in "x.tar", "x.parquet":
        (tmp_path / name).write_text("hello" * 300)
    sentence(lambda: load_records(tmp_path / "x.tar", "g"), "x.tar cannot be read past row 0")
    sentence(lambda: load_records(tmp_path / "x.parquet", "g"), "x.parquet")
    sentence(lambda: load_records(tmp_path / "none.tar", "g"), "none.tar cannot be read")
    sentence(lambda: load_records(tmp_path / "*.tgz", "g"), ".tgz", "no such file")
    sentence(lambda: load_records(tmp_path / "none.parquet", "g"), "none.parquet")
    write_tar(tmp_path / "empty.tar", [])
    sentence(lambda: load_records(tmp_path / "empty.tar", "g"), "empty.tar")


def test_a_tar_that_ends_early(tmp_path, g):
    whole = write_tar(tmp_path / "x.tar", captioned(g)).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: 5 * 1024 + 700])
    sentence(lambda: load_records(tmp_path / "x.tar", "g"), "x.tar cannot be read past row")


@pytest.mark.parametrize("name, content", [("txt", "café".encode("latin-1")), ("json", b"{")])
def test_a_text_that_cannot_be_read_is_one_bad_row(tmp_path, g, name, content):
    samples = captioned(g * 2)
    samples[4][1][name] = content
    write_tar(tmp_path / "x.tar", samples)
    rows, counts = read_records(tmp_path / "x.tar", "g")
    assert len(rows) == 23 and [bad["id"] for bad in counts["bad_rows"]] == ["x/00004"]
    sentence(lambda: load_records(tmp_path / "x.tar", "g", max_bad=0), "1 of 24", "row 4", "x/0000")


def test_odd_members_of_a_tar(tmp_path, g):
    samples = [
        ("a/b/00000", dict(JPG=png(g[0]["image"]), txt=b" a cat \n")),
        ("README", dict(md=b"hello")),
        (
            "a/b/00001",
            dict(
                webp=png(g[1]["image"]),
                json=json.dumps(dict(prompt="a dog", id="mine", image="elsewhere.png")).encode(),
                cls=b"7",
            ),
        ),
        ("a/b/00002", dict(png=png(g[2]["image"]), json=b"[1, 2]", txt=b"a cow")),
    ]
    rows, counts = read_records(write_tar(tmp_path / "odd.tar", samples), "g")
    assert [(r["id"], r["prompt"]) for r in rows] == [
        ("odd/a/b/00000", "a cat"),
        ("odd/a/b/00001", "a dog"),
        ("odd/a/b/00002", "a cow"),
    ]
    assert counts["rows"] == 3 and counts["bad"] == 0


def test_the_same_key_in_two_tars_is_two_records(tmp_path, g):
    for name, rows in ("a", g[:4]), ("b", g[4:8]):
        write_tar(tmp_path / f"{name}.tar", captioned(rows))
    assert [r["id"] for r in load_records(tmp_path, "g")] == [
        f"{name}/{i:05}" for name in "ab" for i in range(4)
    ]
    assert (
        len(load_records(tmp_path / "*.tar", "g")) == 8
        and len(load_records(tmp_path, "g", limit=5)) == 5
    )
    sentence(
        lambda: load_records(
            write_tar(tmp_path / "c.tar", captioned(g[:2]) + captioned(g[:1])), "g", max_bad=0
        ),
        "row 2 (id c/00000): the id occurs twice",
    )


def test_a_hopeless_tar_is_given_up_early(tmp_path, g):
    write_tar(tmp_path / "x.tar", [(f"{i:05}", dict(txt=b"no image at all")) for i in range(1000)])
    sentence(
        lambda: load_records(tmp_path / "x.tar", "g"),
        "101 of the first 101 rows are bad",
        "00000",
        "00002",
    )
    good = captioned(g)[0][1]
    write_tar(
        tmp_path / "y.tar",
        [(f"{i:05}", dict(txt=b"no image") if i < 15 else good) for i in range(300)],
    )  # 5 %, all at the start
    assert len(load_records(tmp_path / "y.tar", "g")) == 285


def test_what_is_skipped_is_said(tmp_path, g, capsys):
    samples = captioned(g * 3)
    samples[7][1]["png"] = b"broken"
    rows = load_records(write_tar(tmp_path / "x.tar", samples), "g")
    said = capsys.readouterr()
    assert (
        len(rows) == 35
        and said.err.count("\n") == 1
        and all(w in said.err for w in ("1 of 36 rows skipped", "x/00007", "00007.png"))
        and not said.out
    )


def test_a_tolerant_reader_of_a_file_and_a_strict_one_of_a_tar(tmp_path, g):
    save_records(g, tmp_path / "g")
    rewrite(tmp_path / "g", 2, prompt="")
    assert read_records(tmp_path / "g", "g", max_bad=0.1)[1]["bad"] == 1
    samples = captioned(g)
    del samples[2][1]["txt"]
    sentence(
        lambda: load_records(write_tar(tmp_path / "x.tar", samples), "g", max_bad=0),
        "x.tar: 1 of 12 rows is bad",
        "row 2 (id x/00002): needs one picture and next to it a .txt or .json, has .png",
    )
    for share in -0.1, 1, 5:
        sentence(
            lambda: read_records(tmp_path / "g", "g", max_bad=share),
            f"max_bad is {share}",
            "[0, 1)",
        )


def test_columns_of_other_names(tmp_path, g):
    table = Dataset.from_list(
        [dict(picture=r["image"], caption=r["prompt"], key=i) for i, r in enumerate(g)]
    ).cast_column("picture", ImageColumn())
    table.to_parquet(tmp_path / "x.parquet")
    rows = load_records(
        tmp_path / "x.parquet", "g", columns="image=picture, prompt=caption, id=key", max_side=24
    )
    assert (
        [r["id"] for r in rows] == [str(i) for i in range(12)]
        and rows[3]["prompt"] == g[3]["prompt"]
        and rows[0]["image"].size == (24, 24)
    )
    sentence(
        lambda: load_records(tmp_path / "x.parquet", "g"),
        "lacks the columns image, prompt; it has picture, caption, key",
    )
    sentence(
        lambda: load_records(tmp_path / "x.parquet", "g", columns="image=picture,prompt=text"),
        "lacks the columns text; it has picture",
    )
    sentence(
        lambda: load_records(tmp_path / "x.parquet", "g", columns="picture=image"),
        "'picture='",
        "prompt",
    )


def test_images_as_bare_bytes_and_as_paths(tmp_path, g):
    (tmp_path / "a").mkdir()
    for i, r in enumerate(g):
        r["image"].save(tmp_path / f"a/{i}.png")
    Dataset.from_list([dict(image=png(r["image"]), prompt=r["prompt"]) for r in g]).to_parquet(
        tmp_path / "bytes.parquet"
    )
    Dataset.from_list(
        [dict(image=f"a/{i}.png", prompt=r["prompt"]) for i, r in enumerate(g)]
    ).to_parquet(tmp_path / "paths.parquet")
    for file in "bytes.parquet", "paths.parquet":
        for a, b in zip(g, load_records(tmp_path / file, "g"), strict=True):
            assert np.array_equal(np.asarray(a["image"]), np.asarray(b["image"]))


def test_answers_without_choices(tmp_path, g):
    rows = [
        dict(image=png(r["image"]), question="what?", answer=a)
        for r, a in zip(g, ("7", "1/2", "seven", "Main Street"))
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    sentence(
        lambda: load_records(tmp_path / "x.parquet", "u"), "lacks the columns choices"
    )  # not guessed in silence
    got = load_records(tmp_path / "x.parquet", "u", columns="choices=")
    assert [(r["matcher"], r["choices"]) for r in got] == [
        ("number", []),
        ("number", []),
        ("text", []),
        ("text", []),
    ]
    Dataset.from_list([r | dict(how="text", answer=i) for i, r in enumerate(rows)]).to_parquet(
        tmp_path / "y.parquet"
    )
    assert {
        (r["matcher"], r["answer"])
        for r in load_records(tmp_path / "y.parquet", "u", columns="matcher=how")
    } == {("text", str(i)) for i in range(4)}


def test_an_adapter_leaves_rows_out_or_says_what_is_wrong(tmp_path, g):
    save_records(g, tmp_path / "g")
    rows, counts = read_records(
        tmp_path / "g",
        "g",
        adapt=lambda row: (
            dict(image=row["image"], prompt="x") if row["id"] == "g0-5" else "not wanted"
        ),
    )
    assert (
        [r["id"] for r in rows] == ["g5"]
        and counts["left_out"] == {"not wanted": 11}
        and counts["bad"] == 0
    )
    sentence(
        lambda: read_records(tmp_path / "g", "g", adapt=lambda row: "a scan"),
        "no record to use",
        "12 rows",
        "a scan",
    )

    def refuse(row):
        raise ValueError("two heads")

    sentence(
        lambda: read_records(tmp_path / "g", "g", adapt=refuse),
        "12 of 12 rows are bad",
        "row 0 (id g0-0), row 1 (id g0-1), row 2 (id g0-2): two heads",
    )


@pytest.mark.parametrize(
    "choices", [[{"text": "red"}, {"text": "blue"}], {"A": "red", "B": "blue"}, "red, blue", 7]
)
def test_choices_that_are_no_list_of_texts_are_named(tmp_path, choices):
    save_records(records("u", 2, 0), tmp_path / "u")
    file = tmp_path / "u/records.jsonl"
    rows = [json.loads(line) | dict(choices=choices) for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="row 0 .*must be a list of texts"):
        load_records(tmp_path / "u", "u")


def test_choices_may_be_numbers(tmp_path):
    save_records(records("u", 1, 0), tmp_path / "u")
    file = tmp_path / "u/records.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(choices=[2, 3, 4], answer=3)))
    (row,) = load_records(tmp_path / "u", "u")
    assert row["choices"] == ["2", "3", "4"] and row["answer"] == "3"


def test_a_file_is_whole_or_as_it_was(tmp_path, g):
    file = tmp_path / "new" / "x.png"
    (tmp_path / "new" / ".x.png").mkdir(parents=True)  # what a killed run left behind
    write_whole(file, g[0]["image"].save)  # by its ending a PNG
    whole = file.read_bytes()

    def dies(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_whole(file, dies)
    assert whole.startswith(b"\x89PNG") and file.read_bytes() == whole
    write_whole(file, lambda path: path.write_text("new"))
    assert file.read_text() == "new" and [p.name for p in file.parent.iterdir()] == ["x.png"]


def test_a_folder_is_replaced(tmp_path):
    for name in "checkpoint", ".checkpoint":
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()

    def write(path):
        path.mkdir()
        (path / "new").touch()

    write_whole(tmp_path / "checkpoint", write)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == [
        "checkpoint",
        "checkpoint/new",
    ]


class Nearly(io.RawIOBase):
    "A file on a disk with room for some more bytes."

    def __init__(self, room):
        self.room, self.held = room, b""

    def writable(self):
        return True

    def write(self, raw):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = bytes(raw[: min(self.room, -(-len(raw) // 2))])
        self.room -= len(part)
        self.held += part
        return len(part)


def test_a_disk_that_is_nearly_full_is_told_as_a_full_disk():
    store = Store()
    store.file = Nearly(100)
    store.keep(b"a" * 60)
    assert store.file.held == b"a" * 60 and store.end == 60
    with pytest.raises(OSError, match="cannot be kept in .*No space left.*HF_DATASETS_CACHE"):
        store.keep(b"b" * 60)
    assert store.end == len(store.file.held) == 100


@pytest.mark.parametrize("choices", ("[{{}}]", "[{[]: 1}]", "[" * 5000))
def test_choices_that_are_almost_python(tmp_path, choices):
    save_records(records("u", 2, 0), tmp_path / "u")
    file = tmp_path / "u/records.jsonl"
    rows = [json.loads(line) | dict(choices=choices) for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, rows)))
    sentence(lambda: load_records(tmp_path / "u", "u"), "row 0", "must be a list of texts")


@pytest.mark.parametrize("write", ("file", "folder"))
@pytest.mark.parametrize(
    "error",
    (
        OSError(errno.ENOSPC, "Error writing bytes to file"),  # as Arrow says it
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ),
)
def test_a_full_disk_is_named_with_what_did_not_fit(tmp_path, write, error):
    def fails(part):
        raise error

    with pytest.raises(OSError, match="out' cannot be written .*No space left.*make room"):
        if write == "file":
            write_whole(tmp_path / "out", fails)
        with new_folder(tmp_path / "out") as part:
            write_whole(part / "inside", fails)
    with pytest.raises(FileNotFoundError, match="no/file"):  # another error keeps its own words
        write_whole(tmp_path / "out", lambda part: (part / "no/file").write_text(""))
    assert not list(tmp_path.iterdir())
