"""Actors of several heads in the loss modules, with every way in which their keys are written."""

from contextlib import contextmanager

import pytest
import torch
import torchrl.objectives as peers
from tensordict.nn import set_composite_lp_aggregate
from torch import nn
from torch.distributions import Categorical, Independent, Normal
from torch.testing import assert_close
from torchrl.modules import TanhNormal, ValueOperator

import paramtree.interop.torchrl as ours
from tests.paramtree.interop.torchrl_agents import (
    DIMS,
    MARKS,
    OBS,
    POLICY,
    PROXIMAL,
    composite_actor,
    composite_trajectory,
    critic,
    head_keys,
    quiet,
)

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:Composite log-prob")]


@contextmanager
def drawn(nested, aggregate, **options):
    """An actor, and what it drew, with advantages; both to be used inside."""
    with set_composite_lp_aggregate(aggregate):
        actor = composite_actor(nested, aggregate, **options)
        td = composite_trajectory(actor)
        td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
        yield actor, td


def directly(kind, actor, td, nested):
    """The objective, term by term."""
    params = actor.get_dist_params(td.clone())["params"]
    move, grip = (td[key] for key in head_keys(nested))
    steer = Independent(Normal(**dict(params["move"].items())), 1)
    gear = Categorical(**dict(params["grip"].items()))
    log_prob = steer.log_prob(move) + gear.log_prob(grip)
    advantage = td["advantage"].squeeze(-1)
    if kind in ("A2CLoss", "ReinforceLoss"):
        return -(log_prob * advantage).mean()
    names = [
        (*key[:-1], f"{key[-1]}_log_prob") if nested else f"{key}_log_prob"
        for key in head_keys(nested)
    ]
    ratio = (log_prob - sum(td[name] for name in names)).exp()
    gain = ratio * advantage
    if kind == "ClipPPOLoss":
        gain = torch.minimum(gain, ratio.clamp(0.8, 1.2) * advantage)
    return -gain.mean()


