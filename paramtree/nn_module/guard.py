"""What ``forward`` does to torch, seen call by call: draws get a key, writes are looked at.

A mode of torch's functions (``TorchFunctionMode``) sees every call of torch that a module's code
makes, above the transforms of torch.func and in compiled code too. ``ROWS`` says what is done
instead of a call that would read the global generator, or for which torch lacks a rule.
"""

import sys
from collections.abc import Sequence
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.variables.torch import get_overridable_functions
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .. import rng, tree
from . import draws, layers, twins
from .batching import is_transformed, memory
from .rows import joined, operators
from .snapshot import Snapshot

ROWS = joined(draws.ROWS, layers.ROWS, twins.ROWS)

# Compiled code asks this set which calls a mode gets to see; other code shows modes all of these.
get_overridable_functions().update(
    [known for rows in ROWS.values() for known, _ in rows if callable(known)]
)

_OPERATORS: dict[Any, tuple[Any, Any]] = {
    operator: row
    for name, rows in ROWS.items()
    for row in rows
    if not isinstance(row[0], FunctionType)
    for operator in operators(name)
}

_METHODS = frozenset([name for name, f in vars(Tensor).items() if type(f) is FunctionType])
_SETS = frozenset(["__setitem__", "__set__"])
_DATA = Tensor.data.__get__  # pyright: ignore[reportAttributeAccessIssue]
_NESTED = frozenset([list, tuple])
_PLAIN: set[Any] = set()  # calls that need nothing but a look at what they're given
_NORMS = frozenset(["batch_norm", "instance_norm"])


