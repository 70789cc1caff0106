"""Tensors that a function closes over, made arguments of it.

A rule for derivatives (``torch.autograd.Function``) knows the derivatives and the batch axes of its
arguments only. So a function that it calls is first run once to find which tensors it uses that it
wasn't given, and is then called with stand-ins for them. Those that carry neither a graph nor a
transform of torch.func need none.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.overrides import TorchFunctionMode

from ..tree import flatten, unflatten
from ._check import Leaves

Flat = Callable[[Leaves, Leaves], Leaves]


def captured(fn: Flat, x: Leaves, inputs: Leaves) -> Leaves:
    """Tensors that a function uses beside its arguments, and that derivatives or maps run through.

    Args:
        fn: pure function of two lists of tensors.
        x: the first.
        inputs: the second.

    Returns:
        The tensors themselves.

    Raises:
        ValueError: one that requires grad can't be replaced by a stand-in.
    """
    constants = [leaf.detach() for leaf in inputs]
    recorder = _Recorder([*x, *constants])
    with recorder:
        out = fn(x, constants)
    found = [leaf for leaf in recorder.found if _is_transformed(leaf) or leaf.requires_grad]
    if any([is_tracked(leaf) for leaf in out]):
        cut = [leaf.detach() for leaf in found]
        left = with_captured(fn, found, len(inputs))(x, [*constants, *cut])
        if any([is_tracked(leaf) for leaf in left]):
            raise ValueError(
                "optimality depends on a tensor that requires grad in a way that hides it, as in "
                "grad(f)(tensor); pass the tensor as an argument"
            )
    return found


def with_captured(fn: Flat, hidden: Leaves, n: int) -> Flat:
    """Function whose second list goes on, behind n tensors, with stand-ins for captured ones.

    Args:
        fn: the function.
        hidden: what ``captured`` found.
        n: length of the second list that ``fn`` takes.

    Returns:
        The function.
    """
    if not hidden:
        return fn

    def replaced(x: Leaves, inputs: Leaves) -> Leaves:
        with _Replacer(hidden, inputs[n:]):
            return fn(x, inputs[:n])

    return replaced


def is_tracked(x: Tensor) -> bool:
    """Whether a tensor requires grad, at any level of the transforms around it."""
    while not x.requires_grad:
        if not _is_transformed(x):
            return False
        x = _functorch.get_unwrapped(x)
    return True


def _is_transformed(x: Tensor) -> bool:
    return _functorch.maybe_get_level(x) > 0


class _Recorder(TorchFunctionMode):
    """Notes tensors that no call made; all that it saw stays alive, so that ids stay true."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.known = {id(x): x for x in known}
        self.found: Leaves = []
        self.level = _functorch.maybe_current_level() or 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in flatten((args, kwargs))[0]:
            if id(x) not in self.known:
                self.known[id(x)] = x
                if _functorch.maybe_get_level(x) <= self.level:  # deeper ones were made inside
                    self.found.append(x)
        out = func(*args, **(kwargs or {}))
        self.known.update({id(x): x for x in flatten(out)[0]})
        return out


class _Replacer(TorchFunctionMode):
    """Gives calls other tensors in the place of some."""

    def __init__(self, hidden: Leaves, instead: Leaves) -> None:
        super().__init__()
        self.instead = {id(x): y for x, y in zip(hidden, instead, strict=True)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, structure = flatten((args, kwargs))
        if any([id(x) in self.instead for x in leaves]):
            leaves = [self.instead.get(id(x), x) for x in leaves]
            args, kwargs = unflatten(structure, leaves)
        return func(*args, **(kwargs or {}))
