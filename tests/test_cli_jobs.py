"""`pairuni pair` with texts and a language model, presets as jobs, `pairuni plan`, held-out records of your own."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pairuni_nb import jobs
from pairuni_nb.jobs import (
    Ablate,
    Model,
    Pair,
    Plan,
    Train,
    begin_job,
    build_pairs,
    check_asked,
    check_pair,
    check_train,
    free_name,
    own_function,
    own_held,
    own_sampling,
    read_both,
    run_ablate,
    show_result,
    whole_reward,
)
from pairuni_nb.language_model import ToyEndpoint, read_journal
from pairuni_nb.pairing import load_pairs
from pairuni_nb.preference import tiny_clip
from pairuni_nb.records import save_records
from pairuni_nb.settings import PRESETS, PairSettings, TrainSettings
from pairuni_nb.world import records
from program import pairuni

TOY = "--n-u 40 --n-g 40 --clusters 8"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PAIRUNI_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def sentence(capsys, line):
    "The one line of an error."
    capsys.readouterr()
    assert pairuni(line) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_similarity_of_texts_pairs_differently_and_is_written_down(tmp_path):
    hows = ("image", "text", "mixture")
    for how in hows:
        flags = f"--similarity {how} --delta 0.3 --cache kept {TOY}"
        assert pairuni(f"pair --out {how} {flags}") == 0
    found = {}
    for how in hows:
        retrieved = [r for r in load_pairs(how) if r["kind"] == "retrieved"]
        found[how] = {(r["g_id"], r["u_id"]): r["similarity"] for r in retrieved}
    assert len({frozenset(f) for f in found.values()}) == 3
    aligned = [{r["g_id"] for r in load_pairs(how) if r["kind"] == "aligned"} for how in found]
    assert aligned[0] == aligned[1] == aligned[2]  # medoids are of images whatever s_p is
    told = json.loads((tmp_path / "text/pairs.json").read_text())
    assert told["settings"]["similarity"] == "text" and told["settings"]["features"] == {
        "image": "pixels",
        "text": "words",
    }
    assert "| similarity | text |" in (tmp_path / "text/README.md").read_text()


def test_clusters_follow_the_data_and_are_written_down(tmp_path):
    for flags, k in ("", 12), ("--clusters 5", 5):
        assert pairuni(f"pair --n-u 60 --n-g 60 --out {k} {flags}") == 0
        told = json.loads((tmp_path / f"{k}/pairs.json").read_text())
        assert told["settings"]["clusters"] == told["counts"]["medoids"] == k
        assert "clusters" not in told["counts"]


def test_the_clusters_written_down_are_those_that_were_asked_of_what_is_left(tmp_path):
    """Not the medoids: some cluster may be empty, and the same number must make the same pairs."""
    assert pairuni("pair --n-u 300 --n-g 300 --dedup 1 --out deduped") == 0
    told = json.loads((tmp_path / "deduped/pairs.json").read_text())
    left = 600 - told["counts"]["copies_u"] - told["counts"]["copies_g"]
    assert told["settings"]["clusters"] == left // 10 < 60
    assert pairuni(f"pair --n-u 300 --n-g 300 --dedup 1 --clusters {left // 10} --out again") == 0
    assert [r["g_id"] for r in load_pairs("again")] == [r["g_id"] for r in load_pairs("deduped")]


def test_features_of_a_network_are_named_by_a_hash_of_its_weights(tmp_path):
    from pairuni_nb.encoders import tiny_encoder

    tiny_encoder(tmp_path / "resnet")
    for out in "ab":
        assert pairuni(f"pair --out {out} --encoder resnet --cache kept {TOY}") == 0
    a, b = [
        json.loads((tmp_path / out / "pairs.json").read_text())["settings"]["features"]["image"]
        for out in "ab"
    ]
    assert a == b and a.startswith("resnet ") and len(a) == len("resnet ") + 16
    assert len(list((tmp_path / "kept").glob("*.sqlite"))) == 1


def test_a_language_model_completes_the_medoids_and_only_them(tmp_path):
    with ToyEndpoint(lie=0.3) as toy:
        llm = f"--complete llm --base-url {toy.base_url} --model toy {TOY}"
        assert pairuni(f"pair --out pairs {llm}") == 0
        told, asked = json.loads((tmp_path / "pairs/pairs.json").read_text()), len(toy.calls)
        spent, card = told["settings"]["llm_journal"], (tmp_path / "pairs/README.md").read_text()
        lines = read_journal("pairs.jsonl")
        assert {line["id"] for line in lines if "end_of" in line} and len(
            [line for line in lines if "end_of" in line]
        ) == told["counts"]["medoids"] == 8
        assert spent["accepted"] + spent["dropped"] == 8 and spent["tokens_in"] > 0
        assert (
            told["settings"]["complete"] == "llm" and told["counts"]["aligned"] == spent["accepted"]
        )
        assert (
            "| llm_model | toy |" in card
            and str(spent["tokens_out"]) in card
            and toy.base_url not in card + json.dumps(told)
        )  # where it runs is nobody's business
        assert pairuni(f"pair --out again --journal pairs.jsonl {llm}") == 0
        assert len(toy.calls) == asked  # nothing is paid for twice
    assert [r["prompt"] for r in load_pairs("again")] == [r["prompt"] for r in load_pairs("pairs")]


def test_a_dry_run_prices_the_medoids_and_asks_nobody(tmp_path, capsys):
    flags = f"--complete llm --dry-run --price-in 2 --price-out 8 {TOY}"
    assert pairuni(f"pair --out pairs {flags}") == 0
    quote = json.loads(capsys.readouterr().out)
    assert quote["records"] == 8 and 0 < quote["usd"] < quote["usd_worst"]
    assert abs(quote["usd"] - (2 * quote["tokens_in"] + 8 * quote["tokens_out"]) / 1e6) < 0.006
    for mix in ("retrieved", "random", "unpaired"):  # nothing is completed
        assert pairuni(f"pair --out pairs --mix {mix} {flags}") == 0
        told = capsys.readouterr().out
        quote = json.loads(told[told.index("{") :])
        assert (quote["records"], quote["usd"], quote["usd_worst"]) == (0, 0, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--complete llm", ["OPENAI_API_KEY", "--base-url"]),
        ("--complete llm --base-url localhost:1", ["base_url", "http://"]),
        (
            "--complete llm --base-url http://127.0.0.1:9/v1 --retries 0",
            ["127.0.0.1:9", "check the base URL"],
        ),
        ("--dry-run", ["--complete llm"]),
        ("--complete llm --concurrency 0", ["concurrency must be at least 1"]),
        ("--complete llm --dry-run --price-in -1", ["prices", "-1"]),
        ("--device tpu", ["unknown device 'tpu'"]),
        ("--top-n 0", ["top_n must be positive"]),
        ("--complete gpt", ["unknown complete 'gpt'", "rules, llm"]),
        ("--similarity sound", ["unknown similarity 'sound'"]),
        ("--similarity joint", ["joint_encoder"]),
        ("--similarity mixture --weights 1 1 0", ["sum to 1"]),
        ("--text-encoder pixels --similarity text", ["'pixels'", "texts"]),
        ("--clusters 99", ["clusters is 99"]),
    ],
)
def test_what_pair_cannot_do_is_one_sentence(flags, words, capsys, tmp_path):
    said = sentence(capsys, f"pair --out x {TOY} {flags}")
    assert all(w in said for w in words), said
    assert not list(tmp_path.iterdir())


def test_an_endpoint_without_vision_is_told_before_any_record_is_encoded(capsys):
    class Blind(ToyEndpoint):
        def reply(self, name, text, image):
            if name == "probe":
                return dict(top="black", bottom="black")
            return super().reply(name, text, image)

    with Blind() as toy:
        line = f"pair --out x --complete llm --base-url {toy.base_url} {TOY}"
        said = sentence(capsys, line)
    assert "see" in said and len(toy.calls) == 1, said


@pytest.mark.parametrize(
    "name, words",
    [
        ("janus-pro-1b", ["pairs of your own", "pairuni pair", "--pairs", "--reward hps:FOLDER"]),
        ("nano-emoji", ["data/things", "fetch_emoji.py --things"]),
    ],
)
def test_a_preset_says_what_it_still_needs(name, words, capsys, tmp_path):
    said = sentence(capsys, f"train --preset {name}")
    assert all(w in said for w in words) and not list(tmp_path.iterdir()), said


def test_plan_starts_from_the_preset_and_takes_its_flags(capsys):
    def told(flags=""):
        assert pairuni(f"plan {flags}") == 0
        return capsys.readouterr().out

    one = told()
    assert one == told("--preset janus-pro-1b")
    words = "2,076,636,811 parameters", "16 answers of 512 tokens and 16 images of 576", "fits"
    assert all(word in one for word in words)
    seven = "--preset janus-pro-7b"
    assert "fits; full fine-tuning of this model needs sharding" in told(seven)
    assert "do not fit 80" in told(f"{seven} --devices 1 --no-shard")
    assert "32 images" in told("--rollouts 16")
    assert "1,743,339 parameters" in told("--preset nano")  # janus-nano, from its config


def test_your_own_held_out_records_are_what_is_scored(capsys, tmp_path):
    rows = records("u", 5, 9, "heldout"), records("g", 4, 9, "heldout")
    for side, r in zip("ug", rows):
        save_records(r, side)
    assert pairuni(f"pair --out pairs {TOY}") == 0
    flags = "--steps 2 --pairs-per-step 2 --rollouts 2 --device cpu"
    assert pairuni(f"train --pairs pairs --held-u u --held-g g --out run {flags}") == 0
    assert "learns next to nothing" not in capsys.readouterr().out  # these are toy pairs
    protocol = json.loads((tmp_path / "run/result.json").read_text())["protocol"]
    assert (protocol["n_u"], protocol["n_g"]) == (5, 4)
    capsys.readouterr()
    assert pairuni("evaluate --held-u u --items 3 --out u.json") == 0
    told, figures = capsys.readouterr().out, json.loads((tmp_path / "u.json").read_text())
    assert told.startswith("understanding ") and told.endswith("written to u.json\n")
    assert "% (95 % interval; 3 items)" in told and "drawing" not in told
    assert figures["protocol"]["n_u"] == 3 and figures["protocol"]["n_g"] == 0
    assert "score_mean" not in figures["figures"]


def bridge(file, image_width=7, value=1.0):
    """A joint encoder whose texts have seven numbers, and whose pictures have what you say."""
    import numpy as np
    from safetensors.numpy import save_file

    W, words = np.full((264, image_width), value, np.float32), np.zeros(image_width, np.float32)
    save_file(dict(W=W, b=words), file, dict(encoder="pixels", text_encoder="words"))


@pytest.mark.parametrize(
    "flags, value, words",
    [
        ("--encoder odd.safetensors", float("nan"), ["NaN or infinity", "the image of u0-0"]),
        ("--encoder odd.safetensors", 0.0, ["only zeros", "the image of u0-0"]),
        (
            "--similarity joint --joint-encoder odd.safetensors",
            1.0,
            ["7 dimensions and texts into 1024", "one space"],
        ),
    ],
)
def test_features_that_cannot_be_compared(flags, value, words, capsys, tmp_path):
    bridge(tmp_path / "odd.safetensors", value=value)
    said = sentence(capsys, f"pair --out x {TOY} {flags}")
    assert all(w in said for w in words) and len(list(tmp_path.iterdir())) == 1, said


def test_settings_and_key_come_before_the_records(capsys):
    for flags, word in (
        ("--complete llm", "OPENAI_API_KEY"),
        ("--similarity joint", "joint_encoder"),
        ("--delta 2", "delta"),
    ):
        assert word in sentence(capsys, f"pair no_u no_g --out x {flags}")


class Writer(ToyEndpoint):
    """It knows what it reads in the prompt, and looks at nothing but the probe."""

    def reply(self, name, text, image):
        if name == "probe":
            return super().reply(name, text, image)
        if name.startswith("verify"):
            return dict(objection="", holds=True)
        line = lambda what: next(
            (t.partition(": ")[2] for t in text.splitlines() if t.startswith(what + ": ")), ""
        )
        if name == "caption":
            return dict(evidence="", caption=f"a picture of {line('Answer')}")
        return dict(
            evidence="",
            question="what is drawn?",
            answer=line("Caption"),
            wrong_1="a house",
            wrong_2="a tree",
            wrong_3="a ship",
        )


def real_records(n=12):
    """Pictures and texts as from outside: no scene."""
    rows = records("u", n, 3), records("g", n, 4)
    for side, r in zip("ug", rows):
        save_records([{k: v for k, v in x.items() if k != "scene"} for x in r], side)


def test_your_own_records_and_a_language_model(tmp_path):
    import pyarrow.parquet as pq

    real_records()
    flags = "--clusters 6 --complete llm --similarity mixture --delta 0.2"
    with Writer() as endpoint:
        assert pairuni(f"pair u g --out pairs --base-url {endpoint.base_url} {flags}") == 0
    rows, told = load_pairs("pairs"), json.loads((tmp_path / "pairs/pairs.json").read_text())
    for row in rows:
        if row["kind"] == "aligned" and row["origin"] == "u":
            assert row["prompt"].startswith("a picture of ")
        elif row["kind"] == "aligned":
            assert row["question"] == "what is drawn?"
    assert told["settings"]["u"] == "u" and "n_u" not in told["settings"]
    assert told["counts"]["aligned"] == told["counts"]["medoids"] == 6
    metadata = pq.read_metadata(tmp_path / "pairs/pairs.parquet").metadata
    assert json.loads(metadata[b"pairuni"]) == told["settings"]


def test_pictures_of_yours_train_the_laptop_model_with_a_word_of_warning_and_a_score(
    capsys, tmp_path
):
    real_records(24)
    assert pairuni("pair u g --out pairs --clusters 6") == 0
    flags = "--steps 1 --pairs-per-step 2 --rollouts 2 --device cpu"
    assert pairuni(f"train --pairs pairs --out run {flags}") == 0
    assert "janus-nano knows only the words of the toy world" in capsys.readouterr().out
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["protocol"]["n_g"] == 2 and result["after"]["score_mean"] is not None
    for reward in ("scene", "math:hypot+0.3*scene"):
        said = sentence(capsys, f"train --pairs pairs --out other --reward {reward} {flags}")
        assert "these pairs have none" in said and not (tmp_path / "other").exists()


def test_a_stopped_job_goes_on_from_its_journal(tmp_path, capsys):
    class Dies(Writer):
        def serve(self, handler, body):
            if len(self.calls) > 6:
                error = dict(message="no money", code="insufficient_quota")
                return handler.answer(dict(error=error), 429)
            super().serve(handler, body)

    real_records()
    flags = "--clusters 6 --complete llm --concurrency 1 --retries 0"
    line = f"pair u g --out pairs/ {flags} --base-url"
    with Dies() as broke:
        assert "no money left" in sentence(capsys, f"{line} {broke.base_url}")
    replies = [line for line in read_journal("pairs.jsonl") if "reply" in line]
    paid = [reply for reply in replies if reply["step"] != "probe"]
    assert paid and not (tmp_path / "pairs").exists()
    with Writer() as whole:
        assert pairuni(f"{line} {whole.base_url}") == 0
    asked = [call["response_format"]["json_schema"]["name"] for call in whole.calls]
    assert len(asked) - asked.count("probe") == 12 - len(paid)


@pytest.mark.parametrize("flag", ["--eval-items 8", "--eval-items=8", "--eval_items 8"])
def test_a_number_of_items_beside_held_out_records_is_refused(flag, capsys, tmp_path):
    save_records(records("g", 4, 9, "heldout"), "g")
    before = sorted(tmp_path.rglob("*"))
    said = sentence(capsys, f"train --held-g g {flag} --out run --device cpu")
    assert "--eval-items" in said and "of 'g' every record is scored" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_held_out_records_leave_no_run(capsys, tmp_path):
    assert pairuni(f"pair --out pairs {TOY}") == 0
    line = "train --pairs pairs --held-u no_held --out run --device cpu"
    assert "no_held" in sentence(capsys, line)
    assert [p.name for p in tmp_path.iterdir()] == ["pairs"]


def test_a_run_with_held_out_records_goes_on_from_another_folder(capsys, tmp_path, monkeypatch):
    import pairuni_nb.train as train

    for side in "ug":
        save_records(records(side, 4, 9, "heldout"), side)
    assert pairuni(f"pair --out pairs {TOY}") == 0

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_step", stop)
    tiny_clip(tmp_path / "judge")
    flags = "--reward 2*clip:judge --steps 1 --pairs-per-step 2 --rollouts 2 --device cpu"
    assert pairuni(f"train --pairs pairs --held-u u --held-g g --out run {flags}") == 130
    monkeypatch.undo()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pairuni("train --resume ../run --device cpu") == 0
    protocol = json.loads((tmp_path / "run/result.json").read_text())["protocol"]
    assert (protocol["n_u"], protocol["n_g"]) == (4, 4)


def test_pictures_without_scenes_are_scored_by_their_likeness(capsys, tmp_path):
    real_records(4)
    assert pairuni("evaluate --held-g g --out g.json") == 0
    told, kept = capsys.readouterr().out, json.loads((tmp_path / "g.json").read_text())
    judge = "similarity to the target image"
    assert 0 < kept["figures"]["score_mean"] <= 1 and kept["reward"] == judge
    interval = rf"\(95 % interval; 4 items, judge: {judge}\)"
    assert re.search(rf"drawing +0\.\d{{3}} ±\s0\.\d{{3}} {interval}", told), told


def test_each_judge_has_its_own_scale(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("pairuni_nb.report.write_report", lambda run: run / "report.html")
    same = dict(accuracy_mean=0.5, accuracy_ci=0.1, score_ci=0.5, full_mean=0.0, full_ci=0.0)
    result = dict(before=same | dict(score_mean=20.0), after=same | dict(score_mean=21.0))
    show_result(tmp_path, result | dict(protocol=dict(n_u=9, n_g=8)), "http://judge:8000")
    said = capsys.readouterr().out.replace("\xa0", " ")
    rose = "50.0 ± 10.0 % -> 50.0 ± 10.0 %, change +0.0 ± 14.1 points"
    assert f"{rose} (95 % intervals; 9 items)" in said
    rose = "20.000 ± 0.500 -> 21.000 ± 0.500, change +1.000 ± 0.707"
    assert f"{rose} (95 % intervals; 8 items, judge: http://judge:8000)" in said


def test_one_item_has_no_score(capsys, tmp_path):
    save_records(records("g", 1, 9, "heldout"), "g")
    assert pairuni("evaluate --held-g g --out g.json") == 0
    assert "none: fewer than two items" in capsys.readouterr().out
    kept = json.loads((tmp_path / "g.json").read_text(), parse_constant=pytest.fail)
    assert kept["figures"]["score_mean"] is None


def told_of(command, capsys):
    assert pairuni(f"{command} --help") == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    "command, steps",
    [
        ("train", 150),
        ("train --preset nano-emoji", 60),
        ("train --preset nano-emu3", 60),
        ("train --preset emu3-8b", 1200),
        ("plan --preset=nano-emoji", 60),
        ("plan", 1200),
    ],
)
def test_help_shows_the_presets_values(command, steps, capsys):
    shown = told_of(command, capsys)
    assert f"(paper: at most 1200) (default: {steps})" in shown


def test_help_names_every_preset(capsys):
    for command, without in (("train", ()), ("plan", ("nano-diffusion",))):
        shown = told_of(command, capsys)
        named = re.findall(r"all other flags start[^(]*", shown)[0].replace(" or ", ", ")
        found = {word.strip() for word in re.split("[,:]", named)}
        assert set(PRESETS) - set(without) <= found, set(PRESETS) - found
        assert not found & set(without)
    assert "of these four no checkpoint was ever loaded here" in told_of("train", capsys)


def test_help_names_what_stands_without_a_flag(capsys):
    for command, names in (
        ("pair", "U_FOLDER G_FOLDER"),
        ("sample ask", "IMAGE QUESTION"),
        ("serve", "REWARD"),
        ("train", "concept:FOLDER"),
    ):
        assert pairuni(f"{command} --help") == 0 and names in capsys.readouterr().out


def test_what_was_dropped_is_said_in_words(capsys, monkeypatch):
    monkeypatch.setattr(
        "pairuni_nb.pairing.pair_records",
        lambda *_, **__: ([1, 2], dict(rows=2, medoids=6, dropped={"not written": 4})),
    )
    build_pairs(Pair("x", settings=PairSettings(n_u=4, n_g=4)))
    why = "rules cannot write their other half, --complete llm can"
    assert capsys.readouterr().out == f"2 pairs: medoids 6, dropped ({why}) 4\n"


def test_folders_of_a_reward_are_written_from_the_root(tmp_path):
    for name in ("a", "b+c"):
        (tmp_path / name).mkdir()
    assert (
        whole_reward("0.5*clip:a + 2*concept:b+c+scene+http://h:1")
        == f"0.5*clip:{tmp_path}/a+2*concept:{tmp_path}/b+c+scene+http://h:1"
    )
    assert whole_reward("") == "" and whole_reward("hps:some/name") == "hps:some/name"


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--pairs nowhere --reward hps:also-nowhere", ["no pairs at nowhere", "pairuni pair"]),
        ("--reward clip:nowhere", ["no folder 'nowhere'", "owner/name"]),
    ],
)
def test_a_mistyped_folder_is_told_at_once(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("it asked the network"))
    said = sentence(capsys, f"train {flags}")
    assert all(w in said for w in words) and not list(tmp_path.iterdir()), said


def test_a_reader_that_stops_is_told_quietly_from_success():
    import subprocess, sys

    script = "import sys; from pairuni_nb.cli import main; sys.exit(main(['pair', '--help']))"
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.close()
    assert child.wait(60) == 141 and child.stderr.read() == b""


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is damaged, it is not JSON"),
        ("[1]", "is damaged, it holds no object"),
        ('{"settings": 3}', "holds no settings and counts"),
    ],
)
def test_damaged_notes_beside_the_pairs_are_named(content, words, capsys, tmp_path):
    assert pairuni(f"pair --out pairs {TOY}") == 0
    (tmp_path / "pairs/pairs.json").write_text(content)
    said = sentence(capsys, "train --pairs pairs --out run --steps 2 --device cpu")
    assert "pairs/pairs.json" in said and words in said and "make the pairs again" in said, said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags, copies", [("", 1), ("--dedup 1", 2)])
def test_your_own_records_that_repeat_are_dropped_and_said(flags, copies, capsys, tmp_path):
    u, g = records("u", 12, 0), records("g", 12, 0)
    u += [
        u[0] | dict(id="again"),
        u[1] | dict(id="asked otherwise", question=u[1]["question"] + " please"),
    ]
    for side, rows in zip("ug", (u, g)):
        save_records(rows, side)
    assert pairuni(f"pair u g --out pairs --clusters 4 {flags}") == 0
    said = capsys.readouterr().out
    counts = json.loads((tmp_path / "pairs/pairs.json").read_text())["counts"]
    assert counts["copies_u"] == copies and f"copies u {copies}" in said, said
    assert f"| copies_u | {copies} |" in (tmp_path / "pairs/README.md").read_text()


def test_only_what_was_not_given_comes_from_the_preset():
    told = PRESETS["janus-pro-1b"]
    assert Train(preset="janus-pro-1b").settings == told.train != TrainSettings()
    assert Train(preset="janus-pro-1b", settings=TrainSettings()).settings == TrainSettings()
    given = Plan(preset="janus-pro-1b", card="L4", devices=told.devices + 1)
    assert (given.card, given.devices) == ("L4", told.devices + 1)


def test_the_toy_records_of_both_sides_are_the_seeds():
    u, g, _ = read_both(Pair("", settings=PairSettings(n_u=3, n_g=4, seed=5)))
    for rows, side, n in (u, "u", 3), (g, "g", 4):
        wanted = [row["scene"] for row in records(side, n, 5)]
        assert [row["scene"] for row in rows] == wanted


def test_one_side_may_be_held_out_alone(tmp_path):
    save_records(records("u", 2, 0), tmp_path / "u")
    assert own_held("", "") is None
    u, g = own_held(str(tmp_path / "u"), "")
    assert len(u) == 2 and g == []


@pytest.mark.parametrize(
    "changed, words",
    [
        (dict(complete="llm", dry_run=True, price_out=-1.0), "prices must be at least 0"),
        (dict(complete="llm", dry_run=True, price_out=float("inf")), "prices must be at least 0"),
        (dict(complete="llm", dry_run=True, price_in=float("nan")), "prices must be at least 0"),
        (dict(pairug="./new"), "--pairug and --out are both 'new'"),
        (dict(licence_g="CC BY"), "--licence-g is 'CC BY'"),
    ],
)
def test_what_pair_refuses_before_a_record_is_read(changed, words):
    with pytest.raises(ValueError, match=words):
        check_pair(Pair("new", **changed))


@pytest.mark.parametrize("name", ["device", "reward_device"])
def test_both_devices_of_train_are_looked_at_before_the_work(name):
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        check_train(Train(**{name: "tpu"}))


def test_a_module_that_is_missing_is_told_from_one_that_it_needs(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import not_there_at_all\n")
    for spec, cure in (
        ("no_such_folder.inside:f", "start in the folder of that module"),
        ("no_such_module:f", "start in the folder of that module"),
        ("mine:f", "mine needs it"),
    ):
        with pytest.raises(ValueError, match=cure):
            own_function(spec, "reward")


@pytest.mark.parametrize("u, g, refused", [("x", "", True), ("", "x", False), ("", "", True)])
def test_the_scene_reward_wants_the_scenes_that_are_drawn(u, g, refused, monkeypatch, tmp_path):
    pairs, begun = dict(u_scene=["", u], g_scene=["", g]), []
    monkeypatch.setattr(jobs, "pairs_of", lambda c: (pairs, {}))
    monkeypatch.setattr("pairuni_nb.run_folder.begin_run", lambda *told: begun.append(told))
    job = lambda: begin_job(Train(reward="scene"), tmp_path / "run", "")
    if refused:
        with pytest.raises(ValueError, match="reward scene reads a drawing against its scene"):
            job()
    else:
        job()
    assert bool(begun) != refused


def test_a_zero_is_given_and_not_ignored(monkeypatch):
    monkeypatch.setattr("pairuni_nb.ablate.ablate", lambda *_: pytest.fail("it would train"))
    for name in "steps", "pairs_per_step", "rollouts", "eval_items":
        with pytest.raises(ValueError, match=f"{name} must be"):
            run_ablate(Ablate("data", **{name: 0}))
    check_asked(Model(seed=0))
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        check_asked(Model(seed=-1))


def test_runs_of_one_second_are_numbered(monkeypatch):
    monkeypatch.setattr(jobs.time, "strftime", lambda form: "now")
    for name in "now-raft", "now-raft-2", "now-raft-3":
        assert free_name("raft") == Path("runs", name)
        Path("runs", name).mkdir(parents=True)


def test_a_file_of_sampling_where_you_stand_is_not_the_checkpoints():
    Path("sampling.json").write_text('{"temperature": 0.5}')
    own = SimpleNamespace(guidance_scale=2.0, max_new_tokens=9)
    policy = SimpleNamespace(model=SimpleNamespace(generation_config=own))
    assert own_sampling(Model(), policy) == dict(cfg_weight=2.0, max_new_tokens=9)
    assert own_sampling(Model(checkpoint="."), policy) == dict(temperature=0.5)
