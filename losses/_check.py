"""The one checker of kinds, dtypes and shapes, called once at every public door.

It looks at what a tensor is, never at what it holds, so it costs no synchronization and works under
vmap and compile. ``TypeError`` is for kinds and dtypes, ``ValueError`` for names, shapes and
ranges.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

Key = str | tuple[str, ...]


def check_float(function: str, name: str, value: Any) -> Tensor:
    """``value`` as it is, if it is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} is {kind(value)}, expected a floating-point tensor")
    if not value.is_floating_point():
        raise TypeError(
            f"{function}: {name} has dtype {dtype(value)}, expected a floating-point one; "
            f"convert it first, e.g. {name}.float()"
        )
    return value


def check_flag(function: str, name: str, value: Any) -> Tensor:
    """``value`` as it is, if it is a bool tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} is {kind(value)}, expected a bool tensor")
    if value.dtype != torch.bool:
        raise TypeError(
            f"{function}: {name} has dtype {dtype(value)}, expected bool; "
            f"convert it first, e.g. {name}.bool()"
        )
    return value


def check_alike(
    function: str,
    floats: Mapping[str, Any],
    flags: Mapping[str, Any] | None = None,
    wanted: Callable[[torch.Size], Any] = tuple,
) -> torch.Size:
    """The shape ``[...]`` that all tensors share, set by the first of ``floats``."""
    source, first = next(iter(floats.items()))
    shape = check_float(function, source, first).shape
    for check, group in ((check_float, floats), (check_flag, flags or {})):
        for name, value in group.items():
            if check(function, name, value).shape != shape:
                raise ValueError(
                    f"{function}: {name} has shape {tuple(value.shape)}, "
                    f"expected {wanted(shape)} (from {source})"
                )
    return shape


def check_steps(
    function: str, floats: Mapping[str, Any], flags: Mapping[str, Any] | None = None
) -> torch.Size:
    """The shape ``[T, *batch]`` that all tensors share, set by the first of ``floats``."""
    source, first = next(iter(floats.items()))
    shape = check_float(function, source, first).shape
    if not shape:
        raise ValueError(f"{function}: {source} has shape (), expected [T, *batch], time first")
    if shape[0] == 0:
        raise ValueError(f"{function}: {source} has shape {tuple(shape)}, expected T of at least 1")
    return check_alike(function, floats, flags, time_first)


def check_real(
    function: str, name: str, value: Any, low: float = -math.inf, high: float = math.inf
) -> Any:
    """``value`` as it is, if it is a number in [low, high] or a floating-point tensor.

    A tensor's range is not looked at: that would wait for the device, and fail under vmap.
    """
    if isinstance(value, Tensor):
        return check_float(function, name, value)
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise TypeError(f"{function}: {name} is {kind(value)}, expected a float or a tensor")
    if not low <= value <= high:
        wanted = f"at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
        if low == -math.inf:
            wanted = "a number"
        raise ValueError(f"{function}: {name} is {value}, expected {wanted}")
    return value


def check_positive(function: str, name: str, value: Any) -> Any:
    """``value`` as it is, if it is a number above 0 or a floating-point tensor."""
    value = check_real(function, name, value)
    if not isinstance(value, Tensor) and not value > 0:
        raise ValueError(f"{function}: {name} is {value}, expected a number above 0")
    return value


def check_int(function: str, name: str, value: Any, low: int) -> int:
    """``value`` as it is, if it is an int of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {name} is {kind(value)}, expected an int")
    if value < low:
        raise ValueError(f"{function}: {name} is {value}, expected at least {low}")
    return value


def check_scalar(
    function: str, name: str, value: Any, low: float = -math.inf, high: float = math.inf
) -> Any:
    """As ``check_real``, and a tensor has to be 0-d."""
    value = check_real(function, name, value, low, high)
    if isinstance(value, Tensor) and value.dim():
        raise ValueError(f"{function}: {name} has shape {tuple(value.shape)}, expected ()")
    return value


def check_broadcast(
    function: str,
    name: str,
    value: Any,
    shape: torch.Size,
    source: str,
    wanted: Callable[[torch.Size], Any] = tuple,
) -> None:
    """Raises if the tensor ``value`` does not broadcast to ``shape``, which ``wanted`` shows."""
    if isinstance(value, Tensor) and value.shape != shape and value.dim():
        fits = value.dim() <= len(shape) and all(
            n in (1, m) for n, m in zip(reversed(value.shape), reversed(shape), strict=False)
        )
        if not fits:
            raise ValueError(
                f"{function}: {name} has shape {tuple(value.shape)}, expected one that broadcasts "
                f"to {wanted(shape)} (from {source})"
            )


def check_hyper(
    function: str,
    name: str,
    value: Any,
    shape: torch.Size,
    source: str,
    low: float = -math.inf,
    high: float = math.inf,
    wanted: Callable[[torch.Size], Any] = tuple,
) -> None:
    """Raises if ``value`` is no number in [low, high], or a tensor that does not broadcast."""
    check_real(function, name, value, low, high)
    check_broadcast(function, name, value, shape, source, wanted)


