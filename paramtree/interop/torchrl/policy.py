# TorchRL and tensordict are annotated loosely.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
"""Losses of an actor and a critic of states: PPO in three forms, A2C, REINFORCE."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torchrl.objectives as peers
from tensordict import TensorDict, TensorDictBase, is_tensor_collection
from tensordict.nn import dispatch, set_composite_lp_aggregate
from torch import Tensor, nn
from torchrl.modules import TanhNormal
from torchrl.objectives.utils import ValueEstimators

import losses

from .module import FunctionalLoss, LossOutput, distance, unsupported

Estimator = Callable[..., TensorDictBase]


class _Sampled:
    """A distribution whose entropy, where it has no closed form, is a mean over samples."""

    def __init__(self, dist: Any, samples: int) -> None:
        self.dist, self.samples = dist, samples

    def log_prob(self, action: Any) -> Tensor:
        """Log-probability; that of several heads is summed."""
        with set_composite_lp_aggregate(False):
            return _summed(self.dist.log_prob(action))

    def entropy(self) -> Tensor:
        """Entropy; that of several heads is summed."""
        with set_composite_lp_aggregate(False):
            try:
                return _summed(self.dist.entropy())
            except NotImplementedError:
                draw = self.dist.rsample if self.dist.has_rsample else self.dist.sample
                return -_summed(self.dist.log_prob(draw((self.samples,)))).mean(0)


def _summed(x: Any) -> Tensor:
    if not is_tensor_collection(x):
        return x
    dims = x.batch_dims
    parts = x.values(include_nested=True, leaves_only=True)
    return torch.stack([p.flatten(dims).sum(-1) if p.dim() > dims else p for p in parts]).sum(0)


class _PolicyLoss(FunctionalLoss):
    """What the losses of an actor and a critic of states share."""

    hyper_names: ClassVar[tuple[str, ...]] = (
        "gamma",
        "lmbda",
        "entropy_coeff",
        "critic_coeff",
        "clip_value",
    )
    default_value_estimator = ValueEstimators.GAE
    critic_key = "loss_critic"

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
        **hyper: Any,
    ) -> None:
        name = type(self).__name__
        if actor_network is None:
            raise TypeError(f"{name}: actor_network is None, expected a module")
        self.distance = distance(name, "loss_critic_type", loss_critic_type)
        super().__init__(reduction, **hyper)
        self.hold("actor_network", actor_network)
        self.hold("critic_network", critic_network, delay_value)
        self.separate_losses = separate_losses
        self.samples = samples_mc_entropy

    @property
    def out_keys(self) -> list[str]:
        """The entries of the result."""
        return ["loss_objective", *(["loss_critic"] if self.has_critic else [])]

    @property
    def has_critic(self) -> bool:
        """Whether there is a critic with a loss."""
        return self._modules.get("critic_network") is not None and hasattr(self, "critic_coeff")

    @property
    def has_bonus(self) -> bool:
        """Whether the policy's entropy counts."""
        return hasattr(self, "entropy_coeff")

    def without_bonus(self, out: TensorDictBase) -> TensorDictBase:
        """The result, without its entropy where that does not count."""
        return out if self.has_bonus else out.exclude("loss_entropy", "entropy")

    def estimators(self) -> Mapping[ValueEstimators, Estimator]:
        """Of advantages and of what values should be."""
        return {
            ValueEstimators.GAE: losses.add_advantage,
            ValueEstimators.TDLambda: losses.add_lambda_returns,
            ValueEstimators.TD0: partial(losses.add_lambda_returns, lmbda=0.0),
            ValueEstimators.TD1: partial(losses.add_lambda_returns, lmbda=1.0),
        }

    def prepared(self, tensordict: TensorDictBase) -> tuple[TensorDict, Callable[..., Any]]:
        """The td that the loss reads, with its targets, and its ``dist_class``."""
        td = tensordict.clone(False)
        entries = self.opened(td)
        actor = self.actor_network
        entries["actor_output"] = actor.get_dist_params(td.clone(False)).select(
            *actor.dist_params_keys
        )
        if "action" not in entries:  # several heads
            entries["action"] = td.select(*actor.dist_sample_keys)
        if hasattr(self.tensor_keys, "sample_log_prob"):
            found = td.get(self.key("sample_log_prob") or "action_log_prob", None)
            if found is None and self.key("sample_log_prob") is None:
                found = td.get("sample_log_prob", None)
            if found is not None:
                entries["action_log_prob"] = _summed(found)
        out = TensorDict({}, td.batch_size, names=td.names if any(td.names) else None)
        return self._targeted(td, out.update(entries)), self._dist_class

    def _dist_class(self, **params: Any) -> Any:
        """The actor's own distribution."""
        dist = self.actor_network.build_dist_from_params(TensorDict(params, []))
        if type(dist) is TanhNormal:  # ours has an entropy and a divergence in closed form
            return losses.tanh_normal(dist.loc, dist.scale, dist.low, dist.high)
        try:
            dist.entropy()
        except NotImplementedError:
            return _Sampled(dist, self.samples)
        return dist

    def _targeted(self, td: TensorDictBase, out: TensorDict) -> TensorDict:
        """The td with the critic's value of each state, its advantages and targets."""
        names = {name: td.get(self.key(name), None) for name in ("advantage", "value_target")}
        critic = self._modules.get("critic_network")
        if critic is not None:
            old = td.get(self.key("value"), None)
            if old is not None:
                out["behavior"] = TensorDict({"state_value": old}, out.batch_size)
            out["state_value"] = self._critic(td)
        if names["advantage"] is not None:
            self._check_live(names["advantage"])
            return out.update({name: x for name, x in names.items() if x is not None})
        if critic is None:
            raise ValueError(
                f"{type(self).__name__}: the td has no {self.key('advantage')!r}, and there is no "
                "critic_network to make it with; put it there beforehand, or give a critic"
            )
        with self.target("critic_network") as network:
            after = network(td.get("next").clone(False)).get(self.key("value"))
        held = out.copy()
        held["state_value"] = out["state_value"].detach()
        held["next", "state_value"] = after.detach()
        estimator: Any = self.estimators()[self.value_type]
        made = estimator(held, **self.hyper(*self._discounts()))
        return out.update({name: made[name] for name in names})

    def _critic(self, td: TensorDictBase) -> Tensor:
        """The critic's value; with ``separate_losses`` the actor's parameters in it are held."""
        critic: Any = self.critic_network
        td = td.clone(False)
        if not self.separate_losses:
            return critic(td).get(self.key("value"))
        shared = set(self.actor_network.parameters())
        params = TensorDict.from_module(critic)
        held: Any = params.apply(lambda x: x.detach() if x in shared else x, filter_empty=False)
        with held.to_module(critic):
            return critic(td.detach()).get(self.key("value"))

    def _discounts(self) -> tuple[str, ...]:
        fixed = self.value_type in (ValueEstimators.TD0, ValueEstimators.TD1)
        return ("gamma",) if fixed else ("gamma", "lmbda")

    def _check_live(self, advantage: Tensor) -> None:
        for name in self._discounts():
            value = getattr(self, name)
            if value.requires_grad and torch.is_grad_enabled() and not advantage.requires_grad:
                raise ValueError(
                    f"{type(self).__name__}: {name} requires grad, but the td's "
                    f"{self.key('advantage')!r} does not, so it was not made with it and the "
                    f"gradient would be 0; drop the advantage from the td, e.g. with td.exclude"
                )

    def critic_options(self) -> dict[str, Any]:
        """The keywords that speak of the critic and of entropy."""
        coeff = self.critic_coeff if self.has_critic else None
        value_clip = self.clip_value if hasattr(self, "clip_value") else None
        return {
            "critic_coeff": coeff,
            "entropy_coeff": self.entropy_coeff if self.has_bonus else 0.0,
            "value_clip": value_clip,
            "distance": self.distance,
            "reduction": self.reduction,
        }


