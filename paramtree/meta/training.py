"""What meta-trainings have in common: one tree, and a pure step of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..optim import Transform, apply_updates
from .population import Population, first
from .update_rule import UpdateRule


class Training(NamedTuple):
    """``init(key) -> state``, ``step(state) -> (state, metrics)``: pure, the state one tree."""

    init: Callable[[Tensor], TensorDict]
    step: Callable[[TensorDict], tuple[TensorDict, TensorDict]]


def first_groups(
    rule: UpdateRule, populations: Mapping[str, Population], key: Tensor
) -> dict[str, dict[str, TensorDict]]:
    """States of all groups at the beginning, by group and kind.

    Args:
        rule: the rule.
        populations: by group.
        key: key ``[2]``.

    Returns:
        The states; ages are spread over a lifetime.
    """
    key = rng.fold_in(key, "agents")
    return {
        name: first(population, rule, rng.fold_in(key, name))
        for name, population in populations.items()
    }


def first_state(
    rule: UpdateRule, optimizer: Transform, key: Tensor, others: dict[str, Any]
) -> TensorDict:
    """A training before its first step.

    Args:
        rule: the rule.
        optimizer: transform of its gradients.
        key: key ``[2]``.
        others: the rest of the state, by name.

    Returns:
        The state.
    """
    params, _ = rule.init(rng.fold_in(key, "rule"))
    # copies, as later on: a compiled step is compiled again where two names share their tensors
    state = {
        "rule": params,
        "average": tree.map(torch.clone, params),
        "optimizer": optimizer.init(params),
        **others,
        "step": torch.zeros((), dtype=torch.int64, device=key.device),
        "key": key,
    }
    return tree.new(state)


def descended(
    state: TensorDict,
    optimizer: Transform,
    gradient: TensorDict,
    average: float,
    others: dict[str, Any],
) -> TensorDict:
    """A training after one more step.

    Args:
        state: the training.
        optimizer: transform of the rule's gradients.
        gradient: of this step.
        average: decay of the running average.
        others: what became of the rest of the state, by name.

    Returns:
        The state.
    """
    changes, moments = optimizer.update(gradient, state["optimizer"], state["rule"])
    params = apply_updates(state["rule"], changes)
    after = {
        "rule": params,
        "average": tree.map(lambda old, p: p.lerp(old, average), state["average"], params),
        "optimizer": moments,
        **others,
        "step": state["step"] + 1,
    }
    return tree.new({**tree.entries(state), **after})
