# pyright: reportArgumentType=false, reportCallIssue=false
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.func import grad
from torch.testing import assert_close
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss, ValueEstimators

from losses import (
    absolute_error,
    add_q_target,
    double_q_learning_error,
    double_q_learning_loss,
    expected_sarsa_error,
    huber_error,
    persistent_q_error,
    q_learning_error,
    q_learning_loss,
    sarsa_error,
    squared_error,
    td_error,
    td_targets,
)

D = torch.float64
STATES, ACTIONS = 7, 3
GAMMA = 0.875  # exact in float32, which TorchRL keeps it in


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=D, generator=draw(seed))


def steps(*size, seed=0):
    """Indices of states and actions, rewards and flags, without any value."""
    g = draw(seed)
    done = torch.rand(size, generator=g) < 0.4
    after = {
        "state": torch.randint(0, STATES, size, generator=g),
        "reward": torch.randn(size, dtype=D, generator=g),
        "done": done,
        "terminated": done & (torch.rand(size, generator=g) < 0.6),
    }
    entries = {
        "state": torch.randint(0, STATES, size, generator=g),
        "action": torch.randint(0, ACTIONS, size, generator=g),
        "next": TensorDict(after, size),
    }
    return TensorDict(entries, size)


TABLE, TARGET = normal(STATES, ACTIONS, seed=1), normal(STATES, ACTIONS, seed=2)


def valued(td, table=TABLE, target=TARGET):
    """The td with the values that tables over states give."""
    out = td.clone()
    out["action_value"] = table[td["state"]]
    out["next", "action_value"] = target[td["next", "state"]]
    out["next", "action_value_selector"] = table[td["next", "state"]]
    return out


# ---- errors


def rule(name, q, r, q_next, ended, gamma, a, other, scale):
    """The target minus the prediction of one step, in numbers."""
    gamma = 0.0 if ended else gamma
    greedy = max(q_next)
    after = {
        "q": greedy,
        "double": q_next[other.index(max(other))],
        "sarsa": q_next[(a + 1) % ACTIONS],
        "expected": sum(p * x for p, x in zip(softmax(other), q_next, strict=True)),
        "persistent": (1 - scale) * greedy + scale * q_next[a],
    }[name]
    return r + gamma * after - q[a]


def softmax(x):
    return torch.tensor(x, dtype=D).softmax(-1).tolist()


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("size", [(6,), (5, 2), ()], ids=str)
def test_errors_are_their_equations(size, one_hot):
    td = valued(steps(*size))
    other = td["next", "action_value_selector"]
    action, again = td["action"], (td["action"] + 1) % ACTIONS
    if one_hot:
        action, again = (torch.nn.functional.one_hot(a, ACTIONS) for a in (action, again))
    q, r, after = td["action_value"], td["next", "reward"], td["next", "action_value"]
    ended = td["next", "terminated"]
    found = {
        "q": q_learning_error(q, action, r, after, ended, 0.9),
        "double": double_q_learning_error(q, action, r, after, other, ended, 0.9),
        "sarsa": sarsa_error(q, action, r, after, again, ended, 0.9),
        "expected": expected_sarsa_error(q, action, r, after, other.softmax(-1), ended, 0.9),
        "persistent": persistent_q_error(q, action, r, after, ended, 0.9, 0.3),
    }
    for name, error in found.items():
        assert error.shape == size
        rows = zip(
            q.reshape(-1, ACTIONS).tolist(),
            r.flatten().tolist(),
            after.reshape(-1, ACTIONS).tolist(),
            ended.flatten().tolist(),
            td["action"].flatten().tolist(),
            other.reshape(-1, ACTIONS).tolist(),
            strict=True,
        )
        expected = [rule(name, q, r, n, e, 0.9, a, o, 0.3) for q, r, n, e, a, o in rows]
        assert_close(error.flatten(), torch.tensor(expected, dtype=D))


