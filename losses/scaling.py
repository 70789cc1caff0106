"""Values on other scales: squashed by an invertible function, or spread over a fixed support.

An elementwise function squashes a number x so that large ones matter less; each has an inverse.
``two_hot`` writes x as the probabilities of two neighboring atoms of a support z_1 < ... < z_K, so
that a classifier can learn it, and ``two_hot_mean`` reads it back. A ``TxPair`` holds such a way
there and back, for returns that are made in one space and learned in another:

    target = tx.apply(return of tx.inverse(values))

All are differentiable in every float argument, at 0 too, and detach nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._check import check_float, check_hyper, kind, no_data
from .moments import ema_moments_init as ema_moments_init
from .moments import ema_moments_normalize as ema_moments_normalize
from .moments import ema_moments_unnormalize as ema_moments_unnormalize
from .moments import ema_moments_update as ema_moments_update
from .moments import return_scale as return_scale
from .moments import return_scale_init as return_scale_init
from .moments import return_scale_update as return_scale_update
from .popart import popart_init as popart_init
from .popart import popart_normalize as popart_normalize
from .popart import popart_rescale as popart_rescale
from .popart import popart_unnormalize as popart_unnormalize
from .popart import popart_update as popart_update

# ---- elementwise


def symlog(x: Tensor) -> Tensor:
    """Symmetric logarithm: sign(x) log(1 + |x|).

    Args:
        x: ``[...]`` float.

    Returns:
        ``[...]``. Its slope at 0 is 1; rlax's is 0 there, that of its sign(x).

    Raises:
        TypeError: the argument is not a floating-point tensor.

    Source: Hafner et al. (2023), "Mastering diverse domains through world models", equation 9; in
    rlax ``signed_logp1``.
    """
    above, below = _halves(check_float("symlog", "x", x))
    return above.log1p() - below.log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of ``symlog``: sign(x) (exp(|x|) - 1).

    Args:
        x: ``[...]`` float. Beyond the logarithm of the dtype's largest number, 88 in float32, the
            result is infinite.

    Returns:
        ``[...]``. Its slope at 0 is 1; rlax's is 0 there, that of its sign(x).

    Raises:
        TypeError: the argument is not a floating-point tensor.

    Source: Hafner et al. (2023), equation 9; in rlax ``signed_expm1``.
    """
    above, below = _halves(check_float("symexp", "x", x))
    return above.expm1() - below.expm1()


def signed_hyperbolic(x: Tensor, eps: float | Tensor = 1e-3) -> Tensor:
    """Signed square root: sign(x) (sqrt(|x| + 1) - 1) + eps x.

    Args:
        x: ``[...]`` float.
        eps: the slope that is left for large x, at least 0; float or tensor that broadcasts with
            ``x``.

    Returns:
        ``[...]``. Near 0 it is computed as x / (sqrt(|x| + 1) + 1) + eps x, without cancellation.
        Its slope at 0 is 1/2 + eps; rlax's is eps there.

    Raises:
        ValueError: ``eps`` is negative, or does not broadcast.
        TypeError: an argument is not floating-point.

    Source: Pohlen et al. (2018), "Observe and look further", section 3.1.
    """
    eps = _eps("signed_hyperbolic", x, eps)
    return x / ((_size(x) + 1).sqrt() + 1) + eps * x


def signed_parabolic(x: Tensor, eps: float | Tensor = 1e-3) -> Tensor:
    """Inverse of ``signed_hyperbolic``: sign(x) (z^2 - 1).

        z = (sqrt(1 + 4 eps (eps + 1 + |x|)) - 1) / (2 eps)

    Args:
        x: ``[...]`` float.
        eps: the one of ``signed_hyperbolic``, at least 0; float or tensor that broadcasts with
            ``x``.

    Returns:
        ``[...]``. It is computed as u (u + 2), u = z - 1 = |x| / ((sqrt(...) + 1) / 2 + eps), which
        loses no digits near 0 and takes eps = 0. rlax computes z as above: at small x its result is
        wrong by 6e-5 in float32. Its slope at 0 is 1 / (1/2 + eps); rlax's is 0 there.

    Raises:
        ValueError: ``eps`` is negative, or does not broadcast.
        TypeError: an argument is not floating-point.

    Source: Pohlen et al. (2018), proposition A.2.
    """
    eps = _eps("signed_parabolic", x, eps)
    discriminant = (1 + 4 * eps * (eps + 1) + 4 * eps * _size(x)).sqrt()
    u = x / ((discriminant + 1) / 2 + eps)
    return u * (u.abs() + 2)


