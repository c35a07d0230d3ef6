"""Rewards that fail: servers that hang, lie or are gone, files that are no HPSv2, models that are no CLIP; and a SigLIP."""

import http.server
import json
import socket
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from pairuni_nb import preference
from pairuni_nb.preference import (
    RewardHandler,
    ask_server,
    clip_reward,
    convert_hps,
    from_png,
    hps_config,
    load_clip,
    opener,
    plain_truth,
    remote_reward,
    reward_server,
    tiny_clip,
    to_png,
)
from pairuni_nb.rewards import reward_matrix
from pairuni_nb.settings import weight_and_reward

IMAGES = np.zeros((3, 8, 8, 3), np.uint8)


class Server(http.server.ThreadingHTTPServer):
    "Answers the first request well, and every later one as told: a function of the handler."

    def __init__(self, later, first=b'{"rewards": []}'):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.server.asked += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                reply(self, first) if self.server.asked == 1 else later(self)

            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.url = 0, f"http://127.0.0.1:{self.server_port}/score"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *why):
        self.shutdown()
        self.server_close()


def reply(handler, body, status=200):
    handler.send_response(status)
    handler.end_headers()
    handler.wfile.write(body)


def cut(handler):
    "Promises more than it sends."
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"rewards": [1')


BAD = {
    "500": (lambda h: h.send_error(500, "out of memory"), "500: out of memory"),
    "404": (lambda h: h.send_error(404), "404"),
    "closes": (lambda h: h.connection.close(), ""),
    "cut short": (cut, "IncompleteRead"),
    "no JSON": (lambda h: reply(h, b"<html>busy</html>"), "Expecting value"),
    "no text": (lambda h: reply(h, b"\xff\xff"), "decode"),
    "a list": (lambda h: reply(h, b"[1, 2, 3]"), "no list of 3"),
    "too few": (lambda h: reply(h, b'{"rewards": [1, 2]}'), "no list of 3"),
    "a word": (lambda h: reply(h, b'{"rewards": "1, 2, 3"}'), "no list of 3"),
}


@pytest.mark.parametrize("later,why", BAD.values(), ids=BAD)
def test_a_bad_answer_is_retried_then_missing_and_counted(later, why, capsys):
    with Server(later) as server:
        reward = remote_reward(server.url, retries=2, wait=0)
        assert reward(["a", "b", "c"], IMAGES, [{}] * 3) == [None] * 3
        assert server.asked == 1 + 3  # the greeting, a try, two retries
    [(cause, n)] = reward.missing.items()
    assert why in cause and n == 3 and server.url in capsys.readouterr().err


def test_a_server_that_hangs_is_left_after_the_time_out():
    done = threading.Event()
    with Server(lambda h: done.wait()) as server:
        reward = remote_reward(server.url, timeout=1.5, retries=1, wait=0)
        assert reward(["a", "b", "c"], IMAGES, [{}] * 3) == [None] * 3 and server.asked == 1 + 2
        done.set()
    assert reward.missing == {"timed out": 3}


def test_many_processes_may_ask_at_once():
    server, asking = reward_server(lambda *_: [], port=0), []  # it serves nobody yet
    try:
        for _ in range(40):
            asking.append(socket.create_connection(server.server_address, timeout=1))
    finally:
        for s in asking:
            s.close()
        server.server_close()


def test_nothing_is_computed_for_a_client_that_has_gone():
    begun, go_on, judged = threading.Event(), threading.Event(), []

    def slow(prompts, images, truths):
        judged.extend(prompts)
        if prompts == ["first"]:
            begun.set()
            go_on.wait()
        return [0.5] * len(prompts)

    server = reward_server(slow, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    patient = remote_reward(url, retries=0)
    with ThreadPoolExecutor(2) as pool, server:
        first = pool.submit(patient, ["first"], IMAGES[:1], [{}])
        begun.wait()
        with pytest.raises(OSError):  # it waits behind the first, and not for long
            ask_server(url, ["second"], IMAGES[:1], [{}], timeout=0.2)
        third = pool.submit(patient, ["third"], IMAGES[:1], [{}])
        go_on.set()
        assert first.result() == third.result() == [0.5]
        assert judged == ["first", "third"]
        server.shutdown()


def test_bad_values_of_a_good_list_are_missing_one_by_one():
    with Server(lambda h: reply(h, b'{"rewards": [NaN, "7", 0]}')) as server:
        assert remote_reward(server.url)(["a", "b", "c"], IMAGES, [{}] * 3) == [None, None, 0]


def test_waiting_doubles(monkeypatch):
    slept = []
    with Server(lambda h: h.send_error(503)) as server:
        reward = remote_reward(server.url, retries=3, wait=0.5)
        monkeypatch.setattr("pairuni_nb.preference.time.sleep", slept.append)
        reward(["a"], IMAGES[:1], [{}])
    assert slept == [0.5, 1, 2]


def test_a_lost_batch_leaves_the_other_groups_advantage():
    "Two groups of two; the second batch fails: its row is NaN, the first row is whole."
    answers = iter([b'{"rewards": [1, 2]}'])

    def once(handler):
        try:
            reply(handler, next(answers))
        except StopIteration:
            handler.send_error(500)

    with Server(once) as server:
        m = reward_matrix(
            remote_reward(server.url, retries=0, batch=2),
            ["a", "b"],
            np.zeros((4, 8, 8, 3), np.uint8),
            [{}, {}],
            2,
        )
    assert m[0].tolist() == [1, 2] and m[1].isnan().all()


@pytest.mark.parametrize("first", [b"hello", b'{"rewards": [1]}', b"{}"])
def test_a_server_that_speaks_otherwise_is_refused_at_once(first):
    with (
        Server(lambda h: None, first) as server,
        pytest.raises(ValueError, match=f"{server.url} does not answer as one") as e,
    ):
        remote_reward(server.url)
    assert server.asked == 1 and "\n" not in str(e.value)


def test_a_server_that_is_down_is_one_sentence():
    with Server(lambda h: None) as server:
        pass  # its port is free again
    with pytest.raises(
        ValueError, match="does not answer as one .*: start it, or correct the address$"
    ):
        remote_reward(server.url, timeout=1)


@pytest.fixture
def text_file(tmp_path):
    (tmp_path / "HPS.pt").write_text("<html>404</html>")
    return tmp_path / "HPS.pt"


class Evil:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize(
    "what,why",
    [
        (None, "there is no file"),
        ("html", "no file of HPSv2 weights"),
        ({"a": 1}, "no file of HPSv2 weights"),
        ([1], "no file of HPSv2 weights"),
        ({"state_dict": {"fc.weight": torch.ones(1)}}, "lacks visual.conv1.weight"),
        ({"state_dict": Evil()}, "no file of HPSv2 weights"),
    ],
)
def test_what_is_no_hps_file_is_said_and_nothing_is_left(tmp_path, text_file, what, why, capsys):
    if what is None:
        text_file.unlink()
    elif what != "html":
        torch.save(what, text_file)
    with pytest.raises(ValueError, match=why) as e:
        convert_hps(text_file, tmp_path / "out", tiny_clip(tmp_path / "tok"))
    assert (
        "\n" not in str(e.value)
        and str(text_file) in str(e.value)
        and ". " not in str(e.value)
        and "weights_only" not in str(e.value)
        and "this ran" not in capsys.readouterr().out
    )
    assert {p.name for p in tmp_path.iterdir()} <= {"HPS.pt", "tok"}


def test_a_model_that_is_no_clip_is_refused(tmp_path):
    sizes = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    tiny_clip(tmp_path)
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="holds a CLIPVisionModel, which does not compare texts with images"
    ):
        clip_reward(tmp_path)


def test_a_clip_without_some_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model.safetensors"
    tiny_clip(tmp_path)
    save_file(
        {k: v for k, v in load_file(file).items() if k != "visual_projection.weight"},
        file,
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="lacks 1 weights, such as visual_projection.weight"):
        clip_reward(tmp_path)


def test_a_siglip_scores_its_own_cosine(tmp_path):
    words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "blue", "circle"])}
    tok = Tokenizer(models.WordLevel(words, "<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids"],
    )
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    model = SiglipModel(
        SiglipConfig(
            text_config=tower | dict(vocab_size=7, max_position_embeddings=8, projection_size=32),
            vision_config=tower | dict(image_size=16, patch_size=8),
        )
    ).eval()
    for part in (model, tok, SiglipImageProcessorPil(size=dict(height=16, width=16))):
        part.save_pretrained(tmp_path)
    texts, images = (
        ["a red circle", "blue", "a red circle"],
        np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8),
    )
    ids = torch.tensor([[3, 4, 6] + [0] * 5, [5] + [0] * 7, [3, 4, 6] + [0] * 5])
    pixels = SiglipImageProcessorPil(size=dict(height=16, width=16))(
        list(images), return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        out = model(ids, pixels)
    want = (out.image_embeds * out.text_embeds).sum(1)
    for batch in (1, 3):
        assert np.allclose(
            clip_reward(tmp_path, batch=batch)(texts, images, [{}] * 3), want, atol=1e-5
        )


def test_a_judge_learns_nothing_and_a_model_without_texts_is_none(tmp_path):
    clip, _, _ = load_clip(tiny_clip(tmp_path / "clip"))
    assert not clip.training and not any(p.requires_grad for p in clip.parameters())
    with pytest.raises(ValueError, match="JanusModel.* does not compare texts with images"):
        load_clip(str(files("pairuni_nb") / "assets" / "janus-nano"))


def test_a_tokenizer_whose_last_token_does_not_end_a_text_is_refused():
    state = {
        "token_embedding.weight": torch.zeros(5, 2),
        "positional_embedding": torch.zeros(4, 2),
        "visual.conv1.weight": torch.zeros(2, 3, 8, 8),
        "visual.positional_embedding": torch.zeros(10, 2),
    }

    class Words(SimpleNamespace):
        __len__ = lambda self: 5

    with pytest.raises(ValueError, match="the tokenizer has 5 tokens"):
        hps_config(state, Words(eos_token_id=3))


def test_an_image_travels_as_png_alone():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(from_png(to_png(image)), image)
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    with pytest.raises(OSError, match="cannot identify"):  # no other decoder of a stranger's bytes
        from_png(b64encode(file.getvalue()).decode())


def test_a_truth_travels_without_what_json_cannot_hold():
    truth = dict(id="1", choices=["a"], answer=None, s=0.5, n=1, yes=True, image=IMAGES, raw=b"x")
    assert plain_truth(truth) == {k: truth[k] for k in truth if k not in ("image", "raw")}


def test_a_client_that_waits_is_given_its_time_back():
    waits = []

    def nothing_yet(*_):
        raise BlockingIOError

    handler = object.__new__(RewardHandler)
    handler.connection = SimpleNamespace(settimeout=waits.append, recv=nothing_yet)
    assert not handler.hung_up() and waits == [0, RewardHandler.timeout]


def test_of_the_servers_faults_only_a_client_that_has_gone_is_not_told(capsys):
    with reward_server(None, 0) as server:
        for error, told in ((ConnectionResetError("gone"), ""), (KeyError("ours"), "KeyError")):
            try:
                raise error
            except Exception:
                server.handle_error(None, ("127.0.0.1", 1))
            assert bool(told) == bool(said := capsys.readouterr().err) and told in said


def test_a_socks_proxy_is_in_the_way_of_other_machines_alone(monkeypatch):
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "socks5://p:1")
    with pytest.raises(ValueError, match="HTTP_PROXY is a SOCKS proxy.*NO_PROXY=box"):
        opener("http://box:8000")
    assert opener("http://localhost:8000") and opener("https://box:8000")
    monkeypatch.setenv("NO_PROXY", "box")
    assert opener("http://box:8000")


