"""The report's look into a step, and its questions: what stands there, what a stranger may write, and in a browser."""

import json
import re
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from pairuni_nb.pairing import make_pairs
from pairuni_nb.records import write_json
from pairuni_nb.report import (
    HEALTH,
    METHODS,
    Group,
    Made,
    asked_of,
    drawings_of,
    finish_panel,
    looks_of,
    method_named,
    new_figure,
    write_report,
)
from pairuni_nb.settings import TrainSettings
from pairuni_nb.train import train
from pairuni_nb.world import records

pytestmark = pytest.mark.long

MARKUP = "\"><script>alert(1)</script>'<img src=x onerror=alert(2)>{{ 7*7 }}</style></td>"
ALL = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (el) => {
    for (; el; el = el.parentElement) {
      const c = parse(getComputedStyle(el).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const el of document.querySelectorAll("body *")) {
    const own = [...el.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !el.offsetParent) continue;
    const [a, b] = [light(parse(getComputedStyle(el).color)), light(behind(el))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found[`${el.tagName}.${el.className}`] = Math.min(ratio, found[`${el.tagName}.${el.className}`] ?? 99);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of four steps, three of which can be looked into."
    out = tmp_path_factory.mktemp("report") / "run"
    pairs = make_pairs(records("u", 60, 0), records("g", 60, 0), clusters=12)[0]
    few = dict(steps=4, pairs_per_step=6, rollouts=4, eval_items=8, eval_every=2, lr=1e-3)
    train(pairs, out, TrainSettings(**few), device="cpu")
    write_report(out)
    return out


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint"))


def told(run, step, task):
    return json.loads((run / "rollouts" / f"{step:06}" / f"{task}.json").read_text())


def test_groups_are_told_as_the_run_kept_them(run):
    looks = looks_of(run)
    assert list(looks) == [1, 2, 4]
    for step, pairs in looks.items():
        for i, pair in enumerate(pairs):
            for group in pair.groups:
                kept = told(run, step, group.task)
                assert (pair.kind, pair.weight) == (kept["kinds"][i], kept["weights"][i])
                order = np.argsort([-a for a in kept["advantages"][i]], kind="stable")
                made = [x for x in group.made for _ in range(x.count)]
                assert len(made) == 4 and group.prompt == kept["prompts"][i]
                for x, k in zip(made, order):
                    assert x.reward == kept["rewards"][i][k]
                    assert x.advantage == kept["advantages"][i][k]
                    if group.task == "g":
                        moved = kept["logp_after"][i][k] - kept["logp_before"][i][k]
                        assert x.moved == moved and x.picture.alt == f"drawing {k + 1}"
                    else:
                        same = [t for t in kept["texts"][4 * i : 4 * i + 4] if t == x.text]
                        assert len(same) == x.count


def test_a_page_shows_the_numbers_and_the_circumstances(run):
    text = (run / "report.html").read_text()
    best = looks_of(run)[4][0].groups[1].made[0]
    assert f"<dd>{best.advantage:+.2f}</dd>".replace("-", "\N{MINUS SIGN}") in text
    made = json.loads((run / "settings.json").read_text())["made"]
    for name in ("date", "hardware", "torch", "transformers"):
        assert made[name] in text
    assert "<script" not in text and "prefers-color-scheme: dark" in text


def test_what_changed_comes_first(copy):
    names = ("before", "after")
    kept = {name: json.loads((copy / f"samples/{name}.json").read_text()) for name in names}
    form = "<think>x</think><answer>{}</answer>"
    base = kept["before"]["answers"][0] | dict(choices=list("abcd"), answer="a", matcher="choice")
    said = dict(before="abbab", after="aabbc")  # same, right, same, wrong, other
    for name, letters in said.items():
        kept[name]["answers"] = [
            base | dict(question=str(i), completion=form.format(c)) for i, c in enumerate(letters)
        ]
    rows, told = asked_of(copy, kept["before"], kept["after"])
    changes = ["became right", "became wrong", "says something else"] + 2 * ["stayed the same"]
    assert [row.change for row in rows] == changes
    assert [row.before["question"] for row in rows] == ["1", "3", "4", "0", "2"]
    assert told == "1 became right, 1 became wrong, 1 says something else, 2 stayed the same"
    assert [row.picture.alt for row in rows][:2] == ["picture 2", "picture 4"]  # each its own
    grey = np.full((48, 48, 3), 128, np.uint8)
    for name, i in (("before", 0), ("after", 0), ("before", 1)):
        Image.fromarray(grey).save(copy / f"samples/{name}/{i:03}.png")
    Image.fromarray(255 - grey // 8).save(copy / "samples/after/001.png")
    prompts = [prompt for prompt, _, _ in drawings_of(copy, ["still", "far"])]
    assert prompts == ["far", "still"]


def test_nothing_in_a_look_becomes_markup(copy):
    for file in copy.glob("rollouts/*/*.json"):
        look = json.loads(file.read_text())
        for name in ("kinds", "prompts", "choices", "answers", "texts"):
            if name in look:
                look[name] = [[MARKUP] if name == "choices" else MARKUP for _ in look[name]]
        write_json(file, look)
    said = json.loads((copy / "settings.json").read_text())
    write_json(copy / "settings.json", said | dict(made={MARKUP: MARKUP, "date": MARKUP}))
    text = write_report(copy).read_text()
    assert "<script" not in text and "<img src=x" not in text and text.count("</style>") == 1
    assert not re.findall(">(49)<", text) and "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize("missing", ["g.json", "u.json", "g-000-1.png", "u-000.png", "rollouts"])
def test_a_page_does_without_what_is_not_there(copy, missing):
    for file in [*copy.glob(f"rollouts/*/{missing}"), *copy.glob(missing)]:
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    text = write_report(copy).read_text()
    assert ("A look into a step" in text) == (missing != "rollouts")


def test_missing_rewards_and_damaged_files_are_told(copy):
    file = copy / "rollouts/000004/g.json"
    look = json.loads(file.read_text())
    look["rewards"][0][0] = look["logp_after"][0][0] = None
    write_json(file, look)
    assert "<dd>missing</dd>" in write_report(copy).read_text()
    for damage in ("[", "{}"):
        file.write_text(damage)
        with pytest.raises(ValueError, match="g.json is damaged, .*: remove it"):
            write_report(copy)


def test_many_looks_are_thinned_evenly(copy):
    for step in range(5, 60):
        shutil.copytree(copy / "rollouts/000004", copy / f"rollouts/{step:06}")
    steps = list(looks_of(copy))
    assert len(steps) == 12 and steps[0] == 1 and steps[-1] == 59
    assert max(np.diff(steps)) - min(np.diff(steps)) <= 2


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(run, new_page, scheme, tmp_path):
    """Arrow keys go from step to step, every text can be read, nothing is fetched, no phone scrolls sideways."""
    faults = []
    for width in (1280, 390):
        page = new_page(viewport=dict(width=width, height=800), offline=True, color_scheme=scheme)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.goto((run / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.locator(".look > section")
        seen = [[shown.nth(i).is_visible() for i in range(3)]]
        page.locator("#at-1").focus()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
            seen.append([shown.nth(i).is_visible() for i in range(3)])
        page.locator("label[for=at-1]").click()
        seen.append([shown.nth(i).is_visible() for i in range(3)])
        one = [True, False, False]
        assert seen == [one, [False, True, False], [False, False, True], one]
        for fold in page.locator("summary").all():
            fold.click()
        found = page.evaluate(ALL)
        assert len(found) > 15 and min(found.values()) >= 4.5, found
        ink = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", ink)[0]) < 60) == (scheme == "dark")
        page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    assert not faults


def test_a_single_point_is_drawn_and_steps_are_whole():
    """A run of one step drew an empty panel over ticks such as 0.96."""
    fig = new_figure(4, 3)
    ax = HEALTH["agreement"]([dict(step=1, cos_ug=0.5, ceiling=0.7)], fig.subplots())
    finish_panel(ax)
    fig.draw_without_rendering()
    assert [line.get_marker() for line in ax.lines] == ["o", "o"]
    assert all(tick == int(tick) for tick in ax.get_xticks())
    ax = HEALTH["agreement"](
        [dict(step=i, cos_ug=0.5, ceiling=0.7) for i in (1, 2)], new_figure(4, 3).subplots()
    )
    assert {line.get_marker() for line in ax.lines} == {"None"}


def test_a_group_is_called_equal_only_where_nothing_pulls():
    def said(*made):
        return Group(
            "u", "q", [], "", None, [Made(r, a, a, -1.0, -1.0 + m) for r, a, m in made]
        ).moved

    assert said((1.0, 1.0, 0.2), (0.0, -1.0, -0.1)).endswith("gained +0.300 on the worse.")
    assert said((1.0, 1.0, 0.2), (0.0, 0.0, 0.1)) == (  # RAFT: who is not the best pulls nowhere
        "The update moved 1 of 1 rollouts the way their advantage points."
    )
    assert said((1.0, 0.0, 0.2), (1.0, 0.0, 0.1)).startswith("All rewards are equal")


def test_a_page_names_the_method_of_its_run():
    s = TrainSettings()
    runs = [s, replace(s, weighting="none"), replace(s, advantage="best")]
    runs += [replace(s, advantage="unified"), replace(s, sample_by_weight=True)]
    names = [method_named(asdict(run)) for run in runs]
    assert names[:3] == ["Pair-GRPO", "GRPO", "RAFT"] and set(names) == set(METHODS.values())
    assert method_named(dict(weighting="linear")) == "Pair-GRPO"  # an older run's
    assert method_named(dict(weighting=[1], advantage={})) == "{}"
