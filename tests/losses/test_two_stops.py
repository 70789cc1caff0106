# pyright: reportArgumentType=false, reportCallIssue=false
"""Three inner updates by each loss, differentiated from outside, against central differences.

A tabular agent: parameters are tables over six states, the trajectory is fixed. Targets are made
outside of the function that is differentiated for the update, from the parameters before it.
"""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.func import grad
from torch.testing import assert_close

from losses import (
    a2c_loss,
    add_advantage,
    lpg_agent_loss,
    lpg_meta_loss,
    lpg_regularizer_loss,
    policy_gradient_loss,
    total,
)

STATES, ACTIONS, M = 6, 3, 4
DRAW = np.random.default_rng(3)
STATE = torch.tensor(DRAW.integers(0, STATES, (2, 6)))  # 2 workers, 5 steps and the state after
ACTION = torch.tensor(DRAW.integers(0, ACTIONS, (2, 5)))
REWARD = torch.tensor(DRAW.normal(size=(2, 5)))
DONE = torch.tensor([[False, True, False, False, False], [False, False, False, True, False]])
TERMINATED = DONE & torch.tensor([[True], [False]])
TABLES = {
    "logits": torch.tensor(DRAW.normal(size=(STATES, ACTIONS))),
    "state_value": torch.tensor(DRAW.normal(size=STATES)),
    "prediction": torch.tensor(DRAW.normal(size=(STATES, M))),
}
RULE = torch.tensor(DRAW.normal(size=(3, 1 + M)))  # a learned rule: linear in reward, pi and 1
WEIGHTS = {name: torch.tensor(DRAW.normal(size=t.shape)) for name, t in TABLES.items()}


def agent(params, td):
    """The td with the agent's outputs on its states."""
    out = td.copy()
    for name, table in params.items():
        out[name] = table[STATE[:, :-1]]
    return out


def trajectory(params):
    """The agent's outputs, and its values of the states that follow."""
    after = {"reward": REWARD, "done": DONE, "terminated": TERMINATED}
    after["state_value"] = params["state_value"][STATE[:, 1:]]
    td = TensorDict({"action": ACTION, "next": TensorDict(after, (2, 5))}, (2, 5))
    return agent(params, td)


def learned(params, rule):
    """A trajectory with the targets that a rule writes, nothing detached."""
    td = trajectory(params)
    pi = td["logits"].softmax(-1).gather(-1, ACTION.unsqueeze(-1))[..., 0]
    out = torch.stack([REWARD, pi, torch.ones_like(pi)], -1) @ rule
    y_hat = (out[..., 1:] + td["prediction"]).softmax(-1)
    return td.update({"pi_hat": out[..., 0], "y_hat": y_hat})


def hand_written(params, h):
    return add_advantage(trajectory(params), h["gamma"], h["lmbda"], normalize=True, eps=h["eps"])


def both(params, h):
    td = hand_written(params, h)
    targets = learned(params, h["rule"])
    return td.unlock_().update({name: targets[name] for name in ("pi_hat", "y_hat")})


def coeffs(h, *names):
    return {name: h[name] for name in names}


REGULAR = (
    "policy_entropy_coeff",
    "prediction_entropy_coeff",
    "pi_hat_coeff",
    "y_hat_coeff",
)
CASES = {
    "a2c": (
        hand_written,
        lambda td, h: a2c_loss(td, **coeffs(h, "critic_coeff", "entropy_coeff")),
        ("gamma", "lmbda", "eps", "critic_coeff", "entropy_coeff", "rate"),
    ),
    "policy_gradient": (
        hand_written,
        lambda td, h: policy_gradient_loss(td, entropy_coeff=h["entropy_coeff"]),
        ("gamma", "lmbda", "entropy_coeff"),
    ),
    "lpg_agent": (
        lambda params, h: learned(params, h["rule"]),
        lambda td, h: lpg_agent_loss(td, prediction_coeff=h["prediction_coeff"], eps=h["eps"]),
        ("rule", "prediction_coeff", "eps", "rate"),
    ),
    "lpg_regularizer": (
        lambda params, h: learned(params, h["rule"]),
        lambda td, h: lpg_regularizer_loss(td, **coeffs(h, *REGULAR)),
        ("policy_entropy_coeff", "prediction_entropy_coeff"),
    ),
    "lpg_meta": (
        both,
        lambda td, h: lpg_meta_loss(td, **coeffs(h, *REGULAR)),
        ("gamma", "lmbda", "policy_entropy_coeff", "prediction_entropy_coeff"),
    ),
}
HYPER = {
    "gamma": 0.9,
    "lmbda": 0.8,
    "critic_coeff": 0.5,
    "entropy_coeff": 0.1,
    "prediction_coeff": 0.5,
    "eps": 0.05,
    "rate": 1.5,
    "policy_entropy_coeff": 0.3,
    "prediction_entropy_coeff": 0.2,
    "pi_hat_coeff": 0.1,
    "y_hat_coeff": 0.1,
}


