"""Tensors that are shared inside vmap, brought onto its axes so that they can be written to."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]


def lifted(values: Sequence[Tensor], others: Iterable[Tensor]) -> list[Tensor]:
    """Copies that are on every axis of vmap that one of the others is on.

    What is mapped can't be written into what is shared: the copies can take it.

    Args:
        values: tensors.
        others: tensors that go into the same computation.

    Returns:
        The copies, of the same values and gradients.
    """
    found: dict[int, Tensor] = {}
    for x in others:
        if torch.compiler.is_compiling():  # which doesn't know levels
            if _functorch.is_batchedtensor(x):
                found[len(found)] = x
            continue
        while _functorch.is_functorch_wrapped_tensor(x):
            if _functorch.is_batchedtensor(x):
                found.setdefault(_functorch.maybe_get_level(x), x)
            x = _functorch.get_unwrapped(x)
    flags = [torch.zeros_like(x.detach(), dtype=torch.bool).any() for x in found.values()]
    if not flags:
        return [value.clone() for value in values]
    flag = flags[0]
    for other in flags[1:]:
        flag = flag | other
    return [torch.where(flag, value, value.clone()) for value in values]


def is_transformed(x: Tensor) -> bool:
    """Whether a transform of torch.func is at work on a tensor; compiled code sees vmap alone."""
    if torch.compiler.is_compiling():
        return _functorch.is_batchedtensor(x)
    return _functorch.is_functorch_wrapped_tensor(x)


def bare(x: Tensor) -> Tensor:
    """The tensor that is below all transforms of torch.func."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x


def memory(x: Tensor) -> int:
    """What tells the memory of a tensor from another's."""
    x = bare(x)
    try:
        return x.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, or otherwise without one
        return id(x)


def state(x: Tensor) -> tuple[int, int]:
    """What changes when a tensor is written to: how often it was, and where its values are."""
    return bare(x)._version, memory(x)
