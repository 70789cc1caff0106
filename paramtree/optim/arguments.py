"""What transforms read and refuse: hyper-parameters, entries of states, trees side by side."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ..tree import (
    Structure,
    entries,
    flatten,
    leaves_like,
    require_same,
    require_tree,
    show_path,
)

Hyper = float | Tensor
Schedule = Callable[[Tensor], Hyper]
Tree = TensorDictBase


def aligned(fn: str, params: Any, **others: Any) -> tuple[list[list[Tensor]], Structure]:
    """Leaves of the params and of other trees with the same names, and the params' structure.

    Args:
        fn: name of the function that was called, for the message.
        params: tree of float or complex leaves.
        others: trees under the names that the message gives them, such as ``grads``.

    Returns:
        ``([params' leaves, others' leaves...], structure)``, in the order of ``tree.flatten``.

    Raises:
        ValueError: names or shapes differ from the params'.
        TypeError: an argument isn't a tree, a leaf isn't of a float or complex dtype, or dtypes
            differ.
    """
    leaves, structure = parameters(fn, params)
    columns = [leaves]
    columns += [like(fn, name, other, leaves, structure) for name, other in others.items()]
    return columns, structure


def like(fn: str, name: str, tree: Any, leaves: list[Tensor], structure: Structure) -> list[Tensor]:
    """Leaves of a tree like the params.

    Args:
        fn: name of the function that was called, for the message.
        name: what the message calls the tree.
        tree: the tree.
        leaves: leaves of the params.
        structure: structure of the params.

    Returns:
        The leaves, in the params' order.

    Raises:
        ValueError: names or shapes differ.
        TypeError: it isn't a tree, or dtypes differ.
    """
    column = named_like(fn, name, tree, structure)
    for at, (got, wanted) in enumerate(zip(column, leaves, strict=True)):
        if got.dtype is not wanted.dtype or got.size() != wanted.size():
            refuse_leaf(f"{fn}: {name} at {show_path(structure.paths()[at])}", got, wanted)
    return column


def parameters(fn: str, params: Any) -> tuple[list[Tensor], Structure]:
    """Leaves of the params and their structure.

    Args:
        fn: name of the function that was called, for the message.
        params: tree of float or complex leaves.

    Returns:
        ``(leaves, structure)``, as ``tree.flatten`` gives them.

    Raises:
        TypeError: it isn't a tree, or a leaf isn't of a float or complex dtype.
    """
    require_tree(fn, "params", params)
    leaves, structure = flatten(params)
    for dtype in {leaf.dtype for leaf in leaves}:
        if not dtype.is_floating_point and not dtype.is_complex:
            path = show_path(structure.paths()[[leaf.dtype for leaf in leaves].index(dtype)])
            what = f"{dtype}, expected a float dtype; tree.partition takes it out"
            raise TypeError(f"{fn}: params at {path} is {what}")
    return leaves, structure


def named_like(fn: str, name: str, tree: Any, structure: Structure) -> list[Tensor]:
    """Leaves of a tree that has the names of the params.

    Args:
        fn: name of the function that was called, for the message.
        name: what the message calls the tree.
        tree: the tree.
        structure: structure of the params.

    Returns:
        The leaves, in the params' order.

    Raises:
        ValueError: names differ.
        TypeError: it isn't a tree.
    """
    leaves = leaves_like(structure, tree)
    if leaves is None:
        require_tree(fn, name, tree)
        require_same(fn, (name, flatten(tree)[1]), ("params", structure))
    assert leaves is not None
    return leaves


def refuse_leaf(where: str, got: Tensor, wanted: Tensor) -> None:
    """Raise for a leaf that doesn't go with the params' own.

    Args:
        where: function, argument and path, for the message.
        got: the leaf.
        wanted: the leaf of the params, or one of the shape and dtype that it should have.

    Raises:
        ValueError: the shapes differ.
        TypeError: they don't, so it's the dtypes.
    """
    if got.shape != wanted.shape:
        shapes = f"{tuple(got.shape)}, expected {tuple(wanted.shape)}"
        raise ValueError(f"{where} has shape {shapes} (from params)")
    raise TypeError(f"{where} is {got.dtype}, expected {wanted.dtype} (from params)")


def parts(fn: str, state: Any, *names: str) -> list[Any]:
    """Entries of a state by name.

    Args:
        fn: name of the function that was called, for the message.
        state: what ``init`` gave.
        names: what to look up; all that there should be.

    Returns:
        The entries, in the order of the names.

    Raises:
        ValueError: one isn't there, or there are others.
        TypeError: the state isn't a tree.
    """
    require_tree(fn, "state", state)
    found = entries(state)
    if len(found) != len(names) or any([name not in found for name in names]):
        held = ", ".join([repr(other) for other in found]) or "nothing"
        wanted = ", ".join([repr(name) for name in names]) or "nothing"
        raise ValueError(
            f"{fn}: the state holds {held}, expected {wanted}, so it belongs to another "
            "optimizer; init(params) makes the right one"
        )
    return [found[name] for name in names]


def require_count(fn: str, found: Mapping[str, Any]) -> None:
    """Refuse a state whose numbers aren't 0-d, such as one that is stacked by task.

    Args:
        fn: name of the function that was called, for the message.
        found: entries of the state by name; ``count`` among them where there is one.

    Raises:
        ValueError: an entry isn't 0-d.
        TypeError: an entry isn't a tensor, or the count isn't int64.
    """
    count = found.get("count")
    if count is None:
        return
    if not isinstance(count, Tensor):
        kind = type(count).__name__
        raise TypeError(f"{fn}: state['count'] is a {kind}, expected a 0-d int64 tensor")
    if count.ndim:
        shape = f"shape {tuple(count.shape)}, expected ()"
        raise ValueError(f"{fn}: state['count'] has {shape}; vmap maps over stacked states")
    if count.dtype != torch.int64:
        raise TypeError(f"{fn}: state['count'] is {count.dtype}, expected torch.int64")


def require_hyper(
    fn: str,
    name: str,
    value: Any,
    low: float | None = None,
    below: float = float("inf"),
    schedule: bool = True,
) -> None:
    """Refuse what is not a hyper-parameter; a tensor's value may be traced, so it isn't looked at.

    Args:
        fn: name of the function that was called, for the message.
        name: name of its argument.
        value: what came in.
        low: the least number that is welcome, None for any.
        below: the bound that a number stays below.
        schedule: whether a schedule is welcome.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: it's neither a number nor a float tensor, nor a schedule where one is welcome.
    """
    if isinstance(value, Tensor):
        if value.ndim:
            shape = f"shape {tuple(value.shape)}, expected a float or a 0-d tensor"
            raise ValueError(f"{fn}: {name} has {shape}; vmap maps over one value per task")
        if not value.is_floating_point():
            raise TypeError(f"{fn}: {name} is {value.dtype}, expected a float dtype")
    elif schedule and callable(value) and not isinstance(value, type):
        return
    elif not isinstance(value, int | float) or isinstance(value, bool):
        kind = type(value).__name__
        kinds = "a float, a 0-d tensor or a schedule" if schedule else "a float or a 0-d tensor"
        raise TypeError(f"{fn}: {name} is a {kind}, expected {kinds}")
    elif not (float("-inf") if low is None else low) <= value < below:
        least = "a finite number" if low is None else f"at least {low}"
        raise ValueError(f"{fn}: {name} is {value}, expected {least} and below {below}")


def require_flag(fn: str, name: str, value: Any) -> None:
    """Refuse what is neither True nor False.

    Args:
        fn: name of the function that was called, for the message.
        name: name of its argument.
        value: what came in.

    Raises:
        TypeError: it isn't a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{fn}: {name} is a {type(value).__name__}, expected True or False")


