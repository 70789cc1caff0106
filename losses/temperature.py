"""The temperature of soft actor-critic, learned so that the policy keeps an entropy.

Log alpha is a parameter like any other, outside of the policy's and the critics'. It goes into
their losses as ``alpha``, its exponential, and learns by a loss of its own. Unlike TorchRL's, no
loss returns it: an entry ``alpha`` would win over the keyword of the next loss.
"""

import math
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import check_float, check_hyper, check_order
from ._critics import LOG_PROB
from ._numbers import bounded, log


def sac_temperature_loss(
    td: TensorDictBase,
    *,
    log_alpha: float | Tensor | None = None,
    target_entropy: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """SAC's temperature: it rises while the policy's entropy lies below the one that is wanted.

        loss_alpha = -log_alpha (log pi(a~|s_t) + target_entropy)

    This is the authors' code's and TorchRL's; linear in its argument, it is the paper's (and
    TorchRL's REDQ's, which averages over s_{t+1} too) where alpha itself is given in place of its
    logarithm. Detaches nothing: differentiate for log_alpha alone, or make
    ``action_log_prob_actor`` with the policy's parameters held.

    Args:
        td: ``[*B]`` with ``action_log_prob_actor`` ``[*B]`` float; optionally ``mask`` and
            ``weight``.
        log_alpha: logarithm of the temperature; float or tensor, 0-d or ``[*B]``. An entry of the
            td wins.
        target_entropy: the entropy that is wanted, in the papers minus the number of the action's
            components; likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_alpha``, and detached ``entropy``, -log pi(a~|s_t).

    Raises:
        ValueError: the key is missing, a shape is wrong, or a hyper-parameter is given nowhere.
        TypeError: an entry or a hyper-parameter has the wrong dtype.

    Source: Haarnoja et al. (2018), equation 18.
    """
    batch = Batch("sac_temperature_loss", td)
    log_prob = batch.step("action_log_prob_actor", hint=LOG_PROB)
    wanted = batch.hyper("target_entropy", target_entropy)
    return batch.reduced(reduction, *temperature_terms(batch, log_prob, log_alpha, wanted))


def bounded_log_alpha(
    log_alpha: Tensor, low: float | Tensor = 0.0, high: float | Tensor = math.inf
) -> Tensor:
    """Logarithm of a temperature, held to a range of temperatures.

        log_alpha' = min(max(log_alpha, log low), log high)

    State in, state out: applied to what an update gives, before the next one reads it, this is
    TorchRL's clamping of ``log_alpha`` in place. At a bound log_alpha keeps its gradient, so it can
    leave again; beyond one it gets none, and the bound does; a ``low`` of 0 never does. For
    TorchRL's REDQ, whose gradient passes straight through, write ``log_alpha +
    (bounded_log_alpha(...) - log_alpha).detach()``.

    Args:
        log_alpha: ``[...]`` float.
        low: least temperature, at least 0; float, or a tensor that broadcasts to log_alpha's shape.
        high: greatest temperature; likewise.

    Returns:
        ``[...]``; its exponential is the temperature.

    Raises:
        ValueError: a bound is out of its range or does not broadcast.
        TypeError: an argument is not floating-point.

    Source: TorchRL's SACLoss, its ``min_alpha`` and ``max_alpha``.

    Example:
        >>> import torch
        >>> bounded_log_alpha(torch.tensor([-9.0, 0.5]), 0.1, 10.0).exp()
        tensor([0.1000, 1.6487])
    """
    name = "bounded_log_alpha"
    shape = check_float(name, "log_alpha", log_alpha).shape
    for key, value in (("low", low), ("high", high)):
        check_hyper(name, key, value, shape, "log_alpha", 0.0)
    check_order(name, low, high)
    return bounded(log_alpha, _log(low), _log(high))


# ---- shared with the discrete version


def temperature_terms(
    batch: Batch, log_prob: Tensor, log_alpha: float | Tensor | None, wanted: float | Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Loss and metric of a temperature."""
    loss = -batch.hyper("log_alpha", log_alpha) * (log_prob + wanted)
    return {"loss_alpha": loss}, {"entropy": -log_prob}


# ---- private


def _log(x: float | Tensor) -> Any:
    if isinstance(x, Tensor):
        return log(x)
    return math.log(x) if x > 0 else -math.inf
