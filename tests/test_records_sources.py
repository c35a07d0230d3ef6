"""What ordinary people have is read as it stands, or refused in one sentence that names file, row and cure."""

import base64
import io
import json
import os
import struct
import tarfile
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from PIL import Image

from pairuni_nb.cli import main
from pairuni_nb.load import PICTURES, load_records, read_records
from pairuni_nb.records import read_image, save_records
from pairuni_nb.world import records
from test_load import write_tar


def encoded(size=(20, 10), format="PNG", colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


PNG = encoded()
IN_BASE64 = base64.b64encode(encoded((300, 200))).decode()


@pytest.fixture(autouse=True)
def in_a_folder_with_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").write_bytes(PNG)


def put(name, content):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return name


def lines(*rows):
    return "\n".join(map(json.dumps, rows))


def prompts(path, **how):
    return [record["prompt"] for record in load_records(path, "g", **how)]


def refused(call, *words):
    with pytest.raises(ValueError) as e:
        call()
    said = str(e.value)
    assert "\n" not in said and len(said) < 400 and all(word in said for word in words), said
    return said


def bad_ones(path, source="g", **how):
    "What a generous reader lists as bad: {row: reason}."
    _, counts = read_records(path, source, max_bad=0.99, **how)
    assert counts["bad"] == len(counts["bad_rows"])
    return {bad["row"]: bad["reason"] for bad in counts["bad_rows"]}


# tables


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", 'image,prompt\nx.png,"a, cat"\nx.png,"two\nlines"\n'),
        ("a.CSV", '\ufeffimage, prompt\r\nx.png, "a, cat"\r\n\r\nx.png,"two\nlines"\r\n,\r\n'),
        ("a.csv", 'file_name;prompt;\nx.png;"a, cat";\nx.png;"two\nlines";\n'),
        ("a.csv", 'image;prompt;a, b, c\nx.png;"a, cat";1\nx.png;"two\nlines";2\n'),
        ("a.csv", 'image,prompt,,\nx.png,"a, cat",,\nx.png,"two\nlines",,\n'),
        ("a.tsv", 'image_path\tprompt\nx.png\ta, cat\nx.png\t"two\nlines"\n'),
        ("a.json", json.dumps([dict(path="x.png", prompt=p) for p in ("a, cat", "two\nlines")])),
        ("a.ndjson", lines(*[dict(image=["x.png"], prompt=p) for p in ("a, cat", "two\nlines")])),
        ("only/a.csv", 'image,prompt\nx.png,"a, cat"\nx.png,"two\nlines"\n'),
        ("hf/metadata.csv", 'file_name,prompt\nx.png,"a, cat"\nx.png,"two\nlines"\n'),
        ("hf/train/metadata.csv", 'file_name,prompt\nx.png,"a, cat"\ny.png,"two\nlines"\n'),
        ("hf/metadata.jsonl", lines(*[dict(file_name="x.png", prompt=p) for p in ("a, cat", "two\nlines")])),
    ],
)  # fmt: skip
def test_tables_are_read_as_they_stand(name, content):
    put(name, content)
    folder = os.path.dirname(name)
    for picture in "xy":
        put(os.path.join(folder, f"{picture}.png"), PNG)
    assert prompts(folder.split("/")[0] or name) == ["a, cat", "two\nlines"]


def test_a_comma_or_a_quote_too_many_is_never_a_caption():
    put("a.csv", "image,prompt\nx.png,a, cat\nx.png,b\nx.png\n")
    assert bad_ones("a.csv").keys() == {0, 2}
    refused(
        lambda: prompts("a.csv"),
        "a.csv: 2 of 3 rows",
        "3 cells where the first line has 2",
        "quotes",
    )
    put("b.csv", 'image,prompt\nx.png,b\nx.png,"a cat\n' + "x.png,c\n" * 20)
    assert len(bad_ones("b.csv")) == 21  # all lines that the open quote swallowed
    put("c.csv", 'image,prompt\nx.png,"a" cat\nx.png,b\n')
    assert "quotes of line 2" in bad_ones("c.csv")[0]
    put("d.csv", "image,prompt,prompt\nx.png,a,b\n")
    refused(lambda: prompts("d.csv"), "names prompt twice")


