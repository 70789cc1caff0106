"""Ways to differentiate through an inner loop: one signature, so that one word changes the way.

An inner loop takes the state through n steps, and an outer function rates where it ends:

    s_{k+1} = step(hyper, s_k, k)          value = outer(hyper, s_n)

``mode(step, outer, steps)(hyper, state)`` gives the value and its gradient with respect to the
hyper-parameters, the initial state, or both. With n steps, S the size of a state, G that of the
graph of one step, W a window and H the number of differentiated entries:

    mode          memory           cost in steps                        gradient
    unrolled      n G              n forward, n backward                exact
    checkpointed  sqrt(n) (S + G)  2 n forward, n backward              exact
    truncated     S + W G          n forward, W backward                biased
    forward_mode  (1 + H) S        n forward with H tangents            exact

Take ``unrolled`` while it fits into memory, ``checkpointed`` for loops that don't, ``truncated``
where far steps matter little, and ``forward_mode`` for any number of steps where hyper holds some
numbers rather than a network's weights. A step of ``forward_mode`` on small tensors costs 4 to 10
plain ones, and more where it's but a handful of operations: torch spends 0.1 ms on a product with
a constant. Beyond 256 steps ``checkpointed`` has 16 for the square root, and adds 16 S and n
forward whenever n has grown another 16-fold.

Each result may be differentiated again, with respect to everything that it depends on. That goes
through all steps and takes the memory of ``unrolled``, but only once it's asked for: in the three
other modes a hyper or a state that merely requires grad costs nothing. Two things keep a graph
from the beginning: a tensor of an outer graph that ``step`` or ``outer`` closes over, and a
derivative of torch.func around the call.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ..tree import Structure, flatten, unflatten
from ._check import require_count
from .loop import Differentiated, Loop, Outer, Part, Stepper
from .on_demand import on_demand

AT_ONCE = 16  # steps of a segment, at most, where the user names no number


def unrolled(
    step: Stepper,
    outer: Outer,
    steps: int,
    *,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
) -> Differentiated:
    """Reverse mode through all steps at once.

    Args:
        step: pure function ``(hyper, state, k) -> state`` with k a Python int, from 0. The state
            keeps its names, shapes and dtypes.
        outer: pure function ``(hyper, state) -> 0-d float tensor``; ``(scalar, aux)`` with
            ``has_aux``.
        steps: n, at least 1.
        argnums: 0 for the gradient with respect to hyper, 1 for the initial state, ``(0, 1)`` for
            both.
        has_aux: whether ``outer`` returns something beside the scalar.

    Returns:
        ``fn(hyper, state) -> (value, grads)``, with ``has_aux`` ``((value, aux), grads)``. Hyper
        and state are trees, tensors, or nests of them; grads have their structure, zero where
        there is no influence and where a leaf of the state isn't of a float dtype (counts, keys).

    Raises:
        ValueError: steps or argnums is out of range; when called, a step changes the state's names
            or shapes, or ``outer`` did not return a scalar.
        TypeError: an argument is of another kind; when called, what is to be differentiated has no
            float leaf, hyper has one of another dtype, a step changes a dtype, or the scalar isn't
            real.
    """
    loop = Loop("unrolled", step, outer, steps, argnums, has_aux)
    return loop.unrolled


def truncated(
    step: Stepper,
    outer: Outer,
    steps: int,
    *,
    window: int | None = None,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
) -> Differentiated:
    """Reverse mode through the last steps only; the state before them counts as a constant.

    The value is that of all steps. Hyper acts in the last W steps and in ``outer``; the initial
    state acts nowhere, unless W is n. The cut is one for this gradient alone: in an outer graph
    value and gradient depend on hyper and state through all steps, and ``detach`` of what comes
    out makes a full stop.

    Args:
        step: as in ``unrolled``.
        outer: as in ``unrolled``.
        steps: as in ``unrolled``.
        window: W, the number of last steps, from 1 to n; default: the square root of n, rounded up.
        argnums: as in ``unrolled``.
        has_aux: as in ``unrolled``.

    Returns:
        As ``unrolled``.

    Raises:
        ValueError: as in ``unrolled``, or window is out of range.
        TypeError: as in ``unrolled``.

    Reference: Williams & Peng (1990), "An efficient gradient-based algorithm for on-line training
    of recurrent network trajectories".
    """
    loop = Loop("truncated", step, outer, steps, argnums, has_aux)
    window = isqrt(steps - 1) + 1 if window is None else window
    require_count("truncated", "window", window)
    if window > steps:
        raise ValueError(f"truncated: window is {window}, expected at most {steps} (from steps)")
    first = steps - window

    def both(hyper: Any, state: Any) -> tuple[Any, Any]:
        h, s = loop.parts(hyper, state)
        middle = Part(loop.run(hyper, state, 0, first), s.wanted and not first)
        out, (dh, ds) = loop.reverse(h, middle, first, steps, loop.end, has_aux)
        ds = [torch.zeros_like(x) for x in s.floats] if first else ds
        return out, loop.slopes(h, dh, s, ds)

    return on_demand(both, both)


def checkpointed(
    step: Stepper,
    outer: Outer,
    steps: int,
    *,
    segment: int | None = None,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
) -> Differentiated:
    """Reverse mode with few states stored: each segment of steps is run again when its turn comes.

    A run of more than ``segment`` steps is split in as many parts, and the states at their ends are
    stored. From the last part to the first, each is run again, split in the same way if it is still
    too long. So there is one graph of at most ``segment`` steps at a time, and with ``segment`` the
    square root of n each step is run twice and memory grows as the square root.

    Args:
        step: as in ``unrolled``; as it is run several times, it must give the same each time.
        outer: as in ``unrolled``.
        steps: as in ``unrolled``.
        segment: steps in the graph at once, and parts of a longer run, at least 1 (with 1 such a
            run has 2 parts); None for the square root of n, rounded up, and 16 at most.
        argnums: as in ``unrolled``.
        has_aux: as in ``unrolled``.

    Returns:
        As ``unrolled``, and the same numbers up to rounding.

    Raises:
        ValueError: as in ``unrolled``, or segment is below 1.
        TypeError: as in ``unrolled``.

    Reference: Griewank & Walther (2000), "Algorithm 799: revolve", section 2.
    """
    loop = Loop("checkpointed", step, outer, steps, argnums, has_aux)
    if segment is None:
        segment = min(AT_ONCE, isqrt(steps - 1) + 1)
    require_count("checkpointed", "segment", segment)

    def sweep(h: Part, state: Any, start: int, stop: int, end: Any, aux: bool) -> Any:
        if stop - start <= segment:
            return loop.reverse(h, Part(state), start, stop, end, aux)
        length = -(-(stop - start) // max(2, segment))
        bounds = [*range(start, stop, length), stop]
        states = [state]
        for begin, until in list(pairwise(bounds))[:-1]:
            states.append(loop.run(h.nest, states[-1], begin, until))
        out, (dh, ds) = sweep(h, states.pop(), bounds[-2], stop, end, aux)
        for begin, until in reversed(list(pairwise(bounds[:-1]))):
            _, (more, ds) = sweep(h, states.pop(), begin, until, _paired(ds), False)
            dh = [x + y for x, y in zip(dh, more, strict=True)]
        return out, (dh, ds)

    def both(hyper: Any, state: Any) -> tuple[Any, Any]:
        h, s = loop.parts(hyper, state)
        out, (dh, ds) = sweep(h, state, 0, steps, loop.end, has_aux)
        return out, loop.slopes(h, dh, s, ds)

    return on_demand(both, loop.unrolled)


def forward_mode(
    step: Stepper,
    outer: Outer,
    steps: int,
    *,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
) -> Differentiated:
    """Forward mode: the tangents of each differentiated entry are carried along, and no graph.

    Args:
        step: as in ``unrolled``; each operation in it needs a forward derivative, which torch has
            for all but some fused ones (``nn.LSTM``, fused attention) and custom functions.
        outer: as in ``unrolled``.
        steps: as in ``unrolled``.
        argnums: as in ``unrolled``.
        has_aux: as in ``unrolled``.

    Returns:
        As ``unrolled``, and the same numbers up to rounding.

    Raises:
        ValueError: as in ``unrolled``.
        TypeError: as in ``unrolled``.

    Reference: Franceschi et al. (2017), "Forward and reverse gradient-based hyperparameter
    optimization", section 3.2.
    """
    loop = Loop("forward_mode", step, outer, steps, argnums, has_aux)
    if not torch.compiler.is_compiling():
        load_forward_rules()

    def both(hyper: Any, state: Any) -> tuple[Any, Any]:
        h, s = loop.parts(hyper, state)
        inputs = [*h.floats, *s.floats]
        if not any([x.numel() for x in inputs]):  # nothing to map over
            return loop.unrolled(hyper, state)
        rest: list[Structure] = []  # what outer returned, without its tensors; left by objective

        def objective(*floats: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            at, initial = h.join(floats[: len(h.floats)]), s.join(floats[len(h.floats) :])
            out = loop.end(at, loop.run(at, initial, 0, steps))
            (value, *aux), structure = flatten(out)
            rest[:] = [structure]
            return value, tuple(aux)

        def along(*tangents: Tensor) -> tuple[Tensor, ...]:
            out: Any = torch.func.jvp(objective, tuple(inputs), tangents, has_aux=True)
            value, slope, aux = out
            return slope, value, *aux

        slopes, *results = torch.func.vmap(along)(*_basis(inputs))
        out = unflatten(rest[0], [x[0] for x in results])
        columns = _columns(slopes, inputs)
        grads = loop.slopes(h, columns[: len(h.floats)], s, columns[len(h.floats) :])
        return out, grads

    return on_demand(both, loop.unrolled)


def load_forward_rules() -> None:
    """Let torch load now what it loads when forward mode is first used, without its warnings."""
    if "torch._decomp.decompositions_for_jvp" not in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own use of torch.jit
            import_module("torch._decomp.decompositions_for_jvp")


def _paired(slopes: Sequence[Tensor]) -> Callable[[Any, Any], Tensor]:
    """A scalar at the end of a run whose slope in the state is given."""

    def pair(hyper: Any, state: Any) -> Tensor:
        floats = Part(state).floats
        terms = [(_real(x) * _real(y)).sum() for x, y in zip(floats, slopes, strict=True)]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    return pair


def _basis(inputs: Sequence[Tensor]) -> list[Tensor]:
    """For each input its tangents ``[H, *shape]``, one for each real entry of all inputs."""
    sizes = [_real(x).numel() for x in inputs]
    basis, start = [], 0
    for x, size in zip(inputs, sizes, strict=True):
        real = _real(x)
        own = torch.eye(sum(sizes), size, dtype=real.dtype, device=x.device).roll(start, 0)
        own = own.reshape(sum(sizes), *real.shape)
        basis.append(torch.view_as_complex(own) if x.is_complex() else own)
        start += size
    return basis


def _columns(slopes: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Slopes ``[H]`` as a gradient of each input."""
    out = []
    for x, own in zip(inputs, slopes.split([_real(x).numel() for x in inputs]), strict=True):
        real = _real(x)
        own = own.to(real.dtype).reshape(real.shape)  # a clone begins where a complex number may
        out.append(torch.view_as_complex(own.clone()) if x.is_complex() else own)
    return out


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
