"""The engine of transforms: a rule on tensors becomes a transform of trees.

A rule is the mathematics of one update, on tensors and without trees or checks:

    c   coefficients: hyper-parameters at this step, and what was computed from them once a step
    g   gradient, or what the transform before this one made of it
    p   parameters
    slots, state entries with the names of the params, such as the moments

It runs on lists of leaves from the first transform of a chain to the last, and a tree is built once
on the way out. Half-precision leaves are worked on, and remembered, in float32; for a rule that is
elementwise a complex leaf is a pair of real ones, as in torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from ..autodiff.levels import transformed
from ..tree import Structure, new, show_path, unflatten
from .arguments import (
    Hyper,
    Schedule,
    Tree,
    at_count,
    cast,
    like,
    named_like,
    parameters,
    parts,
    refuse_leaf,
    require_count,
    wide,
    zero_count,
)
from .base import Step, Transform

Leaves = list[Tensor]
Scope = Literal["element", "leaf", "tree"]


class Values:
    """Hyper-parameters or coefficients by name: ``c.b1``.

    Args:
        values: floats or 0-d tensors by name.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:  # for type checkers; what is there never comes here
        raise AttributeError(name)


class Stage(Protocol):
    """An update that can run on leaves."""

    def on_leaves(self, u: Leaves, state: Any, work: "Work") -> tuple[Leaves, TensorDict]:
        """Updates and the next state, from updates and state."""
        ...


class Work:
    """The leaves of one update, and the form in which rules get them.

    Args:
        leaves: the params'.
        structure: the params'.
    """

    def __init__(self, leaves: Leaves, structure: Structure) -> None:
        self.leaves, self.structure = leaves, structure
        self.dtypes = {leaf.dtype for leaf in leaves}
        self.half = any([dtype.itemsize < 4 for dtype in self.dtypes])
        self.complex = any([dtype.is_complex for dtype in self.dtypes])
        self._params: Leaves | None = None

    @property
    def params(self) -> Leaves:
        """The params as the rules get them."""
        if self._params is None:
            self._params = self.pack(self.leaves)
        return self._params

    def pack(self, leaves: Leaves) -> Leaves:
        """Leaves as the rules get them."""
        if self.half:
            return [x.float() if x.dtype.itemsize < 4 else x for x in leaves]
        return leaves

    def unpack(self, worked: Leaves) -> Leaves:
        """Leaves in the params' dtypes, of what the rules made."""
        if self.half:
            return [x.to(leaf.dtype) for x, leaf in zip(worked, self.leaves, strict=True)]
        return worked

    def read(self, fn: str, name: str, tree: Any, exact: bool) -> Leaves:
        """Leaves of a state entry."""
        found = named_like(fn, name, tree, self.structure)
        if not exact:
            return found
        for at, (got, leaf) in enumerate(zip(found, self.leaves, strict=True)):
            dtype = torch.float32 if self.half and leaf.dtype.itemsize < 4 else leaf.dtype
            if got.dtype is not dtype or got.size() != leaf.size():
                path = show_path(self.structure.paths()[at])
                refuse_leaf(f"{fn}: {name} at {path}", got, leaf.to(dtype))
        return found


def run(fn: str, stage: Stage, grads: Any, state: Any, params: Any) -> Step:
    """The update of trees that an update of leaves makes.

    Args:
        fn: name of the function that was called, for messages.
        stage: the update of leaves.
        grads: tree like the params.
        state: what ``init`` gave.
        params: tree of float or complex leaves.

    Returns:
        ``(updates, state)``.

    Raises:
        ValueError: names or shapes differ, or the state belongs to another optimizer.
        TypeError: an argument isn't a tree, or dtypes differ.
    """
    leaves, structure = parameters(fn, params)
    g = like(fn, "grads", grads, leaves, structure)
    u, after = updates(stage, g, state, Work(leaves, structure))
    return unflatten(structure, u), after


def updates(stage: Stage, g: Leaves, state: Any, work: Work) -> tuple[Leaves, TensorDict]:
    """Updates in the params' dtypes, and the next state.

    Args:
        stage: the update of leaves.
        g: leaves of the gradient.
        state: what ``init`` gave.
        work: the params.

    Returns:
        ``(leaves, state)``.
    """
    u, after = stage.on_leaves(work.pack(g), state, work)
    return work.unpack(u), after


