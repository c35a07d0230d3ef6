"""PairUG files: what a line means, wrong readings that this refuses, hostile lines, the program's flags."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pairuni_nb import paper_data
from pairuni_nb.evaluate import held_out
from pairuni_nb.jobs import Evaluate, Pair, check_made, held_of, open_pairs, read_made, run_pair
from pairuni_nb.pair_grpo import pair_weight
from pairuni_nb.pairing import as_dataset, load_pairs, pair_row, save_pairs
from pairuni_nb.paper_data import (
    TRAINED_ON,
    is_pairug,
    pair_of,
    pairug_line,
    read_pairug,
    write_pairug,
)
from program import pairuni

ASK = "\nAnswer with the option's letter from the given choices directly."


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for i, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (8, 8), (60 * i, 9, 200)).save(tmp_path / f"data/{name}.png")
    (tmp_path / "data/copy.png").write_bytes((tmp_path / "data/a.png").read_bytes())
    Image.new("RGB", (8, 8), "red").save(tmp_path / "private.png")
    monkeypatch.chdir(tmp_path)


def line(question="q? A. x B. y" + ASK, answer="B", s_p=0.64, u="a.png", g="b.png", tag="vqa"):
    other = dict(prompt="not drawn", question="not asked? A. m B. n" + ASK, answer="A")
    return dict(
        similarity=s_p,
        generate_ann=other | dict(image_path=g, prompt="a plum", tag="geneval_train"),
        understand_ann=other | dict(image_path=u, question=question, answer=answer, tag=tag),
    )


def write(*lines, name="data/p.jsonl"):
    Path(name).write_text("".join(json.dumps(one) + "\n" for one in lines))
    return name


def weight(row):
    return pair_weight(torch.tensor([row["similarity"]]), torch.tensor([row["kind"] == "aligned"]))


# ---- what a line means

FOUR = "which? A. cat B. dog C. cow D. hen"
# question, answer -> question, choices, answer, matcher
READ = [
    (FOUR + ASK, "A", "which?", "cat"),
    (FOUR + ASK, "B", "which?", "dog"),
    (FOUR + ASK, "D", "which?", "hen"),
    ("which?\nA. cat\nB. dog\nC. cow\nD. hen" + ASK, "(C)", "which?", "cow"),
    ("<image>\nwhich? (A) cat (B) dog (C) cow (D) hen" + ASK, "C.", "which?", "cow"),
    (FOUR, "hen", "which?", "hen"),
]


def check_choices():
    for question, answer, stem, words in READ:
        row = pair_of(line(question, answer), "data")
        assert row["question"] == stem and row["answer"] == words
        assert row["choices"] == ["cat", "dog", "cow", "hen"] and row["matcher"] == "choice"
    row = pair_of(line("which letter? A. B B. A" + ASK, "A"), "data")
    assert row["answer"] == "B"  # of the option, not the words


def check_sides():
    row = pair_of(line(), "data")
    assert row["prompt"] == "a plum" and row["question"] == "q?"
    assert row["u_image"].getpixel((0, 0))[0] == 0 and row["g_image"].getpixel((0, 0))[0] == 60
    assert (row["u_id"], row["g_id"]) == ("a.png", "b.png")


def check_kinds():
    for s_p in 0.3, 1, 0:
        row = pair_of(line(s_p=s_p, g="a.png"), "data")
        assert row["kind"] == "aligned" and weight(row) == 1 and row["similarity"] == 1
        assert row["origin"] == "geneval_train"
        row = pair_of(line(s_p=s_p, g="./../data/a.png"), "data")
        assert row["kind"] == "aligned"
        for other in "b.png", "copy.png":
            row = pair_of(line(s_p=s_p, g=other), "data")
            assert row["kind"] == "retrieved" and row["similarity"] == s_p
            assert weight(row) == pytest.approx(math.sqrt(s_p))


def check_shown_once():
    "The model sees each option once, and is asked for its letter as the run is set, not twice."
    from pairuni_nb.world import question_text

    for question, answer, _, _ in READ:
        row = pair_of(line(question, answer), "data")
        shown = question_text(row["question"], row["choices"], "")
        assert all(shown.count(word) == 1 for word in ("cat", "dog", "cow", "hen")), shown
        assert "directly" not in shown and "letter" not in row["question"]


def next_letter(question, answer):
    fields = right(question, answer)
    if fields["choices"]:
        at = fields["choices"].index(fields["answer"])
        fields["answer"] = fields["choices"][at - 1]
    return fields


def words_before_letters(question, answer):
    "An answer that is the words of an option is taken for them."
    stem, options = paper_data.split_options(paper_data.without_request(question))
    return right(question, answer) | (dict(answer=answer) if answer in options else {})


def options_left_in(question, answer):
    return right(question, answer) | dict(question=question)


def request_left_in(question, answer):
    fields = right(question, answer)
    return fields | dict(question=f"{fields['question']}{ASK}")


def by_similarity(kind, s_p, *rest):
    return pair_row("aligned" if s_p == 1 else "retrieved", s_p, *rest)


def weighted(kind, s_p, *rest):
    return pair_row("retrieved", 0.3, *rest)


def other_half(line, name, needs):
    other = dict(understand_ann="generate_ann", generate_ann="understand_ann")
    return line[other[name]]


right = paper_data.question_fields
WRONG = dict(
    letter_of_another=(dict(question_fields=next_letter), check_choices),
    words_before_letters=(dict(question_fields=words_before_letters), check_choices),
    options_twice=(dict(question_fields=options_left_in), check_shown_once),
    asked_for_the_letter=(dict(question_fields=request_left_in), check_shown_once),
    aligned_by_similarity=(dict(pair_row=by_similarity), check_kinds),
    aligned_pair_weighted=(dict(pair_row=weighted), check_kinds),
    sides_exchanged=(dict(half_of=other_half), check_sides),
)


@pytest.mark.parametrize("check", [check_choices, check_sides, check_kinds, check_shown_once])
def test_a_line_is_read_as_it_is_meant(check):
    check()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reading_is_refused(name, monkeypatch):
    parts, check = WRONG[name]
    for part, wrong in parts.items():
        monkeypatch.setattr(paper_data, part, wrong)
    with pytest.raises(AssertionError):
        check()


# ---- what is refused, and what is left out

NAN = float("nan")


@pytest.mark.parametrize("s_p", [NAN, math.inf, -0.01, 1.01, True, None, "0.7", [0.7], {}, 10**400])
def test_a_similarity_that_is_none_is_one_sentence_with_its_row(s_p):
    file = write(line(), line(s_p=s_p))
    words = r"1 of 2 rows is bad.*row 1: the similarity is .*must be a number in \[0, 1\]$"
    with pytest.raises(ValueError, match=words):
        read_pairug(file)


def test_a_cosine_over_1_by_a_float32s_error_is_1():
    assert pair_of(line(s_p=float(np.float32(1.0000001))), "data")["similarity"] == 1


def without(*path):
    told = line()
    part = told
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return told


@pytest.mark.parametrize(
    "told, words",
    [
        (without("similarity"), "lacks the columns similarity"),
        (without("understand_ann"), "lacks the columns understand_ann"),
        (without("generate_ann", "prompt"), "generate_ann lacks the columns prompt"),
        (without("understand_ann", "answer"), "understand_ann lacks the columns answer"),
        (line() | dict(generate_ann=[1]), r"generate_ann is \[1\], but must be an object"),
        (line(u=""), "understand_ann: no image_path"),
        (line(u=dict(bytes="x")), "understand_ann: the image_path is .* must be a text"),
        (line(u="no.png"), "no.png: there is no such file"),
        (line(answer=""), "no answer"),
        (line(question=3), "the question is|needs two to eight|no question"),
        (line(answer="E"), "the answer E is the letter of none of the 2 options"),
        (line(answer="(K)"), r"the answer \(K\) is the letter of none of the 2 options"),
    ],
)
def test_a_bad_line_is_one_sentence(told, words):
    with pytest.raises(ValueError, match=words) as e:
        pair_of(told, "data")
    assert "\n" not in str(e.value) and len(str(e.value)) < 300


def test_five_per_cent_may_be_bad_and_are_listed():
    good = [line(s_p=i / 100) for i in range(19)]
    rows, counts = read_pairug(write(*good, line(s_p=2)))
    assert len(rows) == 19 and [bad["row"] for bad in counts["bad_rows"]] == [19]
    with pytest.raises(ValueError, match="1 of 20 rows is bad, more than the 0%"):
        read_pairug(write(*good, line(s_p=2)), max_bad=0)
    with pytest.raises(ValueError, match="2 of 21 rows are bad"):
        read_pairug(write(*good, line(s_p=2), line(u="no.png")))
    assert len(read_pairug(write(*good), limit=3)[0]) == 3


def test_questions_about_boxes_are_left_out_and_rewritten_ones_are_not():
    box = "[{'bbox_2d': [1, 2, 3, 4]}]"
    rows, counts = read_pairug(
        write(
            line(tag="detection"),  # has options: the question was rewritten
            line("where is it?", "[1, 2, 3, 4]", tag="detection"),
            line("where is it?", "(3, 4)", tag="refcoco_grounding"),
            line("where is it?", box, tag="vqa"),
            line("how many?", "3", tag="counting"),
            {**line(), "generate_ann": line()["generate_ann"] | dict(tag="detection")},
        ),
        max_bad=0,
    )
    assert [row["answer"] for row in rows] == ["y", "3", "y"]
    wanted = {"boxes (detection)": 1, "boxes (grounding)": 1, "boxes (in the answer)": 1}
    assert counts["left_out"] == wanted and counts["bad"] == 0


def test_no_path_leaves_its_folder():
    Path("data/link.png").symlink_to(Path("private.png").absolute())
    for path in "../private.png", str(Path("private.png").absolute()), "link.png":
        for told in line(u=path), line(g=path):
            with pytest.raises(ValueError, match="lies outside the folder of its table"):
                pair_of(told, "data")
    with pytest.raises(ValueError, match="address of no kind that is read"):
        pair_of(line(u="file:///etc/passwd"), "data")
    Path("theirs").mkdir()
    with pytest.raises(ValueError, match="lies outside the folder of images"):
        pair_of(line(u="../private.png"), "data", images_u="theirs")


def test_each_side_has_a_folder_of_images_of_its_own():
    for name, colour in ("u", "red"), ("g", "blue"):
        Path(name).mkdir()
        Image.new("RGB", (8, 8), colour).save(f"{name}/1.png")
    file = write(line(u="1.png", g="1.png"))
    (row,), _ = read_pairug(file, images_u="u", images_g="g")
    assert row["kind"] == "retrieved"  # one name, two files
    assert row["u_image"].getpixel((0, 0)) == (255, 0, 0)
    assert row["g_image"].getpixel((0, 0)) == (0, 0, 255)
    (row,), _ = read_pairug(file, images_u="u", images_g="u")
    assert row["kind"] == "aligned"
    with pytest.raises(ValueError, match="there is no folder 'nowhere'"):
        read_pairug(file, images_g="nowhere")
    Path("u/2.png").symlink_to("1.png")  # two names, one file
    (row,), _ = read_pairug(write(line(u="1.png", g="2.png")), images_u="u", images_g="u")
    assert row["kind"] == "aligned"


def test_the_tag_of_an_aligned_pair_is_its_origin_where_it_is_a_text():
    for tag, origin in (("geneval", "geneval"), (7, ""), ("\ud83d", ""), (None, ""), ([], "")):
        told = line(g="a.png")
        told["generate_ann"]["tag"] = tag
        assert pair_of(told, "data")["origin"] == origin


def test_pairs_that_are_made_are_counted_by_kind_and_take_the_flags_that_count():
    box = line("where is it?", "[1, 2, 3, 4]", tag="detection")
    file = write(line(), line(g="a.png"), box)
    rows, _, counts, _ = read_made(file, Pair(""))
    assert (len(rows), counts["aligned"], counts["retrieved"]) == (2, 1, 1)
    taken = dict(images_u="data", images_g="data", max_bad=0.5, limit=1, max_side=4)
    for name, value in (taken | dict(pairug="new", licence_u="mit", licence_g="mit")).items():
        check_made(Pair("out", file, **{name: value}))
    with pytest.raises(ValueError, match="give no flags but --out, --images-u"):
        check_made(Pair("out", file, columns_u="image=picture"))
    run_pair(Pair("out", file, max_side=4))
    told = json.loads(Path("out/pairs.json").read_text())["settings"]
    assert "complete" not in told and told["pairug"] == file
    assert load_pairs("out")[0]["g_image"].size == (4, 4)


# ---- any JSON

texts = st.text(max_size=8) | st.sampled_from(
    [
        "a.png",
        "../private.png",
        "x\0",
        "\ud83d",
        "",
        "/",
        "q? A. x B. y",
        "B",
        "<image>",
        "detection",
    ]
)
values = st.recursive(
    texts | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
halves = st.dictionaries(
    st.sampled_from(["image_path", "prompt", "question", "answer", "tag"]), values, max_size=2
)
strange = st.fixed_dictionaries(
    dict(similarity=st.just(0.5) | values, u=halves | values, g=halves | values)
).map(
    lambda new: dict(
        similarity=new["similarity"],
        **{
            name: line()[name] | part if isinstance(part, dict) else part
            for name, part in (("understand_ann", new["u"]), ("generate_ann", new["g"]))
        },
    )
)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(strange | values, min_size=1, max_size=4))
def test_any_json_is_read_or_refused_in_one_sentence(lines):
    file = write(*lines)
    try:
        rows, counts = read_pairug(file, max_bad=0.99)
    except ValueError as e:
        assert type(e) is ValueError and "\n" not in str(e) and len(str(e)) < 500
        return
    assert len(rows) + counts["bad"] + sum(counts["left_out"].values()) == counts["rows"]
    assert all("\n" not in bad["reason"] for bad in counts["bad_rows"])
    as_dataset(rows)  # can be written
    assert all(0 <= row["similarity"] <= 1 for row in rows)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"[", b"[]", b"[1]", b"\xff\xfe{", b"{\xff}", b"[" * 99999, b"null"]
)
def test_a_file_that_is_none_is_one_sentence(content, capsys):
    Path("x.jsonl").write_bytes(content)
    assert pairuni("train --pairs x.jsonl --out run") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not Path("run").exists() and not is_pairug("x.jsonl")


# ---- written


def record(**more):
    asked = dict(question="q?", choices=["x", "y"], answer="y", matcher="choice")
    return dict(id="1", scene="", image=Image.open("data/a.png"), prompt="a b") | asked | more


ODD = dict(
    a_comma=dict(choices=["x,", "y"]),
    a_line=dict(choices=["x\nz", "y"]),
    a_label=dict(choices=["x A. z", "y"]),
    text_7=dict(choices=[], answer="7", matcher="text"),
    no_options=dict(question="q? A. m B. n", choices=[], answer="A", matcher="text"),
    heading=dict(question="name the options"),
    request=dict(question="q?\nAnswer with a letter.", choices=[], answer="m", matcher="text"),
)


@pytest.mark.parametrize("name", ODD)
def test_what_is_written_comes_back_or_is_left_out(name):
    u, plain = record(**ODD[name]), record()
    pairs = [pair_row("retrieved", 0.6, u, plain), pair_row("aligned", 1, plain, plain)]
    left_out = write_pairug(pairs, "out")
    rows, _ = read_pairug("out/pairug.jsonl", max_bad=0)
    if not left_out:
        assert [[row[c] for c in TRAINED_ON] for row in rows] == [
            [row[c] for c in TRAINED_ON] for row in pairs
        ]
    else:
        assert sum(left_out.values()) == 1 and len(rows) == 1
        assert [file.name for file in Path("out/images").iterdir()] == ["000001-g.png"]
    assert bool(left_out) == (name != "request")


def test_a_line_says_which_half_each_picture_brings():
    for kind, tags in ("retrieved", ["g", "u"]), ("aligned", ["caption", "caption"]):
        row = pair_row(kind, 0.6, record(), record(), "caption")
        told = pairug_line(row, "u.png", "g.png")
        halves = told["generate_ann"], told["understand_ann"]
        assert [half["tag"] for half in halves] == tags
        assert [half["image_path"] for half in halves] == ["g.png", "u.png"]
        both = kind == "aligned"
        assert [bool(half["question"]) for half in halves] == [both, True]
        assert [bool(half["prompt"]) for half in halves] == [True, both]


def test_photos_stay_encoded_and_pairs_without_a_place_are_left_out():
    photo = Image.effect_noise((40, 40), 90).convert("RGB")
    photo.save("data/photo.jpg", quality=70)
    (row,), _ = read_pairug(write(line(u="photo.jpg")))
    random, single = row | dict(kind="random"), row | dict(kind="single", prompt=None)
    assert len(write_pairug([row, random, single], "out")) == 2
    assert Path("out/images/000000-u.jpeg").read_bytes() == Path("data/photo.jpg").read_bytes()
    with pytest.raises(ValueError, match="no pair can be written as PairUG: random"):
        write_pairug([random], "none")
    assert not Path("none").exists()


# ---- the program

TOY = "--n-u 60 --n-g 60 --clusters 8"


def sentence(capsys, words):
    capsys.readouterr()
    assert pairuni(words) == 2
    (told,) = capsys.readouterr().err.splitlines()
    return told


def test_pair_writes_it_and_every_command_with_pairs_reads_it(capsys):
    assert pairuni(f"pair {TOY} --out pairs --pairug shared") == 0
    assert "written to shared/pairug.jsonl" in capsys.readouterr().out
    assert pairuni("pair shared/pairug.jsonl --out again") == 0
    ours, theirs = load_pairs("pairs"), load_pairs("again")
    for a, b in zip(ours, theirs, strict=True):
        assert [a[c] for c in TRAINED_ON] == [b[c] for c in TRAINED_ON]
        assert a["u_image"].tobytes() == b["u_image"].tobytes()
        assert a["g_image"].tobytes() == b["g_image"].tobytes()
    told = json.loads(Path("again/pairs.json").read_text())
    licences = dict(licence_u="unknown", licence_g="unknown")
    # no completer, no clusters
    assert told["settings"] == dict(pairug="shared/pairug.jsonl") | licences
    assert told["counts"]["aligned"] == sum(kind == "aligned" for kind in ours["kind"])
    rows, notes = open_pairs("shared/pairug.jsonl")
    save_pairs(rows, "third", **notes)
    assert Path("third/pairs.parquet").stat().st_size > 0
    scored = held_of(Evaluate(items=3, pairs="shared/pairug.jsonl"))
    for mine, same in zip(scored, held_out(load_pairs("third"), 3, 0), strict=True):
        assert [r["id"] for r in mine] == [r["id"] for r in same] and len(mine) == 3


def test_train_trains_on_it():
    assert pairuni(f"pair {TOY} --out pairs --pairug shared") == 0
    flags = "--steps 1 --pairs-per-step 2 --rollouts 2 --eval-items 4 --device cpu"
    assert pairuni(f"train --pairs shared/pairug.jsonl --out run {flags}") == 0
    kept = load_pairs("run/pairs")
    assert kept["question"] == load_pairs("pairs")["question"]
    assert "pairug" in json.loads(Path("run/pairs/pairs.json").read_text())["settings"]


def test_a_file_of_bad_rows_is_read_as_its_flags_say(capsys):
    file = write(*[line(u=name, g=other) for name in "ab" for other in "bc"])
    Path("pictures").mkdir()
    for name in "abc":
        Path(f"data/{name}.png").rename(f"pictures/{name}")
    assert "--images-u" in sentence(capsys, f"pair {file} --out out")
    images = "--images-u pictures --images-g pictures"
    assert pairuni(f"pair {file} --out out {images} --limit 2") == 0
    assert load_pairs("out")["kind"] == ["retrieved", "retrieved"]
    Path("pictures/c").unlink()
    assert pairuni(f"pair {file} --out some {images} --max-bad 0.5") == 0
    assert "2 pairs of 4 rows; 2 bad (first: row 1" in capsys.readouterr().err
    assert len(Path("some/bad_rows.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--delta 0.3", "holds pairs that are made already: give no flags but --out"),
        ("--complete llm --dry-run", "holds pairs that are made already"),
        ("--columns-u image=x", "holds pairs that are made already"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags, words, capsys):
    assert words in sentence(capsys, f"pair {write(line())} --out out {flags}")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--pairug x --mix random", "the mix random makes none"),
        ("--pairug x --mix unpaired", "the mix unpaired makes none"),
        ("--pairug out", "name two folders"),
        ("--pairug data", "not an empty folder"),
        ("--pairug private.png/x", "cannot be written"),
    ],
)
def test_a_place_for_pairug_is_tried_before_the_work(flags, words, capsys):
    assert words in sentence(capsys, f"pair {TOY} --out out {flags}")
    assert not Path("out").exists()
