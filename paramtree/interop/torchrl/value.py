# TorchRL and tensordict are annotated loosely.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
"""Losses of state-action values: DQN, DDPG, TD3.

Targets are made with the target networks' parameters detached, a full stop, and then left as they
are: they stay functions of ``gamma`` and of every other hyper-parameter that enters them.
"""

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

from .module import ESTIMATORS, FunctionalLoss, LossOutput, distance


class CriticLoss(FunctionalLoss):
    """What losses of state-action values share."""

    default_value_estimator = ValueEstimators.TD0

    def values(self, networks: Any, td: TensorDictBase) -> Tensor:
        """Q_i(s, a) of the td's own action by each critic, ``[*B, N]``."""
        members = networks if isinstance(networks, nn.ModuleList) else [networks]
        key = self.key("state_action_value")
        found = [network(td.clone(False)).get(key) for network in members]
        dims = td.batch_dims
        return torch.stack([x.reshape(td.batch_size) if x.dim() > dims else x for x in found], -1)

    def started(self, tensordict: TensorDictBase) -> tuple[TensorDict, TensorDictBase]:
        """The entries that every loss reads, and the td of what follows."""
        self.require(tensordict, [*self.action_keys, *self.next_keys])
        td = self.opened(tensordict)
        steps = tensordict.get("steps_to_next_obs", None)
        if steps is not None:
            td["steps_to_next_obs"] = steps
        return td, tensordict.get("next")

    def measured(self, td: TensorDictBase, x: Tensor) -> Tensor:
        """A diagnostic ``[*B]``: its mean over the steps that count, per step without reduction."""
        x, mask = x.detach(), td.get("mask", None)
        if mask is not None:
            x = torch.where(mask, x, 0.0)
        if self.reduction == "none":
            return x
        return x.mean() if mask is None else x.sum() / mask.sum()

    def merged(self, *outs: TensorDictBase) -> TensorDict:
        """Several results as one; the priority goes by the name that the user has chosen."""
        entries = {name: x for out in outs for name, x in out.items()}
        if "td_error" in entries:
            entries[self.key("priority")] = entries.pop("td_error")
        return TensorDict(entries, outs[0].batch_size)


