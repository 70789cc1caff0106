# pyright: reportArgumentType=false, reportCallIssue=false
import math

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence
from torch.func import grad, vmap
from torch.testing import assert_close

from losses import distribution, independent_normal, policy_gradient_loss


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def advantage(*batch):
    return torch.linspace(-1, 2, math.prod(batch), dtype=torch.float64).reshape(batch)


def policy_td(parameters, action, *batch):
    td = TensorDict({"action": action, "advantage": advantage(*batch)}, batch)
    return td.update(parameters)


def objective(td, dist_class=Categorical, **hyper):
    return policy_gradient_loss(td, dist_class, **hyper)["loss_objective"]


@pytest.mark.parametrize("n", [2, 5, 20])
def test_categorical_agrees_with_torch(n):
    logits = draw(4, 3, n) * 3
    action = torch.randint(n, (4, 3), generator=torch.Generator().manual_seed(1))
    peer = Categorical(logits=logits)
    for parameters in (
        {"logits": logits},
        {"logits": logits + 1e4},
        {"probs": logits.softmax(-1)},
        {"probs": 7 * logits.softmax(-1)},
        {"actor_output": logits.softmax(-1)},
        {"actor_output": TensorDict({"logits": logits}, (4, 3))},
    ):
        dist = distribution(policy_td(parameters, action, 4, 3))
        assert isinstance(dist, Categorical)
        tolerance = {"rtol": 1e-9, "atol": 1e-9}
        assert_close(dist.log_prob(action), peer.log_prob(action), **tolerance)
        assert_close(dist.entropy(), peer.entropy(), **tolerance)
        assert_close(dist.probs, peer.probs, **tolerance)
        assert_close(kl_divergence(dist, peer), torch.zeros(4, 3).double(), **tolerance)
        assert dist.sample().shape == (4, 3)


@pytest.mark.parametrize("n", [3, 20])
def test_gradients_of_log_prob_and_entropy_agree_with_torch_twice(n):
    logits = draw(4, n)
    action = torch.randint(n, (4,), generator=torch.Generator().manual_seed(1))

    def f(make):
        def value(x):
            dist = make(x)
            return (dist.log_prob(action).sin() + dist.entropy().square()).sum()

        return value

    ours = f(lambda x: distribution(TensorDict({"logits": x}, 4)))
    peer = f(lambda x: Categorical(logits=x, validate_args=False))
    assert_close(grad(ours)(logits), grad(peer)(logits))
    twice = [grad(lambda x, g=g: grad(g)(x).sin().sum())(logits) for g in (ours, peer)]
    assert_close(twice[0], twice[1])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
def test_an_action_is_an_index_or_one_hot(dtype):
    logits = draw(3, 3, 3)  # as many actions as steps and workers
    index = torch.tensor([[0, 1, 2], [2, 2, 1], [0, 0, 1]])
    expected = objective(policy_td({"logits": logits}, index, 3, 3))
    hot = torch.nn.functional.one_hot(index, 3).to(dtype)
    assert_close(objective(policy_td({"logits": logits}, hot, 3, 3)), expected)
    column = policy_td({"logits": logits}, index.unsqueeze(-1).int(), 3, 3)
    assert_close(objective(column), expected)
    found = vmap(lambda x, a: objective(policy_td({"logits": x}, a, 3)))
    assert_close(found(logits, hot), found(logits, index))


def test_a_one_hot_action_at_a_masked_step_may_be_empty():
    logits, index = draw(4, 3), torch.tensor([0, 1, 2, 0])
    hot = torch.nn.functional.one_hot(index, 3)
    hot[3] = 0
    mask = torch.tensor([True, True, True, False])
    td = policy_td({"logits": logits, "mask": mask}, hot, 4)
    assert_close(objective(td), objective(policy_td({"logits": logits}, index, 4)[:3]))
    with pytest.raises(ValueError, match="not each row holds a single 1"):
        objective(td.exclude("mask"))


def test_one_action_is_certain_either_way():
    logits = draw(4, 1)
    for action in (torch.zeros(4, 1), torch.zeros(4, 1).long(), torch.zeros(4).long()):
        action = action + 1 if action.is_floating_point() else action
        assert objective(policy_td({"logits": logits}, action, 4)) == 0


