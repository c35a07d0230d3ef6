"""A record's matcher reaches the reward and the report, from a file to a step."""

import json

import pytest

from pairuni_nb.load import load_records
from pairuni_nb.pairing import load_pairs, make_pairs, save_pairs
from pairuni_nb.records import save_records, write_json
from pairuni_nb.report import judged, write_report
from pairuni_nb.rewards import answer_accuracy
from pairuni_nb.step import side_rows
from pairuni_nb.world import question_text, records

say = "<think>x</think><answer>{}</answer>".format


@pytest.fixture(scope="module")
def truths(tmp_path_factory):
    "U records as a training step sees them: read, paired, written, read again."
    folder = tmp_path_factory.mktemp("matchers")
    u = [
        r | more
        for r, more in zip(
            records("u", 4, 0),
            (
                dict(matcher="choice"),
                dict(choices=[], answer="1,200", matcher="number"),
                dict(choices=[], answer="Main Street", matcher="text"),
                dict(choices=["yes", "no"], answer="no"),
            ),
        )
    ]
    save_records(u, folder / "u")
    save_pairs(
        make_pairs(load_records(folder / "u", "u"), records("g", 4, 0), mix="unpaired")[0],
        folder / "pairs",
    )
    return {r["id"]: r for r in side_rows(list(load_pairs(folder / "pairs")), "u")}


def test_rewards_follow_the_matcher(truths):
    asked = [truths[f"u0-{i}"] for i in (1, 1, 2, 2, 3, 3)]
    assert answer_accuracy(
        [""] * 6,
        [say(a) for a in ("1200.0", "1,201", "the main street.", "main", "No", "A")],
        asked,
    ) == [1, 0, 1, 0, 1, 0]
    assert answer_accuracy([""], [say(truths["u0-0"]["answer"])], [truths["u0-0"]]) == [1]


def test_a_question_without_choices_is_the_question_alone(truths):
    r = truths["u0-1"]
    assert (
        question_text(r["question"], r["choices"]) == r["question"]
        and question_text("q?", ["a", "b"]) == "q?\na, b"
    )


def test_the_report_shows_and_judges_answers_without_choices(truths, tmp_path):
    shown = dict(truths["u0-1"], completion=say("1200"), image=None, scene=None)
    assert judged(shown) == "right"
    settings = dict(weighting="sqrt", seed=0, steps=1, pairs_per_step=1, rollouts=2, pairs=1)
    write_json(tmp_path / "settings.json", settings | dict(model=None))
    told = dict(prompts=[], answers=[json.loads(json.dumps(shown))], protocol={})
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    write_json(tmp_path / "samples" / "before.json", told)
    text = write_report(tmp_path).read_text()
    assert "✓ right" in text and "<b>1,200</b>" in text
