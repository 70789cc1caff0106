# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportOptionalOperand=false
"""Soft actor-critics against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad
from torch.testing import assert_close

import losses
from losses import (
    add_expected_soft_target,
    add_soft_target,
    bounded_log_alpha,
    discrete_sac_actor_loss,
    discrete_sac_critic_loss,
    discrete_sac_temperature_loss,
    redq_actor_loss,
    redq_critic_loss,
    sac_actor_loss,
    sac_critic_loss,
    sac_temperature_loss,
    sac_value_loss,
    total,
    tqc_actor_loss,
)
from tests.losses.soft_agents import (
    ALPHA,
    CRITICS,
    ENTROPY,
    GAMMA,
    D,
    changed,
    entry,
    every_critic,
    number,
    steps,
)

# ---- closed forms


def target(td, value):
    """r + gamma (1 - terminated) value, or with atoms of it."""
    follows = (~td["next", "terminated"]).to(D)
    reward = td["next", "reward"]
    if value.dim() > 2:
        follows, reward = follows.unsqueeze(-1), reward.unsqueeze(-1)
    return reward + GAMMA * follows * value


def wanted_target(name, td):
    after = td["next"]
    if name == "discrete":
        p = after["logits"].softmax(-1)
        return target(td, (p * (after["action_value"].amin(2) - ALPHA * p.log())).sum(-1))
    log_prob = after["action_log_prob_actor"]
    if name == "tqc":
        pooled = after["state_action_quantiles"].flatten(2).sort(-1).values[..., :12]
        return target(td, pooled - ALPHA * log_prob.unsqueeze(-1))
    value = after["state_action_value"]
    value = value[..., [0, 2]] if name == "redq" else value
    return target(td, value.amin(-1) - ALPHA * log_prob)


@every_critic
def test_targets_are_their_equations(name):
    reducer, estimator, options, _ = CRITICS[name]
    td = steps()
    wanted = wanted_target(name, td)
    finished = estimator(td, GAMMA, ALPHA, **options)
    assert_close(finished["value_target"], wanted)
    outside = reducer(finished)
    for inside in (
        reducer(td, gamma=GAMMA, alpha=ALPHA, **options),
        reducer(td, gamma=number(GAMMA), alpha=number(ALPHA), **options),
        reducer(
            changed(td, gamma=torch.full((2, 4), GAMMA), alpha=torch.full((2, 4), ALPHA).double()),
            **options,
        ),
    ):
        for key in outside.keys():
            assert_close(inside[key], outside[key], rtol=1e-6, atol=1e-6)
    more = changed(td, steps_to_next_obs=torch.full((2, 4), 3))
    n_steps = estimator(more, GAMMA, ALPHA, **options)
    assert_close(n_steps["value_target"], estimator(td, GAMMA**3, ALPHA, **options)["value_target"])


@every_critic
def test_targets_made_inside_stop_at_what_follows(name):
    reducer, estimator, options, keys = CRITICS[name]
    td = steps()

    def inside(now, first, second, gamma, alpha):
        out = changed(td, **dict(zip(keys, (now, first, second), strict=True)))
        return total(reducer(out, gamma=gamma, alpha=alpha, **options))

    def outside(now, first, second, gamma, alpha):
        out = changed(td, **dict(zip(keys[1:], (first, second), strict=True)))
        out = estimator(out, gamma, alpha, **options)
        return total(reducer(out.copy().set(keys[0], now)))

    args = (*(entry(td, key) for key in keys), number(GAMMA), number(ALPHA))
    a, b = grad(inside, (0, 1, 2, 3, 4))(*args), grad(outside, (0, 1, 2, 3, 4))(*args)
    for i in (0, 3, 4):
        assert_close(a[i], b[i])
        assert b[i].abs().sum() > 0
    for i in (1, 2):
        assert (a[i] == 0).all() and b[i].abs().sum() > 0


def test_distances():
    td = add_soft_target(steps(), GAMMA, ALPHA)
    error = td["state_action_value"] - td["value_target"].unsqueeze(-1)
    square = error.square().sum(-1).mean()
    assert_close(sac_critic_loss(td)["loss_critic"], 0.5 * square)
    assert_close(redq_critic_loss(td)["loss_critic"], square)
    chosen = td["action_value"][
        torch.arange(2)[:, None, None],
        torch.arange(4)[:, None],
        torch.arange(3),
        td["action"][..., None],
    ]
    td = add_expected_soft_target(steps(), GAMMA, ALPHA)
    error = chosen - td["value_target"].unsqueeze(-1)
    found = discrete_sac_critic_loss(td)
    assert_close(found["loss_critic"], 0.5 * error.square().sum(-1).mean())
    assert_close(found["td_error"], error.abs().amax(-1))
    assert_close(found["pred_value"], chosen.mean())
    one_hot = td.copy().set("action", F.one_hot(td["action"], 4))
    assert_close(discrete_sac_critic_loss(one_hot)["loss_critic"], found["loss_critic"])
    value = td["state_action_value_actor"].amin(-1) - ALPHA * td["action_log_prob_actor"]
    loss = sac_value_loss(td, alpha=ALPHA)["loss_value"]
    assert_close(loss, 0.5 * (td["state_value"] - value).square().mean())


def test_policies_are_their_equations():
    td = steps()
    log_prob = td["action_log_prob_actor"]
    value = td["state_action_value_actor"]
    assert_close(
        sac_actor_loss(td, alpha=ALPHA)["loss_actor"], (ALPHA * log_prob - value.amin(-1)).mean()
    )
    assert_close(
        redq_actor_loss(td, alpha=ALPHA)["loss_actor"], (ALPHA * log_prob - value.mean(-1)).mean()
    )
    quantiles = td["state_action_quantiles_actor"].mean((-1, -2))
    assert_close(
        tqc_actor_loss(td, alpha=ALPHA)["loss_actor"], (ALPHA * log_prob - quantiles).mean()
    )
    p = td["logits"].softmax(-1)
    wanted = (p * (ALPHA * p.log() - td["action_value"].amin(-2))).sum(-1)
    found = discrete_sac_actor_loss(td, alpha=ALPHA, reduction="none")
    assert_close(found["loss_actor"], wanted)
    assert_close(found["entropy"], -(p * p.log()).sum(-1))


def test_discrete_policies_by_any_parametrization():
    td = steps()
    wanted = discrete_sac_actor_loss(td, alpha=ALPHA)["loss_actor"]
    probs = td.exclude("logits").set("probs", 3 * td["logits"].softmax(-1))
    assert_close(discrete_sac_actor_loss(probs, alpha=ALPHA)["loss_actor"], wanted)
    found = discrete_sac_actor_loss(td, torch.distributions.OneHotCategorical, alpha=ALPHA)
    assert_close(found["loss_actor"], wanted)
    with pytest.raises(ValueError, match="discrete_sac_actor_loss: dist_class gives a Normal, exp"):
        normal = td.exclude("logits").update(
            {"loc": torch.zeros(2, 4, 1, dtype=D), "scale": torch.ones(2, 4, 1, dtype=D)}
        )
        discrete_sac_actor_loss(normal, torch.distributions.Normal, alpha=ALPHA)


def test_temperature():
    td = steps()
    log_alpha = number(-0.5)

    def loss(x):
        return total(sac_temperature_loss(td, log_alpha=x, target_entropy=ENTROPY))

    wanted = -(td["action_log_prob_actor"] + ENTROPY).mean()
    assert_close(loss(log_alpha), log_alpha * wanted)
    assert_close(grad(loss)(log_alpha), wanted)
    found = discrete_sac_temperature_loss(td, log_alpha=log_alpha)
    entropy = torch.distributions.Categorical(logits=td["logits"]).entropy()
    assert_close(found["loss_alpha"], log_alpha * (entropy - 0.98 * math.log(4)).mean())
    assert_close(found["entropy"], entropy.mean())
    by_entry = changed(td, target_entropy=torch.full((2, 4), 0.7, dtype=D))
    assert_close(
        discrete_sac_temperature_loss(by_entry, log_alpha=log_alpha)["loss_alpha"],
        log_alpha * (entropy - 0.7).mean(),
    )


def test_bounds_of_a_temperature_are_torchrls_over_updates():
    """TorchRL clamps the parameter in place when it is read, ours is what an update gives."""
    td = steps()
    ours = number(math.log(0.5))
    theirs = torch.nn.Parameter(ours.clone())
    for push in (-3.0, -3.0, -3.0, 6.0, 6.0):
        hyper = {"target_entropy": push}

        def loss(x, hyper=hyper):
            return total(sac_temperature_loss(td, log_alpha=x, **hyper))

        slope = torch.autograd.grad(loss(theirs), theirs)[0]
        theirs.data.sub_(0.2 * slope).clamp_(math.log(0.4), math.log(1.2))

        def update(x, loss=loss):
            return bounded_log_alpha(x - 0.2 * grad(loss)(x), 0.4, 1.2)

        ours = update(ours)
        assert_close(ours, theirs.detach())
    assert math.log(0.4) < ours < math.log(1.2) + 1e-9
    for dtype in (torch.float32, D):  # a parameter that was put to its bound can leave it
        for bound in (0.4, torch.tensor(0.4, dtype=dtype)):
            x = bounded_log_alpha(torch.tensor(-3.0, dtype=dtype), bound, 1.2)
            assert grad(lambda x, low=bound: bounded_log_alpha(x, low, 1.2))(x) == 1
    assert bounded_log_alpha(number(-9.0)) == -9.0
    with pytest.raises(ValueError, match="^bounded_log_alpha: low is 2 and high 1, expected"):
        bounded_log_alpha(ours, 2.0, 1.0)
    with pytest.raises(ValueError, match="^bounded_log_alpha: low is -1.0, expected at least 0"):
        bounded_log_alpha(ours, -1.0)
    with pytest.raises(ValueError, match=r"^bounded_log_alpha: high has shape \(3,\)"):
        bounded_log_alpha(ours, 0.1, torch.ones(3))


def test_input_is_not_changed(untouched):
    td = steps()
    with untouched(td):
        for reducer, estimator, options, _ in CRITICS.values():
            estimator(td, GAMMA, ALPHA, **options)
            for reduction in ("mean", "sum", "none"):
                reducer(td, gamma=GAMMA, alpha=ALPHA, reduction=reduction, **options)
    assert not td.is_locked and not td["next"].is_locked
    assert losses.sac_actor_loss(td, alpha=ALPHA).is_locked


def test_a_subset_is_mapped_over():
    td = steps()
    subsets = torch.tensor([[0, 1], [2, 0]])

    def value(subset):
        return total(redq_critic_loss(td, gamma=GAMMA, alpha=ALPHA, subset=subset))

    assert_close(torch.func.vmap(value)(subsets), torch.stack([value(s) for s in subsets]))
