"""Whatever a file holds, it is read or refused in one sentence: mutated files, and rows of any type."""

import csv
import io
import json
import math
import signal
import tarfile
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from pairuni_nb.load import make_record, parse_columns, read_records
from pairuni_nb.records import NEEDS, parse_number, plain_words, question_fault, text_fault

FEW, MANY = 150, 2500  # examples of a property: in CI, and with -m slow
SECONDS = 60  # that one example may take, on a machine however busy


def picture(size=(6, 5), format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, format)
    return buffer.getvalue()


PNG = picture()


def sentence(text):
    assert text and "\n" not in text and len(text) < 400, text


def read_or_refused(call):
    "What the call returns, or None when it refused in one sentence."
    try:
        return call()
    except ValueError as e:
        assert type(e) is ValueError, repr(e)
        sentence(str(e))


# what a cell may hold
words = st.text(max_size=12)
odd_words = st.sampled_from(
    [
        "nan",
        "",
        " ",
        "\ud83d",
        "<image>",
        "x\0",
        "a\nb",
        "a" * 9000,
        "[" * 300,
        "../x.png",
        "x.png",
        "/x",
    ]
)
numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.none())
cells = odd_words | st.recursive(
    words | odd_words | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
right = dict(
    id="1", image="x.png", prompt="a cat", question="what?", answer="b", choices=["a", "b"]
)


def rows_of(cell):
    "A right row in which some cells are exchanged."
    names = [*right, "matcher", "scene", "file_name"]
    return st.dictionaries(st.sampled_from(names), cell, max_size=2).map(lambda new: right | new)


def check_number(text):
    value = parse_number(text)
    assert value is None or math.isfinite(value)


def check_words(text):
    plain = plain_words(text)
    assert plain == plain.strip() and "\n" not in plain
    assert plain_words(f' "{text}." ') == plain


def check_question(given):
    fault = question_fault(*given)
    if fault is None:
        question, choices, answer, matcher = given
        assert matcher != "choice" or answer in choices
        assert not text_fault("question", question) and not text_fault("answer", answer)
    else:
        sentence(fault)


def check_columns(given):
    columns = read_or_refused(lambda: parse_columns(*given))
    assert columns is None or all(isinstance(name, str) for name in columns.values())


def check_record(given):
    fields, source = given
    record = read_or_refused(lambda: make_record(fields, source))
    if record is not None:
        told = {name: value for name, value in record.items() if name != "image"}
        json.dumps(told, ensure_ascii=False).encode()
        assert record["image"].mode == "RGB"
        for name in "id", "prompt", "answer":  # as it was, but for a number and outer spaces
            value = fields.get(name)
            if name in told and isinstance(value, str):
                assert told[name].strip() == value.strip()
        assert source == "g" or not question_fault(
            *(record[name] for name in ("question", "choices", "answer", "matcher"))
        )


def check_file(given):
    "A file of any bytes: every row of it is a record, or bad and listed."
    name, content, source = given
    Path(name).write_bytes(content)
    read = read_or_refused(lambda: read_records(name, source, max_bad=0.99))
    if read is not None:
        records, counts = read
        assert len(records) + counts["bad"] == counts["rows"]
        for bad in counts["bad_rows"]:
            sentence(bad["reason"])


def mutated(name, content):
    "A file with some bytes exchanged, put in or taken away, perhaps cut."
    places = st.integers(0, len(content))
    edits = st.lists(st.tuples(places, st.integers(0, 8), st.binary(max_size=8)), max_size=5)

    def edit(how):
        edits, end = how
        new = content
        for place, gone, put in edits:
            new = new[:place] + put + new[place + gone :]
        return name, new[:end] if end else new, "g"

    return st.tuples(edits, st.none() | places).map(edit)


def as_json_lines(rows):
    return "\n".join(map(json.dumps, rows)).encode()


def as_csv(rows):
    "Cells that are no texts as Python prints them, as pandas does."
    buffer = io.StringIO(newline="")
    table = csv.DictWriter(buffer, sorted(set().union(*rows)))
    table.writeheader()
    table.writerows(rows)
    return buffer.getvalue().encode(errors="surrogatepass")


def as_tar(rows, mode="w"):
    "A sample a row: its picture, and the row as .json."
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for i, row in enumerate(rows):
            for ending, content in (".png", PNG), (".json", json.dumps(row).encode()):
                info = tarfile.TarInfo(f"v1.{i}{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def as_parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


columns = st.sampled_from(
    [
        [1, None],
        [0.5, math.nan],
        ["a", None],
        [b"\xff\xfe", PNG],
        [["x.png"], []],
        [dict(bytes=PNG, path=None), dict(bytes=None, path="x.png")],
        [[dict(bytes=PNG, path=None)], None],
        [Decimal("1.50"), None],
        pa.array(["2026-01-01", None]).cast(pa.timestamp("s")),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([b"caf\xe9", b"x"]).view(pa.string()),
    ]
)
three = [right | dict(id=str(i)) for i in range(3)]
plain = pa.Table.from_pylist([row | dict(image=PNG) for row in three])
any_rows = st.lists(rows_of(cells), min_size=1, max_size=4)
sides = st.sampled_from("ug")
PROPERTIES = dict(
    numbers=(st.text(alphabet="0123456789.,/%+-eE $\\frac{}−") | st.text(), check_number),
    words=(st.text(), check_words),
    questions=(
        st.tuples(cells, cells, cells, cells)
        | st.tuples(words, st.lists(words, max_size=9), words, st.just("choice")),
        check_question,
    ),
    columns=(
        st.tuples(
            st.lists(st.tuples(st.sampled_from([*right, ""]), words).map("=".join)).map(",".join),
            st.sampled_from(list(NEEDS)),
        ),
        check_columns,
    ),
    records=(
        st.tuples(rows_of(cells | st.binary() | st.just(PNG) | st.just([PNG])), sides),
        check_record,
    ),
    json_lines=(
        st.tuples(st.just("x.jsonl"), any_rows.map(as_json_lines), sides)
        | mutated("x.jsonl", as_json_lines(three)),
        check_file,
    ),
    json_arrays=(
        st.tuples(st.just("x.json"), any_rows.map(json.dumps).map(str.encode), sides)
        | mutated("x.json", json.dumps(three).encode()),
        check_file,
    ),
    csv=(
        st.tuples(st.sampled_from(["x.csv", "x.tsv"]), any_rows.map(as_csv), sides)
        | mutated("x.csv", as_csv(three)),
        check_file,
    ),
    tar=(
        st.tuples(st.just("x.tar"), any_rows.map(as_tar), sides) | mutated("x.tar", as_tar(three)),
        check_file,
    ),
    tar_gz=(mutated("x.tgz", as_tar(three, "w:gz")), check_file),
    parquet=(
        st.tuples(
            st.just("x.parquet"),
            st.dictionaries(st.sampled_from(list(right)), columns, min_size=1, max_size=2).map(
                lambda new: as_parquet(
                    pa.table(dict(zip(plain.column_names, plain.slice(1).columns)) | new)
                )
            ),
            sides,
        )
        | mutated("x.parquet", as_parquet(plain)),
        check_file,
    ),
    pictures=(
        st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
        .flatmap(lambda format: mutated("x.png", picture(format=format)))
        .map(lambda file: (dict(id="1", prompt="a cat", image=file[1]), "g")),
        check_record,
    ),
)


def fuzz(name, n):
    strategy, check = PROPERTIES[name]
    Path("x.png").write_bytes(PNG)

    def too_long(*_):
        raise TimeoutError(f"{name} took more than {SECONDS} s")

    @settings(
        max_examples=n,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(strategy)
    def every(example):
        signal.alarm(SECONDS)
        check(example)

    old = signal.signal(signal.SIGALRM, too_long)
    try:
        every()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_few_of_everything(name):
    fuzz(name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_thousands_of_everything(name):
    fuzz(name, MANY)
