# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule as Probabilistic
from tensordict.nn import ProbabilisticTensorDictSequential as Policy
from tensordict.nn import TensorDictModule as Module
from torch.distributions import Categorical, Independent, Normal
from torch.func import grad
from torch.testing import assert_close
from torchrl.objectives import DiscreteIQLLoss, IQLLoss, TD3BCLoss

import losses
from losses import (
    add_advantage,
    add_iql_advantage,
    advantage_weight,
    awr_loss,
    expectile_loss,
    independent_normal,
    iql_critic_loss,
    iql_value_loss,
    td3_bc_actor_loss,
    total,
)
from tests.losses.torchrl_offline import A, B, D, Given, Mapped, leaves, normal, observed, of_module

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")


# ---- equations


def test_advantage_weight_is_its_equation():
    a = normal(9) * 3
    expected = np.minimum(np.exp(3 * a.numpy()), 100.0)
    assert_close(advantage_weight(a), torch.tensor(expected))
    assert (expected == 100).any() and (expected < 100).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 80.0, 1e5])
def test_a_capped_weight_has_no_slope_but_the_caps(dtype, temperature):
    a = torch.tensor([80.0, 1e30, 1.0, -80.0, -1e30, 0.0, torch.inf, -torch.inf], dtype=dtype)
    t = torch.tensor(temperature, dtype=dtype)
    m = torch.tensor(2.0, dtype=dtype)

    def f(a, t, m):
        return advantage_weight(a, t, m).sum()

    weight = advantage_weight(a, t, m)
    assert weight.dtype == dtype
    assert weight.tolist() == [2, 2, 2, weight[3], 0, 1, 2, 0]
    of_a, of_t, of_m = grad(f, (0, 1, 2))(a[:-2], t, m)
    assert (of_a[:3] == 0).all() and of_a.isfinite().all() and of_t.isfinite() and of_m == 3
    second = grad(lambda a: grad(f)(a, t, m).square().sum())(a[:-2])
    assert second.isfinite().all()


def test_an_endless_cap_caps_nothing():
    a = normal(5)
    assert_close(advantage_weight(a, 2.0, math.inf), (2 * a).exp())


# ---- TD3+BC


def td3_bc(prediction, critic):
    actor = Module(Given(prediction), ["observation"], ["action"])
    q = Module(critic, ["observation", "action"], ["state_action_value"])
    bounds = (-torch.ones(2, dtype=D), torch.ones(2, dtype=D))
    return TD3BCLoss(actor, q, bounds=bounds, alpha=2.5, num_qvalue_nets=2)


def test_td3_bc_is_torchrls():
    td = observed(normal(B, 2, seed=1))
    oracle = td3_bc(normal(B, 2), Mapped(6, 1, 2))
    loss, info = oracle.actor_loss(td.clone())
    prediction = next(iter(oracle.actor_network_params.values(True, True)))
    (expected,) = of_module(loss, [prediction])
    weights = next(iter(oracle.qvalue_network_params.values(True, True))).detach()

    def ours(x):
        q = torch.cat([td["observation"], x], -1) @ weights
        entries = {"state_action_value_actor": q.squeeze(-1).T, "action_actor": x}
        return td3_bc_actor_loss(td.copy().update(entries))

    out = ours(prediction.detach())
    assert_close(out["loss_actor"], loss.detach())
    assert_close(out["bc_loss"], info["bc_loss"])
    assert_close(out["lmbd"], info["lmbd"])
    assert_close(grad(lambda x: total(ours(x)))(prediction.detach()), expected)
    per_step = td3_bc_actor_loss(
        td.copy().update({"state_action_value_actor": normal(B, 2), "action_actor": td["action"]}),
        reduction="none",
    )
    assert (per_step["bc_loss"] == 0).all() and per_step["loss_actor"].shape == (B,)


def actor_td(size=(B,)):
    entries = {
        "state_action_value_actor": normal(*size, 2),
        "action_actor": normal(*size, 2, seed=1),
        "action": normal(*size, 2, seed=2),
    }
    return TensorDict(entries, size)


