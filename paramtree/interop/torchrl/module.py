# TorchRL and tensordict are annotated loosely.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
"""What the loss modules share: networks that are held, and a pure loss that is called.

Unlike TorchRL's own, such a module leaves its networks as they are: their parameters stand in the
networks, so ``torchopt.MetaAdam(module)`` can replace them, ``torch.func.functional_call`` can pass
others in, and none is copied. Hyper-parameters are buffers (parameters, if they are given as such),
read at each call; a tensor is registered as it is, graph included.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor, nn
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import ValueEstimators, default_value_kwargs

import losses
from losses.module import HyperModule

from .heads import key_list, nested

# what each estimator is made with, and the options that standardize its advantages
ESTIMATORS: dict[ValueEstimators, tuple[str, ...]] = {
    ValueEstimators.TD0: ("gamma",),
    ValueEstimators.TD1: ("gamma",),
    ValueEstimators.TDLambda: ("gamma", "lmbda"),
    ValueEstimators.GAE: ("gamma", "lmbda"),
    ValueEstimators.VTrace: ("gamma", "rho_thresh", "c_thresh"),
}
AVERAGES = {ValueEstimators.GAE: "average_gae", ValueEstimators.VTrace: "average_adv"}
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": losses.absolute_error,
    "l2": losses.squared_error,
    "smooth_l1": losses.huber_error,
}


class LossOutput(TensorDict):
    """What a loss module gives: a TensorDict whose sum of losses can be differentiated."""

    def backward(self, **options: Any) -> None:
        """Runs ``backward`` on the sum of all entries whose name starts with ``loss``."""
        parts = [value for name, value in self.items() if name.startswith("loss")]
        torch.stack(parts).sum().backward(**options)


class FunctionalLoss(HyperModule, LossModule):
    """Base of the loss modules: networks, hyper-parameters and the names of keys."""

    hyper_names: ClassVar[tuple[str, ...]] = ("gamma", "lmbda")
    pure_names: ClassVar[dict[str, str]] = {}  # what the pure functions call some of them
    value_types: ClassVar[tuple[ValueEstimators, ...]] = (ValueEstimators.TD0,)
    result_keys: ClassVar[list[str]] = []  # of the result, in TorchRL's order

    def __init__(self, reduction: str | None, **hyper: Any) -> None:
        """Registers the hyper-parameters; those that are None are left out."""
        super().__init__()
        self.reduction = "mean" if reduction is None else reduction
        self.average = False
        for name, value in hyper.items():
            if value is not None:
                setattr(self, name, value)
        self.make_value_estimator()

    # ---- hyper-parameters

    def hyper(self, td: TensorDictBase, *names: str) -> dict[str, Any]:
        """The hyper-parameters of these names that there are: the td's entries, else our own."""
        found = {name: self.entry(td, name) for name in names}
        own = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return own | {name: value for name, value in found.items() if value is not None}

    def entry(self, td: TensorDictBase, name: str) -> Tensor | None:
        """The td's entry for a hyper-parameter, under TorchRL's name or the pure function's."""
        if name == "gamma" and "nonterminal" in td.keys():  # MultiStep's, and a power already
            return None
        found = (td.get(key, None) for key in (name, self.pure_names.get(name, name)))
        value = next((x for x in found if x is not None), None)
        if value is None or value.shape != (*td.batch_size, 1):
            return value
        return value.squeeze(-1)

    def is_hyper(self, name: str) -> bool:
        """Whether the name is a hyper-parameter's."""
        return name in type(self).hyper_names

    def keep(self, name: str, value: Any) -> None:
        """A number becomes a buffer."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"{type(self).__name__}: {name} is {value!r}, expected a float or a tensor"
            )
        self.register_buffer(name, torch.tensor(float(value)))

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As torch's; target parameters are buffers, and not among them."""
        return nn.Module.named_parameters(self, prefix, recurse, remove_duplicate)

    # ---- networks

    def hold(self, name: str, network: nn.Module | None, delay: bool = False) -> None:
        """Keeps a network under a name; with ``delay``, a copy of its parameters beside it."""
        setattr(self, name, network)
        if network is None:
            return
        if delay:
            source = TensorDict.from_module(network)
            copy = source.apply(lambda x: x.data.clone(), filter_empty=False)
            setattr(self, f"target_{name}_params", TensorDictParams(copy, no_convert=True))
        self._has_update_associated[name] = not delay

    def hold_ensemble(self, name: str, network: Any, size: int, delay: bool) -> None:
        """Keeps several networks: those of a list, or one and copies that begin elsewhere."""
        if isinstance(network, list | tuple):
            members = list(network)
            if len(members) != size:
                raise ValueError(
                    f"{type(self).__name__}: {name} is a list of {len(members)} networks, "
                    f"expected {size} (from its number of nets)"
                )
        else:
            members = [network, *(_fresh(network) for _ in range(size - 1))]
        self.hold(name, nn.ModuleList(members), delay)

    @contextmanager
    def held(self, name: str, target: bool = False) -> Iterator[Any]:
        """The network, or its target, with parameters that get no gradient."""
        network = self._modules[name]
        params: Any = self._modules.get(f"target_{name}_params") if target else None
        if params is None:
            params = TensorDict.from_module(network)
        with params.detach().to_module(network):
            yield network

    def __getattr__(self, item: str) -> Any:
        """``network_params`` is the tree of a network's parameters, as TorchRL's updaters ask."""
        name = item.removesuffix("_params")
        if name != item and not item.startswith("target_"):
            network = self.__dict__.get("_modules", {}).get(name)
            if network is not None:
                return TensorDict.from_module(network)
        return super().__getattr__(item)

    # ---- keys

    def key(self, name: str) -> Any:
        """The key that the user has chosen for an entry."""
        return getattr(self.tensor_keys, name)

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        """Keys are read at each call: nothing is to be forwarded."""

    def networks(self) -> list[Any]:
        """The networks that are held, each member of an ensemble by itself."""
        held = [x for name, x in self._modules.items() if name.endswith("_network")]
        found = [x for x in held if x is not None]
        return [x for net in found for x in (net if isinstance(net, nn.ModuleList) else [net])]

    @property
    def action_keys(self) -> list[Any]:
        """The entries of the action, one for each head."""
        return key_list(getattr(self.tensor_keys, "action", []))

    @property
    def in_keys(self) -> list[Any]:
        """The entries that the module reads."""
        step = [("next", self.key(name)) for name in ("reward", "done", "terminated")]
        return list(dict.fromkeys([*self.action_keys, *step, *self.root_keys, *self.next_keys]))

    @property
    def out_keys(self) -> list[str]:
        """The entries of the result, or those of them that ``select_out_keys`` chose."""
        return self.__dict__.get("_out_keys_apparent") or list(self.result_keys)

    @out_keys.setter
    def out_keys(self, value: Iterable[str]) -> None:
        self._out_keys = self._out_keys_apparent = list(value)

    @property
    def root_keys(self) -> list[Any]:
        """What the networks read of the state, and the critics of the action."""
        actor, made = self._modules.get("actor_network"), self._made_keys()
        own = [(x is actor, key) for x in self.networks() for key in x.in_keys]
        return [key for acts, key in own if not (acts and key in made)]

    @property
    def next_keys(self) -> list[Any]:
        """What the networks read of the state that follows, and the actor does not make."""
        made = {*self.action_keys, *self._made_keys()}
        return [nested("next", key) for key in self.root_keys if key not in made]

    def _made_keys(self) -> set[Any]:
        """What the actor writes, and the tds that it stands in."""
        actor: Any = self._modules.get("actor_network")
        keys = [nested(key) for key in actor.out_keys] if actor is not None else []
        parts = {key[:n] for key in keys for n in range(1, len(key) + 1)}
        return {key[0] if len(key) == 1 else key for key in parts}

    def opened(self, td: TensorDictBase) -> TensorDict:
        """The entries that every loss reads, under our names, in a td of their own."""
        made = self._made_keys()
        self.require(td, (key for key in self.root_keys if key not in made))
        found = {
            name: td.get(("next", self.key(name)), None)
            for name in ("reward", "done", "terminated")
        }
        if found["terminated"] is None:
            found["terminated"] = found["done"]
        step = {name: x for name, x in found.items() if x is not None}
        entries: dict[str, Any] = {"next": TensorDict(step, td.batch_size)}
        weight = td.get(getattr(self.tensor_keys, "priority_weight", "priority_weight"), None)
        if weight is not None and self.use_prioritized_weights:
            entries["weight"] = weight
        masks = [td.get(key, None) for key in self._loss_mask_keys()]
        masks = [x.reshape(td.batch_size) for x in masks if x is not None]
        if masks:
            entries["mask"] = torch.stack(masks).all(0)
        return TensorDict(entries, td.batch_size, names=td.names if any(td.names) else None)

    def require(self, td: TensorDictBase, keys: Iterable[Any]) -> None:
        """Raises for the first of the entries that is not there."""
        for key in keys:
            if td.get(key, None) is None:
                there = ", ".join(sorted(repr(x) for x in td.keys(True, True)))
                raise ValueError(
                    f"{type(self).__name__}: the td has no {key!r}; its keys are {there}"
                )

    # ---- targets

    def make_value_estimator(
        self, value_type: ValueEstimators | None = None, **hyperparams: Any
    ) -> "FunctionalLoss":
        """Chooses the estimator, and sets its hyper-parameters: what is given, else defaults."""
        name = type(self).__name__
        value_type = self.default_value_estimator if value_type is None else value_type
        if value_type not in self.value_types:
            known = ", ".join(str(x) for x in self.value_types)
            raise ValueError(f"{name}: value_type is {value_type!r}, expected one of {known}")
        self.value_type = value_type
        names, average = ESTIMATORS[value_type], AVERAGES.get(value_type, "")
        self.average = bool(hyperparams.pop(average, False))
        defaults = {"rho_thresh": 1.0, "c_thresh": 1.0, **default_value_kwargs(value_type)}
        accept(f"{name}.make_value_estimator({value_type})", hyperparams, names)
        for key in names:
            if key in hyperparams or not hasattr(self, key):
                setattr(self, key, hyperparams.get(key, defaults[key]))
        return self

    def result(self, td: TensorDictBase, out: TensorDictBase, **names: str) -> LossOutput:
        """What a loss adds to the td that it read, under TorchRL's names."""
        read = set(td.keys())
        entries = {names.get(name, name): x for name, x in out.items() if name not in read}
        return LossOutput(entries, out.batch_size)


