"""Update and apply at once, in the params' own memory where the caller gives them up.

A chain that ends as ``adam``, ``adamw`` or ``sgd`` do goes to torch's fused kernels where they can
say the same: all leaves of one dtype, those that are donated contiguous, numbers for
hyper-parameters (the rate may be a tensor), and nothing differentiated, mapped or compiled.
Whatever comes before in the chain, such as clipping, runs as always. Everything else takes
``update`` and ``apply_updates``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain, pairwise
from operator import sub
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..autodiff.levels import transformed
from ..tree import flatten, leaves, movable, moved, new, require_tree, unflatten
from .arguments import (
    Tree,
    aligned,
    at_count,
    like,
    named_like,
    parameters,
    parts,
    require_count,
    require_flag,
    require_hyper,
)
from .base import Step, Transform, require_transform, updated
from .combine import Chained
from .leafwise import Leafwise, Leaves, Work, updates


def step(
    optimizer: Transform, grads: Tree, state: Tree, params: Tree, donate: bool = False, **extra: Any
) -> Step:
    """Params and state after an update: ``update`` and ``apply_updates`` in one.

    Args:
        optimizer: the transform.
        grads: tree like the params; it stays the caller's.
        state: what ``optimizer.init`` or the step before gave.
        params: tree of float or complex leaves.
        donate: whether ``state`` and ``params`` are given up: their memory is used again where
            nothing is differentiated, mapped or compiled, and reading them afterwards raises. No
            tree that's still needed may share memory with them.
        extra: keywords that some transforms read, such as ``value=``.

    Returns:
        ``(params, state)``, as ``apply_updates(params, updates)`` and ``update`` give them, in some
        cases differently rounded.

    Raises:
        ValueError: names or shapes differ, or the state belongs to another optimizer.
        TypeError: an argument is of another kind, or dtypes differ.
    """
    require_transform("step", "optimizer", optimizer)
    require_flag("step", "donate", donate)
    if not isinstance(optimizer.update, Leafwise | Chained):
        changes, after = updated(optimizer, grads, state, params, extra)
        (p, u), structure = aligned("step", params, updates=changes)
    else:
        done = _fused(optimizer.update, grads, state, params, donate)
        if done is not None:
            return done
        p, structure = parameters("step", params)
        g = like("step", "grads", grads, p, structure)
        work = Work(p, structure)
        u, after = updates(optimizer.update, g, state, work)
    if not donate:
        return unflatten(structure, [torch.add(x, y) for x, y in zip(p, u, strict=True)]), after
    inplace = donate and movable(params) and bool(p) and _free(p, u)
    if inplace and _apart(p, [*u, *leaves(after)]):
        torch._foreach_add_(p, u)
        changed = moved("step", params)
    else:
        changed = unflatten(structure, [torch.add(x, y) for x, y in zip(p, u, strict=True)])
        moved("step", params)
    after = moved("step", after)  # before the old state, with which it may share sub-trees
    moved("step", state)
    return changed, after


def _free(*columns: Leaves) -> bool:
    """Whether memory may be written to: nothing is differentiated, mapped or compiled."""
    if transformed():
        return False
    graph = torch.is_grad_enabled()
    return not (graph and any([x.requires_grad for column in columns for x in column]))


def _apart(own: Leaves, others: Leaves) -> bool:
    """Whether leaves are dense, and no two of them share memory, nor one and another tensor."""
    if not all(map(Tensor.is_contiguous, own)) or any(map(Tensor.is_neg, own)):
        return False
    stored = {x.untyped_storage().data_ptr() for x in own}
    apart = stored.isdisjoint([x.untyped_storage().data_ptr() for x in others])
    return apart and _disjoint(own, own)


def _disjoint(every: Leaves, sized: Leaves) -> bool:
    """Whether no two dense leaves share memory; those of ``sized`` have all sizes that occur."""
    starts = sorted(map(Tensor.data_ptr, every))
    largest = max(map(Tensor.numel, sized)) * every[0].element_size()
    if min(map(sub, starts[1:], starts), default=largest) >= largest:
        return True
    spans = sorted([(x.data_ptr(), x.data_ptr() + x.nbytes) for x in every if x.numel()])
    return all([end <= start for (_, end), (start, _) in pairwise(spans)])


def _fused(update: Any, grads: Tree, state: Tree, params: Tree, donate: bool) -> Step | None:
    """The step by a fused kernel, or None where there's none that says the same."""
    first, end = _tail(update)
    if first == end:
        return None
    tail = update.flat[first:end]
    require_tree("step", "params", params)
    p, structure = flatten(params)
    g = named_like("step", "grads", grads, structure)
    if not p or (torch.is_grad_enabled() and g[0].requires_grad):
        return None
    held = update.held(state)
    found: list[dict[str, Any]] = []
    slots: dict[str, Leaves] = {}
    for stage, own in zip(tail, held[first:end], strict=True):
        own = dict(zip(stage.names, parts(stage.fn, own, *stage.names), strict=True))
        for name in stage.slots:
            slots[name] = named_like("step", f"state[{name!r}]", own[name], structure)
        require_count(stage.fn, own)
        found.append(own)
    hyper = _numbers(tail, found, p)
    written = [*p, *chain.from_iterable(slots.values())]
    if hyper is None or not _fits(p, [*written, *g], [g, *slots.values()]):
        return None
    if donate and not (movable(params) and all(map(Tensor.is_contiguous, written))):
        return None
    g = _dense(g)
    if donate and not _disjoint([*written, *g], p):
        return None  # what is in there twice would be written to twice
    after: list[TensorDict] = []
    if first:
        work = Work(p, structure)
        for stage, own in zip(update.flat[:first], held[:first], strict=True):
            g, own = stage.on_leaves(g, own, work)
            after.append(own)
        if not _fits(p, [*p, *g], []):
            return None
        g = _dense(g)
    if not donate:
        p, slots = _copies(p), {name: _copies(own) for name, own in slots.items()}
    counts = {
        stage.fn: own["count"] + 1 for stage, own in zip(tail, found, strict=True) if "count" in own
    }
    _KERNELS[tuple([stage.kernel for stage in tail])](p, g, slots, counts, hyper)
    for stage, own in zip(tail, found, strict=True):
        trees: dict[str, Any] = {"count": counts[stage.fn]} if "count" in own else {}
        for name in stage.slots:
            trees[name] = moved("step", own[name]) if donate else unflatten(structure, slots[name])
        after.append(new(trees))
    after += held[end:]
    if donate:
        moved("step", state)
    return moved("step", params) if donate else unflatten(structure, p), update.whole(after)