@pytest.mark.parametrize("n", [0, 2, 4])
def test_too_few_or_too_many_rewards_are_none(n):
    with Server(lambda h: reply(h, json.dumps(dict(rewards=[0.5] * n)).encode())) as server:
        ask = remote_reward(server.url, retries=0)
        assert ask(list("abc"), IMAGES, [{}] * 3) == [None] * 3
        assert ask.missing.total() == 3


def test_a_star_a_plus_or_a_colon_may_stand_in_a_folder(monkeypatch):
    made = []
    for name in "clip_reward", "remote_reward":
        monkeypatch.setattr(preference, name, lambda *a, n=name, **k: made.append((n, a, k)) or n)
    for spec in "clip:a*b:c", "clip:a+the scene", "clip:a+scenery", "hps:a/b*c", "http://h:1/a*b":
        preference.reward_from(spec, "cuda", 7)
    assert made == [
        ("clip_reward", ("a*b:c", "cuda", 7), {}),
        ("clip_reward", ("a+the scene", "cuda", 7), {}),
        ("clip_reward", ("a+scenery", "cuda", 7), {}),
        ("clip_reward", ("a/b*c", "cuda", 7), {}),
        ("remote_reward", ("http://h:1/a*b",), dict(batch=7)),
    ]
    assert weight_and_reward("a/b*scene") == ("1", "a/b*scene")
    assert weight_and_reward("2* scene") == ("2", "scene")
