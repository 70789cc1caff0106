"""Rows of ``losses/scaling.py``, ``losses/popart.py`` and ``losses/moments.py``."""

import torch
from tensordict import TensorDict

import losses
from losses import signed_logp1_pair
from paramtree import rng, tree
from tests.contract.case import Case, D, Function, draw, flags


def support() -> torch.Tensor:
    return torch.tensor([-2.0, -0.7, 0.1, 0.4, 2.5], dtype=D)


def popart_state(shift: str = "shift") -> TensorDict:
    """One output whose scale is at its lower end, one between, one at its upper end."""
    variance = torch.tensor([0.01, 1.0, 20.0], dtype=D)
    state = {"shift": draw(shift, 3), "scale": draw(f"scale of {shift}", 3, low=0.5, high=2.0)}
    return tree.new({**state, "variance": variance})


def targets() -> dict[str, torch.Tensor]:
    return {"targets": draw("targets", 2, 5), "indices": rng.randint(rng.key(5), (2, 5), 0, 3)}


def moments() -> TensorDict:
    state = {"mean": draw("mean", 2), "variance": draw("variance", 2, low=0.5, high=2.0)}
    return tree.new({**state, "weight": torch.tensor(0.6, dtype=D)})


def bounds() -> TensorDict:
    return tree.new({"low": draw("low", low=-2.0), "high": draw("high", low=1.0, high=3.0)})


ROWS = [
    Function("symlog", lambda: {"x": draw("x", 5, low=-3.0, high=3.0)}),
    Function("symexp", lambda: {"x": draw("x", 5, low=-3.0, high=3.0)}),
    Function("signed_hyperbolic", lambda: {"x": draw("x", 5, low=-3.0)}, {"eps": 0.01}),
    Function("signed_parabolic", lambda: {"x": draw("x", 5, low=-3.0)}, {"eps": 0.01}),
    Function("two_hot", lambda: {"x": draw("x", 2, 5, low=-3.0, high=3.0), "support": support()}),
    Function("two_hot_mean", lambda: {"probs": draw("p", 2, 5).softmax(-1), "support": support()}),
    Case(
        "losses.two_hot_pair",
        lambda x, atoms: losses.two_hot_pair(atoms).apply(x),
        lambda: (draw("x", 5), support()),
    ),
    Case(
        "losses.muzero_pair",
        lambda x, atoms: losses.muzero_pair(atoms, signed_logp1_pair).apply(x),
        lambda: (draw("x", 5), support()),
    ),
    Case(
        "losses.unbiased_transform_pair",
        lambda x, atoms: losses.unbiased_transform_pair(atoms).apply(x),
        lambda: (draw("x", 5), support()),
    ),
    Case(
        "losses.compose_tx",
        lambda x: losses.compose_tx(losses.discount_pair, signed_logp1_pair).apply(x),
        lambda: (draw("x", 5, high=0.9),),
        covers=("losses.TxPair",),
    ),
    Function(
        "popart_update",
        lambda: {"state": popart_state(), **targets()},
        {"step_size": 0.1, "scale_lb": 0.5, "scale_ub": 3.0},
    ),
    Case(
        "losses.popart_init",
        lambda x, i: losses.popart_update(losses.popart_init(3, D), x, i, 0.1),
        lambda: tuple(targets().values()),
    ),
    Case(
        "losses.popart_rescale",
        losses.popart_rescale,
        lambda: (draw("w", 3, 2), draw("b", 3), popart_state(), popart_state("new")),
    ),
    Function(
        "popart_normalize",
        lambda: {"state": popart_state(), "x": draw("x", 2, 5), "indices": targets()["indices"]},
    ),
    Function("popart_unnormalize", lambda: {"state": popart_state(), "x": draw("x", 2, 3)}),
    Function(
        "ema_moments_update",
        lambda: {"state": moments(), "x": draw("x", 5, 2), "mask": ~flags("mask", 5)},
        {"decay": 0.9},
    ),
    Case(
        "losses.ema_moments_init",
        lambda x: losses.ema_moments_update(losses.ema_moments_init((2,), D), x),
        lambda: (draw("x", 5, 2),),
    ),
    Function(
        "ema_moments_normalize",
        lambda: {"state": moments(), "x": draw("x", 5, 2)},
        {"eps": 0.1, "root_eps": 0.01},
    ),
    Function(
        "ema_moments_unnormalize",
        lambda: {"state": moments(), "x": draw("x", 5, 2)},
        {"eps": 0.1, "root_eps": 0.01},
    ),
    Function(
        "return_scale_update",
        lambda: {"state": bounds(), "returns": draw("x", 4, 5), "mask": ~flags("mask", 4, 5)},
        {"decay": 0.9, "low_quantile": 0.12, "high_quantile": 0.83},
    ),
    Case(
        "losses.return_scale_init",
        lambda x: losses.return_scale_update(losses.return_scale_init(D), x),
        lambda: (draw("x", 4, 5),),
    ),
    Function("return_scale", lambda: {"state": bounds()}, {"limit": 1.0}),
]
