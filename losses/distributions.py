"""Distributions of actions, made of the parameters that a td holds.

``dist_class`` is any callable that takes the parameters and gives an object with
``log_prob(action)`` and ``entropy()``, such as the classes of torch.distributions. Which parameters
it gets is read off the td:

    logits                  dist_class(logits=...)
    probs                   dist_class(probs=...)
    loc and scale           dist_class(loc=..., scale=...)
    actor_output, a tensor  dist_class(actor_output), for Categorical so the probabilities
    actor_output, a td      dist_class(**actor_output)
    params, a td            dist_class(params=params), for ``joint`` its heads' parameters by name

``masked_categorical`` gets ``action_mask`` too. A probability of 0 under ``probs`` counts as the
least positive normal number, so that its logarithm is finite; a logit of -inf is a probability of
exactly 0. Independent components of an action add up, and so do the heads of a nested one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import CompositeDistribution
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._check import batch_first, dtype, kind, missing, no_data, path
from ._heads import JointDistribution, divergence_of, first_line
from ._heads import action_log_prob as action_log_prob
from ._heads import behavior_log_prob as behavior_log_prob
from ._heads import entropy as entropy
from ._heads import entropy_bonus as entropy_bonus
from ._heads import kl as kl
from ._numbers import log_softmax
from .densities import LeanCategorical, masked_categorical
from .densities import categorical_cross_entropy as categorical_cross_entropy
from .densities import categorical_kl as categorical_kl
from .densities import importance_ratio as importance_ratio
from .densities import independent_normal as independent_normal
from .densities import tanh_normal as tanh_normal

DistClass = Callable[..., Any]
Source = tuple[str, ...]

_SOURCES = (("logits",), ("probs",), ("loc", "scale"), ("actor_output",), ("params",))


def distribution(td: TensorDictBase, dist_class: DistClass = Categorical) -> Any:
    """The distribution over actions whose parameters the td holds.

    Args:
        td: ``[*B]`` with ``logits`` or ``probs`` (``[*B, A]`` for Categorical), or ``loc`` and
            ``scale``, or ``actor_output``, or ``params``.
        dist_class: callable from these to a distribution.

    Returns:
        What ``dist_class`` gives. For ``Categorical`` a leaner one, a subclass: its ``log_prob``
        takes an action as an index, ``[*B]`` or ``[*B, 1]`` of integers, or one-hot, ``[*B, A]``.

    Raises:
        ValueError: the td holds none of these parameters, or more than one kind.
        TypeError: a parameter is not floating-point, or ``dist_class`` takes others.
    """
    return make_distribution(Batch("distribution", td, empty=True), dist_class)


def joint(**heads: DistClass) -> "Joint":
    """Distribution of a nested action, of heads that are independent given the state.

        log p(a) = sum_h log p_h(a_h),    H = sum_h H_h

    With ``joint(steer=independent_normal, gear=Categorical)`` as ``dist_class``, the action is a td
    with ``steer`` and ``gear``, and so is ``actor_output`` or ``params``: ``{"steer": {"loc",
    "scale"}, "gear": {"logits"}}``. A head is again whatever may be a ``dist_class``, a ``joint``
    too, and its actions and parameters are what they are without the others.

    Args:
        heads: a ``dist_class`` for each name of the action.

    Returns:
        A ``dist_class``: called with a td of parameters for each head, all of batch size ``[*B]``,
        it gives a distribution of batch shape ``[*B]``.

    Raises:
        ValueError: there is no head.
        TypeError: a head is not callable.
    """
    if not heads:
        raise ValueError("joint: no head is given; name one, e.g. joint(move=Categorical)")
    for name, dist_class in heads.items():
        if not callable(dist_class):
            raise TypeError(f"joint: {name} is {kind(dist_class)}, expected a dist_class")
    return Joint(heads)


def kl_divergence(p: Any, q: Any) -> Tensor:
    """Divergence of two distributions of one kind, KL(p || q).

    For categorical ones sum_k p_k (log p_k - log q_k), where 0 log 0 is 0: it is +inf only where an
    action has p_k > 0 and q_k = 0, and the gradient leaves such an action out. For ``tanh_normal``
    that of the normals under the tanh, for ``joint`` the sum over heads, and for others what
    torch.distributions knows.

    Args:
        p: a distribution, as ``distribution`` or a ``dist_class`` gives it.
        q: likewise, of the same kind and shapes. Two ``tanh_normal`` have the same bounds.

    Returns:
        A number for each element of the distributions' batch shape, differentiable in the
        parameters of both.

    Raises:
        ValueError: the shapes differ, or no divergence of two such distributions is known.

    Source: Kullback & Leibler (1951), equation 2.4.
    """
    return divergence_of("kl_divergence", p, q)


class Joint:
    """What ``joint`` gives."""

    def __init__(self, heads: Mapping[str, DistClass]) -> None:
        self.heads = dict(heads)
        self.__name__ = f"joint({', '.join(heads)})"

    def __call__(self, **parameters: TensorDictBase) -> "JointDistribution":
        """The distribution of the heads' parameters, a td for each."""
        sizes = {name: getattr(x, "batch_size", None) for name, x in parameters.items()}
        first = next(iter(parameters.values()), None)
        if not isinstance(first, TensorDictBase) or len(set(sizes.values())) > 1:
            raise ValueError(
                f"{self.__name__}: the heads' parameters have the batch sizes {sizes}, expected "
                "one TensorDict for each head, all of one batch size"
            )
        batch = Batch(self.__name__, first, empty=True)
        return self.made(batch, "parameters", parameters, None)

    def made(
        self, batch: Batch, where: str, parameters: Mapping[str, Any], action_mask: Any
    ) -> "JointDistribution":
        """The distribution of parameters that an opened td holds under the name ``where``."""
        for ours, theirs in ((self.heads, parameters), (parameters, self.heads)):
            if lacking := [name for name in ours if name not in theirs]:
                raise ValueError(
                    f"{batch.function}: the heads are {', '.join(self.heads)}, and {where} holds "
                    f"{', '.join(parameters) or 'nothing'}; {lacking[0]!r} is in one of them only"
                )
        heads = {}
        for name, dist_class in self.heads.items():
            value, mask = parameters[name], _child(action_mask, name)
            args, kwargs = _arguments(value)
            heads[name] = _build(batch, f"{where}.{name}", dist_class, args, kwargs, mask)
        return JointDistribution(batch, heads)


