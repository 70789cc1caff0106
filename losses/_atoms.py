"""What reducers over distributions of returns share: how they read and choose rows of atoms."""

from torch import Tensor

from ._batch import Batch
from ._check import Key, batch_first, check_float, gather, missing, path


def greedy(ahead: Batch, every: Tensor, value: Tensor) -> Tensor:
    """Of ``every`` ``[*B, A, K]`` the action's that is valued most, the first of equals."""
    selector, size = ("next", "action_value_selector"), every.shape[-2]
    if ahead.td.get(selector, None) is not None:
        value = ahead.vector(selector, size, "the number of actions")
    index = value.argmax(-1)[..., None, None].expand(*every.shape[:-2], 1, every.shape[-1])
    return every.gather(-2, index).squeeze(-2)


def of_action(batch: Batch, every: Tensor, source: str) -> Tensor:
    """Of ``[*B, A, K]`` what belongs to the td's action, ``[*B, K]``."""
    size, members = every.shape[-2:]
    index = batch.index("action", size, source).unsqueeze(-1).expand(*batch.shape, members)
    return gather(batch.function, "action", every.mT, index, source)


def atoms(batch: Batch, key: Key, *wanted: int | str, origin: str = "") -> Tensor:
    """Floats ``[*B, ...]`` with these axes more, by their sizes or names."""
    value, dims = check_float(batch.function, path(key), batch.entry(key)), len(batch.shape)
    sizes = value.shape[dims:]
    fits = value.shape[:dims] == batch.shape and len(sizes) == len(wanted) and 0 not in sizes
    if not fits or any(isinstance(w, int) and w != n for w, n in zip(wanted, sizes, strict=True)):
        source = f" (from {origin})" if origin else " (the td's batch size first)"
        batch.wrong_shape(key, value, batch_first(batch.shape, *map(str, wanted)), source)
    return batch.filled(value, 0.0)


def only_source(batch: Batch, *names: str) -> str:
    """Which of the entries the td has under next; raises if none or more."""
    found = [name for name in names if batch.td.get(("next", name), None) is not None]
    if not found:
        raise missing(batch.function, batch.td, ("next", names[0]), f"Or next.{names[1]}.")
    if len(found) > 1:
        raise ValueError(
            f"{batch.function}: the td holds {' and '.join(repr(f'next.{x}') for x in found)}, "
            f"expected one of them; drop the other, e.g. td.exclude(('next', {found[0]!r}))"
        )
    return found[0]


def stopped(x: Tensor, stop: bool) -> Tensor:
    return x.detach() if stop else x
