"""Tiny agents for TorchRL's losses, and what they put out, for ours.

A sample is loc + scale * noise with a noise that stands in the batch, so nothing is drawn at random
and both sides see the same actions.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from tensordict.nn import TensorDictModule as Module
from torch import nn
from torch.distributions import Distribution, Normal

OBSERVATION, ACTION, BATCH = 3, 2, 6


class Known(Distribution):
    """A normal distribution whose sample is decided beforehand."""

    arg_constraints = {}
    has_rsample = True

    def __init__(self, loc, scale, noise):
        self.loc, self.scale, self.noise = loc, scale, noise
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise

    sample = rsample

    @property
    def deterministic_sample(self):
        return self.loc

    def log_prob(self, value):
        return Normal(self.loc, self.scale).log_prob(value).sum(-1)


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(OBSERVATION, 2 * ACTION)

    def forward(self, observation):
        loc, scale = self.net(observation).chunk(2, -1)
        return loc, 0.3 + scale.sigmoid()


class Critic(nn.Module):
    def __init__(self, outputs=1):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(OBSERVATION + ACTION, 4), nn.Tanh(), nn.Linear(4, outputs)
        )

    def forward(self, observation, action):
        return self.net(torch.cat([observation, action], -1))


class Beside(nn.Module):
    """Reads the noise too, without using it: TorchRL hands a policy what the value reads."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, observation, noise):
        return self.net(observation)


def policy(probabilistic=True):
    if not probabilistic:
        net = nn.Sequential(nn.Linear(OBSERVATION, ACTION), nn.Tanh())
        return Module(net.double(), ["observation"], ["action"])
    return ProbabilisticTensorDictSequential(
        Module(Policy().double(), ["observation"], ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            ["loc", "scale", "noise"],
            ["action"],
            distribution_class=Known,
            return_log_prob=True,
        ),
    )


def critic(outputs=1):
    net = Critic(outputs).double()
    return Module(net, ["observation", "action"], ["state_action_value"])


def transitions():
    """A batch ``[BATCH]`` of transitions, in the form of TorchRL's collectors."""
    draw = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(BATCH, *shape, generator=draw, dtype=torch.float64)

    terminated = torch.tensor([False, True, False, False, True, False]).unsqueeze(-1)
    following = {
        "observation": normal(OBSERVATION),
        "noise": normal(ACTION),
        "reward": normal(1),
        "done": terminated | torch.tensor([True, *[False] * 5]).unsqueeze(-1),
        "terminated": terminated,
    }
    entries = {
        "observation": normal(OBSERVATION),
        "noise": normal(ACTION),
        "action": normal(ACTION).tanh(),
        "steps_to_next_obs": torch.tensor([1, 2, 3, 1, 2, 1]).unsqueeze(-1),
        "next": TensorDict(following, [BATCH]),
    }
    return TensorDict(entries, [BATCH])


def part_ways(*params):
    """Moves parameters apart from those that they were copied from."""
    draw = torch.Generator().manual_seed(6)
    for tree in params:
        for x in tree.values(True, True):
            x.data.add_(0.2 * torch.randn(x.shape, generator=draw, dtype=x.dtype))


def run(module, params, td):
    """A module's outputs with other parameters; the td stays as it is."""
    with params.to_module(module):
        return module(td.copy())


def ensemble(module, params, td, key="state_action_value"):
    """An ensemble's outputs, its axis after the batch's: ``[BATCH, N, ...]``."""
    members = [run(module, params[i], td).get(key) for i in range(params.batch_size[0])]
    return torch.stack(members, 1)


def sampled(module, params, td):
    """A policy's reparametrized sample and its log-probability."""
    with params.to_module(module):
        dist = module.get_dist(td.copy())
    action = dist.rsample()
    return action, dist.log_prob(action)


def slopes(loss, *params):
    """Gradients with respect to trees of parameters."""
    leaves = [x for tree in params for x in tree.values(True, True)]
    found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
