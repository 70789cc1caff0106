"""The tensors of a module as leaves of a tree: each once, under the first of its names."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictParams
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import tree

Path = tuple[str, ...]


class Leaves(NamedTuple):
    """Parameters or buffers of a module.

    ``paths`` and ``tensors`` are in the order of the tree's leaves. ``where`` finds the number of a
    leaf by the id of any tensor that stands for it, and ``aliases`` are the other names of each.
    """

    paths: list[Path]
    tensors: list[Tensor]
    aliases: list[list[Path]]
    where: dict[int, int]

    def released(self) -> "Leaves":
        """The names alone."""
        return self._replace(tensors=[], where={})

    def nested(self, values: Sequence[Any]) -> TensorDict:
        """Locked tree of a value for each leaf."""
        return nested(dict(zip(self.paths, values, strict=True)))


def nested(values: dict[Path, Any]) -> TensorDict:
    """Locked tree of values by path."""
    level: dict[str, Any] = {}
    for path, value in values.items():
        if len(path) == 1:
            level[path[0]] = value
        else:
            level.setdefault(path[0], {})[path[1:]] = value
    return tree.new({k: nested(v) if isinstance(v, dict) else v for k, v in level.items()})


def show(path: Path) -> str:
    """Path as torch writes it: names of modules and their tensors hold no dots."""
    return ".".join(path)


def walk(module: nn.Module, path: Path = (), above: tuple[int, ...] = ()) -> Iterator[Any]:
    """Path and sub-module for every name that leads to one, the module itself first."""
    yield path, module
    for name, child in module._modules.items():
        if child is not None and id(child) not in above:
            yield from walk(child, (*path, name), (*above, id(module)))


def find(fn: str, module: nn.Module) -> tuple[Leaves, Leaves]:
    """Parameters and buffers of a module.

    Args:
        fn: name of the function that was called, for the message.
        module: the module.

    Returns:
        ``(parameters, buffers)``.

    Raises:
        TypeError: it is not a module, or of a kind that has no parameters to take out.
        ValueError: a parameter has no shape yet, or tensors share a part of their memory.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{fn}: module is a {type(module).__name__}, expected a torch.nn.Module")
    named = list(walk(module))
    for path, part in named:
        _require_open(fn, path, part)
    spans: list[tuple[int, int, int, Any, str]] = []
    kinds = ("_parameters", "_buffers")
    return tuple([_leaves(fn, named, kind, spans) for kind in kinds])  # pyright: ignore


def _leaves(fn: str, named: list[Any], kind: str, spans: list[Any]) -> Leaves:
    found: dict[Path, Tensor] = {}
    names: dict[Path, list[Path]] = {}
    first: dict[int, Path] = {}
    for path, part in named:
        for name, value in getattr(part, kind).items():
            if value is None:
                continue
            own = (*path, name)
            if is_lazy(value):
                text = f"{fn}: {tree.show_path(own)} of {_kind(part)} has no shape yet"
                raise ValueError(f"{text}; call the module once on an input first")
            if id(value) not in first:
                first[id(value)] = _same_memory(fn, own, kind, value, spans) or own
            if first[id(value)] == own:
                found[own], names[own] = value, []
            else:
                names[first[id(value)]].append(own)
    paths = sorted(found)
    numbers = {path: i for i, path in enumerate(paths)}
    where = {key: numbers[path] for key, path in first.items()}
    return Leaves(paths, [found[p] for p in paths], [names[p] for p in paths], where)


def _same_memory(fn: str, path: Path, kind: str, value: Tensor, spans: list[Any]) -> Path | None:
    """The leaf that a tensor is a second view of, if there is one."""
    try:
        storage = value.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse, or otherwise without one
        return None
    if not value.numel():
        return None
    extent = sum([(n - 1) * abs(s) for n, s in zip(value.shape, value.stride(), strict=True)]) + 1
    start = value.storage_offset() * value.element_size()
    end = start + extent * value.element_size()
    view = kind, value.shape, value.stride(), value.dtype
    for other, low, high, known, name in spans:
        if other == storage._cdata and start < high and low < end:
            if known == view and low == start:
                return name
            raise ValueError(
                f"{fn}: {tree.show_path(path)} and {tree.show_path(name)} share a part of their "
                "memory, so no tree can hold both; give the module a clone of one of them"
            )
    spans.append((storage._cdata, start, end, view, path))
    return None


def _require_open(fn: str, path: Path, module: nn.Module) -> None:
    """Refuse modules whose parameters are not, or not only, in their own dictionaries."""
    reason = None
    if isinstance(module, torch.jit.ScriptModule):
        reason = "a TorchScript program holds its own tensors; convert the module it was made of"
    elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        reason = "it belongs to one set of parameters; convert its .module"
    elif isinstance(module, TensorDictParams):
        reason = "it is a tree already; convert the module that uses it, or pass it as params"
    elif "_orig_mod" in module._modules:
        reason = "compiled code holds its own module; convert ._orig_mod and compile apply"
    if reason:
        where = f" at {tree.show_path(path)}" if path else ""
        raise TypeError(f"{fn}: module{where} is a {type(module).__name__}: {reason}")


def _kind(module: nn.Module) -> str:
    return type(module).__name__