# ---- supports


def two_hot(x: Tensor, support: Tensor) -> Tensor:
    """A number as the probabilities of its two neighbors in a support.

        p_k = (z_{k+1} - x) / (z_{k+1} - z_k),    p_{k+1} = 1 - p_k    for z_k <= x < z_{k+1}

    and 0 elsewhere; an x beyond an end of the support counts as that end.

    Args:
        x: ``[...]`` float.
        support: the atoms z, ``[K]`` float, increasing, at least two. For ``K`` even ones between
            two ends: ``torch.linspace(low, high, K)``.

    Returns:
        Probabilities, ``[..., K]``, whose mean is x, and so is its derivative 1 inside of the
        support, to the right at an atom, and 0 beyond the ends. rlax's ``transform_to_2hot`` adds
        1e-5 to the denominator, so that its mean lies by up to 1e-5 too high.

    Raises:
        ValueError: the support is not a vector of increasing numbers.
        TypeError: an argument is not floating-point.

    Source: Schrittwieser et al. (2020), "Mastering Atari, Go, chess and shogi by planning with a
    learned model", appendix F; Hafner et al. (2023), equation 11 for supports with uneven steps.

    Example:
        >>> two_hot(torch.tensor([0.25, 7.0]), torch.tensor([-1.0, 0.0, 1.0]))
        tensor([[0.0000, 0.7500, 0.2500],
                [0.0000, 0.0000, 1.0000]])
    """
    check_float("two_hot", "x", x)
    last = _check_support("two_hot", support)
    inside = x.clamp(support[0], support[-1])
    upper = (inside.unsqueeze(-1) >= support).sum(-1).clamp(1, last)  # [...]
    atoms = support.expand(*x.shape, -1)
    high, low = (atoms.gather(-1, i.unsqueeze(-1)) for i in (upper, upper - 1))
    share = (inside.unsqueeze(-1) - low) / (high - low)  # [..., 1]
    atom = torch.arange(last + 1, device=support.device) - upper.unsqueeze(-1)  # [..., K]
    return torch.where(atom == 0, share, torch.where(atom == -1, 1 - share, 0.0)).to(x.dtype)


def two_hot_mean(probs: Tensor, support: Tensor) -> Tensor:
    """Mean of a distribution over a support, sum_k p_k z_k: inverse of ``two_hot``.

    Args:
        probs: probabilities, ``[..., K]`` float; of any distribution over the support.
        support: the atoms z, ``[K]`` float, increasing.

    Returns:
        ``[...]``.

    Raises:
        ValueError: the shapes do not match, or the support does not increase.
        TypeError: an argument is not floating-point.

    Source: as ``two_hot``.
    """
    check_float("two_hot_mean", "probs", probs)
    last = _check_support("two_hot_mean", support)
    if not probs.dim() or probs.shape[-1] != last + 1:
        raise ValueError(
            f"two_hot_mean: probs has shape {tuple(probs.shape)}, expected [..., {last + 1}] "
            "(from support)"
        )
    return (probs * support).sum(-1).to(probs.dtype)


# ---- pairs


class TxPair(NamedTuple):
    """A transformation of values, ``apply``, and the way back, ``inverse``."""

    apply: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


def _horizon(x: Tensor) -> Tensor:
    return -(-x).log1p()


def _discount(x: Tensor) -> Tensor:
    return -(-x).expm1()


identity_pair = TxPair(_identity, _identity)
signed_logp1_pair = TxPair(symlog, symexp)
signed_hyperbolic_pair = TxPair(signed_hyperbolic, signed_parabolic)
hyperbolic_sin_pair = TxPair(torch.asinh, torch.sinh)
discount_pair = TxPair(_horizon, _discount)  # -log(1 - x) and 1 - exp(-x)