@dataclass(frozen=True, eq=False)
class Leafwise:
    """Update by a rule; called on trees it's the ``update`` of a transform.

    Fields are the arguments of ``leafwise``.
    """

    fn: str
    rule: Callable[..., Any]
    hyper: Mapping[str, Hyper | Schedule]
    slots: Mapping[str, Callable[[Tensor], Tensor]]
    numbers: Mapping[str, float]
    counted: bool
    prepare: Callable[..., dict[str, Any]] | None
    scope: Scope
    reads_params: bool
    kernel: str
    recorded: Callable[..., Any] | None
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        counted = self.counted or any([_scheduled(value) for value in self.hyper.values()])
        count = ("count",) if counted else ()
        object.__setattr__(self, "names", (*count, *self.slots, *self.numbers))

    def init(self, params: Tree) -> TensorDict:
        """State of the first step."""
        leaves, structure = parameters(self.fn, params)
        leaves = [x.float() if x.dtype.itemsize < 4 else x for x in leaves]
        state: dict[str, Any] = {"count": zero_count(leaves)} if "count" in self.names else {}
        for name, start in self.slots.items():
            state[name] = unflatten(structure, [start(x.detach()) for x in leaves])
        for name, value in self.numbers.items():
            state[name] = wide(zero_count(leaves)) + value
        return new(state)

    def __call__(self, grads: Tree, state: Tree, params: Tree, **extra: Any) -> Step:
        """Updates and the next state."""
        return run(self.fn, self, grads, state, params)

    def on_leaves(self, u: Leaves, state: Any, work: Work) -> tuple[Leaves, TensorDict]:
        """Updates and the next state, on leaves."""
        found = dict(zip(self.names, parts(self.fn, state, *self.names), strict=True))
        require_count(self.fn, found)
        exact = self.scope == "element"
        slots = [work.read(self.fn, f"state[{n!r}]", found[n], exact) for n in self.slots]
        coefficients = self.coefficients(found)
        p = work.params if self.reads_params else [None] * len(u)
        u, slots = self._ruled(coefficients, u, p, slots, work)
        after: dict[str, Any] = {"count": found["count"] + 1} if "count" in found else {}
        for name, column in zip(self.slots, slots, strict=True):
            after[name] = unflatten(work.structure, column)
        return u, new(after | {name: coefficients[name] for name in self.numbers})

    def coefficients(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Hyper-parameters at this step, and what is made of them once a step."""
        count = found.get("count")
        if count is None:
            values, t = dict(self.hyper), None
        else:
            pairs = self.hyper.items()
            values, t = {n: at_count(self.fn, n, v, count) for n, v in pairs}, wide(count + 1)
        if self.prepare is None:
            return values
        numbers = {name: found[name] for name in self.numbers}
        return self.prepare(Values(values), t, **numbers)

    def _ruled(
        self,
        coefficients: dict[str, Any],
        u: Leaves,
        p: Sequence[Any],
        slots: list[Leaves],
        work: Work,
    ) -> tuple[Leaves, list[Leaves]]:
        if self.recorded is not None and len(work.dtypes) == 1 and not work.complex:
            if is_recorded(u, *slots):
                c = {name: cast(value, u[0]) for name, value in coefficients.items()}
                out = self.recorded(Values(c), u, *slots)
                return out[0], list(out[1:])
        if self.scope == "tree":
            out = self.rule(Values(coefficients), u, p, *slots)
            return (out[0], list(out[1:])) if slots else (out, [])
        real = work.complex and self.scope == "element"
        by_dtype: dict[torch.dtype, Values] = {}
        rows = []
        for row in zip(u, p, *slots, strict=True):
            c = by_dtype.get(row[0].dtype)
            if c is None:  # so that they don't change the result's dtype
                c = Values({name: cast(v, row[0]) for name, v in coefficients.items()})
                by_dtype[row[0].dtype] = c
            if real and row[0].is_complex():
                out = self.rule(c, *[None if x is None else _pairs(x) for x in row])
                rows.append([torch.view_as_complex(x) for x in (out if slots else (out,))])
            else:
                out = self.rule(c, *row)
                rows.append(out if slots else (out,))
        columns = [list(column) for column in zip(*rows, strict=True)]
        if not columns:
            return [], [[] for _ in slots]
        return columns[0], columns[1:]


def is_recorded(*columns: Leaves) -> bool:
    """Whether torch.autograd, and it alone, records what is done with leaves.

    Args:
        columns: lists of those that take part.

    Returns:
        False also where code is compiled, or a transform of torch.func is at work.
    """
    if not torch.is_grad_enabled() or transformed():
        return False
    return any([x.requires_grad for column in columns for x in column])


def _pairs(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj())


def _scheduled(value: Any) -> bool:
    return callable(value) and not isinstance(value, Tensor)


def leafwise(
    fn: str,
    rule: Callable[..., Any],
    *,
    hyper: Mapping[str, Hyper | Schedule] | None = None,
    slots: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    numbers: Mapping[str, float] | None = None,
    counted: bool = False,
    prepare: Callable[..., dict[str, Any]] | None = None,
    scope: Scope = "element",
    reads_params: bool = False,
    kernel: str = "",
    recorded: Callable[..., Any] | None = None,
) -> Transform:
    """Transform whose update is a rule on tensors.

    Args:
        fn: name of the public function, for messages.
        rule: ``(c, g, p, *slots) -> (u, *slots)``, or just ``u`` where there are no slots; pure,
            and without a look at values. ``p`` is None unless ``reads_params``.
        hyper: hyper-parameters by name, checked already; a schedule is asked at each step.
        slots: state entries with the names of the params, and what makes the first value of one
            from a leaf.
        numbers: 0-d float64 state entries and their first values.
        counted: whether the state has ``count``; it has where a hyper-parameter is a schedule.
        prepare: ``(h, t, **numbers) -> coefficients``, once a step, from the hyper-parameters
            ``h.name`` and the step's number from 1, a 0-d float64 tensor; under a number's name
            it gives the number's next value. Without it the coefficients are ``h``.
        scope: what a rule sees: ``element`` one tensor, each number of which it treats by itself
            (it may be a real view), with the coefficients in its dtype; ``leaf`` one leaf in its
            true shape, likewise; ``tree`` lists of all leaves, and coefficients as they are.
        reads_params: whether the rule needs ``p``.
        kernel: what ``step`` calls it where a fused kernel says the same.
        recorded: ``(c, g, *slots) -> (u, *slots)`` on lists of real leaves of one dtype, which
            stands for the rule where torch.autograd, and it alone, records.

    Returns:
        The transform.
    """
    update = Leafwise(
        fn,
        rule,
        hyper or {},
        slots or {},
        numbers or {},
        counted,
        prepare,
        scope,
        reads_params,
        kernel,
        recorded,
    )
    return Transform(update.init, update)
