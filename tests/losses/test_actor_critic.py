# pyright: reportArgumentType=false, reportCallIssue=false
"""Deterministic actor-critics against TorchRL's modules, closed forms, and hard numbers."""

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch.func import grad
from torch.testing import assert_close
from torchrl.objectives import DDPGLoss, TD3Loss

from losses import (
    add_action_target,
    add_min_target,
    ddpg_actor_loss,
    ddpg_critic_loss,
    deterministic_policy_gradient_loss,
    td3_actor_loss,
    td3_critic_loss,
    td3_target_action,
    total,
)
from tests.losses import torchrl_agents as agents

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")

D = torch.float64
GAMMA = 0.9


def smooth(value, target):
    return F.smooth_l1_loss(value, target, reduction="none")


def steps(members=3, size=(2, 4), seed=0):
    """A td with what critics read."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*more):
        return torch.randn(*size, *more, generator=draw, dtype=D)

    following = {
        "reward": normal(),
        "terminated": torch.rand(*size, generator=draw) < 0.4,
        "state_action_value": normal(members),
    }
    entries = {
        "state_action_value": normal(members),
        "state_action_value_actor": normal(members),
        "action_actor": normal(2),
        "action_gradient": normal(2),
        "next": TensorDict(following, size),
    }
    return TensorDict(entries, size)


def single(td):
    keys = ("state_action_value", "state_action_value_actor", ("next", "state_action_value"))
    for key in keys:
        td.set(key, td.get(key)[..., 0])
    return td


# ---- TorchRL


@pytest.mark.parametrize("several", [False, True], ids=["one step", "n steps"])
def test_ddpg_is_torchrls(several):
    torch.manual_seed(0)
    actor, critic = agents.policy(probabilistic=False), agents.critic()
    theirs = DDPGLoss(actor, critic, delay_actor=True, delay_value=True)
    theirs.make_value_estimator(gamma=GAMMA)
    agents.part_ways(theirs.target_actor_network_params, theirs.target_value_network_params)
    batch = agents.transitions()
    batch = batch if several else batch.exclude("steps_to_next_obs")
    wanted = theirs(batch.copy())

    mu, q = theirs.actor_network_params, theirs.value_network_params
    td = batch.copy()
    td["state_action_value"] = agents.run(critic, q, td)["state_action_value"]
    now = td.copy().set("action", agents.run(actor, mu, td)["action"])
    held = agents.run(critic, q.detach(), now)
    td["state_action_value_actor"] = held["state_action_value"]
    after = agents.run(actor, theirs.target_actor_network_params, td["next"])
    after = agents.run(critic, theirs.target_value_network_params, after)
    td["next"] = td["next"].copy().set("state_action_value", after["state_action_value"])

    found = ddpg_critic_loss(td, gamma=GAMMA)
    assert_close(found["loss_critic"], wanted["loss_value"])
    for key in ("pred_value", "target_value"):
        assert_close(found[key], wanted[key].mean())
        assert_close(found[f"{key}_max"], wanted[f"{key}_max"])
    assert_close(found["td_error"].square(), wanted["td_error"])  # theirs is the square
    assert_close(agents.slopes(found["loss_critic"], q), agents.slopes(wanted["loss_value"], q))
    assert_close(ddpg_critic_loss(add_min_target(td, GAMMA))["loss_critic"], wanted["loss_value"])
    policy = ddpg_actor_loss(td)["loss_actor"]
    assert_close(policy, wanted["loss_actor"])
    assert_close(agents.slopes(policy, mu), agents.slopes(wanted["loss_actor"], mu))


def test_td3_is_torchrls():
    torch.manual_seed(0)
    actor, critic = agents.policy(probabilistic=False), agents.critic()
    bounds = (torch.tensor([-0.5, -0.6], dtype=D), torch.tensor([0.4, 0.5], dtype=D))
    theirs = TD3Loss(actor, critic, bounds=bounds, policy_noise=0.5, noise_clip=0.3)
    theirs.make_value_estimator(gamma=GAMMA)
    agents.part_ways(
        theirs.target_actor_network_params,
        theirs.target_qvalue_network_params,
        theirs.qvalue_network_params,
    )
    batch = agents.transitions()
    torch.manual_seed(3)
    wanted = theirs(batch.copy())
    torch.manual_seed(3)
    noise = torch.randn_like(batch["action"])

    mu, q = theirs.actor_network_params, theirs.qvalue_network_params
    td = batch.copy()
    td["state_action_value"] = agents.ensemble(critic, q, td).squeeze(-1)
    now = td.copy().set("action", agents.run(actor, mu, td)["action"])
    td["state_action_value_actor"] = agents.ensemble(critic, q.detach(), now).squeeze(-1)
    target_action = agents.run(actor, theirs.target_actor_network_params, td["next"])["action"]
    smoothed = td3_target_action(target_action, noise, *bounds, sigma=0.5, noise_clip=0.3)
    after = td["next"].copy().set("action", smoothed)
    value = agents.ensemble(critic, theirs.target_qvalue_network_params, after).squeeze(-1)
    td["next"] = td["next"].copy().set("state_action_value", value)

    found = td3_critic_loss(td, gamma=GAMMA, distance=smooth)  # theirs by default
    assert_close(found["loss_critic"], wanted["loss_qvalue"])
    for key in ("pred_value", "target_value"):
        assert_close(found[key], wanted[key].mean())
    square = (td["state_action_value"] - add_min_target(td, GAMMA)["value_target"][:, None]) ** 2
    assert_close(found["td_error"], square.amax(-1).sqrt())
    assert_close(agents.slopes(found["loss_critic"], q), agents.slopes(wanted["loss_qvalue"], q))
    policy = td3_actor_loss(td)["loss_actor"]
    assert_close(policy, wanted["loss_actor"])
    assert_close(agents.slopes(policy, mu), agents.slopes(wanted["loss_actor"], mu))


# ---- closed forms


def test_critics_are_their_equations():
    td = steps()
    target = torch.zeros(2, 4, dtype=D)
    losses = torch.zeros(2, 4, dtype=D)
    for i in range(2):
        for t in range(4):
            follows = 0.0 if td["next", "terminated"][i, t] else 1.0
            least = min(td["next", "state_action_value"][i, t].tolist())
            target[i, t] = td["next", "reward"][i, t] + GAMMA * follows * least
            for q in td["state_action_value"][i, t].tolist():
                losses[i, t] += (q - target[i, t]) ** 2
    out = td3_critic_loss(td, gamma=GAMMA, reduction="none")
    assert_close(out["loss_critic"], losses)
    assert_close(add_min_target(td, GAMMA)["value_target"], target)
    error = (td["state_action_value"] - target.unsqueeze(-1)).abs()
    assert_close(out["td_error"], error.amax(-1))
    assert_close(out["pred_value"], td["state_action_value"].mean(-1))
    assert_close(out["target_value"], target)
    assert_close(td3_critic_loss(td, gamma=GAMMA)["td_error"], error.amax(-1))
    assert_close(td3_actor_loss(td)["loss_actor"], -td["state_action_value_actor"][..., 0].mean())
    one = single(td.clone())
    assert_close(
        ddpg_critic_loss(one, gamma=GAMMA)["loss_critic"],
        td3_critic_loss(one, gamma=GAMMA)["loss_critic"],
    )


def test_rewards_of_several_steps():
    td = steps()
    n = torch.tensor([[1, 2, 3, 1], [4, 1, 1, 2]])
    td["steps_to_next_obs"] = n
    found = add_min_target(td, GAMMA)["value_target"]
    assert_close(found, add_min_target(td.exclude("steps_to_next_obs"), GAMMA**n)["value_target"])
    assert_close(add_min_target(td, torch.tensor(GAMMA, dtype=D))["value_target"], found)
    entry = td.copy().set("gamma", torch.full((2, 4), GAMMA, dtype=D) ** n)  # as it stands
    assert_close(add_min_target(entry)["value_target"], found)
    least = torch.where(td["next", "terminated"], 0.0, td["next", "state_action_value"].amin(-1))
    slope = grad(lambda g: add_min_target(td, g)["value_target"].sum())(torch.tensor(0.9, dtype=D))
    assert_close(slope, (n * 0.9 ** (n - 1) * least).sum())
    zero = grad(lambda g: add_min_target(td, g)["value_target"].sum())(torch.zeros((), dtype=D))
    assert_close(zero, least[n == 1].sum())
    with pytest.raises(TypeError, match="^add_min_target: steps_to_next_obs has dtype float64"):
        add_min_target(td.copy().set("steps_to_next_obs", n.double()), GAMMA)


def test_deterministic_policy_gradient_is_the_slope_of_q():
    td = steps()

    def loss(action, clipping=None):
        out = td.copy().set("action_actor", action)
        return deterministic_policy_gradient_loss(out, dqda_clipping=clipping, reduction="sum")

    action, slope = td["action_actor"], td["action_gradient"]
    out = loss(action)
    assert_close(out["loss_actor"], 0.5 * slope.square().sum())
    assert_close(grad(lambda a: total(loss(a)))(action), -slope)
    norm = slope.norm(dim=-1, keepdim=True)
    clipped = slope * (1.5 / norm).clamp(max=1.0)
    assert 0 < (norm > 1.5).sum() < norm.numel()
    assert_close(grad(lambda a: total(loss(a, 1.5)))(action), -clipped)
    assert_close(add_action_target(td, 1.5)["action_target"], action + clipped)
    finished = deterministic_policy_gradient_loss(add_action_target(td, 1.5), reduction="sum")
    assert_close(total(finished), total(loss(action, 1.5)))
    entry = td.copy().set("dqda_clipping", torch.full((2, 4), 1.5, dtype=D))
    assert_close(add_action_target(entry)["action_target"], action + clipped)


def test_a_slope_of_zero_is_not_clipped():
    td = steps()
    for c in (0.0, 0.5, 3.0):

        def value(slope, c=c):
            out = td.copy().set("action_gradient", slope)
            return add_action_target(out, c)["action_target"].sum()

        zero = torch.zeros(2, 4, 2, dtype=D)
        assert_close(grad(value)(zero), torch.ones_like(zero))
        assert grad(lambda x, v=value: grad(v)(x).sin().sum())(zero).isfinite().all()
        assert grad(value)(td["action_gradient"]).isfinite().all()


def test_target_action_is_held_to_its_bounds():
    action = torch.tensor([[0.0, 0.9], [-0.9, 0.0]], dtype=D)
    noise = torch.tensor([[9.0, 9.0], [-1.0, -9.0]], dtype=D)
    found = td3_target_action(action, noise, -1.0, 1.0)
    assert_close(found, torch.tensor([[0.5, 1.0], [-1.0, -0.5]], dtype=D))
    low = torch.tensor([-0.3, -0.2], dtype=D)
    found = td3_target_action(action, noise, low, 1.0)
    assert_close(found, torch.tensor([[0.5, 1.0], [-0.3, -0.2]], dtype=D))
    half = td3_target_action(action.bfloat16(), noise.bfloat16(), low, 1.0, sigma=low.abs())
    assert half.dtype == torch.bfloat16
    at_bound = grad(lambda a: td3_target_action(a, torch.zeros_like(a), -0.9, 0.9).sum())(action)
    assert_close(at_bound, torch.ones_like(action))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"noise": torch.zeros(3)}, ValueError, r"noise has shape \(3,\), expected \(4, 2\)"),
        ({"noise": torch.zeros(4, 2).long()}, TypeError, "noise has dtype int64"),
        ({"low": torch.zeros(3)}, ValueError, r"low has shape \(3,\), expected one that broad"),
        ({"low": 1.0}, ValueError, "low is 1 and high 0.5, expected low <= high"),
        ({"sigma": -1.0}, ValueError, "sigma is -1.0, expected at least 0"),
        ({"noise_clip": float("nan")}, ValueError, "noise_clip is nan"),
        ({"high": "1"}, TypeError, "high is a str"),
    ],
)
def test_bad_arguments_of_a_target_action(change, error, text):
    arguments = {"noise": torch.zeros(4, 2), "low": -0.5, "high": 0.5, **change}
    with pytest.raises(error, match=f"^td3_target_action: {text}"):
        td3_target_action(torch.zeros(4, 2), **arguments)


# ---- the two stops


def test_targets_made_inside_stop_at_what_follows():
    td = steps()
    key = ("next", "state_action_value")

    def loss(x, after, gamma):
        out = td.clone().set("state_action_value", x).set(key, after)
        return total(td3_critic_loss(out, gamma=gamma))

    def outside(x, after, gamma):
        out = add_min_target(td.clone().set(key, after), gamma)
        return total(td3_critic_loss(out.copy().set("state_action_value", x)))

    args = (td["state_action_value"], td[key], torch.tensor(GAMMA, dtype=D))
    inside, whole = grad(loss, (0, 1, 2))(*args), grad(outside, (0, 1, 2))(*args)
    assert_close(inside[0], whole[0])
    assert_close(inside[2], whole[2])
    assert (inside[1] == 0).all() and whole[1].abs().sum() > 0


def test_a_tie_shares_the_gradient():
    td = steps()
    td["next", "terminated"] = torch.zeros(2, 4, dtype=torch.bool)

    def value(after):
        out = td.clone().set(("next", "state_action_value"), after)
        return add_min_target(out, 1.0)["value_target"].sum()

    tied = torch.tensor([1.0, 1.0, 2.0], dtype=D).expand(2, 4, 3)
    assert_close(grad(value)(tied), torch.tensor([0.5, 0.5, 0.0], dtype=D).expand(2, 4, 3))


# ---- hard numbers


@pytest.mark.parametrize("reducer", [ddpg_critic_loss, td3_critic_loss])
def test_nan_after_the_end_is_cut(reducer):
    td = steps() if reducer is td3_critic_loss else single(steps())
    td["next", "terminated"] = torch.ones(2, 4, dtype=torch.bool)
    key = ("next", "state_action_value")
    td[key] = torch.full_like(td[key], torch.nan)
    gamma = torch.tensor(GAMMA, dtype=D)

    def inside(x, g):
        return total(reducer(td.clone().set("state_action_value", x), gamma=g))

    def outside(x, after, g):
        out = add_min_target(td.clone().set(key, after), g)
        return total(reducer(out.copy().set("state_action_value", x)))

    value = td["state_action_value"]
    assert_close(inside(value, gamma), td3_critic_loss(td, gamma=0.0)["loss_critic"])
    for found in grad(inside, (0, 1))(value, gamma):
        assert found.isfinite().all()
    for found in grad(outside, (0, 1, 2))(value, td[key], gamma):
        assert found.isfinite().all()


def test_masked_steps_where_targets_are_made_inside():
    td = steps()
    mask = torch.tensor([[True, False, True, True], [True, True, False, True]])
    td["steps_to_next_obs"] = torch.where(mask, 2, -9)
    clean = td3_critic_loss(td.copy().set("mask", mask), gamma=0.0)
    spoiled = td.clone().set("mask", mask)
    for key in ("state_action_value", ("next", "state_action_value")):
        spoiled.set(key, torch.where(mask.unsqueeze(-1), td.get(key), torch.nan))
    spoiled["next", "reward"] = torch.where(mask, td["next", "reward"], torch.nan)

    def value(g):
        return total(td3_critic_loss(spoiled, gamma=g))

    zero = torch.zeros((), dtype=D)
    assert_close(value(zero), total(clean))
    assert grad(value)(zero).isfinite() and grad(grad(value))(zero).isfinite()


def test_an_ensemble_of_one():
    td = single(steps())
    expected = ddpg_critic_loss(td, gamma=GAMMA)
    for key in ("state_action_value", ("next", "state_action_value")):
        td.set(key, td.get(key).unsqueeze(-1))
    for reducer in (ddpg_critic_loss, td3_critic_loss):
        assert_close(reducer(td, gamma=GAMMA)["loss_critic"], expected["loss_critic"])
        assert_close(reducer(td, gamma=GAMMA)["td_error"], expected["td_error"])


# ---- bad input


@pytest.mark.parametrize(
    ("change", "hyper", "error", "text"),
    [
        (lambda td: td, {}, ValueError, "td has no 'value_target'.*add_min_target.*give gamma"),
        (
            lambda td: add_min_target(td, 0.9),
            {"gamma": 0.9},
            ValueError,
            "gamma is given, but the td already holds 'value_target'",
        ),
        (lambda td: td, {"gamma": 1.1}, ValueError, "gamma is 1.1, expected a number from 0 to 1"),
        (
            lambda td: td.exclude(("next", "state_action_value")),
            {"gamma": 0.9},
            ValueError,
            "td has no 'next.state_action_value'.*target critics",
        ),
        (
            lambda td: td.exclude(("next", "terminated")),
            {"gamma": 0.9},
            ValueError,
            "td has no 'next.terminated'",
        ),
        (
            lambda td: td.set("state_action_value", torch.zeros(2, 4, 3, 1)),
            {"gamma": 0.9},
            ValueError,
            r"state_action_value has shape \(2, 4, 3, 1\), expected \[2, 4\] or \[2, 4, N\]",
        ),
        (
            lambda td: td,
            {"gamma": 0.9, "distance": F.mse_loss},
            ValueError,
            r"distance's result has shape \(\), expected \[2, 4, 3\]",
        ),
    ],
)
def test_bad_input(change, hyper, error, text):
    with pytest.raises(error, match=f"^td3_critic_loss: .*{text}") as caught:
        td3_critic_loss(change(steps()), **hyper)
    assert "\n" not in str(caught.value)


def test_clipping_beside_a_finished_action_raises():
    text = "dqda_clipping is given, but the td already holds 'action_target'"
    with pytest.raises(ValueError, match=f"^deterministic_policy_gradient_loss: {text}"):
        deterministic_policy_gradient_loss(add_action_target(steps()), dqda_clipping=0.5)


def test_input_is_not_changed(untouched):
    td = steps()
    with untouched(td):
        for reduction in ("mean", "none"):
            td3_critic_loss(td, gamma=GAMMA, reduction=reduction)
            deterministic_policy_gradient_loss(td, reduction=reduction)
        add_min_target(td, GAMMA)
    assert not td.is_locked
