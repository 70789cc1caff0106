"""Transforms that bound what they're given: by number, by norm, and NaN away."""

from typing import Any

import torch
from torch import Tensor

from ..tree import root
from .accepting import accepting
from .arguments import Hyper, Schedule, cast, require_hyper
from .base import Transform
from .leafwise import Values, leafwise


def clip(max_delta: Hyper | Schedule) -> Transform:
    """Each number brought into ``[-max_delta, max_delta]``.

    The real and imaginary parts of a complex leaf are brought there each; NaN stays.

    Args:
        max_delta: float or 0-d tensor, positive, or a schedule of it.

    Returns:
        The transform; it has a state, ``count``, only where the bound is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or the number isn't positive.
        TypeError: the argument is of another kind.
    """
    require_bound("clip", "max_delta", max_delta)

    def rule(c: Values, g: Tensor, p: Any) -> Tensor:
        return torch.clamp(g, -c.max_delta, c.max_delta)

    return leafwise("clip", rule, hyper={"max_delta": max_delta})


def clip_by_block_rms(threshold: Hyper | Schedule) -> Transform:
    """Each leaf scaled down where its root mean square is above a bound.

        u = g / max(1, rms(g) / threshold)

    The root's derivatives are taken as 0 at 0.

    Args:
        threshold: float or 0-d tensor, positive, or a schedule of it.

    Returns:
        The transform; it has a state, ``count``, only where the bound is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or the number isn't positive.
        TypeError: the argument is of another kind.

    Reference: Shazeer & Stern (2018), section 6.
    """
    require_bound("clip_by_block_rms", "threshold", threshold)

    def rule(c: Values, g: Tensor, p: Any) -> Tensor:
        size = root(squares(g).sum() / max(g.numel(), 1))
        return g / torch.where(size > c.threshold, size / c.threshold, 1.0)

    hyper = {"threshold": threshold}
    return leafwise("clip_by_block_rms", rule, hyper=hyper, scope="leaf")


def adaptive_grad_clip(
    clipping: Hyper | Schedule,
    eps: Hyper | Schedule = 1e-3,
    axis: int | tuple[int, ...] | None = None,
) -> Transform:
    """Units of a leaf scaled down where they're long beside those of the params.

        m = clipping max(|p|, eps),   u = g  where |g| < m,  else  g m / max(|g|, 1e-6)

    The norms are over ``axis``, by default optax's: all of a vector (dims of 1 don't count), dim 0
    of two or three dims, all dims but the last of four or five. torch's weights [n_out, n_in] want
    ``axis=1`` for the paper's units. A norm's derivatives are taken as 0 at 0.

    Args:
        clipping: float or 0-d tensor, positive, or a schedule of it.
        eps: float or 0-d tensor, not negative, or a schedule of it.
        axis: dims of the norms.

    Returns:
        The transform; it has a state, ``count``, only where there is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range; later, in ``init`` and
            ``update``: a leaf doesn't have the dims, or has more than five and ``axis`` is None.
        TypeError: an argument is of another kind.

    Reference: Brock et al. (2021), section 4.
    """
    fn = "adaptive_grad_clip"
    require_bound(fn, "clipping", clipping)
    require_hyper(fn, "eps", eps, low=0)
    dims = (axis,) if isinstance(axis, int) and not isinstance(axis, bool) else axis
    if dims is not None and not (isinstance(dims, tuple) and all([type(d) is int for d in dims])):
        raise TypeError(f"{fn}: axis is {axis!r}, expected an int, a tuple of them or None")
    if dims == () or dims is not None and len(set(dims)) < len(dims):
        raise ValueError(f"{fn}: axis is {axis}, expected at least one dim, each once")

    def norm(x: Tensor) -> Tensor:
        return root(squares(x).sum(_unit(x) if dims is None else dims, keepdim=True))

    def rule(c: Values, g: Tensor, p: Tensor) -> Tensor:
        size, own = norm(g), norm(p)
        bound = c.clipping * torch.where(own > c.eps, own, c.eps)
        longest = torch.where(size > 1e-6, size, 1e-6)
        return torch.where(size < bound, g, g * (bound / longest))

    def flaw(leaf: Tensor) -> Exception | None:
        shape = tuple(leaf.shape)
        if dims is None and _unit(leaf) is None:
            return ValueError(f"has shape {shape}, expected five dims or fewer; give axis")
        if dims is not None and not all([-leaf.ndim <= d < leaf.ndim for d in dims]):
            text = f"has shape {shape}, expected one with axis {axis}; masked takes it out"
            return ValueError(text)
        return None

    options = {"hyper": {"clipping": clipping, "eps": eps}, "scope": "leaf", "reads_params": True}
    return accepting(leafwise(fn, rule, **options), flaw)


