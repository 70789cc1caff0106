"""Objects of a module's class, made without its constructor."""

from types import FunctionType
from typing import Any

from torch import nn

Touches = tuple[FunctionType, ...]

_set = object.__setattr__


def fill(module: Any, attributes: dict[str, Any], touches: Touches, compiling: bool) -> None:
    """Gives a bare object of a module's class its attributes.

    Args:
        module: what ``object.__new__`` made.
        attributes: all of them; the dictionary becomes the object's own.
        touches: for its class.
        compiling: whether this is compiled code. It misses the hooks in a dictionary that was put
            in another's place.
    """
    if not compiling:
        _set(module, "__dict__", attributes)
        return
    module.__dict__.update(attributes)
    for touch in touches:
        touch()
    if attributes["_buffers"] and type(module).register_buffer is nn.Module.register_buffer:
        _set(module, "register_buffer", _Registers(module))


def touches(cls: type) -> Touches:
    """Functions that use what the decorated methods of a class close over, and do nothing.

    Compiled code can't read what a function closes over where neither it nor its object has a name
    outside, as those of a copy don't; but it knows a variable that it has met before.

    Args:
        cls: a module's class.

    Returns:
        One function for each method.
    """
    found = []
    for kind in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        for value in vars(kind).values():
            if isinstance(value, FunctionType):
                names = value.__code__.co_freevars
                if set(names) - {"__class__"} and all([name.isidentifier() for name in names]):
                    code = _code(names)
                    found.append(FunctionType(code, globals(), "touch", None, value.__closure__))
    return tuple(found)


def _code(names: tuple[str, ...]) -> Any:
    """Code of a function that closes over these names."""
    listed, scope = ", ".join(names), {}
    exec(f"def outer({listed}):\n def touch():\n  return {listed},\n return touch", scope)
    return scope["outer"](*names).__code__


class _Registers:
    """The method register_buffer of a module, as ``Module.__setattr__`` asks for it."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.__func__ = module, nn.Module.register_buffer

    def __call__(self, name: str, value: Any, persistent: bool = True) -> None:
        self.module._buffers[name] = value
