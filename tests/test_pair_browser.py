"""The page that slides the threshold, opened from a file and moved by the keyboard, pairs as the library does."""

import numpy as np
import pytest
from test_labs import NOTEBOOKS, lab
from test_report_look import ALL

from pairuni_nb.encoders import features, load_encoder
from pairuni_nb.explorer import module_page
from pairuni_nb.pairing import browser_data, make_pairs, retrieve
from pairuni_nb.settings import PairSettings
from pairuni_nb.world import records

S = PairSettings(clusters=4, top_n=4)
U, G = (records(side, 20, 5) for side in "ug")
MARKUP = "</script><script>alert(1)</script>\"'<img src=x onerror=alert(2)>"


def expected(x, delta, top_n, order):
    """What the library makes of the images that no aligned pair took: (g, u) pairs."""
    encoder = load_encoder(S.encoder)
    fu, fg = (features([r["image"] for r in side], encoder) for side in (U, G))
    free_u, free_g = (np.setdiff1d(np.arange(20), x["chosen"][side]) for side in "ug")
    found = retrieve(fg[free_g], fu[free_u], top_n, delta, order)
    return [(int(free_g[i]), int(free_u[j])) for i, j, _ in found]


def test_the_data_are_those_of_algorithm_1():
    x, rows = browser_data(U, G, S), make_pairs(U, G, clusters=4, top_n=4)[0]
    names = [(r["g_id"], r["u_id"]) for r in rows if r["kind"] == "retrieved"]
    ours = [(G[g]["id"], U[u]["id"]) for g, u in expected(x, S.delta, S.top_n, "g")]
    assert names == ours and len(ours) > 3
    assert len(x["chosen"]["u"]) + len(x["chosen"]["g"]) == 4


@pytest.mark.browser
def test_sliding_makes_the_pairs_that_the_library_makes(new_page, tmp_path):
    x = browser_data(U, G, S)
    x["g"][0]["text"] = x["u"][0]["text"] = MARKUP
    file = tmp_path / "pairs.html"
    file.write_text(module_page("pair_browser.js", x, "<Pairs>"), encoding="utf-8")
    page = new_page(viewport=dict(width=390, height=800), offline=True)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.goto(file.as_uri())
    read = "all => all.filter(f => f.dataset.u).map(f => [+f.dataset.g, +f.dataset.u])"

    def shown():
        return [tuple(pair) for pair in page.locator("figure").evaluate_all(read)]

    page.locator(".pair-browser").wait_for()
    delta, top_n, seen = S.delta, S.top_n, set()
    assert shown() == expected(x, delta, top_n, "g")
    for key, times, name in (
        ("ArrowLeft", 12, "delta"),
        ("ArrowRight", 6, "top_n"),
        ("ArrowRight", 30, "delta"),
        ("ArrowLeft", 9, "top_n"),
        ("ArrowLeft", 25, "delta"),
    ):
        for _ in range(times):
            page.locator(f"[name={name}]").press(key)
        step = times if key == "ArrowRight" else -times
        delta = round(delta + 0.01 * step, 2) if name == "delta" else delta
        top_n = top_n + step if name == "top_n" else top_n
        for order in ("best", "g"):
            page.locator("[name=order]").select_option(order)
            assert shown() == expected(x, delta, top_n, order), (delta, top_n, order)
            seen.add(tuple(shown()))
    assert len(seen) > 5 and page.title() == "<Pairs>"
    count = len(expected(x, delta, top_n, "g"))
    assert page.locator("p").text_content().startswith(f"{count} of ")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and not faults
    page.screenshot(path=tmp_path / "pairs.png")
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        contrast = page.evaluate(ALL)
        assert len(contrast) > 3 and min(contrast.values()) >= 4.5, (scheme, contrast)


@pytest.mark.browser
@pytest.mark.parametrize("text", [0.0, 0.2])
def test_the_emoji_pair_on_the_page_as_in_the_library(new_page, text, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS["data/05_emoji.ipynb"].parent)
    space = lab("data/05_emoji.ipynb", "def right_of_found")
    x = space["emoji_page"](text)
    parts = zip(space["rows"]["efficientnet"], space["rows"]["minilm"])
    g, u = (np.hstack([(1 - text) ** 0.5 * a, text**0.5 * b]) for a, b in parts)
    read = "all => all.filter(f => f.dataset.u).map(f => [+f.dataset.g, +f.dataset.u])"
    slide = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})) }"
    counts = set()
    page = new_page(viewport=dict(width=390, height=800), offline=True)
    page.set_content(module_page("pair_browser.js", x, "Emoji"))
    page.locator("figure").first.wait_for()
    for delta in np.arange(0, 1.01, 0.05).round(2).tolist():
        page.locator("[name=delta]").evaluate(slide, str(delta))
        found = [(i, j) for i, j, _ in retrieve(g, u, 10, delta)]
        shown = page.locator("figure").evaluate_all(read)
        assert [tuple(pair) for pair in shown] == found, delta
        right = sum(i == j for i, j in found)
        assert space["right_of_found"](text, delta) == f"{right} of {len(found)}"
        counts.add(len(found))
    loaded = "all => all.every(i => i.complete && i.naturalWidth === 48)"
    assert page.locator("img").evaluate_all(loaded)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert len(counts) > 5
