"""Small inner problems in float64, for every way of differentiating through an inner loop.

Each is a ``Problem``: a step, an outer function, the hyper-parameters and the initial state. All of
them are smooth where they stand. ``final`` is the plain loop, ``central`` its central differences.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from paramtree import grad, optim, rng, tree

D = torch.float64


class Problem(NamedTuple):
    """An inner loop, what rates it, and where it starts."""

    step: Callable[[Any, Any, int], Any]
    outer: Callable[[Any, Any], Tensor]
    hyper: TensorDict
    state: TensorDict
    steps: int = 7


def numbers(**values: float) -> TensorDict:
    return tree.new({name: torch.tensor(value, dtype=D) for name, value in values.items()})


def draw(name: str, *shape: int) -> Tensor:
    return rng.uniform(rng.fold_in(rng.key(11), name), shape, -1.0, 1.0, dtype=D)


MATRIX = draw("matrix", 3, 3) @ draw("matrix", 3, 3).T + torch.eye(3, dtype=D)
TARGET, GOAL = draw("target", 3), draw("goal", 3)


def quadratic() -> Problem:
    """Gradient descent on ``x A x / 2 - b x + decay x x / 2``; ``optimum`` is where it leads."""

    def step(hyper: Any, state: Any, k: int) -> Any:
        x = state["x"]
        slope = MATRIX @ x - TARGET + hyper["decay"] * x
        return tree.new({"x": x - hyper["lr"] * slope})

    def outer(hyper: Any, state: Any) -> Tensor:
        return (state["x"] - GOAL).square().sum()

    return Problem(step, outer, numbers(lr=0.1, decay=0.3), tree.new({"x": draw("x", 3)}))


def optimum(hyper: TensorDict) -> Tensor:
    """Where the quadratic's descent ends."""
    return torch.linalg.solve(MATRIX + hyper["decay"] * torch.eye(3, dtype=D), TARGET)


def regression(
    hyper: TensorDict, make: Callable[[Any], optim.Transform], **options: Any
) -> Problem:
    """A small network on eight points under an optimizer; the outer loss is on eight others.

    ``v`` is 0 at first, and so are the first gradients of ``w``.
    """
    inputs = draw("inputs", 2, 8, 2)
    targets = (2 * inputs).sin().sum(-1)

    def loss(params: Any, which: int) -> Tensor:
        hidden = torch.tanh(inputs[which] @ params["policy", "w"])
        return (hidden @ params["v"] - targets[which]).square().mean()

    def step(hyper: Any, state: Any, k: int) -> Any:
        grads = grad(lambda p: loss(p, 0))(state["params"])
        params, memory = state["params"], state["optimizer"]
        updates, memory = make(hyper).update(grads, memory, params)
        return tree.new({"params": optim.apply_updates(params, updates), "optimizer": memory})

    def outer(hyper: Any, state: Any) -> Tensor:
        return loss(state["params"], 1) + 0.1 * hyper["lr"].square()

    policy = tree.new({"w": draw("w", 2, 3)})
    params = tree.new({"v": torch.zeros(3, dtype=D), "policy": policy})
    state = tree.new({"params": params, "optimizer": make(hyper).init(params)})
    return Problem(step, outer, hyper, state, **options)


def momentum() -> Problem:
    """SGD with momentum and weight decay."""
    return regression(
        numbers(lr=0.2, momentum=0.7, decay=0.05),
        lambda h: optim.sgd(h["lr"], momentum=h["momentum"], weight_decay=h["decay"]),
    )


def adam() -> Problem:
    """Adam, whose state has a count, and whose first gradients are partly 0."""
    return regression(
        numbers(lr=0.05, b1=0.8, b2=0.9), lambda h: optim.adam(h["lr"], h["b1"], h["b2"])
    )


PROBLEMS = {"quadratic": quadratic, "momentum": momentum, "adam": adam}


def final(problem: Problem, hyper: Any = None, state: Any = None, start: int = 0) -> Tensor:
    """The outer value after the steps, by the plain loop."""
    hyper = problem.hyper if hyper is None else hyper
    state = problem.state if state is None else state
    for k in range(start, problem.steps):
        state = problem.step(hyper, state, k)
    return problem.outer(hyper, state)


def warm(problem: Problem, steps: int = 3) -> Problem:
    """The problem from where some steps lead."""
    state = problem.state
    for k in range(steps):
        state = problem.step(problem.hyper, state, k)
    return problem._replace(state=state)


def central(fn: Callable[[Any], Tensor], at: TensorDict, step: float = 1e-6) -> TensorDict:
    """Central differences of a function of one tree; 0 for leaves that aren't floats."""
    leaves, structure = tree.flatten(tree.map(torch.clone, at))
    slopes = [torch.zeros_like(x) for x in leaves]
    for x, slope in zip(leaves, slopes, strict=True):
        for i in range(x.numel() if x.is_floating_point() else 0):
            ends = []
            for sign in (1, -1):
                moved = x.clone()
                moved.view(-1)[i] += sign * step
                inputs = [moved if y is x else y for y in leaves]
                ends.append(fn(tree.unflatten(structure, inputs)).item())
            slope.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return tree.unflatten(structure, slopes)
