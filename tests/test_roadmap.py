"""The roadmap's pictures are what the script draws, and every notebook of the method shows its own."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from roadmap import NBS, STAGES, minutes, roadmap  # noqa: E402

SHOWN = re.compile(
    r"!\[[^]]+\]\(roadmap/(\w+)\.svg\)\n\n\*\*After this page\*\* you can .+ (\d+) min"
)


def spread(numbers):
    """The notebooks behind "06 - 09" or "01, 04, 05"."""
    if "-" in numbers:
        first, last = map(int, numbers.split(" - "))
        return [f"{n:02}" for n in range(first, last + 1)]
    return numbers.split(", ")


STAGE_OF = {number: stage for stage, numbers in STAGES.items() for number in spread(numbers)}
METHOD = [path for path in sorted(NBS.glob("[0-9]*.ipynb")) if path.stem[:2] in {"00", *STAGE_OF}]


@pytest.mark.parametrize("stage", ["all", *STAGES])
def test_the_picture_is_what_the_script_draws(stage):
    assert (NBS / f"roadmap/{stage}.svg").read_text(encoding="utf-8") == roadmap(stage)


def test_one_box_is_dark():
    dark = re.findall(r'fill="#222" stroke.+\n<text.+>(\w+)</text>', roadmap("pairs"))
    assert dark == ["pairs"] and not re.findall(r'fill="#222" stroke', roadmap("all"))


@pytest.mark.parametrize("path", METHOD, ids=lambda path: path.stem)
def test_a_notebook_shows_its_stage_and_true_minutes(path):
    second = nbformat.read(path, as_version=4).cells[1].source
    shown = SHOWN.match(second)
    assert shown, f"{path.name}: its second cell is no roadmap with goal and minutes"
    assert shown[1] == STAGE_OF.get(path.stem[:2], "all")
    true = sum(minutes(path))
    assert abs(int(shown[2]) - true) <= max(8, true / 5)


def test_the_paths_lead_to_notebooks():
    text = (NBS / "index.md").read_text(encoding="utf-8")
    names = re.findall(r"\]\(([\w/]+\.ipynb)\)", text)
    assert len(names) > 12 and all((NBS / name).exists() for name in names)
    assert text.count("| 8 | ") == 2 and text.count("| 9 | ") == 1  # a learner's path is longer


def test_the_minutes_of_the_paths_are_true():
    text = (NBS / "index.md").read_text(encoding="utf-8")
    paths = re.findall(r"\n\n((?:\|.+\n){4,})", text)
    totals = []
    for path in paths:
        rows = re.findall(
            r"^\| \d+ \| \[[\w/]+\]\(([\w/]+\.ipynb)\)(.*?) \| .+ \| (\d+) \|$", path, re.M
        )
        totals.append(sum(int(told) for *_, told in rows))
        for name, part, told in rows:
            true = sum(minutes(NBS / name))
            if part:  # a half, a lab, or without exercises
                assert int(told) < true, name
            else:
                assert abs(int(told) - true) <= max(4, true / 8), (name, true)
    assert totals[:2] == [416, 235]  # what the page says in words
    assert "about seven hours" in text and "researcher: just under four hours." in text
