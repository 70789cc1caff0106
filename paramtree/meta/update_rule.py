"""Update rules: what turns an agent's trajectory into the agent's next parameters.

A rule reads a trajectory that has the agent's outputs on it, and adds what the agent is to learn
from: a hand-written one adds ``advantage`` and ``value_target``, a learned one ``pi_hat`` and
``y_hat``. Its ``loss`` is the reducer that the agent then descends. Both kinds run behind one pair
of functions, so one evaluation compares them all.

    outputs   agent(params, td), now and next, outside the differentiated function
    targets   rule.apply(rule_params, outputs), constant for the inner gradient, not the outer
    params'   params + optimizer(grad_p total(rule.loss(agent(p, targets))))

The last line is done once, or for each part of the trajectory's workers in each of several epochs,
always with the same targets.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tensordict import TensorDict
from torch import Tensor

from .. import losses, rng, tree
from ..autodiff import grad
from ..model import Model, with_next
from ..optim import Transform, apply_updates

OptimizerOf = Transform | Callable[[TensorDict], Transform]


class UpdateRule(NamedTuple):
    """Pure functions ``init``, ``apply`` and ``loss``, and how often the loss is descended.

    ``init(key) -> (params, buffers)``, ``apply(params, buffers, td [*B, T]) -> (td, buffers)``,
    ``loss(td, **hyper) -> TensorDict``.

    Params are shared by all agents that the rule trains; buffers are what it remembers of one
    agent's life. An update makes ``epochs`` passes over what ``apply`` gave, each in
    ``minibatches`` parts of the workers, with a step of the optimizer after each part. Where
    ``learned_loss``, the rule's params are in what agents descend too, and the loss gets them as
    ``loss(td, params=params, **hyper)``.
    """

    init: Callable[[Tensor], tuple[TensorDict, TensorDict]]
    apply: Callable[[TensorDict, TensorDict, TensorDict], tuple[TensorDict, TensorDict]]
    loss: Callable[..., TensorDict]
    epochs: int = 1
    minibatches: int = 1
    learned_loss: bool = False


def update_agent(
    rule: UpdateRule,
    agent: Model,
    optimizer: OptimizerOf,
    rule_params: TensorDict,
    state: TensorDict,
    td: TensorDict,
    hyper: TensorDict | None = None,
    key: Tensor | None = None,
) -> tuple[TensorDict, TensorDict]:
    """One update of one agent by a rule, differentiable in rule, hyper-parameters and agent.

    Args:
        rule: the update rule.
        agent: model that reads the trajectory's observations and gives what the rule reads.
        optimizer: transform of the agent's gradients; or a function that makes one of the agent's
            own hyper-parameters, ``state["hyper", "optimizer"]``.
        rule_params: the rule's parameters.
        state: ``params``, ``buffers``, ``optimizer`` (its state) and ``rule`` (the rule's buffers)
            of the agent, and optionally ``hyper`` with ``optimizer`` and ``loss``; other entries
            come back as they are.
        td: trajectory of batch size ``[*B, T]``, as ``rollout`` gives it; its first axis is
            divided where the rule has minibatches.
        hyper: hyper-parameters of the rule's loss by name; they win over those in ``state["hyper",
            "loss"]``.
        key: key ``[2]`` of the minibatches; None where there is one.

    Returns:
        ``(state, td)``: the agent after the update, and the trajectory with the agent's outputs
        from before it and what the rule added.

    Raises:
        ValueError: the optimizer is a function and the state has no ``hyper.optimizer``; a number
            of the rule's is below 1; or there are minibatches, and no key, no axis of workers, or a
            number of workers that they don't divide.
    """
    transform, weights = _of_this_agent(rule, optimizer, rule_params, state, hyper)
    params, buffers, moments = state["params"], state["buffers"], state["optimizer"]
    outputs, _ = with_next(agent).apply(params, buffers, td)
    targets, memory = rule.apply(rule_params, state["rule"], outputs)
    for part in _parts(rule, targets, key):
        params, buffers, moments = _step(
            rule, agent, transform, weights, part, params, buffers, moments
        )
    changed = {
        "params": params,
        "buffers": tree.lock(buffers),
        "optimizer": moments,
        "rule": tree.lock(memory),
    }
    return tree.new({**tree.entries(state), **changed}, state.batch_size), targets


def _step(
    rule: UpdateRule,
    agent: Model,
    optimizer: Transform,
    weights: dict[str, Any],
    part: TensorDict,
    params: TensorDict,
    buffers: TensorDict,
    moments: TensorDict,
) -> tuple[TensorDict, TensorDict, TensorDict]:
    def objective(p: TensorDict) -> tuple[Tensor, TensorDict]:
        out, after = agent.apply(p, buffers, part)
        return losses.total(rule.loss(out, **weights)), after

    grads, after = grad(objective, has_aux=True)(params)
    updates, moments = optimizer.update(grads, moments, params)
    return apply_updates(params, updates), after, moments


def _of_this_agent(
    rule: UpdateRule,
    optimizer: OptimizerOf,
    rule_params: TensorDict,
    state: TensorDict,
    hyper: TensorDict | None,
) -> tuple[Transform, dict[str, Any]]:
    """The agent's optimizer, and the keywords of its loss."""
    own = tree.entries(state["hyper"]) if "hyper" in state.keys() else {}
    if not isinstance(optimizer, Transform):
        if "optimizer" not in own:
            raise ValueError(
                "update_agent: optimizer is a function of state['hyper', 'optimizer'], "
                "which the state doesn't have"
            )
        optimizer = optimizer(own["optimizer"])
    weights = tree.entries(own["loss"]) if "loss" in own else {}
    weights |= {} if hyper is None else tree.entries(hyper)
    return optimizer, {**weights, "params": rule_params} if rule.learned_loss else weights


def _parts(rule: UpdateRule, td: TensorDict, key: Tensor | None) -> Iterator[TensorDict]:
    """What the loss sees, step after step: in each epoch every worker once."""
    epochs, parts = rule.epochs, rule.minibatches
    for name, number in (("epochs", epochs), ("minibatches", parts)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                f"update_agent: rule.{name} is {number!r}, expected a whole number of at least 1"
            )
    if parts == 1:
        yield from [td] * epochs
        return
    if td.batch_dims < 2 or td.names[0] == "time":
        raise ValueError(
            f"update_agent: td has batch size {list(td.batch_size)}, expected [workers, ..., T] "
            f"(the rule has {parts} minibatches of workers)"
        )
    workers = td.batch_size[0]
    if workers % parts:
        raise ValueError(
            f"update_agent: td has {workers} workers, expected a multiple of {parts} "
            "(the rule's minibatches)"
        )
    if key is None:
        raise ValueError(
            f"update_agent: key is None, expected a key [2] (the rule has {parts} minibatches)"
        )
    for epoch in range(epochs):
        order = rng.permutation(rng.fold_in(key, epoch), workers)
        for rows in order.reshape(parts, -1):
            yield tree.take(td, rows)
