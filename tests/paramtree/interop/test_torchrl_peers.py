"""The loss modules against TorchRL's own, on the same tensors."""

import pytest
import torch
import torchrl.objectives as peers
from torch import nn
from torch.testing import assert_close
from torchrl.modules import Actor, QValueActor

import paramtree.interop.torchrl as ours
from tests.paramtree.interop.torchrl_agents import (
    ACTIONS,
    DIMS,
    MARKS,
    OBS,
    POLICY,
    critic,
    discrete_actor,
    gaussian_actor,
    q_critic,
    quiet,
    same_members,
    trajectory,
)

pytestmark = MARKS


def losses_agree(theirs, mine, td, but=()):
    """The same losses, and the same gradients in the networks' own parameters."""
    torch.manual_seed(3)
    a = theirs(td.clone())
    torch.manual_seed(3)
    b = mine(td.clone())
    for name in (name for name in a.keys() if name.startswith("loss") and name not in but):
        assert_close(b[name], a[name].reshape(()), rtol=1e-7, atol=1e-9)
        theirs_params = [p for p in theirs.parameters() if p.requires_grad]
        mine_params = [p for p in mine.parameters() if p.requires_grad]
        norms = []
        for out, params in ((a, theirs_params), (b, mine_params)):
            options = {"allow_unused": True, "retain_graph": True}
            found = torch.autograd.grad(out[name].sum(), params, **options)
            norms.append(sum(float(g.square().sum()) for g in found if g is not None))
        assert_close(norms[1], norms[0], rtol=1e-6, atol=1e-12)
    return a, b


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "inside"])
@pytest.mark.parametrize("kind", POLICY)
def test_policy_losses_are_torchrls(kind, finished):
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    make = getattr(peers, kind), getattr(ours, kind)
    theirs, mine = (quiet(cls, actor, value) for cls in make)
    if finished:
        td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    a, b = losses_agree(theirs, mine, td)
    for name in ("entropy", "kl_approx", "clip_fraction"):
        if name in a.keys():
            assert_close(b[name], a[name].mean())


@pytest.mark.parametrize(
    "options",
    [
        {"loss_critic_type": "l2"},
        {"loss_critic_type": "l1", "critic_coeff": 0.3},
        {"clip_value": 0.1},
        {"entropy_coeff": 0.2},
        {"entropy_bonus": False},
        {"reduction": "sum"},
        {"separate_losses": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["ClipPPOLoss", "A2CLoss"])
def test_options_are_torchrls(kind, options):
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    td["state_value"] = torch.randn(4, 6, 1)
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    theirs, mine = (quiet(getattr(m, kind), actor, value, **options) for m in (peers, ours))
    a, b = losses_agree(theirs, mine, td)
    assert ("loss_entropy" in b.keys()) == options.get("entropy_bonus", True)


def test_clip_epsilon_with_two_sides():
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    options = {"clip_epsilon": (0.1, 0.3)}
    losses_agree(*(quiet(m.ClipPPOLoss, actor, value, **options) for m in (peers, ours)), td)


def test_the_kl_coefficient_adapts():
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    theirs, mine = (quiet(m.KLPENPPOLoss, actor, value, dtarg=1e-9) for m in (peers, ours))
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(0.1 * torch.randn_like(p))
    for _ in range(3):
        theirs(td)
        mine(td)
        assert_close(mine.beta, theirs.beta)
    assert mine.beta == 8
    mine.reset()
    assert mine.beta == 1


@pytest.mark.parametrize("kind", ["PPOLoss", "ClipPPOLoss", "A2CLoss"])
def test_a_tanh_normal_actor(kind):
    actor, value = gaussian_actor(), critic()
    td = trajectory(actor)
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    options = {"entropy_bonus": False}
    theirs, mine = (quiet(getattr(m, kind), actor, value, **options) for m in (peers, ours))
    losses_agree(theirs, mine, td)


def test_a_tanh_normal_actors_divergence_is_that_of_its_normals():
    actor = gaussian_actor()
    td = trajectory(actor)
    td["advantage"], td["value_target"] = torch.zeros(4, 6, 1), torch.zeros(4, 6, 1)
    module = ours.KLPENPPOLoss(actor, critic(), beta=0.7)
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(0.1 * torch.randn_like(p))
    new = actor.get_dist_params(td.clone())
    old, new = (torch.distributions.Normal(x["loc"], x["scale"]) for x in (td, new))
    divergence = torch.distributions.kl_divergence(old, new).sum(-1).mean()
    out = module(td)
    assert_close(out["kl"], divergence)
    assert_close(out["loss_objective"], 0.7 * divergence)
    assert out["entropy"].isfinite()


@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("space", ["categorical", "one-hot"])
def test_dqn_is_torchrls(double, space):
    net = QValueActor(nn.Linear(OBS, ACTIONS), in_keys=["observation"], action_space=space)
    td = trajectory()
    with torch.no_grad():
        td["action"] = net(td.clone())["action"]
    options = {"action_space": space, "double_dqn": double, "delay_value": True}
    theirs, mine = (quiet(m.DQNLoss, net, **options) for m in (peers, ours))
    for target in (theirs.target_value_network_params, mine.target_value_network_params):
        for i, x in enumerate(target.flatten_keys().values()):
            x.data.copy_(torch.linspace(-1, 1, x.numel()).reshape(x.shape) * (i + 1))
    a, b = losses_agree(theirs, mine, td)
    theirs(td)
    squared = td["td_error"].squeeze(-1)
    assert b["td_error"].shape == td.batch_size
    assert_close(b["td_error"].square(), squared)
    assert "td_error" not in trajectory().keys()


def test_ddpg_is_torchrls():
    actor, q = Actor(nn.Linear(OBS, DIMS), in_keys=["observation"]), q_critic()
    theirs, mine = (quiet(m.DDPGLoss, actor, q) for m in (peers, ours))
    losses_agree(theirs, mine, trajectory())


def test_td3_is_torchrls():
    actor, q = Actor(nn.Linear(OBS, DIMS), in_keys=["observation"]), q_critic()
    options = {"bounds": (-1.0, 1.0)}
    theirs, mine = (quiet(m.TD3Loss, actor, q, **options) for m in (peers, ours))
    same_members(theirs, mine)
    losses_agree(theirs, mine, trajectory())


def test_sac_is_torchrls():
    actor, q = gaussian_actor(), q_critic()
    options = {"target_entropy": -2.0, "alpha_init": 0.3}
    theirs, mine = (quiet(m.SACLoss, actor, q, **options) for m in (peers, ours))
    same_members(theirs, mine)
    a, b = losses_agree(theirs, mine, trajectory())
    assert_close(b["alpha"], a["alpha"])
    assert_close(b["entropy"], a["entropy"])


@pytest.mark.parametrize("size", [1, 2])
def test_sac_with_a_value_network_is_torchrls(size):
    """Of several critics TorchRL gives each a share of the batch, we each the whole of it."""
    actor, q, value = gaussian_actor(), q_critic(), critic()
    options = {"target_entropy": -2.0, "alpha_init": 0.3, "num_qvalue_nets": size}
    theirs, mine = (quiet(m.SACLoss, actor, q, value, **options) for m in (peers, ours))
    same_members(theirs, mine)
    losses_agree(theirs, mine, trajectory(), but=("loss_qvalue",) if size > 1 else ())
