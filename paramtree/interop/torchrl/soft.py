# TorchRL and tensordict are annotated loosely.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
"""Soft actor-critic: SAC in both versions, with two or more critics, or with a critic of states."""

import math
from typing import Any, ClassVar

import torch
import torchrl.objectives as peers
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

import losses

from .module import LossOutput, distance
from .value import CriticLoss


class SACLoss(CriticLoss):
    """``torchrl.objectives.SACLoss`` over ``losses.sac_actor_loss`` and its kin.

    Args are TorchRL's, ``gamma`` is not refused, and every real one may be a tensor.

    ``log_alpha`` is a parameter, which its own loss alone trains: it enters the others detached.
    Replaced by a buffer (``register_buffer("log_alpha", tensor)``), or fixed, it enters them as it
    is. The bounds hold each time it is read, so it is never changed in place. The priority is the
    largest absolute error of the critics, one number per step. With a ``value_network`` each critic
    learns from the whole batch; TorchRL deals it out among them.
    """

    _AcceptedKeys = peers.SACLoss._AcceptedKeys
    default_keys = peers.SACLoss.default_keys
    hyper_names: ClassVar[tuple[str, ...]] = ("gamma", "log_alpha", "target_entropy")

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: nn.Module | list[nn.Module],
        value_network: nn.Module | None = None,
        *,
        num_qvalue_nets: int = 2,
        loss_function: str = "smooth_l1",
        alpha_init: float = 1.0,
        min_alpha: float | None = None,
        max_alpha: float | None = None,
        action_spec: Any = None,
        fixed_alpha: bool = False,
        target_entropy: str | float | Tensor = "auto",
        delay_actor: bool = False,
        delay_qvalue: bool = True,
        delay_value: bool = True,
        gamma: float | Tensor | None = None,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        skip_done_states: bool = False,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
        scalar_output_mode: str | None = None,
    ) -> None:
        log_alpha = torch.tensor(math.log(alpha_init))
        super().__init__(
            reduction,
            gamma=gamma,
            log_alpha=log_alpha if fixed_alpha else nn.Parameter(log_alpha),
        )
        self._set_deprecated_ctor_keys(priority_key=priority_key)
        self.use_prioritized_weights = use_prioritized_weights
        self.distance = distance("SACLoss", "loss_function", loss_function)
        self.bounds = (0.0 if min_alpha is None else min_alpha, max_alpha or math.inf)
        self.hold("actor_network", actor_network, delay_actor)
        if value_network is None:
            self.hold_ensemble("qvalue_network", qvalue_network, num_qvalue_nets, delay_qvalue)
        else:
            self.hold_ensemble("qvalue_network", qvalue_network, num_qvalue_nets, False)
            self.hold("value_network", value_network, delay_value)
        if target_entropy == "auto":
            target_entropy = self._target_entropy(action_spec, actor_network)
        self.target_entropy = target_entropy

    @property
    def out_keys(self) -> list[str]:
        """The entries of the result."""
        value = ["loss_value"] if self._modules.get("value_network") is not None else []
        return ["loss_actor", "loss_qvalue", "loss_alpha", *value, "alpha", "entropy"]

    def _target_entropy(self, action_spec: Any, actor: nn.Module) -> float:
        """Minus the number of the action's components."""
        spec = getattr(actor, "spec", None) if action_spec is None else action_spec
        if spec is not None and hasattr(spec, "keys"):
            spec = spec[self.key("action")]
        if spec is None:
            raise ValueError(
                "SACLoss: target_entropy is 'auto', which needs action_spec or an actor with a "
                "spec; give one, or a number"
            )
        return -float(spec.shape[-1] if len(spec.shape) else 1)

    @property
    def alpha(self) -> Tensor:
        """The temperature, within its bounds, without a graph."""
        return self.temperature().detach()

    def temperature(self) -> Tensor:
        """The temperature that the other losses get."""
        log_alpha = self.log_alpha
        log_alpha = log_alpha.detach() if isinstance(log_alpha, nn.Parameter) else log_alpha
        return losses.bounded_log_alpha(log_alpha, *self.bounds).exp()

    def drawn(self, actor: Any, td: TensorDictBase) -> tuple[Tensor, Tensor]:
        """An action that the actor draws, and its log-probability."""
        with set_exploration_type(ExplorationType.RANDOM):
            dist = actor.get_dist(td.clone(False))
            action = dist.rsample()
        return action, dist.log_prob(action)

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td of transitions."""
        alpha = self.temperature()
        td, after = self.started(tensordict), tensordict.get("next")
        td["state_action_value"] = self.values(self.qvalue_network, tensordict, td["action"])
        action, td["action_log_prob_actor"] = self.drawn(self.actor_network, tensordict)
        with self.held("qvalue_network") as critics:
            td["state_action_value_actor"] = self.values(critics, tensordict, action)
        td = self._with_target(td, after, alpha)
        options = {"distance": self.distance, "reduction": self.reduction}
        critic = losses.sac_critic_loss(td, **options)
        actor = losses.sac_actor_loss(td, alpha=alpha, reduction=self.reduction)
        parts = [actor, critic, self._temperature_loss(td)]
        if self._modules.get("value_network") is not None:
            parts.append(self._value_loss(td, tensordict, alpha))
        out = self.result(self.merged(*parts), loss_critic="loss_qvalue")
        out["alpha"] = alpha.detach()
        return out

    def _with_target(
        self, td: TensorDict, after: TensorDictBase, alpha: Tensor
    ) -> TensorDictBase:
        if self._modules.get("value_network") is not None:
            with self.held("value_network", True) as network:
                td["next", "state_value"] = network(after.clone(False)).get(self.key("value"))
            return losses.add_td_target(td, self.gamma)
        with (
            self.held("actor_network", True) as actor,
            self.held("qvalue_network", True) as critics,
        ):
            action, td["next", "action_log_prob_actor"] = self.drawn(actor, after)
            td["next", "state_action_value"] = self.values(critics, after, action)
        return losses.add_soft_target(td, self.gamma, alpha)

    def _temperature_loss(self, td: TensorDictBase) -> TensorDictBase:
        held = td.copy()
        held["action_log_prob_actor"] = td["action_log_prob_actor"].detach()
        return losses.sac_temperature_loss(
            held,
            log_alpha=losses.bounded_log_alpha(self.log_alpha, *self.bounds),
            target_entropy=self.target_entropy,
            reduction=self.reduction,
        )

    def _value_loss(
        self, td: TensorDictBase, tensordict: TensorDictBase, alpha: Tensor
    ) -> TensorDictBase:
        """The loss of a critic of states, which the policy's own sample values."""
        held = td.exclude("value_target").copy()
        for key in ("state_action_value_actor", "action_log_prob_actor"):
            held[key] = td[key].detach()
        held["state_value"] = self.value_network(tensordict.clone(False)).get(self.key("value"))
        out = losses.sac_value_loss(
            held, alpha=alpha, distance=self.distance, reduction=self.reduction
        )
        names = {name: x for name, x in out.items() if name.startswith("loss_")}
        return TensorDict({"loss_value": next(iter(names.values()))}, out.batch_size)
