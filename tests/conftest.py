"""What every test shares: no network, and one rule for missing programs and modules."""

import importlib
import os
import shutil
from importlib.util import find_spec

import pytest
import tqdm.auto  # noqa: F401  # before a kernel is: then it would draw bars into stdout

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers would wait for each other's threads


def find(name):
    """The module `name`, else the path of the program `name`; missing: a skip, in CI a failure."""
    if find_spec(name):
        return importlib.import_module(name)
    if path := shutil.which(name):
        return path
    missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    missing(f"{name} is neither a module nor a program here; install it to run this test")


@pytest.fixture(scope="session")
def need():
    """`need("trl")` is the module, `need("chromium")` the path of the program."""
    return find


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Commands start in an empty folder, and say errors as users see them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PAIRUNI_DEBUG", raising=False)


@pytest.fixture
def few_toys(monkeypatch):
    """The preset `nano` makes 60 toy records a side where no pairs are named; 2,000 cost seconds."""
    from dataclasses import replace

    from pairuni_nb.settings import PRESETS, PairSettings

    few = PairSettings(n_u=60, n_g=60, clusters=12)
    monkeypatch.setitem(PRESETS, "nano", replace(PRESETS["nano"], pair=few))


@pytest.fixture(scope="module")
def new_page():
    """`new_page(viewport=..)` is a page of a headless browser, patient: the machine may be busy."""
    find("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = play.chromium.launch(executable_path=find("chromium"), args=flags)

        def page(**settings):
            page = browser.new_page(**settings)
            page.set_default_timeout(300_000)
            return page

        yield page
        browser.close()


def pytest_collection_modifyitems(items):
    """What takes longest comes first, so that no worker is left with it at the end."""
    items.sort(key=lambda item: item.path.stem != "test_notebooks")


def pytest_xdist_make_scheduler(config, log):
    """A file's tests go to one worker, which sets their fixtures up once; notebooks go one by one.

    `--dist loadgroup` would say it, but under pytest 9.2 it does not see the groups (xdist 3.8).
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return nodeid if file.endswith("test_notebooks.py") else file

    return ByFile(config, log)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not importlib.import_module("torch").cuda.is_available():
        pytest.skip("needs a CUDA device")
