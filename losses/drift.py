"""Mirror learning: a policy gradient less a drift, a price on leaving the policy that acted.

Symbols as in ``ppo.py``: r_t is the ratio of the policy that learns to the one that drew the
actions, l_t its logarithm, A_t the advantage. A drift is never below 0, and at r_t = 1 it and its
slope in r_t are 0. PPO's clip is one such drift and discovered policy optimization's is another;
here it is whatever function is given, a network's among them.
"""

from collections.abc import Callable

from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._critics import Distance
from ._proximal import opened
from .distances import squared_error
from .distributions import DistClass


def mirror_loss(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    drift: Callable[[Tensor, Tensor], Tensor],
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    critic_coeff: float | Tensor | None = 0.5,
    entropy_coeff: float | Tensor = 0.01,
    value_clip: float | Tensor | None = None,
    distance: Distance = squared_error,
    normalize_advantage: bool = False,
    reduction: str = "mean",
) -> TensorDictBase:
    """Policy gradient with importance weights, and any drift.

        loss_objective = -r_t A_t
        loss_drift = drift(l_t, A_t)

    The other terms are those of ``ppo_loss``, and so are stops and diagnostics. With a drift of
    ``relu((r - clip(r, 1 - eps, 1 + eps)) A)`` this is ``ppo_clip_loss``.

    Args:
        td: as in ``ppo_loss``.
        dist_class: callable from the parameters to a distribution.
        drift: elementwise function of l_t and A_t, ``[*B, T]`` each; that it is one in the sense
            above is not looked at.
        gamma: as in ``ppo_loss``, and so are all that follow.
        lmbda: likewise.
        critic_coeff: likewise.
        entropy_coeff: likewise.
        value_clip: likewise.
        distance: likewise.
        normalize_advantage: likewise.
        reduction: likewise.

    Returns:
        As ``ppo_loss``, and ``loss_drift`` and the same detached as ``drift``.

    Raises:
        ValueError: as ``ppo_loss``; or the drift has another shape.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Kuba et al. (2022), "Mirror learning: a unifying framework of policy optimisation",
    definition 3.1; Lu et al. (2022), "Discovered policy optimisation", section 4.
    """
    step = opened("mirror_loss", td, dist_class, gamma, lmbda, normalize_advantage)
    # a step that is left out may hold anything, and what the drift is made of gets a gradient
    seen = (step.batch.filled(x, 0.0) for x in (step.log_ratio, step.advantage))
    price = drift(*seen)
    if price.shape != step.log_ratio.shape:
        raise ValueError(
            f"mirror_loss: drift gave shape {tuple(price.shape)}, "
            f"expected {list(step.log_ratio.shape)} (the td's batch size)"
        )
    losses = {"loss_objective": -step.advantage * step.log_ratio.exp(), "loss_drift": price}
    critic = (critic_coeff, value_clip, distance)
    return step.reduced(reduction, losses, {"drift": price}, entropy_coeff, *critic)
