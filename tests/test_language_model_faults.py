"""Completion over real HTTP: an endpoint that fails, a client that is killed, bad input that ends
in one sentence."""

import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import pytest

from pairuni_nb import language_model
from pairuni_nb.language_model import (
    FORMS,
    Journal,
    Question,
    Refused,
    ToyEndpoint,
    Unanswered,
    chat,
    check_completion,
    complete_by_llm,
    complete_one,
    connect,
    digest,
    guess,
    hidden,
    image_tokens,
    item_key,
    measured,
    outgrown,
    price,
    prompt,
    read_journal,
    read_reply,
    request,
    schema,
    send,
    short,
    status_error,
    to_completion,
    totals,
)
from pairuni_nb.language_model import endpoint as endpoint_of
from pairuni_nb.settings import CompletionSettings
from pairuni_nb.world import records

DIALS = dict(lie=0.3, miss=0.1, alarm=0.1)
ROWS = records("u", 20, 5) + records("g", 20, 5)
CLIENT = """import json, sys
from pairuni_nb.language_model import CompletionSettings, complete_by_llm
from pairuni_nb.world import records
rows = records("u", 20, 5) + records("g", 20, 5)
complete_by_llm(rows, sys.argv[1], CompletionSettings(**json.loads(sys.argv[2])))"""


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


class Faulty(ToyEndpoint):
    """Spoils a share of the calls, the probe excepted."""

    often = ["busy", "broken", "cut_http", "cut_json", "misshapen", "page", "twice"]
    faults = often * 2 + ["silent", "late"]

    def __init__(self, seed=0, rate=0.3, **dials):
        super().__init__(**dials)
        self.rng, self.rate, self.deck = random.Random(seed), rate, []
        self.lock = threading.Lock()
        self.log = []  # of each call: what was asked, fault or None
        self.inside = []  # handlers of the calls that are not over
        self.most = 0  # calls that somebody waited for at once

    def fault(self, body):
        if self.rng.random() >= self.rate:
            return None
        if not self.deck:
            self.deck = self.rng.sample(self.faults, len(self.faults))
        return self.deck.pop()

    def serve(self, handler, body):
        if body["response_format"]["json_schema"]["name"] == "probe":
            return super().serve(handler, body)
        with self.lock:
            fault = self.fault(body)
            handler.entry = [digest(body["messages"]), fault]
            self.log.append(handler.entry)
            self.inside.append(handler)
            # whose client has its reply, or was killed, counts no more, however slow this thread is
            self.most = max(self.most, sum(not gone(h) for h in self.inside))
        try:
            self.spoil(fault, handler, body)
        finally:
            with self.lock:
                self.inside.remove(handler)

    def spoil(self, fault, handler, body):
        if fault in ("silent", "late"):
            while not gone(handler):
                time.sleep(0.02)
            if fault == "late":
                super().serve(handler, body)
            return
        soon = {"retry-after-ms": 20}
        if fault == "busy":
            return handler.answer(dict(error=dict(message="slow down")), 429, soon)
        if fault == "broken":
            return handler.answer(dict(error=dict(message="oh no")), 500, soon)
        if fault == "cut_json":
            return handler.answer(chat('{"evidence": "two st', "toy", 1, 1))
        if fault == "misshapen":
            return handler.answer(chat('{"holds": "maybe", "caption": 7}', "toy", 1, 1))
        if fault == "page":
            return handler.answer("<html>Welcome</html>")
        wire, handler.wfile = handler.wfile, BytesIO()
        super().serve(handler, body)
        whole, handler.wfile = handler.wfile.getvalue(), wire
        if gone(handler):
            handler.entry[1] = fault or "gone"  # this machine was slow
        if fault == "cut_http":
            handler.close_connection = True
            wire.write(whole[:-30])
        else:
            wire.write(whole * 2 if fault == "twice" else whole)


def gone(handler):
    """The client has hung up: killed, or tired of waiting."""
    try:
        return handler.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def settings(endpoint, **changed):
    usual = dict(model="toy", base_url=endpoint.base_url, concurrency=4, timeout=1.5)
    return CompletionSettings(**usual | changed)