def test_other_encodings_are_bad_rows_and_not_captions():
    put("a.csv", "image,prompt,note\nx.png,café,1\nx.png,b,é\n".encode("latin-1"))
    assert list(bad_ones("a.csv")) == [0]  # nobody reads the note
    put(
        "a.jsonl",
        (lines(dict(image="x.png", prompt="b")) + '\n{"prompt": "café"}').encode("latin-1"),
    )
    assert "line 2 is not UTF-8" in bad_ones("a.jsonl")[1]
    put("b.csv", "image,prompt\nx.png,a\n".encode("utf-16"))
    refused(lambda: prompts("b.csv"), "UTF-16", "save it as UTF-8")
    text = pa.array([b"caf\xe9", b"b"]).view(pa.string())
    pq.write_table(pa.table(dict(image=[PNG, PNG], prompt=text)), "a.parquet")
    assert "not UTF-8" in bad_ones("a.parquet")[0]
    Dataset.from_parquet("a.parquet").save_to_disk("arrow")
    os.makedirs("folder/data")
    os.rename("a.parquet", "folder/data/train-00000-of-00002.parquet")
    pq.write_table(
        pa.table(dict(image=[PNG], prompt=["c"])), "folder/data/train-00001-of-00002.parquet"
    )
    for form in "arrow", "folder":
        assert list(bad_ones(form)) == [0] and "not UTF-8 at byte 3" in bad_ones(form)[0]
        refused(lambda: prompts(form, max_bad=0), form, "row 0", "not UTF-8")
    assert prompts("folder", max_bad=0.5) == ["b", "c"]


def test_a_list_in_a_cell():
    put(
        "a.csv",
        "image;question;choices;answer\n"
        "['x.png'];q;['a', 'b'];b\n"
        'x.png;q;["2", 3];3\n'
        "x.png;q;a|b;a\n"
        "x.png;q;;a\n"
        "['x.png', 'x.png'];q;['a', 'b'];b\n",
    )
    (a, b), counts = read_records("a.csv", "u", max_bad=0.7)
    assert (a["choices"], b["choices"], b["answer"]) == (["a", "b"], ["2", "3"], "3")
    reasons = [bad["reason"] for bad in counts["bad_rows"]]
    for words, reason in zip(
        ("a list of texts", "two to eight", "this row has 2"), reasons, strict=True
    ):
        assert words in reason


@pytest.mark.parametrize("empty", [float("nan"), None, "nan", "NaN", "", " ", "<NA>", float("inf")])
def test_an_empty_cell_is_no_answer(empty):
    good = dict(
        image="x.png", question="q?", choices=["a", "nan cake"], answer="a", id=1, scene=None
    )
    odd = [dict(answer=empty), dict(question=empty), dict(choices=["a", empty]), dict(image=empty)]
    put(
        "a.jsonl",
        lines(*[good | dict(id=i) | row for i, row in enumerate([*odd, dict(scene=empty)])]),
    )
    assert len(bad_ones("a.jsonl", "u")) == 4
    put(
        "b.jsonl",
        lines(*[dict(image="x.png", question="q", answer=a, id=empty) for a in (empty, "b", 2.0)]),
    )
    rows, _ = read_records("b.jsonl", "u", columns="choices=", max_bad=0.5)
    kept = [(row["id"], row["answer"], row["matcher"]) for row in rows]
    assert kept == [("u1", "b", "text"), ("u2", "2", "number")]
    table = pa.table(dict(image=[PNG] * 2, question=["q"] * 2, answer=[np.nan, 7.0]))
    pq.write_table(table, "a.parquet")
    assert bad_ones("a.parquet", "u", columns="choices=") == {0: "no answer"}


