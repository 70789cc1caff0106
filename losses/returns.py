"""Returns and advantages on policy: one equation, one function, all through one kernel.

The kernel is the linear recurrence backward in time

    x_t = a_t x_{t+1} + b_t,    x_T = last,

and each return is a choice of a and b. Time comes first: tensors are ``[T, *batch]``, flags are
bool.

* ``reward[t]``       r_t, what the action taken in state t earned
* ``value[t]``        V(s_t)
* ``next_value[t]``   V(s_{t+1}) of the state that really followed, before any reset
* ``done[t]``         the episode ended with this step, for whatever reason: cuts the trace
* ``terminated[t]``   nothing follows this step, by the task's own rules: cuts the bootstrap
* ``gamma``, ``lmbda``  float, or a tensor that broadcasts to ``[T, *batch]``

A truncation is ``done`` without ``terminated``: the return stops there and bootstraps on
``next_value``. So the result over a concatenation of episodes is the concatenation of the results.
The ``next_value`` of a terminated step is without influence and without gradient, whatever number
stands there, NaN included. Rewards and other values are to be finite: an episode's end is a factor
of 0, and 0 times infinity is NaN in every step before. The mask of an estimator leaves steps out.

With a pair ``tx`` of functions, ``apply`` and its inverse ``inverse``, values live in a transformed
space (a squashed one, say): they come in transformed, and so goes the result,
apply(return(reward, inverse(value))). There a value may have one axis more than the reward, if
``inverse`` removes it (a two-hot vector, say). Rewards are never transformed (van Hasselt et al.
2019, "General non-linear Bellman equations").

Nothing here is detached: every result is differentiable in every float argument, any number of
times, under ``torch.func`` and inside ``torch.compile``.
"""

import torch
from torch import Tensor

from ._check import (
    check_alike,
    check_broadcast,
    check_choice,
    check_float,
    check_hyper,
    check_int,
    check_real,
    time_first,
)
from ._recurrence import METHODS, solve
from ._steps import check_arguments, closed, discounts, opened, plain_values
from .off_policy import VTrace as VTrace
from .off_policy import off_policy_returns as off_policy_returns
from .off_policy import retrace as retrace
from .off_policy import retrace_continuous as retrace_continuous
from .off_policy import vtrace as vtrace
from .scaling import TxPair


def reverse_linear(
    a: float | Tensor, b: Tensor, last: float | Tensor, method: str = "auto"
) -> Tensor:
    """Linear recurrence backward in time: x_t = a_t x_{t+1} + b_t, with x_T = last.

    Args:
        a: ``[T, *batch]`` float, or what broadcasts with ``b``.
        b: ``[T, *batch]`` float, or what broadcasts with ``a``.
        last: ``[*batch]`` float, or what broadcasts to it: the value after the last step.
        method: "loop", T operations, one after the other; "halve", about log2(T) rounds over all
            steps at once; or "auto", which of them is faster for the shape.

    Returns:
        x_0 to x_{T-1}, ``[T, *batch]``, differentiable in every argument.

    Raises:
        ValueError: the shapes do not broadcast, there is no time axis, or no such method.
        TypeError: an argument is not floating-point.

    Source: Blelloch (1990), "Prefix sums and their applications", section 1.4, for halving.

    Example:
        >>> reverse_linear(0.5, torch.ones(3), 0.0)
        tensor([1.7500, 1.5000, 1.0000])
    """
    name = "reverse_linear"
    check_choice(name, "method", method, METHODS)
    check_float(name, "b", b)
    check_real(name, "a", a)
    check_real(name, "last", last)
    shape = b.shape
    if isinstance(a, Tensor) and a.shape != shape:
        try:
            shape = torch.broadcast_shapes(a.shape, shape)
        except RuntimeError:
            raise ValueError(
                f"{name}: a has shape {tuple(a.shape)}, expected one that broadcasts with "
                f"{time_first(b.shape)} (from b)"
            ) from None
    if not shape or shape[0] == 0:
        raise ValueError(
            f"{name}: b has shape {tuple(b.shape)}, expected [T, *batch] with T of at least 1"
        )
    check_broadcast(name, "last", last, shape[1:], "b", lambda size: f"[*batch] = {tuple(size)}")
    return solve(a, b, last, shape, method)


