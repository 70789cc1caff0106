"""Actions out of noise: what a policy's distribution is, its draws, and its likeliest action.

A distribution is never asked to sample. The noise of a whole trajectory comes from one key, and an
action is a fixed function of it, a = F⁻¹(u): so the same key gives the same actions, eager,
vmapped, compiled, and for one level or many.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Normal,
    OneHotCategorical,
    TransformedDistribution,
)

from .. import rng
from ..tree import entries

DistClass = Callable[..., Any]
Act = Callable[[dict[str, Any], int], Tensor]

_KNOWN = (
    "Categorical, OneHotCategorical, Bernoulli, Normal, an Independent or a TransformedDistribution"
    " of one of them, or one with a sample_with(noise)"
)


def sampler(
    fn: str,
    dist_class: DistClass,
    written: dict[str, Any],
    key: Tensor,
    shape: tuple[int, ...],
    depth: int,
) -> Act:
    """Function that draws the actions of any step from what the model writes there.

    Args:
        fn: on whose behalf, for messages.
        dist_class: makes a distribution of what the model writes.
        written: what it wrote in the first step.
        key: ``[2]`` or ``[*L, 2]``; all noise is drawn from it here.
        shape: ``[*L, T, *W]``.
        depth: number of axes of L.

    Returns:
        ``act(written, t)``, the actions ``[*L, *W, *event]`` of step t.

    Raises:
        TypeError: the distribution is of a kind that isn't drawn from noise.
        ValueError: the model didn't write what a distribution takes.
    """
    if takes_logits(dist_class, written):
        uniforms = rng.uniform(key, shape).unbind(depth)
        return lambda out, t: _inverse_cdf(out["logits"], uniforms[t])
    dist = distribution(fn, dist_class, written)
    inner = _innermost(fn, dist)
    if isinstance(inner, Normal) or _takes_noise(inner):
        like = _parameter(inner)
        whole = inner.batch_shape + (inner.event_shape if _takes_noise(inner) else ())
        size = (*shape, *whole[len(shape) - 1 :])
        noise = rng.normal(key, size, dtype=like.dtype).unbind(depth)
    else:
        noise = rng.uniform(key, (*shape, *inner.batch_shape[len(shape) - 1 :])).unbind(depth)
    return lambda out, t: _drawn(distribution(fn, dist_class, out), noise[t])


def greedy(fn: str, dist_class: DistClass) -> Act:
    """Function that gives the likeliest actions of any step from what the model writes there.

    Args:
        fn: on whose behalf, for messages.
        dist_class: makes a distribution of what the model writes.

    Returns:
        ``act(written, t)``, the actions ``[*B, *event]``: a distribution's mode, or the image of
        the mode where it's squashed. It raises as ``sampler`` does.
    """

    def act(written: dict[str, Any], t: int) -> Tensor:
        if takes_logits(dist_class, written):
            return written["logits"].argmax(-1)
        dist = distribution(fn, dist_class, written)
        _innermost(fn, dist)
        return _center(dist)

    return act


def takes_logits(dist_class: DistClass, written: dict[str, Any]) -> bool:
    """Whether no distribution need be built, at a fifth of a step's time."""
    return dist_class is Categorical and "logits" in written and "actor_output" not in written


def distribution(fn: str, dist_class: DistClass, written: dict[str, Any]) -> Any:
    """Distribution of what the model wrote, unchecked where ``dist_class`` lets us."""
    is_class = isinstance(dist_class, type) and issubclass(dist_class, Distribution)
    build: Any = partial(dist_class, validate_args=False) if is_class else dist_class
    if "actor_output" in written:
        value = written["actor_output"]
        return build(**entries(value)) if isinstance(value, TensorDictBase) else build(value)
    for name in ("logits", "probs"):
        if name in written:
            return build(**{name: written[name]})
    if "loc" in written and "scale" in written:
        return build(loc=written["loc"], scale=written["scale"])
    wrote = ", ".join(map(repr, written)) or "nothing"
    raise ValueError(
        f"{fn}: the model wrote {wrote}, expected 'logits', 'probs', 'loc' and 'scale', or "
        "'actor_output'"
    )


