# pyright: reportArgumentType=false, reportCallIssue=false
import math

import pytest
import torch
import torch.distributions as td_
from tensordict import TensorDict
from torch.distributions import Categorical
from torch.func import grad, jacrev, vmap
from torch.testing import assert_close
from torchrl.modules.distributions import TanhNormal as PeerTanh

from losses import (
    a2c_loss,
    distribution,
    independent_normal,
    joint,
    kl_divergence,
    masked_categorical,
    policy_gradient_loss,
    ppo,
    tanh_normal,
    total,
)

D = torch.float64
INF = math.inf


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def numbers(*values, dtype=D):
    return torch.tensor(values, dtype=dtype)


# ---- joint


HEADS = joint(steer=independent_normal, gear=Categorical)


def heads(seed=0):
    steer = TensorDict({"loc": draw(4, 2, seed=seed), "scale": draw(4, 2, seed=seed + 1).exp()}, 4)
    return {"steer": steer, "gear": TensorDict({"logits": draw(4, 3, seed=seed + 2)}, 4)}


def test_joint_by_itself():
    p, q = heads(), heads(5)
    dist = HEADS(**p)
    action = TensorDict({"steer": draw(4, 2, seed=9), "gear": torch.tensor([0, 1, 2, 0])}, 4)
    parts = [independent_normal(**p["steer"]), Categorical(logits=p["gear"]["logits"])]
    others = [independent_normal(**q["steer"]), Categorical(logits=q["gear"]["logits"])]
    assert dist.batch_shape == (4,)
    expected = sum(d.log_prob(a) for d, a in zip(parts, action.values(), strict=True))
    assert_close(dist.log_prob(action), expected)
    assert_close(dist.entropy(), sum(d.entropy() for d in parts))
    divergence = sum(td_.kl_divergence(*pair) for pair in zip(parts, others, strict=True))
    assert_close(kl_divergence(dist, HEADS(**q)), divergence)
    unlike = joint(steer=independent_normal)(steer=q["steer"])
    with pytest.raises(ValueError, match="JointDistribution from a JointDistribution.*same heads"):
        kl_divergence(dist, unlike)


def joint_td(**change):
    action = TensorDict({"steer": draw(4, 2, seed=9), "gear": torch.tensor([0, 1, 2, 0])}, 4)
    entries = {"params": TensorDict(heads(), 4), "action": action, "advantage": draw(4), **change}
    return TensorDict(entries, 4)