def test_impossible_actions_leave_no_nan():
    logits = torch.tensor([[0.0, -torch.inf, 1.0]]).double()

    def f(x, action):
        td = policy_td({"logits": x}, torch.tensor([action]), 1)
        return sum(policy_gradient_loss(td, entropy_coeff=0.1).values())

    possible = logits[:, [0, 2]]
    assert_close(f(logits, 2), f(possible, 1))
    found = grad(f)(logits, 2)
    assert_close(found[:, [0, 2]], grad(f)(possible, 1))
    assert found[0, 1] == 0
    assert grad(lambda x: grad(f)(x, 2).sin().sum())(logits).isfinite().all()


def test_probabilities_of_zero_and_one_leave_no_nan():
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).double()
    td = policy_td({"probs": probs}, torch.tensor([0, 1]), 2)

    def f(x):
        return sum(policy_gradient_loss(td.copy().set("probs", x), entropy_coeff=0.1).values())

    assert grad(f)(probs).isfinite().all()
    assert grad(lambda x: grad(f)(x).sin().sum())(probs).isfinite().all()
    dist = distribution(td)
    assert_close(dist.entropy(), torch.tensor([1.0, 2.0]).double().log())
    assert_close(dist.log_prob(td["action"]), torch.tensor([1.0, 0.5]).double().log())


@pytest.mark.parametrize(
    "dist_class",
    [
        Normal,
        independent_normal,
        lambda loc, scale: Independent(Normal(loc, scale), 1),
    ],
    ids=["Normal", "independent_normal", "lambda"],
)
def test_independent_normals(dist_class, variant):
    loc, action = draw(4, 5, 2), draw(4, 5, 2, seed=1)
    scale = draw(4, 5, 2, seed=2).exp()
    td = policy_td({"scale": scale}, action, 4, 5)

    def f(x):
        out = policy_gradient_loss(td.copy().set("loc", x), dist_class, entropy_coeff=0.1)
        return out["loss_objective"] + out["loss_entropy"]

    z = (action - loc) / scale
    log_prob = (-0.5 * z.square() - scale.log() - 0.5 * torch.tensor(2 * torch.pi).log()).sum(-1)
    entropy = (scale.log() + 0.5 * (1 + torch.tensor(2 * torch.pi).log())).sum(-1)
    expected = -(log_prob * td["advantage"]).mean() - 0.1 * entropy.mean()
    assert_close(variant(f)(loc), expected, rtol=1e-6, atol=1e-6)
    of_loc = -(z / scale * td["advantage"].unsqueeze(-1)) / 20
    assert_close(variant(grad(f))(loc), of_loc, rtol=1e-6, atol=1e-6)


def test_normals_of_one_component():
    loc, action = draw(4, 5), draw(4, 5, seed=1)
    flat = objective(policy_td({"loc": loc, "scale": 1 + 0 * loc}, action, 4, 5), Normal)
    column = {"loc": loc.unsqueeze(-1), "scale": 1 + 0 * loc.unsqueeze(-1)}
    for dist_class in (Normal, independent_normal):
        td = policy_td(column, action.unsqueeze(-1), 4, 5)
        assert_close(objective(td, dist_class), flat)


def test_what_is_no_normal_is_refused():
    with pytest.raises(ValueError, match=r"independent_normal: scale has shape \(4,\).*from loc"):
        independent_normal(draw(3), draw(4))
    with pytest.raises(TypeError, match="independent_normal: loc has dtype int64"):
        independent_normal(torch.arange(3), draw(3))


def test_a_vector_of_bits():
    logits = draw(4, 3)
    action = (draw(4, 3, seed=1) > 0).double()
    expected = -(Bernoulli(logits=logits).log_prob(action).sum(-1) * advantage(4)).mean()
    assert_close(objective(policy_td({"logits": logits}, action, 4), Bernoulli), expected)


class TwoHeads:
    def __init__(self, move, speak):
        self.heads = {"move": move, "speak": speak}

    def log_prob(self, action):
        heads = {k: Categorical(logits=x, validate_args=False) for k, x in self.heads.items()}
        return sum(head.log_prob(action[k]) for k, head in heads.items())

    def entropy(self):
        return sum(
            Categorical(logits=x, validate_args=False).entropy() for x in self.heads.values()
        )


