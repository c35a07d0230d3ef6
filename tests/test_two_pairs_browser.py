"""The page of two pairs, opened from a file and moved by the keyboard, shows what the library computes."""

import re
from dataclasses import replace

import numpy as np
import pytest
from test_report_look import ALL

from pairuni_nb.explorer import TwoPairs, in_frame, two_pairs, two_pairs_page

pytestmark = pytest.mark.browser
START = TwoPairs(
    rewards=(
        ((1.0, 0.0, 0.2, 1.0), (0.3, 0.3, 0.9, 0.0)),
        ((0.2, 0.9, 0.4, 0.6), (0.5, 0.1, 0.5, 0.5)),
    ),
    lr=0.25,
)


@pytest.fixture
def page(new_page):
    """A page of a headless browser that refuses the network; what it complains about."""
    page = new_page(viewport={"width": 900, "height": 700}, offline=True)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: page.faults.append(message.text))
    yield page
    page.close()


def shown(page):
    """The numbers on the page, by name."""
    read = "cells => Object.fromEntries(cells.map(c => [c.dataset.name, Number(c.dataset.value)]))"
    return page.locator("[data-name]").evaluate_all(read)


def expected(x):
    """The same numbers, by the library."""
    found = two_pairs(x)
    named = {f"w{p}": weight for p, weight in enumerate(found["weights"].tolist())}
    for name in ("grpo", "pair_grpo"):
        named |= {f"{name}{k}": value for k, value in enumerate(found[name].tolist())}
    return named | {name: found[name] for name in ("cosine_pairs", "cosine_tasks")}


def same(page, x):
    """Whether page and library agree to 1e-6."""
    ours, theirs = expected(x), shown(page)
    assert ours.keys() == theirs.keys()
    return np.allclose([theirs[name] for name in ours], list(ours.values()), rtol=0, atol=1e-6)


def changed(x, pair, task, k, reward):
    """The settings with one reward changed."""
    rewards = np.array(x.rewards)
    rewards[pair, task, k] = reward
    return replace(x, rewards=tuple(tuple(tuple(r) for r in sides) for sides in rewards.tolist()))


def test_each_control_does_what_the_library_does(page, tmp_path):
    file = tmp_path / "two_pairs.html"
    file.write_text(two_pairs_page(START), encoding="utf-8")
    page.goto(file.as_uri())
    page.locator(".two-pairs").wait_for()
    assert same(page, START) and page.faults == []

    x = changed(START, 1, 0, 2, 0.55)
    for _ in range(3):
        page.locator("[name=r102]").press("ArrowRight")
    assert same(page, x) and not same(page, START)
    x = replace(x, similarity=(1.0, 0.6))
    for _ in range(4):
        page.locator("[name=s1]").press("ArrowLeft")
    assert same(page, x)
    moves = (
        ("optimiser", "SGD", dict(optimiser="SGD")),
        ("weighting", "linear", dict(weighting="linear")),
        ("kind0", "retrieved", dict(aligned=(False, False))),
        ("kind1", "aligned", dict(aligned=(False, True))),
        ("weighting", "none", dict(weighting="none")),
        ("weighting", "sqrt", dict(weighting="sqrt")),
    )
    for name, chosen, settings in moves:
        page.locator(f"[name={name}]").select_option(chosen)
        x = replace(x, **settings)
        assert same(page, x), name
    page.locator("[name=kind1]").select_option("retrieved")
    page.locator("[name=before]").select_option("before normalising")
    x = replace(x, aligned=(False, False), before=True)
    page.locator("[name=steps]").press("ArrowRight")
    page.locator("[name=lr]").press("ArrowRight")
    x = replace(x, steps=6, lr=0.3)
    assert same(page, x)
    page.locator("[name=optimiser]").select_option("Adam")
    assert same(page, replace(x, optimiser="Adam"))
    page.screenshot(path=tmp_path / "two_pairs.png")
    assert page.faults == []


def test_a_preset_can_be_predicted_before_it_is_revealed(page, tmp_path):
    file = tmp_path / "frame.html"
    file.write_text(in_frame(two_pairs_page()), encoding="utf-8")
    page.goto(file.as_uri())
    inside = page.frame_locator("iframe")
    inside.locator(".two-pairs").wait_for()
    result = inside.locator("[data-name=pair_grpo0]")
    assert result.is_visible() and result.text_content() == "0.366"
    inside.locator("[name=predict]").check()
    inside.get_by_role("button", name="a small reward and a large one").click()
    assert not result.is_visible()
    inside.get_by_role("button", name="reveal").click()
    flat = (0.5,) * 4
    small = (((0.05, 0.0, 0.0, 0.0), flat), ((0.0, 1.0, 0.0, 0.0), flat))
    assert result.is_visible()
    wanted = two_pairs(TwoPairs(small))["pair_grpo"][0].item()
    assert result.text_content() == f"{wanted:.3f}"
    assert page.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 640])  # a phone; 1280 pixels at 200 %
def test_a_phone_and_a_dark_room(page, scheme, width, tmp_path):
    """Nothing is cut off or too pale to read, and a frame is as high as what stands in it."""
    file = tmp_path / "frame.html"
    head = '<meta charset="utf-8"><style>:root { color-scheme: light dark }</style>'
    file.write_text(head + in_frame(two_pairs_page()), encoding="utf-8")
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(dict(width=width, height=700))
    page.goto(file.as_uri())
    inside = page.frame_locator("iframe")
    inside.locator(".two-pairs").wait_for()
    frame = page.frames[1]
    assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.wait_for_function("document.querySelector('iframe').style.height")
    assert frame.evaluate("document.documentElement.scrollHeight - innerHeight") == 0
    found = frame.evaluate(ALL)
    assert len(found) > 8 and min(found.values()) >= 4.5, found
    ink = frame.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (int(re.findall(r"\d+", ink)[0]) < 60) == (scheme == "dark")
    cut = """all => all.filter(e => e.getBoundingClientRect().right > innerWidth + 1
      || e.getBoundingClientRect().left < 0).map(e => e.name || e.dataset.name)"""
    assert inside.locator("input, select, button, [data-name], svg").evaluate_all(cut) == []
    unnamed = "all => all.filter(e => !e.labels.length && !e.ariaLabel).map(e => e.name)"
    assert inside.locator("input, select").evaluate_all(unnamed) == []
    page.screenshot(path=tmp_path / "frame.png", full_page=True)
    assert page.faults == []
