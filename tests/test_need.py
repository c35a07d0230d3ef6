"""A missing requirement skips here and fails in CI."""

import pytest


def test_need_gives_a_module_or_a_path(need):
    assert need("json").loads("1") == 1
    assert need("sh").endswith("/sh")


@pytest.mark.parametrize(
    "ci, outcome", [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_missing(need, monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no_such_thing is neither"):
        need("no_such_thing")
