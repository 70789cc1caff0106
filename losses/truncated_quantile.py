"""Truncated quantile critics: soft actor-critic on quantiles of the return, the greatest left out.

Symbols: critic i of N gives K quantiles theta_ik of the return, at the levels tau_k = (k + 1/2) /
K; the other symbols are those of ``soft_actor_critic``. The reducers read a td ``[*B]`` or
``[*B, T]`` with

    state_action_quantiles        [*B, K] or [*B, N, K]  theta_ik(s_t, a_t)
    next.state_action_quantiles   [*B, K] or [*B, N, K]  of the target critics, at (s_{t+1}, a')
    next.action_log_prob_actor    [*B]                   log pi(a'|s_{t+1})
    state_action_quantiles_actor  [*B, K] or [*B, N, K]  theta_ik(s_t, a~), a~ reparametrized
    action_log_prob_actor         [*B]                   log pi(a~|s_t)
    value_target                  [*B, M]                the atoms that the critics learn from

The temperature's loss is ``sac_temperature_loss``.
"""

from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import check_int
from ._critics import (
    NEXT_VALUE,
    finished_target,
    following,
    next_log_prob,
    one_step_target,
)
from .quantile import levels, quantile_huber
from .soft_actor_critic import soft_policy_terms

_DROP = 2  # greatest quantiles a critic that the target goes without


def tqc_actor_loss(
    td: TensorDictBase,
    *,
    alpha: float | Tensor | None = None,
    reduction: str = "mean",
) -> TensorDictBase:
    """TQC's policy: as SAC's, with the mean of all quantiles of all critics, none left out.

        loss_actor = alpha log pi(a~|s_t) - 1/(N K) sum_ik theta_ik(s_t, a~)

    Detaches nothing; TorchRL's cuts alpha.

    Args:
        td: ``[*B]`` with ``state_action_quantiles_actor`` ``[*B, N, K]`` or ``[*B, K]`` and
            ``action_log_prob_actor`` ``[*B]`` float, of a reparametrized sample, the critics'
            parameters held; optionally ``mask`` and ``weight``.
        alpha: temperature, at least 0; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_actor``, and detached ``entropy``, -log pi(a~|s_t).

    Raises:
        ValueError: a key is missing, a shape is wrong, or alpha is given nowhere or out of its
            range.
        TypeError: an entry or alpha has the wrong dtype.

    Source: Kuznetsov et al. (2020), "Controlling overestimation bias with truncated mixture of
    continuous distributional quantile critics", section 3.
    """
    batch = Batch("tqc_actor_loss", td)
    value = batch.members("state_action_quantiles_actor", "K").mean((-2, -1))
    return batch.reduced(reduction, *soft_policy_terms(batch, value, alpha))


