"""Autodiff held against central differences, entry by named entry."""

import inspect
import itertools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import rng, tree
from ..tree import flatten, unflatten
from .gradients import kind_of, value_and_grad


def check_grads(
    fn: Callable[..., Any],
    *trees: Any,
    step: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    max_entries: int = 32,
) -> None:
    """Hold autodiff against central differences for each named entry.

        df/dx = (f(x + h) - f(x - h)) / 2h

    Args:
        fn: function of the trees that returns tensors; several numbers are added up with fixed
            weights.
        trees: trees or tensors of float64; integer leaves are left alone.
        step: h, times the entry's size where that is above 1.
        rtol: relative tolerance.
        atol: absolute tolerance, times the size of the value where that is above 1.
        max_entries: a leaf with more numbers than this is held along as many fixed random
            directions.

    Raises:
        AssertionError: they differ somewhere; the message says where, and where a path is cut, as
            in ``hyper["gamma"]: autodiff 0, central 4.956: no path (detached)``.
        TypeError: a leaf is of a float dtype other than float64, too coarse for central
            differences, or there is nothing to hold: no float tensor goes in, or none comes out.
    """
    leaves, structure = flatten(trees)
    names = [_entry_name(fn, path) for path in structure.paths()]
    for name, leaf in zip(names, leaves, strict=True):
        if (leaf.is_floating_point() and leaf.dtype != torch.float64) or leaf.is_complex():
            raise TypeError(
                f"check_grads: {name} is {leaf.dtype}, expected float64, as tree.double() makes it"
            )
    chosen = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point() and leaf.numel()]
    if not chosen:
        raise TypeError("check_grads: there is no float64 tensor in the trees, so nothing to hold")

    def value(*inputs: Tensor) -> Tensor:
        full = [leaf.detach() for leaf in leaves]
        for i, x in zip(chosen, inputs, strict=True):
            full[i] = x
        out = fn(*unflatten(structure, full))
        parts = [torch.view_as_real(x) if x.is_complex() else x for x in tree.leaves(out)]
        outputs = [x for x in parts if x.is_floating_point()]
        if not outputs:
            raise TypeError(f"check_grads: fn returned {kind_of(out)}, expected float tensors")
        terms = [(x.double() * _weights(x, i)).sum() for i, x in enumerate(outputs)]
        return torch.stack(terms).sum()

    points = [leaves[i].detach().clone() for i in chosen]
    size, slopes = value_and_grad(value, tuple(range(len(points))))(*points)
    floor = atol * max(1.0, abs(float(size)))
    wrong = []
    for k, (point, slope) in enumerate(zip(points, slopes, strict=True)):
        for label, direction in _directions(point, max_entries):
            h = step * max(1.0, float((point * direction).abs().max()))
            ends = []
            for sign in (1.0, -1.0):
                moved = [x if i != k else x + sign * h * direction for i, x in enumerate(points)]
                with torch.no_grad():
                    ends.append(float(value(*moved)))
            central = (ends[0] - ends[1]) / (2 * h)
            auto = float((slope * direction).sum())
            if not abs(auto - central) <= floor + rtol * abs(central):
                cut = ": no path (detached)" if auto == 0.0 else ""
                wrong.append(
                    f"{names[chosen[k]]}{label}: autodiff {auto:.10g}, central {central:.10g}{cut}"
                )
    if wrong:
        more = f"\n... and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise AssertionError("check_grads:\n" + "\n".join(wrong[:20]) + more)


def _entry_name(fn: Callable[..., Any], path: tuple[Any, ...]) -> str:
    """Entry as a user would type it: ``hyper["policy", "gamma"]``."""
    index, *rest = path
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        known = [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        known = []
    name = known[index] if index < len(known) else f"argument {index}"
    parts = [json.dumps(part, ensure_ascii=False) for part in rest]
    return name + (f"[{', '.join(parts)}]" if rest else "")


def _weights(x: Tensor, index: int) -> Tensor:
    """Fixed numbers, so that errors in several outputs cannot cancel; 1 for a scalar."""
    if x.ndim == 0:
        return torch.ones((), dtype=torch.float64, device=x.device)
    key = rng.fold_in(rng.key(0, device=x.device), index)
    return rng.uniform(key, tuple(x.shape), 0.5, 1.5, dtype=torch.float64)


def _directions(x: Tensor, most: int) -> list[tuple[str, Tensor]]:
    """Directions along which a leaf is held: its entries, or random ones where there are many."""
    if x.numel() <= most:
        units = torch.eye(x.numel(), dtype=x.dtype, device=x.device).reshape(-1, *x.shape)
        places = itertools.product(*[range(n) for n in x.shape])
        return [
            (f"{list(place)}" if place else "", unit)
            for place, unit in zip(places, units, strict=True)
        ]
    keys = rng.split(rng.key(1, device=x.device), most)
    signs = [
        2.0 * rng.bernoulli(key, torch.full(tuple(x.shape), 0.5, device=x.device)).to(x.dtype) - 1.0
        for key in keys
    ]
    return [(f" along random direction {i}", sign) for i, sign in enumerate(signs)]