@pytest.mark.parametrize(
    ("td", "dist_class", "error", "text"),
    [
        (
            joint_td(),
            joint(steer=independent_normal, wheel=Categorical),
            ValueError,
            "the heads are steer, wheel, and params holds steer, gear; 'wheel' is in one",
        ),
        (joint_td(), joint(steer=independent_normal), ValueError, "'gear' is in one of them only"),
        (joint_td(action=draw(4)), HEADS, TypeError, "action is a Tensor, expected a TensorDict"),
        (
            joint_td(action=TensorDict({"steer": draw(4, 2)}, 4)),
            HEADS,
            ValueError,
            "the td has no 'action.gear'",
        ),
        (
            joint_td(action=TensorDict({"steer": draw(4, 2), "gear": draw(4)}, 4)),
            HEADS,
            TypeError,
            r"action.gear of shape \[4\] has dtype float64, expected integers",
        ),
        (
            joint_td(action=TensorDict({"steer": draw(4, 3), "gear": draw(4)}, 4)),
            HEADS,
            ValueError,
            r"action.steer has shape \(4, 3\), expected \[4, 2\] \(from the distribution\)",
        ),
        (
            joint_td(params=TensorDict({"steer": heads()["steer"], "gear": draw(4).long()}, 4)),
            HEADS,
            TypeError,
            "params.gear has dtype int64",
        ),
        (
            joint_td(params=draw(4)),
            HEADS,
            TypeError,
            "params is a Tensor, expected a TensorDict",
        ),
        (joint_td(logits=draw(4, 3)), HEADS, ValueError, "the td holds 'logits' and 'params'"),
        (
            TensorDict({"logits": draw(4, 3), "action": draw(4).long(), "advantage": draw(4)}, 4),
            masked_categorical,
            ValueError,
            "the td has no 'action_mask'",
        ),
        (
            TensorDict(
                {
                    "logits": draw(3),
                    "action_mask": draw(3) > 0,
                    "action": draw(4).long(),
                    "advantage": draw(()),
                },
                [],
            ),
            masked_categorical,
            ValueError,
            "action has shape",
        ),
    ],
)
def test_bad_tds(td, dist_class, error, text):
    with pytest.raises(error, match=text) as caught:
        policy_gradient_loss(td, dist_class)
    assert str(caught.value).startswith("policy_gradient_loss: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_what_stands_in_a_masked_step_has_no_influence(reduction):
    nested = joint(car=HEADS, radio=masked_categorical, wheel=tanh_normal)
    logits, mask = draw(4, 3, seed=20), torch.tensor([True, False, True, True])
    wheel = TensorDict(
        {
            "loc": draw(4, 2),
            "scale": draw(4, 2, seed=1).exp(),
            "low": torch.full((4, 2), -3.0, dtype=D),
            "high": torch.full((4, 2), 5.0, dtype=D),
        },
        4,
    )
    radio = TensorDict({"logits": logits, "action_mask": draw(4, 3, seed=21) > -1}, 4)
    radio["action_mask"][1], radio["action_mask"][:, 0] = False, True
    tree = TensorDict({"car": TensorDict(heads(), 4), "radio": radio, "wheel": wheel}, 4)
    action = joint_td()["action"]
    actions = {
        "car": action,
        "radio": torch.zeros(4, dtype=torch.int64),
        "wheel": draw(4, 2).tanh(),
    }
    steps = {name: draw(4, seed=i) for i, name in enumerate(("state_value", "advantage"))}
    td = TensorDict(
        {"params": tree, "action": TensorDict(actions, 4), "value_target": draw(4), **steps}, 4
    )
    spoiled = td.clone()
    for key in spoiled.keys(True, True):
        x = spoiled[key]
        bad = math.nan if x.is_floating_point() else False if x.dtype == torch.bool else -7
        keep = mask.reshape(4, *[1] * (x.dim() - 1))
        spoiled[key] = torch.where(keep, x, torch.tensor(bad, dtype=x.dtype))
    keys = [k for k in tree.keys(True, True) if tree[k].is_floating_point()]

    def f(td, *values):
        td = td.clone()
        for key, value in zip(keys, values, strict=True):
            td["params"].set(key, value)
        return total(a2c_loss(td.set("mask", mask), nested, reduction=reduction)).sum()

    found = [
        torch.func.grad_and_value(lambda *x, td=td: f(td, *x), tuple(range(len(keys))))(
            *(td["params"][k] for k in keys)
        )
        for td in (td, spoiled)
    ]
    assert_close(found[1], found[0])
    assert all(x.isfinite().all() for x in found[1][0])


def test_bounds_in_a_masked_step_are_apart():
    """TorchRL's class looks at them."""
    mask = torch.tensor([True, False, True, True]).unsqueeze(-1)
    parameters = {"loc": draw(4, 1), "scale": draw(4, 1, seed=1).exp(), "low": -1 - draw(4, 1) ** 2}
    parameters["high"] = parameters["low"] + 4
    spoiled = {k: torch.where(mask, x, math.nan) for k, x in parameters.items()}
    td = TensorDict({"action": 0.5 * draw(4, 1).tanh(), "advantage": draw(4), "mask": mask}, 4)
    found = [
        policy_gradient_loss(td.copy().set("actor_output", TensorDict(x, 4)), dist_class)
        for x, dist_class in (
            (parameters, tanh_normal),
            (spoiled, tanh_normal),
            (spoiled, PeerTanh),
        )
    ]
    for out in found[1:]:
        assert_close(out["loss_objective"], found[0]["loss_objective"])


def test_heads_map_and_their_batch_size_may_be_named():
    td = TensorDict({**heads()}, 4)
    action = joint_td()["action"]
    whole = HEADS(**dict(td.items())).log_prob(action)
    rows = vmap(lambda x, a: HEADS(**dict(x.items())).log_prob(a))(td, action)
    assert_close(rows, whole)


# ---- policies of a td that is nested in the batch


def test_the_behavior_policy_is_read_from_its_own_td():
    entries = {
        "behavior": TensorDict({"params": TensorDict(heads(5), 4)}, 4),
        "action_log_prob": draw(4),
        "state_value": draw(4),
        "value_target": draw(4),
    }
    out = ppo.ppo_kl_penalty_loss(joint_td(**entries), HEADS)
    assert_close(out["kl"], kl_divergence(HEADS(**heads(5)), HEADS(**heads())).mean())


def test_a_behavior_policy_is_masked_as_the_policy_is():
    mask = draw(4, 3, seed=3) > -0.5
    mask[:, 0] = True
    td = TensorDict(
        {
            "logits": draw(4, 3),
            "action_mask": mask,
            "behavior": TensorDict({"logits": draw(4, 3, seed=1)}, 4),
            "action": torch.zeros(4, dtype=torch.int64),
            **{k: draw(4, seed=i) for i, k in enumerate(("action_log_prob", "advantage"))},
            **{k: draw(4, seed=i) for i, k in enumerate(("state_value", "value_target"))},
        },
        4,
    )
    out = ppo.ppo_kl_penalty_loss(td, masked_categorical)
    pair = masked_categorical(draw(4, 3, seed=1), mask), masked_categorical(draw(4, 3), mask)
    assert_close(out["kl"], kl_divergence(*pair).mean())


# ---- without an entropy


def test_no_entropy_is_asked_for_at_a_coefficient_of_zero():
    class NoEntropy:
        def __init__(self, logits):
            self.base = Categorical(logits=logits)

        def log_prob(self, action):
            return self.base.log_prob(action)

    td = TensorDict(
        {"logits": draw(4, 3), "action": torch.tensor([0, 1, 2, 0]), "advantage": draw(4)}, 4
    )
    out = policy_gradient_loss(td, NoEntropy)
    assert_close(out["loss_objective"], policy_gradient_loss(td)["loss_objective"])
    assert out["loss_entropy"] == 0 and "entropy" not in out.keys()
    for coeff in (0.1, torch.tensor(0.0)):
        with pytest.raises(ValueError, match="NoEntropy has no entropy in closed form"):
            policy_gradient_loss(td, NoEntropy, entropy_coeff=coeff)


# ---- probabilities


@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_gradients_of_probabilities_at_zero_and_one(dtype):
    """d log p_a / d v_j = [j = a] / v_a - 1 / sum(v), for v of any sum, zeros included."""
    for v, a in (((1.0, 0.0, 0.0), 0), ((0.25, 0.0, 0.75), 2), ((3.0, 1.0, 0.0), 1)):
        probs = numbers(*v, dtype=dtype)

        def f(x, a=a):
            return distribution(TensorDict({"probs": x}, [])).log_prob(torch.tensor(a))

        wanted = -torch.ones(3, dtype=dtype) / sum(v)
        wanted[a] += 1 / v[a]
        assert_close(grad(f)(probs), wanted)
        hessian = torch.full((3, 3), 1 / sum(v) ** 2, dtype=dtype)
        hessian[a, a] -= 1 / v[a] ** 2
        assert_close(jacrev(grad(f))(probs), hessian)
