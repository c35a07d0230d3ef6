"""Rows under Orsta's columns that hold something else: one sentence each, or read where they are clear."""

import json
from pathlib import Path

import pytest

from pairuni_nb.paper_data import orsta_fields, read_source
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
    assert orsta_fields(ROW | dict(reward_model=None, prompt=None))["question"] == ""
    assert orsta_fields(ROW | dict(prompt=ASKED))["question"] == "how long?"
    for one in ("1.png", dict(bytes=b"x", path=None)):
        assert orsta_fields(ROW | dict(images=one))["image"] == one


def test_rows_of_another_form_are_skipped_as_bad(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records("g", 1, seed=4)[0]["image"].save("1.png")
    rows = [ROW] * 9 + [ROW | dict(prompt="how long?")]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kept, counts = read_source("rows.jsonl", "u", columns="orsta", max_bad=0.1)
    assert len(kept) == 9 and counts["bad"] == 1
    with pytest.raises(ValueError, match="row 9.*prompt holds"):
        read_source("rows.jsonl", "u", columns="orsta", max_bad=0)
