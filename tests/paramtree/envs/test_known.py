"""Processes with known answers, against those answers."""

import pytest
import torch
from torch.testing import assert_close

from paramtree import Model, autodiff, envs, rng, tree

D = torch.float64


def played(env, level, length, act=None, key=1, workers=4):
    """A rollout in which ``act`` gives the actions ``[*B]`` from an observation."""

    def apply(params, buffers, td):
        chosen = torch.zeros(td.batch_size, dtype=torch.int64) if act is None else act(td)
        logits = torch.nn.functional.one_hot(chosen, 2).float() * 1e9
        return tree.rebuild(td, {**tree.entries(td), "logits": logits}), buffers

    none = tree.new({})
    state = env.reset(level, env.noise(level, rng.key(9), (*level.batch_size, workers)))
    model = Model(lambda key: (none, none), apply)
    return envs.rollout(env, model, none, none, level, state, rng.key(key), length)[2]


def test_an_episode_of_the_horizon_is_worth_its_length():
    level = envs.horizon_level(mean=torch.tensor([1.0, 0.5]), max_steps=torch.tensor([5, 3]))
    td = played(envs.horizon(), level, 15)
    assert td["observation"].unique().tolist() == [1.0] and not td["next", "terminated"].any()
    assert td["next", "reward"].sum(-1).tolist() == [[15.0] * 4, [7.5] * 4]
    ends = torch.arange(1, 16)
    assert torch.equal(
        td["next", "done"], torch.stack([ends % 5 == 0, ends % 3 == 0])[:, None].expand(2, 4, 15)
    )


def test_rewards_of_the_horizon_are_normal():
    level = envs.horizon_level(mean=2.0, deviation=3.0, dtype=D)
    reward = played(envs.horizon(), level, 100, workers=100)["next", "reward"]
    assert abs(float(reward.mean()) - 2) < 5 * 0.03 and abs(float(reward.std()) - 3) < 5 * 0.0213
    assert abs(float(((reward - 2) / 3).pow(4).mean()) - 3) < 0.5


@pytest.mark.parametrize("choice", [0, 1])
@pytest.mark.parametrize("delay", [1, 3, 8])
def test_a_choice_is_paid_at_once_or_after_the_delay(choice, delay):
    level = envs.delayed_choice_level(small=1.5, large=4.0, delay=delay)
    td = played(
        envs.delayed_choice(), level, 2 * delay + 2, lambda td: torch.full(td.batch_size, choice)
    )
    episode = torch.zeros(delay + 1)
    episode[0 if choice == 0 else delay] = 1.5 if choice == 0 else 4.0
    assert_close(td["next", "reward"], episode.repeat(4, 2))
    assert td["next", "done"].nonzero()[:, 1].unique().tolist() == [delay, 2 * delay + 1]
    assert torch.equal(td["next", "done"], td["next", "terminated"])
    seen = td["observation"][0].argmax(-1)
    assert seen.tolist() == [0, *range(1 + choice, 1 + 2 * delay, 2)] * 2
    assert bool((td["observation"].sum(-1) == 1).all())


def test_what_is_done_after_the_choice_changes_nothing():
    level = envs.delayed_choice_level(delay=4)
    first = lambda td: td["is_init"].long()  # noqa: E731
    others = lambda td: 1 - td["is_init"].long()  # noqa: E731
    env = envs.delayed_choice(4)
    assert played(env, level, 5, first)["next", "reward"].sum(-1).tolist() == [2.0] * 4
    assert played(env, level, 5, others)["next", "reward"].sum(-1).tolist() == [1.0] * 4


def test_a_walk_goes_by_its_chance_and_ends_beyond_both_ends():
    level = envs.random_walk_level(left=-2.0, right=3.0, chance=0.6)
    td = played(envs.random_walk(5), level, 400, workers=50)
    at, after = td["observation"].argmax(-1), td["next", "observation"].argmax(-1)
    reward, done = td["next", "reward"], td["next", "done"]
    moved = (after - at).abs()
    assert bool((moved[~done] == 1).all()) and bool((reward[~done] == 0).all())
    assert set(zip(at[done].tolist(), reward[done].tolist(), strict=True)) == {(0, -2.0), (4, 3.0)}
    assert bool((at[:, 1:][done[:, :-1]] == 2).all()) and bool((at[:, 0] == 2).all())
    right = ((after > at) | (reward > 0)).double().mean()
    assert abs(float(right) - 0.6) < 5 * (0.24 / 20000) ** 0.5


def test_values_of_the_walk_are_the_textbook_s():
    values = envs.random_walk_values(envs.random_walk_level())
    assert_close(values, (torch.arange(1, 20, dtype=D) - 10) / 10)
    five = envs.random_walk_values(envs.random_walk_level(left=0.0), size=5)
    assert_close(five, torch.arange(1, 6, dtype=D) / 6)


def test_values_of_the_walk_are_mean_discounted_returns():
    level, gamma, size = envs.random_walk_level(left=-1.0, right=2.0, chance=0.6, dtype=D), 0.8, 3
    value = torch.zeros(size, dtype=D)
    for _ in range(500):
        left = torch.cat([torch.tensor([-1.0], dtype=D), gamma * value[:-1]])
        right = torch.cat([gamma * value[1:], torch.tensor([2.0], dtype=D)])
        value = 0.4 * left + 0.6 * right
    assert_close(envs.random_walk_values(level, gamma, size), value)
    many = envs.random_walk_level(chance=torch.tensor([0.3, 0.6], dtype=D))
    assert envs.random_walk_values(many).shape == (2, 19)
    autodiff.check_grads(
        lambda c, g: envs.random_walk_values(envs.random_walk_level(chance=c), g, 4),
        torch.tensor(0.4, dtype=D),
        torch.tensor(0.9, dtype=D),
    )


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: envs.delayed_choice(0), ValueError, "delayed_choice: longest is 0"),
        (lambda: envs.random_walk(2.0), TypeError, "random_walk: size is 2.0, expected an int"),
        (
            lambda: envs.horizon_level(deviation=-1.0),
            ValueError,
            "horizon_level: deviation holds -1",
        ),
        (lambda: envs.horizon_level(max_steps=0), ValueError, "horizon_level: max_steps holds 0"),
        (
            lambda: envs.delayed_choice_level(delay=0),
            ValueError,
            "delayed_choice_level: delay holds",
        ),
        (lambda: envs.delayed_choice_level(delay=0.5), TypeError, "delayed_choice_level: delay is"),
        (
            lambda: envs.random_walk_level(chance=1.5),
            ValueError,
            "random_walk_level: chance holds 1.5",
        ),
        (
            lambda: envs.random_walk_values(envs.horizon_level()),
            ValueError,
            "random_walk_values: the level has no chance",
        ),
        (
            lambda: envs.random_walk_values(envs.random_walk_level(), size=0),
            ValueError,
            "random_walk_values: size is 0",
        ),
        (
            lambda: envs.horizon().noise(envs.random_walk_level(), rng.key(0), (2,)),
            ValueError,
            "horizon: the level has no mean, expected one of horizon_level",
        ),
    ],
)
def test_what_is_refused(call, error, text):
    with pytest.raises(error, match=f"^{text}"):
        call()
