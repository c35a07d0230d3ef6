"""The advantage explorer in JupyterLab, moved by the keyboard in a real browser: the page shows what the library computes."""
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest

from pairuni_nb.pair_grpo import STAGES, explore

pytestmark = pytest.mark.browser
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
TABLE = "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent))"
U, G = [1.0, 0.0, 0.0, 1.0], [0.2, 0.9, 0.4, 0.6]


@pytest.fixture
def lab(need, tmp_path):
    """The address of a JupyterLab that serves one notebook, which displays the explorer."""
    for name in ("jupyterlab", "playwright", "chromium"): need(name)
    cell = nbformat.v4.new_code_cell("from pairuni_nb.pair_grpo import advantage_explorer\nadvantage_explorer()")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (tmp_path / "work").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "work" / "x.ipynb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
             "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={tmp_path / 'work'}"],
            stdout=log, stderr=log, env={**os.environ, **own, "PYTHONPATH": path})
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while not answers(url):
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "lab.log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def answers(url):
    """Whether the server is up."""
    try: return urlopen(f"{url}/api", timeout=5).status == 200
    except (URLError, ConnectionError, TimeoutError): return False


def expected(*args):
    """The table's cells, computed here."""
    numbers = explore(*args)
    return [["UG"[side], str(k + 1)] + [f"{getattr(numbers, stage)[side, k]:.3f}" for stage in STAGES] for side in range(2) for k in range(4)]


def shown(page, wanted):
    """The page's table, as soon as it is `wanted`; after 20 s whatever it is."""
    for _ in range(100):
        cells = page.locator(".pair-numbers tr:has(td)").evaluate_all(TABLE)
        if cells == wanted: break
        page.wait_for_timeout(200)
    return cells


def test_sliders_show_what_the_library_computes(need, lab, tmp_path):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=need("chromium"), headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.set_default_timeout(40_000)
        page.goto(f"{lab}/lab/tree/x.ipynb?reset", wait_until="commit")
        page.wait_for_function(IDLE)
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        page.locator(".pair-numbers").wait_for()
        picture = page.locator(".widget-image, img.jupyter-widgets").first
        handle = lambda name: page.locator(".widget-slider", has_text=name).locator(".noUi-handle")
        before, source = expected(U, G, "retrieved", 0.65, "sqrt", 4.0), picture.get_attribute("src")
        assert shown(page, before) == before

        for _ in range(3): handle("U 2").press("ArrowRight")
        after = expected([1.0, 0.15, 0.0, 1.0], G, "retrieved", 0.65, "sqrt", 4.0)
        assert shown(page, after) == after != before
        assert picture.get_attribute("src") != source

        handle("G 2").press("ArrowLeft")
        for _ in range(5): handle("similarity").press("ArrowLeft")
        page.get_by_role("button", name="linear").press("Enter")
        after = expected([1.0, 0.15, 0.0, 1.0], [0.2, 0.85, 0.4, 0.6], "retrieved", 0.4, "linear", 4.0)
        assert shown(page, after) == after

        page.get_by_role("button", name="aligned").press("Enter")
        after = expected([1.0, 0.15, 0.0, 1.0], [0.2, 0.85, 0.4, 0.6], "aligned", 0.4, "linear", 4.0)
        assert shown(page, after) == after
        page.screenshot(path=tmp_path / "explorer.png")
        browser.close()