def distance(function: str, name: str, value: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The elementwise distance of TorchRL's name."""
    if value not in DISTANCES:
        known = ", ".join(map(repr, DISTANCES))
        raise ValueError(f"{function}: {name} is {value!r}, expected one of {known}")
    return DISTANCES[value]


def accept(function: str, options: Iterable[str], names: Iterable[str]) -> None:
    """Raises for a keyword that is none of these names."""
    for option in options:
        if option not in names:
            today = {"entropy_coef": "entropy_coeff", "critic_coef": "critic_coeff"}.get(option)
            hint = f"; it is {today} today" if today else ""
            raise TypeError(
                f"{function}: {option} is not a keyword{hint}; the hyper-parameters are "
                f"{', '.join(names)}"
            )


def unsupported(function: str, **options: Any) -> None:
    """Raises for an option of TorchRL's that has no counterpart, unless it is left out."""
    for name, value in options.items():
        if value not in (None, False, ()):
            raise ValueError(f"{function}: {name} is not supported, leave it out (got {value!r})")


def _fresh(network: nn.Module) -> nn.Module:
    """A copy of a network that begins elsewhere, in the range of the original's parameters."""
    copy = deepcopy(network)
    with torch.no_grad():
        for x in copy.parameters():
            x.uniform_(float(x.min()), float(x.max()))
    return copy