def log_prob(fn: str, dist_class: DistClass, td: TensorDict, shape: tuple[int, ...]) -> Tensor:
    """Log-probability of a td's actions, of shape ``[*B, T]``.

    Args:
        fn: on whose behalf, for messages.
        dist_class: makes a distribution of what the model wrote.
        td: what it wrote, and ``action``.
        shape: ``[*B, T]``.

    Returns:
        ``[*B, T]``, or ``[*B, T, 1]`` where a distribution keeps an axis of one.

    Raises:
        ValueError: it has another shape.
    """
    written = entries(td)
    action = written["action"]
    if takes_logits(dist_class, written):
        return written["logits"].log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    found = distribution(fn, dist_class, written).log_prob(action)
    if tuple(found.shape) not in (shape, (*shape, 1)):
        got = f"the log-probability of an action has shape {tuple(found.shape)}"
        raise ValueError(
            f"{fn}: {got}, expected {shape} ([*B, T]); Independent(Normal(loc, scale), 1) adds "
            "up those of an action's entries"
        )
    return found


# ---- kinds of distributions


def _innermost(fn: str, dist: Any) -> Any:
    """What is left of a distribution without its wrappings; raises if noise can't become it."""
    inner = dist
    while isinstance(inner, Independent | TransformedDistribution) and not _takes_noise(inner):
        inner = inner.base_dist
    known = isinstance(inner, Categorical | OneHotCategorical | Bernoulli | Normal)
    return inner if known or _takes_noise(inner) else _unknown(fn, inner)


def _unknown(fn: str, dist: Any) -> NoReturn:
    raise TypeError(
        f"{fn}: dist_class gives a {type(dist).__name__}, expected {_KNOWN}: actions are drawn "
        "from keys, by the inverse of their distribution"
    )


def _takes_noise(dist: Any) -> bool:
    """Whether a distribution says itself what standard normal noise becomes, as tanh_normal's."""
    return hasattr(dist, "sample_with")


def _parameter(dist: Any) -> Tensor:
    """A tensor of the dtype that the noise of a normal has."""
    return dist.loc if isinstance(dist, Normal) else dist.base.loc


def _drawn(dist: Any, noise: Tensor) -> Tensor:
    """The action that noise becomes."""
    if _takes_noise(dist):
        return dist.sample_with(noise)[0]
    if isinstance(dist, Independent):
        return _drawn(dist.base_dist, noise)
    if isinstance(dist, TransformedDistribution):
        return _pushed(dist, _drawn(dist.base_dist, noise))
    if isinstance(dist, Normal):
        return dist.loc + dist.scale * noise
    if isinstance(dist, Bernoulli):
        return (noise < dist.probs).to(dist.probs.dtype)
    index = _inverse_cdf(dist.logits, noise)
    return index if isinstance(dist, Categorical) else _one_hot(index, dist.logits)


def _center(dist: Any) -> Tensor:
    """The action of no noise."""
    if _takes_noise(dist):
        return dist.deterministic_sample
    if isinstance(dist, Independent):
        return _center(dist.base_dist)
    if isinstance(dist, TransformedDistribution):
        return _pushed(dist, _center(dist.base_dist))
    if isinstance(dist, Normal):
        return dist.loc
    if isinstance(dist, Bernoulli):
        return (dist.probs > 0.5).to(dist.probs.dtype)
    index = dist.logits.argmax(-1)
    return index if isinstance(dist, Categorical) else _one_hot(index, dist.logits)


def _pushed(dist: TransformedDistribution, action: Any) -> Tensor:
    for transform in dist.transforms:
        action = transform(action)
    return action


def _one_hot(index: Tensor, logits: Tensor) -> Tensor:
    actions = torch.arange(logits.shape[-1], device=logits.device)
    return (index.unsqueeze(-1) == actions).to(logits.dtype)


def _inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Number of actions whose cumulative chance is at most u times their sum.

    Since u < 1, that stays below the sum after rounding too: a last action of chance 0 is safe.
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    threshold = uniform.unsqueeze(-1) * cumulative[..., -1:]
    return (cumulative[..., :-1] <= threshold).sum(-1)