def test_errors_that_are_td_errors_of_chosen_values():
    td = valued(steps(8))
    q, r, ended = td["action_value"], td["next", "reward"], td["next", "terminated"]
    after = td["next", "action_value"]
    chosen = q.gather(-1, td["action"].unsqueeze(-1)).squeeze(-1)
    assert_close(
        td_error(chosen, r, after.amax(-1), ended, 0.9),
        q_learning_error(q, td["action"], r, after, ended, 0.9),
    )
    greedy = persistent_q_error(q, td["action"], r, after, ended, 0.9, 0.0)
    assert_close(greedy, q_learning_error(q, td["action"], r, after, ended, 0.9))
    once = torch.nn.functional.one_hot(after.argmax(-1), ACTIONS).to(D)
    assert_close(expected_sarsa_error(q, td["action"], r, after, once, ended, 0.9), greedy)
    assert_close(sarsa_error(q, td["action"], r, after, after.argmax(-1), ended, 0.9), greedy)
    assert_close(double_q_learning_error(q, td["action"], r, after, after, ended, 0.9), greedy)


def test_of_equal_values_the_first_counts():
    q, r = torch.zeros(1, 3, dtype=D), torch.zeros(1, dtype=D)
    a, going = torch.tensor([0]), torch.tensor([False])
    equal = torch.tensor([[1.0, 2.0, 2.0]], dtype=D)
    of_next = grad(lambda n: q_learning_error(q, a, r, n, going, 0.5).sum())(equal)
    assert of_next.tolist() == [[0.0, 0.5, 0.0]]
    values = torch.tensor([[5.0, 6.0, 7.0]], dtype=D)
    assert double_q_learning_error(q, a, r, values, equal, going, 1.0).tolist() == [6.0]
    none = torch.zeros(1, 3, dtype=D)
    assert double_q_learning_error(q, a, r, values, none, going, 1.0).tolist() == [5.0]


@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
def test_what_follows_a_terminated_step_is_without_influence(junk):
    q, a = normal(2, 3), torch.tensor([0, 2])
    r, ended = torch.ones(2, dtype=D), torch.tensor([True, False])
    after = normal(2, 3, seed=1)
    after[0] = junk
    probs = after.softmax(-1)
    other = torch.tensor([-9, 1])
    gamma = torch.tensor(0.9, dtype=D)
    calls = {
        "q": lambda q, n, p, g: q_learning_error(q, a, r, n, ended, g),
        "double": lambda q, n, p, g: double_q_learning_error(q, a, r, n, n, ended, g),
        "sarsa": lambda q, n, p, g: sarsa_error(q, a, r, n, other, ended, g),
        "expected": lambda q, n, p, g: expected_sarsa_error(q, a, r, n, p, ended, g),
        "persistent": lambda q, n, p, g: persistent_q_error(q, a, r, n, ended, g, 0.1),
    }
    for call in calls.values():
        found = call(q, after, probs, gamma)
        assert_close(found[0], 1 - q[0, 0])
        slopes = grad(lambda *x, c=call: c(*x).sum(), (0, 1, 2, 3))(q, after, probs, gamma)
        assert all(x.isfinite().all() for x in slopes)
        assert (slopes[1][0] == 0).all() and (slopes[2][0] == 0).all()


