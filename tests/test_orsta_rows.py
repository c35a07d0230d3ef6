"""Rows under Orsta's columns that hold something else: one sentence each, or read where they are clear."""

import json
from pathlib import Path

import pytest

from pairuni_nb.paper_data import (
    BLIP3O,
    ORSTA,
    about_boxes,
    orsta_fields,
    read_source,
    split_options,
)
from pairuni_nb.world import records

ASKED = dict(role="user", content="<image>how long?")
ROW = dict(
    data_source="x",
    images=["1.png"],
    ability="math",
    prompt=[dict(role="system", content=None), ASKED],
    reward_model=dict(answer="", ground_truth="4", verifier="mathverify"),
)


@pytest.mark.parametrize(
    "changed, words",
    [
        (dict(prompt="how long?"), "prompt holds 'how long.', but must be turns"),
        (dict(prompt=["how long?"]), "prompt holds 'how long"),
        (dict(prompt=[dict(content="how long?")]), "must be turns, each with role"),
        (dict(prompt=[dict(role=None, content="how long?")]), "must be turns, each with role"),
        (dict(prompt=[dict(role="user", content=[dict(type="text", text="q")])]), "content of a"),
        (dict(prompt=[dict(role="user", content=None)]), "content of a turn is None"),
        (dict(prompt=7), "prompt holds 7"),
        (dict(reward_model="4"), "reward_model is '4', but must be an object"),
        (
            dict(reward_model=dict(ground_truth=["4"])),
            r"ground_truth is \['4'\], but must be a text",
        ),
        (dict(reward_model=dict(answer=True)), "answer is True, but must be a text"),
    ],
    ids=str,
)
def test_a_row_of_another_form_is_one_sentence(changed, words):
    with pytest.raises(ValueError, match=words) as e:
        orsta_fields(ROW | changed)
    assert "\n" not in str(e.value) and len(str(e.value)) < 200


def test_what_is_clear_is_read():
    for truth, answer in ((4, "4"), (0, "0"), (0.5, "0.5"), (r"\boxed{4}", "4"), (None, "")):
        told = orsta_fields(ROW | dict(reward_model=dict(ground_truth=truth)))
        assert told["answer"] == answer and told["question"] == "how long?"
    told = orsta_fields(ROW | dict(reward_model=dict(ground_truth="", answer="5")))
    assert told["answer"] == "5"
    assert orsta_fields(ROW | dict(reward_model=None, prompt=None))["question"] == ""
    assert orsta_fields(ROW | dict(prompt=ASKED))["question"] == "how long?"
    for one in ("1.png", dict(bytes=b"x", path=None)):
        assert orsta_fields(ROW | dict(images=one))["image"] == one


@pytest.mark.parametrize(
    "changed",
    [
        dict(ability="Object Detection"),
        dict(ability="visual grounding"),
        dict(reward_model=dict(ground_truth="4", verifier="detection")),
        dict(reward_model=dict(ground_truth='[{"bbox": [1, 2, 3, 4]}]', verifier="mathverify")),
    ],
    ids=str,
)
def test_a_row_about_boxes_is_left_out_by_what_it_says_of_itself(changed):
    assert orsta_fields(ROW | changed) == f"boxes ({changed.get('ability', 'math')})"
    kept = orsta_fields(ROW | changed, keep_boxes=True)
    assert about_boxes(kept) and kept["answer"] == "yes"


@pytest.mark.parametrize(
    "question, options",
    [
        ("which? A. Mr. B. St.", ["Mr.", "St."]),  # a full stop belongs to the words
        (
            "I. Look. II: " + " ".join(f"{x}. {x}x" for x in "ABCDEFGH"),
            [f"{x}x" for x in "ABCDEFGH"],
        ),
        (" ".join(f"{x}. {x}x" for x in "ABCDEFGHI"), []),  # nine are too many
    ],
)
def test_options_are_read_whole_or_not_at_all(question, options):
    assert split_options(question)[1] == options


def test_a_name_of_the_papers_data_is_a_folder_of_yours_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = records("g", 1, seed=4)[0]
    for folder in ORSTA, BLIP3O:
        (tmp_path / folder).mkdir(parents=True)
        row["image"].save(tmp_path / folder / "1.png")
    told = dict(image="1.png", prompt="a cat", question="how many?", answer="4")
    for folder in ORSTA, BLIP3O:
        Path(folder, "records.jsonl").write_text(json.dumps(told))
    assert read_source(BLIP3O, "g")[0][0]["prompt"] == "a cat"
    assert read_source(ORSTA, "u", columns="choices=")[0][0]["question"] == "how many?"
    rows = [ROW] * 39 + [ROW | dict(prompt="how long?")]
    Path(ORSTA, "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kept, counts = read_source(ORSTA, "u", max_side=16)
    assert counts["bad"] == 1 and kept[0]["image"].size == (16, 16)
    with pytest.raises(ValueError, match="1 of 40 rows is bad"):  # where none may be
        read_source(ORSTA, "u", max_bad=0)


def test_rows_of_another_form_are_skipped_as_bad(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records("g", 1, seed=4)[0]["image"].save("1.png")
    rows = [ROW] * 9 + [ROW | dict(prompt="how long?")]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kept, counts = read_source("rows.jsonl", "u", columns="orsta", max_bad=0.1)
    assert len(kept) == 9 and counts["bad"] == 1
    with pytest.raises(ValueError, match="row 9.*prompt holds"):
        read_source("rows.jsonl", "u", columns="orsta", max_bad=0)
