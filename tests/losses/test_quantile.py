# pyright: reportArgumentType=false, reportCallIssue=false
import pytest
import torch
from torch import nn
from torch.func import grad
from torch.testing import assert_close

from losses import (
    add_quantile_q_target,
    huber_error,
    quantile_huber,
    quantile_q_loss,
)
from tests.losses.return_atoms import (
    ACTIONS,
    D,
    chosen,
    draw,
    normal,
    quantiled,
)


def quantile_sum(theta, tau, target, kappa, probs=None):
    """The loss of one step by loops."""
    total = 0.0
    for x, level in zip(theta, tau, strict=True):
        for j, y in enumerate(target):
            u = y - x
            size = abs(u) if kappa == 0 else min(abs(u), kappa) * (abs(u) - min(abs(u), kappa) / 2)
            weight = 1 / len(target) if probs is None else probs[j]
            total += weight * abs(level - (u < 0)) * size
    return total


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_quantile_huber_is_its_equation(kappa, weighted):
    theta, target = 2 * normal(3, 2, 4), normal(3, 2, 6, seed=1)
    tau = torch.rand(4, dtype=D, generator=draw())
    probs = normal(3, 2, 6, seed=2).softmax(-1) if weighted else None
    found = quantile_huber(theta, tau, target, kappa, probs)
    for i in range(3):
        for j in range(2):
            p = probs[i, j].tolist() if weighted else None
            expected = quantile_sum(
                theta[i, j].tolist(), tau.tolist(), target[i, j].tolist(), kappa, p
            )
            assert_close(found[i, j], torch.tensor(expected, dtype=D))
    each = quantile_huber(
        theta, tau.expand(3, 2, 4), target, torch.full((3, 2), kappa).to(D), probs
    )
    assert_close(each, found)
    assert_close(quantile_huber(theta, tau, target, torch.tensor(kappa, dtype=D), probs), found)


def test_half_of_hubers_error_at_the_median():
    x, y = normal(7, 1), normal(7, 1, seed=1)
    half = torch.tensor([0.5], dtype=D)
    assert_close(quantile_huber(x, half, y), huber_error(x, y)[:, 0] / 2)


def test_the_minimum_of_quantile_regression_are_quantiles():
    sample = torch.arange(1.0, 101.0, dtype=D)
    tau = torch.tensor([0.105, 0.5, 0.895], dtype=D)
    theta = torch.tensor([11.0, 50.5, 90.0], dtype=D)
    best = quantile_huber(theta, tau, sample, 0.0)
    for moved in (theta + 2, theta - 2, theta * 1.05):
        assert quantile_huber(moved, tau, sample, 0.0) > best


def test_gradient_of_kappa_and_of_a_kappa_of_zero(central, variant):
    theta, target, tau = 2 * normal(5, 3), normal(5, 4, seed=1), normal(3, seed=2).sigmoid()

    def f(kappa):
        return quantile_huber(theta, tau, target, kappa).sum()

    kappa = torch.tensor(0.7, dtype=D)
    assert_close(variant(grad(f))(kappa), central(f, kappa), rtol=1e-6, atol=1e-8)
    zero = torch.zeros((), dtype=D)
    assert_close(f(zero), f(0.0))
    assert grad(f)(zero).isfinite()
    of_tau = grad(lambda t: quantile_huber(theta, t, target).sum())(tau)
    assert_close(of_tau, central(lambda t: quantile_huber(theta, t, target).sum(), tau))


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_quantile_q_loss_is_its_equation(expected, double):
    td = quantiled(8)
    after = td["next", "action_value_quantiles"]
    values = after.mean(-1)
    if double:
        values = td["next", "action_value_selector"] = normal(8, ACTIONS, seed=5)
    policy = normal(8, ACTIONS, seed=6)
    td["next", "logits"] = policy
    theta, best = (
        chosen(td["action_value_quantiles"], td["action"]),
        chosen(after, values.argmax(-1)),
    )
    tau = [0.125, 0.375, 0.625, 0.875]
    wanted = []
    for i in range(8):
        going = 0.0 if td["next", "terminated"][i] else 0.9
        reward = float(td["next", "reward"][i])

        def loss_of(row, i=i, going=going, reward=reward):
            target = [reward + going * x for x in row.tolist()]
            return quantile_sum(theta[i].tolist(), tau, target, 0.8)

        if expected:  # as rlax: the mean over actions of the loss on each
            parts = zip(policy[i].softmax(-1).tolist(), after[i], strict=True)
            wanted.append(sum(p * loss_of(row) for p, row in parts))
        else:
            wanted.append(loss_of(best[i]))
    out = quantile_q_loss(td, gamma=0.9, kappa=0.8, expected=expected)
    assert_close(out["td_error"], torch.tensor(wanted, dtype=D))
    assert_close(out["pred_value"], theta.mean())
    made = add_quantile_q_target(td, 0.9, expected=expected)
    assert ("value_target_probs" in made.keys()) == expected
    assert_close(quantile_q_loss(made, kappa=0.8)["loss_critic"], out["loss_critic"])
    if expected:
        by_probs = td.exclude(("next", "logits")).set(("next", "probs"), policy.softmax(-1))
        again = quantile_q_loss(by_probs, gamma=0.9, kappa=0.8, expected=True)
        assert_close(again["loss_critic"], out["loss_critic"])
        sure = nn.functional.one_hot(after.mean(-1).argmax(-1), ACTIONS).to(D)
        greedy = by_probs.copy().set("next", by_probs["next"].copy().set("probs", sure))
        plain = td.exclude(("next", "action_value_selector"))
        found = quantile_q_loss(greedy, gamma=0.9, expected=True)["loss_critic"]
        assert_close(found, quantile_q_loss(plain, gamma=0.9)["loss_critic"])


