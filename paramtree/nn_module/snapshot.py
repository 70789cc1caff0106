"""A module taken apart, and copies of it on demand around other tensors.

A copy costs a microsecond a sub-module: a bare object of the same class whose dictionary is the
snapshot's, with other parameters, buffers and children in it. Every call of a model runs one of its
own, so nothing that ``forward`` does to it lasts or is seen elsewhere: not by another thread, not
by a call inside of the call, and not after an exception.
"""

import copy
import weakref
from collections.abc import Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from .. import tree
from . import leaves, objects
from .leaves import Path
from .references import References

Slots = tuple[tuple[str, int | None], ...]

_HOOKS = frozenset(nn.Module().__dict__) - {"training", "_parameters", "_buffers", "_modules"}
_PARTS = ("_parameters", "_buffers", "_modules")
_new = object.__new__


class Part(NamedTuple):
    """One sub-module: what its copies have in common, and the numbers of what they don't."""

    path: Path
    cls: type
    attributes: dict[str, Any]
    params: Slots
    buffers: Slots
    modules: Slots
    made: tuple[tuple[str, int], ...]
    touches: objects.Touches


class Snapshot:
    """A module's structure as it is now; later changes of the module are not seen.

    ``params`` and ``buffers`` are its leaves, ``parts`` its sub-modules, the module itself first.
    ``is_known`` says that all code in it is torch's own, which is known to draw nothing and to
    write only to the buffers in ``writes``; where it is not, a guard has to look. ``own`` finds a
    tensor of the module itself by its id, and ``free`` are the buffers of other code than torch's,
    which may change their shapes.
    """

    def __init__(self, fn: str, module: nn.Module) -> None:
        self.name = type(module).__name__
        self.params, self.buffers = leaves.find(fn, module)
        named: dict[int, tuple[Path, nn.Module]] = {}
        for path, part in leaves.walk(module):
            named.setdefault(id(part), (path, part))
        numbers = {key: i for i, key in enumerate(named)}
        references = References(self.params.where, self.buffers.where, numbers)
        self.parts = [self._part(path, m, numbers, references) for path, m in named.values()]
        self.makers = references.makers
        modules = [part for _, part in named.values()]
        self.own = {
            id(x): (weakref.ref(x), (*path, name))
            for path, part in named.values()
            for name, x in (*part._parameters.items(), *part._buffers.items())
            if x is not None
        }
        self.own |= {  # what was computed of its parameters would be a constant
            id(x): (weakref.ref(x), (*path, name))
            for path, part in named.values()
            for name, x in part.__dict__.items()
            if isinstance(x, Tensor) and x.grad_fn is not None and name not in _hooked(part)
        }
        self.is_known = all([_is_known(part) for part in modules])
        self.is_guarded = not self.is_known or any([_is_watched(part) for part in modules])
        self.attends = any([isinstance(part, nn.MultiheadAttention) for part in modules])
        self.is_parametrized = any([parametrize.is_parametrized(part) for part in modules])
        self.overwrites = not self.is_known or any([getattr(m, "inplace", False) for m in modules])
        pairs = list(zip(self.parts, modules, strict=True))
        self.writes = _numbers([part.buffers for part, m in pairs if _updates(m)])
        free = _numbers([part.buffers for part, m in pairs if not _is_known(m)])
        self.free = {self.buffers.paths[i] for i in free}
        self.copied = sorted(self.writes if self.is_known else range(len(self.buffers.paths)))

    def _part(
        self, path: Path, module: nn.Module, numbers: dict[int, int], references: References
    ) -> Part:
        attributes = {k: v for k, v in module.__dict__.items() if k not in _PARTS}
        attributes.pop("_compiled_call_impl", None)  # whoever compiles apply compiles this too
        if isinstance(module, nn.RNNBase) and not _is_derived(module):
            attributes["_flat_weight_refs"] = [None] * len(module._flat_weights)
        made = []
        for name, value in attributes.items():
            number = references.number(value, name not in _HOOKS)
            if number is not None:
                made.append((name, number))
                attributes[name] = None
            elif name in _HOOKS:
                attributes[name] = copy.copy(value)
        return Part(
            path,
            type(module),
            attributes,
            _slots(module._parameters, self.params.where),
            _slots(module._buffers, self.buffers.where),
            _slots(module._modules, numbers),
            tuple(made),
            objects.touches(type(module)),
        )

    def released(self) -> "Snapshot":
        """The same without the module's own tensors, so that it doesn't keep them alive."""
        self.params, self.buffers = self.params.released(), self.buffers.released()
        return self

    def make(self, params: Sequence[Any], buffers: Sequence[Any]) -> list[nn.Module]:
        """A copy around other tensors.

        Args:
            params: one for each leaf.
            buffers: one for each leaf.

        Returns:
            Its sub-modules, one for each part.
        """
        compiling = torch.compiler.is_compiling()
        modules: list[Any] = [_new(part.cls) for part in self.parts]
        made: list[Any] = []
        for maker in self.makers:
            made.append(maker(params, buffers, modules, made))  # pyright: ignore
        for module, part in zip(modules, self.parts, strict=True):
            own = part.attributes.copy()
            own["_parameters"] = _filled(part.params, params) if part.params else {}
            own["_buffers"] = _filled(part.buffers, buffers) if part.buffers else {}
            own["_modules"] = _filled(part.modules, modules) if part.modules else {}
            for name, number in part.made:
                own[name] = made[number]
            objects.fill(module, own, part.touches, compiling)
        return modules

    def buffers_after(self, modules: list[nn.Module], given: Sequence[Tensor]) -> list[Tensor]:
        """Buffers that a copy has after its run.

        Args:
            modules: the copy's sub-modules.
            given: what it was made with.

        Returns:
            One for each leaf: the same tensor where it wasn't replaced.

        Raises:
            ValueError: a name is no longer, or only now, that of a tensor, or two names of one leaf
                have different values.
        """
        found: dict[int, Tensor] = {}
        for module, part in zip(modules, self.parts, strict=True):
            if len(module._buffers) != len(part.buffers):
                names = ", ".join(dict(part.buffers)) or "none"
                self._complain(part, f"has the buffers {', '.join(module._buffers)}, not {names}")
            for name, i in part.buffers:
                value = module._buffers.get(name)
                if (value is None) != (i is None):
                    old = "None" if i is None else "a tensor"
                    self._complain(part, f"made {name} a {type(value).__name__}, it was {old}")
                if i is not None and found.setdefault(i, value) is not value:  # pyright: ignore
                    twin = leaves.show(self.buffers.paths[i])
                    self._complain(part, f"gave {name} another value than {twin}, its twin")
        return [found[i] for i in range(len(given))]

    def _complain(self, part: Part, text: str) -> None:
        raise ValueError(
            f"from_module: {part.cls.__name__}{_at(part.path)} changed which buffers there are: "
            f"after forward it {text}; call the module once before it's converted, so that all "
            "its buffers are there"
        )

    def require_same_params(self, modules: list[nn.Module], given: Sequence[Tensor]) -> None:
        """Refuse that a copy has other parameters after its run than it was made with."""
        for module, part in zip(modules, self.parts, strict=True):
            for name, i in part.params:
                if i is not None and module._parameters.get(name) is not given[i]:
                    raise ValueError(
                        f"from_module: {part.cls.__name__}{_at(part.path)} replaced its parameter "
                        f"{name} in forward; parameters go in, and only buffers come out again"
                    )


