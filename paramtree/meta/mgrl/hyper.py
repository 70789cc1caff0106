"""Hyper-parameters that are learned: numbers without bounds, and what an agent learns with.

*Eta* is a tree of unconstrained numbers, which any optimizer may move. A constraint turns each into
a hyper-parameter of the same name that is in its range:

    gamma = sigmoid(eta["gamma"])          entropy_coeff = softplus(eta["entropy_coeff"])

``Hyper`` says what eta is: one number for the whole run, one for each update, or the parameters of
a network that gives a number for each state.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from ... import tree
from ...autodiff.gradients import kind_of
from ...model import Model
from ...rng.philox import is_readable
from .._check import require_count


class Constraint(NamedTuple):
    """Smooth increasing function from all numbers onto a range, and its inverse.

    Attributes:
        apply: from eta to the hyper-parameter, elementwise.
        inverse: back; what is not in the range gives an infinity or NaN.
    """

    apply: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


CONSTRAINTS = {
    "sigmoid": Constraint(torch.sigmoid, torch.logit),  # (0, 1)
    "softplus": Constraint(F.softplus, lambda x: x + torch.log(-torch.expm1(-x))),  # above 0
    "exp": Constraint(torch.exp, torch.log),  # above 0, in ratios
    "none": Constraint(lambda x: x, lambda x: x),
}

# Where nothing else is said: by the names that rules and optimizers have for them.
USUAL = {
    "gamma": "sigmoid",
    "lmbda": "sigmoid",
    "entropy_coeff": "softplus",
    "critic_coeff": "softplus",
    "clip_epsilon": "softplus",
    "lr": "exp",
}

Constraints = Mapping[str, str | Constraint]


class Hyper(NamedTuple):
    """What eta is, and how an update reads it.

    Attributes:
        init: ``init(key) -> eta``.
        apply: ``apply(eta, td, k) -> (hyper, td)``: hyper-parameters of update k by name, 0-d, and
            the trajectory, to which those may be added that differ from step to step.
        show: ``show(eta, td) -> tree`` of numbers to look at, on a trajectory.
        view: ``view(eta, k) -> [H]``, what an agent sees of it that eta is an input of.
    """

    init: Callable[[Tensor], TensorDict]
    apply: Callable[[TensorDict, TensorDict, int], tuple[TensorDict, TensorDict]]
    show: Callable[[TensorDict, TensorDict], TensorDict]
    view: Callable[[TensorDict, int], Tensor]


def to_hyper(eta: TensorDictBase, constraints: Constraints | None = None) -> TensorDict:
    """Hyper-parameters from unconstrained numbers.

    Args:
        eta: tree of float tensors by the names of hyper-parameters.
        constraints: for each name "sigmoid" (for (0, 1)), "softplus" or "exp" (above 0), "none", or
            a ``Constraint``; where it has no word for a name, gamma and lmbda are under "sigmoid",
            entropy_coeff, critic_coeff and clip_epsilon under "softplus", and lr under "exp".

    Returns:
        Tree of the same names and shapes.

    Raises:
        ValueError: a name has no constraint, or the constraint is none of those.
        TypeError: eta is no tree, or constraints are of another kind.

    Source: Xu, van Hasselt & Silver (2018), "Meta-gradient reinforcement learning", section 2.
    """
    tree.require_tree("to_hyper", "eta", eta)
    found = {}
    for name, value in tree.entries(eta).items():
        found[name] = _constraint("to_hyper", name, constraints).apply(value)
    return tree.rebuild(eta, found)


def to_eta(
    hyper: TensorDictBase | Mapping[str, float | Tensor], constraints: Constraints | None = None
) -> TensorDict:
    """Unconstrained numbers that give some hyper-parameters; the inverse of ``to_hyper``.

    Args:
        hyper: numbers or float tensors by name; a number becomes a tensor of the default dtype.
            Tensors are looked at on the CPU, outside of transforms and compilers.
        constraints: as in ``to_hyper``.

    Returns:
        Eta, with the same names.

    Raises:
        ValueError: there is none, a value is not inside of its range (at a closed end, such as a
            discount of 1, the number would be infinite), or as in ``to_hyper``.
        TypeError: hyper holds something else, or as in ``to_hyper``.
    """
    if not isinstance(hyper, TensorDictBase | Mapping):
        raise TypeError(f"to_eta: hyper is {kind_of(hyper)}, expected numbers by name")
    size = hyper.batch_size if isinstance(hyper, TensorDictBase) else ()
    values = tree.entries(hyper) if isinstance(hyper, TensorDictBase) else dict(hyper)
    if not values:
        raise ValueError("to_eta: hyper is empty, expected a number or more, by name")
    found = {}
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number and not (isinstance(value, Tensor) and value.is_floating_point()):
            what = value.dtype if isinstance(value, Tensor) else kind_of(value)
            raise TypeError(f"to_eta: hyper.{name} is {what}, expected a float")
        constraint = _constraint("to_eta", name, constraints)
        given = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        free = constraint.inverse(given)
        if not isinstance(value, Tensor):
            free = free.to(torch.get_default_dtype())
        if is_readable(free) and not bool(free.isfinite().all()):
            shown = float(given.detach()[~free.isfinite()][0])
            text = f"{shown}, which its constraint can't give; expected a number in its range"
            raise ValueError(f"to_eta: hyper.{name} is {text}")
        found[name] = free
    return tree.new(found, size)


def hyper_numbers(
    start: Mapping[str, float | Tensor], constraints: Constraints | None = None
) -> Hyper:
    """One number for each hyper-parameter, for the whole run.

    Args:
        start: the hyper-parameters at first, by name; floats or 0-d float tensors.
        constraints: as in ``to_hyper``.

    Returns:
        What eta is: a tree of 0-d tensors with these names.

    Raises:
        ValueError: as in ``to_eta``, or a tensor isn't 0-d.
        TypeError: as in ``to_eta``.
    """
    return _numbers("hyper_numbers", start, constraints, None)


def hyper_schedule(
    start: Mapping[str, float | Tensor], updates: int, constraints: Constraints | None = None
) -> Hyper:
    """For each hyper-parameter a number for each of K updates, after which it begins anew.

    Args:
        start: the hyper-parameters at first, by name; floats or 0-d float tensors.
        updates: K, the entries of each schedule; update k reads number k mod K.
        constraints: as in ``to_hyper``.

    Returns:
        What eta is: a tree of tensors ``[K]`` with these names.

    Raises:
        ValueError: as in ``to_eta``, a tensor isn't 0-d, or updates is below 1.
        TypeError: as in ``to_eta``, or updates isn't an int.
    """
    require_count("hyper_schedule", "updates", updates)
    return _numbers("hyper_schedule", start, constraints, updates)


def hyper_network(model: Model, constraints: Constraints) -> Hyper:
    """Hyper-parameters that are functions of the state, written into the trajectory.

    Estimators and losses read them there, and an entry of the td wins over the keyword. Those that
    belong to no step, such as a learning rate, can't be had so.

    Args:
        model: network that reads the trajectory and writes for each of some names an unconstrained
            float tensor ``[*B, T]`` or ``[*B, T, 1]``.
        constraints: the names, and a constraint for each as in ``to_hyper``.

    Returns:
        What eta is: the network's parameters. The hyper-parameters by name are none, and the td has
        those of the network. Its buffers are what ``init`` made of a key of zeros.

    Raises:
        ValueError: a constraint is none of those, there is none, or later the network doesn't
            write a name.
        TypeError: constraints are of another kind.
    """
    if not constraints:
        raise ValueError("hyper_network: constraints is empty, expected the names that it writes")
    own = {name: _constraint("hyper_network", name, constraints) for name in constraints}

    def written(eta: TensorDict, td: TensorDict) -> dict[str, Tensor]:
        _, buffers = model.init(torch.zeros(2, dtype=torch.int64, device=td.device))
        out = model(eta, buffers, td)
        found = {}
        for name, constraint in own.items():
            if name not in out.keys():
                names = ", ".join(map(str, out.keys()))
                raise ValueError(f"hyper_network: the model wrote {names}, expected {name} too")
            found[name] = constraint.apply(out[name])
        return found

    def init(key: Tensor) -> TensorDict:
        return model.init(key)[0]

    def apply(eta: TensorDict, td: TensorDict, k: int) -> tuple[TensorDict, TensorDict]:
        return tree.new({}), tree.rebuild(td, {**tree.entries(td), **written(eta, td)})

    def show(eta: TensorDict, td: TensorDict) -> TensorDict:
        return tree.new({name: value.mean() for name, value in written(eta, td).items()})

    def view(eta: TensorDict, k: int) -> Tensor:
        raise ValueError(
            "hyper_network: a network's parameters are no input of an agent's; expected "
            "hyper_numbers or hyper_schedule with conditioned=True"
        )

    return Hyper(init, apply, show, view)


def _numbers(fn: str, start: Any, constraints: Constraints | None, updates: int | None) -> Hyper:
    first = to_eta(start, constraints)
    for name, value in tree.entries(first).items():
        if value.ndim:
            shape = tuple(value.shape)
            raise ValueError(f"{fn}: start.{name} has shape {shape}, expected a number or 0-d")

    def init(key: Tensor) -> TensorDict:
        size = () if updates is None else (updates,)
        return tree.map(lambda x: x.to(key.device).expand(size).clone(), first)

    def at(eta: TensorDict, k: int) -> TensorDict:
        if updates is None:
            return eta
        i = k % updates
        return tree.map(lambda x: x[i], eta)

    def apply(eta: TensorDict, td: TensorDict, k: int) -> tuple[TensorDict, TensorDict]:
        return to_hyper(at(eta, k), constraints), td

    def show(eta: TensorDict, td: TensorDict) -> TensorDict:
        return to_hyper(eta, constraints)

    def view(eta: TensorDict, k: int) -> Tensor:
        return torch.stack(tree.leaves(at(eta, k)))

    return Hyper(init, apply, show, view)


def _constraint(fn: str, name: str, constraints: Constraints | None) -> Constraint:
    given = {} if constraints is None else constraints
    if not isinstance(given, Mapping):
        raise TypeError(f"{fn}: constraints is {kind_of(given)}, expected words by name")
    word = given.get(name, USUAL.get(name))
    if isinstance(word, Constraint):
        return word
    known = ", ".join(map(repr, CONSTRAINTS))
    if word is None:
        raise ValueError(f"{fn}: {name} has no constraint, expected one of {known}")
    if not isinstance(word, str):
        raise TypeError(f"{fn}: constraints.{name} is {kind_of(word)}, expected one of {known}")
    if word not in CONSTRAINTS:
        raise ValueError(f"{fn}: constraints.{name} is {word!r}, expected one of {known}")
    return CONSTRAINTS[word]
