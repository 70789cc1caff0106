"""What an agent's prediction y(s) means: how much of its policy's true value can be read from it.

Agents live under a rule. At half of their lives and at their end, the states of the last rollout
are looked at: the prediction there, softmax of its logits, and the policy's true value for a few
discounts, by dynamic programming. One ridge regression for all levels, from y's entries and their
products to the value, both less their means on the level, is fitted on some levels, its penalty
chosen by leaving out an eighth of them, and scored on others:

    trained                  the rule, and the agents that it trains
    untrained                the rule before its first step, and its agents
    untrained, same lives    what that rule makes of predictions in the trained rule's lives
    td                       a table of values learned by TD(lambda) in the trained rule's lives

R^2 is 1 - missed / spread, both sums of squares over all visits on all levels. Beside it, the
reward that the rule's agents lose, in the last fifth of their lives and in all of them, when the
rule is no longer told of y(s_t) and y(s_{t+1}), but zeros, or their mean over its agents' lives.

    python tests/benchmarks/prediction_probe.py runs/all-0 runs/all-1 runs/all-2
    python tests/benchmarks/prediction_probe.py --recompute
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import intervals
import torch
from lives import (
    CACHE,
    Rule,
    Setting,
    as_mark,
    joined,
    kept,
    learned,
    live,
    make_setting,
    mean_embedding,
    on_file,
    policy_of,
    read_rule,
    recomputed,
    rounded,
    table_of,
    together,
    untrained,
    without_predictions,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tensordict import TensorDict
from torch import Tensor

import losses
from paramtree import grad, optim, rng, tree, vmap, with_next
from paramtree.envs import policy_value
from paramtree.meta import agent_model, update_agent

RESULTS = Path(__file__).parent / "results"
GAMMAS = (0.9, 0.95, 0.99)
REWARDS = {"final": "last fifth", "lifetime": "whole life"}
LESS = ("zeroed", "at its mean")
READERS = ("trained", "untrained", "untrained, same lives", "td")

_EMPTY = tree.new({})
_NOW = ("observation", "is_init", "action", "action_log_prob")  # what rollouts write
_NEXT = ("observation", "is_init", "reward", "done", "terminated")


class Look(NamedTuple):
    """What is seen of agents at an age: N visits on each of n levels, q discounts."""

    value: Tensor  # [n, N, q]
    y: Tensor  # [n, N, m]
    shadow: Tensor  # [n, N, m], of the untrained rule
    td: Tensor  # [n, N, q]


# --------------------------------------------------------------------- what is seen of lives


class Critics:
    """Tables of values, one for each discount, that learn by TD(lambda) from others' lives.

    With GROOVE's constants; the end of an episode is one, whatever the reason, as it is for the
    true value.
    """

    def __init__(self, setting: Setting, lmbda: float = 0.95, rate: float = 4.0):
        self.critic = agent_model(setting.world, 1, "state_value")
        self.optimizer = optim.chain(clip=optim.clip_by_global_norm(0.5), sgd=optim.sgd(rate))
        self.gammas, self.lmbda = torch.tensor(GAMMAS), lmbda
        n = setting.levels.batch_size[0]
        keys = rng.split(rng.fold_in(setting.key, "critic"), n)
        first = vmap(lambda key: self.critic.init(key)[0])(keys)
        self.params = vmap(lambda g: first, out_dims=1)(self.gammas)  # [n, q]

    def learn(self, td: TensorDict) -> None:
        """Update all on trajectories ``[n, W, T]``."""

        def one(params: TensorDict, gamma: Tensor, td: TensorDict) -> TensorDict:
            following = tree.replace(td["next"], {"terminated": td["next", "done"]})
            data = tree.new({"observation": td["observation"], "next": following}, td.batch_size)
            valued = with_next(self.critic)(params, _EMPTY, data)
            targets = losses.add_advantage(valued, gamma, self.lmbda)["value_target"]

            def error(p: TensorDict) -> Tensor:
                value = self.critic(p, _EMPTY, data)["state_value"]
                return (value.reshape(targets.shape) - targets).square().mean()

            state = self.optimizer.init(params)
            return optim.apply_updates(
                params, self.optimizer.update(grad(error)(params), state, params)[0]
            )

        each = vmap(one, in_dims=(0, 0, None))
        self.params = vmap(each, in_dims=(0, None, 0))(self.params, self.gammas, td)


class Shadows:
    """Predictions as another rule makes them of the same lives."""

    def __init__(self, setting: Setting, rule: Rule):
        self.rule, (self.habitat, self.update) = rule, rule.make(setting)
        self.state: TensorDict | None = None

    def learn(self, actor: TensorDict, td: TensorDict) -> None:
        """Update all on trajectories that agents with these actors made."""

        def one(state: TensorDict, actor: TensorDict, td: TensorDict) -> TensorDict:
            state = tree.replace(state, {("params", "actor"): actor})
            parts = self.update, self.habitat.agent, self.habitat.optimizer, self.rule.params
            return update_agent(*parts, state, td)[0]

        self.state = vmap(one)(self.state, actor, td)


def looks(setting: Setting, rule: Rule, other: Rule) -> dict[str, Look]:
    """What is seen of a rule's agents at half and at the end of their lives."""
    critics, shadows = Critics(setting), Shadows(setting, other)
    ages = {setting.updates // 2: "half", setting.updates: "end"}
    found, actor = {}, _EMPTY

    def see(age: int, states: TensorDict, td: TensorDict | None) -> None:
        nonlocal actor
        if td is None:
            names = ("params", "buffers", "optimizer", "rule")
            shadows.state = tree.new({name: states[name] for name in names}, states.batch_size)
        else:
            following = tree.new({name: td["next", name] for name in _NEXT}, td.batch_size)
            now = {name: td[name] for name in _NOW}
            seen = tree.new({**now, "next": following}, td.batch_size)
            critics.learn(seen)
            shadows.learn(actor, seen)
            if age in ages:
                found[ages[age]] = look(setting, states, shadows.state, critics.params, td)
        actor = states["params"]["actor"]

    live(setting, partial(rule.make, setting), params=rule.params, see=see)
    return found


def look(
    setting: Setting, states: TensorDict, shadows: Any, critics: TensorDict, td: TensorDict
) -> Look:
    """What is seen of agents at the states of trajectories ``[n, W, T]``."""
    index, time = (td["observation", name].flatten(1) for name in ("index", "time"))
    logits, drift = policy_of(states)
    gammas = torch.tensor(GAMMAS, dtype=torch.float64)
    values = vmap(
        lambda gamma: policy_value(setting.levels, logits, gamma, index, time, drift=drift)
    )(gammas)
    y, shadow = (
        read(table_of(s["params"]["prediction"]), index, time).softmax(-1)
        for s in (states, shadows)
    )
    learned_values = [
        read(table_of(critics[:, i]), index, time)[..., 0] for i in range(len(GAMMAS))
    ]
    return Look(values.movedim(0, -1), y, shadow, torch.stack(learned_values, -1))


def read(table: tuple[Tensor, Tensor], index: Tensor, time: Tensor) -> Tensor:
    """What tables say of states, ``[n, N, n_out]`` in float64."""
    entries, drift = (part.double() for part in table)
    rows = index.unsqueeze(-1).expand(*index.shape, entries.shape[-1])
    return entries.gather(1, rows) + time.unsqueeze(-1) * drift.unsqueeze(1)


# ----------------------------------------------------------------------------- the probe


def features(y: Tensor) -> Tensor:
    """The entries of y and their products."""
    i, j = torch.triu_indices(y.shape[-1], y.shape[-1])
    return torch.cat([y, y[..., i] * y[..., j]], -1)


def scored(reading: tuple[Tensor, Tensor], value: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Sums of squares on the second levels, of a probe that was fitted on the first ones.

    Args:
        reading: features ``[n, N, p]`` of both.
        value: targets ``[n, N, q]`` of both.

    Returns:
        ``missed`` and ``spread``, ``[q, n]``.
    """
    weights = [torch.ones(v.shape[:2], dtype=torch.float64) for v in value]
    x, y = (
        [intervals.centered(part, w) for part, w in zip(pair, weights, strict=True)]
        for pair in (reading, value)
    )
    fitted = intervals.ridge_over_levels(x[0], y[0], weights[0])
    missed = intervals.squares(y[1] - x[1] @ fitted, weights[1]).mT
    spread = intervals.squares(y[1], weights[1]).mT
    return {"missed": [rounded(row) for row in missed], "spread": [rounded(row) for row in spread]}


def probed(fit: Setting, test: Setting, rule: Rule) -> dict[str, Any]:
    """For each age and reader the sums of squares."""
    first = untrained(rule)
    found: dict[str, Any] = {}
    own, others = [looks(s, rule, first) for s in (fit, test)], []
    others = [looks(s, first, first) for s in (fit, test)]
    for age in own[0]:
        a, b = (look[age] for look in own)
        c, d = (look[age] for look in others)
        values = (a.value, b.value)
        each = [
            scored((a.td[..., [i]], b.td[..., [i]]), (a.value[..., [i]], b.value[..., [i]]))
            for i in range(len(GAMMAS))
        ]
        found[age] = {
            "trained": scored((features(a.y), features(b.y)), values),
            "untrained": scored((features(c.y), features(d.y)), (c.value, d.value)),
            "untrained, same lives": scored((features(a.shadow), features(b.shadow)), values),
            "td": {name: [one[name][0] for one in each] for name in ("missed", "spread")},
        }
    return found


# ---------------------------------------------------------------------------- the figures


def summarized(raw: dict[str, Any]) -> dict[str, Any]:
    """R^2 of all readers, what the trained rule has more, and the reward that it needs y for."""

    def sums(age: str, reader: str, i: int) -> tuple[Tensor, Tensor]:
        tables = [
            [rule[age][reader][name][i] for rule in raw["probes"]] for name in ("missed", "spread")
        ]
        missed, spread = (torch.tensor(table, dtype=torch.float64) for table in tables)
        return missed, spread

    found: dict[str, Any] = {}
    for age in raw["probes"][0]:
        found[age] = {}
        for i, gamma in enumerate(GAMMAS):
            rows: dict[str, Any] = {}
            missed, spread = sums(age, "trained", i)
            for reader in READERS:
                own = sums(age, reader, i)
                rows[reader] = intervals.bootstrap(intervals.explained, *own)
                if reader != "trained":
                    rows[f"trained less {reader}"] = intervals.bootstrap(
                        intervals.explained_gain, missed, own[0], spread, own[1]
                    )
            found[age][str(gamma)] = rows
    found["reward"] = {}
    for measure, title in REWARDS.items():
        tables = {
            name: torch.tensor(record[measure], dtype=torch.float64)
            for name, record in raw["rewards"].items()
        }
        rows = {name: intervals.bootstrap(intervals.mean, table) for name, table in tables.items()}
        for name in LESS:
            pair = tables["with y"], tables[name]
            rows[f"lost, {name}"] = intervals.bootstrap(intervals.difference, *pair)
            rows[f"share lost, {name}"] = intervals.bootstrap(_share_lost, *pair)
        found["reward"][title] = rows
    return found


def _share_lost(ours: Tensor, theirs: Tensor) -> Tensor:
    return intervals.difference(ours, theirs) / intervals.mean(ours)


def show(summary: dict[str, Any]) -> None:
    """The figures as tables."""
    console = Console(width=140)
    for age in ("half", "end"):
        table = Table(title=f"R^2 of the policy's value, {age} of life")
        table.add_column("read from")
        for gamma in GAMMAS:
            table.add_column(f"gamma {gamma}", justify="right")
        for name in summary[age][str(GAMMAS[0])]:
            cells = [_shown(summary[age][str(gamma)][name]) for gamma in GAMMAS]
            table.add_row(name, *cells)
        console.print(table)
    for title, rows in summary["reward"].items():
        for name, found in rows.items():
            console.print(f"reward per step, {title}, {name}: {_shown(found)}")


def _shown(found: intervals.Interval) -> str:
    return " ".join("-" if x is None else f"{x:.4f}" for x in found.values())


def main() -> None:
    """Measure, or compute the figures again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs of paramtree lpg")
    parser.add_argument("--recompute", action="store_true", help="from the raw numbers on file")
    parser.add_argument("--world", default="all")
    parser.add_argument("--levels", type=int, default=128, help="to fit on, and as many to test")
    parser.add_argument("--updates", type=int, default=250)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "prediction_probe.json")
    parser.add_argument("--cache", type=Path, default=CACHE)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.recompute:
        recomputed(on_file(chosen.out), str(chosen.out), summarized, show)
        return
    if not chosen.runs:
        parser.error("no runs given")
    count, sizes = chosen.levels, {"updates": chosen.updates, "workers": chosen.workers}
    if chosen.quick:
        count, sizes = 6, {"updates": 4, "workers": 4}
    fit, test = (
        make_setting(chosen.world, f"probe {name}", count, **sizes) for name in ("fit", "test")
    )
    probes: list[Any] = []
    rewards: dict[str, list[Any]] = {name: [] for name in ("with y", *LESS)}
    marks = [fit.mark, test.mark]
    for folder in track(chosen.runs, "rules"):
        rule = read_rule(folder)
        run = partial(probed, fit, test, rule)
        probes.append(kept("probe", [*marks, rule.mark], run, chosen.cache))
        tell = partial(mean_embedding, fit, rule)
        told = kept("told", [fit.mark, rule.mark], tell, chosen.cache)
        others = [without_predictions(rule, x) for x in (0.0, told)]
        for name, own in zip(rewards, [rule, *others], strict=True):
            parts = [
                kept("lpg", [s.mark, own.mark], partial(learned, s, own), chosen.cache)
                for s in (fit, test)
            ]
            rewards[name].append(joined(parts))
    raw = {"fit": fit.mark, "test": test.mark}
    raw |= {"rules": [as_mark(read_rule(folder)) for folder in chosen.runs]}
    raw |= {"probes": probes}
    raw |= {"rewards": {name: together(records) for name, records in rewards.items()}}
    summary = summarized(raw)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({**raw, "summary": summary}, separators=(",", ":")) + "\n")
    show(summary)


if __name__ == "__main__":
    main()
