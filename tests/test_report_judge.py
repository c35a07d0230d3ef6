"""The report shows each judge's scores on its own scale, and names the judge."""

import json

import pytest
from matplotlib.figure import Figure

from pairuni_nb.report import SHOWN, amount, draw_heldout, write_report

PER_CENT, PLAIN = (
    dict(score_mean=0.5, score_ci=0.1, full_mean=0.2, full_ci=0.1),
    dict(score_mean=21.0, score_ci=1.25),
)


def report(folder, reward, figures, steps=(0, 9)):
    "The page of a run that never was."
    folder.mkdir()
    (folder / "samples").mkdir()
    settings = dict(
        weighting="none", seed=0, steps=9, pairs_per_step=2, rollouts=2, pairs=9, model=None
    ) | ({} if reward is None else dict(reward=reward))
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps(dict(step=step, sec_eval=1.0) | {f"eval_{k}": v for k, v in figures.items()})
            + "\n"
            for step in steps
        )
    )
    (folder / "samples" / "before.json").write_text(
        json.dumps(dict(prompts=[], answers=[], protocol=dict(n_u=7, n_g=32)))
    )
    return write_report(folder).read_text()


@pytest.mark.parametrize(
    "reward, figures, judge, shown",
    [
        ("", PER_CENT, "scene", "50.0 → 50.0 %"),
        ("scene", PER_CENT, "scene", "50.0 → 50.0 %"),
        ("", PLAIN, "similarity to the target image", "21.000 → 21.000<"),
        ("hps:<F>", PLAIN, "hps:&lt;F&gt;", "21.000 → 21.000<"),
        (None, PLAIN, "not recorded", "21.000 → 21.000<"),
    ],
)
def test_the_judge_is_named_and_its_scale_kept(reward, figures, judge, shown, tmp_path):
    text = report(tmp_path / "run", reward, figures)
    assert (
        f"32 items, judge: {judge}" in text
        and shown in text
        and ("full marks" in text) == ("stated facts" in text) == (judge == "scene")
    )


def test_a_run_on_its_way_says_that_a_quarter_was_scored(tmp_path):
    assert "step 9, a quarter of the items" in report(tmp_path / "run", "", PER_CENT)


def test_a_change_is_counted_in_the_judges_units():
    assert (
        amount("score", (0.1, 0.02), "scene", "+") == "+10.0 ±\xa02.0 points"
        and amount("score", (0.1, 0.02), "clip:x", "+") == "+0.100 ±\xa00.020"
    )


@pytest.mark.parametrize("mean, inside", [(0.4, True), (21.0, False), (-0.2, False)])
def test_the_axis_holds_every_score(mean, inside):
    ax = draw_heldout(
        [dict(step=i, eval_score_mean=mean, eval_score_ci=0.1) for i in (0, 1)], Figure().subplots()
    )
    low, high = ax.get_ylim()
    assert low <= mean <= high and ((low, high) == (0, 1)) == inside


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("settings.json", "[]", "settings.json is damaged, it holds no object"),
        ("settings.json", '{"seed": 0}', "settings.json is damaged, it holds no model"),
        ("metrics.jsonl", "[1]\n", "metrics.jsonl, line 1 is damaged"),
        ("samples/before.json", "[]", "before.json is damaged, it holds no object"),
        ("pairs/pairs.json", "3", "pairs.json is damaged, it holds no object"),
    ],
)
def test_a_file_of_another_shape_is_named(name, text, words, tmp_path):
    for folder in "samples", "pairs":
        (tmp_path / folder).mkdir()
    (tmp_path / "settings.json").write_text(json.dumps(dict.fromkeys(SHOWN, 1)))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "se')  # killed in its first line
    assert write_report(tmp_path).exists()
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        write_report(tmp_path)
