# pyright: reportArgumentType=false, reportCallIssue=false
"""TorchRL's A2CLoss and ReinforceLoss on the same tensors, and DiCE against enumeration."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule as Sampler
from tensordict.nn import ProbabilisticTensorDictSequential as Actor
from tensordict.nn import TensorDictModule as Module
from torch.distributions import Categorical
from torch.func import grad, hessian, jacrev, vmap
from torch.testing import assert_close
from torchrl.objectives import A2CLoss, ReinforceLoss

from losses import (
    a2c_loss,
    add_advantage,
    dice_loss,
    entropy_loss,
    independent_normal,
    joint,
    magic_box,
    policy_gradient_loss,
    reinforce_loss,
    total,
)

D = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchrl", "ignore::DeprecationWarning")


@pytest.fixture
def finished(trajectory):
    return lambda *batch, **shape: add_advantage(trajectory(*batch, **shape), 0.9, 0.8).unlock_()


def pass_through(td):
    """An actor and a critic that give what stands in the td under other names."""
    actor = Actor(
        Module(lambda x: x + 0, ["given_logits"], ["logits"]),
        Sampler(["logits"], ["action"], distribution_class=Categorical),
    )
    critic = Module(lambda x: x + 0, ["given_value"], ["state_value"])
    return actor, critic


def of_torchrl(make, td, old_value, logits, value):
    data = td.exclude("logits", "state_value").clone()
    data["given_logits"], data["given_value"] = logits, value.unsqueeze(-1)
    data["state_value"] = old_value.unsqueeze(-1)  # TorchRL's place for the value from before
    for key in ("advantage", "value_target"):
        data[key] = data[key].unsqueeze(-1)
    loss = make(*pass_through(td))
    return loss(data)


@pytest.mark.parametrize("value_clip", [None, 0.25])
@pytest.mark.parametrize("kind", ["l2", "smooth_l1", "l1"])
def test_a2c_is_torchrls(finished, kind, value_clip):
    td = finished(3)
    old = td["state_value"] + 0.8 * td["logits"][..., 0]
    make = partial(
        A2CLoss,
        loss_critic_type=kind,
        entropy_coeff=0.125,
        critic_coeff=0.75,
        clip_value=value_clip,
    )
    distance = {
        "l2": partial(F.mse_loss, reduction="none"),
        "smooth_l1": partial(F.smooth_l1_loss, reduction="none"),
        "l1": partial(F.l1_loss, reduction="none"),
    }[kind]
    td["behavior"] = TensorDict({"state_value": old}, (3, 6))

    def ours(logits, value):
        out = td.copy().update({"logits": logits, "state_value": value})
        hyper = {"critic_coeff": 0.75, "entropy_coeff": 0.125, "value_clip": value_clip}
        return a2c_loss(out, distance=distance, **hyper)

    compare(ours, partial(of_torchrl, make, td, old), td, {})


@pytest.mark.parametrize("value_clip", [None, 0.25])
def test_reinforce_is_torchrls(finished, value_clip):
    td = finished(3)
    old = td["state_value"] + 0.8 * td["logits"][..., 0]
    make = partial(ReinforceLoss, loss_critic_type="l2", clip_value=value_clip)
    td["behavior"] = TensorDict({"state_value": old}, (3, 6))

    def ours(logits, value):
        out = td.copy().update({"logits": logits, "state_value": value})
        return reinforce_loss(out, value_clip=value_clip)

    names = {"loss_objective": "loss_actor", "loss_critic": "loss_value"}
    compare(ours, partial(of_torchrl, make, td, old), td, names)


def compare(ours, peer, td, names):
    leaves = [td[k].clone().requires_grad_() for k in ("logits", "state_value")]
    found, wanted = ours(*leaves), peer(*leaves)
    for name in found.keys():
        assert_close(found[name], wanted[names.get(name, name)].reshape(()), rtol=1e-9, atol=1e-9)
    pair = [sum(x for k, x in out.items() if k.startswith("loss_")) for out in (found, wanted)]
    grads = [torch.autograd.grad(x, leaves) for x in pair]
    assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_reinforce_does_not_detach_an_advantage(finished):
    td = finished(3)

    def f(advantage):
        return total(reinforce_loss(td.copy().set("advantage", advantage)))

    log_prob = td["logits"].log_softmax(-1).gather(-1, td["action"].unsqueeze(-1)).squeeze(-1)
    assert_close(grad(f)(td["advantage"]), -log_prob / 18)
    same = reinforce_loss(td), a2c_loss(td, critic_coeff=1.0)
    for name in ("loss_objective", "loss_critic"):
        assert_close(same[0][name], same[1][name])


def test_value_clip_may_be_an_entry_and_has_its_gradient(finished, central):
    td = finished(3)
    td["behavior"] = TensorDict({"state_value": td["state_value"] + 0.7}, (3, 6))

    def f(clip):
        return total(a2c_loss(td, value_clip=clip))

    clip = torch.tensor(0.3, dtype=D)
    assert_close(grad(f)(clip), central(f, clip))
    assert grad(f)(clip) != 0
    entry = td.copy().set("value_clip", clip.expand(3, 6))
    assert_close(total(a2c_loss(entry)), f(0.3))
    with pytest.raises(ValueError, match=r"no 'behavior.state_value'.*way from there"):
        a2c_loss(td.exclude("behavior"), value_clip=0.2)
    with pytest.raises(ValueError, match="value_clip is -1"):
        a2c_loss(td, value_clip=-1)


def test_entropy_loss_is_the_entropy(finished):
    td = finished(3)
    entropy = Categorical(logits=td["logits"]).entropy()
    assert_close(entropy_loss(td)["loss_entropy"], -entropy.mean())
    weights = torch.rand(3, 6, dtype=D)
    out = entropy_loss(td, entropy_coeff=weights, reduction="none")
    assert_close(out["loss_entropy"], -weights * entropy)
    assert_close(out["entropy"], entropy)
    one_step = TensorDict({"logits": td["logits"][0, 0]}, [])
    assert_close(entropy_loss(one_step)["loss_entropy"], -entropy[0, 0])


def test_large_log_probabilities_and_equal_advantages_in_float32(finished):
    td = finished(3)
    for key in ("state_value", "value_target"):
        td[key] = td[key].float()
    td["logits"] = td["logits"].float() * 80
    td["advantage"] = torch.zeros(3, 6)
    for loss in (a2c_loss, reinforce_loss, policy_gradient_loss):
        slope = grad(lambda x, loss=loss: total(loss(td.copy().set("logits", x))))(td["logits"])
        assert slope.isfinite().all()


# ---- DiCE


def test_magic_box_is_one_and_its_derivatives_are_those_of_a_probability():
    p = torch.tensor(0.3, dtype=D)

    def box(p):
        return magic_box(p.log())

    assert box(p) == 1
    assert_close(grad(box)(p), 1 / p)
    assert_close(grad(grad(box))(p), torch.zeros((), dtype=D))  # p'' / p
    with pytest.raises(TypeError, match="magic_box: log_prob has dtype int64"):
        magic_box(torch.tensor(1))


GAMMA = 0.9
STEPS, STATES, ACTIONS = 3, 2, 2


def world():
    """A tabular world: rewards [S, A], chances [S, A, S]; every episode takes STEPS steps."""
    draw = torch.Generator().manual_seed(3)
    reward = torch.randn(STATES, ACTIONS, generator=draw, dtype=D)
    return reward, torch.rand(STATES, ACTIONS, STATES, generator=draw, dtype=D).softmax(-1)


REWARD, CHANCE = world()


def expected_return(logits, gamma):
    """By dynamic programming."""
    policy = logits.softmax(-1)
    value = torch.zeros(STATES, dtype=D)
    for _ in range(STEPS):
        value = (policy * (REWARD + gamma * CHANCE @ value)).sum(-1)
    return value[0]


def all_episodes():
    """Each course of states and actions from state 0, and the chance of its states."""
    rows = []
    for actions in itertools.product(range(ACTIONS), repeat=STEPS):
        for later in itertools.product(range(STATES), repeat=STEPS - 1):
            states = (0, *later)
            p = 1.0
            for t in range(STEPS - 1):
                p = p * CHANCE[states[t], actions[t], states[t + 1]]
            rows.append((states, actions, p))
    states, actions, p = (torch.tensor(x) for x in zip(*rows, strict=True))
    return states, actions, p.double(), REWARD[states, actions]


EPISODES = all_episodes()


def dice_of_all(logits, gamma, baseline, concatenated=False):
    """The loss on each episode, weighted by its chance under the policy that sampled it."""
    states, actions, p, reward = EPISODES
    sampled = logits.detach().log_softmax(-1)[states, actions].sum(-1).exp()
    done = torch.zeros(states.shape, dtype=torch.bool)
    done[:, -1] = True
    entries = {"logits": logits[states], "action": actions}
    if baseline:
        entries["state_value"] = torch.tensor([0.7, -0.4], dtype=D)[states]
    td = TensorDict({**entries, "next": {"reward": reward, "done": done}}, states.shape)
    if concatenated:
        td = td.reshape(-1)
    loss = dice_loss(td, gamma=gamma, reduction="none")["loss_objective"]
    return -(loss.reshape(states.shape).sum(-1) * p * sampled).sum()


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("concatenated", [False, True])
def test_dice_has_the_derivatives_of_the_expected_return(baseline, concatenated):
    logits = torch.tensor([[0.3, -0.2], [0.5, 0.1]], dtype=D)
    gamma = torch.tensor(GAMMA, dtype=D)
    dice = partial(dice_of_all, baseline=baseline, concatenated=concatenated)
    assert_close(dice(logits, gamma), expected_return(logits, gamma))
    assert_close(grad(dice)(logits, gamma), grad(expected_return)(logits, gamma))
    assert_close(hessian(dice)(logits, gamma), hessian(expected_return)(logits, gamma))
    assert_close(grad(dice, 1)(logits, gamma), grad(expected_return, 1)(logits, gamma))
    mixed = [jacrev(grad(f), 1)(logits, gamma) for f in (dice, expected_return)]
    assert_close(*mixed)
    third = [jacrev(hessian(f))(logits, gamma) for f in (dice, expected_return)]
    assert_close(*third)


PAYOFF = torch.tensor([[[-1.0, -3.0], [0.0, -2.0]], [[-1.0, 0.0], [-3.0, -2.0]]], dtype=D)


def dilemma(x, y, player):
    """Exact payoff of one round."""
    return x.softmax(-1) @ PAYOFF[player] @ y.softmax(-1)


def dice_dilemma(x, y, player):
    index = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    p = x.detach().softmax(-1)[index[:, 0]] * y.detach().softmax(-1)[index[:, 1]]
    params = {name: {"logits": z.expand(4, 1, 2)} for name, z in (("x", x), ("y", y))}
    action = {"x": index[:, :1], "y": index[:, 1:]}
    reward = PAYOFF[player][index[:, 0], index[:, 1]].unsqueeze(-1)
    follows = {"reward": reward, "done": torch.ones(4, 1, dtype=torch.bool)}
    td = TensorDict({"params": params, "action": action, "next": follows}, (4, 1))
    out = dice_loss(td, joint(x=Categorical, y=Categorical), gamma=0.96, reduction="none")
    return -(out["loss_objective"].squeeze(-1) * p).sum()


def test_a_look_ahead_with_dice_is_the_exact_one():
    x, y = torch.tensor([[0.2, -0.1], [0.4, 0.3]], dtype=D)

    def look_ahead(payoff):
        def f(x):
            moved = y + 0.3 * grad(payoff, 1)(x, y, 1)
            return payoff(x, moved, 0)

        return grad(f)(x)

    assert_close(look_ahead(dice_dilemma), look_ahead(dilemma))


def lola_code(log_prob, value, reward, gamma):
    """The objective of LOLA's published code: [N, T] arrays, episodes of one length."""
    discount = gamma ** torch.arange(reward.shape[1], dtype=D)

    def box(x):
        return (x - x.detach()).exp()

    objective = (box(log_prob.cumsum(1)) * reward * discount).sum(1).mean()
    return -objective - ((1 - box(log_prob)) * value * discount).sum(1).mean()


