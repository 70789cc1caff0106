# TorchRL and tensordict are annotated loosely.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false
"""Proximal policy optimization: without a clip, with one, and with a price on the divergence."""

from typing import Any, ClassVar

import torch
import torchrl.objectives as peers
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

import losses

from .module import LossOutput, accept, unsupported
from .policy import Coefficient, PolicyLoss, entropy_bonus_coeff


class PPOLoss(PolicyLoss):
    """``torchrl.objectives.PPOLoss`` over ``losses.ppo_loss``.

    Args are TorchRL's, and ``lmbda``; ``gamma`` is not refused, and every real one may be a tensor
    (the numbers of an ``entropy_coeff`` per head too, which are then no buffers).

    Unlike TorchRL's: an advantage or log-probability that requires grad is taken, with its graph;
    ``explained_variance`` is one number over all steps; the entropy of TanhNormal is in closed
    form, not sampled, and ``composite_entropy`` is left out; ``normalize_advantage`` leaves masked
    steps out; the heads of an actor need not be told by ``set_keys``, and their log-probabilities
    may also be one entry, their sum. ``advantage_norm``, ``delay_actor`` and
    ``max_importance_ratio`` raise.
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
        entropy_coeff: Coefficient | None = None,
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
        lmbda: float | Tensor | None = None,
        **hyper: Any,
    ) -> None:
        name = type(self).__name__
        accept(name, hyper, type(self).hyper_names)
        unsupported(
            name,
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
            lmbda=lmbda,
            entropy_coeff=entropy_bonus_coeff(entropy_bonus, entropy_coeff),
            critic_coeff=critic_coeff,
            clip_value=clip_value,
            **hyper,
        )
        self.log_explained_variance = log_explained_variance
        self.normalize_advantage = normalize_advantage
        self.normalize_advantage_exclude_dims = normalize_advantage_exclude_dims
        self._set_deprecated_ctor_keys(
            advantage=advantage_key, value_target=value_target_key, value=value_key
        )
        if device is not None:
            self.to(device)

    needs_behavior = True
    loss_keys: ClassVar[list[str]] = ["loss_objective"]
    ratio_keys: ClassVar[list[str]] = []

    @property
    def result_keys(self) -> list[str]:
        """The entries of the result."""
        return [*self.loss_keys, *self.entropy_keys, *self.critic_keys, *self.ratio_keys]

    def loss(self, given: TensorDictBase, td: TensorDictBase, **options: Any) -> TensorDictBase:
        """The pure loss, of the td that is given and of what was made of it."""
        return losses.ppo_loss(td, self.dist_class, **options)

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> LossOutput:
        """The losses of a td that holds a trajectory."""
        td = self.prepared(tensordict)
        out = self.loss(tensordict, td, **self.options(tensordict))
        if not self.log_explained_variance:
            out = out.exclude("explained_variance")
        return self.finished(tensordict, td, out)


class ClipPPOLoss(PPOLoss):
    """``torchrl.objectives.ClipPPOLoss`` over ``losses.ppo_clip_loss``.

    Args are ``PPOLoss``'s, and ``clip_epsilon``, one number or two (below, above).

    Unlike TorchRL's, beside what ``PPOLoss`` says: ``ESS`` is one number over all steps, and either
    kind of bound may be set or replaced at any time; both sides together win over ``clip_epsilon``.
    """

    hyper_names = (*PPOLoss.hyper_names, "clip_epsilon", "clip_epsilon_low", "clip_epsilon_high")
    pure_names: ClassVar[dict[str, str]] = {
        **PPOLoss.pure_names,
        "clip_epsilon": "eps",
        "clip_epsilon_low": "eps_low",
        "clip_epsilon_high": "eps_high",
    }

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

    loss_keys: ClassVar[list[str]] = ["loss_objective", "clip_fraction"]

    @property
    def ratio_keys(self) -> list[str]:
        """The diagnostics of the ratio; those of the whole td are not there without a reduction."""
        if self.reduction == "none":
            return ["kl_approx"]
        return ["ESS", "kl_approx", "max_ratio", "mean_ratio"]

    def options(self, td: TensorDictBase) -> dict[str, Any]:
        """As in ``PPOLoss``; ``clip_value=True`` is the policy's epsilon."""
        options = super().options(td)
        if self.value_clip_is_epsilon and options["value_clip"] is None:
            options["value_clip"] = self.hyper(td, "clip_epsilon")["clip_epsilon"]
        return options

    def loss(self, given: TensorDictBase, td: TensorDictBase, **options: Any) -> TensorDictBase:
        """The pure loss, of the td that is given and of what was made of it."""
        clip = self.hyper(given, "clip_epsilon", "clip_epsilon_low", "clip_epsilon_high")
        entries = [name for name in clip if self.entry(given, name) is not None]
        if "clip_epsilon" in entries:  # an entry wins over the module's two sides
            clip = {name: clip[name] for name in entries}
        if len(clip) == 3:
            del clip["clip_epsilon"]
        clip = {self.pure_names[name]: x for name, x in clip.items()}
        return losses.ppo_clip_loss(td, self.dist_class, **clip, **options)


