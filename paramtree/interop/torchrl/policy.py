# TorchRL and tensordict are annotated loosely.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
"""Losses of an actor and a critic of states: what they share, A2C and REINFORCE."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torchrl.objectives as peers
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.objectives.utils import ValueEstimators

import losses

from .heads import head_coefficients, is_composite, key_list, nested, only_key, summed, usable
from .module import ESTIMATORS, FunctionalLoss, LossOutput, distance, unsupported

Coefficient = float | Tensor | Mapping[Any, float | Tensor]
_FIXED_LMBDA = {ValueEstimators.TD0: 0.0, ValueEstimators.TD1: 1.0}
_GAE_FLOOR, _VTRACE_FLOOR = 1e-4, 1e-5  # of the deviation that an advantage is divided by


class PolicyLoss(FunctionalLoss):
    """What the losses of an actor and a critic of states share."""

    hyper_names: ClassVar[tuple[str, ...]] = (
        "gamma",
        "lmbda",
        "rho_thresh",
        "c_thresh",
        "entropy_coeff",
        "critic_coeff",
        "clip_value",
    )
    pure_names: ClassVar[dict[str, str]] = {"clip_value": "value_clip"}
    value_types = tuple(ESTIMATORS)
    default_value_estimator = ValueEstimators.GAE
    needs_behavior = False  # whether log mu(a|s) is read

    def __init__(
        self,
        actor_network: nn.Module | None,
        critic_network: nn.Module | None,
        *,
        loss_critic_type: str,
        separate_losses: bool,
        reduction: str | None,
        samples_mc_entropy: int = 1,
        delay_value: bool = False,
        entropy_coeff: Coefficient | None = None,
        **hyper: Any,
    ) -> None:
        name = type(self).__name__
        if actor_network is None:
            raise TypeError(f"{name}: actor_network is None, expected a module")
        self.distance = distance(name, "loss_critic_type", loss_critic_type)
        self.composite = is_composite(actor_network)
        heads: Any = list(getattr(actor_network, "dist_sample_keys", []))
        self.head_coeff: dict[Any, Any] = {}
        if isinstance(entropy_coeff, Mapping):
            coeff = head_coefficients(name, entropy_coeff, heads)
            self.head_coeff, entropy_coeff = coeff, 0.0
        super().__init__(reduction, entropy_coeff=entropy_coeff, **hyper)
        self.hold("actor_network", actor_network)
        self.hold("critic_network", critic_network, delay_value)
        self.separate_losses = separate_losses
        self.samples = samples_mc_entropy
        self.normalize_advantage = False
        self.normalize_advantage_exclude_dims: tuple[int, ...] = ()
        self.log_prob_keys: Any = list(getattr(actor_network, "log_prob_keys", []))
        if heads and self.log_prob_keys:
            self.set_keys(action=only_key(heads), sample_log_prob=only_key(self.log_prob_keys))

    # ---- keys

    @property
    def in_keys(self) -> list[Any]:
        """The entries that the module reads."""
        behavior = key_list(self.key("sample_log_prob")) if self._reads_behavior else []
        old = [self.key("value")] if hasattr(self, "clip_value") else []
        return [*super().in_keys, *behavior, *old]

    @property
    def entropy_keys(self) -> list[str]:
        """The entries of the result that speak of entropy."""
        return ["entropy", "loss_entropy"] if self.has_bonus else []

    @property
    def critic_keys(self) -> list[str]:
        """The entries of the result that speak of the critic."""
        clip = ["value_clip_fraction"] if hasattr(self, "clip_value") else []
        return ["loss_critic", *clip] if self.has_critic else []

    @property
    def has_critic(self) -> bool:
        """Whether there is a critic with a loss."""
        return self._modules.get("critic_network") is not None and hasattr(self, "critic_coeff")

    @property
    def has_bonus(self) -> bool:
        """Whether the policy's entropy counts."""
        return hasattr(self, "entropy_coeff")

    @property
    def _reads_behavior(self) -> bool:
        return self.needs_behavior or self.value_type is ValueEstimators.VTrace

    # ---- the policy

    def prepared(self, tensordict: TensorDictBase) -> TensorDict:
        """The td that the loss reads, with its targets."""
        out, td = self.opened(tensordict), tensordict.clone(False)
        actor: Any = self.actor_network
        params = actor.get_dist_params(td).select(*actor.dist_params_keys)  # a critic may read td
        out.update({"actor_output": params, **self._action(tensordict)})
        if self._reads_behavior:
            out["action_log_prob"] = self._behavior(tensordict)
        if self._modules.get("critic_network") is not None:
            out["state_value"] = self._critic(td)
        return self._targeted(tensordict, out)

    def _action(self, td: TensorDictBase) -> dict[str, Any]:
        """The action; of several heads, each where the actor writes it."""
        keys = self.action_keys
        if self.composite or len(keys) > 1:
            return dict(td.select(*keys, strict=False).items())
        action = td.get(keys[0], None)
        return {} if action is None else {"action": action}

    def _behavior(self, td: TensorDictBase) -> Tensor:
        """What the policy that acted gave its actions, log mu(a|s); the sum of several heads."""
        keys = key_list(self.key("sample_log_prob"))
        there = [key for key in keys if td.get(key, None) is not None]
        whole = [key for key in ("action_log_prob", "sample_log_prob") if key in td.keys()]
        if keys == self.log_prob_keys and not there and whole:
            keys = whole[:1]
        self.require(td, keys)
        return summed(td.select(*keys)) if len(keys) > 1 else summed(td.get(keys[0]))

    def dist_class(self, **params: Any) -> Any:
        """The actor's own distribution."""
        dist = self.actor_network.build_dist_from_params(TensorDict(params, []))
        return usable(dist, self.samples)

    # ---- the critic

    def _targeted(self, td: TensorDictBase, out: TensorDict) -> TensorDict:
        """The td with its advantages and targets, and the value that it holds from before."""
        names = {name: td.get(self.key(name), None) for name in ("advantage", "value_target")}
        old = td.get(self.key("value"), None)
        if old is not None:
            out["behavior"] = TensorDict({"state_value": old}, out.batch_size)
        if names["advantage"] is None:
            names = self._estimated(td, out)
        else:
            self._check_live(td, names["advantage"])
        if self.normalize_advantage:
            dims = self.normalize_advantage_exclude_dims
            names["advantage"] = _standardized(names["advantage"], out.get("mask", None), dims)
        return out.update({name: x for name, x in names.items() if x is not None})

    def _estimated(self, td: TensorDictBase, out: TensorDict) -> dict[str, Tensor]:
        """Advantage and value target, with a full stop on what the networks say."""
        if self._modules.get("critic_network") is None:
            raise ValueError(
                f"{type(self).__name__}: the td has no {self.key('advantage')!r}, and there is no "
                "critic_network to make it with; put it there beforehand, or give a critic"
            )
        self.require(td, [nested("next", key) for key in self.critic_network.in_keys])
        with self.held("critic_network", target=True) as network:
            value = network(td.get("next").clone(False)).get(self.key("value"))
        held = out.copy()
        held["state_value"] = out["state_value"].detach()
        held["next", "state_value"] = value.detach()
        hyper = self.hyper(td, *ESTIMATORS[self.value_type])
        if self.value_type is ValueEstimators.VTrace:
            held["actor_output"] = out["actor_output"].detach()
            rho, c = hyper["rho_thresh"], hyper["c_thresh"]
            clips = {"rho_clip": rho, "c_clip": c, "pg_rho_clip": rho}
            made = losses.add_vtrace(held, self.dist_class, gamma=hyper["gamma"], **clips)
        elif self.value_type is ValueEstimators.GAE:
            made = losses.add_advantage(held, **hyper)
        else:
            fixed = _FIXED_LMBDA.get(self.value_type)
            made = losses.add_lambda_returns(held, **{"lmbda": fixed, **hyper})
        advantage = made["advantage"].unsqueeze(-1)
        if self.average:
            floor = _GAE_FLOOR if self.value_type is ValueEstimators.GAE else _VTRACE_FLOOR
            advantage = _standardized(advantage, out.get("mask", None), (), floor)
        return {"advantage": advantage, "value_target": made["value_target"]}

    def _critic(self, td: TensorDictBase) -> Tensor:
        """The critic's value; with ``separate_losses`` the actor's parameters in it are held."""
        critic: Any = self.critic_network
        if not self.separate_losses:
            return critic(td).get(self.key("value"))
        shared = set(self.actor_network.parameters())
        params = TensorDict.from_module(critic)
        held: Any = params.apply(lambda x: x.detach() if x in shared else x, filter_empty=False)
        with held.to_module(critic):
            return critic(td.detach()).get(self.key("value"))

    def _check_live(self, td: TensorDictBase, advantage: Tensor) -> None:
        for name, value in self.hyper(td, *ESTIMATORS[self.value_type]).items():
            if value.requires_grad and torch.is_grad_enabled() and not advantage.requires_grad:
                raise ValueError(
                    f"{type(self).__name__}: {name} requires grad, but the td's "
                    f"{self.key('advantage')!r} does not, so it was not made with it and the "
                    f"gradient would be 0; drop the advantage from the td, e.g. with td.exclude"
                )

    # ---- the loss

    def options(self, td: TensorDictBase) -> dict[str, Any]:
        """The keywords that speak of the critic and of entropy."""
        hyper = self.hyper(td, "critic_coeff", "entropy_coeff", "clip_value")
        return {
            "critic_coeff": hyper.get("critic_coeff") if self.has_critic else None,
            "entropy_coeff": hyper["entropy_coeff"] if self.has_bonus else 0.0,
            "value_clip": hyper.get("clip_value"),
            "distance": self.distance,
            "reduction": self.reduction,
        }

    def finished(
        self, given: TensorDictBase, td: TensorDictBase, out: TensorDictBase, **names: str
    ) -> LossOutput:
        """The module's result; the entropy of heads with coefficients of their own is weighed."""
        result = self.result(td, out, **names)
        if not self.has_bonus:
            return result.exclude("loss_entropy", "entropy")
        if self.head_coeff and self.entry(given, "entropy_coeff") is None:
            result["loss_entropy"] = sum(
                self._head_entropy_loss(td, *item) for item in self.head_coeff.items()
            )
        return result

    def _head_entropy_loss(self, td: TensorDictBase, head: Any, coeff: float | Tensor) -> Tensor:
        def dist_class(**params: Any) -> Any:
            return self.dist_class(**params).dists[head]

        options = {"entropy_coeff": coeff, "reduction": self.reduction}
        return losses.entropy_loss(td, dist_class, **options)["loss_entropy"]