def test_probabilities_of_zero_and_one():
    q, a = normal(1, 3), torch.tensor([1])
    r, going, after = torch.ones(1, dtype=D), torch.tensor([False]), normal(1, 3, seed=1)
    sure = torch.tensor([[0.0, 1.0, 0.0]], dtype=D)
    found = expected_sarsa_error(q, a, r, after, sure, going, 0.5)
    assert_close(found, 1 + 0.5 * after[:, 1] - q[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_keep_the_dtype(dtype):
    td = valued(steps(4))
    q, r, n = (
        td[k].to(dtype) for k in ("action_value", ("next", "reward"), ("next", "action_value"))
    )
    gamma = torch.tensor(0.9, dtype=D)
    assert q_learning_error(q, td["action"], r, n, td["next", "terminated"], gamma).dtype == dtype
    low = td.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)
    for hyper in (0.9, gamma):
        for key in q_learning_loss(low, gamma=hyper).keys():
            assert q_learning_loss(low, gamma=hyper)[key].dtype == dtype


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"reward": torch.zeros(3)},
            ValueError,
            r"reward has shape \(3,\), expected \(5,\) \(from",
        ),
        (
            {"next_action_value": torch.zeros(5, 2)},
            ValueError,
            r"next_action_value has shape \(5, 2",
        ),
        ({"action": torch.zeros(5)}, TypeError, "action of shape .* has dtype float32"),
        ({"action": torch.full((5,), 3)}, ValueError, "action holds an index outside of 0 to 2"),
        (
            {"action": torch.zeros(4).long()},
            ValueError,
            r"action has shape \(4,\), expected an index",
        ),
        ({"terminated": torch.zeros(5)}, TypeError, "terminated has dtype float32, expected bool"),
        ({"gamma": -0.1}, ValueError, "gamma is -0.1, expected a number from 0 to 1"),
        ({"gamma": torch.ones(3)}, ValueError, r"gamma has shape \(3,\), expected one that broadc"),
        ({"action_value": torch.zeros(5, 0)}, ValueError, r"action_value has shape \(5, 0\), expe"),
        ({"action_value": torch.zeros(5, 3).long()}, TypeError, "action_value has dtype int64"),
    ],
)
def test_bad_arguments(change, error, text):
    args = {
        "action_value": torch.zeros(5, 3),
        "action": torch.zeros(5).long(),
        "reward": torch.zeros(5),
        "next_action_value": torch.zeros(5, 3),
        "terminated": torch.zeros(5, dtype=torch.bool),
        "gamma": 0.9,
    }
    with pytest.raises(error, match=f"^q_learning_error: {text}"):
        q_learning_error(**{**args, **change})
    with pytest.raises(
        ValueError, match="^persistent_q_error: action_gap_scale is 2, expected a n"
    ):
        persistent_q_error(**args, action_gap_scale=2)
    with pytest.raises(
        ValueError, match="^sarsa_error: next_action holds an index outside of 0 to"
    ):
        sarsa_error(**args, next_action=torch.full((5,), 3))
    with pytest.raises(ValueError, match=r"^expected_sarsa_error: next_probs has shape \(5, 1\), "):
        expected_sarsa_error(**args, next_probs=torch.zeros(5, 1))


# ---- reducers


class Table(nn.Module):
    """Values of the actions, by the state's index."""

    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(values.clone())

    def forward(self, state):
        return self.weight[state]


def torchrl_dqn(td, double, kind, n_step):
    """TorchRL's loss, its gradient in the learning table, and the priority that it writes."""
    net = QValueActor(Table(TABLE), in_keys=["state"], action_space="categorical")
    loss = DQNLoss(
        net, loss_function=kind, delay_value=True, double_dqn=double, action_space="categorical"
    )
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    for x in loss.target_value_network_params.values(True, True):
        x.data.copy_(TARGET)
    shaped = td.clone()
    for key in (("next", "reward"), ("next", "done"), ("next", "terminated")):
        shaped[key] = shaped[key].unsqueeze(-1)
    if n_step:
        shaped["steps_to_next_obs"] = shaped["steps_to_next_obs"].unsqueeze(-1)
    out = loss(shaped)["loss"]
    (slope,) = torch.autograd.grad(out, list(loss.value_network_params.values(True, True)))
    return out.detach(), slope, shaped["td_error"].squeeze(-1)


DISTANCES = {"l2": squared_error, "l1": absolute_error, "smooth_l1": huber_error}


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
@pytest.mark.parametrize("n_step", [False, True])
@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("double", [False, True])
def test_q_learning_is_torchrls(double, kind, n_step):
    td = steps(30)
    if n_step:
        td["steps_to_next_obs"] = torch.randint(1, 4, (30,), generator=draw(3))
    expected, slope, priority = torchrl_dqn(td, double, kind, n_step)
    reducer = double_q_learning_loss if double else q_learning_loss

    def ours(table):
        return reducer(valued(td, table), gamma=GAMMA, distance=DISTANCES[kind])

    assert_close(ours(TABLE)["loss_critic"], expected)
    assert_close(grad(lambda t: ours(t)["loss_critic"])(TABLE), slope)
    assert_close(ours(TABLE)["td_error"].square(), priority)  # ours is the error, not its square


