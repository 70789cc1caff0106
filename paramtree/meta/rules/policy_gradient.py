"""Policy gradients as update rules: the advantage differs, and what weighs it.

    reinforce_rule   the discounted rest of the rollout, less a learned baseline or none
    a2c_rule         generalized advantages
    vtrace_rule      generalized advantages, corrected for a policy that is another by now

None of them has params or buffers.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from ... import losses, tree
from ..update_rule import UpdateRule


def nothing(key: Tensor) -> tuple[TensorDict, TensorDict]:
    """Params and buffers of a rule that is written by hand."""
    return tree.new({}), tree.new({})


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

    def apply(
        params: TensorDict, buffers: TensorDict, td: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        return losses.add_advantage(td, gamma, lmbda, normalize=normalize), buffers

    def loss(td: TensorDict, **hyper: Any) -> TensorDict:
        weights = {"entropy_coeff": entropy_coeff, "critic_coeff": critic_coeff, **hyper}
        return losses.a2c_loss(td, dist_class, **weights)

    return UpdateRule(nothing, apply, loss)


def reinforce_rule(
    gamma: float | Tensor = 0.99,
    *,
    dist_class: Any = Categorical,
    baseline: bool = True,
    bootstrap: bool = False,
    entropy_coeff: float | Tensor = 0.0,
    critic_coeff: float | Tensor = 1.0,
    normalize: bool = False,
) -> UpdateRule:
    """REINFORCE as a rule: the discounted rewards that follow an action within the rollout.

        A_t = sum_k gamma^k r_{t+k} - V(s_t),   up to the end of the episode or of the rollout

    Args:
        gamma: discount, float or 0-d tensor.
        dist_class: distribution of the actions, made of the actor's outputs.
        baseline: whether V(s_t) is taken off, and learned; without it no value is read, but for a
            bootstrap.
        bootstrap: whether the value of what follows is added where a rollout or a time limit cuts
            an episode short. Without it whatever comes after the last step counts as nothing.
        entropy_coeff: weight of the policy's entropy.
        critic_coeff: weight of the squared error of the values, where there is a baseline or a
            bootstrap to learn them for.
        normalize: whether advantages are brought to mean 0 and deviation 1 over the batch.

    Returns:
        The rule, for agents that give the policy's parameters and, with a baseline or a bootstrap,
        ``state_value``. It has no params and no buffers.

    Source: Williams (1992), "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning", section 4.
    """
    values = baseline or bootstrap

    def apply(
        params: TensorDict, buffers: TensorDict, td: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        read, zeros = td, torch.zeros_like(td["next", "reward"])
        if not baseline:
            read = tree.replace(read, {"state_value": zeros})
        if not bootstrap:
            read = tree.replace(read, {("next", "state_value"): zeros})
        found = losses.add_lambda_returns(read, gamma, 1.0, normalize=normalize)
        written = {name: found[name] for name in ("advantage", "value_target")}
        return tree.rebuild(td, {**tree.entries(tree.lock(td)), **written}), buffers

    def loss(td: TensorDict, **hyper: Any) -> TensorDict:
        weights = {"entropy_coeff": entropy_coeff, "critic_coeff": critic_coeff, **hyper}
        if values:
            return losses.a2c_loss(td, dist_class, **weights)
        weights.pop("critic_coeff")
        return losses.policy_gradient_loss(td, dist_class, **weights)

    return UpdateRule(nothing, apply, loss)


def vtrace_rule(
    gamma: float | Tensor = 0.99,
    lmbda: float | Tensor = 1.0,
    *,
    dist_class: Any = Categorical,
    rho_clip: float | Tensor = 1.0,
    c_clip: float | Tensor = 1.0,
    pg_rho_clip: float | Tensor = 1.0,
    entropy_coeff: float | Tensor = 0.01,
    critic_coeff: float | Tensor = 0.5,
    normalize: bool = False,
) -> UpdateRule:
    """V-trace as a rule, as IMPALA's learner has it: an actor-critic for steps of an older policy.

    On steps of the policy itself it is an actor-critic whose returns run to the rollout's end.

    Args:
        gamma: discount, float or 0-d tensor.
        lmbda: decay of the trace, float or 0-d tensor.
        dist_class: distribution of the actions, made of the actor's outputs.
        rho_clip: largest weight of a step's own error.
        c_clip: largest factor of the trace.
        pg_rho_clip: largest weight of an advantage.
        entropy_coeff: weight of the policy's entropy.
        critic_coeff: weight of the squared error of the values.
        normalize: whether advantages are brought to mean 0 and deviation 1 over the batch.

    Returns:
        The rule, for agents that give the policy's parameters and ``state_value``, and trajectories
        with the ``action_log_prob`` of whoever acted. It has no params and no buffers.

    Source: Espeholt et al. (2018), "IMPALA: scalable distributed deep-RL with importance weighted
    actor-learner architectures", section 4.
    """

    def apply(
        params: TensorDict, buffers: TensorDict, td: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        clips = {"rho_clip": rho_clip, "c_clip": c_clip, "pg_rho_clip": pg_rho_clip}
        options = {"gamma": gamma, "lmbda": lmbda, "normalize": normalize, **clips}
        return losses.add_vtrace(td, dist_class, **options), buffers

    def loss(td: TensorDict, **hyper: Any) -> TensorDict:
        weights = {"entropy_coeff": entropy_coeff, "critic_coeff": critic_coeff, **hyper}
        return losses.a2c_loss(td, dist_class, **weights)

    return UpdateRule(nothing, apply, loss)
