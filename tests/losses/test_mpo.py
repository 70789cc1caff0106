# pyright: reportArgumentType=false, reportCallIssue=false
import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.func import grad, vmap
from torch.testing import assert_close

from losses import (
    LagrangePenalty,
    add_mpo_weight,
    add_vmpo_weight,
    lagrange_dual,
    lagrange_penalty,
    mpo_dual_loss,
    mpo_loss,
    mpo_temperature_dual,
    mpo_weights,
    total,
    vmpo_dual_loss,
    vmpo_loss,
    vmpo_temperature_dual,
    vmpo_weights,
)

D = torch.float64
SIZE, S = (3, 5), 4


def normal(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


@pytest.fixture
def sampled():
    entries = {
        "action_log_prob_samples": -normal(*SIZE, S, seed=1).abs(),
        "action_value_samples": normal(*SIZE, S, seed=2),
        "kl_mean": normal(*SIZE, seed=3).abs(),
        "kl_std": normal(*SIZE, 3, seed=4).abs(),
    }
    return TensorDict(entries, SIZE)


@pytest.fixture
def steps():
    entries = {
        "logits": normal(*SIZE, 3, seed=1),
        "action": torch.arange(15).reshape(SIZE) % 3,
        "advantage": normal(*SIZE, seed=2),
        "kl_mean": normal(*SIZE, seed=3).abs(),
        "kl_std": normal(*SIZE, 3, seed=4).abs(),
    }
    return TensorDict(entries, SIZE)


def constraints(alpha=0.4, each=(0.3, 0.2, 0.6)):
    each = each if isinstance(each, torch.Tensor) else torch.tensor(each, dtype=D)
    return {
        "kl_mean": LagrangePenalty(alpha, 0.05),
        "kl_std": LagrangePenalty(each, 0.2, per_dimension=True),
    }


# ---- the E-step


def test_weights_and_dual_are_their_equations():
    q = np.random.default_rng(0).normal(size=(3, S))
    e = np.exp(q / 0.7)
    assert_close(mpo_weights(torch.tensor(q), 0.7), torch.tensor(e / e.sum(-1, keepdims=True)))
    g = 0.7 * 0.1 + 0.7 * np.log(e.mean(-1))
    assert_close(mpo_temperature_dual(torch.tensor(q), 0.7, 0.1), torch.tensor(g))
    each = torch.tensor([0.5, 1.0, 2.0], dtype=D)
    rows = [mpo_weights(torch.tensor(q[i]), each[i]) for i in range(3)]
    assert_close(mpo_weights(torch.tensor(q), each), torch.stack(rows))


def test_the_best_temperature_spends_the_bound():
    """At the dual's minimum the KL of the weights from equal ones is epsilon."""
    q, epsilon = normal(1000), 0.1
    low, high = torch.tensor(0.01, dtype=D), torch.tensor(100.0, dtype=D)
    slope = grad(lambda t: mpo_temperature_dual(q, t, epsilon))
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    weight = mpo_weights(q, low)
    assert_close((weight * (weight * 1000).log()).sum(), torch.tensor(epsilon, dtype=D))


def test_the_slope_of_the_dual_in_the_values_is_the_weight():
    q = normal(S)
    assert_close(grad(lambda q: mpo_temperature_dual(q, 0.7, 0.1))(q), mpo_weights(q, 0.7))
    a = normal(9)
    dual = grad(lambda a: vmpo_temperature_dual(a, 0.7, 0.1))(a)
    assert_close(dual, vmpo_weights(a, 0.7))


def loop(advantage, temperature, fraction, ratio, mask):
    """V-MPO's weights and dual, in numpy; the latter for epsilon 0.1."""
    a, rho = advantage.numpy().ravel(), ratio.numpy().ravel()
    kept = mask.numpy().ravel()
    k = max(1, int(fraction * kept.sum()))
    lowest = sorted(a[kept])[-k]
    chosen = kept & (a >= lowest)
    e = np.where(chosen, rho * np.exp(a / temperature), 0.0)
    dual = temperature * (0.1 + np.log(e.sum() / chosen.sum()))
    return torch.tensor(e / e.sum()).reshape(advantage.shape), torch.tensor(dual)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.99, 1.0])