def _tail(update: Any) -> tuple[int, int]:
    """Where in a chain the last stages begin and end that one kernel stands for."""
    stages = update.flat if isinstance(update, Chained) else []
    end = len(stages)
    while end and stages[end - 1].fn == "identity":
        end -= 1
    for size in (3, 2, 1):
        first = max(end - size, 0)
        if tuple([stage.kernel for stage in stages[first:end]]) in _KERNELS:
            return first, end
    return end, end


def _fits(p: Leaves, every: Leaves, slots: list[Leaves]) -> bool:
    """Whether a kernel takes leaves: one plain dtype, alike, and nothing recorded."""
    dtype = p[0].dtype
    if dtype not in (torch.float32, torch.float64) or p[0].device.type not in ("cpu", "cuda"):
        return False
    if transformed() or not all([all(map(Tensor.is_same_size, x, p)) for x in slots]):
        return False
    graph = torch.is_grad_enabled()
    if [x for x in every if x.dtype is not dtype or (graph and x.requires_grad)]:
        return False
    return not any(map(Tensor.is_neg, every))


def _dense(g: Leaves) -> Leaves:
    """Gradients row by row: those of a matrix product come transposed."""
    return g if all(map(Tensor.is_contiguous, g)) else [x.contiguous() for x in g]


def _copies(own: Leaves) -> Leaves:
    return [x.clone(memory_format=torch.contiguous_format) for x in own]


def _numbers(tail: list[Leafwise], found: list[dict[str, Any]], p: Leaves) -> dict[str, Any] | None:
    """Hyper-parameters at this step, or None where a kernel doesn't take them as they are."""
    hyper: dict[str, Any] = {}
    for stage, own in zip(tail, found, strict=True):
        for name, value in stage.hyper.items():
            value = at_count(stage.fn, name, value, own.get("count", p[0]))
            if name == "lr":
                require_hyper(stage.fn, name, value, low=0, schedule=False)
            if isinstance(value, Tensor):
                learned = value.requires_grad and torch.is_grad_enabled()
                if name != "lr" or learned or not p or value.device != p[0].device:
                    return None
                value = value.float() if value.is_cuda else value
            hyper[name] = value
    if hyper.get("momentum") == 0:  # the kernel would have no buffer then
        return None
    return hyper


def _adam(
    decoupled: bool,
    p: Leaves,
    g: Leaves,
    slots: dict[str, Leaves],
    counts: Mapping[str, Tensor],
    hyper: Any,
) -> None:
    run = torch._fused_adamw_ if decoupled else torch._fused_adam_
    largest = slots.get("nu_max", [])
    count = counts["scale_by_amsgrad" if largest else "scale_by_adam"]
    steps = [count.float()] * len(p)
    numbers: dict[str, Any] = {"beta1": hyper["b1"], "beta2": hyper["b2"], "eps": hyper["eps"]}
    numbers |= {"lr": hyper["lr"], "weight_decay": hyper.get("weight_decay", 0.0)}
    options: dict[str, Any] = {"amsgrad": bool(largest), "maximize": False}
    run(p, g, slots["mu"], slots["nu"], largest, steps, **numbers, **options)


def _sgd(
    nesterov: bool,
    p: Leaves,
    g: Leaves,
    slots: dict[str, Leaves],
    counts: Mapping[str, Tensor],
    hyper: Any,
) -> None:
    numbers: dict[str, Any] = {"lr": hyper["lr"], "weight_decay": hyper.get("weight_decay", 0.0)}
    numbers |= {"momentum": hyper.get("momentum", 0.0), "dampening": 0.0}
    options: dict[str, Any] = {"nesterov": nesterov, "maximize": False, "is_first_step": False}
    torch._fused_sgd_(p, g, slots.get("trace", []), **numbers, **options)


_KERNELS: dict[tuple[str, ...], Callable[..., None]] = {
    **{(kind, "rate"): partial(_adam, False) for kind in ("adam", "amsgrad")},
    **{("decay", kind, "rate"): partial(_adam, False) for kind in ("adam", "amsgrad")},
    **{(kind, "decay", "rate"): partial(_adam, True) for kind in ("adam", "amsgrad")},
    ("rate",): partial(_sgd, False),
    ("decay", "rate"): partial(_sgd, False),
    **{(kind, "rate"): partial(_sgd, kind == "nesterov") for kind in ("momentum", "nesterov")},
    **{("decay", k, "rate"): partial(_sgd, k == "nesterov") for k in ("momentum", "nesterov")},
}