class DQNLoss(CriticLoss):
    """``torchrl.objectives.DQNLoss`` over ``losses.q_learning_loss``.

    Args are TorchRL's, and ``gamma`` is not refused.

    Unlike TorchRL's: the priority is the absolute error, one number per step, not its square, and
    an entry of the result; ``pred_value`` and ``target_value`` are in the result too. With
    ``double_dqn`` the greedy action is that of the values, whatever else the network would pick.
    """

    _AcceptedKeys = peers.DQNLoss._AcceptedKeys
    default_keys = peers.DQNLoss.default_keys
    hyper_names: ClassVar[tuple[str, ...]] = ("gamma", "lmbda")
    value_types = (ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda)

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

    result_keys: ClassVar[list[str]] = ["loss"]

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The loss of a td of transitions."""
        td, after = self.started(tensordict)
        action = tensordict.get(self.key("action"))
        td.update({"action": action, "action_value": self._values(self.value_network, tensordict)})
        with self.held("value_network", target=True) as network:
            td["next", "action_value"] = self._values(network, after)
        if self.double_dqn:
            with self.held("value_network") as network:
                td["next", "action_value_selector"] = self._values(network, after)
        td = self._targeted(td, tensordict)
        out = losses.q_learning_loss(td, distance=self.distance, reduction=self.reduction)
        return self.result(td, self.merged(out), loss_critic="loss")

    def _values(self, network: Any, td: TensorDictBase) -> Tensor:
        return network(td.clone(False)).get(self.key("action_value"))

    def _targeted(self, td: TensorDict, given: TensorDictBase) -> TensorDictBase:
        hyper = self.hyper(given, *ESTIMATORS[self.value_type])
        if self.value_type is ValueEstimators.TD0:
            return losses.add_q_target(td, **hyper)
        value = td["next", "action_value"]
        choice = td.get(("next", "action_value_selector"), value).argmax(-1, keepdim=True)
        best = value.gather(-1, choice)
        steps = td.copy().set(("next", "state_value"), best).set("state_value", best)  # not read
        made = losses.add_lambda_returns(steps, **{"lmbda": 1.0, **hyper})
        return td.set("value_target", made["value_target"])


class DDPGLoss(CriticLoss):
    """``torchrl.objectives.DDPGLoss`` over ``losses.ddpg_actor_loss`` and ``ddpg_critic_loss``.

    Args are TorchRL's, and ``gamma`` is not refused.

    Unlike TorchRL's: the priority is the absolute error, one number per step, not its square;
    ``pred_value`` and ``target_value`` are means over the steps; with ``reduction="none"`` they are
    per step, and what belongs to no step is left out (``pred_value_max``, ``target_value_max``).
    ``separate_losses`` is without effect: no loss trains the parameters of the other network.
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

    @property
    def result_keys(self) -> list[str]:
        """The entries of the result."""
        whole = ["pred_value_max", "target_value_max"] if self.reduction != "none" else []
        return ["loss_actor", "loss_value", "pred_value", "target_value", *whole]

    @property
    def action_keys(self) -> list[Any]:
        """What the actor writes and the critic reads."""
        made = self._made_keys()
        return [key for key in self.value_network.in_keys if key in made]

    @property
    def in_keys(self) -> list[Any]:
        """The entries that the module reads."""
        weight = [self.key("priority_weight")] if self.use_prioritized_weights else []
        return [*super().in_keys, *weight]

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td of transitions."""
        td, after = self.started(tensordict)
        td["state_action_value"] = self.values(self.value_network, tensordict)
        drawn = self.actor_network(tensordict.clone(False))
        with self.held("value_network") as critic:
            td["state_action_value_actor"] = self.values(critic, drawn)
        with self.held("actor_network", True) as actor, self.held("value_network", True) as critic:
            td["next", "state_action_value"] = self.values(critic, actor(after.clone(False)))
        td = losses.add_min_target(td, **self.hyper(tensordict, "gamma"))
        critic = losses.ddpg_critic_loss(td, distance=self.distance, reduction=self.reduction)
        actor = losses.ddpg_actor_loss(td, reduction=self.reduction)
        return self.result(td, self.merged(actor, critic), loss_critic="loss_value")


class TD3Loss(CriticLoss):
    """``torchrl.objectives.TD3Loss`` over ``losses.td3_actor_loss`` and ``td3_critic_loss``.

    Args are TorchRL's, ``gamma`` is not refused, and the noise's size and bound may be tensors.

    Unlike TorchRL's: the priority is the largest absolute error of the critics, one number per
    step, not its square; ``pred_value`` and ``state_action_value_actor`` are means over the
    critics, and all diagnostics means over the steps, per step with ``reduction="none"``. Of one
    critic that is given the first member begins where it stands, and only the copies elsewhere.
    ``separate_losses`` and ``deactivate_vmap`` are without effect.
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

    result_keys: ClassVar[list[str]] = [
        "loss_actor",
        "loss_qvalue",
        "pred_value",
        "state_action_value_actor",
        "next_state_value",
        "target_value",
    ]

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
        td, after = self.started(tensordict)
        td["state_action_value"] = self.values(self.qvalue_network, tensordict)
        drawn = self.actor_network(tensordict.clone(False))
        with self.held("qvalue_network") as critics:
            td["state_action_value_actor"] = self.values(critics, drawn)
        with (
            self.held("actor_network", True) as actor,
            self.held("qvalue_network", True) as critics,
        ):
            following = actor(after.clone(False))
            following[name] = self._smoothed(following[name], tensordict)
            td["next", "state_action_value"] = self.values(critics, following)
        td = losses.add_min_target(td, **self.hyper(tensordict, "gamma"))
        critic = losses.td3_critic_loss(td, distance=self.distance, reduction=self.reduction)
        actor = losses.td3_actor_loss(td, reduction=self.reduction)
        out = self.result(td, self.merged(actor, critic), loss_critic="loss_qvalue")
        values = td["state_action_value_actor"].mean(-1), td["next", "state_action_value"].amin(-1)
        names = "state_action_value_actor", "next_state_value"
        return out.update({k: self.measured(td, x) for k, x in zip(names, values, strict=True)})

    def _smoothed(self, action: Tensor, td: TensorDictBase) -> Tensor:
        """The target policy's action with noise; of a size per step, if the td has one."""
        sigma, clip = (
            x.unsqueeze(-1) if x.dim() else x
            for x in self.hyper(td, "policy_noise", "noise_clip").values()
        )
        bounds = self.min_action, self.max_action
        noise = torch.randn_like(action)
        return losses.td3_target_action(action, noise, *bounds, sigma=sigma, noise_clip=clip)
