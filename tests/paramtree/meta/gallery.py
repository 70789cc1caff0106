"""Four published toy problems of learning to learn, each on an inner loop and one of the modes.

An inner loop is ``step(hyper, state, k)``, what rates its end ``outer(hyper, state)``, and a mode
of ``paramtree.meta`` gives the gradient. Everything is written for one task, one player, one run;
``vmap`` has the axis.
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

import losses
from paramtree import detach, grad, meta, nn, optim, rng, tree, vmap

Tree = Any
Mode = Callable[..., Any]

# ------------------------------------------------------------------------- few-shot regression
# Sine waves of amplitude 0.1 to 5 and phase 0 to pi, ten points to learn from and ten to be rated
# on. Finn, Abbeel & Levine (2017), section 5.1, whose network has two hidden layers of 40.

wave_net = nn.mlp(1, 40, 40, 1)


def waves(key: Tensor, n_tasks: int, shots: int = 10, dtype: torch.dtype = torch.float32) -> Tree:
    """Tasks ``[n_tasks]``: ``train`` and ``test``, each with ``x`` and ``y`` ``[shots, 1]``."""
    keys = rng.split(key, 3)
    amplitude = rng.uniform(keys[0], (n_tasks, 1, 1), 0.1, 5.0, dtype=dtype)
    phase = rng.uniform(keys[1], (n_tasks, 1, 1), 0.0, torch.pi, dtype=dtype)
    x = rng.uniform(keys[2], (n_tasks, 2 * shots, 1), -5.0, 5.0, dtype=dtype)
    data = {"x": x, "y": amplitude * torch.sin(x - phase)}
    halves = [{name: value.split(shots, 1)[i] for name, value in data.items()} for i in range(2)]
    parts = [tree.new(half, [n_tasks]) for half in halves]
    return tree.new(dict(zip(("train", "test"), parts, strict=True)), [n_tasks])


def wave_loss(params: Tree, data: Tree) -> Tensor:
    out = wave_net(params, tree.new({}), data["x"])
    return (out - data["y"]).square().mean()


def adapt(task: Tree, params: Tree, k: int, lr: float = 0.01, order: int = 2) -> Tree:
    """A step of gradient descent; with order 1 the outer gradient takes it for a constant shift."""
    slope = grad(wave_loss)(params, task["train"])
    return tree.sub(params, tree.scale(detach(slope) if order == 1 else slope, lr))


def adapted_loss(task: Tree, params: Tree) -> Tensor:
    return wave_loss(params, task["test"])


def maml(steps: int = 1, mode: Mode = meta.unrolled, order: int = 2) -> Mode:
    """``fn(task, params) -> (loss after adaptation, its gradient in the initial params)``."""
    return mode(lambda *args: adapt(*args, order=order), adapted_loss, steps, argnums=1)


def pretraining(task: Tree, params: Tree) -> Any:
    """What it is compared with: the loss on all tasks, without adaptation."""
    return meta.unrolled(lambda task, p, k: p, adapted_loss, 1, argnums=1)(task, params)


def meta_train(
    gradient: Mode,
    key: Tensor,
    params: Tree = None,
    updates: int = 300,
    n_tasks: int = 25,
    lr: float = 0.01,
) -> Tree:
    """Params after some updates by Adam, each with the mean gradient of some tasks."""
    optimizer = optim.adam(lr)
    params = wave_net.init(rng.fold_in(key, "net"))[0] if params is None else params
    state = optimizer.init(params)
    for i in range(updates):
        _, grads = vmap(gradient, (0, None))(waves(rng.fold_in(key, i), n_tasks), params)
        params, state = optim.step(optimizer, tree.map(lambda g: g.mean(0), grads), state, params)
    return params


def learning_curve(task: Tree, params: Tree, steps: int = 10, lr: float = 0.01) -> Tensor:
    """Test losses ``[steps + 1]`` of one task, before and after each step."""
    found = [adapted_loss(task, params)]
    for k in range(steps):
        params = adapt(task, params, k, lr)
        found.append(adapted_loss(task, params))
    return torch.stack(found)


# ---------------------------------------------------------------------------------- implicit MAML
# The inner problem keeps near the initial params: loss(p) + strength |p - initial|^2 / 2. Its
# solution depends on them through that term alone. Rajeswaran et al. (2019), section 2.
# The model is linear in its params, so that the exact meta-gradient is known.


def features(x: Tensor) -> Tensor:
    """Cosines ``[n, 12]`` of several wavelengths and phases."""
    i = torch.arange(12, dtype=x.dtype)
    return torch.cos(x * (0.5 + 0.5 * (i // 4)) + 1.3 * i)


def linear_loss(params: Tree, data: Tree) -> Tensor:
    error = features(data["x"]) @ params["weight"] - data["y"].squeeze(-1)
    return error.square().mean() / 2


def imaml(
    loss: Callable[[Tree, Tree], Tensor], steps: int, lr: float, strength: float, mode: Mode
) -> Mode:
    """``fn(task, params) -> (loss after adaptation, its gradient in the initial params)``."""

    def gradient(task: Tree, initial: Tree) -> Any:
        def step(initial: Tree, params: Tree, k: int) -> Tree:
            pull = tree.scale(tree.sub(params, initial), strength)
            slope = tree.add(grad(loss)(params, task["train"]), pull)
            return tree.sub(params, tree.scale(slope, lr))

        fn = mode(step, lambda initial, params: loss(params, task["test"]), steps)
        return fn(initial, detach(initial))

    return gradient


# -------------------------------------------------------------------------------------- LOLA-DiCE
# Two players of the iterated prisoner's dilemma, each a table [5] of logits to cooperate: at the
# start and after each pair of actions, as the player sees it. Foerster et al. (2018),
# "DiCE" and "Learning with opponent-learning awareness". The rewards that DiCE sees are relative to
# the mean payoff: what is added to all has no derivative, but a variance, with which some runs end
# in defection.

PAYOFF = torch.tensor([[-1.0, -3.0], [0.0, -2.0]])  # mine, for my action and theirs
DISCOUNT = 0.96
PLAYERS = losses.joint(mine=Categorical, theirs=Categorical)


def two_way(table: Tensor) -> Tensor:
    """Logits ``[5, 2]`` of both actions."""
    return torch.stack((table, torch.zeros_like(table)), -1)


def play(mine: Tensor, theirs: Tensor, key: Tensor, games: int = 128, length: int = 150) -> Tree:
    """Games ``[games, length]`` as I see them, with the logits of both."""
    cooperates = torch.stack((mine, theirs)).detach().sigmoid()  # [2, 5]
    seen, history = torch.zeros(games, 2, dtype=torch.int64), []
    for luck in rng.uniform(key, (length, games, 2), dtype=mine.dtype):
        action = (luck > cooperates[[0, 1], seen]).long()
        history.append((seen, action))
        seen = 1 + 2 * action + action.flip(-1)  # each sees its own action first
    seen, action = (torch.stack(x, 1) for x in zip(*history, strict=True))
    size = [games, length]
    reward = (PAYOFF - PAYOFF.mean())[action[..., 0], action[..., 1]].to(mine.dtype)
    done = torch.zeros(size, dtype=torch.bool)
    returns = losses.discounted_returns(reward.mT, done.mT, done.mT, DISCOUNT).mT
    policies = {"mine": two_way(mine)[seen[..., 0]], "theirs": two_way(theirs)[seen[..., 1]]}
    actions = {"mine": action[..., 0], "theirs": action[..., 1]}
    return TensorDict(
        {
            "params": {name: {"logits": logits} for name, logits in policies.items()},
            "action": actions,
            "state_value": returns.mean(0).expand(size),
            "next": {"reward": reward, "done": done},
        },
        size,
    )


def cost(mine: Tensor, theirs: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """DiCE's estimate of my discounted cost, and my mean reward."""
    td = play(mine, theirs, key)
    loss = losses.dice_loss(td, PLAYERS, gamma=DISCOUNT)
    return losses.total(loss) * td.batch_size[-1], td["next", "reward"].mean() + PAYOFF.mean()


