"""Pictures of Orsta that were asked for boxes: kept where a language model writes another question, else left out."""

import json
from pathlib import Path

import pytest

from pairuni_nb.jobs import own_held
from pairuni_nb.language_model import ToyEndpoint, read_journal
from pairuni_nb.pairing import load_pairs
from pairuni_nb.paper_data import THERE
from pairuni_nb.records import save_records
from pairuni_nb.world import records
from program import pairuni
from test_paper_data import make_orsta

BOX = "[{'bbox_2d': [0, 0, 16, 16], 'label': 'star'}]"
FLAGS = "--clusters 6 --delta 0.2 --top-n 40"


@pytest.fixture(autouse=True)
def orsta(tmp_path, monkeypatch):
    "Twelve rows about boxes, six with numbers, and twenty G records."
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PAIRUNI_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    us = [r for r in records("u", 80, seed=4) if r["question"].startswith(("what", "where"))]
    us = [
        r for r in us if "sum" not in r["question"]
    ]  # the toy model takes what it reads as placed
    rows = dict(
        detection=[(r["image"], "Locate all stars.", BOX) for r in us[:8]],
        grounding=[(r["image"], "Where is it?", BOX) for r in us[8:12]],
        ocr=[(r["image"], r["question"], r["answer"]) for r in us[12:18]],
    )
    make_orsta(Path("orsta"), rows)
    save_records([r | dict(scene="") for r in records("g", 20, seed=4)], "g")


class Seeing(ToyEndpoint):
    "Knows that what is looked for is there, and refuses one caption in three."

    n = 0

    def reply(self, name, text, image):
        if name != "verify_caption" or THERE not in text:
            return super().reply(name, text, image)
        self.n += 1
        return dict(objection="not so", holds=self.n % 3 != 0)


def test_held_out_records_are_read_as_pairs_are(capsys):
    Path("orsta").rename("Orsta-Data-47k")
    u, g = own_held("Orsta-Data-47k", "")
    assert len(u) == 6 and g == [] and {record["matcher"] for record in u} <= {"number", "text"}
    assert "6 records of 18 rows" in capsys.readouterr().err


def told():
    return json.loads(Path("pairs/pairs.json").read_text())


def test_without_a_language_model_they_are_left_out_and_counted(capsys):
    assert pairuni(f"pair orsta g --columns-u orsta --out pairs {FLAGS}") == 0
    err = capsys.readouterr().err
    assert "6 records of 18 rows" in err and "8 boxes (cv_detection)" in err
    assert sum(told()["settings"]["read_u"]["left_out"].values()) == 12
    assert "asked_anew" not in told()["counts"]


def test_a_language_model_writes_a_question_for_each(capsys):
    with Seeing() as toy:
        llm = f"--complete llm --base-url {toy.base_url} --model toy {FLAGS}"
        assert pairuni(f"pair orsta g --columns-u orsta --out pairs {llm}") == 0
        said, calls = capsys.readouterr(), len(toy.calls)
        assert (
            pairuni(f"pair orsta g --columns-u orsta --out again --journal pairs.jsonl {llm}") == 0
        )
        assert len(toy.calls) == calls  # nothing is paid for twice
    counts = told()["counts"]
    refused = sum(n for name, n in counts.items() if name.startswith("boxes ("))
    assert counts["asked_anew"] + refused == 12 and counts["asked_anew"] >= 8
    assert f"asked anew {counts['asked_anew']}" in said.out and "boxes (cv" not in said.err
    assert counts["u"] == 6 + counts["asked_anew"]
    pairs = load_pairs("pairs")
    for row in pairs:  # nothing asks for boxes any more
        text = json.dumps([row["question"], row["choices"], row["answer"], row["prompt"]])
        assert THERE not in text and "bbox" not in text and "Locate" not in text
        assert row["matcher"] != "choice" or row["answer"] in row["choices"]
    retrieved = [row for row in pairs if row["kind"] == "retrieved"]
    assert any(len(row["choices"]) == 4 for row in retrieved)  # not medoids alone
    first = {line["step"] for line in read_journal("pairs.jsonl") if "step" in line}
    assert {"caption", "verify_caption", "question", "verify_question"} <= first


def test_a_dry_run_prices_them_too(capsys):
    flags = f"--columns-u orsta --complete llm --dry-run --price-in 2 --price-out 8 {FLAGS}"
    assert pairuni(f"pair orsta g --out pairs {flags}") == 0
    quote = json.loads(capsys.readouterr().out)
    # a caption and a question for each of twelve; six medoids, of which some are among the twelve
    assert 24 <= quote["records"] <= 30
    assert not Path("pairs").exists()
