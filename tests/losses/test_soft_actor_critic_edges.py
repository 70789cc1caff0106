# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportOptionalOperand=false
"""Soft actor-critics at the numbers of a long run, and at bad input."""

import pytest
import torch
from torch.func import grad
from torch.testing import assert_close

from losses import (
    add_expected_soft_target,
    add_soft_target,
    add_truncated_quantile_target,
    discrete_sac_actor_loss,
    discrete_sac_critic_loss,
    discrete_sac_temperature_loss,
    masked_categorical,
    redq_critic_loss,
    sac_actor_loss,
    sac_critic_loss,
    sac_temperature_loss,
    sac_value_loss,
    total,
    tqc_critic_loss,
)
from tests.losses.soft_agents import (
    ALPHA,
    CRITICS,
    GAMMA,
    D,
    changed,
    entry,
    every_critic,
    number,
    steps,
)

# ---- hard numbers


@every_critic
def test_nan_after_the_end_is_cut(name):
    reducer, estimator, options, keys = CRITICS[name]
    td = steps()
    td["next", "terminated"] = torch.ones(2, 4, dtype=torch.bool)
    after = tuple(torch.full_like(entry(td, key), torch.nan) for key in keys[1:])
    now = entry(td, keys[0])

    def inside(now, first, second, gamma, alpha):
        out = changed(td, **dict(zip(keys, (now, first, second), strict=True)))
        return total(reducer(out, gamma=gamma, alpha=alpha, **options))

    def outside(now, first, second, gamma, alpha):
        out = changed(td, **dict(zip(keys[1:], (first, second), strict=True)))
        out = estimator(out, gamma, alpha, **options)
        return total(reducer(out.copy().set(keys[0], now)))

    args = (now, *after, number(GAMMA), number(ALPHA))
    reward = td["next", "reward"]
    reward = reward.unsqueeze(-1).expand(2, 4, 12) if name == "tqc" else reward
    expected = total(reducer(changed(td, value_target=reward)))
    for f in (inside, outside):
        assert_close(f(*args), expected)
        first = grad(f, (0, 1, 2, 3, 4))(*args)
        assert all(x.isfinite().all() for x in first)
        second = grad(lambda *a, f=f: sum(x.sin().sum() for x in grad(f, (0, 4))(*a)), 4)(*args)
        assert second.isfinite()


@every_critic
def test_masked_steps_where_targets_are_made_inside(name):
    reducer, _, options, _ = CRITICS[name]
    td = steps()
    mask = torch.tensor([[True, False, True, True], [True, True, False, True]])
    clean = changed(td, mask=mask, steps_to_next_obs=torch.where(mask, 2, 1))
    dirty = changed(clean, steps_to_next_obs=torch.where(mask, 2, -9))
    for key in dirty.keys(include_nested=True, leaves_only=True):
        x = dirty.get(key)
        if x.is_floating_point():
            wide = mask.reshape(2, 4, *[1] * (x.dim() - 2))
            dirty.set(key, torch.where(wide, x, torch.nan))
    dirty["action"] = torch.where(mask, td["action"], 99)

    def value(g, a, td):
        return total(reducer(td, gamma=g, alpha=a, **options))

    args = (number(GAMMA), number(ALPHA))
    assert_close(value(*args, dirty), value(*args, clean))
    assert_close(grad(value, (0, 1))(*args, dirty), grad(value, (0, 1))(*args, clean))
    out = reducer(dirty, gamma=GAMMA, alpha=ALPHA, **options)
    assert all(out[key].isfinite().all() for key in out.keys())


