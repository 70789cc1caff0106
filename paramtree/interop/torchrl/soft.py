# TorchRL and tensordict are annotated loosely.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
"""Soft actor-critic: SAC in both versions, with two or more critics, or with a critic of states."""

import math
from typing import Any, ClassVar

import torch
import torchrl.objectives as peers
from tensordict import TensorDict, TensorDictBase, is_tensor_collection
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives.sac import compute_rsample_log_prob

import losses

from .heads import only_key
from .module import LossOutput, distance
from .value import CriticLoss


class SACLoss(CriticLoss):
    """``torchrl.objectives.SACLoss`` over ``losses.sac_actor_loss`` and its kin.

    Args are TorchRL's, ``gamma`` is not refused, and every real one may be a tensor. What is drawn
    is drawn in TorchRL's order, by its function: equal seeds give equal losses.

    ``log_alpha`` is a parameter, which its own loss alone trains: it enters the others detached.
    Replaced by a buffer (``register_buffer("log_alpha", tensor)``), or fixed, it enters them as it
    is, and so does an entry ``log_alpha`` of the td.

    Unlike TorchRL's: the bounds hold each time ``log_alpha`` is read, so it is never changed in
    place. The priority is the largest absolute error of the critics, one number per step. With
    ``reduction="none"`` the result holds ``alpha`` and ``entropy`` per step. With a
    ``value_network`` each critic learns from the whole batch; TorchRL deals it out among them. Of
    one critic that is given the first member begins where it stands, and only the copies elsewhere.
    ``separate_losses``, ``skip_done_states``, ``deactivate_vmap`` and ``scalar_output_mode`` are
    without effect: what follows a terminated step never counts.
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
        self.hold_ensemble("qvalue_network", qvalue_network, num_qvalue_nets, delay_qvalue)
        if value_network is not None:
            self.hold("value_network", value_network, delay_value)
        heads: Any = list(getattr(actor_network, "dist_sample_keys", []))
        if heads:
            self.set_keys(action=only_key(heads))
        if target_entropy == "auto":
            target_entropy = self._target_entropy(action_spec, actor_network)
        self.target_entropy = target_entropy

    @property
    def result_keys(self) -> list[str]:
        """The entries of the result."""
        value = [] if self._modules.get("value_network") is None else ["loss_value"]
        return ["loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy", *value]

    def _target_entropy(self, action_spec: Any, actor: nn.Module) -> float:
        """Minus the number of the action's components."""
        spec = getattr(actor, "spec", None) if action_spec is None else action_spec
        if spec is None:
            raise ValueError(
                "SACLoss: target_entropy is 'auto', which needs action_spec or an actor with a "
                "spec; give one, or a number"
            )
        leaves = [spec[key] for key in self.action_keys] if hasattr(spec, "keys") else [spec]
        return -float(sum(x.shape[-1] if len(x.shape) else 1 for x in leaves))

    @property
    def alpha(self) -> Tensor:
        """The temperature, within its bounds, without a graph."""
        return losses.bounded_log_alpha(self.log_alpha, *self.bounds).exp().detach()

    def temperature(self, td: TensorDictBase) -> Tensor:
        """The temperature that the other losses get."""
        alpha = td.get("alpha", None)
        if alpha is not None:
            return alpha.reshape(td.batch_size)
        log_alpha = self.hyper(td, "log_alpha")["log_alpha"]
        log_alpha = log_alpha.detach() if isinstance(log_alpha, nn.Parameter) else log_alpha
        return losses.bounded_log_alpha(log_alpha, *self.bounds).exp()

    def drawn(self, actor: Any, td: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
        """The td with an action that the actor draws, and its log-probability."""
        td = td.clone(False)
        with set_exploration_type(ExplorationType.RANDOM):
            action, log_prob = compute_rsample_log_prob(actor.get_dist(td))
        heads = is_tensor_collection(action)
        return td.update(action if heads else {self.key("action"): action}), log_prob

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td of transitions."""
        alpha = self.temperature(tensordict)
        td, after = self.started(tensordict)
        td["state_action_value"] = self.values(self.qvalue_network, tensordict)
        parts = []
        if self._modules.get("value_network") is not None:
            td = self._with_value_target(td, tensordict, after)
            parts.append(self._value_loss(td, tensordict, alpha))
        else:
            td = self._with_target(td, tensordict, after, alpha)
        drawn, log_prob = self.drawn(self.actor_network, tensordict)
        with self.held("qvalue_network") as critics:
            value = self.values(critics, drawn)
        td = td.copy().update(
            {"action_log_prob_actor": log_prob, "state_action_value_actor": value}
        )
        actor = losses.sac_actor_loss(td, alpha=alpha, reduction=self.reduction)
        critic = losses.sac_critic_loss(td, distance=self.distance, reduction=self.reduction)
        parts += [actor, critic, self._temperature_loss(td, tensordict)]
        out = self.result(td, self.merged(*parts), loss_critic="loss_qvalue")
        return out.update({"alpha": self.measured(td, alpha.expand(td.batch_size))})

    def _with_target(
        self, td: TensorDict, tensordict: TensorDictBase, after: TensorDictBase, alpha: Tensor
    ) -> TensorDictBase:
        """What the critics should say; the action that follows is the policy's of today."""
        with self.held("actor_network") as actor, self.held("qvalue_network", True) as critics:
            drawn, td["next", "action_log_prob_actor"] = self.drawn(actor, after)
            td["next", "state_action_value"] = self.values(critics, drawn)
        return losses.add_soft_target(td, alpha=alpha, **self.hyper(tensordict, "gamma"))

    def _with_value_target(
        self, td: TensorDict, tensordict: TensorDictBase, after: TensorDictBase
    ) -> TensorDictBase:
        """What the critics should say by the critic of states."""
        with self.held("value_network", True) as network:
            td["next", "state_value"] = network(after.clone(False)).get(self.key("value"))
        return losses.add_td_target(td, **self.hyper(tensordict, "gamma"))

    def _temperature_loss(self, td: TensorDictBase, tensordict: TensorDictBase) -> TensorDictBase:
        held = td.copy()
        held["action_log_prob_actor"] = td["action_log_prob_actor"].detach()
        hyper = self.hyper(tensordict, "log_alpha", "target_entropy")
        hyper["log_alpha"] = losses.bounded_log_alpha(hyper["log_alpha"], *self.bounds)
        return losses.sac_temperature_loss(held, **hyper, reduction=self.reduction)

    def _value_loss(
        self, td: TensorDictBase, tensordict: TensorDictBase, alpha: Tensor
    ) -> TensorDictBase:
        """The loss of the critic of states, by a draw of the target policy and critics."""
        held = td.exclude("value_target").copy()
        held["state_value"] = self.value_network(tensordict.clone(False)).get(self.key("value"))
        with (
            self.held("actor_network", True) as actor,
            self.held("qvalue_network", True) as critics,
        ):
            drawn, held["action_log_prob_actor"] = self.drawn(actor, tensordict)
            held["state_action_value_actor"] = self.values(critics, drawn)
        options = {"distance": self.distance, "reduction": self.reduction}
        return losses.sac_value_loss(held, alpha=alpha, **options).select("loss_value")
