# TorchRL and tensordict are annotated loosely.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
"""Losses of state-action values: DQN, DDPG, TD3.

Targets are made with the target networks' parameters detached, a full stop, and then left as they
are: they stay functions of ``gamma`` and of every other hyper-parameter that enters them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torchrl.objectives as peers
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.modules import QValueActor
from torchrl.modules.tensordict_module.common import ensure_tensordict_compatible
from torchrl.objectives.utils import ValueEstimators

import losses

from .module import FunctionalLoss, LossOutput, distance


class CriticLoss(FunctionalLoss):
    """What losses of state-action values share."""

    default_value_estimator = ValueEstimators.TD0

    def estimators(self) -> Mapping[ValueEstimators, Any]:
        """One step, as all of these algorithms take."""
        return {ValueEstimators.TD0: losses.add_td_target}

    @contextmanager
    def held(self, name: str, target: bool = False) -> Iterator[Any]:
        """The network, or its target, with parameters that get no gradient."""
        network = self._modules[name]
        params: Any = self._modules.get(f"target_{name}_params") if target else None
        if params is None:
            params = TensorDict.from_module(network)
        with params.detach().to_module(network):
            yield network

    def values(self, members: Any, td: TensorDictBase, action: Tensor) -> Tensor:
        """Q_i(s, a) of an action by each critic, ``[*B, N]``."""
        found = []
        networks: Any = members if isinstance(members, nn.ModuleList) else [members]
        for network in networks:
            copy = td.clone(False)
            copy.set(getattr(self.tensor_keys, "action", "action"), action)
            found.append(network(copy).get(self.key("state_action_value")))
        dims = td.batch_dims
        return torch.stack([x.reshape(td.batch_size) if x.dim() > dims else x for x in found], -1)

    def started(self, td: TensorDictBase) -> TensorDict:
        """The entries that every loss reads."""
        entries = self.opened(td)
        steps = td.get("steps_to_next_obs", None)
        if steps is not None:
            entries["steps_to_next_obs"] = steps
        return TensorDict(entries, td.batch_size)

    def merged(self, *outs: TensorDictBase) -> TensorDict:
        """Several results as one; the priority goes by the name that the user has chosen."""
        entries = {name: x for out in outs for name, x in out.items()}
        if "td_error" in entries:
            entries[self.key("priority")] = entries.pop("td_error")
        return TensorDict(entries, outs[0].batch_size)


class DQNLoss(CriticLoss):
    """``torchrl.objectives.DQNLoss`` over ``losses.q_learning_loss``.

    Args are TorchRL's, and ``gamma`` is not refused. The priority is the absolute error, one
    number per step; TorchRL's is its square.
    """

    _AcceptedKeys = peers.DQNLoss._AcceptedKeys
    default_keys = peers.DQNLoss.default_keys
    hyper_names: ClassVar[tuple[str, ...]] = ("gamma",)

    def __init__(
        self,
        value_network: nn.Module,
        *,
        loss_function: str | None = "l2",
        delay_value: bool = True,
        double_dqn: bool = False,
        gamma: float | Tensor | None = None,
        action_space: Any = None,
        priority_key: str | None = None,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        if double_dqn and not delay_value:
            raise ValueError("DQNLoss: double_dqn is True, which needs delay_value=True")
        super().__init__(reduction, gamma=gamma)
        self._set_deprecated_ctor_keys(priority=priority_key)
        self.use_prioritized_weights = use_prioritized_weights
        self.double_dqn = double_dqn
        self.distance = distance("DQNLoss", "loss_function", loss_function or "l2")
        network = ensure_tensordict_compatible(
            module=value_network, wrapper_type=QValueActor, action_space=action_space
        )
        self.hold("value_network", network, delay_value)

    out_keys: ClassVar[list[str]] = ["loss"]

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The loss of a td of transitions."""
        key = self.key("action_value")
        td = self.started(tensordict)
        td["action_value"] = self.value_network(tensordict.clone(False)).get(key)
        after = tensordict.get("next")
        with self.held("value_network", target=True) as network:
            td["next", "action_value"] = network(after.clone(False)).get(key)
        if self.double_dqn:
            with self.held("value_network") as network:
                td["next", "action_value_selector"] = network(after.clone(False)).get(key)
        td = losses.add_q_target(td, self.gamma)
        out = losses.q_learning_loss(td, distance=self.distance, reduction=self.reduction)
        return self.result(self.merged(out), loss_critic="loss")


