"""Tables of runs: what they say against scipy, that they go on, and that a failed run is a line."""

import json
import re
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from program import CLI, Python
from scipy import stats

from pairuni_nb import ablate as a
from pairuni_nb.cli import main
from pairuni_nb.run_folder import read_metrics, without_cost
from pairuni_nb.records import save_records, write_json
from pairuni_nb.settings import PRESETS, PairSettings, Preset, TrainSettings, preset
from pairuni_nb.world import records

pytestmark = pytest.mark.long

TINY = TrainSettings(
    steps=2,
    rollouts=2,
    pairs_per_step=2,
    eval_items=4,
    save_every=1,
    rollouts_every=1,
    agreement_every=1,
)
FEW = PairSettings(n_u=60, n_g=60, clusters=12)  # the preset's 2,000 of each cost seconds a run
BASE = replace(preset("nano"), train=TINY, pair=FEW)


def line(row, seed, before, after, failed=""):
    "A line of a table with one score for all measures."
    own = dict.fromkeys(a.COLUMNS) | dict(table="t", row=row, seed=seed, steps=3, failed=failed)
    for measure in a.MEASURES if not failed else ():
        own |= {f"{measure}_before": before, f"{measure}_after": after}
    return own


@pytest.fixture
def lines():
    "Two rows on four seeds, in no order; row b lacks seed 2 and has seed 9."
    rng = np.random.default_rng(3)
    before = dict(zip([0, 1, 2, 3, 4, 9], rng.uniform(0.2, 0.6, 6)))
    ours = [line("a", s, before[s], before[s] + rng.normal(0.1, 0.05)) for s in (3, 0, 2, 1, 4)]
    theirs = [line("b", s, before[s], before[s] + rng.normal(0.1, 0.05)) for s in (9, 4, 1, 3, 0)]
    return ours + theirs


def scores_by_seed(lines, row):
    return {x["seed"]: x["score_after"] - x["score_before"] for x in lines if x["row"] == row}


def test_the_paired_difference_is_scipys(lines):
    one, other = scores_by_seed(lines, "a"), scores_by_seed(lines, "b")
    both = sorted(set(one) & set(other))
    test = stats.ttest_rel([other[s] for s in both], [one[s] for s in both])
    low, high = test.confidence_interval(0.95)
    mean, half = a.interval(a.differences(lines, "b", "a", "score"))
    np.testing.assert_allclose([mean - half, mean + half], [low, high], atol=1e-8)


@pytest.mark.parametrize("n", [4, 5, 8])
def test_the_smallest_effect_has_a_power_of_80_percent(n):
    "By the noncentral t; a normal quantile, ddof 0 or a forgotten sqrt(n) leaves the band."
    x = np.random.default_rng(n).normal(size=n)
    delta = a.smallest_effect(x) / (x.std(ddof=1) / n**0.5)
    power = 1 - stats.nct.cdf(stats.t.ppf(0.975, n - 1), n - 1, delta)
    assert 0.783 < power < 0.801


def test_one_seed_has_no_interval_and_says_so(lines):
    few = [x for x in lines if x["seed"] == 0]
    text = a.summary("t", few, ["a", "b"])
    assert text.count("One seed has no interval") == 1
    assert "±" not in text and "leave zero out" not in text
    assert a.interval([0.5]) == (0.5, None) and a.smallest_effect([0.5]) is None
    a.draw_table(few, ["a", "b"])


def test_failed_runs_are_named_and_counted_nowhere(lines):
    text = a.summary("t", lines, ["a", "b"])
    broken = [x for x in lines if (x["row"], x["seed"]) != ("b", 4)]
    broken.append(line("b", 4, None, None, "the gradient of this step is not finite"))
    told = a.summary("t", broken, ["a", "b"])
    assert "Failed: b, seed 4 (the gradient of this step is not finite)." in told
    assert "| b | 5 |" in text and "| b | 4 |" in told and "Failed" not in text
    a.draw_table(broken, ["a", "b"])


def test_equal_runs_say_that_nothing_tells_their_spread(lines):
    same = [x | dict(row="b") for x in lines if x["row"] == "a"]
    text = a.summary("t", same + [x for x in lines if x["row"] == "a"], ["a", "b"])
    assert "nothing tells its spread" in text and "0 of 4 intervals" in text


def test_what_is_too_small_to_see_is_grey_on_both_sides_of_zero(lines):
    below = a.draw_table(lines, ["a", "b"]).axes[3]  # drawing: against a
    seen = a.smallest_effect(a.differences(lines, "b", "a", "score"))
    wide = [(bar.get_x(), bar.get_width()) for bar in below.patches if bar.get_width()]
    assert wide == [(-seen, 2 * seen)] * 2  # as trained, and decoded better