def test_the_e_step_of_vmpo_is_its_equations(fraction, masked):
    advantage, ratio = normal(*SIZE, seed=2), normal(*SIZE, seed=3).exp()
    mask = normal(*SIZE, seed=4) < 0.8 if masked else torch.ones(SIZE, dtype=torch.bool)
    weight, dual = loop(advantage, 0.7, fraction, ratio, mask)
    given = (ratio, mask) if masked else (ratio,)
    assert_close(vmpo_weights(advantage, 0.7, fraction, *given), weight)
    assert_close(vmpo_temperature_dual(advantage, 0.7, 0.1, fraction, *given), dual)


def test_ties_are_all_in():
    a = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=D)
    assert_close(vmpo_weights(a, 1.0, 0.25), torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=D) / 3)
    equal = torch.zeros(6, dtype=D)
    assert_close(vmpo_weights(equal, 0.7), torch.full_like(equal, 1 / 6))
    assert_close(mpo_weights(equal, 0.7), torch.full_like(equal, 1 / 6))
    for f in (vmpo_temperature_dual, mpo_temperature_dual):
        value, slope = f(equal, 0.7, 0.1), grad(f, 1)(equal, torch.tensor(0.7, dtype=D), 0.1)
        assert_close(value, torch.tensor(0.07, dtype=D))
        assert_close(slope, torch.tensor(0.1, dtype=D))


def test_masked_steps_are_not_counted_in_the_top_half():
    """Rlax counts its restarting steps in the number of which it takes the fraction."""
    a = torch.tensor([4.0, 3.0, 2.0, 1.0, 9.0, 9.0], dtype=D)
    mask = torch.tensor([True] * 4 + [False] * 2)
    found = vmpo_weights(a, 1.0, mask=mask)
    assert_close(found[:4], vmpo_weights(a[:4], 1.0))
    assert ((found > 0) == torch.tensor([True, True, False, False, False, False])).all()


def test_at_least_one_step_is_in():
    """Rlax raises here."""
    a = torch.tensor([1.0, 2.0, 0.0], dtype=D)
    assert_close(vmpo_weights(a, 1.0, 0.1), torch.tensor([0.0, 1.0, 0.0], dtype=D))
    assert_close(vmpo_weights(a[:1], 1.0), torch.ones(1, dtype=D))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_advantages_and_values(dtype):
    for scale in (80.0, 1e4, -1e4):
        x = torch.tensor([scale, 0.5 * scale, 0.1 * scale, 0.0], dtype=dtype)
        t = torch.tensor(0.5, dtype=dtype)
        for f in (mpo_weights, vmpo_weights):
            assert f(x, t).sum() == 1 and f(x, t).dtype == dtype
            slopes = grad(lambda x, t, f=f: f(x, t).square().sum(), (0, 1))(x, t)
            assert all(s.isfinite().all() for s in slopes)
        for f in (mpo_temperature_dual, vmpo_temperature_dual):
            assert f(x, t, 0.1).isfinite() and f(x, t, 0.1).dtype == dtype
            assert all(s.isfinite().all() for s in grad(f, (0, 1))(x, t, 0.1))


# ---- constraints


def test_penalty_and_dual_are_their_equations():
    kl, alpha = normal(5, 3).abs(), torch.tensor([0.3, 0.2, 0.6], dtype=D)
    assert_close(lagrange_penalty(kl, 0.4), 0.4 * kl)
    assert_close(lagrange_dual(kl, 0.4, 0.1), 0.4 * (0.1 - kl))
    assert_close(lagrange_penalty(kl, alpha, per_dimension=True), kl @ alpha)
    assert_close(lagrange_dual(kl, alpha, 0.1, per_dimension=True), (0.1 - kl) @ alpha)


def test_the_multiplier_grows_while_the_bound_is_broken():
    slope = grad(lambda a: lagrange_dual(torch.tensor(0.3, dtype=D), a, 0.1))
    assert slope(torch.tensor(1.0, dtype=D)) < 0


# ---- the reducers


