"""What a learned rule does, in numbers: looked at in tabular grid worlds, whose values are exact.

    >>> from paramtree import envs, meta
    >>> world, key = envs.level_distribution("small"), rng.key(0)
    >>> (rule, rule_params), levels = meta.load_rule("lpg-small"), world.sample(rng.split(key, 2))
    >>> made = meta.rule_card("lpg-small")["agents"]
    >>> habitat = meta.lpg_population(world, 1, **{**made, "workers": 2}).habitat
    >>> agents = probe_agents(rule, rule_params, habitat, levels, key, ages=(0, 2))
    >>> td = probe_trajectories(rule, rule_params, habitat, agents, key)
    >>> states = probe_states(habitat, agents, gammas=(0.5, 0.9, 0.99))
    >>> reading = linear_reading(states["prediction"], states["value"])

The trajectories show what the rule tells agents, beside what happened: the return and the error of
the values. The tables show what the agents' predictions have come to mean, state by state: as far
as they're about values, a linear reading of them gives the values back.

Symbols: B of agents, W workers, T steps, S states of a level (cells times sets of objects), m
entries of a prediction, G discounts.

Source: Oh et al. (2020), section 5.3, on what predictions mean.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Categorical

from .. import rng, tree
from ..autodiff import vmap
from ..envs import policy_value, rollout
from ..model import with_next
from ._check import require_count
from .inner_loop import train_agent
from .lifetime import Habitat, births
from .update_rule import UpdateRule


def probe_agents(
    rule: UpdateRule,
    rule_params: TensorDict,
    habitat: Habitat,
    levels: TensorDict,
    key: Tensor,
    *,
    ages: Sequence[int] = (0, 50, 250),
    length: int = 20,
    dist_class: Any = Categorical,
    report: Callable[[int], None] | None = None,
) -> TensorDict:
    """Agents that a rule trains, at some ages of one life each.

    Args:
        rule: the rule.
        rule_params: its parameters.
        habitat: the kind of agents.
        levels: one for each, of batch size ``[n]``.
        key: key ``[2]``.
        ages: numbers of updates, A of them, from the lowest on.
        length: steps of each rollout.
        dist_class: distribution of the actions.
        report: called with the number of updates done; None in compiled code, which can't call
            back.

    Returns:
        Their states as in ``lifetime``, of batch size ``[A, n]``, without a graph.

    Raises:
        ValueError: there is no age, one is negative, or they don't grow; or the levels have another
            batch size.
        TypeError: an age isn't an int.
    """
    numbers = list(ages)
    if not all(isinstance(age, int) for age in numbers):
        raise TypeError(f"probe_agents: ages is {ages}, expected ints")
    if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 0:
        raise ValueError(f"probe_agents: ages is {ages}, expected numbers from 0 on that grow")
    tree.require_tree("probe_agents", "levels", levels)
    if len(levels.batch_size) != 1:
        sizes = f"{list(levels.batch_size)}, expected [n]"
        raise ValueError(f"probe_agents: levels has batch size {sizes}")
    n, lived = levels.batch_size[0], rng.fold_in(key, "life")
    kind = habitat.agent, habitat.env, habitat.optimizer, rule_params
    train = partial(train_agent, rule, *kind, updates=1, length=length, dist_class=dist_class)
    with torch.no_grad():
        agents = births(habitat, rule, rng.fold_in(key, "birth"), n, levels=levels)
        found = []
        for age in range(numbers[-1] + 1):
            if age in numbers:
                found.append(tree.replace(agents, {"age": torch.full_like(agents["age"], age)}))
            if age < numbers[-1]:
                keys = rng.split(rng.fold_in(lived, age), n)
                agents, _ = vmap(train)(agents["level"], agents, keys)
                if report is not None:
                    report(age + 1)
    return tree.stack(found)


def probe_trajectories(
    rule: UpdateRule,
    rule_params: TensorDict,
    habitat: Habitat,
    agents: TensorDict,
    key: Tensor,
    *,
    length: int = 20,
    gamma: float = 0.99,
    dist_class: Any = Categorical,
) -> TensorDict:
    """What the rule would tell agents of a trajectory, beside what that trajectory was worth.

        return_t = r_t + gamma return_{t+1} within the episode, v_T after the last step
        td_error_t = r_t + gamma v_{t+1} - v_t

    v are the exact values of the policy, 0 where an episode is over.

    Args:
        rule: the rule; it writes ``pi_hat`` and ``y_hat``.
        rule_params: its parameters.
        habitat: the kind of agents.
        agents: their states, of batch size ``[*B]``, in tabular grid worlds.
        key: key ``[2]``.
        length: T, steps that each worker plays on from where it stands.
        gamma: discount.
        dist_class: distribution of the actions.

    Returns:
        The trajectories ``[*B, W, T]`` with the agents' outputs, what the rule adds, and
        ``state_value``, ``return`` and ``td_error``, without a graph.

    Raises:
        ValueError: the length is below 1, or the worlds aren't tabular.
        TypeError: the length isn't an int.
    """
    require_count("probe_trajectories", "length", length)
    _require_tabular("probe_trajectories", agents)

    def one(agent: TensorDict, key: Tensor) -> TensorDict:
        state, level = tree.entries(agent), agent.get("level")
        acting = state["params"], state["buffers"]
        td = rollout(
            habitat.env, habitat.agent, *acting, level, state["env"], key, length, dist_class
        )[2]
        outputs = with_next(habitat.agent).apply(*acting, td)[0]
        told = rule.apply(rule_params, state["rule"], outputs)[0]
        now: Any = told["observation"]
        last: Any = told["next", "observation"]
        reward = told["next", "reward"].double()
        logits, drift = _policy(habitat, agent)
        ends = [torch.cat([now[name], last[name][:, -1:]], -1) for name in ("index", "time")]
        inside = policy_value(level, logits, gamma, *ends, drift=drift)  # [W, T + 1]
        done = told["next", "done"]
        after = torch.where(done, 0.0, inside[:, 1:])
        back, returns = after[:, -1], []
        for t in reversed(range(length)):
            back = reward[:, t] + gamma * torch.where(done[:, t], 0.0, back)
            returns.append(back)
        found = {
            "state_value": inside[:, :-1],
            "return": torch.stack(returns[::-1], -1),
            "td_error": reward + gamma * after - inside[:, :-1],
        }
        return tree.new({**tree.entries(told), **found}, told.batch_size)

    size = agents.batch_size
    with torch.no_grad():
        td = vmap(one)(_flat(agents), rng.split(key, size.numel()))
    return _shaped(td, size)


def probe_states(
    habitat: Habitat,
    agents: TensorDict,
    *,
    gammas: Sequence[float] = (0.5, 0.9, 0.99),
) -> TensorDict:
    """What agents predict in every state at the start of an episode, beside the exact values.

    Args:
        habitat: the kind of agents; they give ``prediction``.
        agents: their states, of batch size ``[*B]``, in tabular grid worlds.
        gammas: G discounts.

    Returns:
        Tree ``[*B, S]``: ``prediction`` ``[*B, S, m]``, which adds up to 1; ``value`` float64
        ``[*B, S, G]``; ``reachable``, bool, where an agent can get to; ``cell`` and ``objects``,
        int64, the cell and the set of objects as bits.

    Raises:
        ValueError: the worlds aren't tabular, or there is no discount.
    """
    if not len(gammas):
        raise ValueError("probe_states: gammas is empty, expected at least one discount")
    _require_tabular("probe_states", agents)

    def one(agent: TensorDict) -> TensorDict:
        level: Any = agent["level"]
        outputs = _outputs(habitat, agent, 0)
        index, cells = torch.arange(outputs.batch_size[0]), level["walls"].shape[-1]
        index = index.to(level["walls"].device)
        logits, drift = _policy(habitat, agent)
        discounts = torch.tensor(list(gammas), dtype=torch.float64, device=index.device)

        def value(gamma: Tensor) -> Tensor:
            return policy_value(level, logits, gamma, index, torch.zeros_like(index), drift=drift)

        objects = index // cells
        there = (objects & ~level["table", "full"]) == 0
        found = {
            "prediction": outputs["prediction"].softmax(-1),
            "value": vmap(value)(discounts).mT,
            "reachable": _reachable(level)[index % cells] & there,
            "cell": index % cells,
            "objects": objects,
        }
        return tree.new(found, outputs.batch_size)

    with torch.no_grad():
        states = vmap(one)(_flat(agents))
    return _shaped(states, agents.batch_size)


def linear_reading(
    prediction: Tensor, value: Tensor, weight: Tensor | None = None, *, ridge: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Values as a linear function of predictions, and how much of them it explains.

        min over A, b of  mean_s w_s |A y(s) + b - v(s)|^2 + ridge var(y) |A|^2

    with var(y) the mean of the entries' weighted variances, so that the size of what predictions
    say has no part in how much they say.

    Args:
        prediction: y, float ``[*B, S, m]``.
        value: v, float ``[*B, S, G]``.
        weight: w, float or bool ``[*B, S]``, not all 0; None for all states alike.
        ridge: above 0.

    Returns:
        ``(reading, explained)``, float64: ``A y(s) + b`` ``[*B, S, G]``, and one minus the ratio
        of the weighted mean square error to the weighted variance, ``[*B, G]``.

    Raises:
        ValueError: the shapes don't fit, or ``ridge`` isn't above 0.

    Source: Oh et al. (2020), section 5.3; Hoerl and Kennard (1970), "Ridge regression".
    """
    if prediction.shape[:-1] != value.shape[:-1]:
        shapes = f"{tuple(prediction.shape)} and value {tuple(value.shape)}"
        raise ValueError(f"linear_reading: prediction has shape {shapes}, expected [*B, S] of both")
    if not ridge > 0:
        raise ValueError(f"linear_reading: ridge is {ridge}, expected more than 0")
    y, v = prediction.double(), value.double()
    w = torch.ones_like(y[..., 0]) if weight is None else weight.double()
    if w.shape != y.shape[:-1]:
        wanted = f"{tuple(y.shape[:-1])} (from prediction)"
        raise ValueError(f"linear_reading: weight has shape {tuple(w.shape)}, expected {wanted}")
    w = (w / w.sum(-1, keepdim=True)).unsqueeze(-1)  # [*B, S, 1]
    centers = [(w * x).sum(-2, keepdim=True) for x in (y, v)]
    dy, dv = y - centers[0], v - centers[1]
    eye = torch.eye(y.shape[-1], dtype=torch.float64, device=y.device)
    spread = (w * dy.square()).sum(-2, keepdim=True).mean(-1, keepdim=True)  # [*B, 1, 1]
    pull = (ridge * spread).clamp(min=1e-30) * eye
    slope = torch.linalg.solve(dy.mT @ (w * dy) + pull, dy.mT @ (w * dv))  # [*B, m, G]
    reading = centers[1] + dy @ slope
    error = (w * (reading - v).square()).sum(-2)
    return reading, 1.0 - error / (w * dv.square()).sum(-2)


