"""A run's curves in a notebook: one picture, put in the place of the last; nothing elsewhere."""

from types import SimpleNamespace

import torch
from test_train import tiny_pairs, tiny_settings

from pairuni_nb import explorer
from pairuni_nb.train import train


class Page:
    """A notebook's output: the handles that it gave, and what each was told to show."""

    def __init__(self):
        self.handles = []

    def display(self, *objects, display_id=None):
        assert display_id is True and not objects
        shown = []
        self.handles.append(shown)
        return SimpleNamespace(update=shown.append)


def test_every_step_replaces_the_one_picture_of_a_notebook(monkeypatch, tmp_path):
    page = Page()
    monkeypatch.setattr(explorer, "display", page.display)
    monkeypatch.setattr(explorer, "get_ipython", lambda: SimpleNamespace(kernel=1))
    train(tiny_pairs(), tmp_path / "run", tiny_settings(), device="cpu", callback=explorer.live())
    (shown,) = page.handles
    assert len(shown) == 3  # steps
    assert all(picture.data[:4] == b"\x89PNG" for picture in shown)
    assert len({picture.data for picture in shown}) == 3


def test_where_no_notebook_shows_it_nothing_is_displayed(monkeypatch):
    page = Page()
    monkeypatch.setattr(explorer, "display", page.display)
    for shell in (None, SimpleNamespace()):  # a program, IPython in a terminal
        monkeypatch.setattr(explorer, "get_ipython", lambda shell=shell: shell)
        explorer.live()(1, dict(reward_u=0.5), {})
    assert not page.handles


def test_the_best_drawing_stands_under_its_own_prompt():
    nan = float("nan")
    side = SimpleNamespace(
        rewards=torch.tensor([[0.1, nan, 0.3], [0.2, 0.9, 0.4]]),
        pairs=[dict(prompt="a red circle"), dict(prompt="one blue square " * 3)],
        outputs=[[[k]] for k in range(6)],
    )
    picture, title = explorer.best_drawing(dict(g=side))
    assert (
        picture == [[4]] and title == "one blue square one blue square ..\nbest of the step: 0.90"
    )
    assert explorer.best_drawing({}) == (None, "")
