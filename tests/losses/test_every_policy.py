# pyright: reportArgumentType=false, reportCallIssue=false
"""Every policy loss takes every distribution of actions.

A loss on a distribution is held against the same loss on ``Known``, which is given the
log-probability and the entropy that torch.distributions computes from the parameters.
"""

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributions as td_
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import CompositeDistribution
from torch.distributions import Categorical
from torch.func import grad, vmap
from torch.testing import assert_close
from torchrl.modules.distributions import MaskedCategorical as PeerMasked
from torchrl.modules.distributions import TanhNormal as PeerTanh

import losses
from losses import independent_normal, joint, masked_categorical, tanh_normal, total

SIZE = (2, 5)
D = torch.float64


def draw(name, *shape):
    seed = int.from_bytes(name.encode(), "big") % 2**31
    return torch.randn(*SIZE, *shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def index(name, n):
    return (draw(name, n)).argmax(-1)


class Known:
    """A distribution that is given its answers."""

    def __init__(self, log_prob, entropy):
        self.known = log_prob, entropy

    def log_prob(self, action):
        return self.known[0]

    def entropy(self):
        return self.known[1]


@dataclass
class Policy:
    """A distribution: its parameters as a td has them, an action, and what torch makes of both.

    ``peer`` gives, from parameters and action, the log-probability and the entropy per step.
    ``raw`` marks classes of other libraries whose own code does not map or compile.
    """

    name: str
    dist_class: Any
    parameters: Any
    action: Any
    peer: Any
    extra: Any = dict
    raw: bool = False


def categorical(p, a):
    dist = Categorical(logits=p["logits"], validate_args=False)
    return dist.log_prob(a), dist.entropy()


def by_probs(p, a):
    return categorical({"logits": p.log()}, a)


def normal(p, a):
    dist = td_.Independent(td_.Normal(p["loc"], p["scale"], validate_args=False), 1)
    return dist.log_prob(a), dist.entropy()


def squashed(p, a, low=-2.0, high=1.0):
    """Quadrature on a grid for the entropy, the textbook's change of variables for the density."""
    loc, scale = p["loc"], p["scale"]
    half, center = (high - low) / 2, (high + low) / 2
    base = td_.Normal(loc, scale, validate_args=False)
    y = (a - center) / half
    log_prob = base.log_prob(y.atanh()) - (half * (1 - y.square())).log()
    x = torch.linspace(-9, 9, 2001, dtype=D)
    z = loc.unsqueeze(-1) + scale.unsqueeze(-1) * x
    density = (-x.square() / 2).exp() / (2 * torch.pi) ** 0.5
    log_cosh = z.abs() + (-2 * z.abs()).exp().log1p() - torch.tensor(2.0, dtype=D).log()
    stretch = torch.trapezoid(-2 * density * log_cosh, x) + torch.as_tensor(half, dtype=D).log()
    return log_prob.sum(-1), (base.entropy() + stretch).sum(-1)


MASK = draw("mask", 4) > -0.5
MASK[..., 0] = True
ALLOWED = torch.where(MASK, draw("choice", 4), -torch.inf).argmax(-1)


def masked(p, a):
    # only the allowed actions, spelled out
    e = p["logits"].exp() * MASK
    probs = e / e.sum(-1, keepdim=True)
    logs = torch.where(MASK, torch.where(MASK, probs, 1.0).log(), 0.0)
    return logs.gather(-1, a.unsqueeze(-1)).squeeze(-1), -(probs * logs).sum(-1)


def normals(name, d):
    return {"loc": draw(f"{name} loc", d), "scale": draw(f"{name} scale", d).mul(0.4).exp()}


def td(**entries):
    return TensorDict(entries, SIZE)


HEADS = {"steer": td(**normals("steer", 2)), "gear": td(logits=draw("gear", 3))}
TREE = {"steer": draw("steer action", 2), "gear": index("gear action", 3)}


def two_heads(p, a):
    pairs = zip(normal(p["steer"], a["steer"]), categorical(p["gear"], a["gear"]), strict=True)
    return tuple(x + y for x, y in pairs)


def three_heads(p, a):
    pairs = (
        two_heads(p["car"], a["car"]),
        masked(p["radio"], a["radio"]),
    )
    return tuple(x + y for x, y in zip(*pairs, strict=True))


def params(**entries):
    return {"params": td(**entries)}


def inside(name):
    return lambda p, a: lambda peer: peer(p[name], a)


CAR = {"car": td(**HEADS), "radio": td(logits=draw("radio", 4))}
TANH = functools.partial(tanh_normal, low=-2.0, high=1.0)
BOUNDED = -0.5 + 1.45 * draw("bounded", 3).tanh()
INDEX = index("action", 4)
LOGITS = {"logits": draw("logits", 4)}
NORMAL = normals("normal", 3)
REAL = draw("real", 3)


def of_heads(p, a):
    return two_heads(p["params"], a)


POLICIES = [
    Policy("index", Categorical, LOGITS, INDEX, categorical),
    Policy("column", Categorical, LOGITS, INDEX.unsqueeze(-1), lambda p, a: categorical(p, INDEX)),
    Policy("one_hot", Categorical, LOGITS, F.one_hot(INDEX, 4), lambda p, a: categorical(p, INDEX)),
    Policy(
        "probs",
        Categorical,
        {"probs": LOGITS["logits"].softmax(-1)},
        INDEX,
        lambda p, a: by_probs(p["probs"] / p["probs"].sum(-1, keepdim=True), a),
    ),
    Policy(
        "actor_output_tensor",
        Categorical,
        {"actor_output": LOGITS["logits"].softmax(-1)},
        INDEX,
        lambda p, a: by_probs(p["actor_output"] / p["actor_output"].sum(-1, keepdim=True), a),
    ),
    Policy(
        "actor_output_td",
        Categorical,
        {"actor_output": td(**LOGITS)},
        INDEX,
        lambda p, a: categorical(p["actor_output"], a),
    ),
    Policy(
        "torch_categorical",
        lambda logits: Categorical(logits=logits, validate_args=False),
        LOGITS,
        F.one_hot(INDEX, 4),
        lambda p, a: categorical(p, INDEX),
    ),
    Policy(
        "one_hot_categorical",
        functools.partial(td_.OneHotCategorical, validate_args=False),
        LOGITS,
        F.one_hot(INDEX, 4).double(),
        lambda p, a: categorical(p, INDEX),
    ),
    Policy("normal", td_.Normal, NORMAL, REAL, normal),
    Policy("independent_normal", independent_normal, NORMAL, REAL, normal),
    Policy(
        "one_component",
        independent_normal,
        normals("one", 1),
        draw("one action"),
        lambda p, a: normal(p, a.unsqueeze(-1)),
    ),
    Policy(
        "bits",
        functools.partial(td_.Bernoulli, validate_args=False),
        {"logits": draw("bits", 3)},
        (draw("bit action", 3) > 0).double(),
        lambda p, a: (
            -F.binary_cross_entropy_with_logits(p["logits"], a, reduction="none").sum(-1),
            sum(
                F.binary_cross_entropy_with_logits(
                    p["logits"], p["logits"].sigmoid(), reduction="none"
                ).unbind(-1)
            ),
        ),
    ),
    Policy("tanh_normal", TANH, NORMAL, BOUNDED, squashed),
    Policy(
        "tanh_normal_td",
        tanh_normal,
        {
            "actor_output": td(
                low=torch.full((*SIZE, 3), -2.0, dtype=D),
                high=torch.ones(*SIZE, 3, dtype=D),
                **NORMAL,
            )
        },
        BOUNDED,
        lambda p, a: squashed(
            p["actor_output"], a, p["actor_output"]["low"], p["actor_output"]["high"]
        ),
    ),
    Policy("masked", masked_categorical, LOGITS, ALLOWED, masked, lambda: {"action_mask": MASK}),
    Policy(
        "masked_one_hot",
        masked_categorical,
        {"logits": torch.where(MASK, LOGITS["logits"], -torch.inf)},
        F.one_hot(ALLOWED, 4),
        lambda p, a: masked(p, ALLOWED),
        lambda: {"action_mask": MASK},
    ),
    Policy(
        "masked_of_torchrl",
        PeerMasked,
        {"actor_output": td(mask=MASK, **LOGITS)},
        ALLOWED,
        lambda p, a: masked(p["actor_output"], a),
        raw=True,
    ),
    Policy(
        "tanh_of_torchrl",
        functools.partial(PeerTanh, low=-2.0, high=1.0),
        NORMAL,
        BOUNDED,
        lambda p, a: (squashed(p, a)[0], None),
        raw=True,
    ),
    Policy(
        "joint",
        joint(steer=independent_normal, gear=Categorical),
        params(**HEADS),
        td(**TREE),
        of_heads,
    ),
    Policy(
        "joint_actor_output",
        joint(steer=independent_normal, gear=Categorical),
        {"actor_output": td(**HEADS)},
        td(steer=TREE["steer"], gear=F.one_hot(TREE["gear"], 3)),
        lambda p, a: two_heads(p["actor_output"], TREE),
    ),
    Policy(
        "joint_of_normals",
        joint(steer=td_.Normal, gear=Categorical),
        params(**HEADS),
        td(**TREE),
        of_heads,
    ),
    Policy(
        "nested_joint",
        joint(car=joint(steer=independent_normal, gear=Categorical), radio=masked_categorical),
        params(**CAR),
        td(car=td(**TREE), radio=ALLOWED),
        lambda p, a: three_heads(p["params"], a),
        lambda: {"action_mask": td(radio=MASK)},
    ),
    Policy(
        "composite",
        functools.partial(
            CompositeDistribution, distribution_map={"steer": td_.Normal, "gear": Categorical}
        ),
        params(**HEADS),
        td(**TREE),
        of_heads,
        raw=True,
    ),
    Policy(
        "composite_at_root",
        functools.partial(
            CompositeDistribution,
            distribution_map={("action", "steer"): td_.Normal, ("action", "gear"): Categorical},
        ),
        params(action=td(**HEADS)),
        td(**TREE),
        lambda p, a: two_heads(p["params"]["action"], a),
        raw=True,
    ),
]

NAMES = """
policy_gradient_loss reinforce_loss a2c_loss entropy_loss dice_loss ppo_loss ppo_clip_loss
discovered_policy_loss lpg_agent_loss lpg_meta_loss lpg_regularizer_loss bc_loss vmpo_loss awr_loss
ppo_kl_penalty_loss
""".split()
HYPER = {
    "dice_loss": {"gamma": 0.9},
    "vmpo_loss": {"temperature": 0.7},
    "awr_loss": {"temperature": 0.7},
}
FUNCTIONS = [getattr(losses, name) for name in NAMES if hasattr(losses, name)]


def trajectory():
    steps = {name: draw(name) for name in ("state_value", "advantage", "value_target", "pi_hat")}
    follows = {
        "reward": draw("reward"),
        "done": draw("done") > 0.5,
        "terminated": draw("done") > 0.9,
        "state_value": draw("next value"),
    }
    return td(
        action_log_prob=-draw("mu").square(),
        prediction=draw("prediction", 4),
        y_hat=draw("y_hat", 4).softmax(-1),
        next=td(**follows),
        **steps,
    )


def with_policy(policy, parameters=None):
    out = trajectory().set("action", policy.action)
    behavior = {"behavior": td(**policy.parameters)}
    return out.update({**(parameters or policy.parameters), **policy.extra(), **behavior})


def leaves(parameters):
    tree = TensorDict(parameters, SIZE)
    keys = [k for k in tree.keys(True, True) if tree[k].is_floating_point()]
    return [k for k in keys if k[-1] not in ("low", "high")], tree


def run(function, td, dist_class):
    return total(function(td, dist_class, **HYPER.get(function.__name__, {})))


def rebuilt(policy, keys, values):
    tree = TensorDict(policy.parameters, SIZE).clone()
    for key, value in zip(keys, values, strict=True):
        tree = tree.set(key, value)
    return {name: tree.get(name) for name in tree.keys()}


def has_pair(function, policy):
    """Without an entropy of its own, a distribution does where no entropy is asked for."""
    name = function.__name__
    if name == "ppo_kl_penalty_loss":  # the divergence has tests of its own
        return False
    return policy.name != "tanh_of_torchrl" or name in WITHOUT_ENTROPY


WITHOUT_ENTROPY = ("policy_gradient_loss", "reinforce_loss", "bc_loss", "dice_loss", "awr_loss")
PAIRS = [
    pytest.param(f, p, id=f"{f.__name__}-{p.name}")
    for p in POLICIES
    for f in FUNCTIONS
    if has_pair(f, p)
]


@pytest.mark.parametrize(("function", "policy"), PAIRS)
def test_values_and_gradients_are_those_of_torch(function, policy):
    keys, tree = leaves(policy.parameters)

    def ours(*values):
        return run(function, with_policy(policy, rebuilt(policy, keys, values)), policy.dist_class)

    def peer(*values):
        log_prob, entropy = policy.peer(rebuilt(policy, keys, values), policy.action)
        known = {"log_prob": log_prob, "entropy": log_prob if entropy is None else entropy}
        return run(
            function, trajectory().update({"actor_output": td(**known), "action": log_prob}), Known
        )

    values = tuple(tree[k] for k in keys)
    tolerance = 1e-6 if policy.raw else 1e-9  # TorchRL keeps bounds in float32
    assert_close(ours(*values), peer(*values), rtol=tolerance, atol=tolerance)
    which = tuple(range(len(keys)))
    mine, wanted = grad(ours, which)(*values), grad(peer, which)(*values)
    for a, b in zip(mine, wanted, strict=True):
        assert_close(a, b, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("policy", [p for p in POLICIES if not p.raw], ids=lambda p: p.name)
def test_mapped_over_environments(function, policy):
    whole = with_policy(policy)
    out = vmap(lambda x: run(function, x, policy.dist_class))(whole)
    for i in range(2):
        assert_close(out[i], run(function, whole[i], policy.dist_class))


def compiles(function, policy):
    keys, tree = leaves(policy.parameters)
    whole = with_policy(policy)

    def value(*values):
        out = whole.copy().update(rebuilt(policy, keys, values))
        return run(function, out, policy.dist_class)

    values, which = tuple(tree[k] for k in keys), tuple(range(len(keys)))
    both = torch.func.grad_and_value(value, which)
    torch.compiler.reset()
    found, wanted = torch.compile(both, fullgraph=True, backend="aot_eager")(*values), both(*values)
    assert_close(found, wanted)


@pytest.mark.parametrize("policy", [p for p in POLICIES if not p.raw], ids=lambda p: p.name)
def test_every_distribution_compiles(policy):
    compiles(losses.a2c_loss, policy)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_loss_compiles_with_a_nested_action(function):
    (policy,) = [p for p in POLICIES if p.name == "nested_joint"]
    compiles(function, policy)
