"""Rules that learn values, and agents that act by them.

    td_lambda_rule      the values of states, for a policy that stays as it is
    sarsa_lambda_rule   the values of actions under the policy that acts
    q_lambda_rule       the values of actions under the greedy policy

The targets of all three are lambda-returns (``losses.lambda_returns``), which differ in what they
take for the value of the state that follows. An agent of the last two acts by a policy that is made
of its values: ``softmax_policy`` or ``epsilon_greedy_policy``, composed behind them,

    >>> from paramtree import compose, envs, meta
    >>> world = envs.level_distribution("small")
    >>> critic = meta.agent_model(world, world.n_actions, "action_value")
    >>> agent = compose(critic=critic, actor=softmax_policy(0.1))
"""

from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from ... import losses, tree
from ...model import Model
from ..update_rule import UpdateRule
from .policy_gradient import nothing


def td_lambda_rule(
    gamma: float | Tensor = 0.99,
    lmbda: float | Tensor = 0.95,
    *,
    critic_coeff: float | Tensor = 1.0,
) -> UpdateRule:
    """TD(lambda) as a rule: state values are regressed to lambda-returns, and nothing else learns.

    Args:
        gamma: discount, float or 0-d tensor.
        lmbda: decay of the trace, float or 0-d tensor.
        critic_coeff: weight of the squared error of the values.

    Returns:
        The rule, for agents that give ``state_value``, and a policy, which stays as it is. It has
        no params and no buffers.

    Source: Sutton & Barto (2018), section 12.1.
    """

    def apply(
        params: TensorDict, buffers: TensorDict, td: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        target = losses.add_lambda_returns(td, gamma, lmbda)["value_target"]
        return _with_target(td, target), buffers

    def loss(td: TensorDict, **hyper: Any) -> TensorDict:
        return losses.value_loss(td, **{"critic_coeff": critic_coeff, **hyper})

    return UpdateRule(nothing, apply, loss)


def sarsa_lambda_rule(
    gamma: float | Tensor = 0.99,
    lmbda: float | Tensor = 0.95,
    *,
    dist_class: Any = Categorical,
    expected: bool = False,
) -> UpdateRule:
    """SARSA(lambda) as a rule: the values of actions under the policy that takes them.

        G_t = r_t + gamma (1 - terminated_t) [(1 - lambda) Q(s_{t+1}, a_{t+1}) + lambda G_{t+1}]

    At the last step of a rollout or of an episode that a time limit ends no action follows, and the
    policy's mean over Q(s_{t+1}, .) stands for its value.

    Args:
        gamma: discount, float or 0-d tensor.
        lmbda: decay of the trace, float or 0-d tensor.
        dist_class: distribution of the actions, made of the actor's outputs; it has ``probs``.
        expected: whether the mean stands everywhere, as in expected SARSA.

    Returns:
        The rule, for agents that give ``action_value`` and the policy's parameters. It has no
        params and no buffers.

    Source: Rummery & Niranjan (1994), "On-line Q-learning using connectionist systems"; van Seijen
    et al. (2009), "A theoretical and empirical analysis of expected Sarsa".
    """

    def apply(
        params: TensorDict, buffers: TensorDict, td: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        value = td["next", "action_value"]
        probs = losses.distribution(td["next"], dist_class).probs
        after = (probs * value).sum(-1)
        if not expected:
            chosen, known = _chosen_next(td)
            after = torch.where(known, _picked(value, chosen), after)
        return _with_lambda_return(td, after, gamma, lmbda), buffers

    return UpdateRule(nothing, apply, losses.q_learning_loss)


def q_lambda_rule(
    gamma: float | Tensor = 0.99,
    lmbda: float | Tensor = 0.95,
    *,
    trace: Literal["watkins", "peng"] = "peng",
) -> UpdateRule:
    """Q(lambda) as a rule: the values of actions under the policy that is greedy in them.

        G_t = r_t + gamma (1 - terminated_t) [(1 - lambda_t) max_a Q(s_{t+1}, a)
              + lambda_t G_{t+1}]

    Watkins's lambda_t is 0 where a_{t+1} is not a greedy action; Peng's is lambda throughout,
    which learns faster, and of a policy between the greedy one and the one that acts.

    Args:
        gamma: discount, float or 0-d tensor.
        lmbda: decay of the trace, float or 0-d tensor.
        trace: ``"watkins"`` or ``"peng"``.

    Returns:
        The rule, for agents that give ``action_value``. It has no params and no buffers.

    Raises:
        ValueError: the trace is another.

    Source: Watkins (1989), "Learning from delayed rewards", section 7.2; Peng & Williams (1994),
    "Incremental multi-step Q-learning".
    """
    if trace not in ("watkins", "peng"):
        raise ValueError(f"q_lambda_rule: trace is {trace!r}, expected 'watkins' or 'peng'")

    def apply(
        params: TensorDict, buffers: TensorDict, td: TensorDict
    ) -> tuple[TensorDict, TensorDict]:
        value, decay = td["next", "action_value"], lmbda
        if trace == "watkins":
            greedy = _picked(value, _chosen_next(td)[0]) >= value.amax(-1)  # any of equal ones
            decay = torch.where(greedy, lmbda, torch.zeros_like(value[..., 0]))
        return _with_lambda_return(td, value.amax(-1), gamma, decay), buffers

    return UpdateRule(nothing, apply, losses.q_learning_loss)


def softmax_policy(temperature: float | Tensor = 1.0) -> Model:
    """The policy that prefers actions by their values, pi(a|s) ~ exp(Q(s, a) / temperature).

    Args:
        temperature: above 0, float or 0-d tensor.

    Returns:
        Model without params that reads ``action_value`` ``[*B, A]`` and writes ``logits``.

    Raises:
        ValueError: the temperature is a number that isn't above 0.

    Source: Sutton & Barto (2018), section 13.1.
    """
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"softmax_policy: temperature is {temperature}, expected above 0")
    return _policy(lambda value: value / temperature)


def epsilon_greedy_policy(epsilon: float | Tensor = 0.1) -> Model:
    """The policy that takes the action of highest value, but with chance epsilon any.

    Args:
        epsilon: above 0 and at most 1, float or 0-d tensor.

    Returns:
        Model without params that reads ``action_value`` ``[*B, A]`` and writes ``logits``, which
        don't lead a gradient to the values. Equal ones share the greedy part.

    Raises:
        ValueError: epsilon is a number out of its range.

    Source: Sutton & Barto (2018), section 2.2.
    """
    if not isinstance(epsilon, Tensor) and not 0 < epsilon <= 1:
        raise ValueError(f"epsilon_greedy_policy: epsilon is {epsilon}, expected in (0, 1]")

    def logits(value: Tensor) -> Tensor:
        best = (value == value.amax(-1, keepdim=True)).to(value.dtype)
        probs = (1 - epsilon) * best / best.sum(-1, keepdim=True) + epsilon / value.shape[-1]
        return probs.log()

    return _policy(logits)


def _policy(logits: Any) -> Model:
    def apply(params: TensorDict, buffers: TensorDict, td: Any) -> tuple[TensorDict, TensorDict]:
        written = {"logits": logits(td["action_value"])}
        return tree.rebuild(td, {**tree.entries(tree.lock(td)), **written}), buffers

    return Model(nothing, apply)


def _with_lambda_return(td: TensorDict, after: Tensor, gamma: Any, lmbda: Any) -> TensorDict:
    """Lambda-returns of action values, from what stands for the values of the next states."""
    following = {name: td["next", name] for name in ("reward", "done", "terminated")}
    read = {name: td[name] for name in ("gamma", "mask") if name in td.keys()}
    read |= {"state_value": torch.zeros_like(after)}
    if isinstance(lmbda, Tensor) and lmbda.ndim:
        read["lmbda"], lmbda = lmbda, None
    read["next"] = tree.new({**following, "state_value": after}, td.batch_size)
    target = losses.add_lambda_returns(tree.rebuild(td, read), gamma, lmbda)["value_target"]
    return _with_target(td, target)


def _with_target(td: TensorDict, target: Tensor) -> TensorDict:
    return tree.rebuild(td, {**tree.entries(tree.lock(td)), "value_target": target})


def _chosen_next(td: TensorDict) -> tuple[Tensor, Tensor]:
    """The action that follows, as an index, and whether one does in this episode and rollout."""
    names: list[Any] = td.names
    time = names.index("time") if "time" in names else td.batch_dims - 1
    action, size = td["action"], td["action_value"].shape[-1]
    if action.shape == (*td.batch_size, size):
        action = action.argmax(-1)
    chosen = action.reshape(td.batch_size).roll(-1, time)
    known = ~td["next", "done"].reshape(td.batch_size)
    last = torch.arange(td.batch_size[time], device=known.device) == td.batch_size[time] - 1
    shape = [-1 if dim == time else 1 for dim in range(td.batch_dims)]
    return chosen, known & ~last.reshape(shape)


def _picked(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)
