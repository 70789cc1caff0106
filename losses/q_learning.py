"""Q-learning and its kin: the value of the action that was taken, against what followed it.

Symbols: Q(s_t, a) are the values of all actions (``action_value``), a_t is the one taken
(``action``), Q' a target network's, r_t the reward, gamma the discount.

A per-step function gives the error of a rule, target minus prediction; it takes tensors ``[...]``,
by convention ``[T, *batch]``, and detaches nothing. With chosen values ``td_error`` is a few rules
more: QV-learning, Q(s_t, a_t) against V(s_{t+1}), and QV-max, V(s_t) against max_a Q(s_{t+1}, a).

A reducer regresses Q(s_t, a_t) to ``value_target`` where the td holds one, made by any rule outside
of the differentiated function (``add_q_target``), and detaches nothing then. Else it makes its own
rule's from ``gamma``, with a full stop on what stands under ``next``. The greedy action is the
first of equals.
"""

from tensordict import TensorDictBase
from torch import Tensor

from ._batch import Batch
from ._check import (
    check_alike,
    check_flag,
    check_float,
    check_hyper,
    check_index,
    gather,
)
from ._critics import (
    Distance,
    critic_metrics,
    distances,
    finished_target,
    greedy,
    one_step_target,
)
from ._numbers import picked
from .distances import squared_error
from .returns import td_targets


def q_learning_error(
    action_value: Tensor,
    action: Tensor,
    reward: Tensor,
    next_action_value: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
) -> Tensor:
    """Error of Q-learning.

        delta_t = r_t + gamma_t (1 - terminated_t) max_a Q'(s_{t+1}, a) - Q(s_t, a_t)

    What stands under ``next_action_value`` at a terminated step is without influence, NaN included.

    Args:
        action_value: Q(s_t, .), ``[..., A]`` float.
        action: a_t, an index ``[...]`` of integers, or one-hot ``[..., A]``.
        reward: ``[...]`` float.
        next_action_value: Q'(s_{t+1}, .), ``[..., A]`` float.
        terminated: ``[...]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[...]``.

    Returns:
        ``[...]``, differentiable in every float argument.

    Raises:
        ValueError: a shape does not match that of ``action_value``, or gamma is a float out of its
            range.
        TypeError: an argument has the wrong dtype.

    Source: Watkins & Dayan (1992), "Q-learning".
    """
    name = "q_learning_error"
    chosen = _chosen(name, action_value, action, reward, terminated, gamma=gamma)
    _check_next(name, action_value, next_action_value=next_action_value)
    return td_targets(reward, _best(next_action_value), terminated, gamma) - chosen


def double_q_learning_error(
    action_value: Tensor,
    action: Tensor,
    reward: Tensor,
    next_action_value: Tensor,
    next_action_value_selector: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
) -> Tensor:
    """Error of double Q-learning: one network chooses the next action, the other values it.

        delta_t = r_t + gamma_t (1 - terminated_t) Q'(s_{t+1}, argmax_a Q''(s_{t+1}, a))
                  - Q(s_t, a_t)

    Args:
        action_value: Q(s_t, .), ``[..., A]`` float.
        action: a_t, an index ``[...]`` of integers, or one-hot ``[..., A]``.
        reward: ``[...]`` float.
        next_action_value: Q'(s_{t+1}, .), ``[..., A]`` float.
        next_action_value_selector: Q''(s_{t+1}, .), ``[..., A]`` float; gets no gradient.
        terminated: ``[...]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[...]``.

    Returns:
        ``[...]``, differentiable in every float argument but the selector.

    Raises:
        ValueError: a shape does not match that of ``action_value``, or gamma is a float out of its
            range.
        TypeError: an argument has the wrong dtype.

    Source: van Hasselt, Guez & Silver (2016), "Deep reinforcement learning with double Q-learning".
    """
    name = "double_q_learning_error"
    chosen = _chosen(name, action_value, action, reward, terminated, gamma=gamma)
    _check_next(
        name,
        action_value,
        next_action_value=next_action_value,
        next_action_value_selector=next_action_value_selector,
    )
    after = _best(next_action_value, next_action_value_selector)
    return td_targets(reward, after, terminated, gamma) - chosen


def sarsa_error(
    action_value: Tensor,
    action: Tensor,
    reward: Tensor,
    next_action_value: Tensor,
    next_action: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
) -> Tensor:
    """Error of SARSA, which learns the value of the policy that acts.

        delta_t = r_t + gamma_t (1 - terminated_t) Q'(s_{t+1}, a_{t+1}) - Q(s_t, a_t)

    Args:
        action_value: Q(s_t, .), ``[..., A]`` float.
        action: a_t, an index ``[...]`` of integers, or one-hot ``[..., A]``.
        reward: ``[...]`` float.
        next_action_value: Q'(s_{t+1}, .), ``[..., A]`` float.
        next_action: a_{t+1}, as ``action``; at a terminated step whatever it is.
        terminated: ``[...]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[...]``.

    Returns:
        ``[...]``, differentiable in every float argument.

    Raises:
        ValueError: a shape does not match that of ``action_value``, or gamma is a float out of its
            range.
        TypeError: an argument has the wrong dtype.

    Source: Rummery & Niranjan (1994); Sutton & Barto (2018), section 6.4.
    """
    name = "sarsa_error"
    chosen = _chosen(name, action_value, action, reward, terminated, gamma=gamma)
    _check_next(name, action_value, next_action_value=next_action_value)
    shape, source = action_value.shape, "action_value"
    index = check_index(
        name, "next_action", next_action, shape[:-1], shape[-1], source, ~terminated
    )
    after = gather(name, "next_action", next_action_value, index, source)
    return td_targets(reward, after, terminated, gamma) - chosen


