# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportOptionalOperand=false
import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule as Probabilistic
from tensordict.nn import ProbabilisticTensorDictSequential as Policy
from tensordict.nn import TensorDictModule as Module
from torch.distributions import Independent, Normal
from torch.func import grad
from torch.testing import assert_close
from torchrl.modules import QValueActor
from torchrl.objectives import CQLLoss, DiscreteCQLLoss
from torchrl.objectives.cql import CQLLoss as TorchCQL

import losses
from losses import (
    cql_alpha_prime_loss,
    cql_loss,
    cql_penalty,
    discrete_cql_loss,
    discrete_cql_penalty,
    independent_normal,
    total,
)
from tests.losses.torchrl_offline import A, B, D, Mapped, leaves, normal, observed, of_module

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")


def test_cql_penalty_is_its_equation():
    q, many, density = (normal(*shape, seed=i) for i, shape in enumerate([(3,), (3, 5), (3, 5)]))
    x = (many.numpy() - density.numpy()) / 0.7
    expected = 0.7 * np.log(np.exp(x).sum(-1)) - q.numpy()
    assert_close(cql_penalty(q, many, density, 0.7), torch.tensor(expected))
    each = torch.tensor([0.5, 1.0, 2.0], dtype=D)
    rows = torch.stack([cql_penalty(q[i], many[i], density[i], each[i]) for i in range(3)])
    assert_close(cql_penalty(q, many, density, each), rows)


def test_discrete_cql_penalty_is_a_log_likelihood():
    q, action = normal(B, A), torch.arange(B) % A
    expected = torch.nn.functional.cross_entropy(q, action, reduction="none")
    assert_close(discrete_cql_penalty(q, action), expected)
    one_hot = torch.nn.functional.one_hot(action, A)
    assert_close(discrete_cql_penalty(q, one_hot), expected)
    large = discrete_cql_penalty(1e6 * q, action)
    assert large.isfinite().all()
    assert grad(lambda x: discrete_cql_penalty(x, action).sum())(1e6 * q).isfinite().all()


def cql_td(size=(B,), members=2, samples=4):
    entries = {
        "state_action_value": normal(*size, members),
        "action_value_samples": normal(*size, members, samples, seed=1),
        "action_log_density_samples": normal(*size, samples, seed=2),
    }
    return TensorDict(entries, size)


def torch_cql(temperature, weight, num_random):
    policy = Policy(
        Module(Mapped(4, 2, 1), ["observation"], ["loc"]),
        Module(lambda x: x[..., :2].exp(), ["observation"], ["scale"]),
        Probabilistic(
            ["loc", "scale"],
            ["action"],
            distribution_class=lambda loc, scale: Independent(Normal(loc, scale), 1),
        ),
    )
    q = Module(Mapped(6, 1, 2), ["observation", "action"], ["state_action_value"])
    hyper = {"temperature": temperature, "min_q_weight": weight, "num_random": num_random}
    return CQLLoss(policy, q, **hyper, target_entropy=-2.0, with_lagrange=True, lagrange_thresh=0.3)


def drawn_actions(td, num_random):
    """What TorchRL's loss would draw of the policy, drawn beforehand."""
    return [
        (
            TensorDict(
                {"observation": seen.repeat_interleave(num_random, 0), "action": action},
                [len(action)],
            ),
            density,
        )
        for seen, action, density in (
            (td["observation"], normal(B * num_random, 2, seed=3), normal(B * num_random, seed=4)),
            (
                td["next", "observation"],
                normal(B * num_random, 2, seed=5),
                normal(B * num_random, seed=6),
            ),
        )
    ]


def test_cql_is_torchrls(monkeypatch):
    td, oracle = observed(normal(B, 2, seed=8)), torch_cql(0.7, 2.0, 1)
    (w,) = leaves(oracle.qvalue_network_params)
    current, after = drawn_actions(td, 1)
    answers = iter([current, after])
    monkeypatch.setattr(TorchCQL, "_get_policy_actions", lambda *a, **k: next(answers))
    seen = td["observation"]
    value = torch.cat([seen, td["action"]], -1) @ w  # [2, B, 1]
    work = td.clone().update({"pred_q1": value[0], "pred_q2": value[1]})
    torch.manual_seed(0)
    expected = oracle.cql_loss(work)[0]
    expected_prime = oracle.alpha_prime_loss(work)[0]
    torch.manual_seed(0)
    random = torch.empty(B, 2, dtype=D).uniform_(-1, 1)
    sets = [
        (seen, random, torch.full((B,), math.log(0.25), dtype=D)),
        (after[0]["observation"], after[0]["action"], after[1]),
        (seen, current[0]["action"], current[1]),
    ]

    def entries(w):
        q = [(torch.cat([s, a], -1) @ w).squeeze(-1).T for s, a, _ in sets]  # 3 x [B, 2]
        data = (torch.cat([seen, td["action"]], -1) @ w).squeeze(-1).T
        made = {
            "state_action_value": data,
            "action_value_samples": torch.stack(q, -1),
            "action_log_density_samples": torch.stack([d for *_, d in sets], -1),
        }
        return TensorDict(made, [B])

    def ours(w):
        return total(cql_loss(entries(w), min_q_weight=2.0, temperature=0.7))

    assert_close(ours(w.detach()), expected.detach())
    assert_close(grad(ours)(w.detach()), of_module(expected, [w])[0])
    hyper = {"min_q_weight": 2.0, "temperature": 0.7, "threshold": 0.3}

    def prime(log_alpha):
        return total(cql_alpha_prime_loss(entries(w), alpha_prime=log_alpha.exp(), **hyper))

    log_alpha = oracle.log_alpha_prime
    assert_close(prime(log_alpha.detach().to(D)).detach(), expected_prime.detach().to(D))
    found = grad(lambda x: prime(x).to(D))(log_alpha.detach().to(D)).detach()
    assert_close(found, of_module(expected_prime, [log_alpha])[0].to(D))


