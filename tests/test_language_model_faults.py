"""Completion over real HTTP with an endpoint that fails, a client that is killed, and bad input that ends in one sentence."""

import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from io import BytesIO

import pytest

from pairuni_nb import language_model
from pairuni_nb.language_model import (
    FORMS,
    ToyEndpoint,
    chat,
    complete_by_llm,
    complete_one,
    connect,
    digest,
    item_key,
    measured,
    price,
    prompt,
    read_journal,
    request,
    send,
    totals,
)
from pairuni_nb.settings import CompletionSettings
from pairuni_nb.world import records

DIALS = dict(lie=0.3, miss=0.1, alarm=0.1)
ROWS = records("u", 20, 5) + records("g", 20, 5)
CLIENT = """import json, sys
from pairuni_nb.language_model import CompletionSettings, complete_by_llm
from pairuni_nb.world import records
complete_by_llm(records("u", 20, 5) + records("g", 20, 5), sys.argv[1], CompletionSettings(**json.loads(sys.argv[2])))"""


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


class Faulty(ToyEndpoint):
    """Spoils a share of the calls, the probe excepted; `log` holds (what was asked, fault or None)."""

    faults = ["busy", "broken", "cut_http", "cut_json", "misshapen", "page", "twice"] * 2 + [
        "silent",
        "late",
    ]

    def __init__(self, seed=0, rate=0.3, **dials):
        super().__init__(**dials)
        self.rng, self.rate, self.lock, self.log, self.now, self.most, self.deck = (
            random.Random(seed),
            rate,
            threading.Lock(),
            [],
            set(),
            0,
            [],
        )

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
            self.log.append([digest(body["messages"]), fault := self.fault(body)])
            handler.entry = self.log[-1]
            self.now.add(handler)
            # a killed or impatient client waits no longer for what is still answered here
            self.most = max(self.most, sum(not gone(waiting) for waiting in self.now))
        try:
            self.spoil(fault, handler, body)
        finally:
            with self.lock:
                self.now.remove(handler)
        if fault in ("silent", "late"):
            while not gone(handler):
                time.sleep(0.02)
            if fault == "late":
                super().serve(handler, body)

    def spoil(self, fault, handler, body):
        if fault in ("silent", "late"):
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
        wire.write(whole * 2 if fault == "twice" else whole[:-30] if fault == "cut_http" else whole)
        if fault == "cut_http":
            handler.close_connection = True


def gone(handler):
    """The client has hung up: killed, or tired of waiting."""
    try:
        return handler.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def settings(endpoint, **changed):
    return CompletionSettings(
        **dict(model="toy", base_url=endpoint.base_url, concurrency=4, timeout=1.5) | changed
    )


def without_faults(record, rewrites=2):
    toy = ToyEndpoint(**DIALS)
    return complete_one(
        lambda name, **fields: FORMS[name](
            **toy.reply(name, prompt(name, **fields), record["image"])
        ),
        record,
        rewrites,
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_and_failing_at_once(seed, tmp_path):
    journal, kills, before = tmp_path / "journal.jsonl", 0, []
    with Faulty(seed, **DIALS) as endpoint:
        s = settings(endpoint)
        for calls in random.Random(seed).sample(range(2, 55), 3):
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT, str(journal), json.dumps(vars(s))],
                stderr=subprocess.DEVNULL,
            )
            until = len(endpoint.log) + calls
            while len(endpoint.log) < until and client.poll() is None:
                time.sleep(0.002)
            client.kill()
            kills += client.wait() != 0
            before.append([line for line in read_journal(journal) if line.get("end") == "accepted"])
        quads, dropped = complete_by_llm(ROWS, journal, s)
        endpoint.calls.clear()
        assert complete_by_llm(ROWS, journal, s) == (quads, dropped) and not endpoint.calls
    lines = read_journal(journal)
    ended = Counter(line["end_of"] for line in lines if "end_of" in line)
    assert (
        kills == 3 and before[-1] and {fault for _, fault in endpoint.log} >= {None, *Faulty.faults}
    )
    assert set(ended) == {item_key(r, s) for r in ROWS} and set(ended.values()) == {1}
    assert all(line in lines for accepted in before for line in accepted)
    assert len({line["call"] for line in lines if "call" in line}) == sum(
        "call" in line for line in lines
    )
    asked, failed = (
        Counter(key for key, _ in endpoint.log),
        Counter(key for key, fault in endpoint.log if fault not in (None, "twice")),
    )
    again = sum(max(0, n - failed[key] - 1) for key, n in asked.items())
    assert again <= kills * s.concurrency and endpoint.most <= s.concurrency
    for line in lines:  # faults cost time and calls, and change no completion
        if "end_of" in line and not line.get("reason", "").startswith(("no usable", "unanswered")):
            truth = without_faults(next(r for r in ROWS if item_key(r, s) == line["end_of"]))
            assert {k: line[k] for k in truth} == truth
    assert len(quads) + len(dropped) == len(ROWS) and totals(journal)["accepted"] + totals(journal)[
        "dropped"
    ] == len(ended)


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
        calls = [
            c for c in endpoint.calls if c["response_format"]["json_schema"]["name"] != "probe"
        ]
        assert len(calls) == sum("call" in line for line in read_journal(tmp_path / "j"))
        complete_by_llm(ROWS, tmp_path / "j", s)
        asked = Counter(
            digest(c["messages"])
            for c in endpoint.calls
            if c["response_format"]["json_schema"]["name"] != "probe"
        )
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
        assert totals(tmp_path / "j")["dropped"] == 0 < totals(tmp_path / "j")["accepted"]
        endpoint.lives = 10**6
        assert len(complete_by_llm(ROWS, tmp_path / "j", s)[0]) == len(ROWS)