def td_targets(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    tx: TxPair | None = None,
) -> Tensor:
    """Targets of one step: the reward, and the value of what follows.

        G_t = r_t + gamma_t (1 - terminated_t) V(s_{t+1})

    What ``next_value`` is makes the algorithm: V(s') for TD(0) and QV-learning, max_a Q(s', a) for
    Q-learning and QV-max, Q(s', a') for SARSA, sum_a pi(a|s') Q(s', a) for expected SARSA.

    Args:
        reward: ``[...]`` float, any shape.
        next_value: ``[...]`` float.
        terminated: ``[...]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to the reward's shape.
        tx: the space that values live in, see above.

    Returns:
        ``[...]``, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or gamma is a float out of its range.
        TypeError: the flag is not bool, or another tensor not floating-point.

    Source: Sutton & Barto (2018), section 6.1; Wiering (2005), "QV(lambda)-learning".

    Example:
        >>> reward, terminated = torch.tensor([1.0, 1.0]), torch.tensor([False, True])
        >>> next_action_value = torch.tensor([[2.0, 4.0], [3.0, 5.0]])
        >>> td_targets(reward, next_action_value.amax(-1), terminated, 0.5)
        tensor([3., 1.])
    """
    name = "td_targets"
    floats = plain_values(reward, next_value, tx)
    shape = check_alike(name, floats, {"terminated": terminated})
    check_hyper(name, "gamma", gamma, shape, "reward", 0.0, 1.0)
    after = opened(name, "next_value", next_value, terminated, tx)
    return closed(reward + gamma * terminated.logical_not().to(reward.dtype) * after, tx)


def lambda_returns(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor,
    tx: TxPair | None = None,
) -> Tensor:
    """Lambda-returns: what follows a step, by the values found on the way, mixed geometrically.

        G_t = r_t + gamma_t (1 - terminated_t) [(1 - lambda'_t) V(s_{t+1}) + lambda'_t G_{t+1}],

    with lambda'_t = lambda_t, but 0 where done and at the last step.

    What ``next_value`` is makes the algorithm: V(s') for TD(lambda), Q(s', a') for SARSA(lambda),
    max_a Q(s', a) for Q(lambda), Peng's with a constant ``lmbda`` and Watkins's with one that is 0
    where the action that follows, a', is not greedy.

    Args:
        reward: ``[T, *batch]`` float.
        next_value: ``[T, *batch]`` float.
        done: ``[T, *batch]`` bool; cuts the trace.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        lmbda: decay of the trace, in [0, 1]; likewise.
        tx: the space that values live in, see above.

    Returns:
        ``[T, *batch]``, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or a float is out of its range.
        TypeError: a flag is not bool, or another tensor not floating-point.

    Source: Sutton & Barto (2018), section 12.8; Watkins (1989); Peng & Williams (1994).

    Example:
        >>> next_q = torch.tensor([[2.0, 4.0], [5.0, 3.0], [1.0, 0.0]])  # Q(s_{t+1}, .)
        >>> next_action, going_on = torch.tensor([1, 1, 0]), torch.zeros(3, dtype=torch.bool)
        >>> greedy = (next_action == next_q.argmax(-1)).float()
        >>> best = next_q.amax(-1)
        >>> lambda_returns(torch.ones(3), best, going_on, going_on, 0.5, 0.5 * greedy)  # Watkins
        tensor([2.8750, 3.5000, 1.5000])
    """
    name = "lambda_returns"
    shape = check_arguments(
        name,
        plain_values(reward, next_value, tx),
        {"done": done, "terminated": terminated},
        {"gamma": gamma, "lmbda": lmbda},
    )
    after = opened(name, "next_value", next_value, terminated, tx)
    return closed(_lambda_returns(reward, after, done, terminated, gamma, lmbda, shape), tx)


def discounted_returns(
    reward: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    next_value: Tensor | None = None,
    tx: TxPair | None = None,
) -> Tensor:
    """Discounted returns: the rewards that follow a step, to the end of its episode.

        G_t = r_t + gamma_t (1 - terminated_t) (V(s_{t+1}) if done_t or t = T - 1 else G_{t+1}).

    Args:
        reward: ``[T, *batch]`` float.
        done: ``[T, *batch]`` bool; ends the sum.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        next_value: ``[T, *batch]`` float, what truncated episodes and the last step bootstrap on; 0
            if not given (the "reward to go").
        tx: the space that values live in, see above.

    Returns:
        ``[T, *batch]``, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or gamma is a float out of its range.
        TypeError: a flag is not bool, or another tensor not floating-point.

    Source: Sutton & Barto (2018), section 3.3.
    """
    name = "discounted_returns"
    shape = check_arguments(
        name,
        {"reward": reward} if next_value is None else plain_values(reward, next_value, tx),
        {"done": done, "terminated": terminated},
        {"gamma": gamma},
    )
    if next_value is None:
        after = torch.zeros_like(reward)
    else:
        after = opened(name, "next_value", next_value, terminated, tx)
    return closed(_lambda_returns(reward, after, done, terminated, gamma, 1.0, shape), tx)