def without_faults(record, rewrites=2):
    toy = ToyEndpoint(**DIALS)

    def ask(name, **fields):
        reply = toy.reply(name, prompt(name, **fields), record["image"])
        return FORMS[name](**reply)

    return complete_one(ask, record, rewrites)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_and_failing_at_once(seed, tmp_path):
    journal, kills, before = tmp_path / "journal.jsonl", 0, []
    with Faulty(seed, **DIALS) as endpoint:
        s = settings(endpoint)
        command = [sys.executable, "-c", CLIENT, str(journal), json.dumps(vars(s))]
        for calls in random.Random(seed).sample(range(2, 55), 3):
            client = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            until = len(endpoint.log) + calls
            while len(endpoint.log) < until and client.poll() is None:
                time.sleep(0.002)
            client.kill()
            kills += client.wait() != 0
            before.append([line for line in read_journal(journal) if line.get("end") == "accepted"])
        quads, dropped = complete_by_llm(ROWS, journal, s)
        endpoint.calls.clear()
        assert complete_by_llm(ROWS, journal, s) == (quads, dropped)
        assert not endpoint.calls
    assert kills == 3
    assert {fault for _, fault in endpoint.log} >= {None, *Faulty.faults}

    lines = read_journal(journal)
    ended = Counter(line["end_of"] for line in lines if "end_of" in line)
    assert set(ended) == {item_key(r, s) for r in ROWS}
    assert set(ended.values()) == {1}
    assert before[-1]
    assert all(line in lines for accepted in before for line in accepted)
    calls = [line["call"] for line in lines if "call" in line]
    assert len(set(calls)) == len(calls)

    asked = Counter(key for key, _ in endpoint.log)
    failed = Counter(key for key, fault in endpoint.log if fault not in (None, "twice"))
    again = sum(max(0, n - failed[key] - 1) for key, n in asked.items())
    assert again <= kills * s.concurrency
    assert endpoint.most <= s.concurrency

    for line in lines:  # faults cost time and calls, and change no completion
        if "end_of" in line and not line.get("reason", "").startswith(("no usable", "unanswered")):
            truth = without_faults(next(r for r in ROWS if item_key(r, s) == line["end_of"]))
            assert {k: line[k] for k in truth} == truth
    assert len(quads) + len(dropped) == len(ROWS)
    held = totals(journal)
    assert held["accepted"] + held["dropped"] == len(ended)


def about_records(endpoint):
    """What was asked, the probe excepted."""
    asked = []
    for call in endpoint.calls:
        if call["response_format"]["json_schema"]["name"] != "probe":
            asked.append(digest(call["messages"]))
    return asked


def test_a_stopped_run_writes_down_what_is_in_flight(tmp_path, monkeypatch):
    def impatient(jobs, *_, **__):
        for i, job in enumerate(jobs):
            if i == 5:
                raise KeyboardInterrupt
            yield job

    with ToyEndpoint(**DIALS) as endpoint:
        s = settings(endpoint)
        with monkeypatch.context() as patch:
            patch.setattr(language_model, "tqdm", impatient)
            with pytest.raises(KeyboardInterrupt):
                complete_by_llm(ROWS, tmp_path / "j", s)
        written = sum("call" in line for line in read_journal(tmp_path / "j"))
        assert len(about_records(endpoint)) == written
        complete_by_llm(ROWS, tmp_path / "j", s)
        asked = Counter(about_records(endpoint))
    assert set(asked.values()) == {1}


class Dying(Faulty):
    """Well for a while, then nothing but errors."""

    lives = 40

    def fault(self, body):
        return "broken" if len(self.log) >= self.lives else None


def test_an_endpoint_that_goes_silent_drops_nobody(tmp_path):
    with Dying() as endpoint:
        s = settings(endpoint, retries=1)
        with pytest.raises(ValueError, match="has gone silent.*HTTP 500.*run again"):
            complete_by_llm(ROWS, tmp_path / "j", s)
        held = totals(tmp_path / "j")
        assert held["dropped"] == 0 < held["accepted"]
        endpoint.lives = 10**6
        assert len(complete_by_llm(ROWS, tmp_path / "j", s)[0]) == len(ROWS)


