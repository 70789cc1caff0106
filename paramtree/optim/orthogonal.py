"""Muon: updates of matrices made orthogonal by Newton and Schulz's iteration."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor

from .accepting import accepting, complex_leaf
from .alias import descent
from .arguments import (
    Hyper,
    Schedule,
    require_flag,
    require_hyper,
    require_int,
)
from .base import Transform
from .leafwise import Values, leafwise

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's, with the steepest slope at 0


def scale_by_muon(
    ns_coefficients: Sequence[Hyper | Schedule] = COEFFICIENTS,
    ns_steps: int = 5,
    momentum: Hyper | Schedule = 0.95,
    eps: Hyper | Schedule = 1e-7,
    nesterov: bool = True,
    adjust_lr_fn: str | None = None,
    dtype: torch.dtype | None = torch.bfloat16,
) -> Transform:
    """Muon's direction for leaves that are matrices [A, B], with torch's numbers.

        m = momentum m + (1 - momentum) g,   x = momentum m + (1 - momentum) g,  or m
        x = x / max(|x|, eps),   then ns_steps times   x = a x + (b x x^T + c (x x^T)^2) x

    ``u`` is ``x`` times ``sqrt(max(1, A / B))``, or ``0.2 sqrt(max(A, B))`` where ``adjust_lr_fn``
    is "match_rms_adamw". The iteration is torch's, in bfloat16: three digits, and derivatives of
    the same precision. For meta-gradients ``dtype=None``, the leaf's own, is the better choice.
    Mapped or compiled, about one in 10,000 numbers of the bfloat16 iteration is rounded the other
    way. At a zero gradient the norm's derivatives are taken as 0.

    Args:
        ns_coefficients: ``(a, b, c)``, each a float, 0-d tensor or schedule.
        ns_steps: iterations, in [0, 100).
        momentum: float or 0-d tensor, not negative, or schedule.
        eps: float or 0-d tensor, positive, or schedule.
        nesterov: look ahead by one step.
        adjust_lr_fn: "original", None for the same, or "match_rms_adamw".
        dtype: of the iteration, a real float dtype; None for the leaf's own, float32 for
            half-precision leaves.

    Returns:
        The transform; its state holds ``momentum``, and ``count`` where there is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or a number or a word is out of range; later, in ``init``
            and ``update``: a leaf isn't a matrix.
        TypeError: an argument is of another kind; later: a leaf is complex.

    Reference: Jordan et al. (2024), Muon; Liu et al. (2025), section 2.2, for "match_rms_adamw".
    """
    fn = "scale_by_muon"
    _require_muon(fn, ns_coefficients, ns_steps, momentum, eps, adjust_lr_fn, dtype)
    require_flag(fn, "nesterov", nesterov)

    def prepare(h: Values, t: Any) -> dict[str, Any]:
        c = {"a": h.a, "b": h.b, "c": h.c, "eps": h.eps}
        return c | {"momentum": h.momentum, "fresh": 1 - h.momentum}

    def rule(c: Values, g: Tensor, p: Any, m: Tensor) -> tuple[Tensor, Tensor]:
        m = torch.lerp(m, g, c.fresh)
        ahead = torch.lerp(g, m, c.momentum) if nesterov else m
        x = orthogonalized(ahead if dtype is None else ahead.to(dtype), c, ns_steps)
        return x.to(g.dtype) * _factor(g, adjust_lr_fn), m

    a, b, c = ns_coefficients
    hyper = {"a": a, "b": b, "c": c, "momentum": momentum, "eps": eps}
    slots = {"momentum": torch.zeros_like}
    options = {"hyper": hyper, "slots": slots, "prepare": prepare, "scope": "leaf"}
    return accepting(leafwise(fn, rule, **options), _flaw)


def orthogonalized(x: Tensor, c: Values, steps: int) -> Tensor:
    """Newton and Schulz's iteration, which moves all singular values of a matrix towards 1.

    Args:
        x: [A, B].
        c: coefficients ``a``, ``b``, ``c`` and ``eps``.
        steps: how many.

    Returns:
        [A, B], about ``U V^T`` of the matrix ``U S V^T``.
    """
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    zero = x.detach().norm() == 0
    size = torch.where(zero, torch.ones_like(x), x).norm()
    least = c.eps.to(x.dtype) if isinstance(c.eps, Tensor) else c.eps
    x = x / torch.where(zero | (size < least), least, size)
    for _ in range(steps):
        gram = x @ x.mT
        x = _plus(x, _plus(gram, gram, gram, c.b, c.c), x, c.a, 1.0)
    return x.mT if tall else x


def _plus(x: Tensor, left: Tensor, right: Tensor, beta: Hyper, alpha: Hyper) -> Tensor:
    """``beta x + alpha left right``, rounded once, as torch's own does where nothing is mapped."""
    if not isinstance(beta, Tensor) and not isinstance(alpha, Tensor):
        if not torch.compiler.is_compiling() and not _mapped(x):
            return torch.addmm(x, left, right, beta=beta, alpha=alpha)
    if x.dtype.itemsize < 4:
        wide = _plus(x.float(), left.float(), right.float(), beta, alpha)
        return wide.to(x.dtype)
    beta = beta.to(x.dtype) if isinstance(beta, Tensor) else beta
    alpha = alpha.to(x.dtype) if isinstance(alpha, Tensor) else alpha
    return beta * x + alpha * (left @ right)