def n_step_returns(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    n: int,
    lmbda: float | Tensor = 1.0,
    tx: TxPair | None = None,
) -> Tensor:
    """Returns of n steps: n rewards, and the value after them; or fewer, where an episode ends.

        G^1_t = r_t + gamma_t (1 - terminated_t) V(s_{t+1})
        G^k_t = r_t + gamma_t (1 - terminated_t)
                      [(1 - lambda'_t) V(s_{t+1}) + lambda'_t G^{k-1}_{t+1}],

    with lambda'_t = lambda_t, but 0 where done and at the last step: there the sum ends early, with
    that step's own ``next_value``. The result is G^n. With a ``lmbda`` below 1 it is the
    lambda-return cut after n steps.

    Args:
        reward: ``[T, *batch]`` float.
        next_value: ``[T, *batch]`` float.
        done: ``[T, *batch]`` bool; ends the sum.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        n: number of steps, at least 1.
        lmbda: decay of the trace, in [0, 1]; as gamma.
        tx: the space that values live in, see above.

    Returns:
        ``[T, *batch]``, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or a number is out of its range.
        TypeError: a flag is not bool, n not an int, or another tensor not floating-point.

    Source: Sutton & Barto (2018), sections 7.1 and 12.3.
    """
    name = "n_step_returns"
    shape = check_arguments(
        name,
        plain_values(reward, next_value, tx),
        {"done": done, "terminated": terminated},
        {"gamma": gamma, "lmbda": lmbda},
    )
    check_int(name, "n", n, 1)
    after = opened(name, "next_value", next_value, terminated, tx)
    if n >= shape[0]:
        out = _lambda_returns(reward, after, done, terminated, gamma, lmbda, shape)
    else:
        out = _n_step_returns(reward, after, done, terminated, gamma, n, lmbda, shape)
    return closed(out, tx)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor,
) -> Tensor:
    """Generalized advantage estimates: one-step errors of the value, summed along a decaying trace.

        delta_t = r_t + gamma_t (1 - terminated_t) V(s_{t+1}) - V(s_t)
        A_t = delta_t + gamma_t lambda_t (1 - terminated_t) (1 - done_t) A_{t+1},    A_T = 0.

    ``gae + value`` is the lambda-return wherever ``next_value[t] == value[t + 1]``.

    Args:
        reward: ``[T, *batch]`` float.
        value: ``[T, *batch]`` float.
        next_value: ``[T, *batch]`` float.
        done: ``[T, *batch]`` bool; cuts the trace.
        terminated: ``[T, *batch]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[T, *batch]``.
        lmbda: decay of the trace, in [0, 1]; likewise.

    Returns:
        ``[T, *batch]``, differentiable in every float argument.

    Raises:
        ValueError: a shape differs from the reward's, or a float is out of its range.
        TypeError: a flag is not bool, or another tensor not floating-point.

    Source: Schulman et al. (2016), "High-dimensional continuous control using generalized advantage
    estimation", equation 16.
    """
    shape = check_arguments(
        "gae",
        {"reward": reward, "value": value, "next_value": next_value},
        {"done": done, "terminated": terminated},
        {"gamma": gamma, "lmbda": lmbda},
    )
    bootstrap, trace = discounts(done, terminated, gamma, lmbda, reward.dtype)
    delta = reward + bootstrap * next_value.masked_fill(terminated, 0.0) - value
    return solve(bootstrap * trace, delta, 0.0, shape)


def _lambda_returns(
    reward: Tensor,
    after: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    lmbda: float | Tensor,
    shape: torch.Size,
) -> Tensor:
    """``lambda_returns`` of values that are opened already."""
    bootstrap, trace = discounts(done, terminated, gamma, lmbda, reward.dtype)
    decay = bootstrap * trace
    return solve(decay, reward + (bootstrap - decay) * after, after[-1], shape)


def _n_step_returns(
    reward: Tensor,
    after: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    n: int,
    lmbda: float | Tensor,
    shape: torch.Size,
) -> Tensor:
    """``n_step_returns`` of opened values: one recurrence of n - 1 steps for each t, at once."""
    bootstrap, trace = discounts(done, terminated, gamma, lmbda, reward.dtype)
    trace = torch.cat([trace[:-1], torch.zeros_like(trace[-1:])])
    decay = bootstrap * trace
    one_step = reward + bootstrap * after  # G^1
    if n == 1:
        return one_step

    def later(x: Tensor, k: int) -> Tensor:  # behind the end stand zeros, which no sum gets to
        return torch.cat([x[k:], x.new_zeros(k, *shape[1:])])

    target = reward + (bootstrap - decay) * after
    a, b = (torch.stack([later(x, k) for k in range(n - 1)]) for x in (decay, target))
    return solve(a, b, later(one_step, n - 1), a.shape)[0]  # [n - 1, T, *batch] -> [T, *batch]