@pytest.mark.parametrize("size", [80.0, -80.0])
def test_large_log_probabilities(size):
    td = steps().apply(lambda x: x.float() if x.is_floating_point() else x)
    td = changed(td, action_log_prob_actor=torch.full((2, 4), size))
    td["next", "action_log_prob_actor"] = torch.full((2, 4), size)
    hyper = {"gamma": GAMMA, "alpha": ALPHA}
    for out in (
        sac_actor_loss(td, alpha=ALPHA),
        sac_critic_loss(td, **hyper),
        tqc_critic_loss(td, **hyper),
        sac_temperature_loss(td, log_alpha=-3.0, target_entropy=-2.0),
        sac_value_loss(td, alpha=ALPHA),
    ):
        assert all(x.isfinite().all() and x.dtype == torch.float32 for x in out.values())
    wanted = ALPHA * size - td["state_action_value_actor"].amin(-1).mean()
    assert_close(sac_actor_loss(td, alpha=ALPHA)["loss_actor"], wanted)


@pytest.mark.parametrize("low", [-80.0, -2000.0, -torch.inf])
def test_probabilities_of_zero_and_one(low):
    """Logits so far apart that a probability is 1 and the others 0."""
    td = steps(actions=3)
    row = torch.tensor([0.0, low, low], dtype=D).expand(2, 4, 3)
    td["logits"] = td["next", "logits"] = row
    td["action_value"][..., 1:] = -1e6 if low > -torch.inf else -torch.inf
    td["next", "action_value"][..., 1:] = td["action_value"][..., 1:]

    def policy(x, alpha):
        return total(discrete_sac_actor_loss(td.clone().set("logits", x), alpha=alpha))

    def critic(x, alpha):
        out = changed(td, next_logits=x)
        return add_expected_soft_target(out, GAMMA, alpha)["value_target"].sum()

    def temperature(x, log_alpha):
        return total(
            discrete_sac_temperature_loss(td.clone().set("logits", x), log_alpha=log_alpha)
        )

    assert_close(policy(row, number(5.0)), -td["action_value"][..., 0].amin(-1).mean())
    for f in (policy, critic, temperature):
        assert f(row, number(5.0)).isfinite()
        for found in grad(f, (0, 1))(row, number(5.0)):
            assert found.isfinite().all()
        twice = grad(lambda x, a, f=f: grad(f)(x, a).sin().sum(), (0, 1))(row, number(5.0))
        assert all(x.isfinite().all() for x in twice)


def test_masked_actions_do_not_count():
    td = steps(actions=3)
    td["action_mask"] = torch.tensor([True, False, True]).expand(2, 4, 3)
    td["next", "action_mask"] = td["action_mask"]
    few = td.clone()
    for x in (few, few["next"]):
        x["logits"], x["action_value"] = x["logits"][..., [0, 2]], x["action_value"][..., [0, 2]]
        del x["action_mask"]
    td["action_value"][..., 1] = torch.nan
    td["next", "action_value"][..., 1] = -torch.inf
    found = discrete_sac_actor_loss(td, masked_categorical, alpha=ALPHA)
    assert_close(found["loss_actor"], discrete_sac_actor_loss(few, alpha=ALPHA)["loss_actor"])
    after = add_expected_soft_target(td, GAMMA, ALPHA, masked_categorical)["value_target"]
    assert_close(after, add_expected_soft_target(few, GAMMA, ALPHA)["value_target"])


def test_a_tie_shares_the_gradient():
    td = steps()
    tied = torch.tensor([1.0, 1.0, 2.0], dtype=D).expand(2, 4, 3)

    def value(x):
        return total(sac_actor_loss(changed(td, state_action_value_actor=x), alpha=0.0))

    wanted = -torch.tensor([0.5, 0.5, 0.0], dtype=D).expand(2, 4, 3) / 8
    assert_close(grad(value)(tied), wanted)


def test_ensembles_of_one():
    td = steps(members=1)
    flat = td.clone()
    for x in (flat, flat["next"]):
        for key in ("state_action_value", "action_value", "state_action_quantiles"):
            x[key] = x[key].squeeze(2)
    for reducer in (sac_critic_loss, discrete_sac_critic_loss, tqc_critic_loss):
        found = reducer(flat, gamma=GAMMA, alpha=ALPHA)
        wanted = reducer(td, gamma=GAMMA, alpha=ALPHA)
        for key in wanted.keys():
            assert_close(found[key], wanted[key])