def exact_cost(mine: Tensor, theirs: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """My expected discounted cost of an endless game, and my reward in a step of it.

    The value of the five states solves ``v = r + discount P v``.
    """
    a = two_way(mine).softmax(-1)
    b = two_way(theirs).softmax(-1)[[0, 1, 3, 2, 4]]  # their table has their own action first
    chance = (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(1)  # [5, 4]
    reward = chance @ PAYOFF.to(chance.dtype).flatten()
    follows = torch.cat((torch.zeros_like(chance[:, :1]), chance), 1)
    value = torch.linalg.solve(torch.eye(5, dtype=chance.dtype) - DISCOUNT * follows, reward)
    return -value[0], (1 - DISCOUNT) * value[0]


def lola(
    look_ahead: int, cost: Callable[..., Any] = cost, lr: float = 0.3, mode: Mode = meta.unrolled
) -> Mode:
    """``fn(mine, theirs, key) -> ((cost, reward), gradient)``, through the other's next updates."""

    def gradient(mine: Tensor, theirs: Tensor, key: Tensor) -> Any:
        def step(mine: Tensor, theirs: Tensor, k: int) -> Tensor:
            own = rng.fold_in(key, k)
            return theirs - lr * grad(lambda theirs: cost(theirs, mine, own)[0])(theirs)

        def outer(mine: Tensor, theirs: Tensor) -> Any:
            return cost(mine, theirs, rng.fold_in(key, "outer"))

        return mode(step, outer, look_ahead, has_aux=True)(mine, theirs)

    return gradient


def naive(cost: Callable[..., Any] = cost) -> Mode:
    """The same for a player who takes the other for a part of the world."""
    return lola(1, cost, lr=0.0)


def learn_together(gradient: Mode, key: Tensor, updates: int = 100, lr: float = 0.2) -> Tensor:
    """Mean rewards ``[updates, 2]`` of two players who learn alike, from even policies."""
    optimizer = optim.adam(lr)
    tables = tree.new({"logits": torch.zeros(2, 5)})
    state, rewards = optimizer.init(tables), []
    for i in range(updates):
        mine, keys = tables["logits"], rng.split(rng.fold_in(key, i))
        (_, reward), slope = vmap(gradient)(mine, mine.flip(0), keys)
        tables, state = optim.step(optimizer, tree.new({"logits": slope}), state, tables)
        rewards.append(reward)
    return torch.stack(rewards)


# -------------------------------------------------------------------------- learning to reweight
# Two classes, half moons. The training set has few of one, or wrong labels; a second one is clean,
# balanced and small. The weights in a batch are where the clean loss falls fastest after a step.
# Ren et al. (2018), algorithm 1.

moon_net = nn.mlp(2, 32, 1)


def moons(key: Tensor, counts: tuple[int, int]) -> Tree:
    """Points ``[sum(counts)]`` of both moons: ``x [2]``, and ``y``, 0 or 1."""
    keys = rng.split(key)
    y = torch.cat([torch.full((n,), float(label)) for label, n in enumerate(counts)])
    angle = torch.pi * (rng.uniform(keys[0], y.shape) + y)
    x = torch.stack((angle.cos() + y - 0.5, angle.sin() + y / 2 - 0.25), -1)
    return tree.new({"x": x + 0.2 * rng.normal(keys[1], (*y.shape, 2)), "y": y}, y.shape)


def mislabeled(key: Tensor, data: Tree, rate: float) -> Tree:
    """The points, a part of class 1 labeled 0."""
    flipped = rng.bernoulli(key, rate, data["y"].shape)
    return tree.replace(data, {"y": torch.where(flipped, 0.0, data["y"])})


def logits(params: Tree, data: Tree) -> Tensor:
    return moon_net(params, tree.new({}), data["x"]).squeeze(-1)


def cross_entropy(params: Tree, data: Tree) -> Tensor:
    """The loss of each example."""
    out = logits(params, data)
    return torch.nn.functional.softplus(out) - data["y"] * out


def example_weights(
    params: Tree, batch: Tree, clean: Tree, lr: float = 0.1, mode: Mode = meta.unrolled
) -> Tensor:
    """Weight of each example, at least 0 and 1 together."""
    _, slope = reweighting(batch, clean, lr, mode)(torch.zeros_like(batch["y"]), params)
    weight = (-slope).clamp(min=0.0)
    return weight / weight.sum().clamp(min=1e-8)


def reweighting(batch: Tree, clean: Tree, lr: float = 0.1, mode: Mode = meta.unrolled) -> Mode:
    """``fn(weight, params) -> (clean loss after a step, its gradient in the weights)``."""

    def step(weight: Tensor, params: Tree, k: int) -> Tree:
        slope = grad(lambda p: weight @ cross_entropy(p, batch))(params)
        return tree.sub(params, tree.scale(slope, lr))

    return mode(step, lambda weight, params: cross_entropy(params, clean).mean(), 1)


def fit(key: Tensor, data: Tree, clean: Tree | None = None, updates: int = 400) -> Tree:
    """Params after training on batches of 100; with a clean set, reweighted by it."""
    optimizer = optim.adam(0.02)
    params = moon_net.init(rng.fold_in(key, "net"))[0]
    state = optimizer.init(params)
    for i in range(updates):
        chosen = rng.randint(rng.fold_in(key, i), (100,), 0, data["y"].shape[0])
        batch = tree.map(lambda x, chosen=chosen: x[chosen], data)
        even = torch.full_like(batch["y"], 0.01)
        weight = even if clean is None else example_weights(params, batch, clean)
        grads = grad(lambda p, b=batch, w=weight: w @ cross_entropy(p, b))(params)
        params, state = optim.step(optimizer, grads, state, params)
    return params


def accuracy(params: Tree, data: Tree) -> Tensor:
    return ((logits(params, data) > 0) == (data["y"] > 0.5)).float().mean()
