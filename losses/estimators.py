"""Estimators: they read a trajectory, and add to a new one what an agent is to learn from.

They are run outside the function that is differentiated for the agent's update, on outputs made
with the parameters from before it. There their results are constant for that gradient, and still
functions of the parameters and the hyper-parameters for an outer one:

    td = add_advantage(outputs(params, td), gamma, lmbda)
    grads = grad(lambda p: total(a2c_loss(outputs(p, td))))(params)
"""

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import missing
from .returns import gae

_NEXT = "The value of the states that follow comes from running the critic on td['next']."


def add_advantage(
    td: TensorDictBase,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    *,
    normalize: bool = False,
    eps: float | Tensor = 1e-8,
) -> TensorDictBase:
    """Adds generalized advantages, and the values that they imply.

        advantage_t = gae(...)_t,    value_target_t = advantage_t + V(s_t)

    and with ``normalize``, after that, advantage <- (advantage - mean) / (deviation + eps), with
    the mean and the population deviation over all steps of the td. Detaches nothing.

    Args:
        td: ``[*B, T]``, time last or named "time", with ``state_value``, ``("next",
            "state_value")``, ``("next", "reward")`` float and ``("next", "done")``, ``("next",
            "terminated")`` bool, each ``[*B, T]`` or ``[*B, T, 1]``; with a ``mask``, a step before
            one that is left out ends its trace and bootstraps.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B, T]``. An entry of the td of this
            name wins.
        lmbda: decay of the trace, in [0, 1]; likewise.
        normalize: whether the advantages are brought to mean 0 and deviation 1 over the td.
        eps: what is added to the deviation, at least 0.

    Returns:
        A new td with ``advantage`` and ``value_target``, ``[*B, T]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or gamma or lmbda is given nowhere or out of
            its range.
        TypeError: an entry has the wrong dtype.

    Source: Schulman et al. (2016), equation 16.
    """
    batch = Batch("add_advantage", td)
    value = batch.step("state_value")
    advantage = advantages(
        batch, value, batch.step(("next", "state_value"), hint=_NEXT), gamma, lmbda
    )
    target = advantage + value
    if normalize:
        advantage = normalized(advantage, batch.mask, batch.hyper("eps", eps, 0.0))
    return batch.extended(
        {"advantage": batch.filled(advantage, 0.0), "value_target": batch.filled(target, 0.0)}
    )


def advantages(
    batch: Batch,
    value: Tensor,
    next_value: Tensor,
    gamma: float | Tensor | None,
    lmbda: float | Tensor | None,
) -> Tensor:
    """``gae`` over the td's own rewards and flags, ``[*B, T]``."""
    time = batch.time()
    reward = batch.step(("next", "reward"))
    done, terminated = batch.flag(("next", "done")), batch.flag(("next", "terminated"))
    if batch.mask is not None:  # a trace does not run into a step that is left out
        follows = batch.mask.narrow(time, 1, batch.shape[time] - 1)
        last = torch.ones_like(batch.mask.narrow(time, 0, 1))
        done = done | ~torch.cat([follows, last], time)
    hyper = (batch.hyper("gamma", gamma, 0.0, 1.0), batch.hyper("lmbda", lmbda, 0.0, 1.0))
    inputs = (
        x.movedim(time, 0) if isinstance(x, Tensor) and x.dim() else x
        for x in (reward, value, next_value, done, terminated, *hyper)
    )
    return gae(*inputs).movedim(0, time)


def stopped_advantage(
    batch: Batch, gamma: float | Tensor | None, lmbda: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """Advantage and value target that a reducer makes itself: a full stop on the values."""
    for name, value in (("gamma", gamma), ("lmbda", lmbda)):
        if value is None and not batch.has(name):
            raise missing(
                batch.function,
                batch.td,
                "advantage",
                "Put it there with add_advantage, outside of the differentiated function, or give "
                "both gamma and lmbda.",
            )
    value = batch.step("state_value").detach()
    next_value = batch.step(("next", "state_value")).detach()
    advantage = advantages(batch, value, next_value, gamma, lmbda)
    return advantage, advantage + value


def normalized(x: Tensor, mask: Tensor | None, eps: float | Tensor) -> Tensor:
    """``x`` with mean 0 and deviation 1; equal numbers become 0, with gradients that are finite."""
    count = x.numel() if mask is None else mask.sum()

    def mean(y: Tensor) -> Tensor:
        return (y if mask is None else torch.where(mask, y, 0.0)).sum() / count

    centered = x - mean(x)
    variance = mean(centered.square())
    spread = variance > 0  # the root's derivative is taken as 0 at 0
    deviation = torch.where(spread, torch.where(spread, variance, 1.0).sqrt(), 0.0)
    return centered / (deviation + eps)