class Late(Faulty):
    """Gives no answer about some pictures, and after `lives` calls none at all."""

    def __init__(self, records, lives=10**6, **dials):
        super().__init__(**dials)
        self.pictures = [picture_of(r) for r in records]
        self.lives, self.gone = lives, False

    def fault(self, body):
        asked = body["messages"][0]["content"]
        return "broken" if any(p in asked for p in self.pictures) else None

    def serve(self, handler, body):
        if len(self.log) >= self.lives:
            return handler.answer(error("oh no"), 500)
        super().serve(handler, body)


def test_who_gets_no_answer_is_dropped_from_this_run_alone(tmp_path):
    # more in a row than calls in flight, and the endpoint is well
    with Late(ROWS[4:12]) as endpoint:
        s = settings(endpoint, retries=0, concurrency=2)
        rows = [r for pair in zip(ROWS[4:12], ROWS[12:20]) for r in pair]
        quads, dropped = complete_by_llm(rows, tmp_path / "j", s)
        assert {id for id, _ in dropped} == {r["id"] for r in ROWS[4:12]}
        assert all(reason.startswith("unanswered: HTTP 500") for _, reason in dropped)
        assert not any(line.get("end") == "dropped" for line in read_journal(tmp_path / "j"))
        assert price(rows, s, 2, 8, tmp_path / "j")["records"] == 8
        endpoint.pictures = []
        assert len(complete_by_llm(rows, tmp_path / "j", s)[0]) == 16
        endpoint.calls.clear()
        assert len(complete_by_llm(rows, tmp_path / "j", s)[0]) == 16 and not endpoint.calls


def test_an_endpoint_that_goes_silent_at_the_end_drops_nobody(tmp_path):
    rows = [r for pair in zip(ROWS[4:12], ROWS[12:20]) for r in pair]
    with Late(ROWS[4:12]) as endpoint:
        s = settings(endpoint, retries=0, concurrency=2)
        # each of eight is asked twice, of the others there is a caption and its verdict
        endpoint.lives = 8 + 2 * 8 + 1
        with pytest.raises(ValueError, match="has gone silent.*HTTP 500.*run again"):
            complete_by_llm(rows, tmp_path / "j", s)
        held = totals(tmp_path / "j")
        assert held["dropped"] == 0 and held["accepted"] == 8
        endpoint.lives, endpoint.pictures = 10**6, []
        assert len(complete_by_llm(rows, tmp_path / "j", s)[0]) == 16


def picture_of(record):
    """A record's picture as a request holds it."""
    asked = request(CompletionSettings(), "caption", "", record["image"])
    return asked["messages"][0]["content"][1]


class Choosy(Faulty):
    """Fails in one way for one picture only."""

    def __init__(self, fault, record):
        super().__init__()
        self.name = fault
        self.picture = picture_of(record)

    def fault(self, body):
        return self.name if self.picture in body["messages"][0]["content"] else None

    def spoil(self, fault, handler, body):
        if fault == "refuse":
            return handler.answer(dict(error=dict(message="not this picture")), 400)
        super().spoil(fault, handler, body)


@pytest.mark.parametrize(
    "fault, reason, calls",
    [
        ("broken", "unanswered: HTTP 500: .*oh no", 2),
        ("silent", "unanswered: no reply within 1.5 s", 2),
        ("refuse", "no usable reply: HTTP 400: .*not this picture", 1),
        ("cut_json", "no usable reply: malformed 2 times", 2),
        ("page", "no usable reply: malformed 2 times", 2),
    ],
)
def test_one_record_in_trouble_is_dropped_alone(fault, reason, calls, tmp_path):
    with Choosy(fault, ROWS[3]) as endpoint:
        s = settings(endpoint, retries=0, rewrites=1)
        quads, ((id, said),) = complete_by_llm(ROWS[:6], tmp_path / "j", s)
    assert len(quads) == 5
    assert id == ROWS[3]["id"]
    assert re.match(reason, said)
    assert sum(f == fault for _, f in endpoint.log) == calls