# ---- for the other files: distributions of an opened td


def make_distribution(batch: Batch, dist_class: DistClass, source: Source = ()) -> Any:
    """``distribution`` of an opened td, or of the td nested in it under ``source``."""
    where, args, kwargs = _parameters(batch, source)
    action_mask = batch.td.get((*source, "action_mask"), None)
    if action_mask is None and source in (("behavior",), ("teacher",)):  # of the same states
        action_mask = batch.td.get("action_mask", None)
    if dist_class is masked_categorical and action_mask is None and "action_mask" not in kwargs:
        raise missing(batch.function, batch.td, (*source, "action_mask"))
    if action_mask is not None:
        action_mask = _filled(batch, "action_mask", action_mask)
    return _build(batch, where, dist_class, args, kwargs, action_mask)


def all_log_probs(batch: Batch, dist_class: DistClass, source: Source = ()) -> Tensor:
    """Log-probabilities of a categorical distribution's actions, ``[*B, A]``."""
    dist = make_distribution(batch, dist_class, source)
    logits, probs = (getattr(dist, name, None) for name in ("logits", "probs"))
    if not isinstance(logits, Tensor) and not isinstance(probs, Tensor):
        raise ValueError(
            f"{batch.function}: dist_class gives {kind(dist)}, expected a categorical distribution"
        )
    value, dims = logits if isinstance(logits, Tensor) else _logarithm(probs), len(batch.shape)
    if value.dim() != dims + 1 or value.shape[:dims] != batch.shape:
        batch.wrong_shape((*source, "logits"), value, batch_first(batch.shape, "A"))
    return value if isinstance(dist, LeanCategorical) else log_softmax(value)


# ---- reading parameters


