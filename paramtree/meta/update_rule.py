"""Update rules: what turns an agent's trajectory into the agent's next parameters.

A rule reads a trajectory that has the agent's outputs on it, and adds what the agent is to learn
from: a hand-written one adds ``advantage`` and ``value_target``, a learned one ``pi_hat`` and
``y_hat``. Its ``loss`` is the reducer that the agent then descends. Both kinds run behind one pair
of functions, so one evaluation compares them all.

    outputs = agent(params, td)                  # now and next, outside the differentiated function
    targets = rule.apply(rule_params, outputs)   # constant for the inner gradient, not the outer
    params' = params + optimizer(grad_p total(rule.loss(agent(p, targets))))
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import losses, tree
from ..autodiff import grad
from ..model import Model, with_next
from ..optim import Transform, apply_updates


class UpdateRule(NamedTuple):
    """A triple of pure functions, ``init``, ``apply`` and ``loss``.

    ``init(key) -> (params, buffers)``, ``apply(params, buffers, td [*B, T]) -> (td, buffers)``,
    ``loss(td, **hyper) -> TensorDict``.

    Params are shared by all agents that the rule trains; buffers are what it remembers of one
    agent's life.
    """

    init: Callable[[Tensor], tuple[TensorDict, TensorDict]]
    apply: Callable[[TensorDict, TensorDict, TensorDict], tuple[TensorDict, TensorDict]]
    loss: Callable[..., TensorDict]


def a2c_rule(
    gamma: float | Tensor = 0.99,
    lmbda: float | Tensor = 0.95,
    *,
    dist_class: Any = Categorical,
    entropy_coeff: float | Tensor = 0.01,
    critic_coeff: float | Tensor = 1.0,
    normalize: bool = True,
) -> UpdateRule:
    """Advantage actor-critic as a rule: generalized advantages, descended by ``losses.a2c_loss``.

    Args:
        gamma: discount, float or 0-d tensor.
        lmbda: decay of the trace, float or 0-d tensor.
        dist_class: distribution of the actions, made of the actor's outputs.
        entropy_coeff: weight of the policy's entropy.
        critic_coeff: weight of the squared error of the values.
        normalize: whether advantages are brought to mean 0 and deviation 1 over the batch.

    Returns:
        The rule, for agents that give the policy's parameters and ``state_value``. It has no params
        and no buffers.

    Source: Mnih et al. (2016), "Asynchronous methods for deep reinforcement learning", section 4.
    """

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return tree.new({}), tree.new({})

    def apply(
        params: TensorDict, buffers: TensorDict, td: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        return losses.add_advantage(td, gamma, lmbda, normalize=normalize), buffers

    def loss(td: TensorDict, **hyper: Any) -> TensorDict:
        weights = {"entropy_coeff": entropy_coeff, "critic_coeff": critic_coeff, **hyper}
        return losses.a2c_loss(td, dist_class, **weights)

    return UpdateRule(init, apply, loss)


def update_agent(
    rule: UpdateRule,
    agent: Model,
    optimizer: Transform,
    rule_params: TensorDict,
    state: TensorDict,
    td: TensorDict,
    hyper: TensorDict | None = None,
) -> tuple[TensorDict, TensorDict]:
    """One update of one agent by a rule, differentiable in rule, hyper-parameters and agent.

    Args:
        rule: the update rule.
        agent: model that reads the trajectory's observations and gives what the rule reads.
        optimizer: transform of the agent's gradients.
        rule_params: the rule's parameters.
        state: ``params``, ``buffers``, ``optimizer`` (its state) and ``rule`` (the rule's buffers)
            of the agent; other entries come back as they are.
        td: trajectory of batch size ``[*B, T]``, as ``rollout`` gives it.
        hyper: hyper-parameters of the rule's loss by name.

    Returns:
        ``(state, td)``: the agent after the update, and the trajectory with the agent's outputs
        from before it and what the rule added.
    """
    params, buffers = state["params"], state["buffers"]
    outputs, _ = with_next(agent).apply(params, buffers, td)
    targets, memory = rule.apply(rule_params, state["rule"], outputs)
    weights = {} if hyper is None else tree.entries(hyper)

    def objective(p: TensorDict) -> tuple[Tensor, TensorDict]:
        out, after = agent.apply(p, buffers, targets)
        return losses.total(rule.loss(out, **weights)), after

    grads, after = grad(objective, has_aux=True)(params)
    updates, moments = optimizer.update(grads, state["optimizer"], params)
    changed = {
        "params": apply_updates(params, updates),
        "buffers": tree.lock(after),
        "optimizer": moments,
        "rule": tree.lock(memory),
    }
    return tree.new({**tree.entries(state), **changed}, state.batch_size), targets