def check_divisor(function: str, name: str, value: Any, shape: torch.Size, source: str) -> None:
    """As ``check_hyper``, of a number above 0."""
    check_positive(function, name, value)
    check_broadcast(function, name, value, shape, source)


def check_order(
    function: str,
    low: float | Tensor,
    high: float | Tensor,
    names: tuple[str, str] = ("low", "high"),
) -> None:
    """Raises if both bounds are floats and in the wrong order."""
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and low > high:
        below, above = names
        raise ValueError(
            f"{function}: {below} is {low:g} and {above} {high:g}, expected {below} <= {above}"
        )


def check_index(
    function: str,
    name: str,
    value: Any,
    batch: torch.Size,
    size: int,
    source: str,
    mask: Tensor | None = None,
) -> Tensor:
    """A choice among ``size``, an index or one-hot, as an index ``[*batch]`` of int64.

    What is told apart is told by shape and dtype; one-hot rows are looked at where data may be.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} is {kind(value)}, expected a tensor")
    if value.shape == (*batch, size) and (size > 1 or not is_integer(value)):
        if not no_data(value):
            _check_one_hot(function, name, value, mask)
        return value.to(torch.uint8 if value.dtype == torch.bool else value.dtype).argmax(-1)
    if value.shape == (*batch, 1):
        value = value.squeeze(-1)
    if value.shape != batch:
        raise ValueError(
            f"{function}: {name} has shape {tuple(value.shape)}, expected an index "
            f"{batch_first(batch)} or one-hot {batch_first((*batch, size))} (from {source})"
        )
    if not is_integer(value):
        raise TypeError(
            f"{function}: {name} of shape {batch_first(batch)} has dtype {dtype(value)}, "
            f"expected integers, the indices of the {name}s"
        )
    value = value.long()
    return value if mask is None else torch.where(mask, value, 0)


def gather(function: str, name: str, x: Tensor, index: Tensor, source: str) -> Tensor:
    """``x[..., index]``: of ``x`` ``[*batch, size]`` the entry ``[*batch]`` that is chosen."""
    if torch.compiler.is_compiling():
        return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    try:
        return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    except (IndexError, RuntimeError) as error:
        raise ValueError(
            f"{function}: {name} holds an index outside of 0 to {x.shape[-1] - 1} "
            f"({source} has {x.shape[-1]} {name}s)"
        ) from error


def _check_one_hot(function: str, name: str, value: Tensor, mask: Tensor | None) -> None:
    fine = ((value == 0) | (value == 1)).all(-1) & (value.sum(-1) == 1)
    if not bool((fine if mask is None else fine | ~mask).all()):
        raise ValueError(
            f"{function}: {name} has shape {tuple(value.shape)}, that of a one-hot vector, but "
            "not each row holds a single 1 among zeros"
        )


def is_integer(x: Tensor) -> bool:
    """Whether a tensor holds integers, bool apart."""
    return x.dtype != torch.bool and not x.is_floating_point() and not x.is_complex()


def no_data(*tensors: Tensor) -> bool:
    """Whether data must not be looked at: under a transform of torch.func, or in a compiler.

    And where there is none: in tensors on the device "meta".
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return any(x.is_meta for x in tensors)


def missing(function: str, td: TensorDictBase, key: Key, hint: str = "") -> ValueError:
    """The error for a key that the td lacks; it lists the keys that are there."""
    present = [path(k) for k in td.keys(include_nested=True, leaves_only=True)]
    near = difflib.get_close_matches(path(key), present, n=3)
    text = f"{function}: the td has no {path(key)!r}"
    text += f" (nearest: {', '.join(near)})" if near else ""
    text += f"; its keys are {', '.join(sorted(present))}" if present else "; it is empty"
    return ValueError(f"{text}. {hint}" if hint else text)


def check_choice(function: str, name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises if ``value`` is none of ``choices``."""
    if value not in choices:
        raise ValueError(
            f"{function}: {name} is {value!r}, expected one of {', '.join(map(repr, choices))}"
        )


def path(key: Key) -> str:
    """A key as text: ``next.reward``."""
    return key if isinstance(key, str) else ".".join(key)


def kind(value: Any) -> str:
    """What a value is, for a message."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def dtype(value: Tensor) -> str:
    """A tensor's dtype without the ``torch.``."""
    return str(value.dtype).removeprefix("torch.")


def time_first(shape: Iterable[int]) -> str:
    """A shape [T, *batch], for a message."""
    return _named("[T, *batch]", shape)


def batch_first(shape: Iterable[int], *more: str) -> str:
    """A td's batch size and what follows it, for a message."""
    return f"[{', '.join([*map(str, shape), *more])}]"


def _named(names: str, shape: Iterable[int]) -> str:
    sizes = tuple(shape)
    return f"[T] with T={sizes[0]}" if len(sizes) == 1 else f"{names} = {sizes}"
