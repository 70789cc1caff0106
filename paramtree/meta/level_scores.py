"""What a level was worth to the agent that lived there: scores for ``prioritized_level_replay``.

A score is ``score(agents [n], keys [n, 2]) -> [n]``, of agents at the end of their lives. Those
here let each play from the start of an episode on its own level, and have no graph.

    algorithmic_regret     how much more another algorithm would have earned there
    positive_value_loss    mean of max(A, 0), A the generalized advantages
    l1_value_loss          mean of |A|
    max_monte_carlo        mean of (the best return that was seen) - V
    random_score           nothing: replay of any level

All but the first and the last read the critic that meta-training gives to every life.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import losses, rng, tree
from ..autodiff import vmap
from ..model import Model, with_next
from ..rng.philox import is_plain
from ._check import require_count
from .curriculum import Score
from .inner_loop import train_agent
from .lifetime import Habitat, birth
from .lives import episodes, first_returns
from .rules import a2c_rule
from .update_rule import UpdateRule


def algorithmic_regret(
    habitat: Habitat,
    antagonist: Habitat,
    *,
    horizon: int,
    rule: UpdateRule | None = None,
    rule_params: TensorDict | None = None,
    length: int = 20,
    dist_class: Any = Categorical,
    chunk: int | None = None,
) -> Score:
    """How much more another algorithm earns on an agent's level, trained there for as long.

        score = E[return of the antagonist] - E[return of the agent]

    The antagonist is born on the level and makes as many updates as the agent's lifetime has. Then
    both play with the same noise of the world; the return is the undiscounted one of the first
    episode, or of ``horizon`` steps of it, a mean over workers.

    Args:
        habitat: the agents'.
        antagonist: that of the other algorithm's agents, as ``a2c_habitat`` makes it; in compiled
            code and under transforms its longest lifetime is the number of updates that are
            unrolled, and those after the agent's lifetime come to nothing.
        horizon: steps of each episode that count, such as the world's ``max_steps``.
        rule: what trains the antagonist; None for ``a2c_rule()``.
        rule_params: the rule's parameters; None for none.
        length: steps of each of its rollouts.
        dist_class: distribution of the actions.
        chunk: how many antagonists are trained at once, or None for all; fewer need less memory.

    Returns:
        The score.

    Raises:
        ValueError: a number is below 1.
        TypeError: one isn't an int.

    Source: Jackson et al. (2023), section 3.2.
    """
    sizes = {"horizon": horizon, "length": length, "chunk": 1 if chunk is None else chunk}
    for name, number in sizes.items():
        require_count("algorithmic_regret", name, number)
    teacher = a2c_rule(dist_class=dist_class) if rule is None else rule
    taught = tree.new({}) if rule_params is None else rule_params
    longest = (
        antagonist.lifetime if isinstance(antagonist.lifetime, int) else antagonist.lifetime[1]
    )
    train = partial(
        train_agent,
        teacher,
        antagonist.agent,
        antagonist.env,
        antagonist.optimizer,
        taught,
        updates=1,
        length=length,
        dist_class=dist_class,
    )

    def trained(agents: TensorDict, keys: Tensor) -> TensorDict:
        born, lifetime = rng.fold_in(keys, "birth"), agents["lifetime"]
        state = vmap(partial(birth, antagonist, teacher))(born, agents["level"])
        updates = int(lifetime.max()) if is_plain(lifetime) else longest
        for k in range(updates):
            now = rng.fold_in(rng.fold_in(keys, "life"), k)
            alive: Any = lifetime > k
            state = tree.where(alive, vmap(train)(state["level"], state, now)[0], state)
        return state

    def regret(agents: TensorDict, keys: Tensor) -> Tensor:
        ours = partial(_return, habitat, horizon, dist_class)
        theirs = partial(_return, antagonist, horizon, dist_class)
        key, other = rng.fold_in(keys, "evaluation"), trained(agents, keys)
        return vmap(theirs)(other, key) - vmap(ours)(agents, key)

    def score(agents: TensorDict, keys: Tensor) -> Tensor:
        n = agents.batch_size[0]
        with torch.no_grad():
            parts = [
                regret(
                    tree.lock(agents[start : start + (chunk or n)]),
                    keys[start : start + (chunk or n)],
                )
                for start in range(0, n, chunk or n)
            ]
            return torch.cat(parts)

    return score


def positive_value_loss(
    habitat: Habitat,
    critic: Model,
    *,
    length: int,
    gamma: float = 0.99,
    lmbda: float = 0.95,
    dist_class: Any = Categorical,
) -> Score:
    """Mean of the advantages' positive part: how much better it went than the critic thought.

        score = mean_t max(sum_k (gamma lmbda)^(k-t) delta_k, 0)

    Args:
        habitat: the agents'.
        critic: model of ``agents["critic", "params"]`` that writes ``state_value``.
        length: steps that each worker plays.
        gamma: discount.
        lmbda: decay of the trace.
        dist_class: distribution of the actions.

    Returns:
        The score.

    Source: Jiang et al. (2021), "Replay-guided adversarial environment design", section 3.
    """
    return _of_values(habitat, critic, length, gamma, lmbda, dist_class, _positive)


def l1_value_loss(
    habitat: Habitat,
    critic: Model,
    *,
    length: int,
    gamma: float = 0.99,
    lmbda: float = 0.95,
    dist_class: Any = Categorical,
) -> Score:
    """Mean size of the advantages: how wrong the critic was.

        score = mean_t |sum_k (gamma lmbda)^(k-t) delta_k|

    Args:
        habitat: the agents'.
        critic: model of ``agents["critic", "params"]`` that writes ``state_value``.
        length: steps that each worker plays.
        gamma: discount.
        lmbda: decay of the trace.
        dist_class: distribution of the actions.

    Returns:
        The score.

    Source: Jiang et al. (2021), "Prioritized level replay", section 3.1.
    """
    return _of_values(habitat, critic, length, gamma, lmbda, dist_class, _size)


def max_monte_carlo(
    habitat: Habitat,
    critic: Model,
    *,
    length: int,
    gamma: float = 0.99,
    dist_class: Any = Categorical,
) -> Score:
    """Mean of what the values lack to the best return: how much is known to be possible.

        score = mean_t (max over workers of R - V(s_t))

    R is the discounted return of a worker's first episode, of this life alone: what earlier lives
    reached on the level isn't remembered.

    Args:
        habitat: the agents'.
        critic: model of ``agents["critic", "params"]`` that writes ``state_value``.
        length: steps that each worker plays.
        gamma: discount.
        dist_class: distribution of the actions.

    Returns:
        The score.

    Source: Jiang et al. (2021), "Replay-guided adversarial environment design", section 5.
    """
    return _of_values(habitat, critic, length, gamma, 1.0, dist_class, partial(_lacking, gamma))


def random_score() -> Score:
    """A number in [0, 1) that says nothing, for a curriculum to be compared with.

    Returns:
        The score.
    """

    def score(agents: TensorDict, keys: Tensor) -> Tensor:
        return rng.uniform(keys, (agents.batch_size[0],))

    return score


# ------------------------------------------------------------------------------------ parts


def _played(
    habitat: Habitat, length: int, dist_class: Any, agent: TensorDict, key: Tensor
) -> TensorDict:
    return episodes(habitat, length, dist_class, agent, key, rng.fold_in(key, "moves"))


def _return(
    habitat: Habitat, horizon: int, dist_class: Any, agent: TensorDict, key: Tensor
) -> Tensor:
    return first_returns(_played(habitat, horizon, dist_class, agent, key)).mean()


def _of_values(
    habitat: Habitat,
    critic: Model,
    length: int,
    gamma: float,
    lmbda: float,
    dist_class: Any,
    measure: Callable[[TensorDict], Tensor],
) -> Score:
    def one(agent: TensorDict, key: Tensor) -> Tensor:
        td = _played(habitat, length, dist_class, agent, key)
        seen = tree.new({"observation": td["observation"], "next": td["next"]}, td.batch_size)
        valued = with_next(critic)(agent["critic", "params"], tree.new({}), seen)
        return measure(losses.add_advantage(valued, gamma, lmbda))

    def score(agents: TensorDict, keys: Tensor) -> Tensor:
        with torch.no_grad():
            return vmap(one)(agents, keys)

    return score


def _positive(td: TensorDict) -> Tensor:
    return td["advantage"].clamp(min=0.0).mean()


def _size(td: TensorDict) -> Tensor:
    return td["advantage"].abs().mean()


def _lacking(gamma: float, td: TensorDict) -> Tensor:
    return first_returns(td, gamma).amax() - td["state_value"].mean()
