# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportOptionalOperand=false
"""Soft actor-critics against closed forms, and hard numbers."""

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
    add_truncated_quantile_target,
    bounded_log_alpha,
    discrete_sac_actor_loss,
    discrete_sac_critic_loss,
    discrete_sac_temperature_loss,
    masked_categorical,
    redq_actor_loss,
    redq_critic_loss,
    sac_actor_loss,
    sac_critic_loss,
    sac_temperature_loss,
    sac_value_loss,
    total,
    tqc_actor_loss,
    tqc_critic_loss,
)
from tests.losses.test_actor_critic import steps as hard_steps

D = torch.float64
GAMMA, ALPHA, ENTROPY = 0.9, 0.3, -1.5


def number(x):
    return torch.tensor(x, dtype=D)


def steps(members=3, actions=4, quantiles=5, seed=0):
    """A td ``[2, 4]`` with all that soft actor-critics read."""
    td = hard_steps(members, seed=seed)
    draw = torch.Generator().manual_seed(seed + 1)

    def normal(*more):
        return torch.randn(2, 4, *more, generator=draw, dtype=D)

    td["action"] = torch.randint(actions, (2, 4), generator=draw)
    td["state_action_quantiles_actor"] = normal(members, quantiles)
    td["state_value"] = normal()
    for key in ("action_log_prob_actor",):
        td[key], td["next", key] = normal(), normal()
    td["logits"], td["next", "logits"] = normal(actions), normal(actions)
    td["action_value"] = normal(members, actions)
    td["next", "action_value"] = normal(members, actions)
    td["state_action_quantiles"] = normal(members, quantiles)
    td["next", "state_action_quantiles"] = normal(members, quantiles)
    return td


def changed(td, **entries):
    """A copy with other entries; next_x stands for ("next", x)."""
    out = td.clone()
    for key, value in entries.items():
        out.set(("next", key[5:]) if key.startswith("next_") else key, value)
    return out


CRITICS = {
    "sac": (
        sac_critic_loss,
        add_soft_target,
        {},
        ("state_action_value", "next_state_action_value", "next_action_log_prob_actor"),
    ),
    "redq": (
        redq_critic_loss,
        add_soft_target,
        {"subset": torch.tensor([2, 0])},
        ("state_action_value", "next_state_action_value", "next_action_log_prob_actor"),
    ),
    "discrete": (
        discrete_sac_critic_loss,
        add_expected_soft_target,
        {},
        ("action_value", "next_action_value", "next_logits"),
    ),
    "tqc": (
        tqc_critic_loss,
        add_truncated_quantile_target,
        {"drop": 1},
        ("state_action_quantiles", "next_state_action_quantiles", "next_action_log_prob_actor"),
    ),
}
every_critic = pytest.mark.parametrize("name", CRITICS)


def entry(td, key):
    return td.get(("next", key[5:]) if key.startswith("next_") else key)


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
