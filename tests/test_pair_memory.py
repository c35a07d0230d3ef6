"""Reading and writing many large images holds few of them decoded."""
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

CHILD = """
import json, resource, sys
from pairuni_nb.pairing import load_pairs, pair_records, save_pairs
from pairuni_nb.records_io import load_records
from pairuni_nb.train import held_out
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
start = peak()
rows, _ = pair_records(load_records("u", "u"), load_records("g", "g"), mix="random")
save_pairs(rows, "pairs")
held_out(load_pairs("pairs"), 20, 0)
print(json.dumps(peak() - start))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_decoded_images_are_let_go(tmp_path):
    side, n = 1400, 60  # 7.8 MB each decoded in Pillow: all of them are 940 MB
    for source in "ug":
        (tmp_path/source).mkdir()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).resize((side, side)).save(tmp_path/"one.jpg")
        said = dict(question="what?", choices=["a", "b"], answer="a") if source == "u" else dict(prompt="a thing")
        (tmp_path/source/"records.jsonl").write_text("\n".join(json.dumps(dict(id=f"{source}{i}", image=str(tmp_path/"one.jpg")) | said) for i in range(n)))
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) < 350  # MB; sixteen images, and what the libraries take
