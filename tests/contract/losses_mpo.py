"""Rows of ``losses/mpo.py``, ``losses/e_step.py`` and ``losses/lagrange.py``."""

import torch

import losses
from losses import LagrangePenalty, add_mpo_weight, add_vmpo_weight
from paramtree import rng, tree
from tests.contract.case import Case, D, Function, Reducer, draw, numbers

CONSTRAINTS = {
    "kl_mean": LagrangePenalty(0.4, 0.1),
    "kl_std": LagrangePenalty(0.3, 0.2, per_dimension=True),
}
TEMPERATURE = {"temperature": 0.7}


def samples():
    return {"action_value_samples": draw("samples", 2, 5, 4)}


def steps():
    """Advantages and ratios; the ranks of the first are far apart."""
    return {
        "advantage": draw("advantage", 2, 5),
        "importance_weight": draw("ratio", 2, 5, low=0.5, high=1.5),
    }


def batch(**entries):
    size = (2, 5)
    kls = {"kl_mean": draw("kl", *size, low=0.0), "kl_std": draw("kl std", *size, 3, low=0.0)}
    return tree.new({**entries, **kls}, size)


def sampled():
    return batch(**samples(), action_log_prob_samples=draw("log", 2, 5, 4, low=-3.0, high=0.0))


def stepwise():
    action = rng.randint(rng.key(5), (2, 5), 0, 3)
    return batch(**steps(), logits=draw("logits", 2, 5, 3), action=action)


def with_weight(add):
    def targets(td, hyper):
        return add(td, hyper["temperature"])

    return targets


def total_of_both(td, hyper):
    """Losses of both sets of parameters, with every number of a constraint a tensor."""
    h = tree.entries(hyper)
    each = LagrangePenalty(h["alpha"] * torch.ones(3, dtype=D), h["epsilon"], True)
    constraints = {"kl_mean": LagrangePenalty(h["alpha"], h["epsilon"]), "kl_std": each}
    primal = losses.mpo_loss(td, constraints=constraints)
    dual = losses.mpo_dual_loss(td, temperature=0.7, constraints=constraints)
    return losses.total(primal) + losses.total(dual)


ROWS = [
    Function("mpo_weights", samples, TEMPERATURE),
    Function("mpo_temperature_dual", samples, {**TEMPERATURE, "epsilon": 0.2}),
    Function("vmpo_weights", steps, TEMPERATURE),
    Function("vmpo_temperature_dual", steps, {**TEMPERATURE, "epsilon": 0.2}),
    Function(
        "lagrange_penalty",
        lambda: {"kl": draw("kl", 2, 3)},
        {"alpha": 0.4},
        {"per_dimension": True},
    ),
    Function(
        "lagrange_dual",
        lambda: {"kl": draw("kl", 2, 3)},
        {"alpha": 0.4, "epsilon": 0.1},
        {"per_dimension": True},
    ),
    Case(
        "losses.LagrangePenalty",
        total_of_both,
        lambda: (add_mpo_weight(sampled(), 0.7), numbers({"alpha": 0.4, "epsilon": 0.1})),
    ),
    Case(
        "losses.add_mpo_weight",
        lambda td, t: add_mpo_weight(td, t)["policy_weight"],
        lambda: (sampled(), torch.tensor(0.7, dtype=D)),
    ),
    Case(
        "losses.add_vmpo_weight",
        lambda td, t: add_vmpo_weight(td, t)["policy_weight"],
        lambda: (stepwise(), torch.tensor(0.7, dtype=D)),
    ),
    Reducer(
        "mpo_loss",
        sampled,
        ("action_log_prob_samples", "kl_mean", "kl_std"),
        target_hyper=TEMPERATURE,
        targets=with_weight(add_mpo_weight),
        options={"constraints": CONSTRAINTS},
    ),
    Reducer(
        "mpo_dual_loss",
        sampled,
        ("action_value_samples", "kl_mean", "kl_std"),
        {**TEMPERATURE, "epsilon": 0.2},
        options={"constraints": CONSTRAINTS},
    ),
    Reducer(
        "vmpo_loss",
        stepwise,
        ("logits", "kl_mean", "kl_std"),
        target_hyper=TEMPERATURE,
        targets=with_weight(add_vmpo_weight),
        optional=("importance_weight",),
        options={"constraints": CONSTRAINTS},
        per_step=False,
    ),
    Reducer(
        "vmpo_dual_loss",
        stepwise,
        ("advantage", "kl_mean", "kl_std"),
        {**TEMPERATURE, "epsilon": 0.2},
        optional=("importance_weight",),
        options={"constraints": CONSTRAINTS},
        per_step=False,
    ),
]
