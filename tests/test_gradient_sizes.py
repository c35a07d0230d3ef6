"""02_pair_grpo's figure for janus-nano: a pair's two gradients differ in size and stand at right angles."""

import numpy as np
import pytest
import torch

from pairuni_nb.janus import load_janus
from pairuni_nb.pair_grpo import policy_loss
from pairuni_nb.pairing import make_pairs
from pairuni_nb.rewards import answer_accuracy, scene_reward
from pairuni_nb.rollout import JanusPolicy
from pairuni_nb.settings import TrainSettings
from pairuni_nb.step import roll_out_sides
from pairuni_nb.world import records

REWARDS = dict(u=answer_accuracy, g=scene_reward)


def gradient(policy, side):
    """Of one side's loss on all weights that train, as one vector."""
    weights = [p for p in policy.parameters() if p.requires_grad]
    rollouts = side.rollouts
    loss, _ = policy_loss(policy(rollouts), side.old_logp, side.advantages, rollouts.mask)
    parts = torch.autograd.grad(loss, weights, allow_unused=True)
    parts = [torch.zeros_like(w) if p is None else p for p, w in zip(parts, weights)]
    return torch.cat([p.flatten() for p in parts])


@pytest.mark.slow
def test_drawings_pull_longer_than_answers_and_at_right_angles():
    pairs, _ = make_pairs(records("u", 200, 0), records("g", 200, 0), clusters=40)
    policy, s = JanusPolicy(*load_janus()), TrainSettings(rollouts=16)
    longer, cosines = [], []
    for i in range(0, 160, 4):
        sides, _ = roll_out_sides(policy, [pairs[i]], [i], 0, s, REWARDS)
        u, g = (gradient(policy, sides[task]) for task in "ug")
        if u.any() and g.any():  # a flat group pulls nowhere
            longer.append((g.norm() / u.norm()).item())
            cosines.append(torch.cosine_similarity(u, g, dim=0).item())
    assert len(longer) > 30
    assert 5 < np.median(longer) < 10
    assert abs(np.mean(cosines)) < 0.01