def _mapped(x: Tensor) -> bool:
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return True
        x = get_unwrapped(x)
    return False


def _factor(x: Tensor, adjust: str | None) -> float:
    rows, columns = x.shape
    if adjust == "match_rms_adamw":
        return 0.2 * max(rows, columns) ** 0.5
    return max(1.0, rows / max(columns, 1)) ** 0.5


def _flaw(leaf: Tensor) -> Exception | None:
    if leaf.ndim == 2:
        return complex_leaf(leaf)
    shape = tuple(leaf.shape)
    return ValueError(
        f"has shape {shape}, expected a matrix [A, B]; partition gives other leaves an optimizer "
        "of their own, such as adamw"
    )


def _require_muon(
    fn: str, coefficients: Any, steps: Any, momentum: Any, eps: Any, adjust: Any, dtype: Any
) -> None:
    if not isinstance(coefficients, Sequence) or isinstance(coefficients, str):
        kind = type(coefficients).__name__
        raise TypeError(f"{fn}: ns_coefficients is a {kind}, expected three numbers (a, b, c)")
    if len(coefficients) != 3:
        raise ValueError(f"{fn}: ns_coefficients has {len(coefficients)} numbers, expected three")
    for at, value in enumerate(coefficients):
        require_hyper(fn, f"ns_coefficients[{at}]", value)
    require_int(fn, "ns_steps", steps, 0)
    if steps >= 100:
        raise ValueError(f"{fn}: ns_steps is {steps}, expected below 100")
    require_hyper(fn, "momentum", momentum, low=0)
    require_hyper(fn, "eps", eps, low=0)
    if adjust not in (None, "original", "match_rms_adamw"):
        words = f"{adjust!r}, expected None, 'original' or 'match_rms_adamw'"
        raise ValueError(f"{fn}: adjust_lr_fn is {words}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"{fn}: dtype is {dtype!r}, expected a real float dtype or None")


def muon(
    lr: Hyper | Schedule = 1e-3,
    weight_decay: Hyper | Schedule = 0.1,
    momentum: Hyper | Schedule = 0.95,
    nesterov: bool = True,
    ns_coefficients: Sequence[Hyper | Schedule] = COEFFICIENTS,
    eps: Hyper | Schedule = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    dtype: torch.dtype | None = torch.bfloat16,
) -> Transform:
    """Muon: ``p (1 - lr weight_decay) - lr u``, with ``u`` from ``scale_by_muon``.

    It's for matrices; the rest of a network gets an optimizer of its own:
    ``partition({"**.weight": muon(0.02), "**.bias": adamw(3e-4)})``.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it.
        weight_decay: float or 0-d tensor, not negative, or schedule; decoupled.
        momentum: as in ``scale_by_muon``.
        nesterov: as in ``scale_by_muon``.
        ns_coefficients: as in ``scale_by_muon``.
        eps: as in ``scale_by_muon``.
        ns_steps: as in ``scale_by_muon``.
        adjust_lr_fn: as in ``scale_by_muon``; the decay isn't adjusted.
        dtype: as in ``scale_by_muon``: for meta-gradients None.

    Returns:
        ``chain(muon=scale_by_muon(...), decay=add_decayed_weights(weight_decay),
        lr=scale_by_learning_rate(lr))``, with decay only where its number isn't 0.

    Raises:
        ValueError: a tensor isn't 0-d, or a number or a word is out of range; later, in ``init``
            and ``update``: a leaf isn't a matrix.
        TypeError: an argument is of another kind; later: a leaf is complex.

    Reference: Jordan et al. (2024), Muon.
    """
    options = (ns_coefficients, ns_steps, momentum, eps, nesterov, adjust_lr_fn, dtype)
    parts = {"muon": scale_by_muon(*options)}
    return descent("muon", parts, lr, weight_decay, decoupled=True)
