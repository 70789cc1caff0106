"""Estimators: they read a trajectory, and add to a new one what an agent is to learn from.

They are run outside the function that is differentiated for the agent's update, on outputs made
with the parameters from before it. There their results are constant for that gradient, and still
functions of the parameters and the hyper-parameters for an outer one:

    >>> from losses import a2c_loss, total
    >>> from tensordict import TensorDict
    >>> following = {"state_value": torch.ones(5), "reward": torch.ones(5)}
    >>> following |= {"done": torch.zeros(5) > 0, "terminated": torch.zeros(5) > 0}
    >>> td = TensorDict({"action": torch.ones(5).long(), "next": following}, [5])
    >>> def outputs(params, td):                       # a network, for two actions
    ...     out = TensorDict({"logits": params["w"], "state_value": params["w"].sum(-1)}, [5])
    ...     return td.copy().update(out)
    >>> params = {"w": torch.zeros(5, 2)}
    >>> td = add_advantage(outputs(params, td), 0.9, 0.95)
    >>> grads = torch.func.grad(lambda p: total(a2c_loss(outputs(p, td))))(params)
"""

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Categorical

from ._batch import Batch
from ._check import missing
from ._critics import following, greedy, one_step_target
from ._numbers import normalized, picked
from .distributions import (
    DistClass,
    action_log_prob,
    all_log_probs,
    behavior_log_prob,
    make_distribution,
)
from .off_policy import retrace, vtrace
from .returns import gae, lambda_returns
from .scaling import TxPair

_NEXT = "The value of the states that follow comes from running the critic on td['next']."
_NEXT_Q = "The values of the states that follow come from running the Q-network on td['next']."
_BEHAVIOR = "It is the log-probability of the action under the policy that took it."


def add_advantage(
    td: TensorDictBase,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    *,
    normalize: bool = False,
    eps: float | Tensor = 1e-8,
) -> TensorDictBase:
    """Adds generalized advantages, and the values that they imply.

        advantage_t = gae(...)_t,    value_target_t = advantage_t + V(s_t)

    and with ``normalize``, after that, advantage <- (advantage - mean) / (deviation + eps), with
    the mean and the population deviation over all steps of the td. Detaches nothing.

    Agents are a dimension like any other: with a value for each, the td is ``[*B, N, T]``, or
    ``[*B, T, N]`` with its time named "time" (``td.names = ["time", "agent"]``), and what a team
    shares, its reward and flags, is expanded to that size. ``normalize`` is over the agents too;
    for each by itself call this once an agent, or under ``vmap`` over that dimension.

    Args:
        td: ``[*B, T]``, time last or named "time", with ``state_value``, ``("next",
            "state_value")``, ``("next", "reward")`` float and ``("next", "done")``, ``("next",
            "terminated")`` bool, each ``[*B, T]`` or ``[*B, T, 1]``; with a ``mask``, a step before
            one that is left out ends its trace and bootstraps.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B, T]``. An entry of the td of this
            name wins.
        lmbda: decay of the trace, in [0, 1]; likewise.
        normalize: whether the advantages are brought to mean 0 and deviation 1 over the td.
        eps: what is added to the deviation, at least 0.

    Returns:
        A new td with ``advantage`` and ``value_target``, ``[*B, T]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or gamma or lmbda is given nowhere or out of
            its range.
        TypeError: an entry has the wrong dtype.

    Source: Schulman et al. (2016), equation 16.
    """
    batch = Batch("add_advantage", td)
    value = batch.step("state_value")
    advantage = advantages(batch, value, _next_value(batch), gamma, lmbda)
    return _extended(batch, advantage, advantage + value, normalize, eps)


