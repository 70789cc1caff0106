"""An inner loop as the ways to differentiate it see it, checked: its parts, its run and its end."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..autodiff import value_and_grad
from ..tree import Structure, flatten, require_same, show_path, unflatten
from ._check import require_mode, require_scalar

Stepper = Callable[[Any, Any, int], Any]
Outer = Callable[[Any, Any], Any]
Differentiated = Callable[[Any, Any], tuple[Any, Any]]


class Part:
    """An argument: its float leaves if they are wanted, and the nest that they are put back in."""

    def __init__(self, nest: Any, wanted: bool = True) -> None:
        self.nest, self.wanted = nest, wanted
        self.leaves, self.structure = flatten(nest)
        self.at = [i for i, x in enumerate(self.leaves) if wanted and is_float(x)]
        self.floats = [self.leaves[i] for i in self.at]

    def join(self, floats: Sequence[Tensor]) -> Any:
        """The nest with other floats."""
        return self._with(self.leaves, floats) if self.at else self.nest

    def slopes(self, floats: Sequence[Tensor]) -> Any:
        """A nest of the floats' gradients, zero for the other leaves."""
        return self._with([torch.zeros_like(x) for x in self.leaves], floats)

    def _with(self, leaves: Sequence[Tensor], floats: Sequence[Tensor]) -> Any:
        full = list(leaves)
        for i, x in zip(self.at, floats, strict=True):
            full[i] = x
        return unflatten(self.structure, full)


class Loop:
    """The inner loop and what is asked of it, checked."""

    def __init__(
        self,
        mode: str,
        step: Stepper,
        outer: Outer,
        steps: int,
        argnums: int | tuple[int, ...],
        has_aux: bool,
    ) -> None:
        self.mode, self.argnums, self.has_aux = mode, argnums, has_aux
        self.step, self.outer = step, outer
        self.steps = steps
        self.numbers = argnums if isinstance(argnums, tuple) else (argnums,)
        require_mode(mode, step, outer, steps, argnums, has_aux)

    def parts(self, hyper: Any, state: Any) -> tuple[Part, Part]:
        """Both arguments, with the floats of those that are differentiated."""
        parts = Part(hyper, 0 in self.numbers), Part(state, 1 in self.numbers)
        for name, part in zip(("hyper", "state"), parts, strict=True):
            if part.wanted and not part.leaves:
                kind = type(part.nest).__name__
                text = f"{name} is a {kind} without tensors, expected a tensor or a tree"
                raise TypeError(f"{self.mode}: {text} (from argnums)")
            for path, leaf in zip(part.structure.paths(), part.leaves, strict=True):
                if part.wanted and not is_float(leaf) and (name == "hyper" or not part.at):
                    text = f"{_at(name, path)} is {leaf.dtype}, expected a float dtype"
                    raise TypeError(f"{self.mode}: {text}; tree.partition takes it out")
        return parts

    def run(self, hyper: Any, state: Any, start: int, stop: int) -> Any:
        """State after steps start to stop - 1."""
        leaves, structure = flatten(state)
        for k in range(start, stop):
            state = self.step(hyper, state, k)
            after, same = flatten(state)
            self._require_kept(k, leaves, structure, after, same)
            leaves, structure = after, same
        return state

    def _require_kept(
        self, k: int, before: list[Tensor], was: Structure, after: list[Tensor], now: Structure
    ) -> None:
        states = (f"the state after step {k}", now), ("the state before it", was)
        require_same(self.mode, *states)
        for error, look in ((ValueError, _shape), (TypeError, _dtype)):
            if all([look(x) == look(y) for x, y in zip(before, after, strict=True)]):
                continue
            rows = zip(was.paths(), before, after, strict=True)
            changed = [
                f"{_at('state', path)} from {look(x)} to {look(y)}"
                for path, x, y in rows
                if look(x) != look(y)
            ]
            text = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" * (len(changed) > 5))
            raise error(f"{self.mode}: step {k} changes {text}")

    def end(self, hyper: Any, state: Any) -> Any:
        """What ``outer`` says, checked."""
        out = self.outer(hyper, state)
        require_scalar(self.mode, "outer", out, self.has_aux)
        return out

    def reverse(
        self, h: Part, s: Part, start: int, stop: int, end: Outer, has_aux: bool
    ) -> tuple[Any, tuple[list[Tensor], list[Tensor]]]:
        """What ``end`` says after a run, and the slopes at its beginning, by reverse mode."""

        def objective(a: list[Tensor], b: list[Tensor]) -> Any:
            hyper = h.join(a)
            return end(hyper, self.run(hyper, s.join(b), start, stop))

        return value_and_grad(objective, (0, 1), has_aux)(h.floats, s.floats)

    def unrolled(self, hyper: Any, state: Any) -> tuple[Any, Any]:
        """Value and gradient through all steps at once."""
        h, s = self.parts(hyper, state)
        out, (dh, ds) = self.reverse(h, s, 0, self.steps, self.end, self.has_aux)
        return out, self.slopes(h, dh, s, ds)

    def slopes(self, h: Part, dh: Sequence[Tensor], s: Part, ds: Sequence[Tensor]) -> Any:
        """The gradients that argnums asks for."""
        found = {
            number: part.slopes(floats)
            for number, part, floats in ((0, h, dh), (1, s, ds))
            if part.wanted
        }
        grads = tuple([found[number] for number in self.numbers])
        return grads if isinstance(self.argnums, tuple) else grads[0]


def is_float(x: Tensor) -> bool:
    """Whether a tensor can be differentiated."""
    return x.is_floating_point() or x.is_complex()


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _dtype(x: Tensor) -> torch.dtype:
    return x.dtype


def _at(name: str, path: Sequence[Any]) -> str:
    return f"{name} at {show_path(path)}" if path else name
