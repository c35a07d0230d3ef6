"""benchmarks/decodings.py: what it decodes is what a table's run left, once."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

from pairuni_nb.janus import load_janus
from pairuni_nb.settings import preset

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import decodings  # noqa: E402


def test_a_run_that_learned_nothing_decodes_as_the_start(tmp_path, capsys):
    base = preset("nano")
    base = replace(base, train=replace(base.train, eval_items=4))
    checkpoint = tmp_path / "reference,seed=3" / "checkpoint"
    model, processor = load_janus()
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    file = tmp_path / "decodings.csv"
    decodings.decode_all(tmp_path, [3], file, base)
    assert "u of seed 3 left out" in capsys.readouterr().out
    lines = list(csv.DictReader(file.open()))
    assert [(r["model"], r["cfg_weight"]) for r in lines] == [
        (model, weight) for model in ("start", "pair-grpo") for weight in ("1.0", "2.0", "3.0")
    ]
    figures = [{k: v for k, v in r.items() if k not in ("model", "seed")} for r in lines]
    assert figures[:3] == figures[3:] and figures[0] != figures[1]

    written = file.read_text()
    decodings.decode_all(tmp_path, [3], file, base)
    assert file.read_text() == written
