"""One call of a module: its arguments, a copy of it that runs, and what comes out."""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.utils import parametrize

from .. import tree
from ..autodiff.levels import transformed
from .batching import lifted, memory, state
from .guard import Guard
from .snapshot import Snapshot


def run(
    shot: Snapshot, params: list[Tensor], buffers: list[Tensor], key: Tensor | None, batch: Any
) -> tuple[Any, list[Tensor], Tensor | None]:
    """Output, buffers and key after a call.

    Args:
        shot: the module.
        params: its parameters.
        buffers: its buffers.
        key: what it draws from.
        batch: its arguments.

    Returns:
        ``(out, buffers, key)``; a buffer that the module left alone is the tensor that was given.
    """
    if shot.is_parametrized and parametrize._cache_enabled:
        raise ValueError(
            "from_module: the module has parametrizations and the call is inside "
            "torch.nn.utils.parametrize.cached, which would give it the values of another call"
        )
    given = [params, [*buffers, *([] if key is None else [key])], batch]
    inside = transformed()
    lift = inside and bool(shot.writes)
    try:
        return _run(shot, params, buffers, key, batch, inside, given if lift else None)
    except RuntimeError:  # of whatever kind, where what is mapped is written into what is shared
        if lift or not (inside and shot.copied) or torch.compiler.is_compiling():
            raise
    return _run(shot, params, buffers, key, batch, inside, given)


def _run(
    shot: Snapshot,
    params: list[Tensor],
    buffers: list[Tensor],
    key: Tensor | None,
    batch: Any,
    guarded: bool,
    mapped: Any,
) -> tuple[Any, list[Tensor], Tensor | None]:
    inside = list(buffers)
    if shot.copied:
        originals = [buffers[i] for i in shot.copied]
        with torch.inference_mode(False):  # inside of it, nothing tells what is written
            others = [] if mapped is None else tree.leaves(mapped)
            copies = lifted(originals, others) if others else [x.clone() for x in originals]
        for i, x in zip(shot.copied, copies, strict=True):
            inside[i] = x
    states = []
    if shot.copied and not torch.compiler.is_compiling():
        states = [state(inside[i]) for i in shot.copied]
    modules = shot.make(params, inside)
    args, kwargs, taken = _arguments(modules[0], batch, shot.overwrites)
    guard = Guard(shot, key, modules, params, inside)
    try:
        if guarded or shot.is_guarded or shot.attends:
            with guard:
                out = modules[0](*args, **kwargs)
        else:
            out = modules[0](*args, **kwargs)
    except Exception as error:
        if not torch.compiler.is_compiling():
            _explain(error, guard)
        raise
    if not shot.is_known:
        shot.require_same_params(modules, params)
    after = _after(shot, modules, buffers, inside, states, guard)
    return _given_back(out, taken, guard.written), after, guard.after


def _explain(error: Exception, guard: Guard) -> None:
    """Adds to an error which sub-module it is from, and what its parameters are like."""
    line, found = error.__traceback__, None
    while line is not None:
        found = guard.place(line.tb_frame) and line.tb_frame or found
        line = line.tb_next
    if found is not None:
        own = found.f_locals["self"]._parameters.items()
        shapes = [f"{name} {tuple(x.shape)}" for name, x in own if x is not None]
        text = f" with parameters {', '.join(shapes)}" if shapes else ""
        where = f"from_module: in {guard.place(found)} of {guard.shot.name}{text}"
        if str(error).startswith("from_module: "):  # which says where
            return
        if type(error) in (RuntimeError, TypeError, ValueError):
            error.args = (f"{error}; {where}",)
        else:
            error.add_note(where)


def _after(
    shot: Snapshot,
    modules: Any,
    given: list[Tensor],
    inside: list[Tensor],
    states: list[tuple[int, int]],
    guard: Guard,
) -> list[Tensor]:
    """Buffers after the run of a copy, the ones that were given where they are unchanged."""
    if not shot.copied and shot.is_known:
        return given
    after = shot.buffers_after(modules, inside)
    for at, i in enumerate(shot.copied):
        if after[i] is inside[i]:
            changed = i in shot.writes or any([x is inside[i] for x in guard.averages])
            if not changed and states:
                changed = state(inside[i]) != states[at] or memory(inside[i]) in guard.written
            elif not changed:  # compiled code can't tell where it was
                changed = guard.wrote
            after[i] = inside[i] if changed else given[i]
    return after


def _arguments(
    module: Any, batch: Any, overwrites: bool
) -> tuple[Sequence[Any], dict[str, Any], list[Any]]:
    """Positional and keyword arguments, and the copies of a TensorDict's entries among them."""
    taken: list[tuple[Any, Tensor, Tensor, Any]] = []
    if type(batch) is Tensor:
        return (batch.clone() if overwrites else batch,), {}, taken
    keys = getattr(module, "in_keys", None) if isinstance(batch, TensorDictBase) else None
    batch = _own(batch, overwrites, keys, taken)
    if type(batch) is dict:
        return (), batch, taken
    if type(batch) is not tuple:
        return (batch,), {}, taken
    if batch and type(batch[-1]) is dict:
        return batch[:-1], batch[-1], taken
    return batch, {}, taken


def _own(value: Any, overwrites: bool, keys: Any, taken: list[Any]) -> Any:
    """What a module may write to: copies of tensors where it may overwrite them, and of trees."""
    if isinstance(value, Tensor):
        return value.clone() if overwrites else value
    if isinstance(value, TensorDictBase):
        fresh = value.copy()
        for key in list(fresh.keys(True, True)) if keys is None else keys:
            entry = fresh.get(key, None) if overwrites else None
            if isinstance(entry, Tensor):
                with torch.inference_mode(False):
                    own = entry.clone()
                fresh.set(key, own)
                if not torch.compiler.is_compiling():
                    taken.append((key, entry, own, state(own)))
        return fresh
    kind = type(value)
    if kind is dict:
        return {name: _own(item, overwrites, keys, taken) for name, item in value.items()}
    if isinstance(value, (tuple, list)):  # noqa: UP038 (compiled code knows this form)
        items = [_own(item, overwrites, keys, taken) for item in value]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    return value


def _given_back(out: Any, taken: list[Any], written: set[int]) -> Any:
    """Output whose trees are locked, with the batch's own entries where they were only read."""
    if isinstance(out, Tensor):
        return out
    if isinstance(out, TensorDictBase):
        if taken and not out.is_locked:
            for key, entry, fresh, before in taken:
                unchanged = state(fresh) == before and memory(fresh) not in written
                if out.get(key, None) is fresh and unchanged:
                    out.set(key, entry)
        return tree.lock(out)
    if type(out) is dict:
        return {name: _given_back(item, [], written) for name, item in out.items()}
    if type(out) in (tuple, list):
        return type(out)([_given_back(item, [], written) for item in out])
    return out
