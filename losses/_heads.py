"""Asking a distribution about the steps of an opened td: head by head, component by component.

An action of several heads is a td, and its distribution a ``JointDistribution``. Whatever is asked
is one number per step, ``[*B]``: independent heads add up, and so do components.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, OneHotCategorical

from ._batch import Batch
from ._check import batch_first, check_float, check_index, gather, kind, missing, path
from .densities import LeanCategorical, TanhNormal, known_divergence

OF_INDICES = (Categorical, OneHotCategorical)
LOG_PROB = "_log_prob"  # TorchRL's suffix for what belongs to a head


class JointDistribution:
    """Distributions by name, of an action that is a td with these names."""

    def __init__(self, batch: Batch, heads: Mapping[Any, Any], at_root: bool = False) -> None:
        """Takes the td that the heads were read from; ``at_root`` if it may hold the actions."""
        self.batch, self.heads, self.at_root = batch, dict(heads), at_root
        self.batch_shape = batch.shape

    def log_prob(self, action: TensorDictBase) -> Tensor:
        """Log-probability ``[*B]`` of an action."""
        return _log_prob(self.batch, self, action, "action")

    def entropy(self) -> Tensor:
        """Entropy ``[*B]``."""
        return entropy(self.batch, self)


# ---- what the policy makes of the action


def action_log_prob(batch: Batch, dist: Any) -> Tensor:
    """Log-probability of the action per step, ``[*B]``."""
    return _log_prob(batch, dist, _action(batch, dist), "action")


def _action(batch: Batch, dist: Any) -> Any:
    """The action as it stands, or the td that holds the heads' actions."""
    if isinstance(dist, JointDistribution) and dist.at_root:
        if all(batch.td.get(key, None) is not None for key in dist.heads):
            return batch.td
    return batch.entry("action")


def _log_prob(batch: Batch, dist: Any, action: Any, name: str) -> Tensor:
    """Log-probability per step, ``[*B]``, of the action that stands under ``name``."""
    if isinstance(dist, JointDistribution):
        return sum(
            _log_prob(batch, head, _head_action(batch, action, key, name), f"{name}.{path(key)}")
            for key, head in dist.heads.items()
        )  # pyright: ignore[reportReturnType]
    action = _filled_action(batch, action)
    if isinstance(dist, LeanCategorical):
        return dist.gathered(batch.function, name, action, batch.mask)
    if isinstance(dist, OF_INDICES) and dist.batch_shape == batch.shape:
        return _log_prob_of_index(batch, dist, action, name)
    action = _event(batch, dist, action, name)
    value = asked(batch, dist, action, name)
    if isinstance(value, TensorDictBase):
        return sum(_summed(batch, "log_prob", x) for x in _parts(value, LOG_PROB))  # pyright: ignore[reportReturnType]
    value = check_float(batch.function, "the distribution's log_prob", value)
    if value.shape != batch.shape and value.shape != getattr(action, "shape", None):
        raise ValueError(
            f"{batch.function}: the distribution's log_prob has shape {tuple(value.shape)}, "
            f"expected {batch_first(batch.shape)} (the td's batch size) or the {name}'s shape, "
            f"{tuple(getattr(action, 'shape', ()))}; its parameters and the {name} do not match"
        )
    return _summed(batch, "log_prob", value)


def _log_prob_of_index(batch: Batch, dist: Any, action: Any, name: str) -> Tensor:
    """Log-probability of an index or a one-hot, whichever of them the class takes."""
    size, source = dist.logits.shape[-1], "the distribution"
    index = check_index(batch.function, name, action, batch.shape, size, source, batch.mask)
    if type(dist) is Categorical or isinstance(dist, OneHotCategorical):
        return gather(batch.function, name, dist.logits, index, source)
    if any("OneHot" in base.__name__ for base in type(dist).__mro__):  # TorchRL's
        gather(batch.function, name, dist.logits, index, source)  # refuses what is out of range
        index = (index.unsqueeze(-1) == torch.arange(size, device=index.device)).long()
    return asked(batch, dist, index, name)


