"""Returns of data that another policy made: V-trace, Retrace, and the family they belong to.

Symbols and shapes are those of returns.py; pi is the policy that is evaluated, mu the one that
acted, and rho_t = pi(a_t|s_t) / mu(a_t|s_t) their ratio, given as ``log_rho``.

A ratio weights or cuts the trace of what follows. It is exponentiated only as far as the dtype
goes, so a ratio that is clipped is exactly its clip, with gradient 0, however large the log-ratio,
infinities included. Where a ratio equals its clip the derivative is the mean of both sides'.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._check import (
    check_float,
    check_hyper,
    check_index,
    gather,
    time_first,
)
from ._numbers import ratio
from ._recurrence import solve
from ._steps import (
    check_arguments,
    closed,
    discounts,
    inverted,
    opened,
    plain_values,
)
from .scaling import TxPair


class VTrace(NamedTuple):
    """What ``vtrace`` gives, each ``[T, *batch]``."""

    errors: Tensor  # of the value: its target minus V(s_t)
    value_target: Tensor
    advantage: Tensor  # for the policy's gradient
    q_estimate: Tensor  # of the action that was taken


def vtrace(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    log_rho: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor = 1.0,
    rho_clip: float | Tensor = 1.0,
    c_clip: float | Tensor = 1.0,
    pg_rho_clip: float | Tensor = 1.0,
    leak: float | Tensor = 0.0,
) -> VTrace:
    """V-trace: values and advantages of a policy from the steps of another, by clipped ratios.

        w(clip)_t = min(clip, rho_t) + leak (rho_t - min(clip, rho_t))
        delta_t = w(rho_clip)_t (r_t + gamma_t (1 - terminated_t) V(s_{t+1}) - V(s_t))
        e_t = delta_t + gamma_t (1 - terminated_t) lambda'_t w(c_clip)_t e_{t+1},    e_T = 0
        v_t = V(s_t) + e_t
        q_t = r_t + gamma_t (1 - terminated_t) [(1 - lambda'_t) V(s_{t+1}) + lambda'_t v_{t+1}]
        A_t = w(pg_rho_clip)_t (q_t - V(s_t)),

    with lambda'_t = lambda_t, but 0 where done and at the last step. Two special cases: with equal
    policies and clips of at least 1, v is the lambda-return; with ``leak`` = 1 nothing is clipped.

    Leaky V-trace's alpha is 1 - ``leak``. A leak takes the ratio as it is, and products of large
    ratios overflow as the mathematics does: with ``leak`` = 0 as a float no raw ratio is used.

    The weight 1 - lambda'_t is on ``next_value``; rlax puts it on V(s_{t+1}) of the next row, which
    is the same number wherever ``next_value[t] == value[t + 1]``.

    To leave steps out and let the trace pass through them (rlax's ``sample_mask``), set there
    reward, value, next_value and log_rho to 0, and gamma and lmbda to 1.

    Args:
        reward: ``[T, *batch]`` float.
        value: ``[T, *batch]`` float.
        next_value: ``[T, *batch]`` float.
        done: ``[T, *batch]`` bool; cuts the trace.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        log_rho: ``[T, *batch]`` float, log pi(a_t|s_t) - log mu(a_t|s_t).
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        lmbda: decay of the trace, in [0, 1]; likewise.
        rho_clip: largest weight of a step's own error, at least 0; likewise. It decides which
            policy's value is learned: pi's at infinity, mu's near 0.
        c_clip: largest factor of the trace, at least 0; likewise.
        pg_rho_clip: largest weight of an advantage, at least 0; likewise.
        leak: how much of what was clipped comes back, in [0, 1]; likewise.

    Returns:
        ``errors``, ``value_target``, ``advantage`` and ``q_estimate``, each ``[T, *batch]``,
        differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or a float is out of its range.
        TypeError: a flag is not bool, or another tensor not floating-point.

    Source: Espeholt et al. (2018), "IMPALA", section 4.1; Zahavy et al. (2020), "A self-tuning
    actor-critic algorithm", section 4.3.
    """
    name = "vtrace"
    floats = {"reward": reward, "value": value, "next_value": next_value, "log_rho": log_rho}
    shape = check_arguments(
        name,
        floats,
        {"done": done, "terminated": terminated},
        {"gamma": gamma, "lmbda": lmbda, "leak": leak},
    )
    clips = {"rho_clip": rho_clip, "c_clip": c_clip, "pg_rho_clip": pg_rho_clip}
    for clip_name, clip in clips.items():
        check_hyper(name, clip_name, clip, shape, "reward", 0.0, wanted=time_first)
    rho = ratio(log_rho)
    bootstrap, trace = discounts(done, terminated, gamma, lmbda, reward.dtype)
    after = next_value.masked_fill(terminated, 0.0)
    own = _weight(rho, rho_clip, leak)
    delta = own * (reward + bootstrap * after - value)
    factor = own if c_clip is rho_clip else _weight(rho, c_clip, leak)
    errors = solve(bootstrap * trace * factor, delta, 0.0, shape)
    target = value + errors
    following = torch.cat([target[1:], after[-1:]])
    q = reward + bootstrap * (after + trace * (following - after))
    policy = own if pg_rho_clip is rho_clip else _weight(rho, pg_rho_clip, leak)
    return VTrace(errors, target, policy * (q - value), q)


def off_policy_returns(
    reward: Tensor,
    action_value: Tensor,
    next_value: Tensor,
    trace: float | Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    tx: TxPair | None = None,
) -> Tensor:
    """Off-policy returns of actions: expected values, corrected by what was done as far as trusted.

        G_t = r_t + gamma_t (1 - terminated_t)
                    [V(s_{t+1}) + c'_{t+1} (G_{t+1} - Q(s_{t+1}, a_{t+1}))],

    with c'_{t+1} = c_{t+1}, the ``trace``, but 0 where step t is done or the last one. With V(s) =
    sum_a pi(a|s) Q(s, a) the trace makes the algorithm:

        importance sampling      c_t = pi(a_t|s_t) / mu(a_t|s_t)
        Retrace                  c_t = lambda min(1, pi(a_t|s_t) / mu(a_t|s_t)), see ``retrace``
        tree backup              c_t = lambda pi(a_t|s_t)
        Q(lambda), Harutyunyan   c_t = lambda

    Args:
        reward: ``[T, *batch]`` float.
        action_value: ``[T, *batch]`` float, Q(s_t, a_t); that of step 0 is without influence.
        next_value: ``[T, *batch]`` float, V(s_{t+1}) under pi.
        trace: c_t, at least 0; float, or a tensor that broadcasts to ``[T, *batch]``; that of step
            0 is without influence.
        done: ``[T, *batch]`` bool; cuts the trace.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        tx: the space that ``action_value`` and ``next_value`` live in, see returns.py.

    Returns:
        ``[T, *batch]``, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or a float is out of its range.
        TypeError: a flag is not bool, or another tensor not floating-point.

    Source: Munos et al. (2016), "Safe and efficient off-policy reinforcement learning", equation 3;
    Precup et al. (2000); Harutyunyan et al. (2016).

    Example:
        >>> next_q = torch.tensor([[1.0, 3.0], [4.0, 2.0]])  # Q(s_{t+1}, .)
        >>> next_probs = torch.tensor([[0.5, 0.5], [0.25, 0.75]])  # pi(.|s_{t+1})
        >>> expected = (next_probs * next_q).sum(-1)
        >>> taken, chance = torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.5])  # of a_t in s_t
        >>> going_on = torch.zeros(2, dtype=torch.bool)
        >>> off_policy_returns(torch.ones(2), taken, expected, chance, going_on, going_on, 0.5)
        tensor([1.8125, 2.2500])
    """
    name = "off_policy_returns"
    floats = plain_values(reward, next_value, tx)
    if tx is None:
        floats["action_value"] = action_value
    flags = {"done": done, "terminated": terminated}
    shape = check_arguments(name, floats, flags, {"gamma": gamma})
    check_hyper(name, "trace", trace, shape, "reward", 0.0, wanted=time_first)
    q = action_value if tx is None else inverted(name, "action_value", action_value, tx, shape)
    after = opened(name, "next_value", next_value, terminated, tx)
    q, c = (_later(x, len(shape)) for x in (q, trace))
    return closed(_off_policy(reward, q, c, after, done, terminated, gamma), tx)


def retrace(
    reward: Tensor,
    next_action_value: Tensor,
    next_probs: Tensor,
    action: Tensor,
    action_log_prob: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor = 1.0,
    tx: TxPair | None = None,
) -> Tensor:
    """Retrace for discrete actions: off-policy returns with a trace of clipped ratios.

        G_t = r_t + gamma_t (1 - terminated_t)
                    [sum_a pi(a|s_{t+1}) Q(s_{t+1}, a) + c_{t+1} (G_{t+1} - Q(s_{t+1}, a_{t+1}))]
        c_{t+1} = lambda_{t+1} min(1, pi(a_{t+1}|s_{t+1}) / mu(a_{t+1}|s_{t+1})),

    but 0 where step t is done or the last one. Everything about s_{t+1} is read at index t, from
    one network's outputs on the states that follow; so Q may be a target network's. Of ``action``,
    ``action_log_prob`` and ``lmbda`` step 0 is without influence. Nothing is added to mu; rlax adds
    1e-8.

    Args:
        reward: ``[T, *batch]`` float.
        next_action_value: ``[T, *batch, A]`` float, Q(s_{t+1}, .).
        next_probs: ``[T, *batch, A]`` float, pi(.|s_{t+1}), probabilities.
        action: a_t, an index ``[T, *batch]`` or one-hot ``[T, *batch, A]``.
        action_log_prob: ``[T, *batch]`` float, log mu(a_t|s_t) of the policy that acted.
        done: ``[T, *batch]`` bool; cuts the trace.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        lmbda: decay of the trace, in [0, 1]; likewise.
        tx: the space that ``next_action_value`` lives in, see returns.py; its functions are
            elementwise here.

    Returns:
        ``[T, *batch]``, what Q(s_t, a_t) should be, differentiable in every float argument.

    Raises:
        ValueError: a shape does not fit the reward's, or a float is out of its range.
        TypeError: a flag is not bool, or another tensor of the wrong kind.

    Source: Munos et al. (2016), section 3; Kapturowski et al. (2019) for ``tx``.
    """
    name = "retrace"
    floats = {"reward": reward, "action_log_prob": action_log_prob}
    flags = {"done": done, "terminated": terminated}
    shape = check_arguments(name, floats, flags, {"gamma": gamma, "lmbda": lmbda})
    for key, x in (("next_action_value", next_action_value), ("next_probs", next_probs)):
        if check_float(name, key, x).shape[:-1] != shape or x.shape[-1] == 0:
            raise ValueError(
                f"{name}: {key} has shape {tuple(x.shape)}, expected [T, *batch, A] = "
                f"{(*shape, 'A')} (from reward)"
            )
    size = next_action_value.shape[-1]
    if next_probs.shape[-1] != size:
        raise ValueError(
            f"{name}: next_probs has shape {tuple(next_probs.shape)}, expected {(*shape, size)} "
            "(from next_action_value)"
        )
    index = check_index(name, "action", action, shape, size, "next_action_value")
    index = _later(index, len(shape))
    gone = terminated.unsqueeze(-1)
    q, probs = next_action_value.masked_fill(gone, 0.0), next_probs.masked_fill(gone, 0.0)
    if tx is not None:
        q = inverted(name, "next_action_value", q, tx, q.shape).masked_fill(gone, 0.0)
    chosen_q, chance = (gather(name, "action", x, index, "next_action_value") for x in (q, probs))
    log_mu, lmbda = (_later(x, len(shape)) for x in (action_log_prob, lmbda))
    c = lmbda * _clipped(chance * ratio(-log_mu), 1.0)
    expected = (probs * q).sum(-1)
    return closed(_off_policy(reward, chosen_q, c, expected, done, terminated, gamma), tx)


def retrace_continuous(
    reward: Tensor,
    action_value: Tensor,
    next_value: Tensor,
    log_rho: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor = 1.0,
    tx: TxPair | None = None,
) -> Tensor:
    """Retrace for actions of any kind: ``off_policy_returns`` with a trace of clipped ratios.

        c_t = lambda_t min(1, rho_t)

    Args:
        reward: ``[T, *batch]`` float.
        action_value: ``[T, *batch]`` float, Q(s_t, a_t).
        next_value: ``[T, *batch]`` float, V(s_{t+1}) under pi, for instance the mean of Q over
            actions drawn from it.
        log_rho: ``[T, *batch]`` float, log pi(a_t|s_t) - log mu(a_t|s_t).
        done: ``[T, *batch]`` bool; cuts the trace.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        lmbda: decay of the trace, in [0, 1]; likewise.
        tx: the space that ``action_value`` and ``next_value`` live in, see returns.py.

    Returns:
        ``[T, *batch]``, what Q(s_t, a_t) should be, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or a float is out of its range.
        TypeError: a flag is not bool, or another tensor not floating-point.

    Source: Munos et al. (2016), section 3.
    """
    name = "retrace_continuous"
    floats = {"reward": reward, "log_rho": log_rho}
    if tx is None:
        floats |= {"action_value": action_value, "next_value": next_value}
    flags = {"done": done, "terminated": terminated}
    shape = check_arguments(name, floats, flags, {"gamma": gamma, "lmbda": lmbda})
    c = lmbda * _clipped(ratio(log_rho), 1.0)
    q = action_value if tx is None else inverted(name, "action_value", action_value, tx, shape)
    after = opened(name, "next_value", next_value, terminated, tx)
    q, c = (_later(x, len(shape)) for x in (q, c))
    return closed(_off_policy(reward, q, c, after, done, terminated, gamma), tx)


def _clipped(rho: Tensor, clip: float | Tensor) -> Tensor:
    return torch.minimum(rho, clip if isinstance(clip, Tensor) else rho.new_full((), clip))


def _weight(rho: Tensor, clip: float | Tensor, leak: float | Tensor) -> Tensor:
    clipped = _clipped(rho, clip)
    if not isinstance(leak, Tensor) and leak == 0:
        return clipped
    return clipped + leak * (rho - clipped)


def _off_policy(
    reward: Tensor,
    later_q: Tensor,
    later_c: float | Tensor,
    after: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
) -> Tensor:
    """``off_policy_returns`` of opened values; Q(s_{t+1}, a_{t+1}) and c_{t+1} stand at index t."""
    bootstrap = gamma * terminated.logical_not().to(reward.dtype)
    going_on = torch.cat([done[:-1].logical_not(), torch.zeros_like(done[-1:])])
    trace = later_c * going_on.to(reward.dtype)
    target = reward + bootstrap * (after - trace * later_q)
    return solve(bootstrap * trace, target, 0.0, reward.shape)


def _later(x: float | Tensor, dims: int) -> Any:
    """At index t what stands at t + 1; the last of ``[T, *batch]`` stays, as nothing reads it."""
    if not isinstance(x, Tensor) or x.dim() < dims or x.shape[0] == 1:
        return x  # it is the same for all steps
    return torch.cat([x[1:], x[-1:]])
