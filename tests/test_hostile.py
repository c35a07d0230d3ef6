"""Strangers: clients that say nothing, servers that lie, checkpoints that are cut or want to run, texts that mark up."""

import json
import logging
import pickle
import re
import shutil
import socket
import sys
import threading
import time
import traceback
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_log

from pairuni_nb import jobs
from pairuni_nb.benchmark import draw_benchmark, read_geneval
from pairuni_nb.cli import main
from pairuni_nb.janus import load_janus, nano_folder
from pairuni_nb.language_model import (
    ToyEndpoint,
    chat,
    check_endpoint,
    complete_by_llm,
    connect,
    is_local,
    price,
    read_journal,
    totals,
)
from pairuni_nb.pairing import dataset_card
from pairuni_nb.preference import (
    LARGEST,
    RewardHandler,
    load_clip,
    remote_reward,
    reward_server,
    tiny_clip,
    to_png,
)
from pairuni_nb.report import page, page_data
from pairuni_nb.rollout import JanusPolicy
from pairuni_nb.settings import CompletionSettings, TrainSettings, visible
from pairuni_nb.world import records

KEY = "sk-planted-4f9a7c2e81b35d60"
PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
IMAGES = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", *PROXIES, *map(str.lower, PROXIES)):
        monkeypatch.delenv(name, raising=False)


# ---- pairuni serve


@contextmanager
def serving(reward=lambda prompts, images, truths: [1.0] * len(prompts)):
    server = reward_server(reward, port=0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def say(server, words):
    client = socket.create_connection(server.server_address, timeout=10)
    client.sendall(words)
    return client


HALVES = {
    "nothing": b"",
    "half a line": b"POST / HT",
    "half the headers": b"POST / HTTP/1.1\r\nContent-Le",
    "no body": b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
    "half a body": b'POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"prompts"',
}


def test_nobody_waits_for_who_says_nothing_or_half(monkeypatch):
    monkeypatch.setattr(RewardHandler, "timeout", 3600)  # who waits for them waits in vain
    with serving() as server, ExitStack() as idle:
        for words in HALVES.values():
            idle.enter_context(say(server, words))
        far = remote_reward(f"http://127.0.0.1:{server.server_port}", retries=0)
        assert far(["a", "b"], IMAGES, [{}] * 2) == [1, 1]


@pytest.mark.parametrize("words", HALVES.values(), ids=HALVES)
def test_who_says_nothing_or_half_is_dropped(words, monkeypatch, capfd):
    assert RewardHandler.timeout == 30
    monkeypatch.setattr(RewardHandler, "timeout", 0.3)
    with serving() as server, say(server, words) as client:
        assert client.recv(1000) == b""  # hung up, without an answer
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "length, status",
    [("-1", 411), ("x", 411), ("9" * 5000, 411), (str(LARGEST + 1), 413), (None, 411)],
)
def test_a_request_without_a_decent_length_is_refused_unread(length, status):
    head = b"POST / HTTP/1.1\r\n" + (f"Content-Length: {length}\r\n".encode() if length else b"")
    with serving() as server, say(server, head + b"\r\n") as client:
        assert f" {status} ".encode() in client.recv(1000)


def test_the_reward_sees_one_request_at_a_time():
    inside, most = [], []

    def reward(prompts, images, truths):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.1)
        inside.pop()
        return [0.5] * len(prompts)

    with serving(reward) as server:
        far = remote_reward(f"http://127.0.0.1:{server.server_port}")
        ask = [threading.Thread(target=far, args=(["a", "b"], IMAGES, [{}] * 2)) for _ in range(5)]
        for t in ask:
            t.start()
        for t in ask:
            t.join()
    assert most == [1] * 5


def test_a_client_that_leaves_is_no_traceback(capfd):
    body = json.dumps(dict(prompts=["a"], images=[to_png(IMAGES[0])], truths=[{}])).encode()
    head = f"POST / HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    done = threading.Event()
    with serving(lambda *_: done.wait(10) and [1.0]) as server:
        client = say(server, head + body)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # by a reset
        client.close()
        done.set()
        time.sleep(0.3)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "host, who",
    [
        ("127.0.0.1", "only this machine reaches it"),
        ("0.0.0.0", "everybody on the network reaches it, without a password"),
    ],
)
def test_it_says_who_may_reach_it(host, who, monkeypatch, capsys):
    def stop(server):
        raise KeyboardInterrupt

    monkeypatch.setattr("pairuni_nb.preference.RewardServer.serve_forever", stop)
    assert main(["serve", "scene", "--port", "0", "--host", host, "--device", "cpu"]) == 0
    assert who in capsys.readouterr().out


