"""What becomes of noise: the actions of every kind of distribution."""

from functools import partial

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Categorical,
    Independent,
    Normal,
    OneHotCategorical,
    TanhTransform,
    TransformedDistribution,
)

import losses
from paramtree import Model, rng, tree
from paramtree.envs import pendulum, pendulum_level, rollout

D = torch.float64
NOTHING = tree.new({})


def heads(**values):
    """Model that writes constants."""

    def apply(params, buffers, batch):
        size = batch.batch_size
        own = {name: x.expand(*size, *x.shape) for name, x in values.items()}
        return tree.new({**tree.entries(batch), **own}, size), buffers

    return Model(lambda key: (NOTHING, NOTHING), apply)


def play(model, dist_class, n=20_000, seed=0, **options):
    env, level = pendulum(), pendulum_level(dtype=D)
    state = env.reset(level, env.noise(level, rng.key(0), (n,)))
    anything = env._replace(
        step=lambda level, s, a, n: env.step(level, s, torch.zeros(*s.shape, 1), n)
    )
    agent = (anything, model, NOTHING, NOTHING, level, state)
    return rollout(*agent, rng.key(seed), 2, dist_class, **options)[2]


LOC, SCALE = torch.tensor([0.3, -0.8], dtype=D), torch.tensor([0.5, 1.2], dtype=D)


def squashed(loc, scale):
    base = Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
    squash = [TanhTransform(), AffineTransform(0.5, 2.5, event_dim=1)]
    return TransformedDistribution(base, squash, validate_args=False)


def test_a_squashed_normal_is_drawn_as_tanh_normal_is():
    model = heads(loc=LOC, scale=SCALE)
    one = play(model, partial(losses.tanh_normal, low=-2.0, high=3.0))
    two = play(model, squashed)
    plain = play(model, losses.independent_normal)
    assert torch.allclose(one["action"], 0.5 + 2.5 * plain["action"].tanh(), atol=1e-12)
    assert torch.allclose(one["action"], two["action"], atol=1e-12)
    assert torch.allclose(one["action_log_prob"], two["action_log_prob"], atol=1e-6)
    assert one["action"].shape == (20_000, 2, 2)
    z = (plain["action"] - LOC) / SCALE
    assert z.mean().abs() < 4.5 / 80_000**0.5 and (z.std() - 1).abs() < 4.5 / 160_000**0.5
    flat = z.flatten(1)
    assert (torch.corrcoef(flat.mT) - torch.eye(4)).abs().max() < 4.5 / 20_000**0.5
    assert not torch.equal(play(model, squashed, n=4, seed=1)["action"], two["action"][:4])


def test_several_discrete_actions_at_once_have_their_chances():
    logits = torch.tensor([[0.3, -1.0, -torch.inf], [0.0, 2.0, 1.0]], dtype=D)

    def several(logits):
        return Independent(Categorical(logits=logits, validate_args=False), 1, validate_args=False)

    td = play(heads(logits=logits), several)
    action = td["action"]
    assert action.shape == (20_000, 2, 2) and action.dtype == torch.int64
    share = torch.stack([torch.bincount(action[..., i].flatten(), minlength=3) for i in range(2)])
    assert (share / 40_000 - logits.softmax(-1)).abs().max() < 4.5 * 0.5 / 40_000**0.5
    assert torch.corrcoef(action.flatten(0, 1).double().mT)[0, 1].abs() < 4.5 / 40_000**0.5
    expected = logits.log_softmax(-1).expand(20_000, 2, 2, 3).gather(-1, action[..., None])
    assert torch.allclose(td["action_log_prob"], expected.squeeze(-1).sum(-1))


def test_one_hot_and_binary_actions_have_their_chances():
    logits = torch.tensor([0.3, -1.0, 1.0], dtype=D)
    td = play(heads(logits=logits), OneHotCategorical)
    assert (td["action"].sum(-1) == 1).all() and td["action"].dtype == D
    share = td["action"].mean((0, 1))
    assert (share - logits.softmax(-1)).abs().max() < 4.5 * 0.5 / 40_000**0.5
    index = play(heads(logits=logits), Categorical)["action"]
    assert torch.equal(td["action"].argmax(-1), index)
    given = play(heads(probs=logits.softmax(-1)), Categorical)["action"]
    assert (given == index).all()

    def binary(logits):
        return Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)

    td = play(heads(logits=logits), binary)
    share = td["action"].mean((0, 1))
    assert (share - logits.sigmoid()).abs().max() < 4.5 * 0.5 / 40_000**0.5


def test_without_noise_an_action_is_the_mode_or_its_image():
    logits = torch.tensor([[0.3, -1.0, 1.0], [0.2, 0.5, 0.1]], dtype=D)

    def independent(kind):
        return lambda logits: Independent(
            kind(logits=logits, validate_args=False), 1, validate_args=False
        )

    def action(dist_class, **values):
        td = play(heads(**values), dist_class, n=3, deterministic=True)
        assert (td["action"] == td["action"][0, 0]).all()
        expected = dist_class(**{name: td[name] for name in values}).log_prob(td["action"])
        assert torch.allclose(td["action_log_prob"], expected)
        return td["action"][0, 0].tolist()

    assert action(Categorical, logits=logits[0]) == 2
    assert action(Categorical, probs=logits[1]) == 1
    assert action(OneHotCategorical, logits=logits[0]) == [0, 0, 1]
    assert action(independent(Categorical), logits=logits) == [2, 1]
    assert action(independent(Bernoulli), logits=logits[0]) == [1, 0, 1]
    assert action(losses.independent_normal, loc=LOC, scale=SCALE) == LOC.tolist()
    image = (0.5 + 2.5 * LOC.tanh()).tolist()
    bounded = partial(losses.tanh_normal, low=-2.0, high=3.0)
    assert action(squashed, loc=LOC, scale=SCALE) == pytest.approx(image)
    assert action(bounded, loc=LOC, scale=SCALE) == pytest.approx(image)