def test_the_policy_at_a_terminated_step_is_without_influence():
    td = quantiled(8)
    ended = td["next", "terminated"] = torch.arange(8) < 4
    td["next", "probs"] = normal(8, ACTIONS).softmax(-1)
    junk = td.clone()
    junk["next", "probs"][ended] = torch.nan
    for key in ("action_value_quantiles", "probs"):
        junk["next", key][ended] = torch.nan
    a, b = (quantile_q_loss(x, gamma=0.9, expected=True) for x in (td, junk))
    for name in a.keys():
        assert_close(a[name], b[name])
    made = add_quantile_q_target(junk, 0.9, expected=True)
    assert_close(made["value_target_probs"].sum(-1), torch.ones(8, dtype=D))


def test_probabilities_of_quantiles_can_be_given():
    td = quantiled(3, 4)
    plain = quantile_q_loss(td, gamma=0.9)["loss_critic"]
    tau = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=D)
    assert_close(quantile_q_loss(td, gamma=0.9, tau=tau)["loss_critic"], plain)
    each = torch.rand(3, 4, 4, dtype=D, generator=draw(8))
    found = quantile_q_loss(td, gamma=0.9, tau=each)["td_error"]
    row = quantile_q_loss(td[1, 2], gamma=0.9, tau=each[1, 2])["td_error"]
    assert_close(found[1, 2], row)
    ends = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=D)
    assert quantile_q_loss(td, gamma=0.9, tau=ends)["loss_critic"].isfinite()


# ---- bad input


@pytest.mark.parametrize(
    ("change", "hyper", "text"),
    [
        (lambda td: td, {"gamma": None}, "td has no 'value_target'.*add_quantile_q_target"),
        (lambda td: td, {"kappa": -1.0}, "kappa is -1.0, expected at least 0"),
        (
            lambda td: td,
            {"tau": torch.ones(3)},
            r"tau has shape \(3,\), expected \[4\] or \[4, 4\]",
        ),
        (lambda td: td, {"expected": True}, "td has no 'next.logits'.*Or next.probs"),
        (
            lambda td: td.set("value_target", torch.ones(4, 2, dtype=D)),
            {"gamma": None, "expected": True},
            "expected is given, but the td already holds 'value_target'",
        ),
        (
            lambda td: td.update(
                {"value_target": torch.ones(4, 2), "value_target_probs": torch.ones(4)}
            ),
            {"gamma": None},
            r"value_target_probs has shape \(4,\), expected",
        ),
    ],
)
def test_bad_input_of_quantile_q_loss(change, hyper, text):
    with pytest.raises(ValueError, match=f"^quantile_q_loss: .*{text}") as caught:
        quantile_q_loss(change(quantiled(4)), **{"gamma": 0.9, **hyper})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"quantiles": torch.tensor(1.0)}, ValueError, r"quantiles has shape \(\), expected"),
        ({"tau": torch.ones(2)}, ValueError, r"tau has shape \(2,\), expected \(3,\) or \(5, 3\)"),
        ({"target": torch.ones(4, 6)}, ValueError, r"target has shape \(4, 6\), expected \[5, M\]"),
        (
            {"target_probs": torch.ones(5, 3)},
            ValueError,
            r"target_probs has shape \(5, 3\), expect",
        ),
        ({"kappa": torch.ones(3)}, ValueError, r"kappa has shape \(3,\), expected one that broadc"),
        ({"kappa": "1"}, TypeError, "kappa is a str"),
        ({"target": torch.ones(5, 6).long()}, TypeError, "target has dtype int64"),
    ],
)
def test_bad_arguments_of_quantile_huber(change, error, text):
    args = {"quantiles": torch.ones(5, 3), "tau": torch.ones(3), "target": torch.ones(5, 6)}
    with pytest.raises(error, match=f"^quantile_huber: {text}"):
        quantile_huber(**{**args, **change})