def expected_sarsa_error(
    action_value: Tensor,
    action: Tensor,
    reward: Tensor,
    next_action_value: Tensor,
    next_probs: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
) -> Tensor:
    """Error of expected SARSA: the mean over the actions that a policy may take next.

        delta_t = r_t + gamma_t (1 - terminated_t) sum_a pi(a|s_{t+1}) Q'(s_{t+1}, a) - Q(s_t, a_t)

    Args:
        action_value: Q(s_t, .), ``[..., A]`` float.
        action: a_t, an index ``[...]`` of integers, or one-hot ``[..., A]``.
        reward: ``[...]`` float.
        next_action_value: Q'(s_{t+1}, .), ``[..., A]`` float.
        next_probs: pi(.|s_{t+1}), ``[..., A]`` float, taken as they are; they should sum to 1.
        terminated: ``[...]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[...]``.

    Returns:
        ``[...]``, differentiable in every float argument.

    Raises:
        ValueError: a shape does not match that of ``action_value``, or gamma is a float out of its
            range.
        TypeError: an argument has the wrong dtype.

    Source: van Seijen et al. (2009), "A theoretical and empirical analysis of expected Sarsa".
    """
    name = "expected_sarsa_error"
    chosen = _chosen(name, action_value, action, reward, terminated, gamma=gamma)
    _check_next(name, action_value, next_action_value=next_action_value, next_probs=next_probs)
    ended = terminated.unsqueeze(-1)  # both factors: the one's junk is the other's gradient
    values, probs = (x.masked_fill(ended, 0.0) for x in (next_action_value, next_probs))
    after = (values * probs).sum(-1)
    return td_targets(reward, after, terminated, gamma) - chosen


def persistent_q_error(
    action_value: Tensor,
    action: Tensor,
    reward: Tensor,
    next_action_value: Tensor,
    terminated: Tensor,
    gamma: float | Tensor,
    action_gap_scale: float | Tensor,
) -> Tensor:
    """Error of persistent advantage learning, which widens the gap between actions' values.

        delta_t = r_t + gamma_t (1 - terminated_t) [(1 - alpha) max_a Q'(s_{t+1}, a)
                  + alpha Q'(s_{t+1}, a_t)] - Q(s_t, a_t)

    with alpha = ``action_gap_scale``: an action is held on to where it is taken again.

    Args:
        action_value: Q(s_t, .), ``[..., A]`` float.
        action: a_t, an index ``[...]`` of integers, or one-hot ``[..., A]``.
        reward: ``[...]`` float.
        next_action_value: Q'(s_{t+1}, .), ``[..., A]`` float.
        terminated: ``[...]`` bool; cuts the bootstrap.
        gamma: discount, in [0, 1]; float, or a tensor that broadcasts to ``[...]``.
        action_gap_scale: in [0, 1]; likewise.

    Returns:
        ``[...]``, differentiable in every float argument.

    Raises:
        ValueError: a shape does not match that of ``action_value``, or a float is out of its range.
        TypeError: an argument has the wrong dtype.

    Source: Bellemare et al. (2016), "Increasing the action gap: new operators for reinforcement
    learning".
    """
    name = "persistent_q_error"
    hyper = {"gamma": gamma, "action_gap_scale": action_gap_scale}
    chosen = _chosen(name, action_value, action, reward, terminated, **hyper)
    _check_next(name, action_value, next_action_value=next_action_value)
    again = _taken(name, next_action_value, action)
    highest = _best(next_action_value)
    after = (1 - action_gap_scale) * highest + action_gap_scale * again
    return td_targets(reward, after, terminated, gamma) - chosen


# ---- reducers