class DDPGLoss(CriticLoss):
    """``torchrl.objectives.DDPGLoss`` over ``losses.ddpg_actor_loss`` and ``ddpg_critic_loss``.

    Args are TorchRL's, and ``gamma`` is not refused. The priority is the absolute error, one number
    per step; TorchRL's is its square.
    """

    _AcceptedKeys = peers.DDPGLoss._AcceptedKeys
    default_keys = peers.DDPGLoss.default_keys
    hyper_names: ClassVar[tuple[str, ...]] = ("gamma",)

    def __init__(
        self,
        actor_network: nn.Module,
        value_network: nn.Module,
        *,
        loss_function: str = "l2",
        delay_actor: bool = False,
        delay_value: bool = True,
        gamma: float | Tensor | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        super().__init__(reduction, gamma=gamma)
        self.use_prioritized_weights = use_prioritized_weights
        self.distance = distance("DDPGLoss", "loss_function", loss_function)
        self.separate_losses = separate_losses
        self.hold("actor_network", actor_network, delay_actor)
        self.hold("value_network", value_network, delay_value)

    out_keys: ClassVar[list[str]] = peers.DDPGLoss.out_keys

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td of transitions."""
        td = self.started(tensordict)
        action = td.get("action", None)
        action = tensordict.get("action") if action is None else action
        after = tensordict.get("next")
        td["state_action_value"] = self.values(self.value_network, tensordict, action)
        drawn = self.actor_network(tensordict.clone(False)).get("action")
        with self.held("value_network") as critic:
            td["state_action_value_actor"] = self.values(critic, tensordict, drawn)
        with self.held("actor_network", True) as actor, self.held("value_network", True) as critic:
            following = actor(after.clone(False)).get("action")
            td["next", "state_action_value"] = self.values(critic, after, following)
        td = losses.add_min_target(td, self.gamma)
        critic = losses.ddpg_critic_loss(td, distance=self.distance, reduction=self.reduction)
        actor = losses.ddpg_actor_loss(td, reduction=self.reduction)
        return self.result(self.merged(actor, critic), loss_critic="loss_value")


class TD3Loss(CriticLoss):
    """``torchrl.objectives.TD3Loss`` over ``losses.td3_actor_loss`` and ``td3_critic_loss``.

    Args are TorchRL's, ``gamma`` is not refused, and the noise's size and bound may be tensors.
    The priority is the largest absolute error of the critics, one number per step.
    """

    _AcceptedKeys = peers.TD3Loss._AcceptedKeys
    default_keys = peers.TD3Loss.default_keys
    hyper_names: ClassVar[tuple[str, ...]] = ("gamma", "policy_noise", "noise_clip")

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: nn.Module | list[nn.Module],
        *,
        action_spec: Any = None,
        bounds: tuple[Any, Any] | None = None,
        num_qvalue_nets: int = 2,
        policy_noise: float | Tensor = 0.2,
        noise_clip: float | Tensor = 0.5,
        loss_function: str = "smooth_l1",
        delay_actor: bool = True,
        delay_qvalue: bool = True,
        gamma: float | Tensor | None = None,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        super().__init__(reduction, gamma=gamma, policy_noise=policy_noise, noise_clip=noise_clip)
        self._set_deprecated_ctor_keys(priority=priority_key)
        self.use_prioritized_weights = use_prioritized_weights
        self.distance = distance("TD3Loss", "loss_function", loss_function)
        self.separate_losses = separate_losses
        self.hold("actor_network", actor_network, delay_actor)
        self.hold_ensemble("qvalue_network", qvalue_network, num_qvalue_nets, delay_qvalue)
        low, high = self._bounds(action_spec, bounds)
        self.register_buffer("min_action", torch.as_tensor(low))
        self.register_buffer("max_action", torch.as_tensor(high))

    out_keys: ClassVar[list[str]] = peers.TD3Loss.out_keys

    def _bounds(self, action_spec: Any, bounds: tuple[Any, Any] | None) -> tuple[Any, Any]:
        if (action_spec is None) == (bounds is None):
            raise ValueError(
                f"TD3Loss: bounds is {bounds} and action_spec is {action_spec}, expected one of "
                "the two"
            )
        if bounds is not None:
            return bounds
        if hasattr(action_spec, "keys"):  # a composite spec
            action_spec = action_spec[self.key("action")]
        space: Any = getattr(action_spec, "space", None)
        if not hasattr(space, "low"):
            raise TypeError(f"TD3Loss: action_spec is {action_spec}, expected a bounded one")
        return space.low, space.high

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td of transitions."""
        name = self.key("action")
        td, after = self.started(tensordict), tensordict.get("next")
        td["state_action_value"] = self.values(self.qvalue_network, tensordict, td["action"])
        drawn = self.actor_network(tensordict.clone(False)).get(name)
        with self.held("qvalue_network") as critics:
            td["state_action_value_actor"] = self.values(critics, tensordict, drawn)
        with (
            self.held("actor_network", True) as actor,
            self.held("qvalue_network", True) as critics,
        ):
            following = actor(after.clone(False)).get(name)
            following = losses.td3_target_action(
                following,
                torch.randn_like(following),
                self.min_action,
                self.max_action,
                sigma=self.policy_noise,
                noise_clip=self.noise_clip,
            )
            td["next", "state_action_value"] = self.values(critics, after, following)
        td = losses.add_min_target(td, self.gamma)
        critic = losses.td3_critic_loss(td, distance=self.distance, reduction=self.reduction)
        actor = losses.td3_actor_loss(td, reduction=self.reduction)
        return self.result(self.merged(actor, critic), loss_critic="loss_qvalue")
