# pyright: reportArgumentType=false, reportCallIssue=false
"""The estimators but ``add_advantage``, which test_estimators.py has."""

import pytest
import torch
from tensordict import TensorDict
from torch.func import grad, vmap
from torch.testing import assert_close
from torchrl.data import MultiStep
from torchrl.objectives.value import TD0Estimator
from torchrl.objectives.value import functional as torchrl

from losses import (
    add_lambda_returns,
    add_q_target,
    add_retrace,
    add_td_target,
    add_vtrace,
    independent_normal,
    lambda_returns,
    n_step_returns,
    retrace,
    signed_hyperbolic_pair,
    td_targets,
    vtrace,
)

F64 = torch.float64
CLIPS = {"rho_clip": 0.9, "c_clip": 0.8, "pg_rho_clip": 1.1, "leak": 0.3}
BOTH = {"gamma": 0.9, "lmbda": 0.8}
ESTIMATORS = {
    add_td_target: {"gamma": 0.9},
    add_q_target: {"gamma": 0.9},
    add_lambda_returns: BOTH,
    add_vtrace: {**BOTH, **CLIPS},
    add_retrace: BOTH,
}
every_estimator = pytest.mark.parametrize("add", ESTIMATORS, ids=lambda f: f.__name__)
RESULTS = ("advantage", "value_target")


def written(td):
    return [td[key] for key in RESULTS if key in td.keys()]


@pytest.fixture
def replayed(trajectory):
    """A trajectory of another policy, with action values."""

    def make(*batch, steps=6, seed=0):
        td = trajectory(*batch, steps=steps, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        td["action_log_prob"] = -torch.rand(td.batch_size, generator=draw, dtype=F64) - 0.5
        for key in ("logits", "action_value", "action_value_selector"):
            td["next", key] = torch.randn(*td.batch_size, 3, generator=draw, dtype=F64)
        return td

    return make


def first(td, *keys):
    return [td[key].movedim(-1, 0) for key in keys]


def actions_first(td, *keys):
    return [td[key].movedim(-2, 0) for key in keys]


NEXT = [("next", key) for key in ("reward", "state_value", "done", "terminated")]


# ---- against the equations, and against TorchRL


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_each_is_its_per_step_function(replayed, batch):
    td = replayed(*batch)
    reward, after, done, terminated = first(td, *NEXT)
    value, log_mu, action = first(td, "state_value", "action_log_prob", "action")
    q, logits = actions_first(td, ("next", "action_value"), ("next", "logits"))

    def same(out, **expected):
        for key, x in expected.items():
            assert_close(out[key], x.movedim(0, -1))
        assert set(out.keys()) == {*td.keys(), *expected} and out.is_locked

    same(add_td_target(td, 0.9), value_target=td_targets(reward, after, terminated, 0.9))
    chosen = actions_first(td, ("next", "action_value_selector"))[0].argmax(-1, keepdim=True)
    double = td_targets(reward, q.gather(-1, chosen).squeeze(-1), terminated, 0.9)
    same(add_q_target(td, 0.9), value_target=double)
    single = td.exclude(("next", "action_value_selector"))
    greedy = td_targets(reward, q.amax(-1), terminated, 0.9)
    assert_close(add_q_target(single, 0.9)["value_target"], greedy.movedim(0, -1))
    returns = lambda_returns(reward, after, done, terminated, 0.9, 0.8)
    same(add_lambda_returns(td, 0.9, 0.8), value_target=returns, advantage=returns - value)
    probs = logits.softmax(-1)
    off = retrace(reward, q, probs, action, log_mu, done, terminated, 0.9, 0.8)
    same(add_retrace(td, **BOTH), value_target=off)
    log_pi = td["logits"].log_softmax(-1).movedim(-2, 0).gather(-1, action[..., None]).squeeze(-1)
    args = reward, value, after, done, terminated, log_pi - log_mu, 0.9, 0.8
    out = vtrace(*args, *CLIPS.values())
    same(add_vtrace(td, **BOTH, **CLIPS), value_target=out.value_target, advantage=out.advantage)


def test_td_targets_and_lambda_returns_agree_with_torchrl_in_values_and_gradients(replayed):
    td = replayed(3)
    after = td["next", "state_value"].clone().requires_grad_()
    gamma, lmbda = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.9, 0.8))
    td["next", "state_value"] = after
    steps = [td[key].unsqueeze(-1) for key in NEXT]
    pairs = [
        (
            add_td_target(td, gamma),
            torchrl.td0_return_estimate(gamma, steps[1], steps[0], terminated=steps[3]),
            [after, gamma],
        ),
        (
            add_lambda_returns(td, gamma, lmbda),
            torchrl.td_lambda_return_estimate(gamma, lmbda, steps[1], steps[0], *steps[2:]),
            [after, gamma, lmbda],
        ),
        (
            add_lambda_returns(td, gamma, 1.0),
            torchrl.td1_return_estimate(gamma, steps[1], steps[0], *steps[2:]),
            [after, gamma],
        ),
    ]
    for out, theirs, inputs in pairs:
        ours, theirs = out["value_target"], theirs.squeeze(-1)
        assert_close(ours, theirs)
        found = torch.autograd.grad(ours.sin().sum(), inputs)
        assert_close(found, torch.autograd.grad(theirs.sin().sum(), inputs))


