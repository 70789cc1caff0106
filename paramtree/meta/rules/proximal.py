"""Rules that make several steps on one rollout, and pay for leaving the policy that acted.

    ppo_rule   the ratio of the policies is clipped
    dpo_rule   a drift that was found by meta-learning, in closed form
    lpo_rule   a drift that is learned: a network, whose parameters are the rule's

All take generalized advantages, made once, and go over the rollout in ``epochs`` passes of
``minibatches`` parts. An entry ``[*B, T]`` of the trajectory by the name of a float hyper-parameter
wins over the number given. r is the ratio pi(a|s) / mu(a|s), l its logarithm, A the advantage.
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from ... import losses, nn, rng, tree
from ...model import Model
from ..update_rule import UpdateRule
from .policy_gradient import nothing

_LIMIT = 20.0  # of l, as a network sees it: the square of exp(l) stays a number
_MARGIN = 1e-6  # what a network's output has to exceed


def ppo_rule(
    gamma: float | Tensor = 0.99,
    lmbda: float | Tensor = 0.95,
    *,
    dist_class: Any = Categorical,
    clip_epsilon: float | Tensor = 0.2,
    entropy_coeff: float | Tensor = 0.01,
    critic_coeff: float | Tensor = 0.5,
    value_clip: float | Tensor | None = None,
    epochs: int = 4,
    minibatches: int = 4,
    normalize: bool = True,
) -> UpdateRule:
    """Proximal policy optimization as a rule, descended by ``losses.ppo_clip_loss``.

    Args:
        gamma: discount, float or 0-d tensor.
        lmbda: decay of the trace, float or 0-d tensor.
        dist_class: distribution of the actions, made of the actor's outputs.
        clip_epsilon: how far from 1 the ratio counts.
        entropy_coeff: weight of the policy's entropy.
        critic_coeff: weight of the squared error of the values.
        value_clip: how far a value may move from what it was before the update; None: any way.
        epochs: passes over the rollout.
        minibatches: parts of each pass, which divide the workers.
        normalize: whether advantages are brought to mean 0 and deviation 1 over each part.

    Returns:
        The rule, for agents that give the policy's parameters and ``state_value``, and trajectories
        with the ``action_log_prob`` of whoever acted. It has no params and no buffers.

    Source: Schulman et al. (2017), "Proximal policy optimization algorithms", equation 7 and
    algorithm 1.
    """
    own = {"clip_epsilon": clip_epsilon, **_weights(entropy_coeff, critic_coeff, value_clip)}

    def loss(td: TensorDict, **hyper: Any) -> TensorDict:
        weights = {**own, **hyper}
        weights["eps"] = weights.pop("clip_epsilon")
        if "clip_epsilon" in td.keys():
            td = tree.rebuild(td, {**tree.entries(td), "eps": td["clip_epsilon"]})
        return losses.ppo_clip_loss(td, dist_class, normalize_advantage=normalize, **weights)

    return UpdateRule(nothing, _advantages(gamma, lmbda, value_clip), loss, epochs, minibatches)


def dpo_rule(
    gamma: float | Tensor = 0.99,
    lmbda: float | Tensor = 0.95,
    *,
    dist_class: Any = Categorical,
    alpha: float | Tensor = 2.0,
    beta: float | Tensor = 0.6,
    entropy_coeff: float | Tensor = 0.01,
    critic_coeff: float | Tensor = 0.5,
    value_clip: float | Tensor | None = None,
    epochs: int = 4,
    minibatches: int = 4,
    normalize: bool = True,
) -> UpdateRule:
    """Discovered policy optimization as a rule, descended by ``losses.discovered_policy_loss``.

        drift = relu((r - 1) A - alpha tanh((r - 1) A / alpha))   where A >= 0
                relu(l A - beta tanh(l A / beta))                 else

    Args:
        gamma: as in ``ppo_rule``.
        lmbda: likewise.
        dist_class: likewise.
        alpha: width of the zone of little drift where the advantage is positive.
        beta: the same where it is negative.
        entropy_coeff: as in ``ppo_rule``, and so are all that follow.
        critic_coeff: likewise.
        value_clip: likewise.
        epochs: likewise.
        minibatches: likewise.
        normalize: likewise.

    Returns:
        The rule, as ``ppo_rule``.

    Source: Lu et al. (2022), "Discovered policy optimisation", section 5.
    """
    own = {"alpha": alpha, "beta": beta, **_weights(entropy_coeff, critic_coeff, value_clip)}

    def loss(td: TensorDict, **hyper: Any) -> TensorDict:
        weights = {**own, **hyper}
        return losses.discovered_policy_loss(
            td, dist_class, normalize_advantage=normalize, **weights
        )

    return UpdateRule(nothing, _advantages(gamma, lmbda, value_clip), loss, epochs, minibatches)


def lpo_network(
    n_hidden: int = 128, *, activation: Any = torch.tanh, init_clip: float | None = None
) -> Model:
    """The network of learned policy optimization: a drift, for any parameters.

        x = [l, l^2, 1 - r, (1 - r)^2],   f = W_2 activation(W_1 [x, A x])
        drift = relu(f + clipped - 1e-6),   clipped = relu((r - clip(r, 1 - c, 1 + c)) A), or 0

    Nothing in it has a bias, and ``activation`` is 0 at 0. So at r = 1 the network gives 0, the
    drift is 0 around there, and it is never below.

    Args:
        n_hidden: width of the hidden layer.
        activation: function of tensors between the layers.
        init_clip: c of PPO's drift, which is there from the beginning; None for none.

    Returns:
        Layer that takes a pair ``(l, A)`` of tensors ``[...]`` and gives ``[...]``. Params:
        ``hidden`` and ``out``; with an ``init_clip`` the latter begins at 0, and the rule at PPO.
        It sees l held within 20 of 0.

    Raises:
        ValueError: the width is below 1.

    Source: Lu et al. (2022), section 4.2 and appendix; its authors' code for the sizes.
    """
    start = None if init_clip is None else nn.zeros
    parts = {
        "hidden": nn.linear(8, n_hidden, bias=False),
        "out": nn.linear(n_hidden, 1, bias=False, weight_init=start),
    }
    none = tree.new({})

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        first = {name: part.init(rng.fold_in(key, name))[0] for name, part in parts.items()}
        return tree.new(first), none

    def apply(
        params: TensorDict, buffers: TensorDict, pair: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, TensorDict]:
        log_ratio, advantage = pair
        near = log_ratio.clamp(-_LIMIT, _LIMIT)
        gone = -near.expm1()  # 1 - r
        deltas = torch.stack([near, near.square(), gone, gone.square()], -1)
        features = torch.cat([deltas, advantage.unsqueeze(-1) * deltas], -1)
        hidden = parts["hidden"](params["hidden"], none, features)
        out = parts["out"](params["out"], none, activation(hidden)).squeeze(-1)
        if init_clip is not None:
            out = out + ((gone.clamp(-init_clip, init_clip) - gone) * advantage).relu()
        return (out - _MARGIN).relu(), buffers

    return Model(init, apply)


def lpo_rule(
    network: Model,
    gamma: float | Tensor = 0.99,
    lmbda: float | Tensor = 0.95,
    *,
    dist_class: Any = Categorical,
    entropy_coeff: float | Tensor = 0.01,
    critic_coeff: float | Tensor = 0.5,
    value_clip: float | Tensor | None = None,
    epochs: int = 4,
    minibatches: int = 4,
    normalize: bool = True,
) -> UpdateRule:
    """Learned policy optimization: mirror learning whose drift is a network.

    The rule is in what its agents descend, so their gradients pass through the network, and the
    meta-gradient through those.

    Args:
        network: layer from ``(l, A)`` to the drift, as ``lpo_network`` makes it.
        gamma: as in ``ppo_rule``, and so are all that follow.
        lmbda: likewise.
        dist_class: likewise.
        entropy_coeff: likewise.
        critic_coeff: likewise.
        value_clip: likewise.
        epochs: likewise.
        minibatches: likewise.
        normalize: likewise.

    Returns:
        The rule, as ``ppo_rule``; its params are the network's, and its loss takes them as
        ``params``.

    Source: Lu et al. (2022), section 4.
    """
    own = _weights(entropy_coeff, critic_coeff, value_clip)

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        return network.init(key)[0], tree.new({})

    def loss(td: TensorDict, *, params: TensorDict, **hyper: Any) -> TensorDict:
        def drift(log_ratio: Tensor, advantage: Tensor) -> Tensor:
            return network(params, tree.new({}), (log_ratio, advantage))

        weights = {**own, **hyper, "drift": drift, "normalize_advantage": normalize}
        return losses.mirror_loss(td, dist_class, **weights)

    apply = _advantages(gamma, lmbda, value_clip)
    return UpdateRule(init, apply, loss, epochs, minibatches, learned_loss=True)


def _weights(
    entropy_coeff: float | Tensor,
    critic_coeff: float | Tensor,
    value_clip: float | Tensor | None,
) -> dict[str, Any]:
    return {
        "entropy_coeff": entropy_coeff,
        "critic_coeff": critic_coeff,
        "value_clip": value_clip,
    }


def _advantages(
    gamma: float | Tensor, lmbda: float | Tensor, value_clip: float | Tensor | None
) -> Callable[..., tuple[TensorDict, TensorDict]]:
    """Generalized advantages, and where values are clipped those from before the update."""

    def apply(
        params: TensorDict, buffers: TensorDict, td: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        td = losses.add_advantage(td, gamma, lmbda)
        if value_clip is None and "value_clip" not in td.keys():
            return td, buffers
        known = tree.entries(td["behavior"]) if "behavior" in td.keys() else {}
        before = tree.new({**known, "state_value": td["state_value"]}, td.batch_size)
        return tree.rebuild(td, {**tree.entries(tree.lock(td)), "behavior": before}), buffers

    return apply