@pytest.mark.parametrize(
    "image",
    [
        IN_BASE64,
        IN_BASE64.rstrip("="),
        f"data:image/png;base64,{IN_BASE64}",
        [IN_BASE64],
        dict(bytes=IN_BASE64, path="a.png"),
    ],
)
def test_images_in_base64(image):
    put("a.jsonl", lines(dict(image=image, prompt="a")))
    assert load_records("a.jsonl", "g")[0]["image"].size == (300, 200)
    broken = json.loads(json.dumps(image).replace(IN_BASE64[40:-4], IN_BASE64[40:200]))
    put("b.jsonl", lines(dict(image=broken, prompt="a")))
    refused(lambda: prompts("b.jsonl"), "row 0", "in base64")


def test_base64_may_be_broken_into_lines():
    broken = "\r\n".join(IN_BASE64[i : i + 76] for i in range(0, len(IN_BASE64), 76))
    put("a.jsonl", lines(dict(image=broken, prompt="a")))
    assert load_records("a.jsonl", "g")[0]["image"].size == (300, 200)


def test_images_are_found_again_from_another_folder(tmp_path, monkeypatch):
    put("pictures/y.png", PNG)
    put("a.jsonl", lines(dict(image="x.png", prompt="a")))
    put("b.jsonl", lines(dict(image="y.png", prompt="b")))
    (a,), (b,) = load_records("a.jsonl", "g"), load_records("b.jsonl", "g", images="pictures")
    os.mkdir("elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert a["image"].size == b["image"].size == (20, 10)


def test_images_as_a_list_of_one():
    struct_ = dict(bytes=PNG, path=None)
    for i, cell in enumerate(([struct_], [PNG], struct_, PNG)):
        pq.write_table(pa.table(dict(images=[cell], prompt=["a"])), f"{i}.parquet")
        assert prompts(f"{i}.parquet") == ["a"]
    pq.write_table(pa.table(dict(images=[[PNG] * 2, []], prompt=["a", "b"])), "two.parquet")
    refused(lambda: prompts("two.parquet"), "this row has 2", "this row has 0")


def test_a_missing_column_names_its_cure():
    put("a.csv", "file_name,text,question,answer\nx.png,a,q,7\n")
    refused(lambda: prompts("a.csv"), "lacks the columns prompt", "--columns-g ours=yours")
    refused(lambda: load_records("a.csv", "u"), "lacks the columns choices", "--columns-u choices=")
    assert prompts("a.csv", columns="prompt=text") == ["a"]
    assert load_records("a.csv", "u", columns="choices=")[0]["matcher"] == "number"
    put("c.csv", "path,picture,prompt\nnone.png,x.png,a\n")
    assert prompts("c.csv", columns="image=picture") == ["a"]  # what is named is not guessed
    put("d.csv", "image,question,answer,how\nx.png,q,7,text\nx.png,q,7,\n")
    rows = load_records("d.csv", "u", columns="choices=,matcher=how")
    assert [row["matcher"] for row in rows] == ["text", "number"]
    put("b.csv", "path,filename,prompt\nx.png,x.png,a\n")
    refused(lambda: prompts("b.csv"), "lacks the columns image; it has path, filename")  # no guess


def test_a_table_on_the_hub_has_no_features_to_decode(monkeypatch):
    put("a.csv", "image,prompt,note\nx.png,a,\nx.png,nan,1\n")

    def fake(path, **how):
        return load_dataset("csv", data_files="a.csv", cache_dir="cache", **how)

    monkeypatch.setattr("pairuni_nb.load.load_dataset", fake)
    os.mkdir("owner")  # where its paths start
    put("owner/x.png", PNG)
    assert bad_ones("owner/set") == {1: "no prompt"}


def test_a_folder_with_several_tables_is_no_guess():
    for side in "ug":
        put(f"d/{side}.csv", "image,prompt\nx.png,a\n")
    refused(lambda: prompts("d"), "several tables", "g.csv, u.csv")


def test_what_datasets_writes_beside_a_table_is_no_table():
    put("d/a.csv", "image,prompt\nx.png,a\n")
    put("d/x.png", PNG)
    for name in "dataset_info", "dataset_infos", "dataset_dict":
        put(f"d/{name}.json", "{}")
    assert prompts("d") == ["a"]
    put("e/stats.json", '{"rows": 1}')
    os.makedirs("e/data")
    rows = pa.table(dict(image=[PNG], prompt=["b"]))
    pq.write_table(rows, "e/data/train-00000-of-00001.parquet")
    assert prompts("e") == ["b"]


@pytest.mark.parametrize(
    "answer, text", [(2.0, "2"), (-3, "-3"), (0.5, "0.5"), (1e300, "1e+300"), (0, "0")]
)
def test_a_number_is_its_shortest_text(answer, text):
    put("a.jsonl", lines(dict(image="x.png", question="q", answer=answer, id=answer)))
    (row,) = load_records("a.jsonl", "u", columns="choices=")
    assert (row["answer"], row["id"], row["matcher"]) == (text, text, "number")


# files that share a name


def test_pictures_with_their_texts_in_a_folder():
    for name in "a/0.jpg", "a/cat_v1.0_3.PNG", "a/sub/1.webp", "a/.hidden/1.jpg":
        put(name, PNG)
        put(os.path.splitext(name)[0] + ".txt", f"\ufeff{name}\n")
    put("a/README.md", "hello")
    put("a/old.txt/0.md", "a folder with the name of a text")
    got = {r["id"]: r["prompt"] for r in load_records("a", "g")}
    ids = dict.fromkeys(("0", "cat_v1.0_3", "sub/1"))
    assert got.keys() == ids.keys() and all(text.startswith(f"a/{id}.") for id, text in got.items())
    put("a/9.jpg", PNG)
    put("a/9.txt", "café".encode("latin-1"))
    put("a/8.jpg", PNG)
    refused(
        lambda: load_records("a", "g"), "2 of 5 rows", "id 8", "next to it a .txt", "id 9", "UTF-8"
    )
    texts = dict(question="q?", choices=["a", "b"], answer="b", image="elsewhere.png")
    put("u/0.png", PNG)
    put("u/0.json", json.dumps(texts))
    assert load_records("u", "u")[0]["answer"] == "b"


def tar_of(name, files, mode="w"):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    samples = []
    for member, content in files:
        key, _, ending = member.rpartition(".")
        samples.append((key, {ending: content if isinstance(content, bytes) else content.encode()}))
    return write_tar(name, samples, mode)


def test_names_with_dots_in_a_tar():
    names = ["a.v1", "a.v2", "a", "v1.0_0", "v1.0_1", "z"]
    files = [(f"{n}{end}", c) for n in names for end, c in ((".png", PNG), (".txt", n))]
    tar_of("t.tar", files)
    assert [r["id"] for r in load_records("t.tar", "g")] == [f"t/{n}" for n in names]
    assert prompts("t.tar") == names


def test_a_text_beside_a_json_is_the_prompt_and_names_begin_at_the_tar():
    told = json.dumps(dict(prompt="from the json", scene=None))
    files = [("./0.png", PNG), ("./0.json", told), ("./0.txt", "from the text")]
    (row,) = load_records(tar_of(".cache/t.tar", files), "g")
    assert (row["id"], row["prompt"]) == ("t/0", "from the text")
    assert [r["id"] for r in load_records(os.path.abspath(".cache"), "g")] == ["t/0"]


def test_a_member_that_is_all_holes_is_passed_over():
    "A few bytes may claim any size, and reading it would fill the memory."
    info = tarfile.TarInfo("1.txt")
    info.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[483:495] = b"%011o\0" % (1 << 20)  # its size with the holes
    head[148:156] = b" " * 8
    head[148:155] = b"%06o\0" % sum(head)
    tar_of("t.tar", [("0.png", PNG), ("0.txt", "a cat"), ("1.png", PNG)])
    whole = open("t.tar", "rb").read().rstrip(b"\0")
    put("t.tar", whole + b"\0" * (-len(whole) % 512) + bytes(head) + b"\0" * 1024)
    assert "has .png" in bad_ones("t.tar")[1] and prompts("t.tar", max_bad=0.5) == ["a cat"]


def test_further_pictures_of_a_sample_are_no_samples():
    files = [(f"{i}{end}", c) for i in range(9) for end, c in (
        (".depth.png", PNG), (".jpg", encoded((40, 10))), (".json", "{}"), (".seg.png", PNG), (".txt", "c")
    )]  # fmt: skip
    rows, counts = read_records(tar_of("t.tar", files), "g", max_bad=0)
    assert [r["image"].size for r in rows] == [(40, 10)] * 9 and counts["rows"] == 9
    tar_of("two.tar", [("0.jpg", PNG), ("0.png", PNG), ("0.txt", "c")])
    refused(lambda: prompts("two.tar"), "one picture", "has .jpg, .png, .txt")


def test_every_kind_of_picture_that_pillow_writes():
    kinds = {end: kind for end, kind in Image.registered_extensions().items() if end in PICTURES}
    files = []
    for end, kind in kinds.items():
        if kind in Image.SAVE and kind not in ("EPS", "IM"):  # Ghostscript's, and one that goes
            with suppress(OSError, ValueError):  # it takes no RGB
                files += [
                    (f"k{end[1:]}{end.upper()}", encoded(format=kind)),
                    (f"k{end[1:]}.txt", end),
                ]
    assert len(prompts(tar_of("t.tar", files), max_bad=0)) == len(files) / 2 > 25


def test_shards_of_the_same_name_in_two_folders():
    for folder in "ab":
        tar_of(f"d/{folder}/0.tar.gz", [("0.png", PNG), ("0.txt", folder)], "w:gz")
    for path in "d", "d/*/0.tar.gz":
        assert [r["id"] for r in load_records(path, "g")] == ["a/0/0", "b/0/0"]


def test_a_tar_does_not_end_early_without_a_word():
    files = [(f"{i}{end}", c) for i in range(30) for end, c in ((".png", PNG), (".txt", "c"))]
    whole = open(tar_of("t.tar", files), "rb").read()
    assert len(prompts("t.tar")) == 30
    hurt = bytearray(whole)
    hurt[512 * 40 + 148] ^= 7  # a header's checksum
    for name, content in ("hurt", hurt), ("cut", hurt[: 512 * 41 + 9]), ("joined", whole + whole):
        put(f"{name}.tar", bytes(content))
        refused(lambda: prompts(f"{name}.tar"), f"{name}.tar cannot be read past row", "at byte")
    tar_of("t.tar", files[::2] + files[1::2])  # texts behind all pictures
    refused(lambda: prompts("t.tar"), "60 of 60 rows", "next to it a .txt")


def test_the_share_that_may_be_bad():
    good, bad = dict(image="x.png", prompt="a"), dict(image="x.png", prompt="")
    put("a.jsonl", lines(*[bad] * 29, *[good] * 71))
    assert len(prompts("a.jsonl", max_bad=0.29)) == 71  # 0.29 * 100 is 28.999..
    refused(lambda: prompts("a.jsonl", max_bad=0.28), "29 of 100 rows")
    put("b.jsonl", lines(*[bad] * 110, *[good] * 110))  # not given up before its end
    assert len(prompts("b.jsonl", max_bad=0.6)) == 110
    files = [(f"{i}{end}", c) for i in range(20) for end, c in ((".png", PNG), (".txt", "c"))]
    tar_of("d/t.tgz", files[:-1], "w:gz")  # of all tars a twentieth, however they are named
    assert len(prompts("d")) == len(prompts("d/*.tgz")) == len(prompts("d/t.tgz")) == 19


# texts


@pytest.mark.parametrize("half", ["\ud83d", "a\udce9b"])
@pytest.mark.parametrize("field", ["id", "question", "answer", "choices", "prompt"])
def test_half_a_character_names_its_row(half, field):
    source = "g" if field == "prompt" else "u"
    row = dict(id="i", image="x.png", question="q?", choices=["a", "b"], answer="a", prompt="p")
    row[field] = ["a", half] if field == "choices" else half
    if field == "answer":
        row["choices"] = [half, "b"]
    put("a.jsonl", lines(row))
    refused(
        lambda: load_records("a.jsonl", source), "a.jsonl", "row 0", "half a character", "UTF-8"
    )


@pytest.mark.parametrize("mark", ["<image>", "<image_placeholder>", "<Image 1>", "<|image_pad|>"])
def test_a_place_for_the_image_is_taken_off_or_refused(mark):
    row = dict(image="x.png", choices=["a", "b"], answer="a")
    for question in f"{mark}\nwhich?", f"which?{mark} ", f" {mark}which?":
        put("a.jsonl", lines(row | dict(question=question)))
        (got,) = load_records("a.jsonl", "u")
        assert got["question"] == "which?" or question.startswith("which?")
    for odd in (
        dict(question=f"in {mark} which?"),
        dict(question=f"{mark}{mark} which?"),
        dict(question=mark),
        dict(question="q?", choices=["a", f"b {mark}"]),
    ):
        put("a.jsonl", lines(row | odd))
        refused(lambda: load_records("a.jsonl", "u"), "row 0")
    put("g.jsonl", lines(dict(image="x.png", prompt=f"{mark} a cat")))
    refused(lambda: prompts("g.jsonl"), mark, "leave it out")


@pytest.mark.parametrize(
    "choices, kept",
    [
        (["AA", "Aa", "aa"], True),
        (["pH", "PH"], True),
        (["x < 3", "x > 3"], True),
        (["a</b>", "<i>a"], True),
        ([" a", "b "], True),  # outer spaces go
        (["a", "a "], False),
        (["a b", "a  b"], False),
        (["a", ""], False),
        (["a", "\t"], False),
        (["e\u0301", "\u00e9"], False),  # one letter, written in two ways
        (list("abcdefghi"), False),
    ],
)
def test_choices_are_told_apart_or_refused(choices, kept):
    put("a.jsonl", lines(dict(image="x.png", question="q?", choices=choices, answer=choices[0])))
    if kept:
        (got,) = load_records("a.jsonl", "u")
        assert got["choices"] == [c.strip() for c in choices] and got["answer"] == got["choices"][0]
    else:
        refused(lambda: load_records("a.jsonl", "u"), "a.jsonl", "row 0", "choice")


def test_messages_stay_short_however_large_the_value():
    big = "x" * 500_000
    row = dict(id="i", image="x.png", question="q?", choices=["a", "b"], answer="a", prompt="p")
    for source, odd in (
        ("u", dict(answer=big)),
        ("u", dict(choices=[big, "b"], answer="c")),
        ("u", dict(choices=big)),
        ("u", dict(question=[big])),
        ("u", dict(matcher=big)),
        ("u", dict(scene=big)),
        ("u", dict(id=big, answer="c")),
        ("g", dict(image=IN_BASE64[:200] * 3000)),
        ("g", dict(image=big + ".png")),
        ("g", dict(image=dict(path=[big]))),
        ("g", dict(prompt={big: 1})),
        ("g", dict(image="a\nb.png")),
    ):
        put("a.jsonl", lines(row | odd))
        refused(lambda: load_records("a.jsonl", source), "row 0")
    put("a.jsonl", lines({f"column {i}": 1 for i in range(5000)}))
    refused(lambda: prompts("a.jsonl"), "lacks the columns")
    refused(lambda: prompts("a.jsonl", columns=f"image={big},prompt={big}"), "lacks the columns")
    refused(lambda: prompts("a.jsonl", columns=big), "not of the form")


# where paths lead


def named(path, **how):
    put("d/a.jsonl", lines(dict(image=path, prompt="a")))
    return load_records("d/a.jsonl", "g", **how)[0]["image"].size


def test_a_path_does_not_leave_its_folder(tmp_path):
    put("d/in.png", PNG)
    put("d/sub/in.png", PNG)
    put("secret/s.png", PNG)
    os.symlink(tmp_path / "secret/s.png", tmp_path / "d/out.png")
    os.symlink(tmp_path / "secret", tmp_path / "d/way")
    os.symlink("in.png", tmp_path / "d/in2.png")
    for path in "in.png", "sub/../in.png", "in2.png", str(tmp_path / "d/in.png"), "gone/../in.png":
        assert named(path) == (20, 10)
    for path in "../x.png", str(tmp_path / "x.png"), "out.png", "way/s.png", "sub/../../x.png":
        refused(lambda: named(path), "row 0", "outside", "--images-g")
    for path in (
        "file://x.png",
        f"file://{tmp_path}/x.png",
        "local://x.png",
        "zip://a::file://b.zip",
    ):
        refused(lambda: named(path), "row 0", "of no kind that is read")
    refused(
        lambda: named("way/../s.png"), "no such file"
    )  # and not secret/../s.png, or secret/s.png
    for path in "out.png", "way/s.png", "in.png":  # the links in a folder that you name are yours
        assert named(path, images="d") == (20, 10)
    for path in "../x.png", "x.png", str(tmp_path / "x.png"), "secret/s.png", "in.png":
        assert named(path, images=".") == (20, 10)
    refused(lambda: named("../x.png", images="d"), "outside the folder of images")
    refused(lambda: named("in.png", images="gone"), "no folder 'gone'")
    os.mkfifo("d/pipe")
    refused(lambda: named("pipe"), "no such file")  # which would wait for ever


def test_the_hub_s_cache_is_full_of_links_and_is_read(tmp_path):
    for name, content in ("h1", PNG), ("h2", lines(dict(image="images/0.png", prompt="a"))):
        put(f"hub/datasets--o--n/blobs/{name}", content)
    home = tmp_path / "hub/datasets--o--n/snapshots/abc"
    (home / "images").mkdir(parents=True)
    os.symlink("../../../blobs/h1", home / "images/0.png")
    os.symlink("../../blobs/h2", home / "records.jsonl")
    assert prompts(home) == prompts(home / "records.jsonl") == ["a"]
    put("blobs/h3", PNG)
    os.symlink(tmp_path / "blobs/h3", home / "images/1.png")  # blobs of another
    (home / "records.jsonl").unlink()
    put(str(home / "records.jsonl"), lines(dict(image="images/1.png", prompt="a")))
    refused(lambda: prompts(home), "outside")


# pictures


def tiff(grey, bits, zero_is=1, orientation=1):
    "A TIFF by hand, for Pillow writes none of 12 bits."
    rows = grey.astype("<u2").tobytes()
    if bits == 12:
        rows = b"".join(
            int("".join(f"{v:012b}" for v in row), 2).to_bytes(30, "big") for row in grey
        )
    h, w = grey.shape
    tags = [(256, w), (257, h), (258, bits), (259, 1), (262, zero_is), (273, 8), (274, orientation)]
    tags += [(277, 1), (278, h), (279, len(rows))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(rows))
        + rows
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def test_greys_of_twelve_and_sixteen_bits_keep_their_tones():
    ramp = np.linspace(0, 4095, 200).reshape(10, 20).astype(int)
    right = ramp // 16
    for raw, wanted in (
        (tiff(ramp, 12), right),
        (tiff(ramp * 16, 16), right),
        (tiff(65535 - ramp * 16, 16, zero_is=0), right),
        (tiff(ramp, 12, orientation=6), np.rot90(right, -1)),
    ):
        assert np.array_equal(np.asarray(read_image(raw))[..., 0], wanted)
    refused(lambda: read_image(tiff(ramp, 16)), "brightest number is 4095", "8-bit")


def test_absurd_sides_are_named():
    for size in (1, 4000), (4000, 1), (30, 1501):
        put("x.png", encoded(size))
        put("a.jsonl", lines(dict(image="x.png", prompt="a")))
        refused(lambda: prompts("a.jsonl"), "row 0", "x.png", f"{size[0]} x {size[1]}", "crop it")
    put("x.png", encoded((30, 1500)))
    assert prompts("a.jsonl") == ["a"]


def test_a_picture_of_too_many_pixels_is_named(capfd):
    Image.new("1", (10_000, 9_000)).save("x.png")
    put("a.jsonl", lines(dict(image="x.png", prompt="a")))
    refused(lambda: prompts("a.jsonl"), "10000 x 9000", "shrink it")
    assert capfd.readouterr().err == ""  # nor does Pillow warn


# how much may be bad


def test_all_bad_rows_are_counted_and_the_first_three_named():
    rows = [dict(image="x.png", prompt="" if i % 4 == 1 else "a") for i in range(40)]
    put("a.jsonl", lines(*rows))
    for share in None, 0.2:
        said = refused(
            lambda: prompts("a.jsonl", max_bad=share), "10 of 40", "--max-bad", "no prompt"
        )
        assert said.count("row ") == 3 and "row 1, row 5, row 9" in said
    assert len(prompts("a.jsonl", max_bad=0.25)) == 30


def test_bad_rows_are_listed_beside_the_pairs(capsys, tmp_path):
    for side in "ug":
        save_records(records(side, 20, 0), side)
    us = open("u/records.jsonl").read().splitlines()
    put("u/records.jsonl", "\n".join([us[0].replace("images/", "gone/"), "{", *us[2:]]))
    gs = open("g/records.jsonl").read().splitlines()
    put("g/a.json", f"[{','.join(gs)}]")
    os.remove("g/records.jsonl")
    argv = ["pair", "u", "g", "--out", "out", "--clusters", "4"]
    assert main(argv) == 2 and main([*argv, "--max-bad", "0.05"]) == 2
    assert not os.path.exists("out")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("2 of 20 rows are bad" in line for line in said)
    assert main([*argv, "--max-bad", "0.1"]) == 0
    assert "18 records of 20 rows; 2 bad" in capsys.readouterr().err
    bad = [json.loads(line) for line in open("out/bad_rows.jsonl")]
    assert [(row["side"], row["row"], row["id"]) for row in bad] == [
        ("u", 0, "u0-0"),
        ("u", 1, None),
    ]
    assert "gone/000000.png" in bad[0]["reason"] and "line 2 is not JSON" in bad[1]["reason"]
    told = json.loads((tmp_path / "out/pairs.json").read_text())["settings"]
    assert told["read_u"] == dict(rows=20, records=18, left_out={}, bad=2)
    assert main(["pair", "u", "g", "--out", "all", "--limit", "0", "--max-bad", "1"]) == 2
    assert "max_bad" in capsys.readouterr().err


def test_a_folder_of_images_is_a_flag(capsys):
    save_records(records("u", 12, 0), "u")
    save_records([r | dict(scene="") for r in records("g", 12, 0)], "g")
    put("tables/g.csv", "image,prompt\n" + "".join(f"{i:06}.png,p {i}\n" for i in range(12)))
    argv = ["pair", "u", "tables", "--clusters", "3", "--delta", "0", "--out"]
    assert main([*argv, "a"]) == 2 and "no such file" in capsys.readouterr().err
    assert main([*argv, "a", "--images-g", "g/images"]) == 0