class Passing(torch.nn.Module):
    """A value network whose output is in the td already."""

    in_keys, out_keys = ["state_value"], ["state_value"]

    def forward(self, td, params=None):
        return td


def test_several_steps_in_one(replayed):
    td = replayed(3)
    td["steps_to_next_obs"] = torch.randint(1, 5, (3, 6), generator=torch.manual_seed(0))
    theirs = td.apply(lambda x: x.unsqueeze(-1) if x.shape == (3, 6) else x)
    network = Passing()
    wanted = TD0Estimator(gamma=0.9, value_network=network).value_estimate(
        theirs, next_value=theirs["next", "state_value"]
    )
    found = add_td_target(td, torch.tensor(0.9, dtype=F64))["value_target"]
    assert_close(found, wanted.squeeze(-1))
    td["steps_to_next_obs"] = td["steps_to_next_obs"].unsqueeze(-1)
    assert_close(add_td_target(td, 0.9)["value_target"], found)
    n = td["steps_to_next_obs"].squeeze(-1)
    best = add_q_target(td, 0.9)["value_target"]
    powers = torch.pow(torch.tensor(0.9, dtype=F64), n)
    td = td.exclude("steps_to_next_obs")
    assert_close(add_q_target(td, powers)["value_target"], best)


def test_several_steps_in_one_are_n_step_returns(trajectory):
    """Rewards summed over three steps and the state after them, as a replay buffer has them."""
    td = trajectory(steps=8)
    reward, after = td["next", "reward"], td["next", "state_value"]
    over = torch.zeros(8, dtype=torch.bool)
    expected = n_step_returns(reward, after, over, over, 0.9, 3)
    summed = n_step_returns(reward, 0 * after, over, over, 0.9, 3)
    last = torch.arange(8).add(2).clamp(max=7)
    following = {"reward": summed, "state_value": after[last], "terminated": over}
    entries = {"next": TensorDict(following, 8), "steps_to_next_obs": last - torch.arange(8) + 1}
    assert_close(add_td_target(TensorDict(entries, 8), 0.9)["value_target"], expected)


# ---- every estimator


@every_estimator
def test_trailing_axes_and_names(replayed, add):
    td = replayed(6)  # as many workers as steps
    hyper = ESTIMATORS[add]
    expected = written(add(td, **hyper))
    wide = td.clone()
    for key in ("state_value", "action_log_prob", ("next", "reward"), ("next", "terminated")):
        wide[key] = td[key].unsqueeze(-1)
    assert_close(written(add(wide, **hyper)), expected)
    turned = td.transpose(0, 1).contiguous()
    turned.names = ["time", "worker"]
    assert_close([x.T for x in written(add(turned, **hyper))], expected)