# ------------------------------------------------------------------------------------ parts


def _outputs(habitat: Habitat, agent: TensorDict, time: int) -> TensorDict:
    """An agent's outputs in all states at one time of an episode, ``[S]``."""
    walls, k = agent["level", "walls"], agent["level", "p_respawn"].shape[-1]
    index = torch.arange(walls.shape[-1] * 2**k, device=walls.device)
    seen = tree.new({"index": index, "time": torch.full_like(index, time)}, index.shape)
    td = tree.new({"observation": seen}, index.shape)
    return habitat.agent.apply(agent["params"], agent["buffers"], td)[0]


def _policy(habitat: Habitat, agent: TensorDict) -> tuple[Tensor, Tensor]:
    """Logits at time 0 ``[S, 5]``, and by how much they move in a step ``[5]``."""
    first, later = (_outputs(habitat, agent, time)["logits"].double() for time in (0, 1000))
    return first, (later[0] - first[0]) / 1000


def _reachable(level: TensorDict) -> Tensor:
    """Bool ``[S * S]``: cells to which a way leads from the start."""
    cells = level["walls"].shape[-1]
    landing = level["table", "landing"].reshape(cells, -1)
    found = torch.arange(cells, device=landing.device) == level["start"]
    for _ in range(cells):  # a move between free cells can be taken back
        found = found | found[landing].any(-1) & ~level["walls"]
    return found


def _require_tabular(fn: str, agents: TensorDict) -> None:
    tree.require_tree(fn, "agents", agents)
    level: Any = agents["level"] if "level" in agents.keys() else tree.new({})
    if "object_cell" not in level.keys():
        raise ValueError(f"{fn}: the agents' levels have no object_cell, expected tabular worlds")


def _flat(agents: TensorDict) -> TensorDict:
    depth, n = len(agents.batch_size), agents.batch_size.numel()
    return _reshaped(agents, depth, (n,))


def _shaped(td: TensorDict, size: Sequence[int]) -> TensorDict:
    return _reshaped(td, 1, tuple(size))


def _reshaped(td: TensorDict, depth: int, size: tuple[int, ...]) -> TensorDict:
    """Tree whose first ``depth`` axes, which all of its parts have, are others."""
    found: dict[str, Any] = {
        name: _reshaped(value, depth, size)
        if isinstance(value, TensorDict)
        else value.reshape(*size, *value.shape[depth:])
        for name, value in tree.entries(td).items()
    }
    return tree.new(found, (*size, *td.batch_size[depth:]))
