"""Distributions of actions, made of the parameters that a td holds.

``dist_class`` is any callable that takes the parameters and gives an object with
``log_prob(action)`` and ``entropy()``, such as the classes of torch.distributions. Which parameters
it gets is read off the td:

    logits                  dist_class(logits=...)
    probs                   dist_class(probs=...)
    loc and scale           dist_class(loc=..., scale=...)
    actor_output, a tensor  dist_class(actor_output), for Categorical so the probabilities
    actor_output, a td      dist_class(**actor_output)
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from ._batch import Batch
from ._check import (
    batch_first,
    check_broadcast,
    check_float,
    check_index,
    dtype,
    gather,
    kind,
    missing,
    no_data,
)

DistClass = Callable[..., Any]

_SOURCES = (("logits",), ("probs",), ("loc", "scale"), ("actor_output",))


def distribution(td: TensorDictBase, dist_class: DistClass = Categorical) -> Any:
    """The distribution over actions whose parameters the td holds.

    Args:
        td: ``[*B]`` with ``logits`` or ``probs`` (``[*B, A]`` for Categorical), or ``loc`` and
            ``scale``, or ``actor_output``.
        dist_class: callable from these to a distribution.

    Returns:
        What ``dist_class`` gives. For ``Categorical`` a leaner one, a subclass: its ``log_prob``
        takes an action as an index, ``[*B]`` or ``[*B, 1]`` of integers, or one-hot, ``[*B, A]``.

    Raises:
        ValueError: the td holds none of these parameters, or more than one kind.
        TypeError: a parameter is not floating-point, or ``dist_class`` takes others.
    """
    return make_distribution(Batch("distribution", td), dist_class)


def independent_normal(loc: Tensor, scale: Tensor) -> Independent:
    """Normal distribution of a vector of independent components, as a ``dist_class``.

    Args:
        loc: mean, ``[*B, D]`` float.
        scale: standard deviation, ``[*B, D]`` float, positive.

    Returns:
        The distribution, of batch shape ``[*B]`` and event shape ``[D]``.

    Raises:
        ValueError: the scale does not broadcast to the shape of the mean.
        TypeError: an argument is not floating-point.
    """
    shape = check_float("independent_normal", "loc", loc).shape
    check_float("independent_normal", "scale", scale)
    check_broadcast("independent_normal", "scale", scale, shape, "loc", batch_first(shape))
    return Independent(Normal(loc, scale), 1)


def make_distribution(batch: Batch, dist_class: DistClass) -> Any:
    """``distribution`` of an opened td."""
    args, kwargs = _parameters(batch)
    if dist_class is Categorical and len(args) + len(kwargs) == 1:
        name = next(iter(kwargs), "probs")
        if name in ("logits", "probs"):
            return _categorical(batch, name, args[0] if args else kwargs[name])
    name = getattr(dist_class, "__name__", repr(dist_class))
    try:
        return dist_class(*args, **kwargs)
    except TypeError as error:
        given = ", ".join(kwargs) if kwargs else "actor_output"
        raise TypeError(
            f"{batch.function}: dist_class {name} does not take {given}, as the td has it: {error}"
        ) from error


def action_log_prob(batch: Batch, dist: Any) -> Tensor:
    """Log-probability of the action per step, ``[*B]``.

    Where the distribution keeps the components of an action apart, they add up.
    """
    action = batch.entry("action")
    if batch.mask is not None and isinstance(action, Tensor):
        action = batch.filled(action, 0.5 if action.is_floating_point() else 0)
    if isinstance(dist, LeanCategorical):
        return dist.gathered(batch.function, action, batch.mask)
    value = dist.log_prob(action)
    if value.shape != batch.shape and value.shape != getattr(action, "shape", None):
        raise ValueError(
            f"{batch.function}: the distribution's log_prob has shape {tuple(value.shape)}, "
            f"expected {batch_first(batch.shape)} (the td's batch size) or the action's shape, "
            f"{tuple(getattr(action, 'shape', ()))}; its parameters and the action do not match"
        )
    return _summed(batch, "log_prob", value)


def entropy(batch: Batch, dist: Any) -> Tensor:
    """Entropy per step, ``[*B]``."""
    try:
        value = dist.entropy()
    except NotImplementedError:
        raise ValueError(
            f"{batch.function}: {type(dist).__name__} has no entropy in closed form; "
            "give a dist_class whose result has a method entropy()"
        ) from None
    return _summed(batch, "entropy", value)


def log_softmax(x: Tensor) -> Tensor:
    """As torch's, over the last axis; on few columns several times faster than its CPU kernel."""
    if x.shape[-1] >= 16 or not x.is_cpu:
        return x.log_softmax(-1)
    x = x - x.amax(-1, keepdim=True).detach()  # a shift is without effect, to every order
    return x - x.exp().sum(-1, keepdim=True).log()