class PPOLoss(_PolicyLoss):
    """``torchrl.objectives.PPOLoss`` over ``losses.ppo_loss``.

    Args are TorchRL's, ``gamma`` is not refused, and every real one may be a tensor.
    """

    _AcceptedKeys = peers.PPOLoss._AcceptedKeys
    default_keys = peers.PPOLoss.default_keys

    def __init__(
        self,
        actor_network: nn.Module | None = None,
        critic_network: nn.Module | None = None,
        *,
        entropy_bonus: bool = True,
        samples_mc_entropy: int = 1,
        entropy_coeff: float | Tensor | None = None,
        log_explained_variance: bool = True,
        critic_coeff: float | Tensor | None = None,
        loss_critic_type: str = "smooth_l1",
        normalize_advantage: bool = False,
        normalize_advantage_exclude_dims: tuple[int, ...] = (),
        advantage_norm: Any = None,
        gamma: float | Tensor | None = None,
        separate_losses: bool = False,
        advantage_key: str | None = None,
        value_target_key: str | None = None,
        value_key: str | None = None,
        functional: bool = True,
        actor: nn.Module | None = None,
        critic: nn.Module | None = None,
        reduction: str | None = None,
        clip_value: float | Tensor | None = None,
        delay_actor: bool = False,
        max_importance_ratio: float | None = None,
        device: torch.device | None = None,
        **hyper: Any,
    ) -> None:
        name = type(self).__name__
        unsupported(
            name,
            normalize_advantage_exclude_dims=normalize_advantage_exclude_dims,
            advantage_norm=advantage_norm,
            delay_actor=delay_actor,
            max_importance_ratio=max_importance_ratio,
        )
        critic = critic_network if critic is None else critic
        if critic_coeff is None and critic is not None:
            critic_coeff = 1.0
        super().__init__(
            actor_network if actor is None else actor,
            critic,
            loss_critic_type=loss_critic_type,
            separate_losses=separate_losses,
            reduction=reduction,
            samples_mc_entropy=samples_mc_entropy,
            gamma=gamma,
            entropy_coeff=_entropy_coeff(entropy_bonus, entropy_coeff),
            critic_coeff=critic_coeff,
            clip_value=clip_value,
            **hyper,
        )
        self.log_explained_variance = log_explained_variance
        self.normalize_advantage = normalize_advantage
        self._set_deprecated_ctor_keys(
            advantage=advantage_key, value_target=value_target_key, value=value_key
        )
        if device is not None:
            self.to(device)

    def loss(self, td: TensorDictBase, dist_class: Any, **options: Any) -> TensorDictBase:
        """The pure loss, of what was prepared."""
        return losses.ppo_loss(td, dist_class, **options)

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td that holds a trajectory."""
        td, dist_class = self.prepared(tensordict)
        options = {**self.critic_options(), "normalize_advantage": self.normalize_advantage}
        out = self.loss(td, dist_class, **options)
        if not self.log_explained_variance:
            out = out.exclude("explained_variance")
        return self.result(self.without_bonus(out))


class ClipPPOLoss(PPOLoss):
    """``torchrl.objectives.ClipPPOLoss`` over ``losses.ppo_clip_loss``.

    Args are ``PPOLoss``'s, and ``clip_epsilon``, one number or two (below, above).
    """

    hyper_names = (*PPOLoss.hyper_names, "clip_epsilon", "clip_epsilon_low", "clip_epsilon_high")

    def __init__(
        self,
        actor_network: nn.Module | None = None,
        critic_network: nn.Module | None = None,
        *,
        clip_epsilon: float | Tensor | tuple[float | Tensor, float | Tensor] = 0.2,
        clip_value: bool | float | Tensor | None = None,
        **options: Any,
    ) -> None:
        sides = clip_epsilon if isinstance(clip_epsilon, tuple | list) else None
        if sides is None:
            hyper = {"clip_epsilon": clip_epsilon}
        else:
            hyper = dict(zip(("clip_epsilon_low", "clip_epsilon_high"), sides, strict=True))
        self.value_clip_is_epsilon = clip_value is True
        if isinstance(clip_value, bool):
            if clip_value and sides is not None:
                raise ValueError(
                    "ClipPPOLoss: clip_value is True, but clip_epsilon has two sides; give a number"
                )
            clip_value = None
        super().__init__(actor_network, critic_network, clip_value=clip_value, **hyper, **options)

    def critic_options(self) -> dict[str, Any]:
        """As in ``PPOLoss``; ``clip_value=True`` is the policy's epsilon."""
        options = super().critic_options()
        if self.value_clip_is_epsilon:
            options["value_clip"] = self.clip_epsilon
        return options

    def loss(self, td: TensorDictBase, dist_class: Any, **options: Any) -> TensorDictBase:
        """The pure loss, of what was prepared."""
        names = ("clip_epsilon", "clip_epsilon_low", "clip_epsilon_high")
        clip = {name.replace("clip_epsilon", "eps"): x for name, x in self.hyper(*names).items()}
        return losses.ppo_clip_loss(td, dist_class, **clip, **options)


