# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
"""Soft actor-critics against TorchRL's modules: values, and gradients of the parameters."""

import math

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from tensordict.nn import TensorDictModule as Module
from torch import nn
from torch.testing import assert_close
from torchrl.modules import OneHotCategorical
from torchrl.objectives import CrossQLoss, DiscreteSACLoss, REDQLoss, SACLoss, TQCLoss

from losses import (
    add_soft_target,
    add_truncated_quantile_target,
    bounded_log_alpha,
    crossq_critic_loss,
    discrete_sac_actor_loss,
    discrete_sac_critic_loss,
    discrete_sac_temperature_loss,
    redq_actor_loss,
    redq_critic_loss,
    sac_actor_loss,
    sac_critic_loss,
    sac_temperature_loss,
    sac_value_loss,
    td_targets,
    tqc_actor_loss,
    tqc_critic_loss,
)
from tests.losses import torchrl_agents as agents

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")

GAMMA, ALPHA, ENTROPY = 0.9, 0.3, -1.5


def smooth(value, target):
    return F.smooth_l1_loss(value, target, reduction="none")


def soft_outputs(theirs, actor, critic, target, key="state_action_value", batch=None):
    """The td that ours read, of the networks of one of TorchRL's losses."""
    td = agents.transitions() if batch is None else batch
    policy, q = theirs.actor_network_params, theirs.qvalue_network_params
    last = (lambda x: x) if "quantiles" in key else (lambda x: x.squeeze(-1))
    td[key] = last(agents.ensemble(critic, q, td))
    action, td["action_log_prob_actor"] = agents.sampled(actor, policy, td)
    held = agents.ensemble(critic, q.detach(), td.copy().set("action", action))
    td[f"{key}_actor"] = last(held)
    after = td["next"].copy()
    action, log_prob = agents.sampled(actor, policy, after)
    value = agents.ensemble(critic, target, after.copy().set("action", action))
    td["next"] = after.update({key: last(value), "action_log_prob_actor": log_prob})
    return td


def build(make, outputs=1, **options):
    torch.manual_seed(0)
    actor, critic = agents.policy(), agents.critic(outputs)
    theirs = make(actor, critic, alpha_init=ALPHA, target_entropy=ENTROPY, **options)
    theirs.make_value_estimator(gamma=GAMMA)
    agents.part_ways(theirs.qvalue_network_params)
    if hasattr(theirs, "target_qvalue_network_params") and make is not CrossQLoss:
        agents.part_ways(theirs.target_qvalue_network_params)
    theirs.double()
    return theirs, actor, critic


def same_slopes(found, wanted, *params):
    assert_close(found, wanted)
    a, b = agents.slopes(found, *params), agents.slopes(wanted, *params)
    assert any(x.abs().sum() > 0 for x in b)
    assert_close(a, b)


@pytest.mark.parametrize("members", [1, 2])
def test_sac_is_torchrls(members):
    theirs, actor, critic = build(SACLoss, num_qvalue_nets=members)
    batch = agents.transitions()
    wanted = theirs(batch)
    td = soft_outputs(theirs, actor, critic, theirs.target_qvalue_network_params)
    alpha = theirs.log_alpha.exp()
    found = sac_critic_loss(td, gamma=GAMMA, alpha=alpha, distance=smooth)  # theirs by default
    same_slopes(found["loss_critic"], wanted["loss_qvalue"], theirs.qvalue_network_params)
    assert_close(found["td_error"], batch["td_error"])
    finished = add_soft_target(td, GAMMA, alpha)
    assert_close(sac_critic_loss(finished, distance=smooth)["loss_critic"], found["loss_critic"])
    policy = sac_actor_loss(td, alpha=alpha)
    same_slopes(policy["loss_actor"], wanted["loss_actor"], theirs.actor_network_params)
    assert_close(policy["entropy"], wanted["entropy"])
    found = sac_temperature_loss(td, log_alpha=theirs.log_alpha, target_entropy=ENTROPY)
    assert_close(found["loss_alpha"], wanted["loss_alpha"])
    slopes = [torch.autograd.grad(x["loss_alpha"], theirs.log_alpha)[0] for x in (found, wanted)]
    assert_close(*slopes)
    # ours carries a gradient in alpha, theirs none
    slope = torch.autograd.grad(policy["loss_actor"], theirs.log_alpha)[0]
    assert_close(slope, ALPHA * td["action_log_prob_actor"].mean())
    assert torch.autograd.grad(wanted["loss_actor"], theirs.log_alpha, allow_unused=True)[0] is None


