"""Rows of the soft actor-critics: continuous, discrete, on quantiles, and their temperature."""

import torch
from tensordict import TensorDict

import losses
from paramtree import rng, tree
from tests.contract.case import Case, Function, Reducer, draw
from tests.contract.losses_actor_critic import SIZE, critics, number

SOFT = {"gamma": 0.9, "alpha": 0.3}
SUBSET = torch.tensor([0, 2])


def soft() -> TensorDict:
    """What soft actor-critics read: as the others, and log-probabilities and quantiles."""
    td = critics().clone().unlock_()
    td["state_value"] = draw("v", *SIZE)
    td["action_log_prob_actor"] = draw("log pi", *SIZE)
    td["next", "action_log_prob_actor"] = draw("next log pi", *SIZE)
    for key in ("state_action_quantiles", "state_action_quantiles_actor"):
        td[key] = draw(key, *SIZE, 2, 4)
    td["next", "state_action_quantiles"] = draw("next quantiles", *SIZE, 2, 4)
    return td.lock_()


def discrete() -> TensorDict:
    td = critics().clone().unlock_()
    td["action"] = rng.randint(rng.key(9), SIZE, 0, 3)
    for key in ("logits", ("next", "logits")):
        td[key] = draw(str(key), *SIZE, 3)
    for key in ("action_value", ("next", "action_value")):
        td[key] = draw(str(key), *SIZE, 2, 3)
    return td.lock_()


def soft_target(td, hyper):
    return losses.add_soft_target(td, hyper["gamma"], hyper["alpha"])


def redq_target(td, hyper):
    return losses.add_soft_target(td, hyper["gamma"], hyper["alpha"], subset=SUBSET)


def expected_target(td, hyper):
    return losses.add_expected_soft_target(td, hyper["gamma"], hyper["alpha"])


def quantile_target(td, hyper):
    return losses.add_truncated_quantile_target(td, hyper["gamma"], hyper["alpha"], drop=1)


def estimator(name, td, **options):
    def call(td, gamma, alpha):
        out = getattr(losses, name)(td, gamma, alpha, **options)
        return tree.select(out, "value_target")

    return Case(f"losses.{name}", call, lambda: (td(), number(0.9), number(0.3)))


ACTOR = ("state_action_value_actor", "action_log_prob_actor")

ROWS = [
    Reducer("sac_actor_loss", soft, ACTOR, {"alpha": 0.3}),
    Reducer("redq_actor_loss", soft, ACTOR, {"alpha": 0.3}),
    Reducer(
        "sac_critic_loss",
        soft,
        ("state_action_value",),
        target_hyper=SOFT,
        targets=soft_target,
        inductor=True,
    ),
    Reducer(
        "redq_critic_loss",
        soft,
        ("state_action_value",),
        target_hyper=SOFT,
        targets=redq_target,
    ),
    Reducer(
        "crossq_critic_loss",
        soft,
        ("state_action_value",),
        target_hyper=SOFT,
        targets=soft_target,
    ),
    Reducer("sac_value_loss", soft, ("state_value",), {"alpha": 0.3}),
    Reducer(
        "sac_temperature_loss",
        soft,
        ("action_log_prob_actor",),
        {"log_alpha": -0.4, "target_entropy": -2.0},
    ),
    Function(
        "bounded_log_alpha",
        lambda: {"log_alpha": 3 * draw("log alpha", 8)},
        {"low": 0.3, "high": 2.0},
    ),
    estimator("add_soft_target", soft, subset=SUBSET),
    Reducer("discrete_sac_actor_loss", discrete, ("logits",), {"alpha": 0.3}),
    Reducer(
        "discrete_sac_critic_loss",
        discrete,
        ("action_value", "logits"),
        target_hyper=SOFT,
        targets=expected_target,
    ),
    Reducer(
        "discrete_sac_temperature_loss",
        discrete,
        ("logits",),
        {"log_alpha": -0.4, "target_entropy": 0.9},
    ),
    estimator("add_expected_soft_target", discrete),
    Reducer(
        "tqc_actor_loss",
        soft,
        ("state_action_quantiles_actor", "action_log_prob_actor"),
        {"alpha": 0.3},
    ),
    Reducer(
        "tqc_critic_loss",
        soft,
        ("state_action_quantiles",),
        {"kappa": 0.8},
        SOFT,
        quantile_target,
    ),
    estimator("add_truncated_quantile_target", soft, drop=1),
]