def test_mpo_is_its_equations(sampled):
    td, bounds = sampled, constraints()
    out = mpo_loss(td, temperature=0.7, constraints=bounds)
    weight = (td["action_value_samples"] / 0.7).softmax(-1)
    expected = -(weight * td["action_log_prob_samples"]).sum(-1)
    assert_close(out["loss_actor"], expected.mean())
    alpha = torch.tensor([0.3, 0.2, 0.6], dtype=D)
    assert_close(out["loss_kl"], (0.4 * td["kl_mean"] + td["kl_std"] @ alpha).mean())
    assert set(out.keys()) == {"loss_actor", "loss_kl"} and out.is_locked
    dual = mpo_dual_loss(td, temperature=0.7, epsilon=0.1, constraints=bounds)
    log_mean = (td["action_value_samples"] / 0.7).exp().mean(-1).log()
    assert_close(dual["loss_temperature"], 0.7 * (0.1 + log_mean.mean()))
    each = 0.4 * (0.05 - td["kl_mean"]) + (0.2 - td["kl_std"]) @ alpha
    assert_close(dual["loss_alpha"], each.mean())
    assert set(mpo_loss(td, temperature=0.7).keys()) == {"loss_actor"}
    assert set(mpo_dual_loss(td, temperature=0.7).keys()) == {"loss_temperature"}
    finished = mpo_loss(add_mpo_weight(td, 0.7), constraints=bounds)
    assert_close(total(finished), total(out))


def test_vmpo_is_its_equations(steps):
    td = steps
    weight, dual = loop(td["advantage"], 0.7, 0.5, torch.ones(SIZE), torch.ones(SIZE).bool())
    log_prob = td["logits"].log_softmax(-1).gather(-1, td["action"].unsqueeze(-1)).squeeze(-1)
    out = vmpo_loss(td, temperature=0.7, constraints=constraints())
    assert_close(out["loss_actor"], -(weight * log_prob).sum())
    per_step = vmpo_loss(td, temperature=0.7, reduction="none")
    assert_close(per_step["loss_actor"], -15 * weight * log_prob)
    assert_close(total(vmpo_loss(add_vmpo_weight(td, 0.7), constraints=constraints())), total(out))
    assert_close(vmpo_dual_loss(td, temperature=0.7)["loss_temperature"], dual)


def test_a_masked_batch_is_the_batch_of_its_steps(steps):
    mask = torch.arange(15).reshape(SIZE) % 4 != 1
    spoiled = steps.clone().set("mask", mask)
    for key in ("advantage", "kl_mean", "kl_std", "logits"):
        shape = (*SIZE, *(1,) * (steps[key].dim() - 2))
        spoiled[key] = torch.where(mask.reshape(shape), steps[key], torch.nan)
    per_step = torch.where(mask, 0.7, torch.nan).double()
    for reducer in (vmpo_loss, vmpo_dual_loss):
        expected = reducer(steps[mask], temperature=0.7, constraints=constraints())
        assert_close(reducer(spoiled, temperature=0.7, constraints=constraints()), expected)
        assert_close(reducer(spoiled, temperature=per_step, constraints=constraints()), expected)

        def f(a, t, reducer=reducer):
            td = spoiled.copy().set("advantage", a)
            return total(reducer(td, temperature=t, constraints=constraints()))

        for slope in grad(f, (0, 1))(spoiled["advantage"], per_step):
            assert slope.isfinite().all() and (slope[~mask] == 0).all()


def test_one_loss_of_rlax_is_two_here(sampled):
    """Rlax stops at the weights and the KLs for the duals, and at the duals for the policy."""
    hyper = tuple(torch.tensor(x, dtype=D) for x in (0.7, 0.4, (0.3, 0.2, 0.6)))

    def rlax_like(log_prob, q, kl, kls, temperature, alpha, each):
        weight = (q / temperature).softmax(-1).detach()
        log_mean = (q / temperature).logsumexp(-1) - math.log(S)
        policy = -(weight * log_prob).sum(-1) + temperature * (0.1 + log_mean)
        policy = policy + alpha.detach() * kl + kls @ each.detach()
        dual = alpha * (0.05 - kl.detach()) + (0.2 - kls.detach()) @ each
        return (policy + dual).mean()

    def td_of(log_prob, q, kl, kls):
        entries = {"action_log_prob_samples": log_prob, "action_value_samples": q}
        return TensorDict({**entries, "kl_mean": kl, "kl_std": kls}, SIZE)

    def primal(*args):
        bounds = constraints(*args[5:])
        return total(mpo_loss(td_of(*args[:4]), temperature=args[4], constraints=bounds))

    def dual(*args):
        bounds = constraints(*args[5:])
        hyper = {"temperature": args[4], "epsilon": 0.1, "constraints": bounds}
        return total(mpo_dual_loss(td_of(*args[:4]), **hyper))

    args = (*sampled.values(), *hyper)
    assert_close(primal(*args) + dual(*args), rlax_like(*args))
    expected = grad(rlax_like, tuple(range(7)))(*args)
    of_policy, of_dual = (grad(f, tuple(range(7)))(*args) for f in (primal, dual))
    for i in (0, 2, 3):
        assert_close(of_policy[i], expected[i])
    for i in (1, 4, 5, 6):
        assert_close(of_dual[i], expected[i])
    assert (of_policy[1] == 0).all()  # the full stop