class KLPENPPOLoss(PPOLoss):
    """``torchrl.objectives.KLPENPPOLoss`` over ``losses.ppo_kl_penalty_loss``.

    Args are ``PPOLoss``'s, and those of the coefficient ``beta``, which each call in training mode
    replaces by ``losses.kl_coeff_update`` of it.
    """

    hyper_names = (*PPOLoss.hyper_names, "beta", "dtarg", "increment", "decrement")

    def __init__(
        self,
        actor_network: nn.Module | None = None,
        critic_network: nn.Module | None = None,
        *,
        dtarg: float | Tensor = 0.01,
        beta: float | Tensor = 1.0,
        increment: float | Tensor = 2.0,
        decrement: float | Tensor = 0.5,
        samples_mc_kl: int = 1,
        **options: Any,
    ) -> None:
        hyper = {"dtarg": dtarg, "beta": beta, "increment": increment, "decrement": decrement}
        super().__init__(actor_network, critic_network, **hyper, **options)
        self.initial_beta = beta

    def reset(self) -> None:
        """Sets the coefficient back to what it was made with."""
        self.beta = self.initial_beta

    def prepared(self, tensordict: TensorDictBase) -> tuple[TensorDict, Callable[..., Any]]:
        """As in ``PPOLoss``, with the parameters of the policy that drew the actions."""
        td, dist_class = super().prepared(tensordict)
        keys = self.actor_network.dist_params_keys
        behavior = td.get("behavior", TensorDict({}, td.batch_size)).copy()
        found = tensordict.select(*keys, strict=False)
        absent = [key for key in keys if found.get(key, None) is None]
        if absent:
            raise ValueError(
                f"KLPENPPOLoss: the td has no {absent[0]!r}, a parameter of the distribution that "
                "drew the actions; keep what the actor wrote"
            )
        behavior["actor_output"] = found
        return td.update({"behavior": behavior}), dist_class

    def loss(self, td: TensorDictBase, dist_class: Any, **options: Any) -> TensorDictBase:
        """The pure loss, of what was prepared; its two terms of the policy are one in TorchRL."""
        out = losses.ppo_kl_penalty_loss(td, dist_class, kl_coeff=self.beta, **options)
        if self.training and not self.beta.requires_grad:
            kl = out["kl"].mean()
            factors = self.hyper("increment", "decrement")
            self.beta = losses.kl_coeff_update(self.beta, kl, self.dtarg, **factors).detach()
        objective = out["loss_objective"] + out["loss_kl"]
        return out.exclude("loss_kl").update({"loss_objective": objective})