def compose_tx(*pairs: TxPair) -> TxPair:
    """Several transformations as one: ``apply`` in the order given, ``inverse`` in the other one.

    Args:
        *pairs: transformations, the first of them applied first; none is the identity.

    Returns:
        The pair.

    Raises:
        TypeError: an argument is not a ``TxPair``.

    Source: van Hasselt et al. (2019), "General non-linear Bellman equations".
    """
    for i, pair in enumerate(pairs):
        check_tx("compose_tx", f"pairs[{i}]", pair)
    return TxPair(
        partial(_chain, tuple(pair.apply for pair in pairs)),
        partial(_chain, tuple(pair.inverse for pair in reversed(pairs))),
    )


def two_hot_pair(support: Tensor) -> TxPair:
    """``two_hot`` over a support, and ``two_hot_mean`` back.

    Args:
        support: the atoms, ``[K]`` float, increasing.

    Returns:
        The pair: from ``[...]`` to ``[..., K]`` and back.

    Raises:
        ValueError: the support is not a vector of increasing numbers.
        TypeError: the support is not floating-point.

    Source: as ``two_hot``.
    """
    _check_support("two_hot_pair", support)
    return TxPair(partial(two_hot, support=support), partial(two_hot_mean, support=support))


def muzero_pair(support: Tensor, tx: TxPair = signed_hyperbolic_pair) -> TxPair:
    """MuZero's pair: a number is squashed by ``tx``, and then spread over the support.

    The mean of a distribution is taken in the squashed space, and so it is biased: see
    ``unbiased_transform_pair``.

    Args:
        support: the atoms, ``[K]`` float, increasing, in the squashed space.
        tx: what squashes.

    Returns:
        The pair: from ``[...]`` to ``[..., K]`` and back.

    Raises:
        ValueError: the support is not a vector of increasing numbers.
        TypeError: an argument is of another kind.

    Source: Schrittwieser et al. (2020), appendix F.
    """
    _check_support("muzero_pair", support)
    return compose_tx(check_tx("muzero_pair", "tx", tx), two_hot_pair(support))


def unbiased_transform_pair(support: Tensor, tx: TxPair = signed_hyperbolic_pair) -> TxPair:
    """A pair like ``muzero_pair``, with the atoms unsquashed in place of the numbers squashed.

    Args:
        support: the atoms, ``[K]`` float, increasing, in the squashed space; a number is spread
            over ``tx.inverse(support)``.
        tx: what squashes, an increasing function.

    Returns:
        The pair: from ``[...]`` to ``[..., K]`` and back.

    Raises:
        ValueError: the support is not a vector of increasing numbers, before or after ``tx``.
        TypeError: an argument is of another kind.

    Source: rlax, ``unbiased_transform_pair``; as in Hafner et al. (2023), equation 10.
    """
    _check_support("unbiased_transform_pair", support)
    return two_hot_pair(check_tx("unbiased_transform_pair", "tx", tx).inverse(support))


# ---- private


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The parts max(x, 0) and max(-x, 0), with the slope at 0 in the first one."""
    below = x < 0
    return torch.where(below, 0.0, x), torch.where(below, -x, 0.0)


def _size(x: Tensor) -> Tensor:
    """|x|, finite: so the quotients above keep an infinite x infinite."""
    return x.abs().clamp(max=torch.finfo(x.dtype).max)


def _eps(function: str, x: Tensor, eps: Any) -> Any:
    shape = check_float(function, "x", x).shape
    check_hyper(function, "eps", eps, shape, "x", 0.0)
    return eps


def _check_support(function: str, support: Any) -> int:
    """The index of the last atom."""
    check_float(function, "support", support)
    if support.dim() != 1 or support.shape[0] < 2:
        raise ValueError(
            f"{function}: support has shape {tuple(support.shape)}, expected [K] with K of at "
            "least 2"
        )
    if not no_data(support) and not bool((support.diff() > 0).all()):
        raise ValueError(f"{function}: support does not increase, expected increasing atoms")
    return support.shape[0] - 1


def check_tx(function: str, name: str, value: Any) -> TxPair:
    """``value`` as it is, if it is a ``TxPair``."""
    if not isinstance(value, TxPair):
        raise TypeError(f"{function}: {name} is {kind(value)}, expected a TxPair")
    return value


def _chain(functions: tuple[Callable[[Tensor], Tensor], ...], x: Tensor) -> Tensor:
    for function in functions:
        x = function(x)
    return x
