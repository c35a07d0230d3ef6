"""A drawing run that is killed in a picture leaves no half of it, and goes on to the same bytes."""

import json
import re
import signal

import pytest
from PIL import Image
from program import Python

from pairuni_nb.benchmark import draw_benchmark, is_whole, read_geneval
from pairuni_nb.janus import load_janus
from pairuni_nb.rollout import JanusPolicy

pytestmark = pytest.mark.long

KILLED = """
import os, signal, sys
from PIL import Image
from pairuni_nb.benchmark import draw_benchmark, read_geneval
from pairuni_nb.janus import load_janus
from pairuni_nb.rollout import JanusPolicy
save, saved = Image.Image.save, []
def dies(image, file):
    saved.append(file)
    save(image, file, "PNG")
    if len(saved) == 4: os.truncate(file, 50); os.kill(os.getpid(), signal.SIGKILL)
Image.Image.save = dies
draw_benchmark(read_geneval(sys.argv[1], 2), JanusPolicy(*load_janus()), sys.argv[2])
"""


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_killed_run_goes_on(tmp_path):
    prompts, out = tmp_path / "evaluation_metadata.jsonl", tmp_path / "killed"
    prompts.write_text(
        "".join(
            json.dumps(dict(tag="toy", prompt=p)) + "\n"
            for p in ("a red circle top-left", "two blue squares", "a pink star")
        )
    )
    died = Python(KILLED, prompts, out)
    assert died.wait() == -signal.SIGKILL, died.said()
    # as GenEval looks for pictures
    names = [p for p in out.rglob("*") if re.match(r"\d+\.png", p.name)]
    assert len(names) == 3
    assert all(map(is_whole, names))
    assert len(list(out.rglob(".*.png"))) == 1
    policy = JanusPolicy(*load_janus())
    assert draw_benchmark(read_geneval(prompts, 2), policy, out) == 3
    assert draw_benchmark(read_geneval(prompts, 2), policy, tmp_path / "whole") == 6
    assert files(out) == files(tmp_path / "whole")


def test_a_picture_is_not_whole_wherever_it_is_damaged(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    assert is_whole(file)
    whole = file.read_bytes()
    for part in (whole[:11] + b"\x01" + whole[12:], whole[:30], b"", b"text"):
        file.write_bytes(part)  # the first has too short a header
        assert not is_whole(file)