class Guard(TorchFunctionMode):
    """Runs the calls of one copy of a module.

    ``after`` is the key that is left when all has been drawn. ``wrote`` says whether anything was
    written in place, and ``written`` to which memory; ``averages`` are what a norm has written to
    behind autograd's back.
    """

    def __init__(
        self,
        shot: Snapshot,
        key: Tensor | None,
        modules: Sequence[nn.Module] = (),
        params: Sequence[Tensor] = (),
        buffers: Sequence[Tensor] = (),
    ) -> None:
        super().__init__()
        self.shot, self.modules = shot, modules
        self.params, self.buffers = params, buffers
        self.after, self.wrote = key, False
        self.averages: list[Any] = []
        self.written: set[int] = set()
        self._stream: Tensor | None = None
        self._drawn = 0
        self._given: dict[int, int] | None = None
        self._compiling = torch.compiler.is_compiling()
        self._plain = () if self._compiling else _PLAIN

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Makes a call of torch, or what stands for it."""
        if func not in self._plain:
            return self._call(func, args, kwargs or {})
        own = self.shot.own
        for x in args:
            if id(x) in own or type(x) in _NESTED:
                self._require_own(args)
                break
        if not kwargs:
            return func(*args)
        self._require_own(kwargs.values())
        if "out" in kwargs or kwargs.get("inplace"):
            self.writes(func, args, kwargs)
        return func(*args, **kwargs)

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The same, for a call that isn't known to be plain."""
        if not self._compiling:
            self._require_own((*args, *kwargs.values()))
        name = getattr(func, "__name__", "")
        if not args and "input" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)
        for known, instead in ROWS.get(name, ()):
            if func is known:
                return instead(self, func, *args, **kwargs)
        if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):  # noqa: UP038
            return self._operator(func, args, kwargs)
        if name[-1:] == "_" and name[-2:] != "__" or name in _SETS or "out" in kwargs:
            self.writes(func, args, kwargs)
        elif name in _NORMS and func is getattr(functional, name):
            updates = kwargs.get("training", kwargs.get("use_input_stats", True))
            if args[5] if len(args) > 5 else updates:
                self.averages += [*args[1:3], kwargs.get("running_mean"), kwargs.get("running_var")]
        elif self._compiling:  # which knows a method that is written in Python by its name only
            if name in _METHODS and func is getattr(Tensor, name):
                return getattr(args[0], name)(*args[1:], **kwargs)
        elif func != _DATA:
            _PLAIN.add(func)
        elif is_transformed(args[0]):
            return args[0].detach()  # as .data but for versions, which vmap has none of
        return func(*args, **kwargs)

    def key(self, what: Any, generator: Any = None, near: Tensor | None = None) -> Tensor:
        """A new key for a draw.

        Args:
            what: the function that draws.
            generator: what it was told to draw from.
            near: tensor whose device the draw is for.

        Returns:
            int64 [2].

        Raises:
            ValueError: there's no key to take it from, or what is drawn would be drawn again.
        """
        name = getattr(what, "__name__", what)
        if generator is not None:
            text = "from a generator, a state that would not come back; draw without one"
            raise ValueError(f"from_module: {self._where()} draws ({name}) {text}")
        if self.after is None:
            raise ValueError(
                f"from_module: {self._where()} draws random numbers ({name}) and there is no key "
                "to draw them from; give from_module a key, or train=False for its evaluation"
            )
        if not self._compiling and self._is_checkpointed():
            raise ValueError(
                f"from_module: {self._where()} draws ({name}) inside torch.utils.checkpoint, which "
                "would draw again, without a key, when it goes backward; use "
                "paramtree.autodiff.checkpoint around apply"
            )
        if self._stream is None:
            self.after, self._stream = rng.split(self.after).unbind(0)
        self._drawn += 1
        key = rng.fold_in(self._stream, self._drawn - 1)
        return key if near is None else key.to(near.device)

    def refuse(self, what: Any, reason: str) -> None:
        """Refuse a draw that can't be made from a key."""
        name = getattr(what, "__name__", what)
        raise ValueError(f"from_module: {self._where()} draws ({name}) {reason}")

    def writes(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note that a call writes in place, and refuse it where that would change a parameter."""
        self.wrote = True
        if self._compiling:
            return
        targets = [*args[:1], kwargs.get("out"), kwargs.get("tensor")]
        for target in tree.leaves([x for x in targets if x is not None]):
            place = memory(target)
            self.written.add(place)
            if self._given is None:
                self._given = {memory(leaf): i for i, leaf in enumerate(self.params)}
            if place in self._given:
                path = tree.show_path(self.shot.params.paths[self._given[place]])
                raise ValueError(
                    f"from_module: {self._where()} writes in place ({func.__name__}) to the "
                    f"parameter {path}, which is given; make a changed copy of it instead"
                )

    def _require_own(self, args: Any) -> None:
        """Refuse tensors of the module that this one is a copy of: they'd be constants."""
        own = self.shot.own
        for x in args:
            if type(x) in _NESTED:
                if x and isinstance(x[0], Tensor):
                    self._require_own(x)
            elif id(x) in own and own[id(x)][0]() is x:
                if any([x is y for given in (self.params, self.buffers) for y in given]):
                    continue
                path = tree.show_path(own[id(x)][1])
                text = f"from_module: {self._where()} reaches {path} of the module itself"
                if x.grad_fn is not None and not isinstance(x, nn.Parameter):
                    raise ValueError(
                        f"{text}, which was computed before and would be a constant; compute it in "
                        "forward, or make it a buffer"
                    )
                raise ValueError(
                    f"{text}, not what was given for it: something that isn't a module, a list of "
                    "them or a function holds it; pass it to forward, or look it up by name there"
                )

    def _operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call of torch.ops: as that of the function of torch that does the same."""
        if func in _OPERATORS:
            known, instead = _OPERATORS[func]
            return instead(self, known, *args, **kwargs)
        if self._compiling:
            self.wrote = True  # it may have been
        elif _is_seeded(func):
            self.refuse(func, "by an operator that no key can be given to")
        else:
            packet = func if isinstance(func, torch._ops.OpOverloadPacket) else func.overloadpacket
            if packet.__name__[-1:] == "_" or "out" in kwargs:
                self.writes(packet, args, kwargs)
        return func(*args, **kwargs)

    def _is_checkpointed(self) -> bool:
        """Whether torch.utils.checkpoint is between the module and the draw."""
        file = getattr(sys.modules.get("torch.utils.checkpoint"), "__file__", None)
        frame, inside = sys._getframe(), False
        while file and frame is not None:
            inside = inside or frame.f_code.co_filename == file
            if inside and self.modules and frame.f_locals.get("self") is self.modules[0]:
                return True
            frame = frame.f_back
        return False

    def _where(self) -> str:
        """The sub-module that is at work, as far as the stack tells."""
        frame = None if self._compiling else sys._getframe()
        while frame is not None:
            found = self.place(frame)
            if found:
                return found
            frame = frame.f_back
        return self.shot.name

    def place(self, frame: FrameType) -> str:
        """The sub-module that a frame of the stack is a method of, if it's of one."""
        owner = frame.f_locals.get("self")
        for part, module in zip(self.shot.parts, self.modules, strict=False):
            if owner is module:
                path = f" at {tree.show_path(part.path)}" if part.path else ""
                return f"{part.cls.__name__}{path}"
        return ""


def _is_seeded(func: Any) -> bool:
    """Whether an operator says of itself that it draws."""
    if isinstance(func, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded in func.tags
    return any([_is_seeded(getattr(func, name)) for name in func.overloads()])
