"""The E-step of MPO and V-MPO: better actions get more weight, within a bound on how much more.

Symbols: eta is the temperature, epsilon the bound, Q(s, a_s) the value of one of S actions that
were drawn in a state, A_t the advantage of a step's action. The weights follow from the
temperature, and the temperature from the dual, which is convex in it. Nothing is detached.
"""

from math import log

import torch
from torch import Tensor

from ._check import check_alike, check_divisor, check_float, check_hyper, check_positive, check_real


def mpo_weights(action_value_samples: Tensor, temperature: float | Tensor) -> Tensor:
    """Weights of sampled actions, the E-step of MPO.

        w_s = exp(Q(s, a_s) / eta) / sum_{s'} exp(Q(s, a_{s'}) / eta)

    Args:
        action_value_samples: ``[..., S]`` float.
        temperature: eta, above 0; float or tensor, 0-d or ``[...]``.

    Returns:
        ``[..., S]``; over S they add up to 1.

    Raises:
        ValueError: there is no axis of samples, or the temperature is not above 0 or ill-shaped.
        TypeError: an argument is not floating-point.

    Source: Abdolmaleki et al. (2018), "Maximum a posteriori policy optimisation", section 4.2.
    """
    temperature = _scale("mpo_weights", action_value_samples, temperature)
    return (action_value_samples / temperature).softmax(-1)


def mpo_temperature_dual(
    action_value_samples: Tensor, temperature: float | Tensor, epsilon: float | Tensor
) -> Tensor:
    """The dual of MPO's E-step, which the temperature minimizes.

        g = eta (epsilon + log 1/S sum_s exp(Q(s, a_s) / eta))

    Args:
        action_value_samples: ``[..., S]`` float.
        temperature: eta, above 0; float or tensor, 0-d or ``[...]``.
        epsilon: bound on the KL of the weights from equal ones, at least 0; likewise.

    Returns:
        ``[...]``, convex in the temperature.

    Raises:
        ValueError: there is no axis of samples, or a hyper-parameter is out of range or ill-shaped.
        TypeError: an argument is not floating-point.

    Source: Abdolmaleki et al. (2018), section 4.2.
    """
    name = "mpo_temperature_dual"
    eta = _scale(name, action_value_samples, temperature)
    samples, shape = action_value_samples.shape[-1], action_value_samples.shape[:-1]
    check_hyper(name, "epsilon", epsilon, shape, "action_value_samples", 0.0)
    mean = (action_value_samples / eta).logsumexp(-1) - log(samples)
    return temperature * (epsilon + mean)