def test_sacs_first_version_is_torchrls():
    torch.manual_seed(0)
    actor, critic = agents.policy(), agents.critic()
    net = nn.Sequential(nn.Linear(agents.OBSERVATION, 4), nn.Tanh(), nn.Linear(4, 1))
    value = Module(agents.Beside(net.double()), ["observation", "noise"], ["state_value"])
    theirs = SACLoss(
        actor,
        critic,
        value,
        num_qvalue_nets=1,
        alpha_init=ALPHA,
        target_entropy=ENTROPY,
        delay_value=True,
        delay_actor=False,
        delay_qvalue=False,
    )
    theirs.make_value_estimator(gamma=GAMMA)
    theirs.double()
    agents.part_ways(theirs.target_value_network_params)
    wanted = theirs(agents.transitions())
    td = soft_outputs(theirs, actor, critic, theirs.qvalue_network_params)
    td["state_value"] = agents.run(value, theirs.value_network_params, td)["state_value"]
    found = sac_value_loss(td, alpha=ALPHA, distance=smooth)["loss_value"]
    same_slopes(found, wanted["loss_value"], theirs.value_network_params)

    after = agents.run(value, theirs.target_value_network_params, td["next"])["state_value"]
    reward, terminated = td["next", "reward"], td["next", "terminated"]
    discount = GAMMA ** td["steps_to_next_obs"]
    td["value_target"] = td_targets(reward, after, terminated, discount).detach()
    found = sac_critic_loss(td, distance=smooth)["loss_critic"]
    same_slopes(found, wanted["loss_qvalue"], theirs.qvalue_network_params)


def test_redq_is_torchrls_but_for_the_sum(monkeypatch):
    theirs, actor, critic = build(REDQLoss, num_qvalue_nets=4, sub_sample_len=2)
    subset = torch.tensor([1, 3])
    monkeypatch.setattr(torch, "randperm", lambda n: torch.tensor([3, 1, 0, 2]))
    batch = agents.transitions().exclude("steps_to_next_obs")
    td = soft_outputs(
        theirs, actor, critic, theirs.target_qvalue_network_params, batch=batch.copy()
    )
    assert_close(theirs(agents.transitions())["loss_qvalue"], theirs(batch)["loss_qvalue"])
    wanted = theirs(batch)  # as just seen, they do without the number of steps
    hyper = {"gamma": GAMMA, "alpha": ALPHA, "subset": subset}
    found = redq_critic_loss(td, **hyper, distance=smooth)  # theirs by default
    mean = found["loss_critic"] / 4  # theirs is the mean over the critics, the paper's the sum
    same_slopes(mean, wanted["loss_qvalue"], theirs.qvalue_network_params)
    assert_close(found["target_value"], wanted["target_value"].mean())
    assert_close(found["td_error"].square(), batch["td_error"])  # theirs is the square
    assert_close(redq_critic_loss(td, **{**hyper, "subset": (3, 1)}, distance=smooth), found)
    policy = redq_actor_loss(td, alpha=ALPHA)
    same_slopes(policy["loss_actor"], wanted["loss_actor"], theirs.actor_network_params)
    # their temperature's loss is the paper's, over the states that follow too
    both = torch.stack([td["action_log_prob_actor"], td["next", "action_log_prob_actor"]])
    both = TensorDict({"action_log_prob_actor": both}, both.shape)
    alpha = theirs.log_alpha.exp()
    found = sac_temperature_loss(both, log_alpha=alpha, target_entropy=ENTROPY)["loss_alpha"]
    assert_close(found, wanted["loss_alpha"])
    a, b = (torch.autograd.grad(x, theirs.log_alpha)[0] for x in (found, wanted["loss_alpha"]))
    assert_close(a, b)


def test_redqs_straight_through_bounds():
    theirs, _, _ = build(REDQLoss, num_qvalue_nets=2, min_alpha=0.5, max_alpha=10.0)
    log_alpha = theirs.log_alpha
    assert log_alpha < math.log(0.5)
    through = log_alpha + (bounded_log_alpha(log_alpha, 0.5, 10.0) - log_alpha).detach()
    assert_close(through, theirs._safe_log_alpha)
    a, b = (torch.autograd.grad(x.exp(), log_alpha)[0] for x in (through, theirs._safe_log_alpha))
    assert_close(a, b)
    assert torch.autograd.grad(bounded_log_alpha(log_alpha, 0.5), log_alpha)[0] == 0


