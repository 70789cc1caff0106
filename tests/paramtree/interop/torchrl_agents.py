"""Small actors, critics and trajectories for the tests of the loss modules."""

import warnings

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    NormalParamExtractor,
)
from tensordict.nn import TensorDictModule as Module
from torch import nn
from torch.distributions import Categorical, Independent, Normal
from torchrl.modules import Actor, ProbabilisticActor, QValueActor, TanhNormal, ValueOperator

import paramtree.interop.torchrl as ours

MARKS = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchrl"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensordict"),
]
OBS, ACTIONS, DIMS = 3, 4, 2
POLICY = ["PPOLoss", "ClipPPOLoss", "KLPENPPOLoss", "A2CLoss", "ReinforceLoss"]
PROXIMAL = POLICY[:3]
KINDS = [*POLICY, "DQNLoss", "DDPGLoss", "TD3Loss", "SACLoss"]


def discrete_actor():
    net = nn.Sequential(nn.Linear(OBS, 8), nn.Tanh(), nn.Linear(8, ACTIONS))
    return ProbabilisticActor(
        Module(net, ["observation"], ["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
    )


def gaussian_actor(**options):
    net = nn.Sequential(nn.Linear(OBS, 2 * DIMS), NormalParamExtractor())
    return ProbabilisticActor(
        Module(net, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
        **options,
    )


def critic():
    return ValueOperator(nn.Linear(OBS, 1), in_keys=["observation"])


class Q(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(OBS + DIMS, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, observation, action):
        return self.net(torch.cat([observation, action], -1))


def q_critic():
    return ValueOperator(Q(), in_keys=["observation", "action"])


def trajectory(actor=None, size=(4, 6)):
    done = torch.rand(*size, 1) < 0.3
    after = {
        "observation": torch.randn(*size, OBS),
        "reward": torch.randn(*size, 1),
        "done": done,
        "terminated": done & (torch.rand(*size, 1) < 0.5),
    }
    td = TensorDict({"observation": torch.randn(*size, OBS)}, size)
    td["next"] = TensorDict(after, size)
    if actor is not None:
        with torch.no_grad():
            td = actor(td)
            td["action_log_prob"] = td["action_log_prob"] + 0.3 * torch.randn(size)
    else:
        td["action"] = torch.rand(*size, DIMS) * 2 - 1
    return td


def quiet(make, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **options)


class Heads(nn.Module):
    """Parameters of two heads: a normal one, and a categorical one."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(OBS, 2 * DIMS + ACTIONS)

    def forward(self, observation):
        x = self.net(observation)
        return x[..., :DIMS], x[..., DIMS : 2 * DIMS].exp(), x[..., 2 * DIMS :]


def independent(loc, scale):
    return Independent(Normal(loc, scale), 1)


def head_keys(nested):
    return [("action", "move"), ("action", "grip")] if nested else ["move", "grip"]


def composite_actor(nested=True, aggregate=False, move=independent):
    """To be called, and its actor to be used, under the same ``composite_lp_aggregate``."""
    keys = [("params", "move", "loc"), ("params", "move", "scale"), ("params", "grip", "logits")]
    names = head_keys(nested)
    return ProbabilisticActor(
        Module(Heads(), ["observation"], keys),
        in_keys=["params"],
        out_keys=names,
        distribution_class=CompositeDistribution,
        distribution_kwargs={
            "distribution_map": {"move": move, "grip": Categorical},
            "name_map": dict(zip(["move", "grip"], names, strict=True)),
            **({"log_prob_key": "sample_log_prob"} if aggregate else {}),
        },
        return_log_prob=True,
    )


def composite_trajectory(actor, size=(4, 6)):
    """Drawn with parameters other than those that the actor has afterwards."""
    with torch.no_grad():
        td = actor(trajectory(size=size).exclude("action"))
        for p in actor.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return td


def made(kind, module=ours, **options):
    """A loss, ours or TorchRL's, and a td for it."""
    if kind in POLICY:
        actor = discrete_actor()
        td = trajectory(actor)
        td["state_value"] = torch.randn(4, 6, 1)
        return quiet(getattr(module, kind), actor, critic(), **options).eval(), td
    if kind == "DQNLoss":
        space = {"action_space": "categorical"}
        net = QValueActor(nn.Linear(OBS, ACTIONS), in_keys=["observation"], **space)
        td = trajectory()
        td["action"] = torch.randint(0, ACTIONS, (4, 6))
        return quiet(module.DQNLoss, net, **space, **options), td
    if kind == "SACLoss":
        options = {"target_entropy": -2.0, **options}
        return quiet(module.SACLoss, gaussian_actor(), q_critic(), **options), trajectory()
    actor = Actor(nn.Linear(OBS, DIMS), in_keys=["observation"])
    options = {"bounds": (-1.0, 1.0), **options} if kind == "TD3Loss" else options
    return quiet(getattr(module, kind), actor, q_critic(), **options), trajectory()


def total(out):
    """The sum of the losses."""
    return sum(x.sum() for name, x in out.items() if name.startswith("loss"))


def same_members(theirs, mine):
    """Gives our ensemble TorchRL's parameters, its targets too."""
    for prefix in ("", "target_"):
        source = getattr(theirs, f"{prefix}qvalue_network_params")
        target = getattr(mine, f"{prefix}qvalue_network_params")
        for i in range(source.batch_size[0]):
            for key, x in source[i].items(True, True):
                target[(str(i), *((key,) if isinstance(key, str) else key))].data.copy_(x.data)