def add_td_target(
    td: TensorDictBase,
    gamma: float | Tensor | None = None,
    *,
    tx: TxPair | None = None,
) -> TensorDictBase:
    """Adds targets of one step, TD(0).

        value_target_t = r_t + gamma_t^n (1 - terminated_t) V(s_{t+1}),

    where n is 1, or ``steps_to_next_obs`` for a td whose reward is the discounted sum of n rewards
    and whose ``next`` is the state after them. An entry ``gamma`` discounts what it stands beside:
    it is gamma_t^n already, as TorchRL's MultiStep writes it. Detaches nothing.

    Args:
        td: ``[*B]`` with ``("next", "state_value")``, ``("next", "reward")`` float and ``("next",
            "terminated")`` bool, each ``[*B]`` or ``[*B, 1]``; optionally ``steps_to_next_obs``
            int.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B]``. An entry of the td of this
            name wins.
        tx: the space that values live in, see ``td_targets``.

    Returns:
        A new td with ``value_target``, ``[*B]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or gamma is given nowhere or out of its
            range.
        TypeError: an entry has the wrong dtype.

    Source: Sutton & Barto (2018), section 6.1.
    """
    batch = Batch("add_td_target", td)
    return batch.added(value_target=one_step_target(batch, _next_value(batch), gamma, tx))


def add_q_target(
    td: TensorDictBase,
    gamma: float | Tensor | None = None,
    *,
    tx: TxPair | None = None,
) -> TensorDictBase:
    """Adds targets of Q-learning, or of double Q-learning.

        value_target_t = r_t + gamma_t^n (1 - terminated_t) Q'(s_{t+1}, a'),
        a' = argmax_a Q'(s_{t+1}, a), or argmax_a Q''(s_{t+1}, a) with a selector,

    where Q' is ``("next", "action_value")``, Q'' ``("next", "action_value_selector")`` if the td
    has it, and n as in ``add_td_target``. Of equal values the first counts, and an action that
    ``("next", "action_mask")`` forbids does not; the choice itself has no gradient. Detaches
    nothing.

    Args:
        td: ``[*B]`` with ``("next", "action_value")`` ``[*B, A]`` and ``("next", "reward")`` float,
            and ``("next", "terminated")`` bool; optionally ``("next", "action_value_selector")``
            ``[*B, A]`` float, ``("next", "action_mask")`` ``[*B, A]`` bool and
            ``steps_to_next_obs`` int.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B]``. An entry of the td of this
            name wins.
        tx: the space that values live in, an increasing transformation, see ``td_targets``.

    Returns:
        A new td with ``value_target``, ``[*B]``, what Q(s_t, a_t) should be.

    Raises:
        ValueError: a key is missing, a shape is wrong, or gamma is given nowhere or out of its
            range.
        TypeError: an entry has the wrong dtype.

    Source: Mnih et al. (2015), "Human-level control through deep reinforcement learning"; van
    Hasselt et al. (2016), "Deep reinforcement learning with double Q-learning", equation 4.
    """
    batch = Batch("add_q_target", td)
    value = batch.vector(("next", "action_value"), "A", hint=_NEXT_Q)
    best = picked(value, greedy(batch, value, "next.action_value"))
    return batch.added(value_target=one_step_target(batch, best, gamma, tx))


def add_lambda_returns(
    td: TensorDictBase,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor | None = None,
    *,
    tx: TxPair | None = None,
    normalize: bool = False,
    eps: float | Tensor = 1e-8,
) -> TensorDictBase:
    """Adds lambda-returns, TD(lambda), and how far they are above the value.

        value_target_t = lambda_returns(...)_t,    advantage_t = value_target_t - V(s_t)

    ``lmbda`` = 1 is TD(1), the discounted return, and 0 is TD(0). Detaches nothing.

    Args:
        td: as for ``add_advantage``.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B, T]``. An entry of the td of this
            name wins.
        lmbda: decay of the trace, in [0, 1]; likewise.
        tx: the space that values live in, see ``lambda_returns``; the advantage is in it too.
        normalize: as for ``add_advantage``.
        eps: as for ``add_advantage``.

    Returns:
        A new td with ``advantage`` and ``value_target``, ``[*B, T]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or gamma or lmbda is given nowhere or out of
            its range.
        TypeError: an entry has the wrong dtype.

    Source: Sutton & Barto (2018), section 12.1.
    """
    batch = Batch("add_lambda_returns", td)
    value, steps = batch.step("state_value"), Steps(batch)
    hyper = _discounts(batch, gamma, lmbda)
    inputs = (steps.reward, _next_value(batch), steps.done, steps.terminated, *hyper)
    target = steps.back(lambda_returns(*steps.first(*inputs), tx=tx))
    return _extended(batch, target - value, target, normalize, eps)


