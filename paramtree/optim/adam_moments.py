"""Adam's direction and its relatives that share its two moments."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..tree import root
from .arguments import Hyper, Schedule, given, require_flag, require_hyper
from .base import Transform
from .leafwise import Values, leafwise, transformed


def scale_by_adam(
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    eps_root: Hyper | Schedule = 0.0,
    nesterov: bool = False,
    detach_denominator: bool = False,
) -> Transform:
    """Adam's direction, with torch's numbers.

        mu = b1 mu + (1 - b1) g,   nu = b2 nu + (1 - b2) g^2
        u = mu / (sqrt(nu / (1 - b2^t) + eps_root) + eps) / (1 - b1^t)

    The square root's derivatives are taken as 0 at 0, so that no gradient through it is NaN. With
    ``nesterov``, ``b1 mu / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)`` stands for ``mu / (1 -
    b1^t)``. With ``detach_denominator`` the denominator is a full stop, which makes meta-gradients
    through many steps cheap and tame, and wrong by what went through it.

    Args:
        b1: decay of the first moment, float in [0, 1), 0-d tensor or schedule.
        b2: decay of the second moment, float in [0, 1), 0-d tensor or schedule.
        eps: float or 0-d tensor, not negative, or schedule.
        eps_root: float or 0-d tensor, not negative, or schedule; a little of it keeps
            meta-gradients bounded where gradients come close to 0.
        nesterov: look ahead by one step (Dozat).
        detach_denominator: no derivative through the denominator, of any order.

    Returns:
        The transform; its state holds ``count``, ``mu`` and ``nu``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Kingma & Ba (2015), algorithm 1; Dozat (2016), algorithm 8, with constant momentum;
        Oh et al. (2025), the optimizer of DiscoRL's meta-parameters, for the detached denominator.
    """
    fn = "scale_by_adam"
    require_moments(fn, b1, b2, eps, eps_root)
    require_flag(fn, "nesterov", nesterov)
    require_flag(fn, "detach_denominator", detach_denominator)
    rooted = given(eps_root)
    numbers = all([isinstance(value, int | float) for value in (b1, b2, eps, eps_root)])
    plain = numbers and not nesterov and not detach_denominator

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        c = _corrections(h, t, rooted)
        if nesterov:
            c["old"] = h.b1 * (1 - h.b1**t) / (1 - h.b1 ** (t + 1))
        return c

    def rule(c: Values, g: Tensor, p: Any, mu: Tensor, nu: Tensor) -> tuple[Tensor, ...]:
        mu, nu = torch.lerp(mu, g, c.fresh1), second_moment(nu, g, c)
        denominator = root(nu + c.eps_root if rooted else nu) * c.size + c.eps
        if detach_denominator:
            denominator = denominator.detach()
        ahead = c.old * mu + c.fresh1 * g if nesterov else mu
        return ahead / denominator, mu, nu

    kernel = "" if nesterov or rooted else "adam"
    recorded = _recorded if plain else None
    hyper = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    slots = {"mu": torch.zeros_like, "nu": torch.zeros_like}
    options = {"counted": True, "prepare": prepare, "kernel": kernel}
    return leafwise(fn, rule, hyper=hyper, slots=slots, recorded=recorded, **options)


def scale_by_amsgrad(
    b1: Hyper | Schedule = 0.9,
    b2: Hyper | Schedule = 0.999,
    eps: Hyper | Schedule = 1e-8,
    eps_root: Hyper | Schedule = 0.0,
) -> Transform:
    """Adam's direction with the largest second moment so far, as torch has it.

        mu, nu as in scale_by_adam,   nu_max = max(nu_max, nu)
        u = mu / (sqrt(nu_max / (1 - b2^t) + eps_root) + eps) / (1 - b1^t)

    optax takes the maximum of the corrected moments, ``nu / (1 - b2^t)``, so its numbers differ.

    Args:
        b1: as in ``scale_by_adam``.
        b2: as in ``scale_by_adam``.
        eps: as in ``scale_by_adam``.
        eps_root: as in ``scale_by_adam``.

    Returns:
        The transform; its state holds ``count``, ``mu``, ``nu`` and ``nu_max``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Reddi, Kale & Kumar (2018), algorithm 2, with Adam's corrections.
    """
    fn = "scale_by_amsgrad"
    require_moments(fn, b1, b2, eps, eps_root)
    rooted = given(eps_root)

    def prepare(h: Values, t: Tensor) -> dict[str, Any]:
        return _corrections(h, t, rooted)

    def rule(
        c: Values, g: Tensor, p: Any, mu: Tensor, nu: Tensor, nu_max: Tensor
    ) -> tuple[Tensor, ...]:
        mu, nu = torch.lerp(mu, g, c.fresh1), second_moment(nu, g, c)
        nu_max = torch.maximum(nu_max, nu)
        denominator = root(nu_max + c.eps_root if rooted else nu_max) * c.size + c.eps
        return mu / denominator, mu, nu, nu_max

    kernel = "" if rooted else "amsgrad"
    hyper = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    slots = {name: torch.zeros_like for name in ("mu", "nu", "nu_max")}
    return leafwise(
        fn, rule, hyper=hyper, slots=slots, counted=True, prepare=prepare, kernel=kernel
    )


def _corrections(h: Values, t: Tensor, rooted: bool) -> dict[str, Any]:
    """What the denominator ``sqrt(nu / fix2 + eps_root) + eps``, times fix1, has that is 0-d."""
    fix1, fix2 = 1 - h.b1**t, 1 - h.b2**t
    c = {"b1": h.b1, "b2": h.b2, "fresh1": 1 - h.b1, "fresh2": 1 - h.b2}
    c |= {"size": fix1 / fix2.sqrt(), "eps": h.eps * fix1}
    return c | {"eps_root": h.eps_root * fix2} if rooted else c


def _recorded(c: Values, *columns: list[Tensor]) -> list[list[Tensor]]:
    """All leaves through ``_Direction``, small ones together, large ones each by itself."""
    found: list[list[Tensor]] = [[], [], []]
    rows = list(zip(*columns, strict=True))
    while rows:
        n = total = 0
        while n < len(rows) and (not n or total + rows[n][0].numel() <= _TOGETHER):
            total, n = total + rows[n][0].numel(), n + 1
        group, rows = list(zip(*rows[:n], strict=True)), rows[n:]
        out = _Direction.apply(c, *[x for column in group for x in column])
        for i, column in enumerate(found):
            column += out[i * n : (i + 1) * n]  # pyright: ignore
    return found


_TOGETHER = 1 << 15  # numbers, up to which it's the count of operations that takes the time


class _Direction(torch.autograd.Function):
    """The rule of ``scale_by_adam`` for plain numbers, with less to record and to remember.

    It takes and gives some leaves at once: first those of g, then of mu, then of nu. The backward
    is of differentiable operations, so it has derivatives of its own.
    """

    @staticmethod
    def forward(ctx: Any, c: Values, *leaves: Tensor) -> tuple[Tensor, ...]:
        """Directions and moments."""
        n = len(leaves) // 3
        g, mu, nu = [_joined(leaves[i * n : (i + 1) * n]) for i in range(3)]
        mu, nu = mu.lerp_(g, c.fresh1), nu.mul_(c.b2).addcmul_(g, g, value=c.fresh2)
        size = (nu + c.eps_root).sqrt_() if hasattr(c, "eps_root") else nu.sqrt()
        u = torch.div(mu, size.mul_(c.size).add_(c.eps), out=size)
        u, mu, nu = [_divided(x, leaves[:n]) for x in (u, mu, nu)]
        ctx.c = c
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*leaves[:n], *mu, *nu)
        return *u, *mu, *nu

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Any, ...]:
        """Slopes of g, mu and nu from those of the directions and the new moments."""
        c, saved, n = ctx.c, ctx.saved_tensors, len(slopes) // 3
        g, mu = saved[:n], saved[n : 2 * n]
        # without a graph of its own, what was made here is used again
        graph, t = torch.is_grad_enabled() or transformed() or _batched(slopes), Tensor
        add, mul, div, root = (t.add, t.mul, t.div, t.sqrt)
        fill = t.masked_fill
        if not graph:
            add, mul, div, root, fill = (t.add_, t.mul_, t.div_, t.sqrt_, t.masked_fill_)
        size = _joined(saved[2 * n :])
        if hasattr(c, "eps_root"):
            size = add(size, c.eps_root)
        zero = size == 0
        size = root(fill(size, zero, 1.0))
        denominator = add(mul(size.masked_fill(zero, 0.0), c.size), c.eps)
        of_u, of_mu, of_nu = [_slopes(slopes[i * n : (i + 1) * n], saved[:n]) for i in range(3)]
        if of_u is not None:
            slope = div(of_u, denominator)
            denominator = mul(denominator, size)
            del size
            through = mul(div(mul(_joined(mu), slope), denominator), -0.5 * c.size)
            through = fill(through, zero, 0.0)
            of_mu = slope if of_mu is None else add(slope, of_mu)
            of_nu = through if of_nu is None else add(through, of_nu)
            del denominator, zero
        of_g = None
        if of_nu is not None:
            of_g, of_nu = mul(mul(_joined(g), of_nu), 2 * c.fresh2), mul(of_nu, c.b2)
        if of_mu is not None:
            of_g = of_mu * c.fresh1 if of_g is None else add(of_g, of_mu, alpha=c.fresh1)
            of_mu = mul(of_mu, c.b1)
        found = [[None] * n if x is None else _divided(x, saved[:n]) for x in (of_g, of_mu, of_nu)]
        return None, *[x for column in found for x in column]


def _batched(slopes: Sequence[Any]) -> bool:
    """Whether torch.autograd maps the backward, as it does for a whole Jacobian."""
    batched = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore
    return any([x is not None and batched(x) for x in slopes])


def _joined(leaves: Sequence[Tensor]) -> Tensor:
    """Leaves as one new tensor."""
    return leaves[0].clone() if len(leaves) == 1 else torch.cat([x.reshape(-1) for x in leaves])


def _divided(whole: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Leaves of what ``_joined`` gave."""
    if len(like) == 1:
        return [whole]
    parts = whole.split([x.numel() for x in like])
    return [x.view(leaf.shape) for x, leaf in zip(parts, like, strict=True)]


