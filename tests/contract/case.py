"""What a row of the contract's table is, and the numbers that rows are made of."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

import losses
from paramtree import Model, optim, rng, tree

D = torch.float64
Key = str | tuple[str, ...]
Real = float | torch.Tensor


@dataclass
class Case:
    """A call of a public function, and the variants in which it must give the same.

    A case calls its function on a tuple of float64 trees and tensors. ``smooth`` is how often it's
    differentiable (0 where it gives integers, names or functions of no float). ``vmapped`` and
    ``compiled`` are True, or the documented reason why not; ``inductor`` marks the named dozen;
    ``covers`` names public functions that this row holds too.
    """

    name: str
    fn: Callable[..., Any]
    args: Callable[[], tuple[Any, ...]]
    smooth: int = 2
    vmapped: bool | str = True
    compiled: bool | str = True
    inductor: bool = False
    covers: tuple[str, ...] = field(default_factory=tuple)


class Row:
    """What rows of ``losses`` have in common: a name there, and what their case must stand."""

    name: str
    smooth: int
    vmapped: bool | str
    compiled: bool | str
    inductor: bool
    covers: tuple[str, ...]

    @property
    def fn(self) -> Callable[..., Any]:
        return getattr(losses, self.name)

    def standing(self, call: Callable[..., Any], args: Callable[[], tuple[Any, ...]]) -> Case:
        covers = tuple(f"losses.{name}" for name in self.covers)
        stands = (self.smooth, self.vmapped, self.compiled, self.inductor, covers)
        return Case(f"losses.{self.name}", call, args, *stands)


@dataclass
class Function(Row):
    """A row for a per-step function or a function of tensors in ``losses``.

    ``args`` are its tensors by name, ``hyper`` its real hyper-parameters and a value for each at
    which it is differentiable, ``options`` what else it takes. ``out`` picks from the result.
    """

    name: str
    args: Callable[[], Mapping[str, torch.Tensor]]
    hyper: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    out: Callable[[Any], Any] = lambda result: result
    smooth: int = 2
    vmapped: bool | str = True
    compiled: bool | str = True
    inductor: bool = False
    covers: tuple[str, ...] = ()

    def call(self, args: Mapping[str, Any], hyper: Mapping[str, Any]) -> Any:
        return self.out(self.fn(**args, **hyper, **self.options))

    def case(self) -> Case:
        def call(args: TensorDict, hyper: TensorDict) -> Any:
            return self.call(tree.entries(args), tree.entries(hyper))

        return self.standing(call, lambda: (tree.new(dict(self.args())), numbers(self.hyper)))


@dataclass
class Reducer(Row):
    """A row for a reducer: a td ``[2, 5]`` in float64 that it reads, and what is real in it.

    ``learned`` are the entries that an agent's networks write; where the td has ``("next", key)``
    too, that is the same network's output on the states that follow. ``hyper`` are all of the
    reducer's real keywords and a value for each at which it is differentiable, but those that only
    make targets: these are ``target_hyper``, and ``targets(td, hyper)`` is the estimator that makes
    the finished targets from them outside of the reducer. ``optional`` are entries of the td that
    it reads but can do without; ``options`` what else it is called with. ``per_step`` is False
    where steps do not stand for themselves (a mean over the td enters each).
    """

    name: str
    td: Callable[[], TensorDict]
    learned: tuple[Key, ...]
    hyper: Mapping[str, float] = field(default_factory=dict)
    target_hyper: Mapping[str, float] = field(default_factory=dict)
    targets: Callable[[TensorDictBase, Mapping[str, Any]], TensorDictBase] | None = None
    optional: tuple[Key, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    per_step: bool = True
    smooth: int = 2
    vmapped: bool | str = True
    compiled: bool | str = True
    inductor: bool = False
    covers: tuple[str, ...] = ()

    @property
    def real(self) -> set[str]:
        """The keywords that the signature says may be tensors."""
        parameters = inspect.signature(self.fn).parameters.values()
        keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        return {p.name for p in keywords if p.annotation in (Real, Real | None)}

    def call(self, td: TensorDictBase, hyper: Mapping[str, Any], **options: Any) -> TensorDictBase:
        return self.fn(td, **hyper, **{**self.options, **options})

    def finished(self, td: TensorDictBase, hyper: Mapping[str, Any]) -> TensorDictBase:
        """The td with its targets."""
        return td if self.targets is None else self.targets(td, hyper)

    def case(self) -> Case:
        def call(td: TensorDict, hyper: TensorDict) -> torch.Tensor:
            h = tree.entries(hyper)
            own = {name: h[name] for name in self.hyper}
            return losses.total(self.call(self.finished(td, h), own))

        hyper = {**self.hyper, **self.target_hyper}
        return self.standing(call, lambda: (self.td(), numbers(hyper)))


def transform_case(
    name: str, make: Callable[[torch.Tensor], optim.Transform], **options: Any
) -> Case:
    """Two updates, differentiated in gradients, parameters and the hyper-parameter."""

    def call(p: TensorDict, g: TensorDict, hyper: torch.Tensor) -> TensorDict:
        transform = make(hyper[0])
        state = transform.init(p)
        updates, state = transform.update(g, state, p)
        p = optim.apply_updates(p, updates)
        updates, _ = transform.update(tree.map(torch.sin, g), state, p)
        return optim.apply_updates(p, updates)

    def args() -> tuple[Any, ...]:
        return params(), grads(), number()

    return Case(f"optim.{name}", call, args, **options)


def layer_case(name: str, layer: Model, x: Callable[[], Any], **options: Any) -> Case:
    def args() -> tuple[Any, ...]:
        leaves, structure = tree.flatten(layer.init(rng.key(0))[0])
        return tree.unflatten(structure, [leaf.double() for leaf in leaves]), x()

    def call(p: Any, x: Any) -> Any:
        return layer.apply(p, layer.init(rng.key(0))[1], x)[0]

    return Case(f"nn.{name}", call, args, **options)


def params() -> TensorDict:
    policy = tree.new({"w": draw("w", 2, 3), "b": draw("b", 2)}, (2,))
    return tree.new({"meta": tree.new({"w": draw("m", 3)}), "policy": policy})


def number() -> torch.Tensor:
    """A hyper-parameter [1] for ``number[0]``: code with a 0-d float64 argument is traced twice."""
    return torch.full((1,), 0.3, dtype=D)


def grads() -> TensorDict:
    """Some of the params' names and shapes."""
    return tree.map(lambda x: (3 * x).cos(), params())


