"""The notebooks make a website: no warning, no dead link, nothing fetched, readable by everybody."""

import ast
import importlib
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

from pairuni_nb.testgen import notebooks

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
CHAPTERS = ["Start here", "The method", "Data and judges", "Running it", "What holds", "Look it up"]
PLACE = "https://github.com/someone/pairuni_nb"  # what settings.ini might say one day


@pytest.fixture(scope="session")
def site(need, tmp_path_factory, worker_id):
    """The site, built once, however many workers test it."""
    for module in ("myst_nb", "sphinx_book_theme", "sphinx_copybutton", "math_core"):
        need(module)
    alone = worker_id == "master"
    base = tmp_path_factory.getbasetemp() if alone else tmp_path_factory.getbasetemp().parent
    out = base / "site"
    command = (
        f"-m sphinx -q -W --keep-going -c docs -D git_url={PLACE} -d {out}/trees nbs {out}/html"
    )
    with FileLock(f"{out}.lock"):
        if not (out / "built").exists():
            done = subprocess.run(
                [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            (out / "built").touch()
    return out / "html"


@pytest.fixture
def phone(new_page):
    """A page as wide as a phone, without a network; what goes wrong on it."""
    page = new_page(viewport={"width": 390, "height": 844}, offline=True)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(f"error: {error}"))
    page.on("console", lambda m: m.type == "error" and page.faults.append(f"console: {m.text}"))

    def asked(request):
        if not request.url.startswith(("file:", "data:", "about:", "blob:")):
            page.faults.append(f"request: {request.url}")

    page.on("request", asked)
    yield page
    page.close()


@pytest.fixture
def conf(need, monkeypatch):
    """The site's settings and functions."""
    need("math_core")
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("conf")


def pages(site):
    """Every page, without the templates of the theme."""
    found = (path.relative_to(site) for path in site.rglob("*.html"))
    return sorted(path.as_posix() for path in found if path.parts[0] != "_static")


def test_every_notebook_is_a_page_that_the_front_page_links(site):
    front = (site / "index.html").read_text()
    for name in notebooks(ROOT / "nbs"):
        page = name.removesuffix(".ipynb") + ".html"
        assert (site / page).exists() and f'href="{page}"' in front, name


def test_chapters_numbers_and_the_first_screen(site):
    front = (site / "index.html").read_text()
    assert re.findall(r'caption-text">([^<]+)<', front) == CHAPTERS
    for page, number in (("02_pair_grpo", "02"), ("data/00_load", "00"), ("run/02_train", "02")):
        assert f"<title>{number} · " in (site / f"{page}.html").read_text()
    told = 'description" content="Group advantages, the pair weight, the clipped loss'
    assert told in (site / "02_pair_grpo.html").read_text()
    first = front[front.index("<article") : front.index('id="run-it"')]
    assert "_images/all.svg" in first and "favicon.svg" in front
    for page in ("learn/00_one_pair", "run/10_evidence", "03_explorer", "holds/verdicts"):
        assert f'href="{page}.html"' in first


def test_next_follows_the_chapters(site):
    front = (site / "index.html").read_text()
    side = front[front.index('class="bd-links') : front.index("<article")]
    order = re.findall(r'class="reference internal" href="([^"#]+\.html)"', side)
    assert len(order) > 40
    for here, after in zip(order, order[1:]):
        text = (site / here).read_text()
        foot = re.search(r'class="right-next"\s+href="([^"]+)"', text)[1]
        assert (site / here).parent.joinpath(foot).resolve() == site / after, here


def test_directives_are_gone_and_what_is_no_lesson_is_folded(site):
    page = (site / "learn/01_primer.html").read_text()
    assert page.count("Show the drawing code") == 3 and "Show the test" not in page
    page = (site / "14_step.html").read_text()
    symbols, fold = page.index("# P pairs, K rollouts a prompt"), page.index("Show the imports")
    assert symbols < fold < page.index("Accelerator</span>")


def test_explorers_are_pictures(site):
    page = (site / "03_explorer.html").read_text()
    assert "#|" not in re.sub(r"<[^>]+>", "", page) and page.count("Show the test") > 3
    assert "widget-view" not in page and page.count("<img") > 3


class Links:
    """The places of a page, and where it leads."""

    def __init__(self, text):
        self.ids = {unescape(place) for place in re.findall(r'\bid="([^"]+)"', text)}
        self.to = {unescape(link) for link in re.findall(r'<a [^>]*?\bhref="([^"]+)"', text)}


def test_no_link_is_dead(site):
    read = {page: Links((site / page).read_text()) for page in pages(site)}
    dead = []
    for page, links in read.items():
        for link in links.to:
            parts = urlsplit(link)
            if not parts.scheme:
                file = (site / page).parent / unquote(parts.path) if parts.path else site / page
                there = read.get(file.resolve().relative_to(site).as_posix())
                place = unquote(parts.fragment)
                if not file.exists() or (place and there and place not in there.ids):
                    dead.append((page, link))
    assert not dead


LOOK = """() => {
    const faults = [], hidden = e => e.closest('details:not([open])');
    const wide = document.documentElement.scrollWidth;
    if (wide > innerWidth) faults.push(`${wide} pixels wide`);
    for (const image of document.images) {
        if (!image.alt.trim() || /\\.(png|svg)$/.test(image.alt)) faults.push(`no text for ${image.src.slice(0, 80)}`);
        if (image.complete && !image.naturalWidth) faults.push(`no picture at ${image.src.slice(0, 80)}`);
    }
    let level = 0;
    for (const heading of document.querySelectorAll('article :is(h1, h2, h3, h4, h5, h6)')) {
        if (+heading.tagName[1] > level + 1) faults.push(`heading ${heading.textContent} after level ${level}`);
        level = +heading.tagName[1];
    }
    if (!document.title || !document.querySelector('link[rel~=icon]')) faults.push('no title or icon');
    for (const formula of document.querySelectorAll('article math'))
        if (!hidden(formula) && !formula.getBoundingClientRect().width) faults.push(`unseen: ${formula.textContent}`);
    for (const text of document.querySelectorAll('article :is(p, li, td, th, h1, h2, h3, summary)'))
        if (/(^|[^“])\\$[^$]*[\\\\_^][^$]*\\$/.test([...text.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('')))
            faults.push(`a formula left as it was: ${text.textContent.slice(0, 80)}`);
    const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
    const twice = ids.filter((id, i) => ids.indexOf(id) !== i);
    if (twice.length) faults.push(`ids twice: ${twice}`);
    return faults;
}"""


@pytest.mark.browser
def test_every_page_on_a_phone_without_a_network(site, phone):
    found = {}
    for name in pages(site):
        phone.faults.clear()
        phone.goto((site / name).as_uri())
        faults = [*phone.faults, *phone.evaluate(LOOK)]
        if faults:
            found[name] = faults
    assert not found, found


@pytest.mark.browser
def test_the_eye_of_that_test_sees(site, phone):
    """Each fault, put on a page, is named."""
    phone.goto((site / "02_pair_grpo.html").as_uri())
    assert phone.evaluate(LOOK) == []
    bad = [
        ("<p><img src='_images/all.svg'>", "no text for"),
        ("<p><img alt='x' src='nowhere.png'>", "no picture at"),
        ("<div style='width: 500px; height: 1px'>", "500 pixels wide|5.. pixels wide"),
        ("<h1>a</h1><h3>b</h3>", "heading b after level 1"),
        (r"<p>$\pi_\theta$</p>", "a formula left as it was"),
        ("<math></math>", "unseen"),
        ("<p id='footer'></p><p id='footer'></p>", "ids twice"),
    ]
    for html, fault in bad:
        phone.reload()
        phone.evaluate(
            """html => { document.querySelector('article').insertAdjacentHTML('beforeend', html);
            return Promise.all([...document.images].map(i => i.decode().catch(() => 0))); }""",
            html,
        )
        faults = phone.evaluate(LOOK)
        assert any(re.match(fault, one) for one in faults), (fault, faults)
    phone.faults.clear()
    phone.evaluate("fetch('https://example.org/x').catch(() => 0)")
    assert any("request: https://example.org" in fault for fault in phone.faults)


@pytest.mark.browser
def test_menu_and_search_of_a_phone(site, phone):
    phone.goto((site / "run/02_train.html").as_uri())
    chapter = phone.locator("nav.bd-links a", has_text="The advantage explorer")
    assert not chapter.is_visible()
    phone.locator("button.primary-toggle").press("Enter")
    chapter.click()
    phone.wait_for_url("**/03_explorer.html")
    assert phone.locator("input[type=search]:visible").count() == 0
    phone.locator("button.search-button:visible").click()
    assert phone.locator("input[type=search]:visible").count() == 1
    phone.keyboard.type("medoid")
    phone.keyboard.press("Enter")
    phone.wait_for_url("**/search.html?q=medoid*")
    phone.locator("#search-results li a", has_text="pairing").first.wait_for()
    assert phone.faults == []


@pytest.mark.browser
def test_neighbours_and_hints_have_room_on_a_phone(site, phone):
    """The neighbours' titles stood in columns of one word, hints under each other without a gap."""
    phone.goto((site / "learn/06_name_the_run.html").as_uri())
    before, after = (phone.locator(f".prev-next-area a.{side}").bounding_box() for side in (
        "left-prev", "right-next"))  # fmt: skip
    assert after["y"] >= before["y"] + before["height"] and before["width"] > 200
    folded = phone.locator("article details", has_text="Hint 1").locator("summary").first
    assert folded.bounding_box()["height"] >= 30
    solution = phone.locator("article details", has_text="Solution").last
    behind = solution.locator("xpath=following-sibling::*[1]").bounding_box()
    own = solution.bounding_box()
    assert behind["y"] >= own["y"] + own["height"] + 8


@pytest.mark.browser
@pytest.mark.parametrize("name", ["03_explorer", "data/05_emoji"])
def test_a_page_in_a_page_is_for_fingers_and_has_no_light_frame(site, new_page, name):
    how = dict(width=390, height=844)
    page = new_page(viewport=how, offline=True, has_touch=True, is_mobile=True, color_scheme="dark")
    page.goto((site / f"{name}.html").as_uri())
    around = page.locator(".text_html:has(iframe)").first
    style = around.evaluate(
        "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).padding]"
    )
    assert style == ["rgba(0, 0, 0, 0)", "0px"]
    inside = page.frame_locator("iframe").first
    for control in inside.locator("input[type=range], select, button").all():
        assert not control.is_visible() or control.bounding_box()["height"] >= 36
    assert inside.locator("input[type=range]").count() >= 2
    page.close()


@pytest.mark.browser
def test_search_knows_the_library_and_leads_to_it(site, phone):
    phone.goto((site / "search.html").as_uri() + "?q=policy_loss")
    phone.locator("#search-results li a", has_text="policy_loss").first.click()
    phone.wait_for_url("**/api/pair_grpo.html#pairuni_nb.pair_grpo.policy_loss")
    phone.get_by_role("link", name="explained in 02_pair_grpo").last.click()
    phone.wait_for_url("**/02_pair_grpo.html#def-policy_loss")
    target = phone.locator("#def-policy_loss")
    assert target.inner_text() == "policy_loss" and target.is_visible()
    target.click()
    phone.wait_for_url("**/api/pair_grpo.html#pairuni_nb.pair_grpo.policy_loss")


@pytest.mark.browser
def test_the_explorer_obeys_the_keyboard_and_focus_shows(site, phone):
    phone.goto((site / "03_explorer.html").as_uri())
    inside = phone.frame_locator("iframe").first
    number = inside.locator("[data-name=w1]")
    number.wait_for()
    before = number.get_attribute("data-value")
    inside.locator("[name=s1]").press("ArrowLeft")
    assert number.get_attribute("data-value") != before
    phone.locator("a.api").first.focus()
    phone.keyboard.press("Shift+Tab")
    phone.keyboard.press("Tab")
    seen = "getComputedStyle(document.activeElement)"
    assert phone.evaluate(f"{seen}.outlineStyle + {seen}.outlineWidth") == "solid3px"


CONTRAST = """selector => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = color => { const [r, g, b] = color.map(v => v / 255).map(
        v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = e => { for (; e; e = e.parentElement) {
        const color = rgb(getComputedStyle(e).backgroundColor); if ((color[3] ?? 1) === 1) return color; }
        return [255, 255, 255]; };
    return [...document.querySelectorAll(selector)].map(e => {
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); });
}"""


@pytest.mark.browser
def test_contrast_in_both_modes(site, phone):
    ours = {
        "index.html": [".begin a", ".begin strong"],
        "02_pair_grpo.html": ["a.api span", ".colab", ".colab a", ".colab code", "math"],
        "api/pair_grpo.html": [".told", "dl.py td", "dl.py td code", "dl.py dt"],
    }
    for mode in ("light", "dark"):
        phone.emulate_media(color_scheme=mode)
        for name, selectors in ours.items():
            phone.goto((site / name).as_uri())
            assert phone.evaluate("document.documentElement.dataset.theme") == mode
            for selector in selectors:
                found = phone.evaluate(CONTRAST, selector)
                assert found and min(found) >= 4.5, (mode, name, selector, min(found, default=0))


def test_the_library_is_written_down(site):
    """Every exported function has an entry with each argument; what its comments say is there."""
    for file in (ROOT / "pairuni_nb").glob("[a-z]*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        entries = Links((site / f"api/{file.stem}.html").read_text()).ids
        names = next(
            p.value
            for p in tree.body
            if getattr(p, "targets", [None])[0] and getattr(p.targets[0], "id", "") == "__all__"
        )
        for name in ast.literal_eval(names):
            assert f"pairuni_nb.{file.stem}.{name}" in entries, (file.stem, name)
    page = (site / "api/pair_grpo.html").read_text()
    entry = page[page.index('id="pairuni_nb.pair_grpo.group_advantage"') :]
    entry = re.sub(r"<[^>]+>|\s+", " ", entry[: entry.index("WEIGHTINGS")])
    for text in (
        "rewards , eps = 0.0001",
        "Rewards minus their group’s mean, over its std (ddof 1).",
        "(P, K) one row per prompt group; NaN marks a missing reward",
        "(P, K) zero where missing, in a flat group",
    ):
        assert text in re.sub(" +", " ", entry), text


def test_colab_is_offered_where_the_package_is_enough(site):
    page = (site / "02_pair_grpo.html").read_text()
    at = "https://colab.research.google.com/github/someone/pairuni_nb/blob/main/nbs"
    assert f'href="{at}/02_pair_grpo.ipynb">Open in Colab</a> (untried)' in page
    assert f"git+{PLACE}" in page
    for name in ("run/10_evidence", "09_pairing", "learn/02_exercise", "data/02_language_model"):
        assert "Open in Colab" not in (site / f"{name}.html").read_text(), name


def test_without_an_address_there_is_no_colab(conf):
    assert conf.colab("02_pair_grpo", "", "", "main") == ""


def test_formulas(conf):
    from formulas import mathml
    from math_core import LatexError

    assert mathml(r"\frac{1}{K}", True).startswith('<math display="block"><mfrac>')
    assert "(3)" in mathml(r"w_p = \begin{cases} 1 \cr 2 \end{cases} \tag{3}", True)
    for wrong in (r"\notatall", r"\frac{1}", r"{a", r"\begin{cases} 1"):
        with pytest.raises(LatexError):
            mathml(wrong, False)


@pytest.mark.parametrize(
    "source, before, text",
    [
        ("ax.set_title('How far')", "x", "How far"),
        ("#| alt A red circle\nax.set_title('How far')", "x", "A red circle"),
        ("draw(picture)", "# T\n\nSee `draw` of $s_p$ in [one](01_x.ipynb),\nit is **red**:",
         "See draw of s_p in one, it is red:"),
        ("ax.set_title(f'{n} pairs')", "Pairs grow.", "Pairs grow."),
    ],
)  # fmt: skip
def test_the_text_of_a_picture(conf, source, before, text):
    from types import SimpleNamespace

    assert conf.alternative(SimpleNamespace(source=source), before) == text


@pytest.mark.parametrize(
    "source, rows",
    [
        ("def f(x: int, # one\n      y=2): # two\n    pass", [("x: int", "one"), ("y", "two")]),
        ("def f(x, y) -> int: # (R,) -> ()\n    pass",
         [("x", ""), ("y", ""), ("-> int", "(R,) -> ()")]),
        ("def f(\n    # long\n    # story\n    x: int | None = None,\n    *, k, # key\n): pass",
         [("x: int | None", "long story"), ("k", "key")]),
        ("def f(self, x): # it's not '#'\n    y = 1 # no", [("x", "it's not '#'")]),
    ],
)  # fmt: skip
def test_docments(conf, source, rows):
    from api_pages import arguments, comments

    assert arguments(ast.parse(source).body[0], comments(source)) == rows
