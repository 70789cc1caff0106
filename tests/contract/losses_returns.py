"""Rows of ``losses/returns.py``, ``losses/off_policy.py`` and ``losses/estimators.py``."""

import torch

import losses
from paramtree import rng, tree
from tests.contract.case import Case, Function, draw, ends, numbers, trajectory

DISCOUNTS = {"gamma": 0.9, "lmbda": 0.7}


def steps(*names: str) -> dict[str, torch.Tensor]:
    return {name: draw(name, 5, 2) for name in names}


def choices() -> torch.Tensor:
    return rng.randint(rng.key(5), (5, 2), 0, 3)


def actions(*names: str) -> dict[str, torch.Tensor]:
    return {name: draw(name, 5, 2, 3) for name in names}


def estimator(name, hyper, td=lambda: replayed(2, 5), **options):
    """A row of an estimator: what it adds, as a function of the td and its hyper-parameters."""

    def call(td, hyper):
        out = getattr(losses, name)(td, **tree.entries(hyper), **options)
        added = {key: x for key, x in tree.entries(out).items() if key not in td.keys()}
        return tree.new(added, td.batch_size)

    return Case(f"losses.{name}", call, lambda: (td(), numbers(hyper)))


def replayed(*size: int):
    """A trajectory that another policy made, with action values."""
    td = trajectory(*size)
    following = {
        **tree.entries(td["next"]),
        "logits": draw("next logits", *size, 3),
        "action_value": draw("next q", *size, 3),
        "action_value_selector": draw("selector", *size, 3),
    }
    entries = {
        **tree.entries(td),
        "action_log_prob": draw("log mu", *size, low=-2.0, high=-0.5),
        "steps_to_next_obs": rng.randint(rng.key(6), size, 1, 4),
        "next": tree.new(following, size),
    }
    return tree.new(entries, size)


CLIPS = {"rho_clip": 0.9, "c_clip": 0.8, "pg_rho_clip": 1.1, "leak": 0.3}
HYPERBOLIC = {"tx": losses.hyperbolic_sin_pair}
ROWS = [
    Function(
        "reverse_linear",
        lambda: {**steps("a", "b"), "last": draw("last", 2)},
        inductor=True,
    ),
    Function(
        "td_targets",
        lambda: {**steps("reward", "next_value"), "terminated": ends(5, 2)["terminated"]},
        {"gamma": 0.9},
        HYPERBOLIC,
    ),
    Function(
        "lambda_returns",
        lambda: {**steps("reward", "next_value"), **ends(5, 2)},
        DISCOUNTS,
        HYPERBOLIC,
    ),
    Function(
        "n_step_returns",
        lambda: {**steps("reward", "next_value"), **ends(5, 2)},
        DISCOUNTS,
        {"n": 3, **HYPERBOLIC},
    ),
    Function(
        "gae",
        lambda: {**steps("reward", "value", "next_value"), **ends(5, 2)},
        DISCOUNTS,
        inductor=True,
    ),
    Function(
        "discounted_returns",
        lambda: {**steps("reward", "next_value"), **ends(5, 2)},
        {"gamma": 0.9},
        HYPERBOLIC,
    ),
    Function(
        "vtrace",
        lambda: {**steps("reward", "value", "next_value", "log_rho"), **ends(5, 2)},
        {**DISCOUNTS, **CLIPS},
        out=lambda result: tuple(result),
        covers=("VTrace",),
        inductor=True,
    ),
    Function(
        "off_policy_returns",
        lambda: {**steps("reward", "action_value", "next_value"), **ends(5, 2)},
        {"gamma": 0.9, "trace": 0.6},
        HYPERBOLIC,
    ),
    Function(
        "retrace",
        lambda: {
            **steps("reward"),
            **actions("next_action_value"),
            "next_probs": actions("next logits")["next logits"].softmax(-1),
            "action": choices(),
            "action_log_prob": draw("log mu", 5, 2, low=-2.0, high=-0.5),
            **ends(5, 2),
        },
        DISCOUNTS,
        HYPERBOLIC,
    ),
    Function(
        "retrace_continuous",
        lambda: {**steps("reward", "action_value", "next_value", "log_rho"), **ends(5, 2)},
        DISCOUNTS,
        HYPERBOLIC,
    ),
    estimator("add_advantage", {**DISCOUNTS, "eps": 0.1}, normalize=True),
    estimator("add_lambda_returns", {**DISCOUNTS, "eps": 0.1}, normalize=True),
    estimator("add_td_target", {"gamma": 0.9}),
    estimator("add_q_target", {"gamma": 0.9}),
    estimator("add_vtrace", {**DISCOUNTS, **CLIPS, "eps": 0.1}, normalize=True),
    estimator("add_retrace", DISCOUNTS),
]
