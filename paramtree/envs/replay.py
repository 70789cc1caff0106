"""Memory of steps that were played: a ring of the last ones, as a tree that goes in and comes out.

    >>> td, key = new({"reward": torch.ones(8)}, [8]), rng.key(0)
    >>> replay = replay_buffer(10_000)
    >>> memory = replay.init(td)
    >>> memory = replay.add(memory, td, donate=True)
    >>> replay.sample(memory, key, 256).batch_size
    torch.Size([256])

A memory stacks, maps over tasks and seeds, and is saved like any other tree.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from .. import rng
from ..autodiff.levels import transformed
from ..tree import (
    entries,
    flatten,
    leaves,
    movable,
    moved,
    new,
    require_same,
    require_tree,
    show_path,
    unflatten,
)
from .gridlevel import readable


class ReplayBuffer(NamedTuple):
    """Three pure functions that make up a replay buffer.

    Attributes:
        init: ``init(td) -> memory``, an empty one for steps like those of a td ``[*B]``, whose
            numbers don't matter: ``steps``, a tree of batch size ``[capacity]``, and ``count``,
            how many steps have been added.
        add: ``add(memory, td, donate=False) -> memory`` with the steps of a td ``[*B]``, the oldest
            ones gone where there is no room. With ``donate`` the memory is given up: it's written
            to where nothing is differentiated, mapped or compiled, not copied, and reading it
            afterwards raises.
        sample: ``sample(memory, key, n) -> td`` of n steps ``[n]``, each any one that is there,
            uniformly and independently; keys ``[*batch, 2]`` give ``[*batch, n]``.
    """

    init: Callable[[TensorDictBase], TensorDict]
    add: Callable[..., TensorDict]
    sample: Callable[[TensorDict, Tensor, int], TensorDict]


def replay_buffer(capacity: int) -> ReplayBuffer:
    """Memory of the last steps, for algorithms that learn from old ones.

    What a td has besides its steps' own entries, such as a ``mask`` of those that count, is kept
    and comes back with them.

    Args:
        capacity: how many steps are kept, at least 1.

    Returns:
        The buffer. Its functions raise a ValueError where names or shapes aren't those that the
        memory was made for, or it's sampled while it's empty, and a TypeError for other dtypes.

    Raises:
        ValueError: ``capacity`` is below 1.
        TypeError: it isn't an int.
    """
    if isinstance(capacity, bool) or not isinstance(capacity, int):
        kind = type(capacity).__name__
        raise TypeError(f"replay_buffer: capacity is a {kind}, expected an int")
    if capacity < 1:
        raise ValueError(f"replay_buffer: capacity is {capacity}, expected at least 1")

    def init(td: TensorDictBase) -> TensorDict:
        require_tree("replay_buffer.init", "td", td)
        steps = _rows(td, lambda x: x.new_zeros((capacity, *x.shape[td.ndim :])), (capacity,))
        count = torch.zeros((), dtype=torch.int64, device=next(iter(leaves(td))).device)
        return new({"steps": steps, "count": count})

    def add(memory: TensorDict, td: TensorDictBase, donate: bool = False) -> TensorDict:
        own = _entries("replay_buffer.add", memory)
        require_tree("replay_buffer.add", "td", td)
        (old, structure), (fresh, other) = flatten(own["steps"]), flatten(td)
        require_same("replay_buffer.add", ("the memory", structure), ("the td", other))
        _require_like(structure, old, fresh, td.ndim)
        total = td.batch_size.numel()
        fresh = [x.reshape(total, *x.shape[td.ndim :])[-capacity:] for x in fresh]
        kept = min(total, capacity)
        place = torch.arange(total - kept, total, device=own["count"].device)
        place, count = (own["count"] + place) % capacity, own["count"] + total
        recorded = torch.is_grad_enabled() and any([x.requires_grad for x in [*old, *fresh]])
        if donate and movable(memory) and not (recorded or transformed()):
            for x, rows in zip(old, fresh, strict=True):
                x.index_copy_(0, place, rows)
            return new({"steps": moved("replay_buffer.add", memory)["steps"], "count": count})
        pairs = zip(old, fresh, strict=True)
        steps = unflatten(structure, [x.index_copy(0, place, rows) for x, rows in pairs])
        if donate:
            moved("replay_buffer.add", memory)
        return new({"steps": steps, "count": count})

    def sample(memory: TensorDict, key: Tensor, n: int) -> TensorDict:
        own = _entries("replay_buffer.sample", memory)
        count = own["count"]
        if not count.is_meta and readable(count) and not count:
            raise ValueError("replay_buffer.sample: the memory is empty, expected steps in it")
        shape = (*key.shape[:-1], n)
        index = rng.randint(key, shape, 0, count.clamp(max=capacity))
        return _rows(own["steps"], lambda x: x[index], shape)

    return ReplayBuffer(init, add, sample)


def _rows(td: TensorDictBase, change: Callable[[Tensor], Tensor], size: tuple[int, ...]) -> Any:
    """Tree of changed leaves, all of its levels of one batch size."""
    rows = {
        name: _rows(x, change, size) if isinstance(x, TensorDictBase) else change(x)
        for name, x in entries(td).items()
    }
    return new(rows, size)


def _entries(fn: str, memory: TensorDict) -> dict[str, Any]:
    require_tree(fn, "memory", memory)
    own = entries(memory)
    if own.keys() != {"steps", "count"}:
        got = ", ".join(own) or "nothing"
        raise ValueError(f"{fn}: memory holds {got}, expected it as init gives it")
    return own


def _require_like(structure: Any, old: list[Tensor], fresh: list[Tensor], ndim: int) -> None:
    for i, (x, row) in enumerate(zip(old, fresh, strict=True)):
        if x.shape[1:] != row.shape[ndim:] or x.dtype != row.dtype:
            path = show_path(structure.paths()[i])
            got = f"{row.dtype} of shape {tuple(row.shape[ndim:])}"
            wanted = f"{x.dtype} of shape {tuple(x.shape[1:])} (from the memory)"
            raise (ValueError if x.dtype == row.dtype else TypeError)(
                f"replay_buffer.add: a step's {path} is {got}, expected {wanted}"
            )