@pytest.mark.parametrize("record, words", [(ROWS[0], "no prompt"), (ROWS[20], "no question")])
def test_a_writer_that_writes_nothing_is_asked_again(record, words, tmp_path):
    class Mute(ToyEndpoint):
        def reply(self, name, text, image):
            said = super().reply(name, text, image)
            return said if name == "probe" else dict.fromkeys(said, "")

    with Mute() as endpoint:
        _, ((_, reason),) = complete_by_llm([record], tmp_path / "j", settings(endpoint))
        assert len(about_records(endpoint)) == 3
    assert reason.startswith("rejected 3 times") and words in reason


def test_pauses_grow_or_follow_the_server_and_every_try_keeps_the_pace(monkeypatch):
    class Busy(ToyEndpoint):
        replies = []

        def serve(self, handler, body):
            if self.replies:
                handler.answer({}, 429, self.replies.pop(0))
            else:
                super().serve(handler, body)

    waits, paced = [], []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(
        language_model, "Pace", lambda per_minute: lambda _: paced.append(per_minute)
    )
    text = prompt("caption", earlier="", question="q", choices="c", answer="a")
    with Busy() as endpoint:
        s = settings(endpoint, requests_per_minute=60, retries=6)
        endpoint.replies = [{}, {}, {}, {"retry-after": "37"}, {}]
        with connect(s) as client:
            send(client, s, request(s, "caption", text, ROWS[0]["image"]))
    low = [0.375, 0.75, 1.5, 37, 6]
    assert len(waits) == 5, waits
    assert all(a <= w <= a * 4 / 3 for a, w in zip(low, waits)), waits
    assert waits[3] == 37, waits
    assert paced == [60] * 6


def test_a_price_without_a_call(tmp_path):
    with ToyEndpoint(**DIALS) as endpoint:
        s = settings(endpoint)
        guess = price(ROWS, s, 2, 8, tmp_path / "none")
        assert not endpoint.calls
        assert guess["records"] == len({item_key(r, s) for r in ROWS})
        assert guess["usd_worst"] > guess["usd"] > 0
        assert price(ROWS, s, 0, 8)["usd"] < guess["usd"]
        usd = (guess["tokens_in"] * 2 + guess["tokens_out"] * 8) / 1e6
        assert guess["usd"] == pytest.approx(usd, abs=0.005)

        complete_by_llm(ROWS[:10], tmp_path / "j", s)
        n, tokens_in, tokens_out = measured(read_journal(tmp_path / "j"), "toy")
        paid = totals(tmp_path / "j")
        assert n == 10
        assert tokens_out * 10 <= paid["tokens_out"]
        assert 0 < paid["tokens_in"] - tokens_in * 10 < 500  # the probe
        rest = price(ROWS, s, 2, 8, tmp_path / "j")
        assert rest["done"] == 10
        assert rest["records"] == guess["records"] - 10
        assert rest["tokens_in"] == int(tokens_in * rest["records"])

        complete_by_llm(ROWS, tmp_path / "j", s)
        assert price(ROWS, s, 2, 8, tmp_path / "j")["usd"] == 0


def test_a_picture_counts_as_openai_shrinks_it():
    # its own examples: a square of 1,024 pixels is 4 tiles, 2,048 x 4,096 are 6
    for size, side, tiles in (
        ((1024, 1024), 4096, 4),
        ((2048, 4096), 4096, 6),
        ((1536, 1536), 1536, 4),
        ((1024, 1024), 768, 4),
        ((1024, 512), 768, 2),
        ((4096, 512), 4096, 4),  # 2,048 pixels, however many we send
        ((48, 48), 768, 1),
    ):
        assert image_tokens(size, side) == 75 + 150 * tiles, (size, side)


