"""Rows of ``losses/imitation.py``."""

import losses
from paramtree import rng, tree
from tests.contract.case import Case, Function, Reducer, draw

SIZE = (2, 5)


def cloned():
    action = rng.randint(rng.key(5), SIZE, 0, 3)
    return tree.new({"logits": draw("logits", *SIZE, 3), "action": action}, SIZE)


def predicted():
    entries = {"action_actor": draw("mu", *SIZE, 3), "action": draw("action", *SIZE, 3)}
    return tree.new(entries, SIZE)


def taught():
    teacher = tree.new({"logits": draw("teacher", *SIZE, 3)}, SIZE)
    return tree.new({"logits": draw("logits", *SIZE, 3), "teacher": teacher}, SIZE)


def taught_normal():
    def normal(name):
        return {"loc": draw(name, *SIZE, 3), "scale": draw(f"{name} scale", *SIZE, 3, low=0.5)}

    return tree.new({**normal("policy"), "teacher": tree.new(normal("teacher"), SIZE)}, SIZE)


def drawn():
    entries = {
        "logits": draw("logits", *SIZE, 3),
        "action_samples": rng.randint(rng.key(6), (*SIZE, 4), 0, 3),
        "policy_weight": draw("weight", *SIZE, 4, low=0.0),
    }
    return tree.new(entries, SIZE)


def summed(loss):
    return lambda td: losses.total(loss(td))


ROWS = [
    Function(
        "sampled_cross_entropy",
        lambda: {"log_prob": draw("log", 2, 5, 4), "weight": draw("weight", 2, 5, 4, low=0.0)},
    ),
    Reducer("bc_loss", cloned, ("logits",), {"entropy_coeff": 0.1}),
    Reducer("distillation_loss", taught, ("logits",)),
    Case("losses.bc_loss of a prediction", summed(losses.bc_loss), lambda: (predicted(),)),
    Case(
        "losses.distillation_loss of a normal teacher",
        lambda td: losses.total(losses.distillation_loss(td, losses.independent_normal)),
        lambda: (taught_normal(),),
    ),
    Case(
        "losses.distillation_loss of samples", summed(losses.distillation_loss), lambda: (drawn(),)
    ),
]