class Choosy(Faulty):
    """Fails in one way for one picture only."""

    def __init__(self, fault, record):
        super().__init__()
        self.name, self.url = (
            fault,
            request(CompletionSettings(), "caption", "", record["image"])["messages"][0]["content"][
                1
            ],
        )

    def fault(self, body):
        return self.name if self.url in body["messages"][0]["content"] else None

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
        quads, ((id, said),) = complete_by_llm(
            ROWS[:6], tmp_path / "j", settings(endpoint, retries=0, rewrites=1)
        )
    assert len(quads) == 5 and id == ROWS[3]["id"] and re.match(reason, said)
    assert sum(f == fault for _, f in endpoint.log) == calls


def test_pauses_grow_or_follow_the_server_and_every_try_keeps_the_pace(monkeypatch):
    class Busy(ToyEndpoint):
        replies = []

        def serve(self, handler, body):
            handler.answer({}, 429, self.replies.pop(0)) if self.replies else super().serve(
                handler, body
            )

    waits, paced = [], []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(
        language_model, "Pace", lambda per_minute: lambda _: paced.append(per_minute)
    )
    with Busy() as endpoint:
        s = settings(endpoint, requests_per_minute=60, retries=6)
        endpoint.replies = [{}, {}, {}, {"retry-after": "37"}, {}]
        with connect(s) as client:
            send(
                client,
                s,
                request(
                    s,
                    "caption",
                    prompt("caption", earlier="", question="q", choices="c", answer="a"),
                    ROWS[0]["image"],
                ),
            )
    low = [0.375, 0.75, 1.5, 37, 6]
    assert (
        len(waits) == 5 and all(a <= w <= a * 4 / 3 for a, w in zip(low, waits)) and waits[3] == 37
    ), waits
    assert paced == [60] * 6


def test_a_price_without_a_call(tmp_path):
    with ToyEndpoint(**DIALS) as endpoint:
        s = settings(endpoint)
        guess = price(ROWS, s, 2, 8, tmp_path / "none")
        assert (
            not endpoint.calls
            and guess["records"] == len({item_key(r, s) for r in ROWS})
            and guess["usd_worst"] > guess["usd"] > 0
        )
        assert (
            price(ROWS, s, 0, 8)["usd"]
            < guess["usd"]
            == pytest.approx((guess["tokens_in"] * 2 + guess["tokens_out"] * 8) / 1e6, abs=0.005)
        )
        complete_by_llm(ROWS[:10], tmp_path / "j", s)
        n, tokens_in, tokens_out = measured(read_journal(tmp_path / "j"), "toy")
        paid = totals(tmp_path / "j")
        assert (
            n == 10
            and tokens_out * 10 <= paid["tokens_out"]
            and 0 < paid["tokens_in"] - tokens_in * 10 < 500
        )  # the probe
        rest = price(ROWS, s, 2, 8, tmp_path / "j")
        assert (
            rest["done"] == 10
            and rest["records"] == guess["records"] - 10
            and rest["tokens_in"] == int(tokens_in * rest["records"])
        )
        complete_by_llm(ROWS, tmp_path / "j", s)
        assert price(ROWS, s, 2, 8, tmp_path / "j")["usd"] == 0


def refuses(folder, words, **changed):
    """One sentence with all the words, and nothing written."""
    with pytest.raises(ValueError) as e:
        complete_by_llm(ROWS[:2], folder / "j", CompletionSettings(**changed))
    text = str(e.value)
    assert "\n" not in text and len(text) < 500 and all(w in text for w in words), text
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
            handler.answer(error("expired"), 401) if fault else super().spoil(fault, handler, body)

    with Expiring() as endpoint:
        s = settings(endpoint)
        with pytest.raises(ValueError, match="refuses the key.*expired"):
            complete_by_llm(ROWS, tmp_path / "j", s)
        assert totals(tmp_path / "j")["calls"] == 41  # the probe and 40 replies
        endpoint.lives = 10**6
        assert len(complete_by_llm(ROWS, tmp_path / "j", s)[0]) == len(ROWS)
    assert all(
        n - Counter(k for k, f in endpoint.log if f)[key] == 1
        for key, n in Counter(k for k, _ in endpoint.log).items()
    )


def test_a_journal_that_is_something_else(tmp_path):
    (tmp_path / "j").write_text('{"end_of": "x"}\nhello\n')
    with pytest.raises(ValueError, match="line 2 is not JSON.*remove that line"):
        complete_by_llm(ROWS[:1], tmp_path / "j", CompletionSettings())
    assert (tmp_path / "j").read_text() == '{"end_of": "x"}\nhello\n'