class KLPENPPOLoss(PPOLoss):
    """``torchrl.objectives.KLPENPPOLoss`` over ``losses.ppo_kl_penalty_loss``.

    Args are ``PPOLoss``'s, and those of the coefficient ``beta``, which each call in training mode
    replaces by ``losses.kl_coeff_update`` of it.

    Unlike TorchRL's, beside what ``PPOLoss`` says: value and gradient are those of one coefficient,
    that of the call; it stays as it is in evaluation mode, where it requires grad, and where the td
    brings it; the divergence is in closed form, of TanhNormal that of its normals, and raises where
    there is none (``samples_mc_kl`` is without effect); ``kl`` is its mean.
    """

    hyper_names = (*PPOLoss.hyper_names, "beta", "dtarg", "increment", "decrement")
    pure_names: ClassVar[dict[str, str]] = {**PPOLoss.pure_names, "beta": "kl_coeff"}
    loss_keys: ClassVar[list[str]] = ["loss_objective", "kl"]

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

    @property
    def in_keys(self) -> list[Any]:
        """The entries that the module reads, the behavior policy's parameters among them."""
        return [*super().in_keys, *self.actor_network.dist_params_keys]

    def prepared(self, tensordict: TensorDictBase) -> TensorDict:
        """As in ``PPOLoss``, with the parameters of the policy that drew the actions."""
        td, keys = super().prepared(tensordict), self.actor_network.dist_params_keys
        found = tensordict.select(*keys, strict=False)
        absent = [key for key in keys if found.get(key, None) is None]
        if absent:
            raise ValueError(
                f"KLPENPPOLoss: the td has no {absent[0]!r}, a parameter of the distribution that "
                "drew the actions; keep what the actor wrote"
            )
        behavior = td.get("behavior", TensorDict({}, td.batch_size)).copy()
        behavior["actor_output"] = found
        return td.update({"behavior": behavior})

    def loss(self, given: TensorDictBase, td: TensorDictBase, **options: Any) -> TensorDictBase:
        """The pure loss, of what was prepared; its two terms of the policy are one in TorchRL."""
        beta = self.entry(given, "beta")
        coeff = self.beta if beta is None else beta
        out = losses.ppo_kl_penalty_loss(td, self.dist_class, kl_coeff=coeff, **options)
        if self.training and beta is None and not coeff.requires_grad:
            self.beta = self._next_beta(td, out["kl"])
        objective = out["loss_objective"] + out["loss_kl"]
        return out.exclude("loss_kl").update({"loss_objective": objective})

    def _next_beta(self, td: TensorDictBase, kl: Tensor) -> Tensor:
        """The coefficient of the next call, by the mean divergence over the steps that count."""
        mask = td.get("mask", None)
        if kl.dim():
            kl = kl.mean() if mask is None else kl.sum() / mask.sum()
        factors = {"increment": self.increment, "decrement": self.decrement}
        return losses.kl_coeff_update(self.beta, kl, self.dtarg, **factors).detach()
