"""Rows of ``losses/distributions.py`` and ``losses/densities.py``."""

import torch
from torch.distributions import Categorical

import losses
from paramtree import tree
from tests.contract.case import Case, D, Function, draw, trajectory

MASK = torch.tensor([[True, True, False], [True, True, True]])
ACTION = torch.tensor([0, 1])


def answers(dist, action):
    return dist.log_prob(action), dist.entropy()


def head(name, shift=0.0):
    entries = {"loc": draw(f"{name} loc", 2, 3) + shift, "scale": draw(f"{name} scale", 2, 3).exp()}
    return tree.new(entries, (2,))


def nested(steer, gear):
    heads = losses.joint(steer=losses.independent_normal, gear=Categorical)
    return heads(steer=steer, gear=gear)


def gear(name):
    return tree.new({"logits": draw(name, 2, 4)}, (2,))


ROWS = [
    Case(
        "losses.distribution",
        lambda td: losses.distribution(td).log_prob(td["action"]),
        lambda: (trajectory(2, 5),),
    ),
    Case(
        "losses.independent_normal",
        lambda m, s: losses.independent_normal(m, s.exp()).log_prob(torch.ones(3, dtype=D)),
        lambda: (draw("m", 3), draw("s", 3)),
    ),
    Case(
        "losses.tanh_normal",
        lambda m, s, low, high, noise: (
            *answers(losses.tanh_normal(m, s.exp(), low, high), 0.3 * noise.tanh()),
            *losses.tanh_normal(m, s.exp(), low, high).sample_with(noise),
            losses.tanh_normal(m, s.exp(), low, high).mean,
        ),
        lambda: (
            draw("m", 5, 2),
            draw("s", 5, 2),
            torch.tensor(-1.5, dtype=D),
            torch.tensor(2.0, dtype=D),
            draw("noise", 5, 2),
        ),
    ),
    Case(
        "losses.masked_categorical",
        lambda logits: answers(losses.masked_categorical(logits, MASK), ACTION),
        lambda: (draw("logits", 2, 3),),
    ),
    Case(
        "losses.joint",
        lambda steer, gear, action: answers(
            nested(steer, gear), tree.new({"steer": action, "gear": ACTION}, (2,))
        ),
        lambda: (head("p"), gear("p"), draw("action", 2, 3)),
    ),
    Case(
        "losses.kl_divergence",
        lambda steer, gear, other, third: losses.kl_divergence(
            nested(steer, gear), nested(other, third)
        ),
        lambda: (head("p"), gear("p"), head("q", 0.3), gear("q")),
    ),
    Function(
        "categorical_kl",
        lambda: {"logits_p": draw("p", 4, 3), "logits_q": draw("q", 4, 3)},
    ),
    Function(
        "categorical_cross_entropy",
        lambda: {"probs": draw("p", 4, 3).softmax(-1), "logits": draw("q", 4, 3)},
    ),
    Function(
        "importance_ratio",
        lambda: {"log_prob": draw("p", 4), "behavior_log_prob": draw("q", 4)},
    ),
]