def test_clear_differences_are_counted_on_both_sides_of_zero():
    lines = []
    for row, rise in (("a", 0.3), ("more", 0.5), ("less", 0.1), ("alike", 0.3)):
        for seed in range(4):
            noise = 0.01 * (seed % 2 - 0.5) * (row != "a")
            lines.append(line(row, seed, 0.2, 0.2 + rise + noise))
    told = a.by_chance(lines, ["a", "more", "less", "alike"])
    assert told.startswith("8 of 12 intervals") and told.endswith("do that to 0.6.")


def test_a_table_survives_its_file(lines, tmp_path):
    lines.append(line("b", 2, None, None, 'not finite, "again"'))
    a.write_table(tmp_path / "t.csv", lines)
    assert a.read_table(tmp_path / "t.csv") == lines
    assert a.read_table(tmp_path / "none.csv") == []
    (tmp_path / "x.csv").write_text("row,seed\na,1\n")
    with pytest.raises(ValueError, match="has no column .*accuracy_after"):
        a.read_table(tmp_path / "x.csv")


@pytest.mark.parametrize("table", a.TABLES)
def test_rows_can_be_run_and_no_two_are_one_run(table):
    rows = a.rows_of(table)
    a.check_ablation([0], 1, preset("nano"), rows)
    names = [a.run_name(preset("nano"), changes, 0) for changes in rows.values()]
    assert len(set(names)) == len(names) and names[0] == "reference,seed=0"


def test_a_run_has_a_name_that_a_file_can_have():
    base, long = preset("nano"), "think about " * 30
    texts = dict(instruction=long), dict(instruction="\u00fc" * 130)
    for changes in (dict(encoder="microsoft/resnet-50"), *texts):
        name = a.run_name(base, changes, 3)
        assert "/" not in name and len(name.encode()) < 200 and name.endswith(",seed=3")
    assert a.run_name(base, dict(instruction=long), 0) != a.run_name(
        base, dict(instruction=long + "it"), 0
    )
    # the run's own process reads them from JSON, which knows no tuples
    mixed = dict(similarity="mixture", weights=(0.3, 0.7, 0.0))
    assert a.run_name(base, json.loads(json.dumps(mixed)), 0) == a.run_name(base, mixed, 0)
    assert a.changed(base, dict(weights=base.pair.weights)) == {}


def test_a_row_that_was_edited_is_not_the_row_that_was_run(tmp_path):
    base = preset("nano")
    ran = [dict(row=row, steps=base.train.steps) for row in ("reference", "fast")]
    begin = lambda table, rows: a.begin_tables(tmp_path, base, "nano", ran, table, rows)
    begin("mine", {"reference": {}, "fast": dict(lr=3e-4, weights=(1, 2, 3))})
    begin("mine", {"fast": dict(lr=3e-4, weights=(1, 2, 3)), "typo": dict(lr=3.0)})
    begin("mine", {"typo": dict(lr=3e-3)})  # it has no line yet
    begin("yours", {"fast": dict(lr=1.0)})
    for rows in ({"fast": dict(lr=4e-4, weights=(1, 2, 3))}, {"reference": dict(lr=1.0)}):
        with pytest.raises(ValueError, match="row '.*' of mine .* was .*, and now it is"):
            begin("mine", rows)
    assert set(json.loads((tmp_path / "settings.json").read_text())["rows"]) == {"mine", "yours"}