def disorder(log_probs: Tensor) -> Tensor:
    """Entropy -sum_k p_k log p_k, where 0 log 0 is 0, with gradients that are finite."""
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    return -(log_probs.exp() * finite).sum(-1)


class LeanCategorical(Categorical):
    """torch's Categorical over log-probabilities that are normalized already."""

    def __init__(self, log_probs: Tensor, source: str) -> None:
        """Takes log-probabilities ``[*B, A]``, and the key that they came from, for errors."""
        vars(self).update(logits=log_probs, _param=log_probs)  # torch's class makes them lazily
        self._num_events = log_probs.shape[-1]
        self.source = source
        Distribution.__init__(self, log_probs.shape[:-1], validate_args=False)

    def log_prob(self, action: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Log-probability ``[*B]`` of an action, an index or one-hot."""
        return self.gathered("log_prob", action)

    def entropy(self) -> Tensor:
        """Entropy ``[*B]``."""
        return disorder(self.logits)

    def gathered(self, function: str, action: Any, mask: Tensor | None = None) -> Tensor:
        """``log_prob`` on behalf of a function, whose name its errors bear."""
        batch, size = self._batch_shape, self._num_events
        index = check_index(function, "action", action, batch, size, self.source, mask)
        return gather(function, "action", self.logits, index, self.source)


def _parameters(batch: Batch) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments for ``dist_class``."""
    found = [keys for keys in _SOURCES if batch.has(keys[0])]
    if len(found) > 1:
        names = " and ".join(repr(keys[0]) for keys in found)
        raise ValueError(
            f"{batch.function}: the td holds {names}, and only one may parametrize the actions; "
            f"drop the others first, e.g. td.exclude({found[-1][0]!r})"
        )
    if not found:
        raise missing(
            batch.function,
            batch.td,
            "logits",
            "A distribution needs logits, or probs, or loc and scale, or actor_output.",
        )
    entries = {key: batch.entry(key) for key in found[0]}
    if isinstance(entries.get("actor_output"), TensorDictBase):
        return [], {k: _filled(batch, k, x) for k, x in entries["actor_output"].items()}
    entries = {key: _filled(batch, key, value) for key, value in entries.items()}
    return ([entries["actor_output"]], {}) if "actor_output" in entries else ([], entries)


def _filled(batch: Batch, name: str, value: Any) -> Any:
    """A parameter; steps that the mask leaves out hold ones, which every distribution takes."""
    if isinstance(value, TensorDictBase):
        return value.apply(lambda x: batch.filled(x, 1.0)) if batch.mask is not None else value
    if not isinstance(value, Tensor):
        raise TypeError(f"{batch.function}: {name} is {kind(value)}, expected a tensor")
    return batch.filled(value, 1.0) if value.is_floating_point() else value


def _categorical(batch: Batch, name: str, value: Tensor) -> LeanCategorical:
    source = "actor_output" if batch.has("actor_output") else name
    if not value.is_floating_point():
        raise TypeError(
            f"{batch.function}: {source} has dtype {dtype(value)}, expected a floating-point one"
        )
    dims = len(batch.shape)
    if value.dim() != dims + 1 or value.shape[:dims] != batch.shape or value.shape[-1] == 0:
        batch.wrong_shape(source, value, batch_first(batch.shape, "A"))
    if name == "logits":
        return LeanCategorical(log_softmax(value), source)
    if not no_data() and bool((value < 0).any()):
        raise ValueError(
            f"{batch.function}: {source} holds negative numbers, expected probabilities; "
            "put log-probabilities under 'logits'"
        )
    probs = value / value.sum(-1, keepdim=True)
    return LeanCategorical(probs.clamp(min=torch.finfo(probs.dtype).tiny).log(), source)


def _summed(batch: Batch, name: str, value: Tensor) -> Tensor:
    """A distribution's answer as one number per step: independent components add up."""
    dims = len(batch.shape)
    if value.shape[:dims] != batch.shape:
        wanted = batch_first(batch.shape)
        batch.wrong_shape(f"the distribution's {name}", value, wanted)
    return value if value.dim() == dims else value.flatten(dims).sum(-1)