def _filled(slots: Slots, values: Sequence[Any]) -> dict[str, Any]:
    return {name: None if i is None else values[i] for name, i in slots}


def _hooked(module: nn.Module) -> list[Any]:
    """Attributes that a hook, such as that of weight_norm, computes before each forward."""
    return [getattr(hook, "name", None) for hook in module._forward_pre_hooks.values()]


def _slots(values: Any, where: dict[int, int]) -> Slots:
    return tuple([(name, None if v is None else where[id(v)]) for name, v in values.items()])


def _numbers(slots: Sequence[Slots]) -> frozenset[int]:
    return frozenset([i for own in slots for _, i in own if i is not None])


def _at(path: Path) -> str:
    return f" at {tree.show_path(path)}" if path else ""


def _is_derived(module: nn.RNNBase) -> bool:
    """Whether a recurrent module's weights are computed, so that it has to look for changes."""
    return any([name not in module._parameters for name in module._flat_weights_names])


def _is_known(module: nn.Module) -> bool:
    """Whether what a sub-module runs is torch's own code, its children aside."""
    cls = type(module)
    if parametrize.is_parametrized(module):
        cls = cls.__bases__[0]
    ours = cls.__module__.startswith("torch.nn.modules.") or cls in (
        parametrize.ParametrizationList,
        parametrizations._SpectralNorm,
        parametrizations._WeightNorm,
        parametrizations._Orthogonal,
    )
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    own = [type(hook).__module__.startswith("torch.nn.utils.") for hook in hooks]
    functions = [
        f for f in vars(module).values() if isinstance(f, (FunctionType, MethodType, partial))
    ]
    own += [getattr(f, "__module__", "").startswith("torch.") for f in functions]
    return ours and all(own) and "forward" not in module.__dict__


def _is_watched(module: nn.Module) -> bool:
    """Whether rows stand for calls that torch's own code in a sub-module makes."""
    draws = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.MultiheadAttention, nn.RNNBase)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        return True
    old = [type(hook).__name__ == "WeightNorm" for hook in module._forward_pre_hooks.values()]
    if isinstance(module, parametrizations._WeightNorm) or any(old):
        return True
    always = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
    return isinstance(module, always) or (module.training and isinstance(module, draws))


def _updates(module: nn.Module) -> bool:
    """Whether torch's own code in a sub-module writes to its buffers."""
    kinds = (nn.modules.batchnorm._NormBase, parametrizations._SpectralNorm)
    old = [type(hook).__name__ == "SpectralNorm" for hook in module._forward_pre_hooks.values()]
    return module.training and (isinstance(module, kinds) or any(old))