def tqc_critic_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    drop: int | None = None,
    kappa: float | Tensor = 1.0,
    reduction: str = "mean",
) -> TensorDictBase:
    """TQC's critics: quantile regression on the pooled quantiles but the greatest.

        loss_critic = sum_i 1/(K M) sum_km |tau_k - 1(u_ikm < 0)| huber(u_ikm),
        u_ikm = y_m - theta_ik(s_t, a_t)
        y_m = r_t + gamma^n (1 - terminated_t) (z_m - alpha log pi(a'|s_{t+1}))

    with z_1 <= ... <= z_M the M = N (K - drop) least of all the target critics' quantiles together,
    and huber(u) = u^2 / 2 where |u| <= kappa, else kappa (|u| - kappa / 2): ``quantile_huber``,
    averaged over the quantiles too.

    Detaches nothing where the td holds ``value_target``. Where it does not, y is made from
    ``gamma``, ``alpha`` and ``drop`` with a **full stop** on what is read of ``next``; gamma and
    alpha get their gradients. That is exact for one inner step; for several put the targets there
    with ``add_truncated_quantile_target``.

    Args:
        td: ``[*B]`` with ``state_action_quantiles`` ``[*B, N, K]`` or ``[*B, K]`` float and
            ``value_target`` ``[*B, M]``, or instead of the latter what
            ``add_truncated_quantile_target`` reads; optionally ``mask`` and ``weight``.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        alpha: temperature, at least 0; likewise.
        drop: how many quantiles a critic are left out, likewise only for a td without
            ``value_target``; None for the paper's 2.
        kappa: where the distance turns from a square to a line, at least 0; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error`` max_i mean_km |u_ikm|, ``pred_value`` and
        ``target_value`` (means over quantiles and critics).

    Raises:
        ValueError: a key is missing, a shape is wrong, nothing is left of the target, or ``gamma``,
            ``alpha`` or ``drop`` stands beside a ``value_target``.
        TypeError: an entry or an argument has the wrong dtype.

    Source: Kuznetsov et al. (2020), section 3.
    """
    batch = Batch("tqc_critic_loss", td)
    value = batch.members("state_action_quantiles", "K")
    options = {"drop": drop}
    if finished_target(batch, "add_truncated_quantile_target", options, gamma=gamma, alpha=alpha):
        target = batch.vector("value_target")
    else:
        after, log_prob = (x.detach() for x in _following(batch))
        target = _target(batch, after, log_prob, gamma, alpha, _DROP if drop is None else drop)
    kappa = batch.hyper("kappa", kappa, 0.0)
    if isinstance(kappa, Tensor) and kappa.dim():
        kappa = kappa.unsqueeze(-1)
    atoms = target.unsqueeze(-2).expand(*value.shape[:-1], target.shape[-1])
    loss = quantile_huber(value, levels(value), atoms, kappa).sum(-1) / value.shape[-1]
    error = (atoms.unsqueeze(-2) - value.unsqueeze(-1)).detach().abs()
    metrics = {
        "td_error": error.mean((-2, -1)).amax(-1),
        "pred_value": value.mean((-2, -1)),
        "target_value": target.mean(-1),
    }
    return batch.reduced(reduction, {"loss_critic": loss}, metrics)


def add_truncated_quantile_target(
    td: TensorDictBase,
    gamma: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    *,
    drop: int = _DROP,
) -> TensorDictBase:
    """Adds the atoms that truncated quantile critics learn from.

        value_target_tm = r_t + gamma^n (1 - terminated_t) (z_m - alpha log pi(a'|s_{t+1})),

    with z_1 <= ... <= z_M the M = N (K - drop) least of all the critics' quantiles together.
    Detaches nothing.

    Args:
        td: ``[*B]`` with ``("next", "state_action_quantiles")`` ``[*B, N, K]`` or ``[*B, K]``,
            ``("next", "action_log_prob_actor")``, ``("next", "reward")`` float and ``("next",
            "terminated")`` bool; optionally ``steps_to_next_obs`` and ``mask``.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B]``. An entry of the td wins.
        alpha: temperature, at least 0; likewise.
        drop: how many quantiles a critic are left out, at least 0 and less than K.

    Returns:
        A new td with ``value_target``, ``[*B, M]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, nothing is left, or gamma or alpha is given
            nowhere or out of its range.
        TypeError: an entry or an argument has the wrong dtype.

    Source: Kuznetsov et al. (2020), section 3.
    """
    batch = Batch("add_truncated_quantile_target", td)
    target = _target(batch, *_following(batch), gamma, alpha, drop)
    return batch.added(value_target=target)


# ---- private


def _following(batch: Batch) -> tuple[Tensor, Tensor]:
    """Quantiles ``[*B, N, K]`` and log-probability ``[*B]`` of the sample that follows."""
    key = ("next", "state_action_quantiles")
    return following(batch).members(key, "K", hint=NEXT_VALUE), next_log_prob(batch)


def _target(
    batch: Batch,
    quantiles: Tensor,
    log_prob: Tensor,
    gamma: float | Tensor | None,
    alpha: float | Tensor | None,
    drop: int,
) -> Tensor:
    members, size = quantiles.shape[-2:]
    if check_int(batch.function, "drop", drop, 0) >= size:
        raise ValueError(
            f"{batch.function}: drop is {drop}, expected 0 to {size - 1} "
            f"(next.state_action_quantiles has {size} quantiles)"
        )
    least = quantiles.flatten(-2).sort(-1).values[..., : members * (size - drop)]
    bonus = batch.hyper("alpha", alpha, 0.0) * log_prob
    return one_step_target(batch, least - bonus.unsqueeze(-1), gamma)
