"""What may be done with pairs: the licence of each source stands in the card and in pairs.json."""

import json

import pytest
import yaml

from pairuni_nb.cli import main
from pairuni_nb.pairing import dataset_card

PAIR = dict(kind="retrieved", similarity=0.7)


@pytest.mark.parametrize(
    "u, g, word",
    [
        ("cc-by-4.0", "cc-by-4.0", "cc-by-4.0"),
        ("cc-by-4.0", "mit", "other"),  # neither speaks for the other
        ("cc-by-4.0", "unknown", "unknown"),
        ("unknown", "unknown", "unknown"),
    ],
)
def test_a_card_claims_no_more_than_both_sources_allow(u, g, word):
    card = dataset_card([PAIR], dict(licence_u=u, licence_g=g), {})
    assert yaml.safe_load(card.split("---\n")[1])["license"] == word
    assert f"| licence\\_u | {u} |" in card or f"| licence_u | {u} |" in card


def test_a_card_of_old_settings_says_unknown():
    assert yaml.safe_load(dataset_card([PAIR], {}, {}).split("---\n")[1])["license"] == "unknown"


def test_the_program_writes_what_it_is_told(tmp_path, capsys):
    few = "--n_u 12 --n_g 12 --clusters 4 --licence_u mit".replace("_", "-").split()
    assert not main(["pair", "--out", str(tmp_path / "pairs"), *few]), capsys.readouterr().err
    told = json.loads((tmp_path / "pairs/pairs.json").read_text())["settings"]
    assert (told["licence_u"], told["licence_g"]) == ("mit", "unknown")


@pytest.mark.parametrize("word", ["", "CC BY 4.0", "mit\ntags: [x]", "[mit]"])
def test_a_word_that_the_header_cannot_carry(word, tmp_path, capsys):
    assert main(["pair", "--out", str(tmp_path / "pairs"), "--licence-g", word])
    said = capsys.readouterr().err
    assert "--licence-g" in said and "cc-by-4.0" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())
