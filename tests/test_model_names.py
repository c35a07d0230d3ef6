"""A model that is neither here nor on the hub, or a hub that cannot be reached: one sentence, at once."""

import time

import pytest
from huggingface_hub import constants

from pairuni_nb.encoders import load_encoder
from pairuni_nb.janus import load_janus
from pairuni_nb.preference import load_clip


@pytest.mark.parametrize(
    "load", [load_encoder, lambda name: load_encoder(name, "text"), load_janus, load_clip]
)
@pytest.mark.parametrize(
    "name, said",
    [
        ("resnett", "there is no folder 'resnett', and a name on the hub has the form owner/name"),
        (
            "microsoft/resnet-50",
            "the Hugging Face hub cannot be reached: go online, or give the folder of a copy",
        ),
    ],
)
def test_nothing_is_tried_for_minutes(load, name, said, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def unplugged(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", unplugged)
    start = time.perf_counter()
    with pytest.raises(ValueError) as e:
        load(name)
    assert str(e.value).endswith(said) and time.perf_counter() - start < 5
    if load is load_encoder:
        assert "not one of pixels, words" in str(e.value)
