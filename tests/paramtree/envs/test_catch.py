"""Catch against a game of its own, written with loops, and its best policy."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from paramtree import Model, envs, rng, tree


class Game:
    """One board, as the rules have it."""

    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns

    def start(self, column):
        self.ball, self.row, self.paddle = column, 0, self.columns // 2

    def board(self):
        board = np.zeros((self.rows, self.columns))
        board[self.row, self.ball] = board[self.rows - 1, self.paddle] = 1
        return board

    def step(self, action):
        self.paddle = min(max(self.paddle + action - 1, 0), self.columns - 1)
        self.row += 1
        over = self.row == self.rows - 1
        return over, (1.0 if self.paddle == self.ball else -1.0) if over else 0.0


@pytest.mark.parametrize(("rows", "columns"), [(10, 5), (3, 4), (2, 1), (4, 7)])
def test_every_board_and_reward_is_that_of_the_game(rows, columns):
    env, level, workers, length = envs.catch(rows, columns), envs.catch_level(), 6, 25
    noise = env.noise(level, rng.key(3), (length, workers))
    actions = rng.randint(rng.key(4), (length, workers), 0, 3)
    first = env.noise(level, rng.key(5), (workers,))
    state, games = env.reset(level, first), [Game(rows, columns) for _ in range(workers)]
    for game, draw in zip(games, first["reset"].tolist(), strict=True):
        game.start(int(draw * columns))
    for t in range(length):
        boards = np.stack([game.board() for game in games])
        assert_close(state["observation"], torch.tensor(boards, dtype=torch.float32))
        state, seen = env.step(level, state, actions[t], noise[t])
        for i, game in enumerate(games):
            over, reward = game.step(int(actions[t, i]))
            assert bool(seen["done"][i]) == bool(seen["terminated"][i]) == over
            assert float(seen["reward"][i]) == reward
            assert_close(seen["observation"][i].double(), torch.tensor(game.board()))
            assert bool(state["is_init"][i]) == over
            if over:
                game.start(int(noise["reset"][t, i] * columns))


def follow(params, buffers, td):
    """Move to the ball's column."""
    board = td["observation"]
    rows, columns = board.shape[-2:]
    place = board[..., :-1, :].sum(-2).argmax(-1)  # before the last row the ball is above it
    paddle = board[..., -1, :].argmax(-1)
    action = (place - paddle).clamp(-1, 1) + 1
    logits = torch.nn.functional.one_hot(action, 3) * 1e9
    return tree.rebuild(td, {**tree.entries(td), "logits": logits.float()}), buffers


def test_the_best_return_is_the_reward_of_a_catch():
    env, level = envs.catch(), envs.catch_level(caught=torch.tensor([1.0, 3.0]), missed=-2.0)
    state = env.reset(level, env.noise(level, rng.key(1), (2, 50)))
    model = Model(lambda key: (tree.new({}), tree.new({})), follow)
    *_, td = envs.rollout(env, model, tree.new({}), tree.new({}), level, state, rng.key(2), 18)
    ended = td["next", "reward"][td["next", "done"]].reshape(2, -1)
    assert ended.shape == (2, 100) and ended.unique(dim=1).tolist() == [[1.0], [3.0]]


def test_balls_fall_in_every_column_alike():
    env, level = envs.catch(3, 5), envs.catch_level()
    state = env.reset(level, env.noise(level, rng.key(0), (5000,)))
    counts = torch.bincount(state["ball"], minlength=5)
    assert bool(((counts - 1000).abs() < 5 * 800**0.5).all())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: envs.catch(1), ValueError, "catch: rows is 1, expected at least 2"),
        (lambda: envs.catch(5, 0), ValueError, "catch: columns is 0, expected at least 1"),
        (lambda: envs.catch(5.0), TypeError, "catch: rows is 5.0, expected an int"),
        (lambda: envs.catch_level(caught="1"), TypeError, "catch_level: caught is a str"),
    ],
)
def test_what_is_refused(call, error, text):
    with pytest.raises(error, match=f"^{text}"):
        call()


def test_a_step_refuses_other_actions_and_noise():
    env, level = envs.catch(), envs.catch_level()
    noise = env.noise(level, rng.key(0), (2,))
    state = env.reset(level, noise)
    with pytest.raises(TypeError, match="action is torch.float32, expected torch.int64"):
        env.step(level, state, torch.zeros(2), noise)
    with pytest.raises(ValueError, match=r"catch.step: action has shape \(3,\), expected \(2,\)"):
        env.step(level, state, torch.zeros(3, dtype=torch.int64), noise)
    many = envs.catch_level(caught=torch.ones(3))
    with pytest.raises(ValueError, match="catch.noise: shape is .*expected it to begin with"):
        env.noise(many, rng.key(0), (2,))