def q_learning_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """Q-learning with a target network, as in DQN.

        G_t = r_t + gamma^n (1 - terminated_t) max_a Q'(s_{t+1}, a)
        loss_critic = distance(Q(s_t, a_t), G_t), by default (Q(s_t, a_t) - G_t)^2, without 1/2

    with n from ``steps_to_next_obs``, else 1. Detaches nothing where the td holds ``value_target``,
    by whatever rule it was made. Where it does not, G_t is made here from ``gamma``, with a **full
    stop** on ``("next", "action_value")``: exact where a target network made it, and for one inner
    step where the learning network did. Actions that ``("next", "action_mask")`` forbids are not
    chosen. A selector in the td is not read: it is for ``double_q_learning_loss`` and
    ``add_q_target``.

    Unlike TorchRL's DQNLoss, ``td_error`` is the absolute error, not its square.

    Args:
        td: ``[*B]`` with ``action_value`` ``[*B, A]``, ``action`` and ``value_target``, or instead
            of the last ``("next", "action_value")`` ``[*B, A]``, ``("next", "reward")``, ``("next",
            "terminated")`` and optionally ``("next", "action_mask")`` ``[*B, A]`` bool and
            ``steps_to_next_obs``, integers ``[*B]``, over how many steps the reward was summed;
            optionally ``mask`` and ``weight``.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        distance: elementwise function of the value and its target.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error`` |G_t - Q(s_t, a_t)|, ``pred_value`` Q(s_t, a_t)
        and ``target_value`` G_t.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` stands beside a
            ``value_target``.
        TypeError: an entry or ``gamma`` has the wrong dtype.

    Source: Mnih et al. (2015), "Human-level control through deep reinforcement learning".
    """
    return _regression(Batch("q_learning_loss", td), gamma, distance, reduction, selects=False)


def double_q_learning_loss(
    td: TensorDictBase,
    *,
    gamma: float | Tensor | None = None,
    distance: Distance = squared_error,
    reduction: str = "mean",
) -> TensorDictBase:
    """Double Q-learning: one network chooses the next action, the target network values it.

        G_t = r_t + gamma^n (1 - terminated_t) Q'(s_{t+1}, argmax_a Q(s_{t+1}, a))
        loss_critic = distance(Q(s_t, a_t), G_t), by default (Q(s_t, a_t) - G_t)^2, without 1/2

    All else is as in ``q_learning_loss``.

    Args:
        td: as of ``q_learning_loss``; without ``value_target`` it holds ``("next",
            "action_value_selector")`` ``[*B, A]`` too, the learning network's values of the actions
            in the state that follows.
        gamma: discount, in [0, 1], only for a td without ``value_target``; float or tensor, 0-d or
            ``[*B]``. An entry of the td wins.
        distance: elementwise function of the value and its target.
        reduction: "mean", "sum" or "none".

    Returns:
        ``loss_critic``, and detached ``td_error``, ``pred_value`` and ``target_value``.

    Raises:
        ValueError: a key is missing, a shape is wrong, or ``gamma`` stands beside a
            ``value_target``.
        TypeError: an entry or ``gamma`` has the wrong dtype.

    Source: van Hasselt, Guez & Silver (2016), "Deep reinforcement learning with double Q-learning".
    """
    return _regression(
        Batch("double_q_learning_loss", td), gamma, distance, reduction, selects=True
    )


# ---- private


def _best(action_value: Tensor, selector: Tensor | None = None) -> Tensor:
    """The value ``[...]`` of the action, the first of equals, that the selector values most."""
    return picked(action_value, (action_value if selector is None else selector).argmax(-1))


def _regression(
    batch: Batch, gamma: float | Tensor | None, distance: Distance, reduction: str, selects: bool
) -> TensorDictBase:
    key = "action_value"
    every = batch.vector(key, "A")
    value, size = batch.of_action(every, key), every.shape[-1]
    if finished_target(batch, "add_q_target", gamma=gamma):
        target = batch.step("value_target")
    else:
        after = batch.vector(("next", key), size, key)
        index = greedy(batch, after, key, selects)
        target = one_step_target(batch, picked(after, index).detach(), gamma)
    error = distances(batch.function, distance, value, target)
    return batch.reduced(reduction, {"loss_critic": error}, critic_metrics(value, target))


def _chosen(
    function: str,
    action_value: Tensor,
    action: Tensor,
    reward: Tensor,
    terminated: Tensor,
    **hyper: float | Tensor,
) -> Tensor:
    """Q(s_t, a_t), ``[...]``, after checks of what is per step."""
    shape = check_float(function, "action_value", action_value).shape
    if not shape or not shape[-1]:
        raise ValueError(
            f"{function}: action_value has shape {tuple(shape)}, expected [..., A] with A of at "
            "least 1"
        )
    for check, name, value in (
        (check_float, "reward", reward),
        (check_flag, "terminated", terminated),
    ):
        if check(function, name, value).shape != shape[:-1]:
            raise ValueError(
                f"{function}: {name} has shape {tuple(value.shape)}, expected {tuple(shape[:-1])} "
                "(from action_value, without its last axis)"
            )
    for name, value in hyper.items():
        check_hyper(function, name, value, shape[:-1], "action_value", 0.0, 1.0)
    return _taken(function, action_value, action)


def _taken(function: str, action_value: Tensor, action: Tensor) -> Tensor:
    shape, source = action_value.shape, "action_value"
    index = check_index(function, "action", action, shape[:-1], shape[-1], source)
    return gather(function, "action", action_value, index, source)


def _check_next(function: str, action_value: Tensor, **following: Tensor) -> None:
    check_alike(function, {"action_value": action_value, **following})
