"""The widgets in JupyterLab, moved by the keyboard in a real browser, show what they should."""

import os
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import numpy as np
import pytest
from PIL import Image

from pairuni_nb.explorer import STAGES, TwoPairs, explore, two_pairs

pytestmark = [pytest.mark.browser, pytest.mark.long]
ROOT = Path(__file__).parents[1]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
TABLE = "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent))"
SCROLL = """async start => { const book = jupyterapp.shell.currentWidget.content;
    await book.scrollToItem(book.widgets.findIndex(cell => cell.model.sharedModel.source.startsWith(start)), 'start'); }"""
OUTPUTS = "() => jupyterapp.shell.currentWidget.content.widgets.flatMap(cell => cell.model.type === 'code' ? cell.model.outputs.toJSON() : [])"
PIXELS = """async img => { for (let i = 0; i < 200 && !(img.complete && img.naturalWidth); i++) await new Promise(done => setTimeout(done, 50));  // until it is loaded
    const canvas = document.createElement('canvas'); [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
    canvas.getContext('2d').drawImage(img, 0, 0); return canvas.toDataURL().split(',')[1]; }"""
U, G = [1.0, 0.0, 0.0, 1.0], [0.2, 0.9, 0.4, 0.6]


@pytest.fixture(scope="module")
def lab(need, tmp_path_factory):
    """The address of a JupyterLab that serves a notebook with the explorer, and 06_real_pictures."""
    for name in ("jupyterlab", "playwright", "chromium"):
        need(name)
    tmp_path = tmp_path_factory.mktemp("lab")
    cell = nbformat.v4.new_code_cell("from pairuni_nb.explorer import Explorer\nExplorer()")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (tmp_path / "work" / "data").mkdir(parents=True)
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "work" / "x.ipynb"
    )
    for kind in ("ipynb", "jsonl"):
        shutil.copy(ROOT / "nbs" / f"data/06_real_pictures.{kind}", tmp_path / "work" / "data")
    cell = nbformat.v4.new_code_cell(
        "from IPython.display import HTML\n"
        "from pairuni_nb.explorer import in_frame, two_pairs_page\n"
        "HTML(in_frame(two_pairs_page()))"
    )
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "work" / "two.ipynb"
    )
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ip=127.0.0.1",
                f"--port={port}",
                "--ServerApp.port_retries=0",
                "--IdentityProvider.token=",
                "--LabApp.expose_app_in_browser=True",
                f"--ServerApp.root_dir={tmp_path / 'work'}",
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, **own, "PYTHONPATH": path},
        )
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while not answers(url):
            assert server.poll() is None and time.monotonic() < end, (
                tmp_path / "lab.log"
            ).read_text()
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def answers(url):
    """Whether the server is up."""
    try:
        return urlopen(f"{url}/api", timeout=5).status == 200
    except (URLError, ConnectionError, TimeoutError):
        return False


def expected(*args):
    """The table's cells, computed here."""
    numbers = explore(*args)
    return [
        ["UG"[side], str(k + 1)] + [f"{getattr(numbers, stage)[side, k]:.3f}" for stage in STAGES]
        for side in range(2)
        for k in range(4)
    ]


@pytest.fixture
def page(need, lab):
    """A page of a headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=need("chromium"), headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.set_default_timeout(300_000)
        yield page
        browser.close()


def open_notebook(page, url):
    """The page shows the notebook, and its kernel is up."""
    page.goto(f"{url}?reset", wait_until="commit")
    page.wait_for_function(IDLE)


def run_all(page):
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")


def handle(page, name):
    return page.locator(".widget-slider", has_text=name).locator(".noUi-handle")


def widget_image(page):
    return page.locator(".widget-image, img.jupyter-widgets").first


def until(page, read, right):
    """What `read` gives, as soon as it is `right`; after 200 s whatever it is."""
    for _ in range(1000):
        value = read()
        if right(value):
            break
        page.wait_for_timeout(200)
    return value


def shown(page, wanted):
    """The page's table, as soon as it is `wanted`."""
    return until(
        page, lambda: page.locator(".pair-numbers tr:has(td)").evaluate_all(TABLE), wanted.__eq__
    )