def _parameters(batch: Batch, source: Source) -> tuple[str, list[Any], dict[str, Any]]:
    """Where the td has the parameters, and positional and keyword arguments for ``dist_class``."""
    node = batch.entry(source) if source else batch.td
    if not isinstance(node, TensorDictBase):
        raise TypeError(f"{batch.function}: {path(source)} is {kind(node)}, expected a TensorDict")
    present = frozenset(node.keys())
    found = [keys for keys in _SOURCES if keys[0] in present]
    if len(found) > 1:
        names = " and ".join(repr(path((*source, keys[0]))) for keys in found)
        last = (*source, found[-1][0]) if source else found[-1][0]
        raise ValueError(
            f"{batch.function}: the td holds {names}, and only one may parametrize the actions; "
            f"drop the others first, e.g. td.exclude({last!r})"
        )
    if not found:
        raise missing(
            batch.function,
            batch.td,
            (*source, "logits"),
            "A distribution needs logits, or probs, or loc and scale, or actor_output, or params.",
        )
    entries = {key: _filled(batch, key, batch.entry((*source, key))) for key in found[0]}
    where = path((*source, found[0][0]))
    if "actor_output" in entries:
        return where, *_arguments(entries["actor_output"])
    return where, [], entries


def _arguments(value: Any) -> tuple[list[Any], dict[str, Any]]:
    """Parameters as arguments: a td as keywords, a tensor as it is."""
    return ([], dict(value.items())) if isinstance(value, TensorDictBase) else ([value], {})


def _filled(batch: Batch, name: str, value: Any) -> Any:
    """A parameter; steps that the mask leaves out hold ones, which every distribution takes."""
    if isinstance(value, TensorDictBase):
        if batch.mask is None:
            return value
        return value.named_apply(lambda key, x: _filled(batch, key, x), nested_keys=False)
    if not isinstance(value, Tensor):
        raise TypeError(f"{batch.function}: {name} is {kind(value)}, expected a tensor")
    if value.is_floating_point():
        return batch.filled(value, -1.0 if name == "low" else 1.0)  # a bound is below the other
    return batch.filled(value, True) if value.dtype == torch.bool else value


def _build(
    batch: Batch,
    where: str,
    dist_class: DistClass,
    args: list[Any],
    kwargs: dict[str, Any],
    action_mask: Any,
) -> Any:
    """The distribution of parameters that stand under the name ``where``."""
    if isinstance(dist_class, Joint):
        heads = args[0] if args else kwargs["params"] if "params" in kwargs else kwargs
        if isinstance(heads, Tensor):
            raise TypeError(f"{batch.function}: {where} is a Tensor, expected a TensorDict")
        return dist_class.made(batch, where, dict(heads.items()), action_mask)
    if dist_class is Categorical and len(args) + len(kwargs) == 1:
        name = next(iter(kwargs), "probs")
        if name in ("logits", "probs"):
            return _categorical(batch, where, name, args[0] if args else kwargs[name])
    if dist_class is masked_categorical and action_mask is not None:
        kwargs = {"action_mask": action_mask, **kwargs}
    name = getattr(dist_class, "__name__", repr(dist_class))
    try:
        dist = dist_class(*args, **kwargs)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        given = ", ".join(kwargs) if kwargs else where
        raise (TypeError if isinstance(error, TypeError) else ValueError)(
            f"{batch.function}: dist_class {name} does not take {given}, as the td has it: "
            f"{first_line(error)}"
        ) from error
    if isinstance(dist, CompositeDistribution):
        return JointDistribution(batch, dist.dists, at_root=True)
    if isinstance(dist, LeanCategorical):
        dist.source = where
        if dist.batch_shape != batch.shape:
            batch.wrong_shape(where, dist.logits, batch_first(batch.shape, "A"))
    return dist


def _categorical(batch: Batch, where: str, name: str, value: Any) -> LeanCategorical:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"has dtype {dtype(value)}" if isinstance(value, Tensor) else f"is {kind(value)}"
        raise TypeError(f"{batch.function}: {where} {got}, expected a floating-point tensor")
    dims = len(batch.shape)
    if value.dim() != dims + 1 or value.shape[:dims] != batch.shape or value.shape[-1] == 0:
        batch.wrong_shape(where, value, batch_first(batch.shape, "A"))
    if name == "logits":
        return LeanCategorical(log_softmax(value), where)
    total = value.sum(-1, keepdim=True)
    if not no_data(value) and bool(((value < 0) | (total == 0)).any()):
        got = "negative numbers" if bool((value < 0).any()) else "a row of zeros"
        raise ValueError(
            f"{batch.function}: {where} holds {got}, expected probabilities; "
            "put log-probabilities under 'logits'"
        )
    return LeanCategorical(_logarithm(value / total), where)


def _logarithm(probs: Any) -> Tensor:
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def _child(td: Any, name: str) -> Any:
    return td.get(name, None) if isinstance(td, TensorDictBase) else None