def require_int(fn: str, name: str, value: Any, low: int | None = None) -> None:
    """Refuse what is not an integer.

    Args:
        fn: name of the function that was called, for the message.
        name: name of its argument.
        value: what came in.
        low: the least integer that is welcome, None for any.

    Raises:
        ValueError: it's smaller.
        TypeError: it's of another kind.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{fn}: {name} is a {type(value).__name__}, expected an int")
    if low is not None and value < low:
        raise ValueError(f"{fn}: {name} is {value}, expected at least {low}")


def given(value: Any) -> bool:
    """Whether a hyper-parameter is anything but the number 0.

    Args:
        value: float, tensor or schedule.

    Returns:
        False for 0 alone; a tensor's value isn't looked at.
    """
    return not isinstance(value, int | float) or value != 0


def zero_count(leaves: list[Tensor]) -> Tensor:
    """Step count of a fresh state.

    Args:
        leaves: leaves of the params, on whose device it lives.

    Returns:
        0-d int64 tensor.
    """
    return torch.zeros((), dtype=torch.int64, device=leaves[0].device if leaves else None)


def wide(count: Tensor) -> Tensor:
    """Count as a float that is wide enough for ``1 - b ** count`` to keep its digits.

    Args:
        count: int64.

    Returns:
        The same shape in float64, or float32 where the device has nothing wider.
    """
    return count.to(torch.float32 if count.device.type == "mps" else torch.float64)


def at_count(fn: str, name: str, value: Any, count: Tensor) -> Hyper:
    """A hyper-parameter's value at a step.

    Args:
        fn: name of the function that was called, for the message.
        name: name of its argument.
        value: float, 0-d tensor or schedule.
        count: 0-d int64 count of the updates before this one.

    Returns:
        Float or 0-d tensor.

    Raises:
        ValueError: the schedule gave a tensor that isn't 0-d.
        TypeError: it gave no number.
    """
    if isinstance(value, Tensor) or not callable(value):
        return value
    value = value(count)
    require_hyper(fn, f"what the schedule {name} gave", value, schedule=False)
    return value


def number(value: Hyper, like: Tensor) -> Tensor:
    """A hyper-parameter as a tensor.

    Args:
        value: float or 0-d tensor.
        like: tensor on whose device a float goes.

    Returns:
        A tensor as it is; a float as 0-d float64, or float32 where the device has nothing wider.
    """
    if isinstance(value, Tensor):
        return value
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    return torch.full((), value, dtype=dtype, device=like.device)


def working(leaf: Tensor) -> torch.dtype:
    """The dtype in which sums over steps of a leaf are kept.

    Args:
        leaf: a leaf of float or complex dtype.

    Returns:
        float32 for float16 and bfloat16, else the leaf's own.
    """
    half = leaf.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half else leaf.dtype


def cast(value: Hyper, like: Tensor) -> Hyper:
    """A hyper-parameter in a leaf's real dtype, so that it doesn't change that of the result.

    Args:
        value: float or 0-d tensor.
        like: the leaf that it meets.

    Returns:
        A float as it is; a tensor in float32 for complex64, and so on.
    """
    return value.to(_REAL.get(like.dtype, like.dtype)) if isinstance(value, Tensor) else value


_REAL = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
