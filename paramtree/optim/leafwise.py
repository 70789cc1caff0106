"""What transforms are written with: leaves side by side, arithmetic on lists of them, and checks.

Arithmetic goes leaf by leaf: ``torch._foreach_*`` fails for a factor that requires grad and under
vmap, and for one multiplication or addition it gains nothing that could be measured.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..tree import Structure, entries, flatten, require_same, require_tree, show_path, unflatten

Hyper = float | Tensor
Leaves = list[Tensor] | tuple[Tensor, ...]


def aligned(fn: str, params: Any, **others: Any) -> tuple[list[list[Tensor]], Structure]:
    """Leaves of the params and of other trees with the same names, and the params' structure.

    Args:
        fn: name of the function that was called, for the message.
        params: tree of float leaves.
        others: trees under the names that the message gives them, such as ``grads``.

    Returns:
        ``([params' leaves, others' leaves...], structure)``, in the order of ``tree.flatten``.

    Raises:
        ValueError: names or shapes differ from the params'.
        TypeError: an argument isn't a tree, a leaf isn't of a float dtype, or dtypes differ.
    """
    require_tree(fn, "params", params)
    leaves, structure = flatten(params)
    for at, leaf in enumerate(leaves):
        if not leaf.is_floating_point():
            what = f"{leaf.dtype}, expected a float dtype; tree.partition takes it out"
            raise TypeError(f"{fn}: params at {show_path(structure.paths()[at])} is {what}")
    columns = [leaves]
    for name, other in others.items():
        require_tree(fn, name, other)
        column, own = flatten(other)
        require_same(fn, (name, own), ("params", structure))
        for at, (got, wanted) in enumerate(zip(column, leaves, strict=True)):
            if got.shape != wanted.shape or got.dtype != wanted.dtype:
                _refuse(f"{fn}: {name} at {show_path(structure.paths()[at])}", got, wanted)
        columns.append(column)
    return columns, structure


def _refuse(where: str, got: Tensor, wanted: Tensor) -> None:
    if got.shape != wanted.shape:
        shapes = f"{tuple(got.shape)}, expected {tuple(wanted.shape)}"
        raise ValueError(f"{where} has shape {shapes} (from params)")
    raise TypeError(f"{where} is {got.dtype}, expected {wanted.dtype} (from params)")


def parts(fn: str, state: Any, *names: str) -> list[Any]:
    """Entries of a state by name.

    Args:
        fn: name of the function that was called, for the message.
        state: what ``init`` gave.
        names: what to look up.

    Returns:
        The entries, in the order of the names.

    Raises:
        ValueError: one isn't there.
        TypeError: the state isn't a tree.
    """
    require_tree(fn, "state", state)
    found = entries(state)
    for name in names:
        if name not in found:
            held = ", ".join([repr(other) for other in found]) or "nothing"
            raise ValueError(
                f"{fn}: the state has no {name!r} (it holds {held}), so it belongs to another "
                "optimizer; init(params) makes the right one"
            )
    return [found[name] for name in names]


def zeros(structure: Structure, leaves: Leaves) -> TensorDict:
    """Tree of zeros like the params.

    Args:
        structure: structure of the params.
        leaves: their leaves.

    Returns:
        The tree.
    """
    return unflatten(structure, [torch.zeros_like(leaf) for leaf in leaves])


def zero_count(leaves: Leaves) -> Tensor:
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


def cast(value: Hyper, leaf: Tensor) -> Hyper:
    """Hyper-parameter in a leaf's dtype, so that it doesn't change that of the result.

    Args:
        value: float or 0-d tensor.
        leaf: the leaf that it meets.

    Returns:
        A float as it is, a tensor in the leaf's dtype.
    """
    return value.to(leaf.dtype) if isinstance(value, Tensor) else value


def scaled(leaves: Leaves, factor: Hyper) -> Leaves:
    """``factor x`` for each leaf.

    Args:
        leaves: the leaves.
        factor: float or 0-d tensor.

    Returns:
        New leaves.
    """
    return [x * cast(factor, x) for x in leaves]


def added(left: Leaves, right: Leaves, factor: Hyper = 1) -> Leaves:
    """``x + factor y`` for each pair of leaves.

    Args:
        left: leaves x.
        right: leaves y.
        factor: float or 0-d tensor.

    Returns:
        New leaves.
    """
    pairs = zip(left, right, strict=True)
    if isinstance(factor, Tensor):
        return [x + cast(factor, x) * y for x, y in pairs]
    return [torch.add(x, y, alpha=factor) for x, y in pairs]


def alike(*columns: Leaves) -> bool:
    """Whether leaves may be handled all at once: nothing is differentiated, mapped or compiled.

    Args:
        columns: lists of the leaves that take part.

    Returns:
        False where ``torch._foreach_*`` would be wrong, unknown or without work, and where leaves
        differ in dtype.
    """
    if torch.compiler.is_compiling() or len({leaf.dtype for leaf in columns[0]}) != 1:
        return False
    forward = torch.autograd.forward_ad._current_level >= 0
    if forward or torch._C._functorch.maybe_current_level() is not None:  # pyright: ignore
        return False
    if not torch.is_grad_enabled():
        return True
    return not any([leaf.requires_grad for leaves in columns for leaf in leaves])


def require_hyper(
    fn: str, name: str, value: Any, low: float | None = None, below: float = float("inf")
) -> None:
    """Refuse what is not a hyper-parameter; a tensor's value may be traced, so it isn't looked at.

    Args:
        fn: name of the function that was called, for the message.
        name: name of its argument.
        value: what came in.
        low: the least number that is welcome, None for any.
        below: the bound that a number stays below.

    Raises:
        ValueError: a tensor isn't 0-d, or a number is out of range.
        TypeError: it's neither a number nor a float tensor.
    """
    if isinstance(value, Tensor):
        if value.ndim:
            shape = f"shape {tuple(value.shape)}, expected a float or a 0-d tensor"
            raise ValueError(f"{fn}: {name} has {shape}; vmap maps over one value per task")
        if not value.is_floating_point():
            raise TypeError(f"{fn}: {name} is {value.dtype}, expected a float dtype")
    elif not isinstance(value, int | float) or isinstance(value, bool):
        kind = type(value).__name__
        raise TypeError(f"{fn}: {name} is a {kind}, expected a float or a 0-d tensor")
    elif not (float("-inf") if low is None else low) <= value < below:
        least = "a finite number" if low is None else f"at least {low}"
        raise ValueError(f"{fn}: {name} is {value}, expected {least} and below {below}")