class A2CLoss(_PolicyLoss):
    """``torchrl.objectives.A2CLoss`` over ``losses.a2c_loss``.

    Args are TorchRL's, ``gamma`` is not refused, and every real one may be a tensor.
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
        entropy_coeff: float | Tensor | None = None,
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
            entropy_coeff=_entropy_coeff(entropy_bonus, entropy_coeff),
            critic_coeff=critic_coeff,
            gamma=gamma,
            lmbda=lmbda,
            clip_value=clip_value,
        )
        self._set_deprecated_ctor_keys(advantage=advantage_key, value_target=value_target_key)

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td that holds a trajectory."""
        td, dist_class = self.prepared(tensordict)
        options = self.critic_options()
        if self.has_critic:
            out = losses.a2c_loss(td, dist_class, **options)
        else:
            kept = {name: options[name] for name in ("entropy_coeff", "reduction")}
            out = losses.policy_gradient_loss(td, dist_class, **kept)
        return self.result(self.without_bonus(out))


class ReinforceLoss(_PolicyLoss):
    """``torchrl.objectives.ReinforceLoss`` over ``losses.reinforce_loss``.

    Args are TorchRL's, ``gamma`` is not refused, and every real one may be a tensor. An advantage
    that the td holds is not detached.
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
    def out_keys(self) -> list[str]:
        """The entries of the result."""
        return ["loss_actor", "loss_value"]

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td that holds a trajectory."""
        td, dist_class = self.prepared(tensordict)
        options = self.critic_options()
        del options["entropy_coeff"]
        out = losses.reinforce_loss(td, dist_class, **options)
        return self.result(out, loss_objective="loss_actor", loss_critic="loss_value")


def _entropy_coeff(bonus: bool, value: float | Tensor | None) -> float | Tensor | None:
    return None if not bonus else 0.01 if value is None else value