def test_two_updates_of_both_sets_against_central_differences(sampled, central, variant):
    """The policy is a scale of its outputs; both sets descend, and the outer loss sees all."""
    td = sampled

    def outputs(p):
        moved = td["action_log_prob_samples"] * p
        return td.copy().set("action_log_prob_samples", moved).set("kl_mean", td["kl_mean"] * p * p)

    def outer(h):
        p, dual = h[0], h[1:]
        for _ in range(2):

            def of_policy(x, d=dual):
                out = add_mpo_weight(outputs(x), d[0])
                return total(mpo_loss(out, constraints={"kl_mean": LagrangePenalty(d[1], 0.1)}))

            def of_dual(d, p=p):
                bound = {"kl_mean": LagrangePenalty(d[1], d[2])}
                return total(mpo_dual_loss(outputs(p), temperature=d[0], constraints=bound))

            p, dual = p - 0.3 * grad(of_policy)(p), dual - 0.1 * grad(of_dual)(dual)
        return p.square() + dual[0] * dual[1]

    h = torch.tensor([1.1, 0.7, 0.4, 0.05], dtype=D)
    found = variant(grad(outer))(h)
    assert_close(found, central(outer, h), rtol=1e-6, atol=1e-8)
    assert (found.abs() > 1e-6).all()


def test_gradient_of_the_advantage_reaches_through_the_weights(steps, central):
    def f(a):
        return total(vmpo_loss(steps.copy().set("advantage", a), temperature=0.7))

    found = grad(f)(steps["advantage"])
    assert_close(found, central(f, steps["advantage"]), rtol=1e-6, atol=1e-8)
    assert found.abs().sum() > 0


def test_probabilities_of_zero(sampled, steps):
    """An action of weight 0 may have probability 0; one of positive weight costs infinity."""
    td = sampled.exclude("action_value_samples")
    weight = torch.eye(S, dtype=D)[0].expand(*SIZE, S)
    log_prob = td["action_log_prob_samples"].clone()
    log_prob[..., 1:] = -torch.inf

    def f(log_prob, weight):
        entries = {"action_log_prob_samples": log_prob, "policy_weight": weight}
        return total(mpo_loss(td.copy().update(entries)))

    assert_close(f(log_prob, weight), -log_prob[..., 0].mean())
    slopes = grad(f, (0, 1))(log_prob, weight)
    assert all(s.isfinite().all() for s in slopes)
    assert f(log_prob.roll(1, -1), weight) == torch.inf
    assert grad(f)(log_prob.roll(1, -1), weight).isfinite().all()
    logits = torch.zeros(*SIZE, 3, dtype=D)
    logits[..., 2] = -torch.inf
    one_hot = steps.copy().update({"logits": logits, "action": torch.full(SIZE, 2)})
    one_hot["policy_weight"] = torch.zeros(SIZE, dtype=D)
    assert vmpo_loss(one_hot)["loss_actor"] == 0


def test_mapped_over_a_constraint(sampled):
    many = torch.tensor([0.1, 0.4, 0.9], dtype=D)

    def f(alpha):
        return total(mpo_loss(sampled, temperature=0.7, constraints=constraints(alpha)))

    assert_close(vmap(f)(many), torch.stack([f(a) for a in many]))
    assert_close(vmap(grad(f))(many), torch.stack([grad(f)(a) for a in many]))