def add_vtrace(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor = 1.0,
    rho_clip: float | Tensor = 1.0,
    c_clip: float | Tensor = 1.0,
    pg_rho_clip: float | Tensor = 1.0,
    leak: float | Tensor = 0.0,
    normalize: bool = False,
    eps: float | Tensor = 1e-8,
) -> TensorDictBase:
    """Adds V-trace targets and advantages, for a policy other than the one that acted.

        advantage, value_target = vtrace(...) with log_rho_t = log pi(a_t|s_t) - action_log_prob_t

    Detaches nothing: the results depend on the policy's parameters too, through the ratios.

    Args:
        td: as for ``add_advantage``, with the policy's parameters (see ``distribution``),
            ``action``, and ``action_log_prob`` ``[*B, T]`` of the policy that acted.
        dist_class: callable from the parameters to a distribution.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B, T]``. An entry of the td of this
            name wins.
        lmbda: decay of the trace, in [0, 1]; likewise.
        rho_clip: largest weight of a step's own error, at least 0; likewise.
        c_clip: largest factor of the trace, at least 0; likewise.
        pg_rho_clip: largest weight of an advantage, at least 0; likewise.
        leak: how much of what was clipped comes back, in [0, 1]; likewise.
        normalize: as for ``add_advantage``.
        eps: as for ``add_advantage``.

    Returns:
        A new td with ``advantage`` and ``value_target``, ``[*B, T]``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or gamma is given nowhere, or a float is out
            of its range.
        TypeError: an entry has the wrong dtype.

    Source: Espeholt et al. (2018), section 4.1.
    """
    batch = Batch("add_vtrace", td)
    value, steps = batch.step("state_value"), Steps(batch)
    dist = make_distribution(batch, dist_class)
    log_rho = action_log_prob(batch, dist) - behavior_log_prob(batch, dist, _BEHAVIOR)
    clips = {"rho_clip": rho_clip, "c_clip": c_clip, "pg_rho_clip": pg_rho_clip}
    hyper = (
        *_discounts(batch, gamma, lmbda),
        *(batch.hyper(name, clip, 0.0) for name, clip in clips.items()),
        batch.hyper("leak", leak, 0.0, 1.0),
    )
    flags = steps.done, steps.terminated
    inputs = (steps.reward, value, _next_value(batch), *flags, log_rho, *hyper)
    out = vtrace(*steps.first(*inputs))
    advantage, target = steps.back(out.advantage), steps.back(out.value_target)
    return _extended(batch, advantage, target, normalize, eps)


def add_retrace(
    td: TensorDictBase,
    dist_class: DistClass = Categorical,
    *,
    gamma: float | Tensor | None = None,
    lmbda: float | Tensor = 1.0,
    tx: TxPair | None = None,
) -> TensorDictBase:
    """Adds Retrace targets of action values, for a policy other than the one that acted.

        value_target = retrace(...)

    Everything about the states that follow comes from ``next``: Q of the target network, and the
    policy that is evaluated. Detaches nothing.

    Args:
        td: ``[*B, T]``, time last or named "time", with ``("next", "action_value")`` ``[*B, T, A]``
            float; the policy's parameters under ``"next"``, such as ``("next", "logits")`` (see
            ``distribution``); ``action``, and ``action_log_prob`` ``[*B, T]`` of the policy that
            acted; ``("next", "reward")``, ``("next", "done")`` and ``("next", "terminated")``; with
            a ``mask``, a step before one that is left out ends its trace and bootstraps.
        dist_class: callable from the parameters to a distribution over A actions that has
            ``logits`` or ``probs``.
        gamma: discount, in [0, 1]; float or tensor, 0-d or ``[*B, T]``. An entry of the td of this
            name wins.
        lmbda: decay of the trace, in [0, 1]; likewise.
        tx: the space that values live in, see ``retrace``.

    Returns:
        A new td with ``value_target``, ``[*B, T]``, what Q(s_t, a_t) should be.

    Raises:
        ValueError: a key is missing, a shape is wrong, or gamma is given nowhere, or a float is out
            of its range.
        TypeError: an entry has the wrong dtype.

    Source: Munos et al. (2016), section 3.
    """
    batch = Batch("add_retrace", td)
    steps = Steps(batch)
    q = batch.vector(("next", "action_value"))
    log_probs = all_log_probs(following(batch), dist_class, ("next",))
    if log_probs.shape != q.shape:
        wanted, source = str(list(q.shape)), " (from next.action_value)"
        batch.wrong_shape(("next", "logits"), log_probs, wanted, source)
    action = batch.index("action", q.shape[-1], "next.action_value")
    behavior = batch.step("action_log_prob", hint=_BEHAVIOR)
    flags, hyper = (steps.done, steps.terminated), _discounts(batch, gamma, lmbda)
    inputs = (steps.reward, q, log_probs.exp(), action, behavior, *flags, *hyper)
    return batch.added(value_target=steps.back(retrace(*steps.first(*inputs), tx=tx)))