def test_rows_of_rollouts_are_what_they_are_called_wherever_runs_start(tmp_path):
    base = preset("nano-diffusion")  # 8 pairs a step
    for start in (base, replace(base, train=replace(base.train, rollouts=4))):
        for name, changes in a.TABLES["rollouts"].items():
            s, _ = a.settings_of(start, changes, 0)
            assert (s.rollouts, s.pairs_per_step) == (int(name), 128 // int(name))
    ran = [dict(row="8", steps=150)]
    for rows in ({"8": {}}, a.TABLES["rollouts"]):  # a folder in which 8 was nano as it is
        a.begin_tables(tmp_path, preset("nano"), "nano", ran, "rollouts", rows)


def test_what_the_machine_lacks_is_no_result_of_a_row(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="could not be loaded"):
        a.run_row(tmp_path, dict(encoder="resnet-nothing"), 0, BASE)
    assert not list((tmp_path / "runs").glob("*.json"))


def test_a_plain_right_answer_earns_in_a_table_what_the_setting_says():
    truth = [dict(choices=["red", "blue"], answer="red")]
    for plain in (0.0, 0.5):
        reward = a.rewards_of(BASE, dict(plain_reward=plain), 0)["u"]
        assert reward([""], ["red"], truth) == [plain]


def test_unknown_names_are_refused_with_the_known_ones(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, told in (
        ("ablate wieght", ("unknown table 'wieght'", "weighting", "control")),
        ("ablate combine --rows mean", ("row of combine 'mean'", "pcgrad-each")),
        ("ablate control --seeds 1 1", ("seeds are different", "1, 1")),
        ("ablate control --jobs 0", ("jobs", "0")),
        ("ablate control --rollouts 1", ("rollouts", "1")),
        ("ablate control --preset pico", ("unknown preset 'pico'", "nano-emoji")),
        ("ablate control --preset nano-emoji", ("data/things", "fetch_emoji.py")),
        ("ablate lrr=1", ("unknown setting 'lrr'", "lr")),
        ("ablate rollouts=3 --rollouts 3", ("varies nothing", "rollouts is 3")),
        ("ablate lr=1e-4,-1", ("lr must be positive",)),
        ("ablate weighting=cube", ("unknown weighting 'cube'", "sqrt")),
        ("ablate combine=pcgrad,sums", ("unknown combine 'sums'",)),
        ("ablate shard=true", ("one process", "leave shard out")),
        ("ablate similarity=joint", ("needs a joint_encoder",)),
        ("compare one two", ("there is no folder 'one'",)),
    ):
        assert main(words.split()) == 2
        said = capsys.readouterr().err.strip()
        assert all(word in said for word in told) and "\n" not in said, said
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="at least two run folders"):
        a.side_by_side(["one"])
    with pytest.raises(ValueError, match="unknown setting 'lrr': .*lr"):
        a.check_changes(BASE, dict(lrr=1))
    with pytest.raises(ValueError, match="lr must be positive"):
        a.check_changes(BASE, dict(average=[dict(lr=0)]))


def test_a_table_of_your_own_reads_values_as_the_preset_has_them():
    name, tables = a.own_table("lr=0.00015,3e-4,3e-4", preset("nano"))
    assert tables == {name: {"0.00015": {}, "0.0003": dict(lr=3e-4)}} and name not in a.TABLES
    for said, row in (
        ("clip_eps_high=1", dict(clip_eps_high=1.0)),
        ("mask_truncated=True", dict(mask_truncated=True)),
        ("rollouts=4", dict(rollouts=4)),
        ("clusters=12", dict(clusters=12)),
        ("delta=0.8", dict(delta=0.8)),
        ("combine=pcgrad", dict(combine="pcgrad")),
    ):
        (rows,) = a.own_table(said, preset("nano"))[1].values()
        reference, own = rows.values()
        assert reference == {} and own == row and type(*own.values()) is type(*row.values())
        a.check_ablation([0], 1, preset("nano"), rows)


def test_an_empty_text_of_the_preset_has_a_row_with_a_name():
    (rows,) = a.own_table("instruction=form", preset("nano"))[1].values()
    assert rows == {"as the preset": {}, "form": dict(instruction="form")}


@pytest.mark.parametrize(
    "said, told",
    (
        ("lr=x", "'lr=x': lr takes a number, not 'x'"),
        ("lr=1e-4,", "'lr=1e-4,': lr takes a number, not ''"),
        ("steps=1e3", "steps takes a whole number, not '1e3'"),
        ("clusters=1.5", "clusters takes a whole number, not '1.5'"),
        ("clip_eps_high=none", "clip_eps_high takes a number, not 'none'"),
        ("shard=maybe", "shard takes true or false, not 'maybe'"),
        ("weights=0.5,0.5,0", "weights takes several numbers: vary it from Python"),
    ),
)
def test_a_value_of_another_kind_is_one_sentence(said, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        a.own_table(said, preset("nano"))


def test_your_own_table_is_asked_for_by_the_shell(tmp_path, monkeypatch):
    seen = []

    def notes(table, out, seeds, names, jobs, s, start, tables):
        seen.append((a.rows_of(table, names, tables), seeds, s.steps))
        Path(out).mkdir()
        Path(out, f"{table}.md").write_text("done")

    monkeypatch.setattr(a, "ablate", notes)
    line = f"ablate lr=1e-3,1e-2 --rows 0.01 --seeds 3 --steps 7 --out {tmp_path / 't'}"
    assert main(line.split()) == 0
    assert seen == [({"0.00015": {}, "0.01": dict(lr=0.01)}, [3], 7)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A table of two rows on one seed, and its lines."
    out, start = tmp_path_factory.mktemp("tables"), a.start_run

    def start_one(out, run, base):  # the reference in a process of its own, the other row here
        if run.row != "none":
            return start(out, run, base)
        a.main([str(out), json.dumps(run.changes), str(run.seed)])
        return Process(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a, "start_run", start_one)
        return out, a.ablate("weighting", out, [0], ["none"], 2, TINY)


def test_all_rows_of_a_seed_see_the_same(made):
    out, lines = made
    runs = [out / "runs" / name for name in ("reference,seed=0", "weighting=none,seed=0")]
    assert [x["row"] for x in lines] == ["sqrt", "none"]
    for file in ("samples/before.json", "split.json"):
        assert runs[0].joinpath(file).read_text() == runs[1].joinpath(file).read_text()
    told = [json.loads((run / "settings.json").read_text()) for run in runs]
    assert told[0]["pairs_sha256"] == told[1]["pairs_sha256"]
    weights = []
    for task in "ug":
        u = [json.loads((run / f"rollouts/000001/{task}.json").read_text()) for run in runs]
        assert u[0]["prompts"] == u[1]["prompts"] and u[0]["rewards"] == u[1]["rewards"]
        weights.append([x["weights"] for x in u])
    assert weights[0][0] != weights[0][1] and set(weights[0][1]) == {1.0}


def test_a_run_has_its_metrics_and_both_decodings(made):
    out, lines = made
    reference = lines[0]
    metrics = read_metrics(out / "runs/reference,seed=0")
    for name in ("cos_ug", "norm_u"):
        values = [m[name] for m in metrics if name in m]
        assert len(values) == 2 and reference[name] == pytest.approx(np.mean(values), abs=1e-5)
    assert reference["accuracy_after"] == pytest.approx(metrics[-1]["eval_accuracy_mean"], abs=1e-5)
    for name in ("accuracy", "score"):
        assert lines[0][f"best_{name}_before"] == lines[1][f"best_{name}_before"]
    start = json.loads((out / "runs/start,seed=0.json").read_text())
    held = a.sources(BASE, 0)[2:]
    tried = {w: a.decoded(None, BASE, held, 0, (w,))["score"] for w in (2.0, 1.0)}
    assert start["cfg_weight"] == max(tried, key=tried.get) and start["score"] == max(
        tried.values()
    )


def test_nothing_is_run_twice(made, tmp_path, monkeypatch, capsys):
    out, lines = made
    shutil.copytree(out, tmp_path / "copy")
    out = tmp_path / "copy"

    def forbidden(*args):
        raise AssertionError("this run was made already")

    monkeypatch.setattr(a, "start_run", forbidden)
    assert a.ablate("weighting", out, [0], ["none"], 2, TINY) == lines
    assert "One seed has no interval" in (out / "weighting.md").read_text()
    (out / "weighting.csv").unlink()  # from what the runs left
    assert a.ablate("weighting", out, [0], ["none"], 2, TINY) == lines
    twin = a.ablate("control", out, [0], ["reference"], 2, TINY)  # another table's reference
    assert [x["score_after"] for x in twin] == [lines[0]["score_after"]]
    with pytest.raises(ValueError, match="tables with steps 2, and now it is 5"):
        a.ablate("weighting", out, [0], ["none"], 2, TrainSettings(steps=5))
    shutil.rmtree(out / "runs")  # from the CSV alone
    (out / "settings.json").unlink()
    with pytest.raises(ValueError, match="tables with steps 2, and now it is 5"):
        a.ablate("weighting", out, [0], ["none"], 2, TrainSettings(steps=5))
    assert a.ablate("weighting", out, [0], ["none"], 2, TINY) == lines
    with pytest.raises(AssertionError):
        a.ablate("weighting", out, [0, 1], ["none"], 2, TINY)


def test_a_row_of_other_steps_counts_its_own(tmp_path, monkeypatch, capsys):
    "Of 2, 6 and no steps: the bar's whole, the time left, and what a run is so far."
    (tmp_path / "runs").mkdir()
    longer = dict(steps=6)
    rows = {"short": {}, "long": longer, "mean": dict(average=[longer])}
    todo = [a.Run(row, changes, 0) for row, changes in rows.items()]

    def run_all(out, todo, base, jobs, tell, tick):
        folder = out / "runs" / a.run_name(base, longer, 0)
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("{}\n" * 6)
        tick()
        tell(todo[0], line("short", 0, 0.5, 0.6), 80.0)

    monkeypatch.setattr(a, "run_all", run_all)
    a.run_todo(tmp_path, todo, BASE, 2, "t", [], list(rows))
    said = capsys.readouterr().err
    assert "3 runs left\n" in said and "5/8" in said
    assert "2 runs left, about 2 minutes" in said  # 6 steps of 40 s by two jobs


def test_a_row_reads_as_many_records_as_it_says(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    read = []

    def trained(out, base, changes, seed, parts):
        read.append([len(part) for part in parts])
        raise ValueError("enough")

    monkeypatch.setattr(a, "trained", trained)
    a.run_row(tmp_path, dict(n_u=30, n_g=20), 0, BASE)
    assert read == [[30, 20, 4, 4]]


@pytest.mark.parametrize("name", ["eval_items", "eval_every", "seed"])
def test_what_a_table_decides_is_no_setting_of_a_row(name):
    with pytest.raises(ValueError, match=f"unknown setting '{name}'"):
        a.check_changes(BASE, {name: 4})


def test_toy_records_are_not_counted_where_there_are_none():
    with pytest.raises(ValueError, match="n_u and n_g count toy records"):
        a.check_changes(replace(BASE, data="folder"), dict(n_u=30))


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    changes, calls = dict(rewards="shuffled"), []
    told = []
    for name in ("whole", "broken"):
        (tmp_path / name / "runs").mkdir(parents=True)
    told.append(a.run_row(tmp_path / "whole", changes, 0, BASE))
    real = a.scene_reward

    def stops(*args):  # in the second step: one call is the evaluation's
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(a, "scene_reward", stops)
    with pytest.raises(KeyboardInterrupt):
        a.run_row(tmp_path / "broken", changes, 0, BASE)
    monkeypatch.setattr(a, "scene_reward", real)
    told.append(a.run_row(tmp_path / "broken", changes, 0, BASE))
    assert told[1]["cpu_seconds"] is None and told[0]["cpu_seconds"] > 0
    assert told[0] | dict(cpu_seconds=None) == told[1]
    runs = [tmp_path / name / "runs/rewards=shuffled,seed=0" for name in ("whole", "broken")]
    assert without_cost(read_metrics(runs[0])) == without_cost(read_metrics(runs[1]))


def test_an_average_is_the_mean_of_weights_and_a_failed_run_is_a_line(tmp_path):
    (tmp_path / "runs").mkdir()
    changes = dict(average=[dict(sides="u"), dict(sides="g")])
    read = a.sources(BASE, 0)
    found = a.averaged(tmp_path, BASE, changes, 0, read)["model"][0].state_dict()
    parts = []
    for side in "ug":
        folder = tmp_path / "runs" / f"sides={side},seed=0" / "checkpoint"
        parts.append(a.load_checkpoint(folder)[0].state_dict())
    assert any(not torch.equal(parts[0][name], parts[1][name]) for name in found)
    for name, value in found.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(value, mean.to(value.dtype))
    failed = a.run_row(tmp_path, dict(lr=1e30), 0, BASE)
    assert failed["failed"] and failed["seed"] == 0 and failed["steps"] == TINY.steps
    whole = a.whole_line("t", "wild", failed)
    a.write_table(tmp_path / "t.csv", [whole])
    assert a.read_table(tmp_path / "t.csv")[0]["failed"] == failed["failed"]
    assert a.in_short(whole) == failed["failed"]


def test_both_are_decoded_greedily_at_the_weight_that_suits_the_start(tmp_path, monkeypatch):
    scores = {None: {2.0: 0.4, 1.0: 0.6}, "after": {2.0: 0.9, 1.0: 0.7}}

    def evaluate(policy, u, g, sampling, seed, judge):
        assert sampling.temperature == 0 and seed == 5
        accuracy = 0.3 if policy is None else 0.5
        drawn = scores[policy][sampling.cfg_weight]
        return dict(figures=dict(accuracy_mean=accuracy, score_mean=drawn))

    def trained(*_):
        names = ("accuracy", "score", "well_formed", "diversity")
        before, after = ({f"{name}_mean": x for name in names} for x in (0.1, 0.2))
        return dict(before=before, after=after, model="after")

    monkeypatch.setattr(a, "evaluate", evaluate)
    monkeypatch.setattr(a, "trained", trained)
    monkeypatch.setattr(a, "load_checkpoint", lambda model: (model, None))
    monkeypatch.setattr(a, "policy_for", lambda model, processor: model)
    (tmp_path / "runs").mkdir()
    made = a.run_row(tmp_path, {}, 5, BASE)
    assert made["best_cfg_weight"] == 1.0 and not made["failed"]
    assert (made["best_score_before"], made["best_score_after"]) == (0.6, 0.7)
    assert (made["best_accuracy_before"], made["best_accuracy_after"]) == (0.3, 0.5)
    assert (made["diversity_before"], made["diversity_after"]) == (0.1, 0.2)


def test_an_error_without_words_is_named_by_its_kind(tmp_path, monkeypatch):
    def trained(*_):
        raise RuntimeError

    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(a, "trained", trained)
    assert a.run_row(tmp_path, {}, 0, BASE)["failed"] == "RuntimeError"


def test_a_failed_row_names_the_function_that_failed(tmp_path, monkeypatch):
    def trained(*_):
        raise ValueError("weighting 'my:cube' makes nan of the similarity 0.6 of pair 0: it must")

    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(a, "trained", trained)
    why = "weighting 'my:cube' makes nan of the similarity 0.6 of pair 0"
    assert a.run_row(tmp_path, {}, 0, BASE)["failed"] == why


def test_a_preset_with_data_of_its_own(tmp_path, monkeypatch):
    things = tmp_path / "things"
    for part, n in (("u", 30), ("g", 30), ("held-u", 6), ("held-g", 6)):
        split = "heldout" if n == 6 else "train"
        save_records(records(part[-1], n, 1, split), things / part)
    pair = PairSettings(clusters=6)
    base = Preset(TINY, data=str(things), reward="scene", pair=pair)
    monkeypatch.setitem(PRESETS, "things", base)
    (tmp_path / "out").mkdir()
    a.begin_tables(tmp_path / "out", base, "things", [], "mine", {})
    a.main([str(tmp_path / "out"), json.dumps(dict(mix="aligned")), "3"])
    run = tmp_path / "out/runs/mix=aligned,seed=3"
    assert json.loads((run / "pairs/pairs.json").read_text())["settings"] is not None
    told = json.loads((run / "settings.json").read_text())
    assert told["pairs"] == 6 and told["seed"] == 3 and told["steps"] == TINY.steps
    asked = json.loads((run / "samples/before.json").read_text())["prompts"]
    held = [r["prompt"] for r in records("g", 6, 1, "heldout")]
    assert asked == held[: TINY.eval_items]  # the folder's, and no more than were asked for
    with pytest.raises(ValueError, match="tables with preset things, and now it is nano"):
        a.ablate("control", tmp_path / "out", [0], s=TINY)
    with pytest.raises(ValueError, match="nothing in ''"):
        a.ablate("control", tmp_path / "out", [0], start="janus-pro-1b")


def test_what_is_wrong_with_a_folder_is_no_result(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()

    def locked(*args):
        raise ValueError("another process is writing to the run in 'x': wait for it")

    monkeypatch.setattr(a, "trained", locked)
    with pytest.raises(ValueError, match="another process"):
        a.run_row(tmp_path, {}, 0, BASE)
    assert not list((tmp_path / "runs").glob("*.json"))
    run = a.Run("reference", {}, 0)
    (tmp_path / "runs/reference,seed=0.log").write_text("Traceback\nKilled by somebody\n")
    with pytest.raises(ValueError, match="reference,seed=0.*exit code -9; Killed by somebody"):
        a.finished(tmp_path, run, BASE, -9)


class Process:
    "A run that ends after some looks at it."

    def __init__(self, looks, code=0):
        self.left, self.returncode, self.stopped = looks, code, False

    def poll(self):
        self.left -= 1
        return self.returncode if self.left < 0 else None

    def terminate(self):
        self.stopped = True

    def wait(self):
        return self.returncode


def schedule(monkeypatch, runs, jobs, codes):
    "How many runs were on their way when each began, and the processes."
    begun, made = [], {}

    def start(out, run, base):
        going = [name for name, process in made.items() if process.left >= 0]
        begun.append((run.row, going))
        made[run.row] = Process(len(begun), codes.get(run.row, 0))
        return made[run.row]

    def finished(out, run, base, code):
        if code:
            raise ValueError(f"{run.row} ended without a result")
        return dict(row=run.row)

    monkeypatch.setattr(a, "start_run", start)
    monkeypatch.setattr(a, "finished", finished)
    monkeypatch.setattr(a.time, "sleep", lambda s: None)
    told = []
    try:
        a.run_all(None, runs, BASE, jobs, lambda run, *_: told.append(run.row), lambda: None)
    except ValueError as e:
        told.append(str(e))
    return begun, made, told


def test_averages_wait_for_what_they_are_made_of(monkeypatch):
    runs = [a.Run("average", dict(average=[{}]), 0)]
    runs += [a.Run(name, {}, 0) for name in "abcd"]
    begun, _, told = schedule(monkeypatch, runs, 2, {})
    assert [row for row, _ in begun] == ["a", "b", "c", "d", "average"]
    assert max(len(going) for _, going in begun) == 1 and begun[-1][1] == []
    assert sorted(told) == ["a", "average", "b", "c", "d"]


def test_a_run_that_dies_stops_the_others_and_nothing_else_begins(monkeypatch):
    runs = [a.Run(name, {}, 0) for name in "abcd"]
    begun, made, told = schedule(monkeypatch, runs, 3, dict(a=-9))
    assert [row for row, _ in begun] == ["a", "b", "c"]
    assert [made[name].stopped for name in "abc"] == [False, True, True]
    assert told == ["a ended without a result"]


def test_a_seed_and_a_prompt_decide_how_rewards_are_dealt():
    def reward(prompts, outputs, truths):
        return list(range(len(outputs)))

    dealt = a.shuffled(reward, 0)(["p"] * 20, [""] * 20, None)
    assert sorted(dealt) == list(range(20)) and dealt != list(range(20))
    assert dealt == a.shuffled(reward, 0)(["p"] * 20, [""] * 20, None)
    some = a.shuffled(lambda *_: [0.1, None, 0.3], 0)(["p"] * 3, [""] * 3, None)
    assert sorted(some, key=str) == [0.1, 0.3, None]  # what a judge left out stays missing
    assert dealt != a.shuffled(reward, 1)(["p"] * 20, [""] * 20, None)
    assert dealt != a.shuffled(reward, 0)(["q"] * 20, [""] * 20, None)


@pytest.mark.slow
def test_a_row_of_a_committed_table_is_made_again(tmp_path):
    "The first row of `raft`, the small job, seed 0: a minute of CPU time."
    file = Path(__file__).parents[1] / "benchmarks/ablate/raft.csv"
    (kept,) = (x for x in a.read_table(file) if (x["row"], x["seed"]) == ("pair-grpo", 0))
    base = preset("nano")
    small = dict(steps=kept["steps"], pairs_per_step=8, rollouts=8, eval_items=200)
    (tmp_path / "runs").mkdir()
    again = a.run_row(tmp_path, {}, 0, replace(base, train=replace(base.train, **small)))
    assert not again["failed"] and again["pairs"] == kept["pairs"]
    for name in [f"{measure}_{when}" for measure in a.MEASURES for when in ("before", "after")]:
        # another processor rounds differently, and a few of 200 items may then fall otherwise
        within = 0.01 if name.endswith("before") else 0.05
        assert abs(again[name] - kept[name]) < within, name


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_a_kill_saves_what_is_on_its_way(tmp_path, how):
    words = "ablate control --rows reference --seeds 0 --steps 500 --rollouts 2"
    words += " --pairs-per-step 2 --eval-items 4 --out tables --jobs 1"
    job = Python(CLI, *words.split(), cwd=tmp_path)
    run = tmp_path / "tables/runs/reference,seed=0"
    try:
        job.until(lambda: (run / "metrics.jsonl").exists() and len(read_metrics(run)) >= 3)
    finally:
        job.send(how)
        code, said = job.wait(120), job.said()[1]
    assert code == 130 and "the same command goes on" in said
    assert (run / "state.pt").exists() and not (run / "result.json").exists()
    assert not (run / ".lock").exists() and not (tmp_path / "tables/control.csv").exists()


def a_run(folder, metrics, **settings):
    "A run folder, as far as `compare` reads it."
    folder.mkdir()
    said = asdict(TrainSettings(**settings)) | dict(model=None, reward="", pairs=100)
    (folder / "settings.json").write_text(json.dumps(said))
    if metrics:
        text = "".join(json.dumps(m) + "\n" for m in metrics)
        (folder / "metrics.jsonl").write_text(text)
    return folder


def test_compare_shows_what_differs_and_takes_unfinished_runs(tmp_path):
    scores = dict(eval_accuracy_mean=0.25, eval_accuracy_ci=0.1, sec_eval=1.0)
    steps = [dict(step=i, reward_u=i / 10, reward_g=0.5, grad_norm=2.0) for i in range(1, 13)]
    one = a_run(tmp_path / "one", [dict(step=0) | scores, *steps], lr=1e-4)
    later = scores | dict(eval_accuracy_mean=0.5)
    two = a_run(tmp_path / "two", [dict(step=0) | scores, dict(step=90) | later], lr=2e-4)
    three = a_run(tmp_path / "three", [], lr=1e-4)
    text = a.side_by_side([one, two, three])
    rows = {}
    for row in text.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        rows[cells[0]] = cells[1:]
    assert rows["lr"] == ["0.0001", "0.0002", "0.0001"]
    assert "steps_per" not in rows and "seed" not in rows and "rollouts" not in rows
    assert "steps" not in rows  # the setting is the same in all
    assert rows["steps done"] == ["12 of 90", "90 of 90", "nothing measured yet"]
    assert rows["understanding, held out"] == ["0.250", "0.250 -> 0.500 (step 90)", ""]
    assert rows["reward of answers, last 10"] == ["0.750", "", ""]
    a.draw_runs([one, two, three])
    assert a.short_names([one, tmp_path / "other" / "one"])[0] == str(one)


def test_compare_shows_what_answers_earned_and_what_was_held_out(tmp_path, monkeypatch):
    told = dict(model=None, reward="", pairs=100)
    for name, own in (
        ("python", {}),
        ("plain", dict(reward_u="", held_u="", held_g="")),
        ("brief", dict(reward_u="accuracy+0.2*my:brief", held_u="/held")),
    ):
        a_run(tmp_path / name, [])
        saved = asdict(TrainSettings()) | told | own
        write_json(tmp_path / name / "settings.json", saved)
    runs = [tmp_path / name for name in ("python", "plain", "brief")]
    assert a.apart([a.said_of(run) for run in runs]) == dict(
        reward_u=[None, None, "accuracy+0.2*my:brief"], held_u=[None, None, "/held"]
    )
    monkeypatch.chdir(runs[0])
    assert a.short_names([".", runs[2]]) == ["python", "brief"]


def ended_run(folder, reward, accuracy, score, questions="ab"):
    "A finished run, as far as `compare` reads it."
    run = a_run(folder, [dict(step=90)])
    write_json(run / "settings.json", asdict(TrainSettings()) | dict(model=None, reward=reward))
    means = dict(accuracy_mean=sum(accuracy) / len(accuracy), score_mean=sum(score) / len(score))
    write_json(run / "result.json", dict(after=means))
    (run / "samples").mkdir()
    told = dict(prompts=["p"], answers=[dict(question=question) for question in questions])
    write_json(run / "samples/after.json", told | dict(items=dict(accuracy=accuracy, score=score)))
    return run


def test_compare_takes_the_difference_item_by_item(tmp_path):
    one = ended_run(tmp_path / "one", "scene", [1, 0, 1, 0], [0.5, 0.25, 1.0])
    two = ended_run(tmp_path / "two", "scene", [1, 1, 1, 0], [0.75, 0.5, 1.25])
    told = a.above(two, one)
    assert told["understanding, above the first"].replace("\xa0", " ") == "+25.0 ± 84.9 points"
    assert told["drawing, above the first"].replace("\xa0", " ") == "+25.0 ± 0.0 points"
    other = ended_run(tmp_path / "other", "clip:x", [1, 1, 1, 0], [0.75, 0.5, 1.25])
    assert list(a.above(other, one)) == ["understanding, above the first"]
    asked = ended_run(tmp_path / "asked", "scene", [1, 1, 1, 0], [0.5, 0.25, 1.0], questions="ac")
    assert not a.above(asked, one) and not a.above(one, a_run(tmp_path / "three", []))
    rows = [line for line in a.side_by_side([one, two, asked]).splitlines() if "above" in line]
    assert [row.split("|")[2].strip() for row in rows] == ["", ""]  # the first has none
    assert all("+25.0" in row.split("|")[3] and not row.split("|")[4].strip() for row in rows)


def test_compare_is_a_table_whatever_the_names_say(tmp_path):
    one = a_run(tmp_path / "a|b", [], steps=30, instruction="think | then\nanswer")
    two = a_run(tmp_path / "two", [dict(step=3)], steps=60)
    lines = a.side_by_side([one, two]).splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert rows[0] == ["", r"a\|b", "two"] and {len(row) for row in rows} == {3}
    first = [row[0] for row in rows]
    assert len(set(first)) == len(first) and {"steps", "steps done"} < set(first)
    assert ["steps", "30", "60"] in rows
    assert ["steps done", "nothing measured yet", "3 of 60"] in rows
    assert ["instruction", r"think \| then answer", ""] in rows
    text = a.rises_table([], ["a|b", "c"])
    assert r"| a\|b | 0 |" in text and r"against a\|b |" in text


def test_a_run_is_called_what_its_row_is_called():
    base = TrainSettings()
    for row in ("pair-grpo", "grpo", "sampling", "raft", "unified"):
        assert replace(base, **a.TABLES["instead"][row]).method == row