@every_estimator
def test_hyper_parameters_are_data(replayed, central, variant, add):
    """Gradients as keywords together, mapped alone, and as entries of the td, which win."""
    td, hyper = replayed(2, steps=5), ESTIMATORS[add]
    names = list(hyper)

    values = torch.tensor(list(hyper.values()), dtype=F64)

    def plain(h):
        out = add(td, **dict(zip(names, h, strict=True)))
        return sum(x.sin().sum() for x in written(out))

    assert_close(variant(grad(plain))(values), central(plain, values), rtol=1e-6, atol=1e-7)
    for i, name in enumerate(names):

        def alone(x, i=i, name=name):
            out = add(td, **{**hyper, name: x})
            return sum(x.sin().sum() for x in written(out))

        many = torch.stack([values[i], values[i] * 0.9])
        assert_close(vmap(grad(alone))(many), torch.stack([grad(alone)(x) for x in many]))
        full = torch.full(td.batch_size, float(values[i]), dtype=F64)
        entry = td.copy().set(name, full)
        assert_close(written(add(entry, **{**hyper, name: 0.1})), written(add(td, **hyper)))


@every_estimator
def test_nothing_is_detached(replayed, central, add):
    td = replayed(2, steps=4)
    keys = {
        add_td_target: [("next", "state_value"), ("next", "reward")],
        add_q_target: [("next", "action_value"), ("next", "reward")],
        add_lambda_returns: ["state_value", ("next", "state_value"), ("next", "reward")],
        add_vtrace: ["state_value", ("next", "state_value"), "logits", "action_log_prob"],
        add_retrace: [("next", "action_value"), ("next", "logits"), "action_log_prob"],
    }[add]
    for key in keys:

        def f(x, key=key):
            out = add(td.clone().set(key, x), **ESTIMATORS[add])
            return sum(x.sin().sum() for x in written(out))

        assert_close(grad(f)(td[key]), central(f, td[key]), rtol=1e-5, atol=1e-7)


@every_estimator
def test_what_stands_at_masked_and_after_terminated_steps_is_without_influence(replayed, add):
    td, hyper = replayed(3, steps=7), ESTIMATORS[add]
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 4:], mask[1, 2] = False, False
    td["mask"] = mask
    td["next", "done"][0, 3] = td["next", "terminated"][0, 3] = False  # what ends there is the mask
    clean = written(add(td, **hyper))
    gone = td["next", "terminated"] | ~mask
    assert td["next", "terminated"].any()
    spoiled = td.clone()
    for key in ("state_value", "logits", "action_log_prob", ("next", "reward")):
        there = mask.reshape(3, 7, *(1,) * (td[key].dim() - 2))
        spoiled[key] = torch.where(there, td[key], torch.nan)
    for key in ("state_value", "action_value", "action_value_selector", "logits"):
        x = td["next", key]
        there = gone.reshape(3, 7, *(1,) * (x.dim() - 2))
        spoiled["next", key] = torch.where(there, torch.nan, x)
    assert_close(written(add(spoiled, **hyper)), clean)
    assert all((x[~mask] == 0).all() for x in clean)
    keys = [
        "state_value",
        "logits",
        *(("next", k) for k in ("state_value", "logits", "action_value")),
    ]

    def f(xs, gamma):
        with_them = spoiled.clone()
        for key, x in zip(keys, xs, strict=True):
            with_them[key] = x
        out = add(with_them, **{**hyper, "gamma": gamma})
        return sum(x.square().sum() for x in written(out))

    gamma = torch.tensor(0.9, dtype=F64)
    of_td, of_gamma = grad(f, (0, 1))([spoiled[key] for key in keys], gamma)
    assert of_gamma.isfinite() and all(x.isfinite().all() for x in of_td)
    cut = written(add(td.exclude("mask")[0, :4], **hyper))
    assert_close([x[0, :4] for x in clean], cut)  # as if it ended there


@every_estimator
def test_input_is_not_changed(replayed, untouched, add):
    td, locked = replayed(3), replayed(3).lock_()
    with untouched(td, locked):
        add(td, **ESTIMATORS[add])
        add(locked, **ESTIMATORS[add])
    assert not td.is_locked and not td["next"].is_locked


