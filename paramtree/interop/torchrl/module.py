# TorchRL and tensordict are annotated loosely.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
"""What the loss modules share: networks that are held, and a pure loss that is called.

Unlike TorchRL's own, such a module leaves its networks as they are: their parameters stand in the
networks, so ``torchopt.MetaAdam(module)`` can replace them, ``torch.func.functional_call`` can pass
others in, and none is copied. Hyper-parameters are buffers (parameters, if they are given as such),
read at each call; a tensor is registered as it is, graph included.
"""

from collections.abc import Callable, Iterator, Mapping
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


class FunctionalLoss(LossModule):
    """Base of the loss modules: networks, hyper-parameters and the names of keys."""

    hyper_names: ClassVar[tuple[str, ...]] = ("gamma", "lmbda")

    def __init__(self, reduction: str | None, **hyper: Any) -> None:
        """Registers the hyper-parameters; those that are None are left out."""
        super().__init__()
        self.reduction = "mean" if reduction is None else reduction
        for name, value in hyper.items():
            if value is not None:
                setattr(self, name, value)
        self.make_value_estimator()

    # ---- hyper-parameters

    def hyper(self, *names: str) -> dict[str, Any]:
        """The hyper-parameters of these names that are set, as they stand."""
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def __setattr__(self, name: str, value: Any) -> None:
        """A hyper-parameter that is assigned becomes a buffer, or a parameter if it is one."""
        if name not in type(self).hyper_names or "_buffers" not in self.__dict__:
            super().__setattr__(name, value)
        elif isinstance(value, bool) or not isinstance(value, int | float | Tensor):
            raise TypeError(
                f"{type(self).__name__}: {name} is {value!r}, expected a float or a tensor"
            )
        elif isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            value = value if isinstance(value, Tensor) else torch.tensor(float(value))
            self.register_buffer(name, value)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As torch's; a hyper-parameter of that name is replaced."""
        self._forget(name)
        super().register_buffer(name, tensor, persistent)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch's; a hyper-parameter of that name is replaced."""
        self._forget(name)
        super().register_parameter(name, param)

    def _forget(self, name: str) -> None:
        if name in type(self).hyper_names:
            self._buffers.pop(name, None)
            self._parameters.pop(name, None)

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
    def target(self, name: str) -> Iterator[Any]:
        """The network with its target parameters, if it has some."""
        network, params = self._modules[name], self._modules.get(f"target_{name}_params")
        if params is None:
            yield network
        else:
            with params.to_module(network):  # pyright: ignore[reportCallIssue]
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

    @property
    def in_keys(self) -> list[Any]:
        """The entries that the module reads."""
        networks = [x for name, x in self._modules.items() if name.endswith("_network")]
        members: list[Any] = []
        for network in networks:
            members += network if isinstance(network, nn.ModuleList) else [network]
        own = [key for network in members for key in network.in_keys]
        step = [("next", self.key(name)) for name in ("reward", "done", "terminated")]
        action = [self.key("action")] if hasattr(self.tensor_keys, "action") else []
        keys = [*action, *step, *own, *(_after(key) for key in own)]
        return list(dict.fromkeys(keys))

    def opened(self, td: TensorDictBase) -> dict[str, Any]:
        """The entries that every loss reads, under our names."""
        found = {
            name: td.get(("next", self.key(name)), None)
            for name in ("reward", "done", "terminated")
        }
        if found["terminated"] is None:
            found["terminated"] = found["done"]
        step = {name: x for name, x in found.items() if x is not None}
        entries: dict[str, Any] = {"next": TensorDict(step, td.batch_size)}
        optional = {"action": "action", "priority_weight": "weight"}
        for theirs, ours in optional.items():
            value = td.get(getattr(self.tensor_keys, theirs, theirs), None)
            if value is not None and (ours != "weight" or self.use_prioritized_weights):
                entries[ours] = value
        masks = [td.get(key, None) for key in self._loss_mask_keys()]
        masks = [x.reshape(td.batch_size) for x in masks if x is not None]
        if masks:
            entries["mask"] = torch.stack(masks).all(0)
        return entries

    # ---- targets

    def make_value_estimator(
        self, value_type: ValueEstimators | None = None, **hyperparams: Any
    ) -> "FunctionalLoss":
        """Chooses the estimator, and sets its hyper-parameters: what is given, else defaults."""
        name = type(self).__name__
        value_type = self.default_value_estimator if value_type is None else value_type
        if value_type not in self.estimators():
            known = ", ".join(str(x) for x in self.estimators())
            raise ValueError(f"{name}: value_type is {value_type!r}, expected one of {known}")
        self.value_type = value_type
        defaults = default_value_kwargs(value_type)
        known = {k: v for k, v in defaults.items() if k in ("gamma", "lmbda")}
        for key, value in {**known, **hyperparams}.items():
            if key not in known:
                raise TypeError(
                    f"{name}: {key} is not a hyper-parameter of {value_type}, expected one of "
                    f"{', '.join(known)}"
                )
            if key in hyperparams or not hasattr(self, key):
                setattr(self, key, value)
        return self

    def estimators(self) -> Mapping[ValueEstimators, Callable[..., TensorDictBase]]:
        """The estimators that the loss can use."""
        raise NotImplementedError

    def result(self, out: TensorDictBase, **names: str) -> LossOutput:
        """A loss's result under TorchRL's names."""
        entries = {names.get(name, name): value for name, value in out.items()}
        return LossOutput(entries, out.batch_size)


def distance(function: str, name: str, value: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The elementwise distance of TorchRL's name."""
    if value not in DISTANCES:
        known = ", ".join(map(repr, DISTANCES))
        raise ValueError(f"{function}: {name} is {value!r}, expected one of {known}")
    return DISTANCES[value]


def unsupported(function: str, **options: Any) -> None:
    """Raises for an option of TorchRL's that has no counterpart, unless it is left out."""
    for name, value in options.items():
        if value not in (None, False, ()):
            raise ValueError(f"{function}: {name} is not supported, leave it out (got {value!r})")


def _after(key: Any) -> tuple[str, ...]:
    return ("next", *((key,) if isinstance(key, str) else key))


def _fresh(network: nn.Module) -> nn.Module:
    """A copy of a network that begins elsewhere, in the range of the original's parameters."""
    copy = deepcopy(network)
    with torch.no_grad():
        for x in copy.parameters():
            x.uniform_(float(x.min()), float(x.max()))
    return copy