# ---- bad input


def plain(td):
    return td


def bad(reducer, change, hyper, error, text):
    return pytest.param(reducer, change, hyper, error, text, id=f"{reducer.__name__}: {text[:40]}")


SOFT = {"gamma": GAMMA, "alpha": ALPHA}


@pytest.mark.parametrize(
    ("reducer", "change", "hyper", "error", "text"),
    [
        bad(
            sac_critic_loss,
            plain,
            {"gamma": 0.9},
            ValueError,
            "the td has no 'value_target'.*add_soft_target.*give gamma and alpha",
        ),
        bad(
            sac_critic_loss,
            lambda td: add_soft_target(td, 0.9, 0.1),
            {"alpha": 0.1},
            ValueError,
            "alpha is given, but the td already holds 'value_target'",
        ),
        bad(
            redq_critic_loss,
            lambda td: add_soft_target(td, 0.9, 0.1),
            {"subset": [0]},
            ValueError,
            "subset is given, but the td already holds 'value_target'",
        ),
        bad(
            tqc_critic_loss,
            lambda td: add_truncated_quantile_target(td, 0.9, 0.1),
            {"drop": 1},
            ValueError,
            "drop is given, but the td already holds 'value_target'",
        ),
        bad(sac_actor_loss, plain, {}, ValueError, "alpha is neither given nor an entry"),
        bad(sac_actor_loss, plain, {"alpha": -0.1}, ValueError, "alpha is -0.1, expected at least"),
        bad(redq_critic_loss, plain, SOFT, ValueError, "subset is None, expected the indices"),
        bad(
            redq_critic_loss,
            plain,
            {**SOFT, "subset": [0, 3]},
            ValueError,
            r"subset holds an index outside of 0 to 2 \(next.state_action_value has 3",
        ),
        bad(
            redq_critic_loss,
            plain,
            {**SOFT, "subset": torch.ones(2)},
            TypeError,
            "subset has dtype float32, expected integers",
        ),
        bad(
            redq_critic_loss,
            plain,
            {**SOFT, "subset": []},
            ValueError,
            r"subset has shape \(0,\), expected \[M\]",
        ),
        bad(redq_critic_loss, plain, {**SOFT, "subset": 2}, TypeError, "subset is an int"),
        bad(
            tqc_critic_loss,
            plain,
            {**SOFT, "drop": 5},
            ValueError,
            r"drop is 5, expected 0 to 4 \(next.state_action_quantiles has 5 quantiles",
        ),
        bad(tqc_critic_loss, plain, {**SOFT, "drop": 1.0}, TypeError, "drop is a float"),
        bad(
            tqc_critic_loss,
            lambda td: td.set("state_action_quantiles", torch.zeros(2, 4)),
            SOFT,
            ValueError,
            r"state_action_quantiles has shape \(2, 4\), expected \[2, 4, K\] or \[2, 4, N, K\]",
        ),
        bad(
            discrete_sac_critic_loss,
            lambda td: td.exclude(("next", "logits")),
            SOFT,
            ValueError,
            "the td has no 'next.logits'",
        ),
        bad(
            discrete_sac_critic_loss,
            lambda td: changed(td, next_action_value=torch.zeros(2, 4, 3, 9)),
            SOFT,
            ValueError,
            r"next.action_value has shape \(2, 4, 3, 9\), expected \[2, 4, 4\] or \[2, 4, N, 4\]"
            r" \(from the policy's actions\)",
        ),
        bad(
            sac_temperature_loss,
            lambda td: td.exclude("action_log_prob_actor"),
            {"log_alpha": 0.0, "target_entropy": 0.0},
            ValueError,
            "the td has no 'action_log_prob_actor'.*fresh sample",
        ),
    ],
)
def test_bad_input(reducer, change, hyper, error, text):
    with pytest.raises(error, match=f"^{reducer.__name__}: .*{text}") as caught:
        reducer(change(steps()), **hyper)
    assert "\n" not in str(caught.value)