def asked(batch: Batch, dist: Any, action: Any, name: str) -> Any:
    """``dist.log_prob(action)``; an error in there says where it comes from."""
    try:
        return dist.log_prob(action)
    except (AttributeError, IndexError, RuntimeError, ValueError) as error:
        shape = getattr(action, "shape", None)
        of = f"the {name}" if shape is None else f"the {name} of shape {tuple(shape)}"
        raise ValueError(
            f"{batch.function}: {kind(dist)}, which dist_class gives, has no log_prob of {of}: "
            f"{first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """An error's text without the numbers that torch prints below."""
    return str(error).partition("\n")[0]


def _head_action(batch: Batch, action: Any, key: Any, name: str) -> Any:
    if not isinstance(action, TensorDictBase):
        raise TypeError(
            f"{batch.function}: {name} is {kind(action)}, expected a TensorDict with the names of "
            "the heads"
        )
    value = action.get(key, None)
    if value is None:
        raise missing(batch.function, batch.td, f"{name}.{path(key)}")
    return value


def _filled_action(batch: Batch, action: Any) -> Any:
    """An action; steps that the mask leaves out hold what every distribution takes."""
    if batch.mask is None:
        return action
    if isinstance(action, TensorDictBase):
        return action.apply(lambda x: _filled_action(batch, x))
    if not isinstance(action, Tensor):
        return action
    return batch.filled(action, 0.5 if action.is_floating_point() else 0)


def _event(batch: Batch, dist: Any, action: Any, name: str) -> Any:
    """An action in the shape of its distribution; it may lack an axis of one component.

    Yes and no may be of any dtype.
    """
    base = dist.base_dist if isinstance(dist, Independent) else dist
    if isinstance(base, Bernoulli) and isinstance(action, Tensor):
        action = action.to(base.logits.dtype)
    if not isinstance(dist, Independent | TanhNormal) or not isinstance(action, Tensor):
        return action
    shape = dist.batch_shape + dist.event_shape
    if isinstance(dist, TanhNormal):
        check_float(batch.function, name, action)
    if (*action.shape, 1) == shape:
        return action.unsqueeze(-1)
    if action.shape != shape:
        batch.wrong_shape(name, action, batch_first(shape), " (from the distribution)")
    return action


# ---- what the policy that acted made of it


def behavior_log_prob(batch: Batch, dist: Any, hint: str = "") -> Tensor:
    """Log-probability per step, ``[*B]``, of the action under the policy that drew it.

    ``action_log_prob`` of the td, which may be a td of heads; or, beside each head's action, an
    entry with its name and TorchRL's suffix.
    """
    name = "action_log_prob"
    if batch.has(name):
        value = batch.entry(name)
        plain = isinstance(value, Tensor) and value.shape == batch.shape
        return _drawn(batch, dist, value, name, None if plain else _action(batch, dist))
    action = _action(batch, dist)
    if not isinstance(action, TensorDictBase):
        raise missing(batch.function, batch.td, name, hint)
    return _drawn_beside(batch, dist, action, () if action is batch.td else ("action",))


def _drawn(batch: Batch, dist: Any, value: Any, name: str, action: Any) -> Tensor:
    """The log-probability that is given under ``name``, of an action as it stands."""
    if isinstance(value, TensorDictBase):
        total = 0.0
        for key, head in _heads(dist, action, value).items():
            part = _of_head(value, key)
            if part is None:
                raise missing(batch.function, batch.td, f"{name}.{path(key)}")
            own = action.get(key, None) if isinstance(action, TensorDictBase) else None
            total = total + _drawn(batch, head, part, f"{name}.{path(key)}", own)
        return total  # pyright: ignore[reportReturnType]
    value, dims = check_float(batch.function, name, value), len(batch.shape)
    components = value.dim() > dims and value.shape == getattr(action, "shape", None)
    if components and not isinstance(dist, OF_INDICES):
        return batch.filled(value, 0.0).flatten(dims).sum(-1)
    return batch.filled(batch.per_step(name, value), 0.0)


def _drawn_beside(batch: Batch, dist: Any, action: TensorDictBase, name: tuple[str, ...]) -> Tensor:
    """The log-probabilities that stand beside the heads of an action, summed."""
    total = 0.0
    for key, head in _heads(dist, action, action).items():
        where, own = _suffixed(key), action.get(key, None)
        value = action.get(where, None)
        if value is not None:
            part = _drawn(batch, head, value, path((*name, *where)), own)
        elif isinstance(own, TensorDictBase):
            part = _drawn_beside(batch, head, own, (*name, *_tuple(key)))
        else:
            hint = "Give the sum of all heads as action_log_prob, or each one's under such a name."
            raise missing(batch.function, batch.td, (*name, *where), hint)
        total = total + part
    return total  # pyright: ignore[reportReturnType]


def _heads(dist: Any, action: Any, value: TensorDictBase) -> dict[Any, Any]:
    """The names of an action's heads, and their distributions as far as they are known."""
    if isinstance(dist, JointDistribution):
        return dist.heads
    if not isinstance(action, TensorDictBase):
        return dict.fromkeys(value.keys(True, True))
    return dict.fromkeys(key for key in action.keys(True, True) if not _is_suffixed(key))


def _of_head(td: TensorDictBase, key: Any) -> Any:
    """What a td of log-probabilities holds of a head: under its name, suffixed or not."""
    for name in (_tuple(key), _tuple(key)[-1:]):
        for candidate in (name, _suffixed(name)):
            if (value := td.get(candidate, None)) is not None:
                return value
    return None


def _tuple(key: Any) -> tuple[str, ...]:
    return key if isinstance(key, tuple) else (key,)


def _suffixed(key: Any) -> tuple[str, ...]:
    *above, name = _tuple(key)
    return (*above, name + LOG_PROB)


def _is_suffixed(key: Any) -> bool:
    return _tuple(key)[-1].endswith(LOG_PROB)


# ---- entropy and divergence


def entropy(batch: Batch, dist: Any) -> Tensor:
    """Entropy per step, ``[*B]``."""
    try:
        return _entropy(batch, dist)
    except NotImplementedError as error:
        raise ValueError(
            f"{batch.function}: {error} has no entropy in closed form; "
            "give a dist_class whose result has a method entropy()"
        ) from None


def entropy_bonus(
    batch: Batch, dist: Any, entropy_coeff: float | Tensor, like: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``loss_entropy`` and the metric ``entropy``, ``[*B]`` and ``like`` the log-probability.

    A distribution without an entropy will do where the coefficient is the number 0: the loss is
    then 0, and there is no metric.
    """
    coeff = batch.hyper("entropy_coeff", entropy_coeff)
    if not isinstance(coeff, Tensor) and coeff == 0:
        try:
            value = _entropy(batch, dist)
        except NotImplementedError:
            return {"loss_entropy": torch.zeros_like(like)}, {}
    else:
        value = entropy(batch, dist)
    return {"loss_entropy": -coeff * value}, {"entropy": value}


def _entropy(batch: Batch, dist: Any) -> Tensor:
    """Entropy per step, ``[*B]``; NotImplementedError with the class's name if there is none."""
    if isinstance(dist, JointDistribution):
        return sum(_entropy(batch, head) for head in dist.heads.values())  # pyright: ignore[reportReturnType]
    if not hasattr(dist, "entropy"):
        raise NotImplementedError(type(dist).__name__)
    try:
        value = dist.entropy()
    except NotImplementedError:
        raise NotImplementedError(type(dist).__name__) from None
    if isinstance(value, TensorDictBase):
        return sum(_summed(batch, "entropy", x) for x in _parts(value, "_entropy"))  # pyright: ignore[reportReturnType]
    return _summed(batch, "entropy", value)


def kl(batch: Batch, p: Any, q: Any) -> Tensor:
    """KL(p || q) per step, ``[*B]``."""
    return _summed(batch, "kl_divergence", divergence_of(batch.function, p, q))


def divergence_of(function: str, p: Any, q: Any) -> Any:
    """``kl_divergence`` on behalf of a function."""
    if isinstance(p, JointDistribution) and isinstance(q, JointDistribution):
        if p.heads.keys() == q.heads.keys():
            parts = ((p.heads[name], q.heads[name]) for name in p.heads)
            return sum(
                _summed(p.batch, "kl_divergence", divergence_of(function, *pair)) for pair in parts
            )
    else:
        sizes = [_size(dist) for dist in (p, q)]
        if sizes[0] != sizes[1]:
            got = " and ".join(map(str, sizes))
            raise ValueError(f"{function}: the two distributions have shapes {got}, expected one")
        value = known_divergence(p, q)
        if value is not None:
            return value
    raise ValueError(
        f"{function}: no divergence is known of {kind(p)} from {kind(q)}, expected two of one "
        "kind, with the same heads and bounds"
    )


def _size(dist: Any) -> tuple[int, ...]:
    """The batch shape and what an action, or its probabilities, adds to it."""
    base = dist
    while isinstance(base, Independent):
        base = base.base_dist
    if isinstance(base, OF_INDICES):
        return tuple(base.param_shape)
    return (*getattr(base, "batch_shape", ()), *getattr(base, "event_shape", ()))


# ---- one number per step


def _parts(value: TensorDictBase, suffix: str) -> Iterator[Tensor]:
    """A distribution's answers by head; where names bear the suffix, only those are answers."""
    keys = list(value.keys(True, True))
    marked = [key for key in keys if _tuple(key)[-1].endswith(suffix)]
    return (value.get(key) for key in marked or keys)


def _summed(batch: Batch, name: str, value: Any) -> Tensor:
    """A distribution's answer as one number per step: independent components add up."""
    value, dims = check_float(batch.function, f"the distribution's {name}", value), len(batch.shape)
    if value.shape[:dims] != batch.shape:
        wanted = batch_first(batch.shape)
        batch.wrong_shape(f"the distribution's {name}", value, wanted)
    return value if value.dim() == dims else value.flatten(dims).sum(-1)