def same(a, b):
    """The same losses, and the same gradients."""
    for name in (name for name in a.keys() if name.startswith("loss")):
        assert_close(b[name], a[name].reshape(()), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("aggregate", [False, True], ids=["each", "aggregated"])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("kind", ["PPOLoss", "ClipPPOLoss", "A2CLoss", "ReinforceLoss"])
def test_heads_add_up_as_they_are_written(kind, nested, aggregate):
    with drawn(nested, aggregate) as (actor, td):
        module = getattr(ours, kind)(actor, critic())
        out = module(td)
        name = "loss_actor" if kind == "ReinforceLoss" else "loss_objective"
        right = directly(kind, actor, td, nested)
        assert_close(out[name], right)
        for p in actor.parameters():
            found, wanted = (
                torch.autograd.grad(x, p, retain_graph=True) for x in (out[name], right)
            )
            assert_close(found, wanted)


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
@pytest.mark.parametrize("kind", [*PROXIMAL[:2], "ReinforceLoss"])
def test_heads_are_torchrls(kind, nested):
    """A2CLoss of TorchRL raises for several heads, and KLPENPPOLoss samples the divergence."""
    with drawn(nested, False) as (actor, td):
        value = critic()
        theirs, mine = (quiet(getattr(m, kind), actor, value) for m in (peers, ours))
        same(theirs(td.clone()), mine(td.clone()))
        assert mine.tensor_keys.action == head_keys(nested)


@pytest.mark.parametrize("kind", PROXIMAL[:2])
def test_aggregated_heads_are_torchrls_where_its_keys_are_set(kind):
    with drawn(True, True) as (actor, td):
        value = critic()
        theirs, mine = (quiet(getattr(m, kind), actor, value) for m in (peers, ours))
        theirs.set_keys(action=head_keys(True))
        same(quiet(theirs, td.clone()), mine(td.clone()))


@pytest.mark.parametrize("kind", PROXIMAL)
def test_keys_may_be_lists(kind):
    with drawn(False, False) as (actor, td):
        module = getattr(ours, kind)(actor, critic()).eval()
        expected = module(td)
        module.set_keys(sample_log_prob=["a_lp", "b_lp"], action=["grip", "move"])
        other = td.clone().rename_key_("move_log_prob", "a_lp").rename_key_("grip_log_prob", "b_lp")
        assert_close(module(other)["loss_objective"], expected["loss_objective"])
        assert {"a_lp", "b_lp", "grip", "move"} <= set(module.in_keys)
        with pytest.raises(ValueError, match=f"{kind}: the td has no 'b_lp'"):
            module(other.exclude("b_lp"))
        with pytest.raises(ValueError, match="the td has no .*move"):
            module(other.exclude("move"))


@pytest.mark.parametrize("kind", PROXIMAL)
def test_one_log_probability_of_all_heads_will_do(kind):
    with drawn(True, False) as (actor, td):
        module = getattr(ours, kind)(actor, critic()).eval()
        expected = module(td)
        whole = td["action", "move_log_prob"] + td["action", "grip_log_prob"]
        other = td.exclude(("action", "move_log_prob"), ("action", "grip_log_prob"))
        found = module(other.set("action_log_prob", whole))
        assert_close(found["loss_objective"], expected["loss_objective"])
        module.set_keys(action="action")
        assert_close(module(td)["loss_objective"], expected["loss_objective"])


def test_the_divergence_of_heads_is_the_sum():
    with drawn(True, False) as (actor, td):
        out = ours.KLPENPPOLoss(actor, critic())(td)
        new, old = actor.get_dist_params(td.clone())["params"], td["params"]
        both = [Independent(Normal(**dict(x["move"].items())), 1) for x in (old, new)]
        gear = [Categorical(**dict(x["grip"].items())) for x in (old, new)]
        divergence = torch.distributions.kl_divergence
        assert_close(out["kl"], (divergence(*both) + divergence(*gear)).mean())


@pytest.mark.parametrize("kind", POLICY[:4])
def test_a_head_without_an_entropy_of_its_own(kind):
    """TanhNormal: ours is in closed form."""
    with drawn(True, False, move=TanhNormal) as (actor, td):
        out = getattr(ours, kind)(actor, critic())(td)
        assert all(x.isfinite().all() for x in out.values())


@pytest.mark.parametrize("suffix", ["", "_entropy", "_log_prob"])
@pytest.mark.parametrize("kind", POLICY[:4])
def test_a_coefficient_for_each_heads_entropy(kind, suffix):
    with drawn(True, False) as (actor, td):
        second = torch.tensor(0.5, requires_grad=True)
        names = [("action", f"{name}{suffix}") for name in ("move", "grip")]
        coeff = dict(zip(names, (0.1, second), strict=True))
        mine = getattr(ours, kind)(actor, critic(), entropy_coeff=coeff)
        out = mine(td)
        params = actor.get_dist_params(td.clone())["params"]
        steer = Independent(Normal(**dict(params["move"].items())), 1).entropy()
        gear = Categorical(**dict(params["grip"].items())).entropy()
        assert_close(out["loss_entropy"], -(0.1 * steer + second * gear).mean())
        assert_close(torch.autograd.grad(out["loss_entropy"], second)[0], -gear.mean())
        if suffix == "_entropy" and kind in PROXIMAL:
            floats = {name: float(torch.as_tensor(x).detach()) for name, x in coeff.items()}
            theirs = quiet(getattr(peers, kind), actor, critic(), entropy_coeff=floats)
            assert_close(theirs(td.clone())["loss_entropy"], out["loss_entropy"])
        entry = mine(td.clone().set("entropy_coeff", torch.full((4, 6), 0.3)))
        assert_close(entry["loss_entropy"], -0.3 * (steer + gear).mean())


def test_coefficients_of_heads_that_do_not_fit():
    with drawn(False, False) as (actor, _):
        with pytest.raises(ValueError, match="PPOLoss: entropy_coeff has no number for the head"):
            ours.PPOLoss(actor, critic(), entropy_coeff={"move": 0.1})
        with pytest.raises(ValueError, match="entropy_coeff has 'jump', which is no head of"):
            ours.PPOLoss(actor, critic(), entropy_coeff={"move": 0.1, "grip": 0.2, "jump": 0.3})


class HeadsQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(OBS + DIMS, 1)

    def forward(self, observation, move):
        return self.net(torch.cat([observation, move], -1))


def test_soft_actor_critic_of_heads():
    """The entropy of both heads counts; the critic reads what it likes of the action."""
    with set_composite_lp_aggregate(False):

        def normal(logits):
            return Normal(logits.mean(-1), 1.0)

        actor = composite_actor(True, False)
        module = actor[-1]
        module.distribution_kwargs["distribution_map"]["grip"] = normal
        td = composite_trajectory(actor)
        keys = ["observation", ("action", "move")]
        q = ValueOperator(HeadsQ(), in_keys=keys, out_keys=["state_action_value"])
        loss = ours.SACLoss(actor, q, target_entropy=-3.0)
        out = loss(td)
        assert all(x.isfinite().all() for x in out.values())
        grads = torch.autograd.grad(out["loss_actor"], list(actor.parameters()))
        assert all(g.abs().sum() > 0 for g in grads)
