"""The notebooks make a website without a warning, a dead link between them among those."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(need, tmp_path_factory):
    for module in ("myst_nb", "sphinx_book_theme", "sphinx_copybutton"):
        need(module)
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-W",
            "--keep-going",
            "-c",
            "docs",
            "-d",
            out / "trees",
            "nbs",
            out / "html",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_every_notebook_is_a_page_that_the_front_page_links(site):
    front = (site / "index.html").read_text()
    for notebook in (ROOT / "nbs").glob("*.ipynb"):
        assert (
            site / f"{notebook.stem}.html"
        ).exists() and f'href="{notebook.stem}.html"' in front, notebook.stem


def test_directives_are_gone_tests_are_folded_and_explorers_are_pictures(site):
    page = (site / "02_pair_grpo.html").read_text()
    assert "#|" not in re.sub(r"<[^>]+>", "", page) and page.count("Show the test") > 5
    assert "widget-view" not in page and page.count("<img") > 8
