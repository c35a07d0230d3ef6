"""A model that is neither here nor on the hub, or a hub that cannot be reached: one sentence, at once."""

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
def test_nothing_is_tried_twice(load, name, said, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def unplugged(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", unplugged)
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits, to try again"))
    with pytest.raises(ValueError) as e:
        load(name)
    assert str(e.value).endswith(said)
    if load is load_encoder:
        assert "not one of pixels, words" in str(e.value)
