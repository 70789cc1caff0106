"""Rows of implicit differentiation, its linear solvers, and zero-order gradients in ``meta``."""

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict

from paramtree import meta, rng, tree
from tests.contract.case import Case, D, draw, numbers

WHOLE = "dynamo knows no Function with a rule for forward mode; it runs eagerly between two graphs"


def data() -> TensorDict:
    return tree.new({"x": draw("x", 5, 3), "y": draw("y", 5)})


def penalty() -> TensorDict:
    return numbers({"l2": 0.7, "cubic": 0.3})


def slope(hyper: TensorDict, params: TensorDict, td: TensorDict) -> TensorDict:
    """Gradient of a convex loss: squares, a quadratic penalty and a quartic one."""
    w = params["w"]
    slope = td["x"].T @ (td["x"] @ w - td["y"]) + hyper["l2"] * w + hyper["cubic"] * w**3
    return tree.new({"w": slope})


def newton(params: TensorDict, hyper: TensorDict, td: TensorDict) -> TensorDict:
    for _ in range(12):
        w, eye = params["w"], torch.eye(3, dtype=D)
        diagonal = hyper["l2"] + 3 * hyper["cubic"] * w**2
        hessian = td["x"].T @ td["x"] + eye * diagonal
        change = torch.linalg.solve(hessian, slope(hyper, params, td)["w"])
        params = tree.new({"w": w - change})
    return params


def start() -> TensorDict:
    return tree.new({"w": torch.zeros(3, dtype=D)})


def rooted(hyper: TensorDict, td: TensorDict) -> TensorDict:
    fit = meta.custom_root(lambda params, hyper, td: slope(hyper, params, td))(newton)
    return fit(start(), hyper, td)


def descended(hyper: TensorDict, td: TensorDict) -> Any:
    """Newton's steps with the data closed over, so that these are mapped and differentiated too."""

    def step(hyper: TensorDict, state: TensorDict, k: int) -> TensorDict:
        return newton(state, hyper, td)

    def outer(hyper: TensorDict, state: TensorDict) -> torch.Tensor:
        return (state["w"] * torch.arange(1.0, 4.0, dtype=D)).sin().sum() + hyper["l2"]

    mode = meta.implicit(
        step, outer, 2, optimality=lambda hyper, state: slope(hyper, state, td), argnums=(0, 1)
    )
    return mode(hyper, start())


def matrix(a: torch.Tensor, symmetric: bool) -> torch.Tensor:
    return a @ a.T + torch.eye(3, dtype=D) if symmetric else a + 2 * torch.eye(3, dtype=D)


def solved(solve: Any, symmetric: bool, a: torch.Tensor, b: TensorDict, real: torch.Tensor) -> Any:
    def matvec(x: TensorDict) -> TensorDict:
        y = matrix(a, symmetric) @ torch.cat((x["u"].reshape(1), x["v"]))
        return tree.new({"u": y[0], "v": y[1:]})

    return solve(matvec, b, real)


def system() -> tuple[Any, ...]:
    right = tree.new({"u": draw("u"), "v": draw("v", 2)})
    return draw("a", 3, 3), right, torch.tensor(0.3, dtype=D)


def estimated(method: str, params: TensorDict, sigma: torch.Tensor, key: torch.Tensor) -> Any:
    def loss(p: TensorDict) -> torch.Tensor:
        return (p["w"].sin() * p["w"].mT.exp()).sum() + (p["w"] ** 3).sum()

    return meta.es_grad(loss, key, method=method, sigma=sigma, samples=3, chunk=2)(params)


def searched(hyper: TensorDict, td: TensorDict, key: torch.Tensor) -> Any:
    def step(hyper: TensorDict, state: TensorDict, k: int) -> TensorDict:
        return tree.new({"w": state["w"] - hyper["l2"] * 0.1 * slope(hyper, state, td)["w"]})

    def outer(hyper: TensorDict, state: TensorDict) -> torch.Tensor:
        return (state["w"] ** 2).sum()

    mode = meta.zero_order(step, outer, 2, key=key, samples=3, argnums=1)
    return mode(hyper, tree.new({"w": draw("w", 3)}))


ROWS = [
    Case("meta.custom_root", rooted, lambda: (penalty(), data()), compiled=WHOLE),
    Case("meta.implicit", descended, lambda: (penalty(), data()), compiled=WHOLE),
    Case(
        "meta.conjugate_gradient",
        partial(solved, lambda a, b, c: meta.conjugate_gradient(a, b, maxiter=6, damping=c), True),
        system,
    ),
    Case(
        "meta.normal_conjugate_gradient",
        partial(
            solved,
            lambda a, b, c: meta.normal_conjugate_gradient(a, b, maxiter=8, damping=c),
            False,
        ),
        system,
    ),
    Case(
        "meta.neumann",
        partial(solved, lambda a, b, c: meta.neumann(a, b, terms=4, alpha=c), False),
        system,
    ),
    Case(
        "meta.es_grad",
        partial(estimated, "antithetic"),
        lambda: (
            tree.new({"w": draw("w", 2, 2)}),
            torch.tensor(0.3, dtype=D),
            rng.key(4),
        ),
    ),
    Case("meta.zero_order", searched, lambda: (penalty(), data(), rng.key(4))),
]