def test_a_tree_of_parameters_goes_to_dist_class_as_keywords():
    heads = TensorDict({"move": draw(4, 3), "speak": draw(4, 2)}, 4)
    action = TensorDict(
        {"move": torch.tensor([0, 1, 2, 0]), "speak": torch.tensor([0, 1, 1, 0])}, 4
    )
    td = policy_td({"actor_output": heads}, action, 4)
    parts = [objective(policy_td({"logits": heads[k]}, action[k], 4)) for k in ("move", "speak")]
    assert_close(objective(td, TwoHeads), parts[0] + parts[1])


def test_a_tensor_goes_to_dist_class_positionally():
    logits = draw(4, 3)
    action = torch.tensor([0, 1, 2, 0])
    expected = objective(policy_td({"logits": logits}, action, 4))
    td = policy_td({"actor_output": logits}, action, 4)
    assert_close(objective(td, lambda x: Categorical(logits=x)), expected)


class NoEntropy(Normal):
    def entropy(self):
        raise NotImplementedError


INDEX = torch.tensor([0, 1, 2, 0])
LOGITS = draw(4, 3)
BAD = [
    (
        {},
        INDEX,
        Categorical,
        ValueError,
        "td has no 'logits'.*A distribution needs logits, or probs",
    ),
    (
        {"logits": LOGITS, "probs": LOGITS.exp()},
        INDEX,
        Categorical,
        ValueError,
        r"holds 'logits' and 'probs', and only one .*td.exclude\('probs'\)",
    ),
    ({"loc": LOGITS}, INDEX, Normal, ValueError, "td has no 'scale'"),
    (
        {"logits": LOGITS},
        INDEX,
        Normal,
        TypeError,
        "dist_class Normal does not take logits, as the",
    ),
    ({"logits": INDEX}, INDEX, Categorical, TypeError, "logits has dtype int64"),
    (
        {"logits": LOGITS[:, 0]},
        INDEX,
        Categorical,
        ValueError,
        r"logits has shape \(4,\), expected \[4, A\] \(the td's batch size\)",
    ),
    (
        {"actor_output": LOGITS},
        INDEX,
        Categorical,
        ValueError,
        "actor_output holds negative numbers, expected probabilities; put .* 'logits'",
    ),
    ({"logits": LOGITS}, INDEX + 1, Categorical, ValueError, r"outside of 0 to 2 \(logits has 3"),
    ({"logits": LOGITS}, INDEX - 1, Categorical, ValueError, "action holds an index outside of 0"),
    ({"logits": LOGITS}, INDEX.double(), Categorical, TypeError, "action of shape .* float64"),
    ({"logits": LOGITS}, INDEX > 0, Categorical, TypeError, "action of shape .* dtype bool"),
    (
        {"logits": LOGITS},
        torch.zeros(4, 2),
        Categorical,
        ValueError,
        r"action has shape \(4, 2\), expected an index \[4\] or one-hot \[4, 3\] \(from logits\)",
    ),
    (
        {"logits": LOGITS},
        LOGITS.softmax(-1),
        Categorical,
        ValueError,
        "that of a one-hot vector, but not each row holds a single 1 among zeros",
    ),
    (
        {"loc": LOGITS, "scale": LOGITS.exp()},
        draw(4, 1),
        Normal,
        ValueError,
        r"log_prob has shape \(4, 3\), expected \[4\] .* or the action's shape, \(4, 1\)",
    ),
    (
        {"loc": LOGITS[:, :1], "scale": LOGITS[:, :1].exp()},
        draw(4),
        Normal,
        ValueError,
        r"log_prob has shape \(4, 4\)",
    ),
    (
        {"loc": LOGITS, "scale": LOGITS.exp()},
        draw(4, 3),
        NoEntropy,
        ValueError,
        "NoEntropy has no entropy in closed form",
    ),
]


@pytest.mark.parametrize(("parameters", "action", "dist_class", "error", "text"), BAD)
def test_bad_input(parameters, action, dist_class, error, text):
    with pytest.raises(error, match=text) as caught:
        policy_gradient_loss(policy_td(parameters, action, 4), dist_class, entropy_coeff=0.1)
    assert str(caught.value).startswith("policy_gradient_loss: ")
    assert "\n" not in str(caught.value)


def test_an_action_out_of_range_is_named_under_vmap():
    def f(x):
        return objective(policy_td({"logits": x}, INDEX + 1, 4))

    with pytest.raises(ValueError, match="policy_gradient_loss: action holds an index outside of"):
        vmap(f)(LOGITS.expand(2, 4, 3))