def _standardized(
    x: Tensor, mask: Tensor | None, exclude: tuple[int, ...], floor: float = 1e-6
) -> Tensor:
    """TorchRL's: less the mean, by the sample deviation or ``floor``, over the steps that count.

    The dimensions that are excluded are taken each by itself.
    """
    apart = {dim % x.dim() for dim in exclude}
    dims = [dim for dim in range(x.dim()) if dim not in apart]
    if x.numel() < 2 or not dims:
        return x
    if mask is None:
        mask = torch.ones_like(x, dtype=torch.bool)
    mask = mask.reshape(*mask.shape, *(1,) * (x.dim() - mask.dim())).expand_as(x)
    count = mask.sum(dims, keepdim=True)
    centered = x - torch.where(mask, x, 0.0).sum(dims, keepdim=True) / count
    squares = torch.where(mask, centered, 0.0).square().sum(dims, keepdim=True)
    deviation = (squares / (count - 1).clamp(min=1)).clamp(min=floor**2).sqrt()
    return centered / deviation


class A2CLoss(PolicyLoss):
    """``torchrl.objectives.A2CLoss`` over ``losses.a2c_loss``.

    Args are TorchRL's, and ``lmbda``; ``gamma`` is not refused, and every real one may be a tensor.

    Unlike TorchRL's: several heads work, and ``entropy_coeff`` may be one for each; an advantage
    that requires grad is taken, with its graph; the entropy of TanhNormal is in closed form, not
    sampled. ``advantage_norm`` raises.
    """

    _AcceptedKeys = peers.A2CLoss._AcceptedKeys
    default_keys = peers.A2CLoss.default_keys

    def __init__(
        self,
        actor_network: nn.Module | None = None,
        critic_network: nn.Module | None = None,
        *,
        entropy_bonus: bool = True,
        samples_mc_entropy: int = 1,
        entropy_coeff: Coefficient | None = None,
        critic_coeff: float | Tensor | None = 1.0,
        loss_critic_type: str = "smooth_l1",
        advantage_norm: Any = None,
        gamma: float | Tensor | None = None,
        separate_losses: bool = False,
        advantage_key: str | None = None,
        value_target_key: str | None = None,
        functional: bool = True,
        actor: nn.Module | None = None,
        critic: nn.Module | None = None,
        reduction: str | None = None,
        clip_value: float | Tensor | None = None,
        lmbda: float | Tensor | None = None,
    ) -> None:
        unsupported("A2CLoss", advantage_norm=advantage_norm)
        super().__init__(
            actor_network if actor is None else actor,
            critic_network if critic is None else critic,
            loss_critic_type=loss_critic_type,
            separate_losses=separate_losses,
            reduction=reduction,
            samples_mc_entropy=samples_mc_entropy,
            entropy_coeff=entropy_bonus_coeff(entropy_bonus, entropy_coeff),
            critic_coeff=critic_coeff,
            gamma=gamma,
            lmbda=lmbda,
            clip_value=clip_value,
        )
        self._set_deprecated_ctor_keys(advantage=advantage_key, value_target=value_target_key)

    @property
    def result_keys(self) -> list[str]:
        """The entries of the result."""
        return ["loss_objective", *self.critic_keys[:1], *self.entropy_keys]

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td that holds a trajectory."""
        td, options = self.prepared(tensordict), self.options(tensordict)
        if self.has_critic:
            out = losses.a2c_loss(td, self.dist_class, **options)
        else:
            kept = {name: options[name] for name in ("entropy_coeff", "reduction")}
            out = losses.policy_gradient_loss(td, self.dist_class, **kept)
        return self.finished(tensordict, td, out)


class ReinforceLoss(PolicyLoss):
    """``torchrl.objectives.ReinforceLoss`` over ``losses.reinforce_loss``.

    Args are TorchRL's, and ``lmbda``; ``gamma`` is not refused, and every real one may be a tensor.

    Unlike TorchRL's: an advantage that the td holds is not detached.
    """

    _AcceptedKeys = peers.ReinforceLoss._AcceptedKeys
    default_keys = peers.ReinforceLoss.default_keys

    def __init__(
        self,
        actor_network: nn.Module | None = None,
        critic_network: nn.Module | None = None,
        *,
        delay_value: bool = False,
        loss_critic_type: str = "smooth_l1",
        gamma: float | Tensor | None = None,
        advantage_key: str | None = None,
        value_target_key: str | None = None,
        separate_losses: bool = False,
        functional: bool = True,
        actor: nn.Module | None = None,
        critic: nn.Module | None = None,
        reduction: str | None = None,
        clip_value: float | Tensor | None = None,
        lmbda: float | Tensor | None = None,
    ) -> None:
        super().__init__(
            actor_network if actor is None else actor,
            critic_network if critic is None else critic,
            loss_critic_type=loss_critic_type,
            separate_losses=separate_losses,
            reduction=reduction,
            delay_value=delay_value,
            critic_coeff=1.0,
            gamma=gamma,
            lmbda=lmbda,
            clip_value=clip_value,
        )
        self._set_deprecated_ctor_keys(advantage=advantage_key, value_target=value_target_key)

    @property
    def result_keys(self) -> list[str]:
        """The entries of the result."""
        return ["loss_actor", "loss_value"]

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td that holds a trajectory."""
        td, options = self.prepared(tensordict), self.options(tensordict)
        del options["entropy_coeff"]
        out = losses.reinforce_loss(td, self.dist_class, **options)
        names = {"loss_objective": "loss_actor", "loss_critic": "loss_value"}
        return self.finished(tensordict, td, out, **names)


def entropy_bonus_coeff(bonus: bool, value: Coefficient | None) -> Coefficient | None:
    """The entropy's coefficient: None without a bonus, else what is given or TorchRL's default."""
    return None if not bonus else 0.01 if value is None else value
