"""What the modes of differentiation and their solvers refuse, and in which words."""

from typing import Any

from torch import Tensor

from ..autodiff.gradients import kind_of
from ..tree import Structure, flatten, require_same, show_path

Hyper = float | Tensor
Leaves = list[Tensor]


def require_mode(
    fn: str, step: Any, outer: Any, steps: Any, argnums: int | tuple[int, ...], has_aux: Any
) -> None:
    """Refuse what no mode of differentiation can be made of.

    Args:
        fn: name of the mode.
        step: a function.
        outer: a function.
        steps: at least 1.
        argnums: 0, 1, (0, 1) or another tuple of them.
        has_aux: True or False.

    Raises:
        ValueError: steps or argnums is out of range.
        TypeError: an argument is of another kind.
    """
    for name, value in (("step", step), ("outer", outer)):
        if not callable(value):
            raise TypeError(f"{fn}: {name} is {kind_of(value)}, expected a function")
    require_count(fn, "steps", steps)
    if not isinstance(has_aux, bool):
        kind = type(has_aux).__name__
        raise TypeError(f"{fn}: has_aux is a {kind}, expected True or False")
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if not all([isinstance(n, int) and not isinstance(n, bool) for n in numbers]):
        raise TypeError(f"{fn}: argnums is {argnums!r}, expected an int or a tuple of them")
    if not numbers or not set(numbers) <= {0, 1} or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"{fn}: argnums is {argnums}, expected 0 (hyper), 1 (the initial state) or (0, 1)"
        )


def require_scalar(fn: str, what: str, out: Any, has_aux: bool) -> Tensor:
    """The value in what an objective returned.

    Args:
        fn: name of the function that was called.
        what: name of the objective.
        out: what it returned.
        has_aux: whether that has to be ``(value, aux)``.

    Returns:
        The value.

    Raises:
        ValueError: it isn't a 0-d tensor, or not a pair.
        TypeError: it isn't real.
    """
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        got = kind_of(out)
        raise ValueError(f"{fn}: {what} returned {got}, expected (scalar, aux) with has_aux=True")
    value = out[0] if has_aux else out
    if not isinstance(value, Tensor) or value.ndim:
        raise ValueError(f"{fn}: {what} returned {kind_of(value)}, expected a 0-d tensor")
    if not value.is_floating_point():
        raise TypeError(f"{fn}: {what} returned {value.dtype}, expected a real float")
    return value


def require_count(fn: str, name: str, value: Any) -> None:
    """Refuse a number of things that isn't an int of at least 1.

    Args:
        fn: name of the function that was called.
        name: of its argument.
        value: what came in.

    Raises:
        ValueError: it's below 1.
        TypeError: it isn't an int.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{fn}: {name} is {value!r}, expected an int")
    if value < 1:
        raise ValueError(f"{fn}: {name} is {value}, expected at least 1")


def require_real(
    fn: str, name: str, value: Any, *, low: float | None = None, above: float | None = None
) -> None:
    """Refuse what isn't a float in a range or a 0-d float tensor, whose value isn't read.

    Args:
        fn: name of the function that was called.
        name: of its argument.
        value: what came in.
        low: smallest value allowed.
        above: value that it has to be above of.

    Raises:
        ValueError: it's out of range, or a tensor with axes.
        TypeError: it's of another kind.
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{fn}: {name} is {value.dtype}, expected a float dtype")
        if value.ndim:
            shape = tuple(value.shape)
            raise ValueError(f"{fn}: {name} has shape {shape}, expected a 0-d tensor or a float")
    elif not isinstance(value, (int, float)) or isinstance(value, bool):  # noqa: UP038
        raise TypeError(f"{fn}: {name} is {value!r}, expected a float or a 0-d tensor")
    elif low is not None and not value >= low:
        raise ValueError(f"{fn}: {name} is {value}, expected at least {low}")
    elif above is not None and not value > above:
        raise ValueError(f"{fn}: {name} is {value}, expected more than {above}")


def require_average(fn: str, average: float) -> None:
    """Refuse a decay out of range.

    Args:
        fn: name of the function that was called.
        average: the decay.

    Raises:
        ValueError: it's out of range.
        TypeError: it isn't a float.
    """
    require_real(fn, "average", average, low=0.0)
    if not average < 1.0:
        raise ValueError(f"{fn}: average is {average}, expected a decay in [0, 1)")


def like(fn: str, given: tuple[str, Any], wanted: tuple[str, Structure, Leaves]) -> Leaves:
    """Leaves of a nest, refused where its names or shapes are not those of another.

    Args:
        fn: name of the function that was called.
        given: name of the nest, and the nest.
        wanted: name, structure and leaves of the other.

    Returns:
        The leaves.

    Raises:
        ValueError: names or shapes differ.
    """
    leaves, structure = flatten(given[1])
    require_same(fn, (given[0], structure), wanted[:2])
    for path, leaf, other in zip(structure.paths(), leaves, wanted[2], strict=True):
        if leaf.shape != other.shape:
            shapes = f"{tuple(leaf.shape)}, expected {tuple(other.shape)} (from {wanted[0]})"
            raise ValueError(f"{fn}: {given[0]}{at_path(path)} has shape {shapes}")
    return leaves


def at_path(path: tuple[Any, ...]) -> str:
    """Place of a leaf in a message: nothing for a nest that is one tensor.

    Args:
        path: of the leaf.

    Returns:
        The text.
    """
    return f" at {show_path(path)}" if path else ""