def test_dice_is_the_published_code(trajectory):
    td = trajectory(4, steps=20)
    td["next", "done"][:] = False

    def ours(logits, value, gamma):
        out = td.copy().update({"logits": logits, "state_value": value})
        return 20 * dice_loss(out, gamma=gamma)["loss_objective"]

    def peer(logits, value, gamma):
        log_prob = logits.log_softmax(-1).gather(-1, td["action"].unsqueeze(-1)).squeeze(-1)
        return lola_code(log_prob, value, td["next", "reward"], gamma)

    args = td["logits"], td["state_value"], torch.tensor(0.96, dtype=D)
    assert_close(ours(*args), peer(*args))
    assert_close(grad(ours, (0, 1, 2))(*args), grad(peer, (0, 1, 2))(*args))
    pair = [grad(lambda *a, f=f: grad(f)(*a).sin().sum(), (0, 1, 2))(*args) for f in (ours, peer)]
    assert_close(*pair)


def test_episodes_of_dice_are_apart(trajectory, variant):
    td = trajectory(steps=7)
    td["next", "done"] = torch.tensor([0, 0, 1, 0, 0, 0, 1]).bool()
    whole = dice_loss(td, gamma=0.9, reduction="none")["loss_objective"]
    parts = [dice_loss(x, gamma=0.9, reduction="none")["loss_objective"] for x in td.split([3, 4])]
    assert_close(whole, torch.cat(parts))
    first = dice_loss(td[:1], gamma=0.9)["loss_objective"]
    assert_close(first, -td["next", "reward"][0])

    def f(logits, gamma):
        return dice_loss(td.copy().set("logits", logits), gamma=gamma)["loss_objective"]

    def apart(logits, gamma):
        td_ = td.copy().set("logits", logits)
        pair = zip(td_.split([3, 4]), gamma.split([3, 4]), strict=True)
        return sum(dice_loss(x, gamma=g, reduction="sum")["loss_objective"] for x, g in pair) / 7

    gamma = torch.linspace(0.5, 0.95, 7, dtype=D)
    for argnum in (0, 1):
        found = variant(grad(f, argnum))(td["logits"], gamma)
        assert_close(found, grad(apart, argnum)(td["logits"], gamma))


