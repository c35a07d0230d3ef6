"""The emoji's split: whole families are held out, and no name crosses over."""

import importlib.util
from pathlib import Path

from PIL import Image

spec = importlib.util.spec_from_file_location(
    "fetch_emoji", Path(__file__).parent.parent / "scripts" / "fetch_emoji.py"
)
fetch_emoji = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch_emoji)
FOUND = {
    f"{i:x}{tail}": dict(group=f"group {i % 3}")
    for i in range(0x1F600, 0x1F600 + 120)
    for tail in ("", "-200d-2640", "-200d-2642")
}


def test_a_tenth_of_each_group_is_held_out_by_family():
    held = fetch_emoji.held_out(FOUND, 0)
    assert (
        held
        == fetch_emoji.held_out(dict(reversed(FOUND.items())), 0)
        != fetch_emoji.held_out(FOUND, 1)
    )
    assert not {fetch_emoji.family(c) for c in held} & {
        fetch_emoji.family(c) for c in FOUND.keys() - held
    }
    for group in range(3):
        assert sum(FOUND[c]["group"] == f"group {group}" for c in held) == 12


def test_people_belong_to_what_they_do():
    assert (
        fetch_emoji.family("1f468-200d-1f680")
        == fetch_emoji.family("1f9d1-200d-1f680")
        == fetch_emoji.family("1f680")
        == "1f680"
    )
    assert fetch_emoji.family("1f468") == "1f468"


def test_wrong_names_come_from_the_same_part():
    import random

    row = dict(question="what is this?", choices=["owl", "bee", "cat", "dog"], answer="cat")
    kin = {"cat", "dog", "fox", "hen", "cow"}
    out = fetch_emoji.own_choices(row, kin, random.Random(0))["choices"]
    assert set(out) <= kin and len(set(out)) == 4 and out[2:] == ["cat", "dog"]
    assert (
        fetch_emoji.own_choices(row | dict(question="which group?"), kin, random.Random(0))[
            "choices"
        ]
        == row["choices"]
    )


def test_wrong_names_come_from_near_or_from_far():
    import random

    rows = [
        dict(name=f"{kind} {i}", group=kind)
        for kind in ("animal", "food", "place", "sport")
        for i in range(5)
    ]
    for far, kinds in ((False, {"animal"}), (True, {"animal", "food", "place", "sport"})):
        asked = [
            fetch_emoji.question(rows[0], rows, random.Random(seed), far) for seed in range(40)
        ]
        names = [
            set(q["choices"]) - {q["answer"]} for q in asked if q["question"] == "what is this?"
        ]
        assert {n.split()[0] for ns in names for n in ns} == kinds - (
            {"animal"} if far else set()
        ) and all(len(ns) == 3 for ns in names)


def test_a_fetch_goes_on_and_an_artist_may_follow(tmp_path, capsys):
    def row(name):
        return dict(id=name, image=Image.new("RGB", (4, 4)), prompt=name)

    fetch_emoji.save_missing(dict(g=[row("owl")]), tmp_path)
    before = (tmp_path / "g" / "records.jsonl").read_text()
    fetch_emoji.save_missing(dict(g=[row("bee")], artist=[row("cat"), row("dog")]), tmp_path)
    assert (tmp_path / "g" / "records.jsonl").read_text() == before
    assert len((tmp_path / "artist" / "records.jsonl").read_text().splitlines()) == 2
    assert "g is there, and stays as it is\n2 records in" in capsys.readouterr().out