@pytest.mark.parametrize("add", [add_lambda_returns, add_vtrace], ids=lambda f: f.__name__)
def test_normalized_advantages(replayed, add):
    td, hyper = replayed(3), ESTIMATORS[add]
    td["mask"] = mask = torch.arange(6).expand(3, 6) < 4
    plain, out = (add(td, **hyper, normalize=n, eps=0.1) for n in (False, True))
    raw = plain["advantage"][mask]
    expected = (raw - raw.mean()) / (raw.std(correction=0) + 0.1)
    assert_close(out["advantage"][mask], expected)
    assert_close(out["value_target"], plain["value_target"])


@pytest.mark.parametrize(
    "add", [add_td_target, add_q_target, add_lambda_returns, add_retrace], ids=lambda f: f.__name__
)
def test_transformed_values(replayed, add):
    td, tx, hyper = replayed(3), signed_hyperbolic_pair, ESTIMATORS[add]
    flat = td.clone()
    for key in ("state_value", "action_value"):
        flat["next", key] = tx.inverse(td["next", key])
    plain = add(flat, **hyper)["value_target"]
    assert_close(add(td, **hyper, tx=tx)["value_target"], tx.apply(plain))


# ---- what is particular


def test_of_equal_values_the_first_counts(trajectory):
    td = trajectory(steps=1)
    td["next", "done"] = td["next", "terminated"] = torch.tensor([False])
    td["next", "action_value"] = torch.tensor([[1.0, 3.0, 3.0]], dtype=F64).requires_grad_()
    target = add_q_target(td, 0.5)["value_target"]
    assert_close(target, td["next", "reward"] + 1.5)
    (slope,) = torch.autograd.grad(target.sum(), td["next", "action_value"])
    assert slope.tolist() == [[0.0, 0.5, 0.0]]


def test_a_batch_without_time(trajectory):
    td = trajectory(steps=5)
    whole = add_td_target(td, 0.9)["value_target"]
    assert_close(add_td_target(td[3], 0.9)["value_target"], whole[3])
    td.names = ["worker"]
    assert_close(add_td_target(td, 0.9)["value_target"], whole)


def test_vtrace_of_a_continuous_policy_with_large_log_ratios(replayed):
    td = replayed(2).exclude("logits", "action")
    draw = torch.Generator().manual_seed(0)
    for key in ("loc", "scale", "action"):
        td[key] = torch.rand(2, 6, 4, generator=draw, dtype=F64) + 0.5
    td["action_log_prob"] = torch.tensor([80.0, -80.0, -1e3, 0.0, -5.0, 1e3], dtype=F64).expand(
        2, 6
    )

    def f(loc):
        out = add_vtrace(td.clone().set("loc", loc), independent_normal, gamma=0.9)
        return sum(x.sum() for x in written(out))

    assert f(td["loc"]).isfinite() and grad(f)(td["loc"]).isfinite().all()


def test_retrace_of_probabilities_of_zero_and_one(replayed):
    td = replayed(2).exclude(("next", "logits"))
    td["next", "probs"] = torch.eye(3, dtype=F64)[td["next", "action_value"].argmax(-1)]
    td["action_log_prob"] = td["action_log_prob"] - 80
    best = add_retrace(td, **BOTH)

    def f(probs):
        with_it = td.clone().set(("next", "probs"), probs)
        return add_retrace(with_it, **BOTH)["value_target"].sum()

    assert best["value_target"].isfinite().all()
    assert grad(f)(td["next", "probs"]).isfinite().all()