# ---- bad input


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: mpo_weights(torch.tensor(1.0), 1.0), ValueError, r"shape \(\), expected \[..., S"),
        (lambda: mpo_weights(torch.ones(3), 0.0), ValueError, "temperature is 0.0.*above 0"),
        (lambda: mpo_weights(torch.ones(3), -1), ValueError, "temperature is -1.*above 0"),
        (lambda: mpo_weights(torch.ones(2, 3), torch.ones(3)), ValueError, "temperature has shape"),
        (lambda: mpo_weights(torch.ones(3).int(), 1.0), TypeError, "has dtype int32"),
        (lambda: mpo_temperature_dual(torch.ones(3), 1.0, -0.1), ValueError, "epsilon is -0.1"),
        (lambda: vmpo_weights(torch.ones(3), 1.0, 0.0), ValueError, "top_k_fraction is 0.0"),
        (lambda: vmpo_weights(torch.ones(3), 1.0, 1.5), ValueError, "top_k_fraction is 1.5"),
        (
            lambda: vmpo_weights(torch.ones(3), 1.0, importance_weight=torch.ones(2)),
            ValueError,
            r"importance_weight has shape \(2,\), expected \(3,\) \(from advantage\)",
        ),
        (
            lambda: vmpo_weights(torch.ones(3), 1.0, mask=torch.ones(3)),
            TypeError,
            "mask has dtype float32, expected bool",
        ),
        (lambda: lagrange_penalty(torch.ones(3), -0.1), ValueError, "alpha is -0.1"),
        (
            lambda: lagrange_dual(torch.ones(2, 3), torch.ones(2), 0.1),
            ValueError,
            r"alpha has shape \(2,\).*\(2, 3\) \(from kl\)",
        ),
        (
            lambda: lagrange_penalty(torch.tensor(1.0), 0.1, per_dimension=True),
            ValueError,
            "components last",
        ),
    ],
)
def test_bad_input_of_equations(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "hyper", "error", "text"),
    [
        (None, {}, ValueError, "no 'policy_weight'.*add_mpo_weight, or give a temperature"),
        (None, {"temperature": 0.0}, ValueError, "temperature is 0.0, expected a number above 0"),
        (
            lambda td: add_mpo_weight(td, 0.7),
            {"temperature": 0.7},
            ValueError,
            "temperature is given, but the td already holds 'policy_weight'",
        ),
        (
            lambda td: td.exclude("action_value_samples"),
            {"temperature": 0.7},
            ValueError,
            "no 'action_value_samples'",
        ),
        (
            lambda td: td.set("action_value_samples", normal(*SIZE, 3)),
            {"temperature": 0.7},
            ValueError,
            r"expected \[3, 5, 4\] \(from action_log_prob_samples\)",
        ),
        (
            None,
            {"temperature": 0.7, "constraints": {"kl": LagrangePenalty(0.1, 0.1)}},
            ValueError,
            "no 'kl'; its keys are .*kl_mean, kl_std",
        ),
        (
            None,
            {"temperature": 0.7, "constraints": {"kl_mean": (0.1, 0.1)}},
            TypeError,
            r"constraints\['kl_mean'\] is a tuple, expected a LagrangePenalty",
        ),
        (
            None,
            {"temperature": 0.7, "constraints": [LagrangePenalty(0.1, 0.1)]},
            TypeError,
            "constraints is a list, expected a mapping",
        ),
        (
            None,
            {"temperature": 0.7, "constraints": {"kl_mean": LagrangePenalty(-1.0, 0.1)}},
            ValueError,
            r"constraints\['kl_mean'\].alpha is -1.0, expected at least 0",
        ),
        (
            None,
            {"temperature": 0.7, "constraints": {"kl_std": LagrangePenalty(0.1, 0.1)}},
            ValueError,
            r"kl_std has shape \(3, 5, 3\), expected \[3, 5\]",
        ),
    ],
)
def test_bad_input_of_mpo_loss(sampled, change, hyper, error, text):
    with pytest.raises(error, match=f"^mpo_loss: .*{text}") as caught:
        mpo_loss(change(sampled) if change else sampled, **hyper)
    assert "\n" not in str(caught.value)


def test_input_is_not_changed(sampled, steps, untouched):
    with untouched(sampled, steps):
        for reduction in ("mean", "sum", "none"):
            both = {"temperature": 0.7, "constraints": constraints(), "reduction": reduction}
            for reducer, td in ((mpo_loss, sampled), (mpo_dual_loss, sampled)):
                reducer(td, **both)
            for reducer, td in ((vmpo_loss, steps), (vmpo_dual_loss, steps)):
                reducer(td, **both)
        add_mpo_weight(sampled, 0.7)
        add_vmpo_weight(steps, 0.7)
    assert "policy_weight" not in sampled.keys() and not steps.is_locked