# ---- secrets and proxies


def told(call):
    "Everything that an exception says, its chain and the locals' text aside."
    with pytest.raises(Exception) as e:
        call()
    chain, error = [], e.value
    while error is not None:
        chain.append(f"{error} {error.args} {vars(error)}")
        error = error.__cause__ or error.__context__
    return str(e.value), "\n".join(chain) + "".join(traceback.format_exception(e.value))


class Lying(ToyEndpoint):
    "Sends the key back, one way or another."

    def __init__(self, how):
        super().__init__()
        self.how = how

    def serve(self, handler, body):
        sent = handler.headers["authorization"]
        assert KEY in sent
        if self.how == "page":
            return handler.answer(f"<html>{sent}</html>")
        if self.how == "reply":
            return handler.answer(chat(f'{{"holds": "{sent}"', "toy", 1, 1))
        if self.how == "redirect":
            return handler.answer({}, 307, {"location": f"/v1/{KEY}/chat/completions"})
        if self.how == "slow":
            time.sleep(1)
            return
        handler.answer(dict(error=dict(message=f"bad {sent}", code=sent)), int(self.how))


def asked(s):
    with connect(s) as client:
        check_endpoint(client, s)


@pytest.mark.parametrize(
    "how", ["400", "401", "403", "404", "429", "500", "page", "reply", "redirect", "slow"]
)
def test_a_key_that_is_sent_back_is_shown_to_nobody(how, monkeypatch, caplog, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with Lying(how) as server:
        s = CompletionSettings("toy", server.base_url, retries=0, timeout=0.5)
        said, everything = told(lambda: asked(s))
    assert "\n" not in said and server.base_url in said
    caplog.set_level(logging.INFO)
    out = "".join(capfd.readouterr())
    assert KEY not in everything and KEY not in out
    if how != "redirect":  # the client's own log names the address that it was sent to
        assert KEY not in caplog.text


def test_a_key_in_an_address_is_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for url in (
        f"http://127.0.0.1:9/{KEY}",
        f"htp://{KEY}",
        KEY,
        f"https://me:{KEY}@example.test/v1",
        "http://me:hunter2@localhost/v1",
        "http://[",
        "http://localhost:x",
        "http://",
    ):
        s = CompletionSettings("toy", url, retries=0, timeout=1)
        said, everything = told(lambda: asked(s))
        assert KEY not in everything and "hunter2" not in everything and "\n" not in said


def test_a_key_that_comes_back_stays_out_of_the_journal(monkeypatch, tmp_path):
    class Echo(ToyEndpoint):
        def reply(self, name, text, image):
            said = super().reply(name, text, image)
            return said | dict(caption=f"a star, {KEY}") if name == "caption" else said

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Echo() as server:
        s = CompletionSettings("toy", server.base_url)
        complete_by_llm(records("u", 2, 0), tmp_path / "j.jsonl", s)
    text = (tmp_path / "j.jsonl").read_text()
    assert "a star, (the key)" in text and KEY not in text


def test_a_word_that_stands_in_for_a_key_changes_no_answer(monkeypatch, tmp_path):
    rows, found = records("u", 6, 0), []
    for key in ("none", "circle"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with ToyEndpoint() as server:
            s = CompletionSettings("toy", server.base_url)
            made, _ = complete_by_llm(rows, tmp_path / f"{key}.jsonl", s)
            found.append([r["prompt"] for r in made])
    assert found[0] == found[1] and any("circle" in text for text in found[0])


@pytest.mark.parametrize("odd", ["\n", "\r\n", "\x1b[31m", " ", "\t", "é", "\u200b"])
def test_a_key_with_an_odd_character_is_refused_unprinted(odd, monkeypatch, capfd, tmp_path):
    for key in (KEY + odd, odd + KEY, KEY[:9] + odd + KEY[9:]):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        said, everything = told(lambda: asked(CompletionSettings("toy", "http://127.0.0.1:9/v1")))
        assert "OPENAI_API_KEY" in said and "set it anew" in said and "base URL" not in said
        assert KEY not in everything and KEY[9:] not in everything and "\n" not in said
    argv = ["pair", "--out", str(tmp_path / "x"), "--complete", "llm"]
    assert main(argv) == 2 and KEY[9:] not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"])
@pytest.mark.parametrize("proxy", ["socks5://me:hunter2@127.0.0.1:9", "gopher://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_one_sentence_with_the_cure(name, proxy, monkeypatch):
    monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setitem(sys.modules, "socksio", None)  # not installed
    said, everything = told(lambda: connect(CompletionSettings("toy", "https://example.test/v1")))
    assert name in said and "httpx[socks]" in said and "\n" not in said
    assert "hunter2" not in everything


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_a_server_on_this_machine_is_asked_through_no_proxy(proxy, monkeypatch):
    for name in PROXIES[:3]:
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.lower(), proxy)
    with ToyEndpoint() as server, serving() as judge:
        for host in ("127.0.0.1", "localhost"):
            s = CompletionSettings("toy", server.base_url.replace("127.0.0.1", host), retries=0)
            asked(s)
            far = remote_reward(f"http://{host}:{judge.server_port}", retries=0)
            assert far(["a", "b"], IMAGES, [{}] * 2) == [1, 1]


def test_a_reward_server_behind_a_socks_proxy_is_one_sentence(monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(ValueError, match="HTTP_PROXY is a SOCKS proxy.*NO_PROXY=gpu-box"):
        remote_reward("http://gpu-box:8000")


def test_what_is_local():
    for url in (
        "http://localhost:1/v1",
        "http://127.0.0.1",
        "https://127.9.9.9:2",
        "http://[::1]:3",
    ):
        assert is_local(url), url
    for url in (
        "http://localhost.example.test",
        "http://gpu-box",
        "http://10.0.0.1",
        "http://1270.0",
    ):
        assert not is_local(url), url


# ---- replies that are cut


class Brief(ToyEndpoint):
    "Cuts every reply that is allowed fewer than `need` tokens, the probe's excepted."

    need = 50

    def serve(self, handler, body):
        name = body["response_format"]["json_schema"]["name"]
        if name == "probe" or body["max_completion_tokens"] >= self.need:
            return super().serve(handler, body)
        answer = chat('{"evidence": "two st', "toy", 7, body["max_completion_tokens"])
        answer["choices"][0]["finish_reason"] = "length"
        handler.answer(answer)


def test_a_cut_reply_is_paid_once_and_more_room_is_asked_for(tmp_path):
    rows, journal = records("u", 3, 0), tmp_path / "j.jsonl"
    with Brief() as server:
        small = CompletionSettings("toy", server.base_url, max_tokens=20)
        made, dropped = complete_by_llm(rows, journal, small)
        assert not made and len(server.calls) == 1 + 3  # the probe, and each record once
        assert {why for _, why in dropped} == {
            "no usable reply: cut off after 20 tokens, which --max-tokens sets: raise it"
        }
        complete_by_llm(rows, journal, small)
        assert len(server.calls) == 4 and price(rows, small, 1, 1, journal)["done"] == 3
        roomy = CompletionSettings("toy", server.base_url, max_tokens=60)
        assert price(rows, roomy, 1, 1, journal)["done"] == 0
        made, dropped = complete_by_llm(rows, journal, roomy)
        assert len(made) == 3 and not dropped
        complete_by_llm(rows, journal, roomy)
        complete_by_llm(rows, journal, small)  # less room takes nothing back
        assert len(server.calls) == 4 + 1 + 6
    assert totals(journal)["accepted"] == 3 and totals(journal)["dropped"] == 0


def test_a_cut_probe_says_so(tmp_path):
    with Brief() as server:
        server.serve = lambda handler, body: Brief.serve(
            server, handler, body | dict(response_format=dict(json_schema=dict(name="x")))
        )
        s = CompletionSettings("toy", server.base_url, max_tokens=9)
        with pytest.raises(ValueError, match="cut off after 9 tokens, which --max-tokens sets"):
            asked(s)


def test_a_whole_form_counts_though_it_filled_its_room(tmp_path):
    class Full(ToyEndpoint):
        def serve(self, handler, body):
            answer, send = {}, handler.answer
            handler.answer = lambda said: answer.update(said)
            super().serve(handler, body)
            answer["choices"][0]["finish_reason"] = "length"
            send(answer)

    with Full() as server:
        s = CompletionSettings("toy", server.base_url)
        made, _ = complete_by_llm(records("u", 2, 0), tmp_path / "j.jsonl", s)
    assert len(made) == 2


@pytest.mark.parametrize("usage", [dict(prompt_tokens="many"), [1], dict(completion_tokens=[2])])
def test_strange_counts_of_tokens_spoil_no_total(usage, tmp_path):
    class Odd(ToyEndpoint):
        def serve(self, handler, body):
            if body["response_format"]["json_schema"]["name"] == "probe":
                return super().serve(handler, body)
            handler.answer(chat("{}", "toy", 1, 1) | dict(usage=usage))

    with Odd() as server:
        s = CompletionSettings("toy", server.base_url, rewrites=0)
        complete_by_llm(records("u", 1, 0), tmp_path / "j.jsonl", s)
    assert totals(tmp_path / "j.jsonl")["dropped"] == 1
    assert len(read_journal(tmp_path / "j.jsonl")) == 3


# ---- checkpoints


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(nano_folder(), tmp_path / "janus")
    return tmp_path / "janus"


def change(file, **more):
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def refusal(folder, load=load_janus):
    with pytest.raises(ValueError) as e:
        load(folder)
    assert "\n" not in str(e.value) and str(folder) in str(e.value)
    return str(e.value)


def without(folder, *lost):
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in lost:
        del weights[name]
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize("said", [True, False])
def test_an_incomplete_checkpoint_is_refused(copy, said):
    if not said:  # transformers would tie the head to the embedding
        config = json.loads((copy / "config.json").read_text())
        del config["tie_word_embeddings"]
        (copy / "config.json").write_text(json.dumps(config))
    without(copy, "lm_head.weight", "model.generation_head.proj_out.bias")
    assert "lacks 2 of the model's weights, the first lm_head.weight; fetch it" in refusal(copy)


def test_loading_leaves_the_log_of_transformers_as_loud_as_it_was(copy):
    before = transformers_log.get_verbosity()
    transformers_log.set_verbosity_info()
    try:
        load_janus(copy)
        assert transformers_log.get_verbosity() == logging.INFO
        without(copy, "lm_head.weight")
        refusal(copy)
        assert transformers_log.get_verbosity() == logging.INFO
    finally:
        transformers_log.set_verbosity(before)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(copy, name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (copy / name).write_text(text)
    why = refusal(copy)
    assert f"'{copy / name}' is a Git LFS pointer" in why and "git lfs pull" in why


@pytest.mark.parametrize("left", [0, 5, 1000, 7_008_939])
def test_weights_that_are_cut_are_named(copy, left):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    why = refusal(copy)
    assert f"'{file}' is cut short or damaged" in why and "fetch it again" in why


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json", "config.json"]
)
def test_other_files_that_are_cut_are_one_sentence(copy, name):
    file = copy / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refusal(copy)


def test_other_shapes_and_missing_parts_are_one_sentence(copy):
    change(copy / "config.json", text_config=dict(model_type="llama", hidden_size="wide"))
    assert "config.json" in refusal(copy)
    shutil.copy(nano_folder() / "config.json", copy)
    config = json.loads((copy / "config.json").read_text())
    change(copy / "config.json", text_config=config["text_config"] | dict(intermediate_size=8))
    refusal(copy)
    shutil.copy(nano_folder() / "config.json", copy)
    (copy / "model.safetensors").unlink()
    refusal(copy)
    index = dict(metadata={}, weight_map={"lm_head.weight": "model-00001-of-00002.safetensors"})
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    refusal(copy)


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickles_are_refused_unread(copy, name, tmp_path):
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    why = refusal(copy)
    assert f"'{copy / name}' is a pickle" in why and "model.safetensors" in why
    refusal(copy / name)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_safetensors_is_never_opened(copy, tmp_path):
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    model, _ = load_janus(copy)
    assert model.lm_head.weight.shape[0] and not (tmp_path / "ran").exists()


AUTO = {
    "config.json": dict(AutoConfig="evil.C", AutoModel="evil.M", AutoModelForCausalLM="evil.M"),
    "tokenizer_config.json": dict(AutoTokenizer=["evil.T", "evil.T"]),
    "processor_config.json": dict(AutoProcessor="evil.P", AutoImageProcessor="evil.I"),
    "generation_config.json": dict(AutoConfig="evil.C"),
}


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("load", [load_janus, load_clip])
def test_no_code_of_a_folder_runs(copy, name, load, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked whether to run code"))
    folder = copy
    if load is load_clip:
        folder = tmp_path / "clip"
        tiny_clip(folder)
        (folder / name).exists() or (folder / name).write_text("{}")
    for module in ("evil.py", "modeling_janus.py", "configuration_janus.py", "__init__.py"):
        (folder / module).write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w')\nC = M = T = P = I = 1\n"
        )
    change(folder / name, auto_map=AUTO[name])
    why = refusal(folder, load)
    assert f"'{folder / name}' names code of its own (auto_map)" in why
    assert not (tmp_path / "ran").exists()


def test_trust_is_given_to_nobody():
    for file in (nano_folder().parents[1]).glob("*.py"):
        found = re.findall(r"trust_remote_code\s*=\s*(\w+)", file.read_text(encoding="utf-8"))
        assert set(found) <= {"False"}, file
        loads = re.findall(r"torch\.load\(.*\)", file.read_text(encoding="utf-8"))
        assert all("weights_only=True" in call for call in loads), file


def test_a_clip_that_is_cut_is_named_and_its_pickle_runs_nothing(tmp_path):
    folder = tmp_path / "clip"
    tiny_clip(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert f"'{weights}' is cut short" in refusal(folder, load_clip)
    weights.unlink()
    torch.save(dict(w=Evil(tmp_path / "ran")), folder / "pytorch_model.bin")
    refusal(folder, load_clip)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("said", [None, True, False])
def test_the_head_survives_loading_saving_and_tying(copy, said, tmp_path):
    head = load_file(copy / "model.safetensors")["lm_head.weight"]
    config = json.loads((copy / "config.json").read_text())
    config.pop("tie_word_embeddings")
    config |= {} if said is None else dict(tie_word_embeddings=said)
    (copy / "config.json").write_text(json.dumps(config))
    model, _ = load_janus(copy)
    model.tie_weights(recompute_mapping=True)
    assert torch.equal(model.lm_head.weight, head)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(load_file(tmp_path / "saved/model.safetensors")["lm_head.weight"], head)


def test_a_head_that_is_tied_stays_tied(copy, tmp_path):
    change(copy / "config.json", tie_word_embeddings=True)
    without(copy, "lm_head.weight")
    model, processor = load_janus(copy)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again, _ = load_janus(tmp_path / "saved")
    assert again.lm_head.weight is again.get_input_embeddings().weight


# ---- one folder of drawings, two runs


def test_two_runs_do_not_draw_into_one_folder(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"tag": "single_object", "prompt": "a red star"}\n')
    policy, out = JanusPolicy(*load_janus()), tmp_path / "out"
    assert draw_benchmark(read_geneval(prompts, 1), policy, out) == 1
    (out / "00000/samples/0000.png").unlink()
    with FileLock(out / ".lock"), pytest.raises(ValueError, match="another process is writing"):
        draw_benchmark(read_geneval(prompts, 1), policy, out)
    assert not (out / "00000/samples/0000.png").exists()
    assert draw_benchmark(read_geneval(prompts, 1), policy, out) == 1
    assert not (out / ".lock").exists()


def test_a_damaged_protocol_is_named(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"tag": "single_object", "prompt": "a red star"}\n')
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "protocol.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match="protocol.json is damaged.*choose a new folder"):
        draw_benchmark(read_geneval(prompts, 1), JanusPolicy(*load_janus()), tmp_path / "out")


# ---- texts

MARKUP = "\"><script>alert(1)</script>'<img src=x onerror=alert(2)>{{ 7*7 }}</style></td>"


def hostile_run(run):
    said = asdict(TrainSettings()) | dict(model=MARKUP, reward=MARKUP, pairs=MARKUP)
    said |= dict(command=MARKUP, seed=MARKUP, weighting=MARKUP) | {MARKUP: {MARKUP: MARKUP}}
    (run / "samples" / "before").mkdir(parents=True)
    (run / "pairs").mkdir()
    (run / "settings.json").write_text(json.dumps(said))
    line = dict(step=0, sec_eval=1.0, eval_score_mean=0.5, eval_score_ci=0.1)
    line |= dict(eval_accuracy_mean=0.5, eval_accuracy_ci=0.1)
    (run / "metrics.jsonl").write_text(
        json.dumps(line) + "\n" + json.dumps(line | dict(step=1)) + "\n"
    )
    answer = dict(question=MARKUP, choices=[MARKUP, "b"], answer=MARKUP, completion=MARKUP)
    told = dict(prompts=[MARKUP], answers=[answer], protocol={MARKUP: MARKUP, "n_u": MARKUP})
    for name in ("before", "after"):
        (run / "samples" / f"{name}.json").write_text(json.dumps(told))
    (run / "pairs" / "pairs.json").write_text(json.dumps(dict(counts={MARKUP: {MARKUP: 1}})))
    return run


def test_no_text_becomes_markup_in_a_report(tmp_path):
    html = page(page_data(hostile_run(tmp_path)))
    assert (
        "<script" not in html
        and "<img src=x" not in html
        and "49" not in re.findall(">(49)<", html)
    )
    assert html.count("</style>") == 1 and "&lt;script&gt;alert(1)" in html


def test_no_text_becomes_markup_in_a_card():
    said = (
        MARKUP + "\n---\n# big ![x](http://evil.test/x.png) [y](javascript:1) `c` | d \x1b[31m *e*"
    )
    rows = [dict(kind="aligned", similarity=1.0)]
    card = dataset_card(rows, {"u": said, said: said}, {"dropped": {said: 1}})
    usual = dataset_card(rows, {"u": "x", "y": "x"}, {"dropped": {"x": 1}})
    assert card.count("\n") == usual.count("\n") and "\x1b" not in card
    assert "<" not in card.split("## Settings")[1]
    for mark in ("[", "]", "`", "*", "|"):
        loose = re.findall(rf"(?<!\\){re.escape(mark)}", card)
        assert len(loose) == len(re.findall(re.escape(mark), usual)), mark


def test_control_characters_are_shown_and_other_scripts_left_alone():
    assert visible("a\x1b[2J\x07\rb\x9b1m\u202ec\x00") == r"a\x1b[2J\x07\rb\x9b1m\u202ec\x00"
    plain = "tab\tline\n日本語 é 👩‍👩‍👧 ±\N{NO-BREAK SPACE}5"
    assert visible(plain) == plain


def test_errors_that_quote_a_stranger_do_not_move_the_terminal(capsys, monkeypatch):
    def fails(job):
        raise ValueError("no \x1b]0;owned\x07 \x1b[2K such\r\n thing \u202e")

    monkeypatch.setitem(main.__globals__["JOBS"], jobs.Report, fails)
    assert main(["report", "x"]) == 2
    err = capsys.readouterr().err
    assert not set(err[:-1]) & set("\x1b\x07\r\n\u202e") and r"\x1b[2K such thing \u202e" in err


def test_answers_do_not_move_the_terminal(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(JanusPolicy, "texts", lambda *_: ["\x1b[31mred\x07", "two\nlines"])
    file = tmp_path / "i.png"
    Image.new("RGB", (48, 48), "red").save(file)
    assert main(["sample", "--n", "2", "ask", str(file), "what?"]) == 0
    assert "\\x1b[31mred\\x07\ntwo\nlines\n" in capsys.readouterr().out


def test_what_a_reward_server_says_does_not_move_the_terminal(capsys):
    def reward(prompts, images, truths):
        raise RuntimeError("never")

    with serving(reward) as server:
        server.RequestHandlerClass = type(
            "Loud", (RewardHandler,), dict(responses={}, send_error=shout)
        )
        far = remote_reward(f"http://127.0.0.1:{server.server_port}", retries=0)
        assert far(["a", "b"], IMAGES, [{}] * 2) == [None, None]
    err = capsys.readouterr().err
    assert "\x1b" not in err + str(dict(far.missing)) and "\\x1b[2J" in err


def shout(handler, status, why):
    handler.wfile.write(b"HTTP/1.0 500 \x1b[2Jboo\r\n\r\n")