def leaves(td: TensorDictBase) -> list[tuple[Key, torch.Tensor]]:
    """Paths and tensors of a td."""
    return [(key, td.get(key)) for key in td.keys(True, True)]


def floats(td: TensorDictBase) -> dict[Key, torch.Tensor]:
    """Its floating-point entries."""
    return {key: x for key, x in leaves(td) if x.is_floating_point()}


def named(key: Key) -> str:
    """A path as a message has it."""
    return key if isinstance(key, str) else ".".join(key)


def changed(td: TensorDictBase, entries: Mapping[Key, Any]) -> TensorDictBase:
    """A copy with other entries, which keep their graphs, as those do that stay."""
    out = td.copy()
    for key, value in entries.items():
        if isinstance(key, tuple):
            nested = out.get(key[0], TensorDict({}, out.batch_size)).copy()
            key, value = key[0], nested.set(key[1:], value)
        out = out.set(key, value)
    return out


def numbers(values: Mapping[str, float]) -> TensorDict:
    return tree.new({name: torch.tensor(value, dtype=D) for name, value in values.items()})


def draw(name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
    return rng.uniform(rng.fold_in(rng.key(7), name), shape, low, high, dtype=D)


def flags(name: str, *shape: int, p: float = 0.3) -> torch.Tensor:
    return rng.bernoulli(rng.fold_in(rng.key(8), name), p, shape)


def trajectory(*size: int) -> TensorDict:
    following = tree.new(
        {
            "reward": draw("reward", *size),
            **ends(*size),
            "state_value": draw("next value", *size),
            "prediction": draw("next prediction", *size, 4),
        },
        size,
    )
    entries = {
        "logits": draw("logits", *size, 3),
        "action": rng.randint(rng.key(5), size, 0, 3),
        "state_value": draw("value", *size),
        "prediction": draw("prediction", *size, 4),
        "pi_hat": draw("pi_hat", *size),
        "y_hat": draw("y_hat", *size, 4).softmax(-1),
        "next": following,
    }
    return tree.new(entries, size)


def advantaged(*size: int) -> TensorDict:
    more = {"advantage": draw("advantage", *size), "value_target": draw("target", *size)}
    return tree.new({**tree.entries(trajectory(*size)), **more}, size)


def ends(*size: int) -> dict[str, torch.Tensor]:
    """Flags of a trajectory: some steps end an episode, and some of those for good."""
    return {
        "done": flags("done", *size) | flags("end", *size),
        "terminated": flags("done", *size),
    }
