"""One TensorDict, opened for one function: what estimators and reducers read, and how they reduce.

Each key is read once and brought to the td's batch size by itself, so that ``[*B]`` and TorchRL's
``[*B, 1]`` mix. Where the td has a ``mask``, the steps that it leaves out are replaced on the way
in and on the way out: no number that stands there, NaN included, reaches a result or a gradient of
any order.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from ._check import (
    Key,
    batch_first,
    check_choice,
    check_flag,
    check_float,
    check_index,
    check_positive,
    check_real,
    dtype,
    gather,
    is_integer,
    kind,
    missing,
    path,
)

REDUCTIONS = ("mean", "sum", "none")
PRIORITY = "td_error"  # stays per step, whatever the reduction: a replay buffer asks for it


class Batch:
    """A td under the name of the function that reads it, of at least one step unless ``empty``."""

    def __init__(self, function: str, td: TensorDictBase, empty: bool = False) -> None:
        if not isinstance(td, TensorDictBase):
            raise TypeError(f"{function}: td is {kind(td)}, expected a TensorDict")
        self.function = function
        self.td = td
        self.shape = td.batch_size
        if 0 in self.shape and not empty:
            got = f"the td has batch size {batch_first(self.shape)}"
            raise ValueError(f"{function}: {got}, expected a batch of at least one step")
        self.present = frozenset(td.keys())
        self.mask: Tensor | None = None
        self._add_mask("mask")
        # the padding of TorchRL's trajectories
        if self.has("collector") and isinstance(self.td.get("collector"), TensorDictBase):
            self._add_mask(("collector", "mask"))

    def _add_mask(self, key: Key) -> None:
        """Leaves out what this mask leaves out too, if the td has it."""
        if self.has(key):
            mask = self.flag(key)
            self.mask = mask if self.mask is None else self.mask & mask

    # ---- reading

    def has(self, key: Key) -> bool:
        """Whether the td holds the key."""
        return key in self.present if isinstance(key, str) else self._get(key) is not None

    def entry(self, key: Key, hint: str = "") -> Any:
        """The entry as it stands; raises if there is none, with the hint."""
        value = self._get(key)
        if value is None:
            raise missing(self.function, self.td, key, hint)
        return value

    def _get(self, key: Key) -> Any:
        """The entry or None; raises if a tensor stands where a td is to hold it."""
        try:
            return self.td.get(key, None)
        except ValueError as error:  # tensordict's own, if it is not for what is checked here
            for n in range(1, len(key) if isinstance(key, tuple) else 0):
                node = self.td.get(key[:n], None)
                if node is not None and not isinstance(node, TensorDictBase):
                    text = f"{self.function}: {path(key[:n])} is {kind(node)}"
                    raise TypeError(f"{text}, expected a TensorDict") from error
            raise

    def step(self, key: Key, fill: float = 0.0, hint: str = "") -> Tensor:
        """One float per step: ``[*B]``."""
        value = self.per_step(key, check_float(self.function, path(key), self.entry(key, hint)))
        return self.filled(value, fill)

    def flag(self, key: Key, hint: str = "") -> Tensor:
        """One bool per step: ``[*B]``."""
        return self.per_step(key, check_flag(self.function, path(key), self.entry(key, hint)))

    def vector(
        self, key: Key, size: int | str = "m", source: str = "", fill: float = 0.0, hint: str = ""
    ) -> Tensor:
        """Floats per step: ``[*B, size]``, with a number (from ``source``) or a name for it."""
        return self.array(key, size, source=source, fill=fill, hint=hint)

    def array(
        self, key: Key, *sizes: int | str, source: str = "", fill: float = 0.0, hint: str = ""
    ) -> Tensor:
        """Floats per step: ``[*B, *sizes]``, some by their number (from ``source``) or name."""
        value = check_float(self.function, path(key), self.entry(key, hint))
        if not self._fits(value, sizes):
            self._wrong_array(key, value, source, sizes)
        return self.filled(value, fill)

    def members(
        self, key: Key, *sizes: int | str, source: str = "", fill: float = 0.0, hint: str = ""
    ) -> Tensor:
        """Floats per step and member of an ensemble: ``[*B, N, *sizes]``; without N, of one."""
        value = check_float(self.function, path(key), self.entry(key, hint))
        one, all_sizes = self._fits(value, sizes), ("N", *sizes)
        if not one and not self._fits(value, all_sizes):
            self._wrong_array(key, value, source, sizes, all_sizes)
        return self.filled(value.unsqueeze(len(self.shape)) if one else value, fill)

    def _fits(self, value: Tensor, sizes: tuple[int | str, ...]) -> bool:
        """Whether a shape is ``[*B, *sizes]``, of which those with a name are at least 1."""
        dims = len(self.shape)
        got = value.shape[dims:]
        if value.shape[:dims] != self.shape or len(got) != len(sizes):
            return False
        pairs = zip(got, sizes, strict=True)
        return all(n == size if isinstance(size, int) else n > 0 for n, size in pairs)

    def _wrong_array(
        self, key: Key, value: Tensor, source: str, *layouts: tuple[int | str, ...]
    ) -> NoReturn:
        wanted = " or ".join(batch_first(self.shape, *map(str, sizes)) for sizes in layouts)
        named = [str(size) for size in layouts[-1] if isinstance(size, str)]
        if 0 in value.shape and named:
            self.wrong_shape(key, value, wanted, f" with {' and '.join(named)} of at least 1")
        first = "the td's batch size first" if any(layouts) else "the td's batch size"
        self.wrong_shape(key, value, wanted, f" (from {source})" if source else f" ({first})")

    def allowed(self, key: Key, size: int, source: str) -> Tensor:
        """One bool per step and action: ``[*B, A]`` with ``A = size`` (from ``source``)."""
        value = check_flag(self.function, path(key), self.entry(key))
        if value.shape != (*self.shape, size):
            self.wrong_shape(key, value, batch_first((*self.shape, size)), f" (from {source})")
        return value if self.mask is None else value | ~self.mask.unsqueeze(-1)

    def count(self, key: Key) -> Tensor:
        """One integer per step: ``[*B]``; 1 at the steps that the mask leaves out."""
        value = self.entry(key)
        if not isinstance(value, Tensor) or not is_integer(value):
            got = f"has dtype {dtype(value)}" if isinstance(value, Tensor) else f"is {kind(value)}"
            raise TypeError(f"{self.function}: {path(key)} {got}, expected integers")
        return self.filled(self.per_step(key, value), 1)

    def index(self, key: Key, size: int, source: str) -> Tensor:
        """One choice of ``size`` per step, an index or one-hot, as an index ``[*B]`` of int64."""
        return check_index(
            self.function, path(key), self.entry(key), self.shape, size, source, self.mask
        )

    def of_action(self, values: Tensor, source: str, index: Tensor | None = None) -> Tensor:
        """Of values ``[*B, ..., A]`` (from ``source``) those of the action, ``[*B, ...]``."""
        if index is None:
            index = self.index("action", values.shape[-1], source)
        more = values.dim() - 1 - index.dim()
        index = index.reshape((*index.shape, *(1,) * more)).expand(values.shape[:-1])
        return gather(self.function, "action", values, index, source)

    def per_step(self, key: Key, value: Tensor) -> Tensor:
        """A tensor brought to the td's batch size: a trailing axis of one is dropped."""
        shape = self.shape
        if value.shape == shape:
            return value
        if value.shape == (*shape, 1):
            return value.squeeze(-1)
        self.wrong_shape(key, value, f"{batch_first(shape)} or {batch_first((*shape, 1))}")

    def wrong_shape(
        self, key: Key, value: Tensor, wanted: str, source: str = " (the td's batch size)"
    ) -> NoReturn:
        """Raises: the tensor under ``key`` is not of the shape that is wanted."""
        text = f"{self.function}: {path(key)} has shape {tuple(value.shape)}"
        raise ValueError(f"{text}, expected {wanted}{source}")

    def filled(self, value: Tensor, fill: float) -> Tensor:
        """A tensor ``[*B, ...]`` with ``fill`` at the steps that the mask leaves out."""
        if self.mask is None:
            return value
        mask = self.mask
        if value.dim() > mask.dim():
            mask = mask.reshape(*mask.shape, *(1,) * (value.dim() - mask.dim()))
        return torch.where(mask, value, fill)

    def hyper(self, name: str, value: Any, low: float = -torch.inf, high: float = torch.inf) -> Any:
        """A hyper-parameter: the td's entry ``[*B]`` if it has one, else the keyword.

        As a keyword it is a float, or a tensor, 0-d or of the td's full shape.
        """
        if self.has(name):
            return self.step(name)
        if value is None:
            raise ValueError(
                f"{self.function}: {name} is neither given nor an entry of the td; "
                f"pass it as a keyword, e.g. {name}=0.99, or as an entry of shape "
                f"{batch_first(self.shape)}"
            )
        value = check_real(self.function, name, value, low, high)
        if not isinstance(value, Tensor) or not value.dim():
            return value
        if value.shape != self.shape:
            self.wrong_shape(name, value, f"() or {batch_first(self.shape)}")
        return self.filled(value, 0.0)

    def positive(self, name: str, value: Any) -> Any:
        """A hyper-parameter above 0; per step, it is 1 at the steps that the mask leaves out."""
        value = check_positive(self.function, name, self.hyper(name, value))
        return self.filled(value, 1.0) if isinstance(value, Tensor) and value.dim() else value

    def finished(self, keys: tuple[str, ...], **discounts: float | Tensor | None) -> bool:
        """Whether the td brings its targets; raises where a discount would be without effect."""
        there = [key for key in keys if self.has(key)]
        if not there:
            return False
        for name, value in discounts.items():
            if value is not None:
                raise ValueError(
                    f"{self.function}: {name} is given, but the td already holds {there[0]!r}, "
                    f"which {name} would not change; drop one of the two, {name} or, with "
                    f"td.exclude({', '.join(map(repr, there))}), the targets"
                )
            if self.has(name) and self._idle(name, there[0]):
                raise ValueError(
                    f"{self.function}: the td's entry {name!r} requires grad, but its "
                    f"{there[0]!r} does not, so it was not made with this {name}, whose gradient "
                    f"would be 0; make the targets after setting {name!r}, or drop one of the two"
                )
        return True

    def _idle(self, name: str, target: str) -> bool:
        """Whether the entry asks for a gradient that the target, made without it, cannot give."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return False
        live, made = (getattr(self.entry(key), "requires_grad", False) for key in (name, target))
        return live and not made

    def time(self) -> int:
        """Which of the td's dimensions is time: the one named "time", else the last."""
        names = self.td.names
        if not self.shape:
            raise ValueError(
                f"{self.function}: the td has batch size {batch_first(self.shape)}, expected "
                "[*B, T] with time last"
            )
        if "time" in names:
            return names.index("time")
        if names[-1] is not None:
            raise ValueError(
                f"{self.function}: the td's dimensions are named {names}, none of them 'time'; "
                "name the time dimension 'time', or leave the last one without a name"
            )
        return len(names) - 1

    # ---- writing

    def extended(self, entries: Mapping[str, Tensor]) -> TensorDictBase:
        """A new td with the entries added."""
        out = self.td.copy()
        if torch.compiler.is_compiling() and any(self.td.names):
            out.names = self.td.names  # a compiled copy drops them, and time is found by its name
        for name, value in entries.items():
            out.set(name, value)
        return locked(out)

    def added(self, **entries: Tensor) -> TensorDictBase:
        """A new td with an estimator's results, 0 at the steps that the mask leaves out."""
        return self.extended({name: self.filled(x, 0.0) for name, x in entries.items()})

    def steps(self) -> int | Tensor:
        """How many steps count."""
        return self.shape.numel() if self.mask is None else self.mask.sum()

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the steps, of numbers ``[*B]`` that are 0 at those the mask leaves out.

        For what enters a loss: of no step at all it is 0.
        """
        return x.mean() if self.mask is None else x.sum() / self.mask.sum().clamp(min=1)

    def _weight(self) -> Tensor | None:
        """Weights ``[*B]``: the entry, else the one that TorchRL's prioritized buffers write."""
        name = "weight" if self.has("weight") else "priority_weight"
        return self.step(name) if self.has(name) else None

    def reduced(
        self,
        reduction: str,
        losses: Mapping[str, Tensor],
        metrics: Mapping[str, Tensor] | None = None,
        summary: Mapping[str, Tensor] | None = None,
    ) -> TensorDictBase:
        """The reducer's result: the losses reduced over the td, the metrics detached.

        With weights w, and a mask m of 0 and 1, "none" gives l w m per step, "sum" sum(l w m), and
        "mean" sum(l w m) / sum(w m). Metrics are means over the steps of the mask, without weights,
        and per step with "none"; ``td_error`` is per step always. What is in the summary, detached
        too, is one number for the whole td: as it is, and left out with "none". The mean of no step
        is NaN, the sum 0.
        """
        check_choice(self.function, "reduction", reduction, REDUCTIONS)
        weight = self._weight()
        terms = {name: self.filled(x, 0.0) for name, x in losses.items()}
        if weight is not None:
            terms = {name: x * weight for name, x in terms.items()}
        kept = {name: self.filled(x.detach(), 0.0) for name, x in (metrics or {}).items()}
        if reduction == "none":
            return self.extended({**terms, **kept})
        count = None if self.mask is None else self.mask.sum()

        def mean(x: Tensor) -> Tensor:
            return x.mean() if count is None else x.sum() / count

        if reduction == "sum":
            sums = {name: x.sum() for name, x in terms.items()}
        elif weight is not None:
            weights = weight.sum()
            sums = {name: x.sum() / weights for name, x in terms.items()}
        else:
            sums = {name: mean(x) for name, x in terms.items()}
        means = {name: x if name == PRIORITY else mean(x) for name, x in kept.items()}
        whole = {name: x.detach() for name, x in (summary or {}).items()}
        return locked(TensorDict({**sums, **means, **whole}, batch_size=[]))


def locked(td: TensorDictBase) -> TensorDictBase:
    """The td, locked; a compiler cannot trace the lock, and its result is the caller's to lock."""
    return td if torch.compiler.is_compiling() else td.lock_()
