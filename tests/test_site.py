"""The notebooks make a website without a warning, a dead link between them among those."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pairuni_nb.testgen import notebooks

ROOT = Path(__file__).parents[1]
CHAPTERS = ["Start here", "The method", "Data and judges", "Running it", "What holds", "Look it up"]


@pytest.fixture(scope="module")
def site(need, tmp_path_factory):
    for module in ("myst_nb", "sphinx_book_theme", "sphinx_copybutton", "math_core"):
        need(module)
    out = tmp_path_factory.mktemp("site")
    command = f"-m sphinx -q -W --keep-going -c docs -d {out}/trees nbs {out}/html"
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_every_notebook_is_a_page_that_the_front_page_links(site):
    front = (site / "index.html").read_text()
    for name in notebooks(ROOT / "nbs"):
        page = name.removesuffix(".ipynb") + ".html"
        assert (site / page).exists() and f'href="{page}"' in front, name


def test_chapters_and_numbers(site):
    front = (site / "index.html").read_text()
    captions = re.findall(r'caption-text">([^<]+)<', front)
    assert captions == CHAPTERS
    for page, number in (("02_pair_grpo", "02"), ("data/00_load", "00"), ("run/02_train", "02")):
        assert f"<title>{number} · " in (site / f"{page}.html").read_text()


def test_directives_are_gone_tests_and_drawing_code_are_folded_and_explorers_are_pictures(site):
    page = (site / "learn/01_primer.html").read_text()
    assert page.count("Show the drawing code") == 3 and "Show the test" not in page
    page = (site / "03_explorer.html").read_text()
    assert "#|" not in re.sub(r"<[^>]+>", "", page) and page.count("Show the test") > 3
    assert "widget-view" not in page and page.count("<img") > 3