# ---- bad input


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda td: add_td_target(td.exclude(("next", "state_value")), 0.9),
            ValueError,
            "add_td_target: the td has no 'next.state_value'.*running the critic",
        ),
        (lambda td: add_td_target(td), ValueError, "add_td_target: gamma is neither given"),
        (
            lambda td: add_td_target(td.set("steps_to_next_obs", torch.ones(4, 6)), 0.9),
            TypeError,
            "add_td_target: steps_to_next_obs has dtype float32, expected integers",
        ),
        (
            lambda td: add_q_target(td.set("steps_to_next_obs", torch.ones(4, 6, 2).int()), 0.9),
            ValueError,
            r"add_q_target: steps_to_next_obs has shape \(4, 6, 2\)",
        ),
        (
            lambda td: add_q_target(td.exclude(("next", "action_value")), 0.9),
            ValueError,
            "add_q_target: the td has no 'next.action_value'.*running the Q-network on",
        ),
        (
            lambda td: add_q_target(
                td.set(("next", "action_value_selector"), torch.zeros(4, 6, 2)), 0.9
            ),
            ValueError,
            r"action_value_selector has shape \(4, 6, 2\), expected \[4, 6, 3\] \(from next.action",
        ),
        (lambda td: add_lambda_returns(td, 0.9), ValueError, "lmbda is neither given nor"),
        (
            lambda td: add_vtrace(td.exclude("action_log_prob"), gamma=0.9),
            ValueError,
            "add_vtrace: the td has no 'action_log_prob'.*the policy that took it",
        ),
        (lambda td: add_vtrace(td), ValueError, "add_vtrace: gamma is neither given"),
        (
            lambda td: add_vtrace(td, gamma=0.9, rho_clip=-1.0),
            ValueError,
            "add_vtrace: rho_clip is -1.0, expected at least 0",
        ),
        (
            lambda td: add_vtrace(td, gamma=0.9, leak=2),
            ValueError,
            "add_vtrace: leak is 2, expected a number from 0 to 1",
        ),
        (
            lambda td: add_retrace(td.exclude(("next", "logits")), gamma=0.9),
            ValueError,
            "add_retrace: the td has no 'next.logits'",
        ),
        (
            lambda td: add_retrace(td.set(("next", "logits"), torch.zeros(4, 6, 2)), gamma=0.9),
            ValueError,
            r"next.logits has shape \(4, 6, 2\), expected \[4, 6, 3\] \(from next.action",
        ),
        (
            lambda td: add_retrace(
                td.set(("next", "loc"), torch.zeros(4, 6, 3))
                .set(("next", "scale"), torch.ones(4, 6, 3))
                .exclude(("next", "logits")),
                independent_normal,
                gamma=0.9,
            ),
            ValueError,
            "add_retrace: dist_class gives an Independent, expected a categorical",
        ),
        (
            lambda td: add_retrace(td[0, 0], gamma=0.9),
            ValueError,
            r"add_retrace: the td has batch size \[\], expected \[\*B, T\] with time last",
        ),
    ],
)
def test_bad_input(replayed, call, error, text):
    with pytest.raises(error, match=text) as caught:
        call(replayed(4))
    assert "\n" not in str(caught.value)


def test_the_output_of_multi_step_as_it_is():
    """TorchRL's writes the sum of n rewards, n, and gamma^n: the entry is not raised again."""
    td = TensorDict(
        {
            "collector": TensorDict({"traj_ids": torch.zeros(1, 5, dtype=torch.int64)}, [1, 5]),
            "next": TensorDict(
                {
                    "reward": torch.arange(1.0, 6.0, dtype=F64).reshape(1, 5, 1),
                    "state_value": torch.linspace(-1, 1, 5, dtype=F64).reshape(1, 5, 1),
                    "done": torch.zeros(1, 5, 1, dtype=torch.bool),
                    "terminated": torch.zeros(1, 5, 1, dtype=torch.bool),
                },
                [1, 5],
            ),
        },
        [1, 5],
    )
    out = MultiStep(gamma=0.9, n_steps=3)(td.clone())
    assert out["steps_to_next_obs"].max() == 3 and "gamma" in out.keys()
    n = out["steps_to_next_obs"].squeeze(-1)
    value = out["next", "state_value"].squeeze(-1)
    expected = out["next", "reward"].squeeze(-1) + 0.9 ** n.to(F64) * value
    flat = out.copy().set("gamma", out["gamma"].reshape(n.shape).to(F64))
    for found in (flat, out.exclude("gamma")):
        assert_close(add_td_target(found, 0.9)["value_target"], expected)