def test_a_masked_step_cuts_dice(trajectory):
    td = trajectory(steps=7)
    td["next", "done"][:] = False
    mask = torch.tensor([1, 1, 1, 0, 1, 1, 1]).bool()
    spoiled = td.clone()
    for key in ("logits", "state_value", ("next", "reward")):
        spoiled[key][3] = torch.nan
    spoiled["action"][3] = -5

    def f(x, td):
        return dice_loss(td.copy().set("logits", x).set("mask", mask), gamma=0.9, reduction="sum")

    out = f(spoiled["logits"], spoiled)["loss_objective"]
    parts = [dice_loss(x, gamma=0.9, reduction="sum")["loss_objective"] for x in (td[:3], td[4:])]
    assert_close(out, sum(parts))
    slope = grad(lambda x: f(x, spoiled)["loss_objective"])(spoiled["logits"])
    assert slope.isfinite().all() and (slope[3] == 0).all()
    for part in (slice(0, 3), slice(4, 7)):
        alone = grad(lambda x, p=part: f_alone(x, td[p]))(td["logits"][part])
        assert_close(slope[part], alone)


def f_alone(logits, td):
    out = td.copy().set("logits", logits)
    return dice_loss(out, gamma=0.9, reduction="sum")["loss_objective"]


def test_a_discount_of_each_step_is_for_those_that_follow(trajectory):
    td, gamma = trajectory(2, steps=4), torch.rand(2, 4, dtype=D)
    td["next", "done"] = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    loss = dice_loss(td, gamma=gamma, reduction="none")["loss_objective"]
    for i, starts in enumerate(((0,), (0, 2))):
        weight = 1.0
        for t in range(4):
            weight = 1.0 if t in starts else weight * gamma[i, t - 1]
            assert_close(loss[i, t], -weight * td["next", "reward"][i, t])


def test_dice_of_real_actions_and_bad_input(trajectory):
    td = trajectory(3).exclude("logits")
    td["loc"], td["scale"] = torch.zeros(3, 6, 2, dtype=D), torch.ones(3, 6, 2, dtype=D)
    td["action"] = torch.randn(3, 6, 2, dtype=D)
    assert dice_loss(td, independent_normal, gamma=0.9)["loss_objective"].isfinite()
    mapped = vmap(lambda x: dice_loss(x, independent_normal, gamma=0.9)["loss_objective"])(td)
    assert_close(mapped.mean(), dice_loss(td, independent_normal, gamma=0.9)["loss_objective"])
    with pytest.raises(ValueError, match="dice_loss: gamma is neither given"):
        dice_loss(td, independent_normal)
    with pytest.raises(ValueError, match=r"dice_loss: the td has no 'next.done'"):
        dice_loss(td.exclude(("next", "done")), independent_normal, gamma=0.9)
    with pytest.raises(ValueError, match=r"dice_loss: the td has batch size \[\]"):
        dice_loss(td[0, 0], independent_normal, gamma=0.9)