def test_crossq_is_sacs_critic_of_a_joint_pass():
    theirs, actor, critic = build(CrossQLoss, num_qvalue_nets=2)
    wanted = theirs(agents.transitions())
    td = soft_outputs(theirs, actor, critic, theirs.qvalue_network_params)
    found = crossq_critic_loss(td, gamma=GAMMA, alpha=ALPHA, distance=smooth)  # theirs by default
    same_slopes(found["loss_critic"], wanted["loss_qvalue"], theirs.qvalue_network_params)
    assert_close(found["td_error"], wanted["td_error"])
    plain = sac_critic_loss(td, gamma=GAMMA, alpha=ALPHA)
    assert_close(crossq_critic_loss(td, gamma=GAMMA, alpha=ALPHA), plain)
    policy = sac_actor_loss(td, alpha=ALPHA)["loss_actor"]
    same_slopes(policy, wanted["loss_actor"], theirs.actor_network_params)


def test_tqc_is_torchrls():
    theirs, actor, critic = build(
        TQCLoss, outputs=5, num_qvalue_nets=2, top_quantiles_to_drop_per_net=2
    )
    batch = agents.transitions()
    wanted = theirs(batch)
    key = "state_action_quantiles"
    td = soft_outputs(theirs, actor, critic, theirs.target_qvalue_network_params, key)
    found = tqc_critic_loss(td, gamma=GAMMA, alpha=ALPHA)
    same_slopes(found["loss_critic"], wanted["loss_qvalue"], theirs.qvalue_network_params)
    assert_close(found["td_error"], batch["td_error"])
    finished = add_truncated_quantile_target(td, GAMMA, ALPHA)
    assert_close(finished["value_target"], theirs.compute_target(agents.transitions()))
    assert_close(tqc_critic_loss(finished)["loss_critic"], found["loss_critic"])
    policy = tqc_actor_loss(td, alpha=ALPHA)["loss_actor"]
    same_slopes(policy, wanted["loss_actor"], theirs.actor_network_params)


ACTIONS = 4


def discrete_agent():
    torch.manual_seed(0)
    actor = ProbabilisticTensorDictSequential(
        Module(nn.Linear(agents.OBSERVATION, ACTIONS).double(), ["observation"], ["logits"]),
        ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=OneHotCategorical),
    )
    net = nn.Sequential(nn.Linear(agents.OBSERVATION, 4), nn.Tanh(), nn.Linear(4, ACTIONS))
    return actor, Module(net.double(), ["observation"], ["action_value"])


@pytest.mark.parametrize("one_hot", [False, True], ids=["index", "one-hot"])
def test_discrete_sac_is_torchrls(one_hot):
    actor, critic = discrete_agent()
    theirs = DiscreteSACLoss(
        actor,
        critic,
        action_space="one-hot" if one_hot else "categorical",
        num_actions=ACTIONS,
        alpha_init=ALPHA,
    )
    theirs.make_value_estimator(gamma=GAMMA)
    theirs.double()
    agents.part_ways(theirs.qvalue_network_params, theirs.target_qvalue_network_params)
    batch = agents.transitions()
    action = torch.tensor([0, 3, 1, 1, 2, 0])
    batch["action"] = F.one_hot(action, ACTIONS) if one_hot else action
    td = batch.copy()
    wanted = theirs(batch)

    policy, q = theirs.actor_network_params, theirs.qvalue_network_params
    td["logits"] = logits(actor, policy, td)
    td["action_value"] = agents.ensemble(critic, q, td, "action_value")
    held = agents.ensemble(critic, q.detach(), td, "action_value")
    after = td["next"].copy()
    value = agents.ensemble(critic, theirs.target_qvalue_network_params, after, "action_value")
    td["next"] = after.update({"logits": logits(actor, policy, after), "action_value": value})

    found = discrete_sac_critic_loss(td, gamma=GAMMA, alpha=ALPHA, distance=smooth)
    same_slopes(found["loss_critic"], wanted["loss_qvalue"], q)
    assert_close(found["td_error"], batch["td_error"])
    td["action_value"] = held
    found = discrete_sac_actor_loss(td, alpha=ALPHA)
    same_slopes(found["loss_actor"], wanted["loss_actor"], policy)
    assert_close(found["entropy"], wanted["entropy"])
    found = discrete_sac_temperature_loss(td, log_alpha=theirs.log_alpha)["loss_alpha"]
    assert_close(found, wanted["loss_alpha"], rtol=1e-5, atol=0)  # their entropy is in float32
    a, b = (torch.autograd.grad(x, theirs.log_alpha)[0] for x in (found, wanted["loss_alpha"]))
    assert_close(a, b, rtol=1e-5, atol=0)


def logits(actor, params, td):
    with params.to_module(actor):
        return actor.get_dist(td.copy()).logits