def test_q_learning_does_not_read_a_selector():
    td = valued(steps(30))
    plain = td.exclude(("next", "action_value_selector"))
    assert_close(
        q_learning_loss(td, gamma=0.9)["loss_critic"],
        q_learning_loss(plain, gamma=0.9)["loss_critic"],
    )


@pytest.mark.parametrize("reducer", [q_learning_loss, double_q_learning_loss])
def test_targets_made_inside_are_those_made_outside(reducer):
    td = valued(steps(4, 6))
    td["steps_to_next_obs"] = torch.randint(1, 4, (4, 6, 1), generator=draw(3))
    source = td
    if reducer is q_learning_loss:
        source = td.exclude(("next", "action_value_selector"))
    made = reducer(add_q_target(source, 0.9))
    for hyper in ({"gamma": 0.9}, {"gamma": torch.full((4, 6), 0.9, dtype=D)}):
        found = reducer(td, **hyper)
        for name in made.keys():
            assert_close(found[name], made[name])
    entry = reducer(td.copy().set("gamma", 0.9 ** td["steps_to_next_obs"].to(D)))  # gamma^n
    assert_close(entry["loss_critic"], made["loss_critic"])


@pytest.mark.parametrize("reducer", [q_learning_loss, double_q_learning_loss])
def test_the_full_stop(reducer):
    td = valued(steps(4, 6))

    def inside(q, after, other):
        next_ = td["next"].copy().update({"action_value": after, "action_value_selector": other})
        changed = td.copy().update({"action_value": q, "next": next_})
        return reducer(changed, gamma=0.9)["loss_critic"]

    x = (td["action_value"], td["next", "action_value"], td["next", "action_value_selector"])
    of_q, of_after, of_other = grad(inside, (0, 1, 2))(*x)
    assert (of_after == 0).all() and (of_other == 0).all() and of_q.abs().sum() > 0

    def finished(target):
        return reducer(td.copy().set("value_target", target))["loss_critic"]

    chosen = td["action_value"].gather(-1, td["action"].unsqueeze(-1)).squeeze(-1)
    target = add_q_target(td, 0.9)["value_target"]
    assert_close(grad(finished)(target), 2 * (target - chosen) / 24)


def test_a_forbidden_action_is_not_chosen():
    td = valued(steps(3, 4))
    q, other = td["next", "action_value"], td["next", "action_value_selector"]
    mask = torch.rand(3, 4, ACTIONS, generator=draw(5)) < 0.5
    mask[..., 1] = mask[..., 1] | ~mask.any(-1)
    junk = torch.where(mask, q, torch.nan)
    for reducer, chooser in ((q_learning_loss, q), (double_q_learning_loss, other)):
        best = torch.where(mask, chooser, -torch.inf).argmax(-1, keepdim=True)
        after = td_targets(
            td["next", "reward"], q.gather(-1, best)[..., 0], td["next", "terminated"], 0.9
        )
        allowed = td.clone().set(("next", "action_mask"), mask)
        if reducer is q_learning_loss:
            allowed = allowed.exclude(("next", "action_value_selector"))
        out = reducer(allowed, gamma=0.9, reduction="none")
        assert_close(out["target_value"], after)
        assert (after != reducer(td, gamma=0.9, reduction="none")["target_value"]).any()
        finished = add_q_target(allowed, 0.9)
        assert_close(finished["value_target"], after)
        assert_close(reducer(finished)["loss_critic"], reducer(allowed, gamma=0.9)["loss_critic"])
    spoiled = allowed.clone()
    spoiled["next", "action_value"] = junk
    slopes = grad(lambda gamma: double_q_learning_loss(spoiled, gamma=gamma)["loss_critic"])
    assert slopes(torch.tensor(0.9, dtype=D)).isfinite()
    assert_close(add_q_target(spoiled, 0.9)["value_target"], after)
    for wrong, error in ((mask.double(), TypeError), (mask[..., :2], ValueError)):
        with pytest.raises(error, match="^add_q_target: next.action_mask has"):
            add_q_target(td.clone().set(("next", "action_mask"), wrong), 0.9)