def test_all_actions_of_a_state_are_in_one_sum():
    """TorchRL's sum is over one of each of three kinds, then averaged over num_random."""
    td = cql_td(samples=6)
    whole = cql_loss(td, reduction="none")["cql_penalty"]
    x = td["action_value_samples"] - td["action_log_density_samples"].unsqueeze(-2)
    assert_close(whole, (x.logsumexp(-1) - td["state_action_value"]).sum(-1))
    of_three = x.unflatten(-1, (3, 2)).logsumexp(-2).mean(-1) - td["state_action_value"]
    assert not torch.allclose(whole, of_three.sum(-1))


def test_cqls_actor_warm_up_is_behavior_cloning():
    td, oracle = observed(normal(B, 2, seed=8)), torch_cql(1.0, 1.0, 1)
    torch.manual_seed(0)
    expected = oracle.actor_bc_loss(td.clone())[0]
    with oracle.actor_network_params.to_module(oracle.actor_network):
        torch.manual_seed(0)
        dist = oracle.actor_network.get_dist(td.clone())
        log_prob = dist.log_prob(dist.rsample())
    out = td.clone().update({"loc": dist.base_dist.loc, "scale": dist.base_dist.scale})
    out["action_log_prob_actor"] = log_prob
    found = losses.bc_loss(out, independent_normal, entropy_coeff=1.0)
    assert_close(total(found), expected)


def test_one_critic_needs_no_axis_and_densities_may_lack():
    td = cql_td(members=1)
    flat = td.copy().update(
        {k: td[k].squeeze(1) for k in ("state_action_value", "action_value_samples")}
    )
    assert_close(cql_loss(flat), cql_loss(td))
    q = td["action_value_samples"].squeeze(1)
    plain = cql_loss(td.exclude("action_log_density_samples"), temperature=0.7)
    expected = 0.7 * (q / 0.7).logsumexp(-1) - td["state_action_value"].squeeze(-1)
    assert_close(plain["loss_cql"], expected.mean())


def test_a_bound_instead_of_a_weight():
    td = cql_td()
    alpha = torch.tensor(0.6, dtype=D)
    slope = grad(lambda a: total(cql_alpha_prime_loss(td, alpha_prime=a, threshold=0.3)))(alpha)
    assert_close(slope, 0.3 - cql_loss(td)["cql_penalty"] / 2)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_discrete_cql_is_torchrls(scale):
    td = observed(torch.arange(B) % A)
    net = QValueActor(Mapped(4, A, 2), in_keys=["observation"], action_space="categorical")
    net[0].module.w.data.mul_(scale)
    oracle = DiscreteCQLLoss(net, action_space="categorical", loss_function="l2")
    oracle.make_value_estimator(gamma=0.9)
    out = oracle(td.clone())
    (w,) = leaves(oracle.value_network_params)

    def ours(w):
        return discrete_cql_loss(td.copy().set("action_value", td["observation"] @ w))

    assert_close(ours(w.detach())["loss_cql"], out["loss_cql"].detach())
    slope = grad(lambda w: total(ours(w)))(w.detach())
    assert_close(slope, of_module(out["loss_cql"], [w])[0])
    value = (td["observation"] @ w).detach()
    chosen = value.gather(-1, td["action"].unsqueeze(-1)).squeeze(-1)
    next_value = (td["next", "observation"] @ w).detach().amax(-1)
    target = (
        td["next", "reward"].squeeze(-1) + 0.9 * next_value * ~td["next", "terminated"].squeeze()
    )
    half = 0.5 * (chosen - target).square().mean()  # TorchRL's error has a factor of 1/2
    assert_close(out["loss_qvalue"].detach(), half)


# ---- bad input


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: cql_penalty(torch.ones(3), torch.ones(4, 5)),
            ValueError,
            r"action_value_samples has shape \(4, 5\), expected \[3, S\] \(from state_action_value",
        ),
        (lambda: cql_penalty(torch.ones(3), torch.ones(3)), ValueError, r"expected \[3, S\]"),
        (
            lambda: cql_penalty(torch.ones(3), torch.ones(3, 5), torch.ones(2)),
            ValueError,
            "log_density has shape",
        ),
        (
            lambda: cql_penalty(torch.ones(3), torch.ones(3, 5), temperature=0.0),
            ValueError,
            "temperature is 0.0",
        ),
        (
            lambda: discrete_cql_penalty(torch.ones(3, 2), torch.full((3,), 7)),
            ValueError,
            "action holds an index outside of 0 to 1",
        ),
        (
            lambda: discrete_cql_penalty(torch.tensor(1.0), torch.tensor(0)),
            ValueError,
            "expected \\[..., A\\]",
        ),
        (
            lambda: cql_loss(cql_td().set("action_value_samples", normal(B, 4))),
            ValueError,
            r"cql_loss: action_value_samples has shape \(6, 4\), expected \[6, 2, S\]",
        ),
        (
            lambda: cql_loss(cql_td().set("action_log_density_samples", normal(B, 3))),
            ValueError,
            r"expected \[6, 4\] \(from action_value_samples\)",
        ),
        (lambda: cql_loss(cql_td(), temperature=0.0), ValueError, "cql_loss: temperature is 0.0"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_input_is_not_changed(untouched):
    td = cql_td()
    with untouched(td):
        cql_loss(td, reduction="none")
        cql_alpha_prime_loss(td)