# ---- for the other files


class Steps:
    """A td's rewards and flags, ``[*B, T]``, and the way to time first and back."""

    def __init__(self, batch: Batch) -> None:
        self.time = time = batch.time()
        self.reward = batch.step(("next", "reward"))
        self.done = batch.flag(("next", "done"))
        self.terminated = batch.flag(("next", "terminated"))
        if batch.mask is not None:  # a trace does not run into a step that is left out
            follows = batch.mask.narrow(time, 1, batch.shape[time] - 1)
            last = torch.ones_like(batch.mask.narrow(time, 0, 1))
            self.done = self.done | ~torch.cat([follows, last], time)

    def first(self, *values: Any) -> tuple[Any, ...]:
        """Tensors with time first; numbers as they are."""
        return tuple(
            x.movedim(self.time, 0) if isinstance(x, Tensor) and x.dim() else x for x in values
        )

    def back(self, x: Tensor) -> Tensor:
        """A tensor ``[T, *batch]`` with time where the td has it."""
        return x.movedim(0, self.time)


def advantages(
    batch: Batch,
    value: Tensor,
    next_value: Tensor,
    gamma: float | Tensor | None,
    lmbda: float | Tensor | None,
) -> Tensor:
    """``gae`` over the td's own rewards and flags, ``[*B, T]``."""
    steps = Steps(batch)
    hyper = _discounts(batch, gamma, lmbda)
    flags = steps.done, steps.terminated
    return steps.back(gae(*steps.first(steps.reward, value, next_value, *flags, *hyper)))


def stopped_advantage(
    batch: Batch, gamma: float | Tensor | None, lmbda: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """Advantage and value target that a reducer makes itself: a full stop on the values."""
    for name, value in (("gamma", gamma), ("lmbda", lmbda)):
        if value is None and not batch.has(name):
            raise missing(
                batch.function,
                batch.td,
                "advantage",
                "Put it there with add_advantage, outside of the differentiated function, or give "
                "both gamma and lmbda.",
            )
    value, next_value = batch.step("state_value").detach(), _next_value(batch).detach()
    advantage = advantages(batch, value, next_value, gamma, lmbda)
    return advantage, advantage + value


# ---- reading and writing


def _next_value(batch: Batch) -> Tensor:
    return batch.step(("next", "state_value"), hint=_NEXT)


def _discounts(
    batch: Batch, gamma: float | Tensor | None, lmbda: float | Tensor | None
) -> tuple[Any, Any]:
    return batch.hyper("gamma", gamma, 0.0, 1.0), batch.hyper("lmbda", lmbda, 0.0, 1.0)


def _extended(
    batch: Batch, advantage: Tensor, target: Tensor, normalize: bool, eps: float | Tensor
) -> TensorDictBase:
    if normalize:
        advantage = normalized(advantage, batch.mask, batch.hyper("eps", eps, 0.0))
    return batch.added(advantage=advantage, value_target=target)
