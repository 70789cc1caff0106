"""Noise on gradients, from a key in the state."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..rng import fold_in, normal, split
from ..tree import new, root
from .accepting import of_kind
from .alias import descent
from .arguments import Hyper, Schedule, Tree, cast, parts, require_hyper
from .base import Transform
from .leafwise import Leafwise, Values, Work, leafwise


def add_noise(key: Tensor, eta: Hyper | Schedule, gamma: Hyper | Schedule) -> Transform:
    """Gaussian noise whose variance falls with the steps: ``u = g + sqrt(eta / t^gamma) z``.

    Each leaf has a key of its own by its path, so what else there is in the tree doesn't change its
    noise. Real and imaginary parts of a complex leaf have noise each. The root's derivatives are
    taken as 0 at 0. Under ``vmap`` each task needs its own key, or all get the same noise:
    ``vmap(lambda key, p: add_noise(key, eta, gamma).init(p))(split(key, n_tasks), params)``;
    ``update`` reads the key of the state alone.

    Args:
        key: int64 [2].
        eta: variance at the first step, float or 0-d tensor, not negative, or schedule.
        gamma: exponent of its decay, float, 0-d tensor or schedule.

    Returns:
        The transform; its state holds ``count`` and ``key``, which is another one after each step.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, or the key has another shape.
        TypeError: an argument is of another kind.

    Reference: Neelakantan et al. (2015), section 2.
    """
    return _noise("add_noise", key, eta, gamma)


def _noise(fn: str, key: Any, eta: Hyper | Schedule, gamma: Hyper | Schedule) -> Transform:
    _require_key(fn, key)
    require_hyper(fn, "eta", eta, low=0)
    require_hyper(fn, "gamma", gamma)
    hyper = {"eta": eta, "gamma": gamma}
    whole = leafwise(fn, _with_noise, hyper=hyper, counted=True, prepare=_size, scope="leaf")
    return of_kind(_Noise, whole, key=key)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Noise(Leafwise):
    key: Tensor

    def init(self, params: Tree) -> TensorDict:
        count = super().init(params)["count"]
        return new({"count": count, "key": self.key.to(count.device).clone()})

    def on_leaves(self, u: list[Tensor], state: Any, work: Work) -> tuple[list[Tensor], TensorDict]:
        count, before = parts(self.fn, state, "count", "key")
        after, sample = split(before).unbind(0)
        c = Values(self.coefficients({"count": count}))
        keys = [reduce(fold_in, path, sample) for path in work.structure.paths()]
        noisy = [_with_noise(c, x, own) for x, own in zip(u, keys, strict=True)]
        return noisy, new({"count": count + 1, "key": after})


def _size(h: Values, t: Tensor) -> dict[str, Any]:
    return {"size": root(h.eta * t**-h.gamma)}


def _with_noise(c: Values, x: Tensor, key: Tensor) -> Tensor:
    if x.is_complex():
        pairs = torch.view_as_real(x.resolve_conj())
        return torch.view_as_complex(_with_noise(c, pairs, key))
    return x + cast(c.size, x) * normal(key, tuple(x.shape), dtype=x.dtype)


def _require_key(fn: str, key: Any) -> None:
    if not isinstance(key, Tensor) or key.dtype is not torch.int64:
        kind = key.dtype if isinstance(key, Tensor) else f"a {type(key).__name__}"
        raise TypeError(f"{fn}: key is {kind}, expected an int64 tensor from rng.key or split")
    if tuple(key.shape) != (2,):
        shape = f"{tuple(key.shape)}, expected [2]; vmap maps over one key per task"
        raise ValueError(f"{fn}: key has shape {shape}")


def noisy_sgd(
    lr: Hyper | Schedule,
    key: Tensor,
    eta: Hyper | Schedule = 0.01,
    gamma: Hyper | Schedule = 0.55,
) -> Transform:
    """Gradient descent with annealed noise: ``p - lr (g + sqrt(eta / t^gamma) z)``.

    Under ``vmap`` each task needs its own key; ``add_noise`` says how.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        key: int64 [2].
        eta: as in ``add_noise``.
        gamma: as in ``add_noise``.

    Returns:
        ``chain(noise=add_noise(key, eta, gamma), lr=scale_by_learning_rate(lr))``.

    Raises:
        ValueError: a tensor isn't 0-d, a number is out of range, or the key has another shape.
        TypeError: an argument is of another kind.

    Reference: Neelakantan et al. (2015), section 2.
    """
    return descent("noisy_sgd", {"noise": _noise("noisy_sgd", key, eta, gamma)}, lr)