def test_no_run_costs_more_than_the_highest_price(tmp_path):
    class Worst(ToyEndpoint):
        """Replies at full length: out of form until the last time, and then an objection."""

        said = 0

        def serve(self, handler, body):
            if body["response_format"]["json_schema"]["name"] == "probe":
                return super().serve(handler, body)
            self.said += 1
            name = body["response_format"]["json_schema"]["name"]
            fields = dict(objection="no", holds=False)
            if not name.startswith("verify"):
                fields = dict(evidence="", caption=f"try {self.said}")
            reply = "{" if self.said % 3 else json.dumps(fields)
            handler.answer(chat(reply, "toy", 100, s.max_tokens))

    with Worst() as endpoint:
        s = settings(endpoint, concurrency=1, rewrites=2)
        complete_by_llm(ROWS[:1], tmp_path / "j", s)
    replies = [line for line in read_journal(tmp_path / "j") if "item" in line]
    assert len(replies) == 2 * 3 * 3
    paid = sum(line["tokens_out"] for line in replies)
    assert price(ROWS[:1], s, 0, 1000)["usd_worst"] == round(paid / 1000, 2)
    # what a measured record takes is less than what the worst would
    two = price(ROWS[:2], s, 1000, 0, tmp_path / "j")
    assert two["usd"] == round(len(replies) * 100 / 1000, 2) < two["usd_worst"]


def test_the_key_follows_the_picture_that_is_sent():
    large = ROWS[0] | dict(image=ROWS[0]["image"].resize((96, 96)))
    keys = {item_key(large, CompletionSettings(image_side=side)) for side in (32, 64, 96, 768)}
    assert len(keys) == 3  # as it is, and shrunk to two sizes
    small = {item_key(ROWS[0], CompletionSettings(image_side=side)) for side in (48, 768)}
    assert len(small) == 1 and large["image"].size == (96, 96)


@pytest.mark.parametrize(
    "raw",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1e400}}',
        '{"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": NaN}}',
    ],
    ids=("lists", "objects", "infinity", "nan"),
)
def test_replies_that_no_reader_takes(raw):
    assert read_reply(raw, 9) == dict(reply=raw[:300], tokens_in=0, tokens_out=0)


@pytest.mark.parametrize(
    "address", ("HTTP://me:secret@h/v1", " Https://secret@h", "me:secret@h/v1", "http:/me:secret@h")
)
def test_a_password_in_the_address_is_told_nowhere(address):
    with pytest.raises(ValueError, match="base_url holds an @") as e:
        check_completion(CompletionSettings(base_url=address))
    assert "secret" not in str(e.value)


def test_an_at_behind_the_host_is_none_of_a_password():
    check_completion(CompletionSettings(base_url="HTTP://h:8000/v1/@me"))


def refuses(folder, words, **changed):
    """One sentence with all the words, and nothing written."""
    with pytest.raises(ValueError) as e:
        complete_by_llm(ROWS[:2], folder / "j", CompletionSettings(**changed))
    text = str(e.value)
    assert "\n" not in text, text
    assert len(text) < 500, text
    assert all(w in text for w in words), text
    assert not list(folder.iterdir())


class Says(ToyEndpoint):
    """One answer to everything."""

    def __init__(self, body, status=200):
        super().__init__()
        self.said = body, status

    def serve(self, handler, body):
        handler.answer(*self.said)


def error(message, **more):
    return dict(error=dict(message=message, **more))


