"""Advantages and targets in the loss modules: how they are made, and normalized."""

import pytest
import torch
import torchrl.objectives as peers
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close
from torchrl.modules import QValueActor
from torchrl.objectives.utils import ValueEstimators

import losses
import paramtree.interop.torchrl as ours
from tests.paramtree.interop.torchrl_agents import (
    ACTIONS,
    MARKS,
    OBS,
    POLICY,
    PROXIMAL,
    critic,
    discrete_actor,
    quiet,
    trajectory,
)

pytestmark = MARKS
SIZE = (4, 6)


@pytest.mark.parametrize("exclude", [(), (-2,), (0,), (0, 1)], ids=str)
@pytest.mark.parametrize("kind", PROXIMAL)
def test_normalized_advantages_are_torchrls(kind, exclude):
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    td["advantage"], td["value_target"] = 3 * torch.randn(4, 6, 1) + 1, torch.randn(4, 6, 1)
    options = {"normalize_advantage": True, "normalize_advantage_exclude_dims": exclude}
    theirs, mine = (quiet(getattr(m, kind), actor, value, **options) for m in (peers, ours))
    if exclude == (0, 1):  # each step by itself: TorchRL's deviation of one number is NaN
        assert_close(mine(td)["loss_objective"].abs() * 0, torch.tensor(0.0))
        return
    assert_close(mine(td)["loss_objective"], theirs(td.clone())["loss_objective"])
    made_inside = td.exclude("advantage", "value_target")
    found, right = mine(made_inside), theirs(made_inside.clone())
    assert_close(found["loss_objective"], right["loss_objective"])


def test_normalized_advantages_leave_out_what_is_masked():
    actor = discrete_actor()
    td = trajectory(actor)
    td["advantage"], td["value_target"] = torch.randn(4, 6, 1), torch.randn(4, 6, 1)
    module = ours.PPOLoss(actor, critic(), normalize_advantage=True)
    expected = module(td[:3])["loss_objective"]
    td["collector"] = TensorDict({"mask": torch.ones(SIZE, dtype=torch.bool)}, SIZE)
    td["collector", "mask"][3] = False
    td["advantage"][3] = torch.nan
    assert_close(module(td)["loss_objective"], expected)
    flat = td[:3].clone()
    flat["advantage"] = torch.ones(3, 6, 1, requires_grad=True)  # all equal: no NaN
    out = module(flat)["loss_objective"]
    assert torch.autograd.grad(out, flat["advantage"])[0].isfinite().all()


@pytest.mark.parametrize(
    ("value_type", "options"),
    [
        (ValueEstimators.VTrace, {}),
        (ValueEstimators.VTrace, {"rho_thresh": 0.9, "c_thresh": 0.7, "gamma": 0.8}),
        (ValueEstimators.VTrace, {"average_adv": True}),
        (ValueEstimators.GAE, {"average_gae": True, "lmbda": 0.8}),
        (ValueEstimators.TDLambda, {"lmbda": 0.8, "gamma": 0.9}),
        (ValueEstimators.TD0, {"gamma": 0.9}),
        (ValueEstimators.TD1, {"gamma": 0.9}),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", POLICY)
def test_estimators_are_torchrls(kind, value_type, options):
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    td["next", "done"][:, -1] = True  # TorchRL's V-trace bootstraps there from next
    theirs, mine = (quiet(getattr(m, kind), actor, value) for m in (peers, ours))
    for module in (theirs, mine):
        module.make_value_estimator(value_type, **options)
    a, b = theirs(td.clone()), mine(td.clone())
    for name in (name for name in a.keys() if name.startswith("loss")):
        assert_close(b[name], a[name], msg=lambda text, n=name: f"{n}: {text}")


def test_vtrace_stops_at_what_the_networks_say():
    """Only the objective's own log-probability gets a gradient, and the clips get theirs."""
    actor, value = discrete_actor(), critic()
    td = trajectory(actor)
    module = ours.A2CLoss(actor, value, entropy_bonus=False)
    module.make_value_estimator(ValueEstimators.VTrace)
    rho = torch.tensor(0.9, requires_grad=True)
    module.register_buffer("rho_thresh", rho)
    out = module(td)["loss_objective"]
    (slope,) = torch.autograd.grad(out, rho, retain_graph=True)
    h = 1e-6

    def at(x):
        module.register_buffer("rho_thresh", x)
        return module(td)["loss_objective"]

    with torch.no_grad():
        assert_close(slope, (at(rho + h) - at(rho - h)) / (2 * h), rtol=1e-5, atol=1e-8)
    held = td.clone().set("logits", actor.get_dist_params(td.clone())["logits"].detach())
    held["state_value"] = value(td.clone())["state_value"].detach()
    held["next", "state_value"] = value(td["next"].clone())["state_value"].detach()
    full = losses.add_vtrace(held, gamma=0.99, rho_clip=0.9, pg_rho_clip=0.9).copy()
    module.register_buffer("rho_thresh", torch.tensor(0.9))
    full["logits"] = actor.get_dist_params(td.clone())["logits"]
    right = losses.policy_gradient_loss(full)["loss_objective"]
    params = list(actor.parameters())
    found = torch.autograd.grad(module(td)["loss_objective"], params)
    assert_close(found, torch.autograd.grad(right, params))
    assert "action_log_prob" in module.in_keys
    with pytest.raises(ValueError, match="A2CLoss: the td has no 'action_log_prob'"):
        module(td.exclude("action_log_prob"))


@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("value_type", [ValueEstimators.TD1, ValueEstimators.TDLambda], ids=str)
def test_estimators_of_dqn_are_torchrls(value_type, double):
    net = QValueActor(nn.Linear(OBS, ACTIONS), in_keys=["observation"], action_space="categorical")
    td = trajectory()
    td["action"] = torch.randint(0, ACTIONS, SIZE)
    options = {"action_space": "categorical", "double_dqn": double}
    theirs, mine = (quiet(m.DQNLoss, net, **options) for m in (peers, ours))
    for module in (theirs, mine):
        module.make_value_estimator(value_type, gamma=0.9)
    assert_close(mine(td.clone())["loss"], theirs(td.clone())["loss"])