def vmpo_weights(
    advantage: Tensor,
    temperature: float | Tensor,
    top_k_fraction: float = 0.5,
    importance_weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Weights of steps, the E-step of V-MPO: the better half of a batch, by its advantages.

        w_t = rho_t exp(A_t / eta) / sum_u rho_u exp(A_u / eta)    over the top k steps, else 0

    k is the largest number that is at most ``top_k_fraction`` of the steps of the mask, and at
    least 1; ties with the last of them are in. Which steps are in is locally constant.

    rlax's restarting weights of 0 and 1 are the mask. Differences: rlax counts the restarting steps
    in what it takes the fraction of, raises where k is 0, and adds 1e-10 to the sums.

    Args:
        advantage: ``[...]`` float.
        temperature: eta, above 0; float or tensor, 0-d or ``[...]``.
        top_k_fraction: share of the steps that get a weight, in (0, 1].
        importance_weight: rho, ``[...]`` float; ones, if not given.
        mask: ``[...]`` bool, the steps that count; all, if not given.

    Returns:
        ``[...]``; over all steps they add up to 1. If the mask leaves out all of them, zeros.

    Raises:
        ValueError: there is no step, the shapes differ, or a hyper-parameter is out of range or
            ill-shaped.
        TypeError: an argument has the wrong dtype.

    Source: Song et al. (2020), "V-MPO", section 4.
    """
    args = (advantage, temperature, top_k_fraction, importance_weight, mask)
    exponentials, total, _, _ = _exponentials("vmpo_weights", *args)
    return exponentials / total


def vmpo_temperature_dual(
    advantage: Tensor,
    temperature: float | Tensor,
    epsilon: float | Tensor,
    top_k_fraction: float = 0.5,
    importance_weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The dual of V-MPO's E-step, which the temperature minimizes.

        g = eta (epsilon + log 1/k sum_t rho_t exp(A_t / eta))    over the top k steps

    Args:
        advantage: ``[...]`` float.
        temperature: eta, above 0; float or tensor, 0-d or ``[...]``.
        epsilon: bound on the KL of the weights from equal ones, at least 0; likewise.
        top_k_fraction: share of the steps that get a weight, in (0, 1]; see ``vmpo_weights``.
        importance_weight: rho, ``[...]`` float; ones, if not given.
        mask: ``[...]`` bool, the steps that count; all, if not given.

    Returns:
        A scalar; ``[...]`` where a hyper-parameter is. If the mask leaves out all steps, eta
        epsilon.

    Raises:
        ValueError: there is no step, the shapes differ, or a hyper-parameter is out of range or
            ill-shaped.
        TypeError: an argument has the wrong dtype.

    Source: Song et al. (2020), section 4.
    """
    name = "vmpo_temperature_dual"
    args = (advantage, temperature, top_k_fraction, importance_weight, mask)
    _, total, shift, count = _exponentials(name, *args)
    check_hyper(name, "epsilon", epsilon, advantage.shape, "advantage", 0.0)
    dual = temperature * (epsilon + (total.log() + shift - count))
    return dual.to(advantage.dtype)  # a 0-d temperature does not widen it


# ---- private


def _scale(name: str, values: Tensor, temperature: float | Tensor) -> float | Tensor:
    """The temperature, checked, as what divides ``[..., S]``."""
    shape = check_float(name, "action_value_samples", values).shape
    if not shape or not shape[-1]:
        raise ValueError(
            f"{name}: action_value_samples has shape {tuple(shape)}, expected [..., S], with at "
            "least one sample, samples last"
        )
    check_divisor(name, "temperature", temperature, shape[:-1], "action_value_samples")
    if isinstance(temperature, Tensor) and temperature.dim():
        return temperature.unsqueeze(-1)
    return temperature


def _exponentials(
    name: str,
    advantage: Tensor,
    temperature: float | Tensor,
    top_k_fraction: float,
    ratio: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Terms rho exp(A / eta - shift) of the top k steps, else 0; their sum; the shift; and log k.

    Of no step, where the mask leaves out all of them: 0, 1, 0 and 0, for results that are finite.
    """
    floats = {"advantage": advantage}
    floats |= {} if ratio is None else {"importance_weight": ratio}
    shape = check_alike(name, floats, {} if mask is None else {"mask": mask})
    if 0 in shape:
        got = f"advantage has shape {tuple(shape)}"
        raise ValueError(f"{name}: {got}, expected at least one step")
    check_divisor(name, "temperature", temperature, shape, "advantage")
    if isinstance(top_k_fraction, Tensor):
        raise TypeError(f"{name}: top_k_fraction is a Tensor, expected a float; it has no gradient")
    check_real(name, "top_k_fraction", top_k_fraction, 0.0, 1.0)
    check_positive(name, "top_k_fraction", top_k_fraction)
    scaled = advantage / temperature
    chosen = _top(scaled.detach(), top_k_fraction, mask)
    shift = torch.where(chosen, scaled, -torch.inf).amax().detach()  # without effect, to all orders
    shift = shift if mask is None else torch.where(chosen.any(), shift, 0.0)
    shifted = torch.where(chosen, scaled, shift) - shift
    exponentials = torch.where(chosen, shifted.exp(), 0.0)
    exponentials = exponentials if ratio is None else exponentials * ratio
    total, count = exponentials.sum(), chosen.sum(dtype=torch.float64)
    if mask is not None:
        some = count > 0
        total, count = torch.where(some, total, 1.0), count.clamp(min=1)
    return exponentials, total, shift, count.log().to(advantage.dtype)


def _top(x: Tensor, fraction: float, mask: Tensor | None) -> Tensor:
    """Which steps are among the top fraction of those of the mask, ``[...]`` bool."""
    if mask is None:
        k = max(1, int(fraction * x.numel()))
        return x >= x.flatten().sort(descending=True).values[k - 1]
    ranked = torch.where(mask, x, -torch.inf)
    k = (fraction * mask.sum(dtype=torch.float64)).long().clamp(min=1)
    lowest = ranked.flatten().sort(descending=True).values.gather(0, (k - 1).reshape(1))
    return (x >= lowest.reshape(())) & mask