def _slopes(slopes: Sequence[Any], like: Sequence[Tensor]) -> Tensor | None:
    """Slopes as one new tensor, None where there are none."""
    if not any([x is not None for x in slopes]):
        return None
    pairs = zip(slopes, like, strict=True)
    return _joined([torch.zeros_like(leaf) if x is None else x for x, leaf in pairs])


def second_moment(nu: Tensor, g: Tensor, c: Values) -> Tensor:
    """``b2 nu + fresh2 g^2``, with ``fresh2 = 1 - b2``.

    Args:
        nu: moment so far, any shape.
        g: gradient, the same shape.
        c: ``b2`` and ``fresh2``.

    Returns:
        The same shape.
    """
    if isinstance(c.fresh2, Tensor):
        return c.b2 * nu + c.fresh2 * (g * g)
    return torch.addcmul(nu * c.b2, g, g, value=c.fresh2)


def require_moments(fn: str, b1: Any, b2: Any, eps: Any, eps_root: Any = 0.0) -> None:
    """Refuse what are not the hyper-parameters of two moments.

    Args:
        fn: name of the function that was called, for the message.
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: not negative.
        eps_root: not negative.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: one is of another kind.
    """
    require_hyper(fn, "b1", b1, low=0, below=1)
    require_hyper(fn, "b2", b2, low=0, below=1)
    require_hyper(fn, "eps", eps, low=0)
    require_hyper(fn, "eps_root", eps_root, low=0)
