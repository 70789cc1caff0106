"""The limited-memory quasi-Newton method: gradients times an inverse Hessian made of past steps.

    s   differences of the params from one update to the next
    y   differences of the gradients, likewise
    m   how many pairs of them are remembered

A history is a tree with the names of the params, whose leaves have a trailing axis [m], the newest
pair last: like all state its batch sizes are those of the params. An empty place holds zeros, and a
pair of zeros takes no part, so no count of pairs is needed and nothing branches on data.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from .arguments import (
    Hyper,
    Schedule,
    Tree,
    aligned,
    parameters,
    parts,
    refuse_leaf,
    require_flag,
    require_hyper,
    require_int,
    zero_count,
)
from .base import Step, Transform, require_transform
from .combine import chain
from .leafwise import Work
from .transform import scale_by_learning_rate

NAMES = ("count", "params", "grads", "diff_params", "diff_grads")


def lbfgs(
    lr: Hyper | Schedule = 1.0,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: Transform | None = None,
) -> Transform:
    """L-BFGS: ``p - lr H g``, with ``H g`` from ``scale_by_lbfgs``.

    Without a line search these are the steps of ``torch.optim.LBFGS`` with ``max_iter=1``; with
    ``scale_by_zoom_linesearch()`` those of its ``line_search_fn="strong_wolfe"``. torch stops where
    gradients or steps fall below its tolerances; here that is the loop's affair.

    Args:
        lr: learning rate, float or 0-d tensor, not negative, or a schedule of it; with a line
            search the step that is tried first.
        memory_size: how many pairs are remembered, at least 1; torch's default is 100.
        scale_init_precond: as in ``scale_by_lbfgs``.
        linesearch: ``scale_by_zoom_linesearch()`` or ``scale_by_backtracking_linesearch()``, which
            read ``value_fn=``; none by default.

    Returns:
        ``chain(lbfgs=scale_by_lbfgs(...), lr=scale_by_learning_rate(lr), linesearch=linesearch)``.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: an argument is of another kind.

    Reference: Liu & Nocedal (1989), algorithm 2.1.
    """
    require_hyper("lbfgs", "lr", lr, low=0)
    require_int("lbfgs", "memory_size", memory_size, 1)
    require_flag("lbfgs", "scale_init_precond", scale_init_precond)
    search = {}
    if linesearch is not None:
        require_transform("lbfgs", "linesearch", linesearch)
        search = {"linesearch": linesearch}
    direction = scale_by_lbfgs(memory_size, scale_init_precond)
    return chain(lbfgs=direction, lr=scale_by_learning_rate(lr), **search)


def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True) -> Transform:
    """Gradients times an inverse Hessian that past differences of params and gradients make.

        H = V_m^T ... V_1^T h V_1 ... V_m + ...,   V_i = 1 - y_i s_i^T / (y_i^T s_i)
        h = s_m^T y_m / (y_m^T y_m);   at the first update h = min(1, 1 / sum |g|)

    A pair whose curvature ``s^T y`` isn't positive beyond rounding is left out (torch leaves out
    what is below 1e-10, optax keeps all that isn't 0). The first h is torch's; optax has the
    Euclidean norm there. What the update before did to the params is read off them, so whatever
    stands behind in a chain, such as a line search, is taken into account.

    Args:
        memory_size: m, how many pairs are remembered, at least 1.
        scale_init_precond: whether h is that; else it's 1.

    Returns:
        The transform; its state holds ``count``, ``params`` and ``grads`` of the last update, and
        ``diff_params`` (s) and ``diff_grads`` (y), with leaves ``[*shape, m]``.

    Raises:
        ValueError: ``memory_size`` is less than 1.
        TypeError: an argument is of another kind.

    Reference: Nocedal & Wright (2006), algorithms 7.4 and 7.5.
    """
    fn = "scale_by_lbfgs"
    require_int(fn, "memory_size", memory_size, 1)
    require_flag(fn, "scale_init_precond", scale_init_precond)

    def init(params: Tree) -> TensorDict:
        leaves, structure = parameters(fn, params)
        like = [x.detach() for x in Work(leaves, structure).params]
        state: dict[str, Any] = {"count": zero_count(leaves)}
        for name in ("params", "grads"):
            state[name] = tree.unflatten(structure, [torch.zeros_like(x) for x in like])
        for name in ("diff_params", "diff_grads"):
            zeros = [x.new_zeros((*x.shape, memory_size)) for x in like]
            state[name] = tree.unflatten(structure, zeros)
        return tree.new(state)

    def update(grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        count, *trees = parts(fn, state, *NAMES)
        (leaves, g), structure = aligned(fn, params, grads=grads)
        work = Work(leaves, structure)
        if not leaves:
            return tree.unflatten(structure, []), tree.new(
                {"count": count + 1, **dict(zip(NAMES[1:], trees, strict=True))}
            )
        p, g = work.params, work.pack(g)
        old_p, old_g = [
            work.read(fn, f"state[{name!r}]", each, exact=True)
            for name, each in zip(NAMES[1:3], trees[:2], strict=True)
        ]
        s, y = [
            _joined(_history(fn, name, each, work, memory_size))
            for name, each in zip(NAMES[3:], trees[2:], strict=True)
        ]
        later, slope = count > 0, _vector(g)
        s, y = _remembered(later, s, y, _vector(p) - _vector(old_p), slope - _vector(old_g))
        u = _inverse_hessian(slope, s, y, None if not scale_init_precond else later)
        values = (
            count + 1,
            tree.unflatten(structure, [x.clone() for x in p]),  # not the memory of the params
            tree.unflatten(structure, [x.clone() for x in g]),
            tree.unflatten(structure, _parted(s, p)),
            tree.unflatten(structure, _parted(y, p)),
        )
        updates = [x[..., 0] for x in _parted(u[None], p)]
        updates = [x.to(leaf.dtype) for x, leaf in zip(updates, leaves, strict=True)]
        return tree.unflatten(structure, updates), tree.new(dict(zip(NAMES, values, strict=True)))

    return Transform(init, update)


def _remembered(
    later: Tensor, s: Tensor, y: Tensor, new_s: Tensor, new_y: Tensor
) -> tuple[Tensor, Tensor]:
    """Histories [m, n] with a new pair [n], the oldest dropped, where the pair may come in."""
    tiny = torch.finfo(s.dtype).eps
    sizes = (new_s @ new_s).sqrt() * (new_y @ new_y).sqrt()
    taken = later & (new_s @ new_y > tiny * sizes)
    pairs = ((s, new_s), (y, new_y))
    s, y = [torch.where(taken, torch.cat([old[1:], new[None]]), old) for old, new in pairs]
    return s, y


def _inverse_hessian(g: Tensor, s: Tensor, y: Tensor, scaled_later: Tensor | None) -> Tensor:
    """``H g`` [n] by the two loops, from g [n] and the histories s, y [m, n]."""
    curvature = (s * y).sum(1)  # [m]
    used = curvature > 0
    rho = torch.where(used, 1.0 / torch.where(used, curvature, 1.0), 0.0).unbind()
    rows = list(zip(s.unbind(), y.unbind(), rho, strict=True))
    weights = []
    q = g
    for s_i, y_i, rho_i in reversed(rows):
        weights.append(rho_i * (s_i @ q))
        q = q - weights[-1] * y_i
    if scaled_later is not None:
        first = 1.0 / g.abs().sum().clamp(min=1.0)
        square = torch.where(used[-1], y[-1] @ y[-1], 1.0)
        newest = torch.where(used[-1], curvature[-1] / square, 1.0)
        q = q * torch.where(scaled_later, newest, first)
    for (s_i, y_i, rho_i), weight in zip(rows, reversed(weights), strict=True):
        q = q + (weight - rho_i * (y_i @ q)) * s_i
    return q


def _history(fn: str, name: str, history: Any, work: Work, memory_size: int) -> list[Tensor]:
    """Leaves [*shape, m] of a history."""
    found = work.read(fn, f"state[{name!r}]", history, exact=False)
    for at, (got, leaf) in enumerate(zip(found, work.params, strict=True)):
        shape = (*leaf.shape, memory_size)
        if got.shape != shape or got.dtype is not leaf.dtype:
            path = tree.show_path(work.structure.paths()[at])
            refuse_leaf(f"{fn}: state[{name!r}] at {path}", got, leaf[..., None].expand(shape))
    return found


def _vector(leaves: Sequence[Tensor]) -> Tensor:
    return _joined([x[..., None] for x in leaves])[0]


def _joined(leaves: Sequence[Tensor]) -> Tensor:
    """Leaves [*shape, m] as one matrix [m, n]; a complex number is a pair, as in torch."""
    rows = []
    for x in leaves:
        x = x.movedim(-1, 0)
        x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
        rows.append(x.reshape(x.shape[0], x.shape[1:].numel()))
    return torch.cat(rows, 1)


def _parted(matrix: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``_joined``, in the shapes [*shape, m] and dtypes of leaves [*shape]."""
    sizes = [x.numel() * (2 if x.is_complex() else 1) for x in like]
    leaves, size = [], matrix.shape[0]
    for piece, x in zip(matrix.split(sizes, 1), like, strict=True):
        if x.is_complex():
            piece = piece.to(x.dtype.to_real()).reshape(size, *x.shape, 2)
            piece = torch.view_as_complex(piece)
        else:
            piece = piece.to(x.dtype).reshape(size, *x.shape)
        leaves.append(piece.movedim(0, -1))
    return leaves
