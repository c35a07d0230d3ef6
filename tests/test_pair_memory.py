"""Reading and writing many large images holds few of them decoded."""

import json
import os
import subprocess
import sys
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytestmark = pytest.mark.long

PEAK = r"""
import json, re
def peak():  # MB; ru_maxrss would count the parent's too
    return int(re.search("VmHWM:(.*)kB", open("/proc/self/status").read())[1]) / 1024
"""
CHILD = (
    PEAK
    + """
from pairuni_nb.load import load_records
from pairuni_nb.pairing import load_pairs, pair_records, save_pairs
from pairuni_nb.settings import PairSettings
from pairuni_nb.evaluate import held_out
start = peak()
rows, _ = pair_records(load_records("u", "u"), load_records("g", "g"), PairSettings("random"))
save_pairs(rows, "pairs")
held_out(load_pairs("pairs"), 20, 0)
print(json.dumps(peak() - start))
"""
)
READER = (
    PEAK
    + """
from pairuni_nb.load import load_records
start = peak()
assert len(load_records("g.parquet", "g")) == 6000
print(json.dumps(peak() - start))
"""
)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_decoded_images_are_let_go(tmp_path):
    side, n = 1400, 60  # 7.8 MB each decoded in Pillow: all of them are 940 MB
    for source in "ug":
        (tmp_path / source).mkdir()
        rng = np.random.default_rng(ord(source))
        for i in range(n):
            blocks = rng.integers(0, 256, (20, 20, 3), np.uint8)
            image = Image.fromarray(blocks).resize((side, side), Image.NEAREST)
            image.save(tmp_path / source / f"{i}.jpg")
        said = (
            dict(question="what?", choices=["a", "b"], answer="a")
            if source == "u"
            else dict(prompt="a thing")
        )
        (tmp_path / source / "records.jsonl").write_text(
            "\n".join(
                json.dumps(dict(id=f"{source}{i}", image=f"{i}.jpg") | said) for i in range(n)
            )
        )
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) < 350  # MB; sixteen images, and what the libraries take


@linux
def test_one_large_row_group_is_not_read_whole(tmp_path):
    Image.new("RGB", (8, 8)).save(jpeg := BytesIO(), "JPEG")
    rows = pa.Table.from_pylist(
        [dict(image=jpeg.getvalue() + os.urandom(50_000), prompt=f"thing {i}") for i in range(6000)]
    )  # 300 MB in pages of 50
    pq.write_table(rows, tmp_path / "g.parquet", row_group_size=len(rows))
    assert pq.ParquetFile(tmp_path / "g.parquet").num_row_groups == 1
    done = subprocess.run(
        [sys.executable, "-c", READER],
        cwd=tmp_path,
        env=os.environ | dict(HF_DATASETS_CACHE=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) < 350  # MB; a few pages, and what the libraries take
