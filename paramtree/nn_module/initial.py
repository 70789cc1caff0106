"""Fresh parameters from a key: what the sub-modules' ``reset_parameters`` draw, drawn from it.

Each sub-module draws from a key of its own name, ``fold_in(key of the one above, name)``. Those of
a sub-module come before its own, and the first of several last, so that what is tied is as the one
that the leaf is named after makes it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from .. import rng
from .batching import lifted, memory
from .guard import Guard
from .leaves import Path, show
from .snapshot import Snapshot


class Initial:
    """How a module's leaves begin; ``draw(key)`` gives new ones."""

    def __init__(
        self,
        shot: Snapshot,
        params: Sequence[Tensor],
        buffers: Sequence[Tensor],
        reset: Callable[[nn.Module], Any] | None,
    ) -> None:
        self.shot, self.reset = shot, reset
        self.shapes = [(x.shape, x.dtype, x.device) for x in params]
        self.buffers = list(buffers)
        self.computed: dict[tuple[Path, str], Tensor] = {}
        if shot.is_parametrized:
            modules = shot.make(list(params), [x.clone() for x in buffers])
            with torch.no_grad(), Guard(shot, rng.key(0), modules):
                for part, module in zip(shot.parts, modules, strict=True):
                    for name in _parametrized(module):
                        value = getattr(module, name)
                        self.computed[part.path, name] = torch.empty_like(value, device="meta")

    def draw(self, key: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """New parameters and buffers.

        Args:
            key: int64 [2].

        Returns:
            One tensor for each leaf.

        Raises:
            ValueError: no sub-module initializes one of the parameters.
        """
        with torch.no_grad():
            blank = lifted([torch.empty(s, dtype=t, device=d) for s, t, d in self.shapes], [key])
            inside = lifted(self.buffers, [key])
            birth = _Birth(self.shot.make(blank, inside), set(), set())
            self._reset(birth, 0, key)
            if self.reset is not None:
                with self._guard(birth, rng.fold_in(key, 2)):
                    self.reset(birth.modules[0])
        after = self.shot.buffers_after(birth.modules, inside)
        rows = zip(after, inside, self.buffers, strict=True)
        kept = [old if x is own and not birth.wrote(own) else x for x, own, old in rows]
        return self._params(birth, blank), kept

    def _guard(self, birth: "_Birth", key: Tensor) -> Guard:
        guard = Guard(self.shot, key, birth.modules)
        guard.written = birth.written
        return guard

    def _reset(self, birth: "_Birth", at: int, key: Tensor) -> None:
        """Initializes a sub-module, after those that are in it."""
        birth.done.add(at)
        for name, child in reversed(self.shot.parts[at].modules):
            if child is not None and child not in birth.done:
                self._reset(birth, child, rng.fold_in(key, name))
        module, part = birth.modules[at], self.shot.parts[at]
        blank = {name: self.computed[part.path, name] for name in _parametrized(module)}
        target: Any = module
        if blank:
            values = [torch.empty_like(x, device=key.device) for x in blank.values()]
            blank = dict(zip(blank, lifted(values, [key]), strict=True))
            target = object.__new__(part.cls.__bases__[0])
            target.__dict__.update(module.__dict__)
            target.__dict__["_parameters"] = {**module._parameters, **blank}
        own = getattr(target, "reset_parameters", None)
        own = getattr(target, "_reset_parameters", None) if own is None else own
        if own is None:
            return
        with self._guard(birth, key):
            own()
            for name, old in blank.items():
                value = target._parameters[name]
                if value is not old or birth.wrote(old):
                    _invert(module.parametrizations[name], value)  # pyright: ignore

    def _params(self, birth: "_Birth", blank: list[Tensor]) -> list[Tensor]:
        """Parameters of a module that was reset."""
        fresh, left = list(blank), set(range(len(blank)))
        for module, part in zip(birth.modules, self.shot.parts, strict=True):
            for name, i in part.params:
                value = module._parameters[name]
                if i is not None and value is not None:
                    if value is not blank[i]:
                        fresh[i] = value.detach()
                    elif not birth.wrote(value):
                        continue
                    left.discard(i)
        if left:
            names = ", ".join([show(self.shot.params.paths[i]) for i in sorted(left)])
            raise ValueError(
                f"from_module: init can't draw {names}: no reset_parameters of {self.shot.name} or "
                "its sub-modules writes there; give from_module a function, reset, that does, or "
                "take the values that from_module returns"
            )
        return fresh


class _Birth(NamedTuple):
    """A copy of the module whose parameters are drawn, and what is known of it so far."""

    modules: list[nn.Module]
    done: set[int]
    written: set[int]

    def wrote(self, x: Tensor) -> bool:
        """Whether a tensor was written to; compiled code can't tell."""
        return torch.compiler.is_compiling() or memory(x) in self.written


def _parametrized(module: nn.Module) -> list[str]:
    """Names of a module's tensors that parametrizations compute."""
    if not parametrize.is_parametrized(module):
        return []
    return list(module.parametrizations._modules)  # pyright: ignore


def _invert(computed: Any, value: Tensor) -> None:
    """Gives a parametrization the parameters from which it computes a value."""
    original: Any = value
    for step in reversed(list(computed)):
        if hasattr(step, "right_inverse"):
            try:
                original = step.right_inverse(original)
            except NotImplementedError:  # then it counts as the identity, as when it was registered
                pass
    originals = [original] if computed.is_tensor else list(original)
    names = ["original"] if computed.is_tensor else [f"original{i}" for i in range(len(originals))]
    for name, x in zip(names, originals, strict=True):
        computed._parameters[name] = x
    for i, step in enumerate(computed):
        if isinstance(step, parametrizations._SpectralNorm):  # begin its power iteration again
            fresh = parametrizations._SpectralNorm(
                originals[0], step.n_power_iterations, step.dim, step.eps
            )
            step._buffers.update(fresh._buffers)
        if i < len(computed) - 1:
            originals = [step(*originals)]
