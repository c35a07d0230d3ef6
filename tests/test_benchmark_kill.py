"""A drawing run that is killed in the middle of a picture leaves no half picture under a picture's name, and goes on to the same bytes."""

import json
import re
import signal
import subprocess
import sys

from pairuni_nb.benchmark import draw_benchmark, is_whole, read_geneval
from pairuni_nb.janus import load_janus
from pairuni_nb.rollout import JanusPolicy

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


def test_a_killed_run_goes_on(tmp_path):
    prompts, out = tmp_path / "evaluation_metadata.jsonl", tmp_path / "killed"
    prompts.write_text(
        "".join(
            json.dumps(dict(tag="toy", prompt=p)) + "\n"
            for p in ("a red circle top-left", "two blue squares", "a pink star")
        )
    )
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(prompts), str(out)], capture_output=True, text=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    names = [
        p for p in out.rglob("*") if re.match(r"\d+\.png", p.name)
    ]  # as GenEval looks for pictures
    assert len(names) == 3 and all(map(is_whole, names)) and len(list(out.rglob(".*.png"))) == 1
    policy = JanusPolicy(*load_janus())
    assert draw_benchmark(read_geneval(prompts, 2), policy, out) == 3
    assert draw_benchmark(read_geneval(prompts, 2), policy, tmp_path / "whole") == 6
    files = lambda folder: {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    assert files(out) == files(tmp_path / "whole")
