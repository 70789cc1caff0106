# TorchRL and tensordict are annotated loosely.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
"""Actors of one head or of several: their keys, their distribution, and what is summed over heads.

The heads of tensordict's ``CompositeDistribution`` have a name each, nested or not, under which the
action stands, and beside it ``<name>_log_prob``; its ``composite_lp_aggregate`` says whether the
actor writes these, or their sum.
"""

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from tensordict import is_tensor_collection
from tensordict.nn import CompositeDistribution
from torch import Tensor, nn
from torchrl.modules import TanhNormal

import losses


class Sampled:
    """A distribution whose entropy has no closed form, and is a mean over samples."""

    def __init__(self, dist: Any, samples: int) -> None:
        self.dist, self.samples = dist, samples

    def log_prob(self, action: Any) -> Tensor:
        """Log-probability, the distribution's own."""
        return self.dist.log_prob(action)

    def entropy(self) -> Tensor:
        """Minus the mean log-probability of samples."""
        draw = self.dist.rsample if self.dist.has_rsample else self.dist.sample
        return -self.dist.log_prob(draw((self.samples,))).mean(0)


def usable(dist: Any, samples: int) -> Any:
    """The distribution with an entropy; TanhNormal's and its divergence are in closed form."""
    if isinstance(dist, CompositeDistribution):
        dist = copy(dist)
        dist.dists = {name: usable(head, samples) for name, head in dist.dists.items()}
        return dist
    if type(dist) is TanhNormal:
        return losses.tanh_normal(dist.loc, dist.scale, dist.low, dist.high)
    try:
        dist.entropy()
    except NotImplementedError:
        return Sampled(dist, samples)
    return dist


def is_composite(actor: nn.Module) -> bool:
    """Whether the actor's distribution has heads with names."""
    kinds = [getattr(module, "distribution_class", None) for module in actor.modules()]
    kinds = [getattr(kind, "func", kind) for kind in kinds]  # of a functools.partial
    return any(isinstance(x, type) and issubclass(x, CompositeDistribution) for x in kinds)


def summed(x: Any) -> Tensor:
    """A log-probability per step; of several heads, in a td, their sum."""
    if not is_tensor_collection(x):
        return x
    dims = x.batch_dims
    parts = x.values(include_nested=True, leaves_only=True)
    return torch.stack([p.flatten(dims).sum(-1) if p.dim() > dims else p for p in parts]).sum(0)


def head_coefficients(function: str, given: Mapping[Any, Any], heads: list[Any]) -> dict[Any, Any]:
    """A coefficient for each head, whose key may end in ``_entropy`` or ``_log_prob``."""
    left, found = dict(given), {}
    for head in heads:
        names = [key for key in (head, *_derived(head)) if key in left]
        if not names:
            raise ValueError(
                f"{function}: entropy_coeff has no number for the head {head!r}, it has "
                f"{', '.join(map(repr, given))}"
            )
        found[head] = left.pop(names[0])
    if left:
        raise ValueError(
            f"{function}: entropy_coeff has {next(iter(left))!r}, which is no head of the actor's; "
            f"these are {', '.join(map(repr, heads))}"
        )
    return found


# ---- keys


def key_list(key: Any) -> list[Any]:
    """The keys of a list, or the only one."""
    return list(key) if isinstance(key, list) else [key]


def only_key(keys: list[Any]) -> Any:
    """The only key of a list, or the list."""
    return keys[0] if len(keys) == 1 else keys


def nested(*keys: Any) -> tuple[str, ...]:
    """One key of keys in one another."""
    return tuple(name for key in keys for name in ([key] if isinstance(key, str) else key))


def _derived(head: Any) -> list[Any]:
    *nest, name = [head] if isinstance(head, str) else head
    names = [f"{name}_entropy", f"{name}_log_prob"]
    return [(*nest, x) for x in names] if nest else names