def unroll(targets, loss, h, steps=3):
    """A smooth function of the agent after some updates."""
    params = TABLES
    for _ in range(steps):
        td = targets(params, h)
        grads = grad(lambda p, td=td: total(loss(agent(p, td), h)))(params)
        params = {name: params[name] - h["rate"] * grads[name] for name in params}
    return sum((WEIGHTS[name] * params[name].sin()).sum() for name in params)


def hyper(**changed):
    values = {name: torch.tensor(x, dtype=torch.float64) for name, x in HYPER.items()}
    return {**values, "rule": RULE, **changed}


@pytest.mark.parametrize("name", [f"{case}.{h}" for case in CASES for h in CASES[case][2]])
def test_unrolled_gradient_is_the_central_difference(name, central):
    case, which = name.split(".")
    targets, loss, _ = CASES[case]

    def outer(x):
        return unroll(targets, loss, hyper(**{which: x}))

    x = hyper()[which]
    found = grad(outer)(x)
    assert found.abs().sum() > 1e-4
    assert_close(found, central(outer, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", ["a2c", "lpg_agent"])
def test_unrolled_gradient_in_variants(case, variant):
    targets, loss, names = CASES[case]

    def outer(x):
        return unroll(targets, loss, hyper(**{names[0]: x}))

    x = hyper()[names[0]]
    assert_close(variant(grad(outer))(x), grad(outer)(x))


def test_unrolled_second_derivative(central):
    targets, loss, _ = CASES["a2c"]

    def outer(x):
        return unroll(targets, loss, hyper(gamma=x))

    x = hyper()["gamma"]
    assert_close(grad(grad(outer))(x), central(grad(outer), x), rtol=1e-6, atol=1e-8)


def inside(params, h):
    """Targets left for the loss to make."""
    return trajectory(params)


@pytest.mark.parametrize("reducer", [a2c_loss, policy_gradient_loss])
def test_targets_made_inside_are_exact_for_one_step_and_lack_a_path_after_more(reducer, central):
    def outer(x, where, steps):
        def within(td, h):
            return reducer(td, gamma=x, lmbda=h["lmbda"], entropy_coeff=0.1)

        def beforehand(params, h):
            return add_advantage(trajectory(params), x, h["lmbda"])

        def without(td, h):
            return reducer(td, entropy_coeff=0.1)

        road = {"inside": (inside, within), "outside": (beforehand, without)}[where]
        return unroll(*road, hyper(), steps)

    x = hyper()["gamma"]
    for steps in (1, 3):
        assert_close(outer(x, "inside", steps), outer(x, "outside", steps))  # the same updates
        right = central(lambda x, n=steps: outer(x, "outside", n), x)
        found = {w: grad(lambda x, w=w, n=steps: outer(x, w, n))(x) for w in ("inside", "outside")}
        assert_close(found["outside"], right, rtol=1e-6, atol=1e-8)
        if steps == 1:
            assert_close(found["inside"], right, rtol=1e-6, atol=1e-8)
        elif reducer is a2c_loss:  # a policy gradient alone does not move the values
            assert (found["inside"] - right).abs() > 1e-2 * right.abs()


def test_nothing_is_detached_where_targets_are_finished():
    """Differentiated as one function, targets included, the loss has no stop."""

    def whole(p):
        return total(a2c_loss(hand_written({**TABLES, **p}, hyper())))

    def inner(p):
        return total(a2c_loss(agent({**TABLES, **p}, hand_written(TABLES, hyper()))))

    def targets_only(p):
        return total(a2c_loss(agent(TABLES, hand_written({**TABLES, **p}, hyper()))))

    values = {"state_value": TABLES["state_value"]}
    found, a, b = (grad(f)(values)["state_value"] for f in (whole, inner, targets_only))
    assert_close(found, a + b)
    assert a.abs().max() > 1e-3 and b.abs().max() > 1e-3