def pixels(img):
    """The picture that the browser shows in `img`, grey, (height, width)."""
    img.wait_for()
    return np.asarray(Image.open(BytesIO(b64decode(img.evaluate(PIXELS)))).convert("L"), float)


def alike(a, b):
    """Whether two pictures differ by no more than the noise of JPEG (up to 5; other pairs differ by more than 20)."""
    return a.shape == b.shape and np.abs(a - b).mean() < 10


def test_sliders_show_what_the_library_computes(lab, page, tmp_path):
    open_notebook(page, f"{lab}/lab/tree/x.ipynb")
    run_all(page)
    page.locator(".pair-numbers").wait_for()
    picture = widget_image(page)
    before, source = expected(U, G, "retrieved", 0.65, "sqrt", 4.0), picture.get_attribute("src")
    assert shown(page, before) == before

    for _ in range(3):
        handle(page, "U 2").press("ArrowRight")
    after = expected([1.0, 0.15, 0.0, 1.0], G, "retrieved", 0.65, "sqrt", 4.0)
    assert shown(page, after) == after != before
    assert picture.get_attribute("src") != source

    handle(page, "G 2").press("ArrowLeft")
    for _ in range(5):
        handle(page, "similarity").press("ArrowLeft")
    page.get_by_role("button", name="linear").press("Enter")
    after = expected([1.0, 0.15, 0.0, 1.0], [0.2, 0.85, 0.4, 0.6], "retrieved", 0.4, "linear", 4.0)
    assert shown(page, after) == after

    page.get_by_role("button", name="aligned").press("Enter")
    after = expected([1.0, 0.15, 0.0, 1.0], [0.2, 0.85, 0.4, 0.6], "aligned", 0.4, "linear", 4.0)
    assert shown(page, after) == after
    page.screenshot(path=tmp_path / "explorer.png")


def test_two_pairs_live_in_jupyterlab(lab, page):
    open_notebook(page, f"{lab}/lab/tree/two.ipynb")
    run_all(page)
    inside = page.frame_locator(".jp-Cell iframe")
    inside.locator(".two-pairs").wait_for()
    policy = inside.locator("[data-name=pair_grpo0]")
    assert policy.text_content() == f"{two_pairs(TwoPairs())['pair_grpo'][0]:.3f}"
    inside.locator("[name=optimiser]").select_option("SGD")
    moved = two_pairs(TwoPairs(optimiser="SGD"))["pair_grpo"][0]
    assert policy.text_content() == f"{moved:.3f}"


def test_real_pictures_follow_their_sliders(lab, page, tmp_path):
    open_notebook(page, f"{lab}/lab/tree/data/06_real_pictures.ipynb")
    twin = page.locator(".jp-Cell", has_text="shown(rows_of([draw_threshold(*at)").locator("img")
    three = lambda: [
        pixels(twin)[y : y + 144] for y in (0, 164, 328)
    ]  # the drawings of the twin, 20 pixels apart
    page.evaluate(SCROLL, "slider = ")
    page.screenshot(path=tmp_path / "stored.png")
    first, start, last = three()  # stored in the notebook: no cell has run
    assert not alike(first, start) and not alike(start, last) and pixels(twin).shape == (472, 624)

    run_all(page)
    page.evaluate(SCROLL, "slider = ")
    live = lambda: pixels(widget_image(page))
    assert alike(live(), three()[1])  # delta 0.5, text 0.2, K 27
    assert widget_image(page).evaluate(
        "img => img.width === img.naturalWidth"
    )  # not stretched to the page
    assert not [
        o
        for o in page.evaluate(OUTPUTS)
        if o["output_type"] == "error"
        or (o.get("name") == "stderr" and "rows [" not in o["text"])  # a slow machine's bar
    ]
    first, start, last = three()

    for _ in range(2):
        handle(page, "δ").press("ArrowRight")
    assert alike(until(page, live, lambda now: alike(now, last)), last)  # delta 0.6
    for _ in range(2):
        handle(page, "text").press("ArrowLeft")
    assert alike(until(page, live, lambda now: alike(now, first)), first)  # and text 0
    handle(page, "K").press("ArrowRight")
    assert not alike(until(page, live, lambda now: not alike(now, first)), first)
    page.screenshot(path=tmp_path / "pictures.png")