def _unit(x: Tensor) -> tuple[int, ...] | None:
    if sum([size != 1 for size in x.shape]) <= 1:
        return tuple(range(x.ndim))
    return {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3)}.get(x.ndim)


def zero_nans() -> Transform:
    """Updates with 0 for NaN.

    Returns:
        The transform; its state holds ``found_nan``, a 0-d bool for each leaf: whether the last
        update had one there.
    """

    def rule(c: Values, g: Tensor, p: Any, found: Tensor) -> tuple[Tensor, Tensor]:
        nan = g.isnan()
        return torch.where(nan, torch.zeros_like(g), g), nan.any()

    slots = {"found_nan": lambda leaf: torch.zeros((), dtype=torch.bool, device=leaf.device)}
    return leafwise("zero_nans", rule, slots=slots, scope="leaf")


def clip_by_global_norm(max_norm: Hyper | Schedule) -> Transform:
    """Updates scaled down where the norm of all leaves together is above a bound.

        u = g max_norm / |g|  where |g| > max_norm,  else g

    This is optax's law. torch's ``clip_grad_norm_`` multiplies by ``max_norm / (|g| + 1e-6)`` where
    that is below 1, so a gradient that it clips ends up a little shorter than ``max_norm``. A zero
    gradient stays zero, and its derivatives are finite.

    Args:
        max_norm: float or 0-d tensor, positive, or a schedule of it.

    Returns:
        The transform; it has a state, ``count``, only where the bound is a schedule.

    Raises:
        ValueError: a tensor isn't 0-d, or the number isn't positive.
        TypeError: the argument is of another kind.
    """
    require_bound("clip_by_global_norm", "max_norm", max_norm)

    def rule(c: Values, g: list[Tensor], p: Any) -> list[Tensor]:
        if not g:
            return g
        size = global_norm(g)
        above = size > c.max_norm
        factor = torch.where(above, c.max_norm / torch.where(above, size, 1.0), 1.0)
        return [x * cast(factor, x) for x in g]

    hyper = {"max_norm": max_norm}
    return leafwise("clip_by_global_norm", rule, hyper=hyper, scope="tree")


def global_norm(leaves: list[Tensor]) -> Tensor:
    """Norm of all leaves as one vector, its derivative taken as 0 at 0.

    Args:
        leaves: at least one.

    Returns:
        0-d tensor.
    """
    reals = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in leaves]
    squares = [(x * x).sum() for x in reals]
    return root(torch.stack(squares).sum() if len(squares) > 1 else squares[0])


def squares(x: Tensor) -> Tensor:
    """``|x|^2`` of each number.

    Args:
        x: any shape, real or complex.

    Returns:
        The same shape, real.
    """
    return (x.conj() * x).real if x.is_complex() else x * x


def require_bound(fn: str, name: str, value: Any) -> None:
    """Refuse what is not a positive hyper-parameter.

    Args:
        fn: name of the function that was called, for the message.
        name: name of its argument.
        value: what came in.

    Raises:
        ValueError: a tensor isn't 0-d, or the number isn't positive.
        TypeError: it's of another kind.
    """
    require_hyper(fn, name, value, low=0)
    if isinstance(value, int | float) and value == 0:
        raise ValueError(f"{fn}: {name} is 0, expected more; set_to_zero() gives zeros")
