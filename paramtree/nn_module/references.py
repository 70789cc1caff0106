"""Attributes of a module that lead back to its tensors and sub-modules, and how to copy them.

A list of parameters, a bound method, a function that closes over the module: a copy of the module
that only had other tensors in its dictionaries would go on using the old ones through these. So
each gets a *maker*, which makes it again around the tensors and sub-modules of a copy. Lists,
dictionaries and sets that are attributes are copied too: what ``forward`` appends to one must not
last. Anything that two attributes share, they share in the copy.
"""

import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from . import objects

Maker = Callable[[list[Any], list[Any], list[Any], list[Any]], Any]


class References:
    """Makers of what attributes hold, in the order in which they are to run.

    Each is called with the parameters, the buffers, the sub-modules of a copy, and with what the
    makers before it made.
    """

    def __init__(
        self, params: dict[int, int], buffers: dict[int, int], modules: dict[int, int]
    ) -> None:
        self.makers: list[Maker] = []
        self._params, self._buffers, self._modules = params, buffers, modules
        self._known: dict[tuple[int, bool], int | None] = {}
        self._open: set[int] = set()

    def number(self, value: Any, own: bool) -> int | None:
        """Number of the maker for a value.

        Args:
            value: what an attribute holds.
            own: whether lists and their like inside are the module's own, to be copied in any case.

        Returns:
            The number, or None for what a copy can share.
        """
        known = id(value), own
        if known not in self._known:
            if id(value) in self._open:  # it holds itself, so it can only be shared
                return None
            self._open.add(id(value))
            maker = self._maker(value, own)
            self._open.discard(id(value))
            self._known[known] = None
            if maker is not None:
                self._known[known] = len(self.makers)
                self.makers.append(maker)
        return self._known[known]

    def _maker(self, value: Any, own: bool) -> Maker | None:
        kind = type(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module):
            at = self._modules.get(id(value))
            if at is None:
                return self._hidden(value)
            return lambda params, buffers, modules, made: modules[at]
        if kind in (dict, OrderedDict, defaultdict):
            return self._dictionary(value, own)
        if kind in (list, tuple, set, deque):
            return self._sequence(value, own)
        if kind is MethodType:
            owner = self.number(value.__self__, False)
            function = value.__func__
            if owner is not None:
                return lambda params, buffers, modules, made: _bound(function, made[owner])
        elif kind is weakref.ref:
            target = self.number(value(), False)
            if target is not None:
                return lambda params, buffers, modules, made: weakref.ref(made[target])
        elif kind is partial:
            return self._partial(value)
        elif kind is FunctionType:
            return self._function(value)
        return None

    def _tensor(self, value: Tensor) -> Maker | None:
        if id(value) in self._params:
            at = self._params[id(value)]
            return lambda params, buffers, modules, made: params[at]
        if id(value) in self._buffers:
            at = self._buffers[id(value)]
            return lambda params, buffers, modules, made: buffers[at]
        return None

    def _hidden(self, value: nn.Module) -> Maker | None:
        """Of a module that isn't a sub-module but uses some."""
        kind, names, touches = type(value), list(vars(value)), objects.touches(type(value))
        items, refers = self._items(vars(value).values(), False)
        if not refers:
            return None

        def make(params: Any, buffers: Any, modules: Any, made: list[Any]) -> Any:
            module = object.__new__(kind)
            own = dict(zip(names, filled(items, made), strict=True))
            objects.fill(module, own, touches, torch.compiler.is_compiling())
            return module

        return make

    def _items(self, values: Iterable[Any], own: bool) -> tuple[list[tuple[Any, Any]], bool]:
        """Values or the numbers of their makers, and whether any has one."""
        numbers = [(value, self.number(value, own)) for value in values]
        items = [(value if number is None else None, number) for value, number in numbers]
        return items, any([number is not None for _, number in items])

    def _sequence(self, value: Any, own: bool) -> Maker | None:
        kind, items, refers = type(value), *self._items(value, own)
        if not refers and (kind is tuple or not own):
            return None
        if kind is deque:
            size = value.maxlen
            return lambda params, buffers, modules, made: deque(filled(items, made), size)
        return lambda params, buffers, modules, made: kind(filled(items, made))

    def _dictionary(self, value: Any, own: bool) -> Maker | None:
        kind, names, (items, refers) = type(value), list(value), self._items(value.values(), own)
        if not refers and not own:
            return None
        if kind is defaultdict:
            default = value.default_factory
            return lambda params, buffers, modules, made: defaultdict(
                default, zip(names, filled(items, made), strict=True)
            )
        return lambda params, buffers, modules, made: kind(
            zip(names, filled(items, made), strict=True)
        )

    def _partial(self, value: partial[Any]) -> Maker | None:
        names = list(value.keywords)
        parts = (value.func, *value.args, *value.keywords.values())
        items, refers = self._items(parts, False)
        if not refers:
            return None
        end = 1 + len(value.args)

        def make(params: Any, buffers: Any, modules: Any, made: list[Any]) -> Any:
            function, *rest = filled(items, made)
            keywords = dict(zip(names, rest[end - 1 :], strict=True))
            return partial(function, *rest[: end - 1], **keywords)

        return make

    def _function(self, value: FunctionType) -> Maker | None:
        cells = value.__closure__ or ()
        kept = [cell for cell in cells if _is_full(cell)]
        defaults, named = value.__defaults__ or (), value.__kwdefaults__ or {}
        parts = (*[cell.cell_contents for cell in kept], *defaults, *named.values())
        items, refers = self._items(parts, False)
        if not refers:
            return None

        def make(params: Any, buffers: Any, modules: Any, made: list[Any]) -> Any:
            rest = iter(filled(items, made))
            closure = tuple([CellType(next(rest)) if _is_full(cell) else cell for cell in cells])
            given = tuple([next(rest) for _ in defaults]) or None
            code, name = value.__code__, value.__name__
            function = FunctionType(code, value.__globals__, name, given, closure)
            function.__kwdefaults__ = {name: next(rest) for name in named} or None
            function.__dict__.update(value.__dict__)
            return function

        return make


def _bound(function: Any, owner: Any) -> Any:
    """A bound method; compiled code knows no way to make one."""
    make = partial if torch.compiler.is_compiling() else MethodType
    return make(function, owner)


def filled(items: list[tuple[Any, Any]], made: list[Any]) -> list[Any]:
    """Values, those that have a maker as it made them."""
    return [value if number is None else made[number] for value, number in items]


def _is_full(cell: CellType) -> bool:
    """Whether a variable of a closure has a value by now."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