def test_the_scale_of_the_value_is_made_inside_or_given():
    td = actor_td()
    scale = td["state_action_value_actor"][..., 0].abs().mean()
    inside, outside = td3_bc_actor_loss(td), td3_bc_actor_loss(td, value_scale=scale)
    entry = td3_bc_actor_loss(td.copy().set("value_scale", scale.expand(B)), value_scale=9.0)
    for out in (outside, entry):
        assert_close(out["loss_actor"], inside["loss_actor"])

    def f(q, given):
        hyper = {"value_scale": q[..., 0].abs().mean()} if given else {}
        return total(td3_bc_actor_loss(td.copy().set("state_action_value_actor", q), **hyper))

    q = td["state_action_value_actor"]
    expected = torch.stack([-2.5 / scale / B * torch.ones(B), torch.zeros(B)], -1)
    assert_close(grad(f)(q, False), expected.to(D))
    assert not torch.allclose(grad(f)(q, True), expected.to(D))


def test_the_unrolled_gradient_needs_the_scale_from_outside(central):
    td = actor_td()

    def outer(alpha, given):
        x = td["action_actor"]
        for _ in range(3):

            def inner(y, scale):
                q = (y.sin().sum(-1), td["action"][..., 0])
                moved = td.copy().set("state_action_value_actor", torch.stack(q, -1))
                return total(
                    td3_bc_actor_loss(moved.set("action_actor", y), alpha=alpha, value_scale=scale)
                )

            scale = x.sin().sum(-1).abs().mean() if given else None
            x = x - grad(inner)(x, scale)
        return x.square().sum()

    alpha = torch.tensor(2.0, dtype=D)
    expected = central(lambda a: outer(a, True), alpha)
    assert_close(outer(alpha, True), outer(alpha, False))
    assert_close(grad(outer)(alpha, True), expected, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(grad(outer)(alpha, False), expected)


def test_values_of_zero_have_a_scale_of_one():
    td = actor_td().set("state_action_value_actor", torch.zeros(B, 2, dtype=D))
    out = td3_bc_actor_loss(td)
    assert out["lmbd"] == 2.5 and out["loss_actor"] == out["bc_loss"]
    mask = torch.zeros(B, dtype=torch.bool)
    assert td3_bc_actor_loss(td.set("mask", mask))["loss_actor"].isnan()


def test_the_scale_is_that_of_the_mask():
    td, mask = actor_td(), torch.arange(B) != 2
    spoiled = td.clone().set("mask", mask)
    for key in ("state_action_value_actor", "action_actor", "action"):
        spoiled[key][2] = torch.nan
    expected = td3_bc_actor_loss(td[mask])
    assert_close(td3_bc_actor_loss(spoiled), expected)
    scale = torch.where(mask, 0.7, torch.nan).double()

    def f(q, s):
        td = spoiled.copy().set("state_action_value_actor", q)
        return total(td3_bc_actor_loss(td, value_scale=s))

    for slope in grad(f, (0, 1))(spoiled["state_action_value_actor"], scale):
        assert slope.isfinite().all() and (slope[2] == 0).all()


# ---- IQL


def continuous_iql(temperature=3.0, expectile=0.7):
    policy = Policy(
        Module(Given(normal(B, 2)), ["observation"], ["loc"]),
        Module(Given(normal(B, 2, seed=1).exp()), ["observation"], ["scale"]),
        Probabilistic(
            ["loc", "scale"],
            ["action"],
            distribution_class=lambda loc, scale: Independent(Normal(loc, scale), 1),
        ),
    )
    q = Module(Mapped(6, 1, 2), ["observation", "action"], ["state_action_value"])
    value = Module(Mapped(4, 1, 3), ["observation"], ["state_value"])
    hyper = {"temperature": temperature, "expectile": expectile, "loss_function": "l2"}
    loss = IQLLoss(policy, q, value, num_qvalue_nets=2, **hyper)
    loss.make_value_estimator(gamma=0.9)
    return loss


def discrete_iql(temperature=3.0, expectile=0.7):
    policy = Policy(
        Module(Given(normal(B, A)), ["observation"], ["logits"]),
        Probabilistic(["logits"], ["action"], distribution_class=Categorical),
    )
    q = Module(Mapped(4, A, 2), ["observation"], ["state_action_value"])
    value = Module(Mapped(4, 1, 3), ["observation"], ["state_value"])
    hyper = {"temperature": temperature, "expectile": expectile, "loss_function": "l2"}
    loss = DiscreteIQLLoss(policy, q, value, num_qvalue_nets=2, action_space="categorical", **hyper)
    loss.make_value_estimator(gamma=0.9)
    return loss


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_iql_is_torchrls(kind):
    discrete = kind == "discrete"
    action = torch.arange(B) % A if discrete else normal(B, 2, seed=4)
    td, oracle = observed(action), discrete_iql() if discrete else continuous_iql()
    (w,), (v,) = leaves(oracle.qvalue_network_params), leaves(oracle.value_network_params)
    (w_target,) = leaves(oracle.target_qvalue_network_params)
    policy = leaves(oracle.actor_network_params)
    seen = td["observation"], td["next", "observation"]

    def outputs(policy, w, v):
        def value_of_action(w):  # [2, n, m] critics
            if discrete:
                index = action.unsqueeze(-1).expand(2, B, 1)
                return (seen[0] @ w).gather(-1, index).squeeze(-1).T
            return (torch.cat([seen[0], action], -1) @ w).squeeze(-1).T

        out = td.clone()
        out.update(dict(zip(("logits",) if discrete else ("loc", "scale"), policy, strict=True)))
        out["state_action_value"] = value_of_action(w)
        out["state_action_value_target"] = value_of_action(w_target.detach() + 0.0)
        out["state_value"] = seen[0] @ v
        out["next", "state_value"] = seen[1] @ v
        return out

    dist = Categorical if discrete else independent_normal

    def actor(policy, w, v):
        return awr_loss(add_iql_advantage(outputs(policy, w, v)), dist, temperature=3.0)

    def value(policy, w, v):
        return iql_value_loss(outputs(policy, w, v), expectile=0.7)

    def critic(policy, w, v):
        return iql_critic_loss(outputs(policy, w, v), gamma=0.9)

    given = (tuple(p.detach() for p in policy), w.detach(), v.detach())
    pairs = [
        (oracle.actor_loss(td.clone())[0], actor, policy, 0),
        (oracle.value_loss(td.clone())[0], value, [v], 2),
        (oracle.qvalue_loss(td.clone())[0], critic, [w], 1),
    ]
    for expected, ours, parameters, place in pairs:
        assert_close(total(ours(*given)), expected.detach())
        slopes = grad(lambda *x, f=ours: total(f(*x)), place)(*given)
        slopes = slopes if isinstance(slopes, tuple) else (slopes,)
        for slope, wanted in zip(slopes, of_module(expected, parameters), strict=True):
            assert_close(slope, wanted)
    error = oracle.qvalue_loss(td.clone())[1]["td_error"]  # TorchRL's is squared, per critic
    assert_close(critic(*given)["td_error"], error.sqrt().amax(0))


def iql_td(size=(4, 5)):
    done = normal(*size, seed=9) < -0.5
    entries = {
        "state_action_value": normal(*size, 2),
        "state_action_value_target": normal(*size, 2, seed=1),
        "state_value": normal(*size, seed=2),
        "next": TensorDict(
            {
                "reward": normal(*size, seed=3),
                "state_value": normal(*size, seed=4),
                "done": done,
                "terminated": done,
            },
            size,
        ),
    }
    return TensorDict(entries, size)


def test_the_values_target_is_the_least_critics():
    td = iql_td()
    judged = add_iql_advantage(td)
    inside, outside = iql_value_loss(td), iql_value_loss(judged)
    assert_close(inside, outside)
    assert_close(outside["loss_value"], expectile_loss(judged)["loss_critic"])
    assert_close(inside["target_value"], td["state_action_value_target"].amin(-1).mean())

    def f(q, finished):
        out = td.copy().set("state_action_value_target", q)
        return total(iql_value_loss(add_iql_advantage(out) if finished else out))

    slope = grad(f)
    q = td["state_action_value_target"]
    assert (slope(q, False) == 0).all() and slope(q, True).abs().sum() > 0
    with pytest.raises(ValueError, match="^iql_value_loss: the td has no 'state_action_value_t"):
        iql_value_loss(td.exclude("state_action_value_target"))


def test_the_critics_target_is_add_advantages_without_a_trace():
    td = iql_td()
    inside = iql_critic_loss(td, gamma=0.9)
    assert_close(iql_critic_loss(add_advantage(td, 0.9, 0.0)), inside)
    following = td["next", "state_value"]

    def f(x):
        return total(iql_critic_loss(td.copy().set(("next", "state_value"), x), gamma=0.9))

    assert (grad(f)(following) == 0).all()  # the full stop
    spoiled = td.clone()
    spoiled["next", "state_value"][td["next", "terminated"]] = torch.nan
    assert_close(iql_critic_loss(spoiled, gamma=0.9), inside)


def test_several_steps_discount_by_their_number():
    td = iql_td().set("steps_to_next_obs", torch.full((4, 5), 3))
    found = iql_critic_loss(td, gamma=0.9)
    assert_close(found, iql_critic_loss(td.exclude("steps_to_next_obs"), gamma=0.9**3))


def test_iql_advantage_detaches_nothing():
    td = iql_td()

    def f(q, v):
        moved = td.copy().update({"state_action_value_target": q, "state_value": v})
        return add_iql_advantage(moved)["advantage"].sum()

    of_q, of_v = grad(f, (0, 1))(td["state_action_value_target"], td["state_value"])
    assert (of_q.sum(-1) == 1).all() and (of_v == -1).all()


def awr_td(dtype=D):
    entries = {
        "logits": normal(B, A).to(dtype),
        "action": torch.arange(B) % A,
        "advantage": normal(B, seed=1).to(dtype),
    }
    return TensorDict(entries, [B])


def test_awr_carries_gradient_to_the_advantage(central):
    td = awr_td()

    def f(a):
        return total(awr_loss(td.copy().set("advantage", a), temperature=2.0))

    found = grad(f)(td["advantage"])
    assert_close(found, central(f, td["advantage"]), rtol=1e-6, atol=1e-8)
    assert (found != 0).any()
    out = awr_loss(td, temperature=2.0)
    assert_close(out["advantage_weight"], advantage_weight(td["advantage"], 2.0).mean())


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_awr_with_numbers_of_a_long_run(dtype):
    td = awr_td(dtype)
    td["advantage"] = torch.tensor([80.0, -80.0, 1e4, -1e4, 0.0, 0.0], dtype=dtype)
    td["logits"][3, 0] = -torch.inf  # probability 0 of an action of weight 0
    assert td["action"][3] == 0

    def f(logits, a, t):
        moved = td.copy().update({"logits": logits, "advantage": a})
        return total(awr_loss(moved, temperature=t))

    args = (td["logits"], td["advantage"], torch.tensor(80.0, dtype=dtype))
    assert f(*args).isfinite()
    assert all(s.isfinite().all() for s in grad(f, (0, 1, 2))(*args))
    equal = td.copy().set("advantage", torch.zeros(B, dtype=dtype)).set("logits", normal(B, A))
    expected = losses.bc_loss(equal)["loss_bc"]
    assert_close(awr_loss(equal)["loss_actor"], expected)


# ---- bad input


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: advantage_weight(torch.ones(3), -1.0), ValueError, "temperature is -1.0"),
        (lambda: advantage_weight(torch.ones(3), 1.0, 0.0), ValueError, "max_weight is 0.0"),
        (lambda: advantage_weight(torch.ones(3).long()), TypeError, "advantage has dtype int64"),
        (
            lambda: awr_loss(awr_td().exclude("advantage")),
            ValueError,
            "no 'advantage'.*add_iql_advantage or add_advantage",
        ),
        (
            lambda: iql_critic_loss(iql_td()),
            ValueError,
            "no 'value_target'.*add_advantage.*or give gamma",
        ),
        (
            lambda: iql_critic_loss(add_iql_advantage(iql_td()), gamma=0.9),
            ValueError,
            "gamma is given, but the td already holds 'value_target'",
        ),
        (
            lambda: td3_bc_actor_loss(actor_td(), value_scale=0.0),
            ValueError,
            "value_scale is 0.0, expected a number above 0",
        ),
        (
            lambda: td3_bc_actor_loss(actor_td().set("action", normal(B, 3))),
            ValueError,
            r"action has shape \(6, 3\), expected \[6, 2\] \(from action_actor\)",
        ),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_input_is_not_changed(untouched):
    tds = (actor_td(), awr_td(), iql_td())
    with untouched(*tds):
        td3_bc_actor_loss(tds[0], reduction="none")
        awr_loss(tds[1], reduction="none")
        add_iql_advantage(tds[2])
        iql_critic_loss(tds[2], gamma=0.9, reduction="none")