@pytest.mark.parametrize(
    "said, words",
    [
        (
            (error("Incorrect API key provided"), 401),
            ["refuses the key in OPENAI_API_KEY", "Incorrect API key"],
        ),
        (
            (error("The model `toy` does not exist", code="model_not_found"), 404),
            ["no chat model 'toy'", "ends in /v1", "does not exist"],
        ),
        (
            (error("You exceeded your current quota", code="insufficient_quota"), 429),
            ["no money left", "exceeded your current quota"],
        ),
        (
            (error("Invalid content type. image_url is only supported by certain models."), 400),
            ["image_url is only supported", "sees images"],
        ),
        (
            (error("image input is not supported - hint: you may need to provide the mmproj"), 500),
            ["image input is not supported", "sees images"],
        ),
        (("<html>It works!</html>", 200), ["It works!", "base URL", "/v1"]),
        (
            (chat("I cannot see pictures, but I like them.", "toy", 1, 1), 200),
            ["I cannot see pictures", "JSON by a schema"],
        ),
        (
            (chat('{"top": "blue", "bottom": "green"}', "toy", 1, 1), 200),
            ["does not see images", "blue above green"],
        ),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else None,
)
def test_endpoints_that_cannot_do_it(said, words, tmp_path):
    with Says(*said) as endpoint:
        refuses(tmp_path, words, model="toy", base_url=endpoint.base_url, retries=1)


@pytest.mark.parametrize(
    "changed, words",
    [
        (dict(), ["no key for https://api.openai.com/v1", "OPENAI_API_KEY", "base_url"]),
        (
            dict(base_url="http://127.0.0.1:9/v1", retries=1),
            ["http://127.0.0.1:9/v1", "no connection", "refused", "base URL"],
        ),
        (
            dict(base_url="http://no.such.host.invalid/v1", retries=0),
            ["no.such.host.invalid", "no connection"],
        ),
        (dict(base_url="localhost:8000"), ["'localhost:8000'", "http://"]),
        (dict(base_url="http://x/v1", concurrency=0), ["concurrency", "0"]),
        (dict(base_url="http://x/v1", requests_per_minute=-1), ["requests_per_minute", "-1"]),
        (dict(base_url="http://x/v1", timeout=0), ["timeout", "0"]),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else None,
)
def test_settings_that_cannot_work(changed, words, tmp_path):
    refuses(tmp_path, words, **changed)


def test_a_key_that_stops_working_half_way_loses_nothing(tmp_path):
    class Expiring(Dying):
        def spoil(self, fault, handler, body):
            if fault:
                handler.answer(error("expired"), 401)
            else:
                super().spoil(fault, handler, body)

    with Expiring() as endpoint:
        s = settings(endpoint)
        with pytest.raises(ValueError, match="refuses the key.*expired"):
            complete_by_llm(ROWS, tmp_path / "j", s)
        assert totals(tmp_path / "j")["calls"] == 41  # the probe and 40 replies
        endpoint.lives = 10**6
        assert len(complete_by_llm(ROWS, tmp_path / "j", s)[0]) == len(ROWS)
    asked = Counter(key for key, _ in endpoint.log)
    failed = Counter(key for key, fault in endpoint.log if fault)
    assert all(n - failed[key] == 1 for key, n in asked.items())


def test_a_journal_that_is_something_else(tmp_path):
    (tmp_path / "j").write_text('{"end_of": "x"}\nhello\n')
    with pytest.raises(ValueError, match="line 2 is not JSON.*remove that line"):
        complete_by_llm(ROWS[:1], tmp_path / "j", CompletionSettings())
    assert (tmp_path / "j").read_text() == '{"end_of": "x"}\nhello\n'


def test_the_address_that_is_named_is_asked(monkeypatch):
    named, bare = CompletionSettings(base_url="http://h/v1"), CompletionSettings(base_url="")
    assert endpoint_of(bare) == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere/v1")
    assert (endpoint_of(named), endpoint_of(bare)) == ("http://h/v1", "http://elsewhere/v1")


@pytest.mark.parametrize(
    "key, told",
    [
        ("sk-12345", "a (the key) here"),  # the shortest that is one
        ("sunflowers", "a sunflowers here"),  # a word, as a local server is given
        ("sk-1234", "a sk-1234 here"),
        ("", "a  here"),
    ],
)
def test_a_key_is_told_nowhere_and_a_word_stays(key, told, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert hidden(f"a {key} here") == told


def test_a_text_is_cut_after_the_key_has_gone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-12345678")
    assert short("x" * 195 + "\nsk-12345678") == "x" * 195 + " (the"


@pytest.mark.parametrize("key", ["sk-1234 5678", "sk-1234\n", "sk-\u00e9678"])
def test_a_key_with_a_character_that_no_key_has(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="set it anew"):
        connect(CompletionSettings(base_url="http://127.0.0.1:9/v1"))


def test_every_number_has_its_least():
    least = dict(concurrency=1, requests_per_minute=0, retries=0, rewrites=0, max_tokens=1)
    for name, n in (least | dict(image_side=1)).items():
        s = CompletionSettings(base_url="http://h/v1")
        check_completion(replace(s, **{name: n}))
        with pytest.raises(ValueError, match=f"{name} must be at least {n}, got {n - 1}"):
            check_completion(replace(s, **{name: n - 1}))
    with pytest.raises(ValueError, match="name a host"):
        check_completion(CompletionSettings(base_url="http://h:0/v1"))


def test_a_client_is_as_the_settings_say(monkeypatch):
    s = CompletionSettings(base_url="http://[::1]:9/v1", timeout=7.5, retries=5)
    monkeypatch.setenv("HTTP_PROXY", "http://no.such.host.invalid:1")
    with connect(s) as client:
        assert (client.timeout, client.max_retries) == (7.5, 5)
        assert client.default_headers["Connection"] == "close"
        assert not client._client.trust_env  # no proxy stands between this machine and itself
    with connect(replace(s, base_url="http://h/v1")) as client:
        assert client._client.trust_env


def test_choices_are_bare_and_dealt_by_their_words():
    fields = dict(evidence="", question=" what? ", wrong_1="b ", wrong_2=" c", wrong_3="d")
    places = set()
    for answer in "a", " e\n", "f", "g", "h", "i", "j", "k":
        got = to_completion(Question(answer=answer, **fields))
        assert got["question"] == "what?" and got["answer"] == answer.strip()
        assert sorted(got["choices"]) == sorted([answer.strip(), "b", "c", "d"])
        places.add(got["choices"].index(got["answer"]))
    assert len(places) > 2


@pytest.mark.parametrize(
    "status, code, kind",
    [
        (401, None, ValueError),
        (403, None, ValueError),
        (404, None, ValueError),
        (429, "insufficient_quota", ValueError),
        (400, None, Refused),
        (413, None, Refused),  # a picture too large for this server: the other records may go on
        (422, None, Refused),
        (429, None, Unanswered),
        (500, None, Unanswered),
    ],
)
def test_a_status_ends_the_run_the_record_or_this_try(status, code, kind):
    told = SimpleNamespace(status_code=status, code=code, message=f"Error code: {status} - oh no")
    fault = status_error(told, CompletionSettings(base_url="http://h/v1"))
    assert type(fault) is kind and f"HTTP {status}: oh no" in str(fault)


@pytest.mark.parametrize("ends", ["length", "stop", "content_filter", None])
def test_a_refusal_is_a_reply_and_only_a_cut_one_is_cut(ends):
    message = dict(content=None, refusal="I cannot \ud83d")  # half a character
    raw = json.dumps(dict(choices=[dict(message=message, finish_reason=ends)], usage=None))
    told = dict(reply="I cannot ?", tokens_in=0, tokens_out=0)
    assert read_reply(raw, 9) == told | (dict(cut=9) if ends == "length" else {})


def test_only_a_reply_that_was_cut_with_less_room_is_asked_again():
    s = CompletionSettings(max_tokens=100)
    lines = [dict(reply="x"), dict(cut=99), dict(cut=100), dict(cut=101)]
    assert [outgrown(line, s) for line in lines] == [False, True, False, False]


def test_one_journal_under_two_names_has_one_owner(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with Journal(tmp_path / "j"), pytest.raises(ValueError, match="in use by another run"):
        Journal(tmp_path / "link" / "j").__enter__()


def test_what_a_record_takes_is_this_models_and_of_those_that_ended():
    line = lambda item, model, n: dict(item=item, model=model, tokens_in=n, tokens_out=n, reply="")
    lines = [line("a", "toy", 5), line("a", "toy", 7), line("b", "toy", 9), line("c", "other", 11)]
    lines += [line("d", "toy", 100), dict(step="probe", tokens_in=3, tokens_out=3, reply="")]
    lines += [dict(end_of=item, id=item, end="accepted") for item in "abc"]
    assert measured(lines, "toy") == (2, 10.5, 10.5)


@pytest.mark.parametrize("record", [ROWS[0], ROWS[20]])
def test_a_guess_counts_all_that_is_sent(record):
    s, toy, sent = CompletionSettings(), ToyEndpoint(), []

    def ask(name, **fields):
        text = prompt(name, **fields)
        sent.append(len(text) + len(json.dumps(schema(name))))
        return FORMS[name](**toy.reply(name, text, record["image"]))

    complete_one(ask, record, 0)
    pictures = 2 * image_tokens(record["image"].size)
    assert guess(record, s)[0] - pictures == pytest.approx(sum(sent) / 4, rel=0.05)
