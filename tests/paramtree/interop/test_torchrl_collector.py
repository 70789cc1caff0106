"""What a collector of TorchRL's gives, fed as it is to the loss modules and to the pure losses."""

import warnings

import pytest
import torch
import torchrl.objectives as peers
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close
from torchrl.data import Categorical, Composite, MultiStep, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import QValueActor

import losses
import paramtree.interop.torchrl as ours
from tests.paramtree.interop.torchrl_agents import (
    ACTIONS,
    MARKS,
    OBS,
    critic,
    discrete_actor,
    quiet,
)

pytestmark = MARKS


class Walk(EnvBase):
    """A walk on a line; an episode ends beyond a distance, and is cut after seven steps."""

    def __init__(self):
        super().__init__(batch_size=())
        self.observation_spec = Composite(observation=Unbounded(OBS))
        self.action_spec = Categorical(ACTIONS)
        self.reward_spec = Unbounded(1)
        flag = Categorical(2, shape=(1,), dtype=torch.bool)
        self.full_done_spec = Composite(done=flag, terminated=flag.clone())

    def _reset(self, tensordict=None, **options):
        self.time = 0
        flags = {name: torch.zeros(1, dtype=torch.bool) for name in ("done", "terminated")}
        return TensorDict({"observation": torch.zeros(OBS), **flags})

    def _step(self, tensordict):
        self.time += 1
        place = tensordict["observation"] + 0.4 * (tensordict["action"] - 1) + torch.randn(OBS) / 5
        far = (place.norm() > 3).reshape(1)
        ends = {"terminated": far, "done": far | (self.time >= 7)}
        return TensorDict({"observation": place, "reward": -place.norm().reshape(1), **ends})

    def _set_seed(self, seed):
        torch.manual_seed(seed or 0)


def collected(actor, **options):
    """One batch of forty steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchrl.collectors import Collector

        made = Collector(Walk(), actor, frames_per_batch=40, total_frames=40, **options)
        td = next(iter(made))
        made.shutdown()
    assert td["next", "done"].sum() > td["next", "terminated"].sum() > 0
    return td


@pytest.mark.parametrize("kind", ["PPOLoss", "ClipPPOLoss", "A2CLoss"])
def test_policy_losses(kind):
    actor, value = discrete_actor(), critic()
    td = collected(actor)
    theirs, mine = (quiet(getattr(m, kind), actor, value) for m in (peers, ours))
    a, b = theirs(td.clone()), mine(td)
    for name in (name for name in a.keys() if name.startswith("loss")):
        assert_close(b[name], a[name])


@pytest.mark.parametrize("steps", [1, 3])
def test_dqn(steps):
    """MultiStep writes a gamma, a power already, which is not the discount of one step."""
    options = {"action_space": "categorical"}
    net = QValueActor(nn.Linear(OBS, ACTIONS), in_keys=["observation"], **options)
    more = {} if steps == 1 else {"postproc": MultiStep(gamma=0.99, n_steps=steps)}
    td = collected(None, **more)  # a random policy
    assert ("gamma" in td.keys()) == (steps > 1)
    theirs, mine = (quiet(m.DQNLoss, net, **options) for m in (peers, ours))
    assert_close(mine(td)["loss"], theirs(td.clone())["loss"])
    gamma = torch.tensor(0.99, requires_grad=True)
    mine.register_buffer("gamma", gamma)
    assert torch.autograd.grad(mine(td)["loss"], gamma)[0] != 0


def test_pure_losses():
    actor, value = discrete_actor(), critic()
    td = collected(actor)
    with torch.no_grad():
        value(td)
        value(td["next"])
    td = losses.add_advantage(td, 0.99, 0.95)
    module = ours.ClipPPOLoss(actor, value, loss_critic_type="l2")
    found = losses.ppo_clip_loss(td, critic_coeff=1.0)
    expected = module(td)
    for name in ("loss_objective", "loss_critic", "loss_entropy", "kl_approx", "ESS"):
        assert_close(found[name], expected[name])
    found = losses.a2c_loss(td, critic_coeff=1.0)
    expected = ours.A2CLoss(actor, value, loss_critic_type="l2")(td)
    for name in ("loss_objective", "loss_critic", "loss_entropy"):
        assert_close(found[name], expected[name])