@pytest.mark.parametrize("reducer", [q_learning_loss, double_q_learning_loss])
def test_gradient_of_the_discount(reducer, central, variant):
    td = valued(steps(3, 4))
    td["steps_to_next_obs"] = torch.randint(1, 4, (3, 4), generator=draw(3))

    def f(gamma):
        return reducer(td, gamma=gamma)["loss_critic"]

    gamma = torch.tensor(0.9, dtype=D)
    found = variant(grad(f))(gamma)
    assert_close(found, central(f, gamma), rtol=1e-6, atol=1e-8)
    assert found.abs() > 1e-3
    zero = torch.zeros((), dtype=D)
    assert_close(grad(f)(zero), central(f, zero), rtol=1e-5, atol=1e-7)
    assert grad(grad(f))(zero).isfinite()
    per_step = torch.full((3, 4), 0.9, dtype=D)
    assert_close(grad(f)(per_step), central(f, per_step), rtol=1e-6, atol=1e-8)


def test_a_step_whose_episode_is_over():
    td = valued(steps(5))
    td["next", "terminated"] = torch.ones(5, dtype=torch.bool)
    td["next", "action_value"] = torch.full((5, ACTIONS), torch.nan, dtype=D)
    td["next", "action_value_selector"] = torch.full((5, ACTIONS), torch.nan, dtype=D)
    chosen = td["action_value"].gather(-1, td["action"].unsqueeze(-1)).squeeze(-1)
    expected = (chosen - td["next", "reward"]).square().mean()
    for reducer in (q_learning_loss, double_q_learning_loss):
        assert_close(reducer(td, gamma=0.9)["loss_critic"], expected)
        one = reducer(td[0], gamma=0.9)  # no time at all
        assert one["td_error"].shape == ()


@pytest.mark.parametrize(
    ("change", "hyper", "error", "text"),
    [
        (lambda td: td, {}, ValueError, "td has no 'value_target'.*add_q_target.*or give gamma"),
        (
            lambda td: td.set("value_target", torch.zeros(4, dtype=D)),
            {"gamma": 0.9},
            ValueError,
            "gamma is given, but the td already holds 'value_target'",
        ),
        (
            lambda td: td.exclude(("next", "action_value_selector")),
            {"gamma": 0.9},
            ValueError,
            "td has no 'next.action_value_selector'",
        ),
        (
            lambda td: td.exclude(("next", "action_value")),
            {"gamma": 0.9},
            ValueError,
            "td has no 'next.action_value'",
        ),
        (
            lambda td: td.set(("next", "action_value"), torch.zeros(4, 2)),
            {"gamma": 0.9},
            ValueError,
            r"next.action_value has shape \(4, 2\), expected \[4, 3\] \(from action_value\)",
        ),
        (
            lambda td: td.set("action_value", torch.zeros(4)),
            {"gamma": 0.9},
            ValueError,
            r"action_value has shape \(4,\), expected \[4, A\]",
        ),
        (
            lambda td: td.set("action_value", torch.zeros(4, 0)),
            {"gamma": 0.9},
            ValueError,
            r"action_value has shape \(4, 0\), expected \[4, A\] with A of at least 1",
        ),
        (
            lambda td: td.set("steps_to_next_obs", torch.ones(4)),
            {"gamma": 0.9},
            TypeError,
            "steps_to_next_obs has dtype float32, expected integers",
        ),
        (
            lambda td: td.set("action", torch.full((4,), 5)),
            {"gamma": 0.9},
            ValueError,
            "outside of",
        ),
        (
            lambda td: td,
            {"gamma": 1.01},
            ValueError,
            "gamma is 1.01, expected a number from 0 to 1",
        ),
    ],
)
def test_bad_input(change, hyper, error, text):
    td = change(valued(steps(4)))
    with pytest.raises(error, match=f"^double_q_learning_loss: .*{text}") as caught:
        double_q_learning_loss(td, **hyper)
    assert "\n" not in str(caught.value)
