"""docs/promises.md names tests that exist, and figures that are counted."""

import csv
import re
from pathlib import Path

import pytest
from test_fuzz_records import FEW, MANY, PROPERTIES
from test_hostile import HALVES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "promises.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_\w+)(?:::(test_\w+))?`", TEXT)))


@pytest.mark.parametrize("file, test", NAMED, ids=map("::".join, NAMED))
def test_a_test_that_is_named_exists(file, test):
    source = (ROOT / "tests" / f"{file}.py").read_text()
    assert f"\ndef {test}(" in source if test else "\ndef test_" in source


def test_every_promise_names_a_test():
    rows = [line.split("|")[1:4] for line in TEXT.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for promise, test, _ in rows:
        assert re.search("`(test_|benchmarks/)", test), promise


def test_figures_are_those_that_were_counted():
    with open(ROOT / "benchmarks" / "kill_and_resume.csv") as file:
        broken = list(csv.DictReader(file))
    whole = [row["same"] == "True" and row["debris"] == "0" for row in broken]
    kills = [ok for row, ok in zip(broken, whole) if row["how"] == "kill -9"]
    disks = [ok for row, ok in zip(broken, whole) if row["how"].startswith("no file over")]
    assert f"{sum(kills)} of {len(kills)} kills" in TEXT and len(kills) > 9
    assert f"| {sum(disks)} of {len(disks)} |" in TEXT and len(kills) + len(disks) == len(broken)
    assert f"{len(PROPERTIES)} kinds of file and value: {FEW} examples" in TEXT
    assert f"{MANY:,} each with" in TEXT and f"{len(HALVES)} kinds of silence" in TEXT
