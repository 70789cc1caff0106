"""Lives of agents from scratch, under learned and hand-written rules, on levels that all share.

Contestants meet the same levels and the same random numbers, and what became of each is kept in a
file of its own, so that a measurement that was interrupted goes on where it was.

Symbols: n levels, C configurations, U updates of a life.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from tensordict import TensorDict
from torch import Tensor

from paramtree import Model, rng, tree, vmap
from paramtree.cli import training
from paramtree.cli.eval_lpg import saved_rule
from paramtree.cli.options import LpgOptions, to_config
from paramtree.cli.progress import progress
from paramtree.envs import LevelDistribution, level_distribution, optimal_reward_rate, policy_value
from paramtree.meta import Habitat, UpdateRule, a2c_habitat, a2c_rule, train_agent
from paramtree.meta.lifetime import birth

PUBLISHED = {"rate": 40.0, "entropy": 0.01, "gamma": 0.99, "lmbda": 0.95}  # GROOVE's A2C
MEASURES = ("final", "lifetime", "return")
CACHE = Path("runs", "measured")
TIME_SCALE = 0.001  # of the drift of a tabular agent's logits

Record = dict[str, list[float | None]]  # [n] by measure
Make = Callable[[Any], tuple[Habitat, UpdateRule]]
See = Callable[[int, TensorDict, TensorDict | None], None]

_EMPTY = tree.new({})
_AT_ONCE = 512  # agents that live side by side


class Setting(NamedTuple):
    """What all contestants share."""

    world: LevelDistribution
    levels: TensorDict  # [n]
    key: Tensor
    mark: dict[str, Any]  # what it was made of
    updates: int
    length: int
    workers: int


class Life(NamedTuple):
    """What became of some agents; with configurations there is an axis ``C`` after n."""

    reward: Tensor  # [n, U], mean reward per step
    done: Tensor  # [n, U], share of steps that ended an episode
    states: TensorDict  # [n], their last states


def make_setting(
    world: str,
    purpose: str,
    count: int,
    *,
    seed: int = 0,
    lives: str = "lives",
    updates: int = 250,
    length: int = 20,
    workers: int = 16,
) -> Setting:
    """Levels of a purpose, which no other purpose and no training sees, sorted by length.

    Args:
        world: name of the levels' distribution.
        purpose: what they are for.
        count: n.
        seed: the seed.
        lives: name of the random numbers of the lives on these levels.
        updates: U.
        length: steps between two updates.
        workers: copies of its world in which each agent acts.

    Returns:
        The setting.
    """
    distribution = level_distribution(world)
    key = rng.fold_in(rng.fold_in(rng.key(seed), "measurement"), purpose)
    levels = distribution.sample(rng.split(rng.fold_in(key, "levels"), count))
    if "max_steps" in levels.keys():  # dynamic programming in chunks takes the longest's time
        levels = tree.lock(levels[levels["max_steps"].argsort(stable=True)])
    mark = {"world": world, "purpose": purpose, "levels": count, "seed": seed, "lives": lives}
    mark |= {"updates": updates, "length": length, "workers": workers}
    return Setting(distribution, levels, rng.fold_in(key, lives), mark, updates, length, workers)


# ------------------------------------------------------------------------------ lives


def live(
    setting: Setting,
    make: Make,
    *,
    params: TensorDict = _EMPTY,
    hyper: TensorDict | None = None,
    crossed: bool = False,
    rows: slice = slice(None),
    see: See | None = None,
) -> Life:
    """Lives of agents, one on each level.

    Args:
        setting: what all contestants share.
        make: habitat and rule of hyper-parameters (0-d tensors), which may differ between agents.
        params: the rule's parameters.
        hyper: of batch size ``[n]``, those of each agent; or of ``[C]``, to be crossed with levels;
            or None.
        crossed: whether each configuration lives on each level, with the same random numbers; they
            are drawn once for all.
        rows: which levels.
        see: called with 0, the states at birth and None, and after each update with its number, the
            states and the trajectories that it was made from.

    Returns:
        What became of them.
    """
    n = setting.levels.batch_size[0]
    levels = tree.lock(setting.levels[rows])

    def born(hyper: Any, key: Tensor, level: TensorDict) -> TensorDict:
        habitat, rule = make(hyper)
        state = birth(habitat._replace(lifetime=setting.updates), rule, key, level)
        return tree.new({name: v for name, v in tree.entries(state).items() if name != "level"})

    def update(hyper: Any, key: Tensor, level: TensorDict, state: TensorDict) -> Any:
        habitat, rule = make(hyper)
        parts = rule, habitat.agent, habitat.env, habitat.optimizer
        state, (td,) = train_agent(
            *parts, params, level, state, key, updates=1, length=setting.length
        )
        return state, td, td["next", "reward"].mean(), td["next", "done"].float().mean()

    def all_born(keys: Tensor) -> TensorDict:
        if crossed:
            return vmap(vmap(born, in_dims=(0, None, None)), in_dims=(None, 0, 0))(
                hyper, keys, levels
            )
        return vmap(lambda key, level, hyper: born(hyper, key, level))(keys, levels, hyper=hyper)

    def all_updated(keys: Tensor, states: TensorDict) -> Any:
        if crossed:
            each = vmap(update, in_dims=(0, None, None, 0))
            return vmap(each, in_dims=(None, 0, 0, 0))(hyper, keys, levels, states)
        one = vmap(lambda key, level, state, hyper: update(hyper, key, level, state))
        return one(keys, levels, states, hyper=hyper)

    # the keys of `reward_curve`
    birth_key, life_key = (rng.fold_in(setting.key, name) for name in ("birth", "life"))
    rewards, dones = [], []
    with torch.no_grad():
        states = all_born(rng.split(birth_key, n)[rows])
        if see is not None:
            see(0, states, None)
        for k in range(setting.updates):
            keys = rng.split(rng.fold_in(rng.fold_in(life_key, k), "agents"), n)[rows]
            states, td, reward, done = all_updated(keys, states)
            rewards.append(reward)
            dones.append(done)
            if see is not None:
                see(k + 1, states, td)
    return Life(torch.stack(rewards, -1), torch.stack(dones, -1), states)


def in_chunks(setting: Setting, run: Callable[[slice], Any], what: str, copies: int = 1) -> list:
    """What a function gives of so few levels at a time that memory doesn't run out.

    Args:
        setting: what all contestants share.
        run: the function.
        what: what is done.
        copies: agents on each level.

    Returns:
        Its results.
    """
    n, found = setting.levels.batch_size[0], []
    size = max(1, _AT_ONCE // copies)
    with progress(Console(stderr=True), what, n) as show:
        for start in range(0, n, size):
            found.append(run(slice(start, min(start + size, n))))
            show(min(start + size, n), "")
    return found


def measured(setting: Setting, life: Life, rows: slice) -> Record:
    """A life in numbers, one for each level.

    final: reward per step of the last fifth; lifetime: of all of it; return: expected return of an
    episode of the last policy, exact for tables in grid worlds, and elsewhere the rewards of the
    last fifth by the episodes that ended in it, or None.
    """
    fifth = max(1, setting.updates // 5)
    reward, done = life.reward.double(), life.done.double()
    late = reward[:, -fifth:].mean(1)
    if setting.world.n_states is not None and "object_cell" in setting.levels.keys():
        levels = tree.lock(setting.levels[rows])
        logits, drift = policy_of(life.states)
        start = levels["table", "start_index"]
        final = policy_value(levels, logits, 1.0, start, torch.zeros_like(start), drift=drift)
    else:
        final = late / done[:, -fifth:].mean(1)
    columns = {"final": late, "lifetime": reward.mean(1), "return": final}
    return {name: rounded(column) for name, column in columns.items()}


def policy_of(states: TensorDict) -> tuple[Tensor, Tensor]:
    """Logits and drift of tabular agents, as ``policy_value`` takes them."""
    return table_of(states["params", "actor"])


def table_of(params: Any) -> tuple[Tensor, Tensor]:
    """A table's entries ``[n, n_states, n_out]`` and what it adds each step ``[n, n_out]``."""
    weight = params["weight"]
    return weight[..., :-1, :], TIME_SCALE * weight[..., -1, :]


def rounded(numbers: Tensor) -> list[float | None]:
    """Six digits, which is enough; None for what isn't finite."""
    values = [float(f"{x:.6g}") for x in numbers.tolist()]
    return [x if abs(x) < float("inf") else None for x in values]


# ------------------------------------------------------------------------- contestants


def random_agents(setting: Setting) -> Record:
    """Nobody learns, every action is as likely."""
    world = setting.world

    def act(params: Any, buffers: Any, td: TensorDict) -> tuple[TensorDict, Any]:
        logits = torch.zeros((*td.batch_size, world.n_actions))
        return tree.new({**tree.entries(td), "logits": logits}, td.batch_size), buffers

    own = a2c_habitat(world, workers=setting.workers)
    agent = Model(own.agent.init, act)
    nothing = UpdateRule(
        lambda key: (_EMPTY, _EMPTY),
        lambda params, buffers, td: (td, buffers),
        lambda td, **hyper: tree.new({"loss_none": torch.zeros(())}),
    )

    def run(rows: slice) -> Record:
        life = live(setting, lambda _: (own._replace(agent=agent), nothing), rows=rows)
        weight = life.states["params"]
        still = tree.map(torch.zeros_like, weight)
        return measured(setting, life._replace(states=tree.new({"params": still})), rows)

    return joined(in_chunks(setting, run, "random"))


def a2c_maker(setting: Setting) -> Make:
    """Habitat and rule of A2C by its configuration."""

    def make(config: Any) -> tuple[Habitat, UpdateRule]:
        rule = a2c_rule(config["gamma"], config["lmbda"], entropy_coeff=config["entropy"])
        # where agents are perceptrons the same share of the usual rate
        rate = config["rate"] if setting.world.n_states is not None else config["rate"] / 4e4
        return a2c_habitat(setting.world, workers=setting.workers, actor_rate=rate), rule

    return make


def as_hyper(configs: list[dict[str, float]]) -> TensorDict:
    """Configurations as a tree ``[C]``."""
    columns = {name: torch.tensor([config[name] for config in configs]) for name in configs[0]}
    return tree.new(columns, (len(configs),))


def a2c(setting: Setting, configs: list[dict[str, float]], what: str = "a2c") -> Record:
    """A2C with one configuration for all levels, or one for each."""
    n = setting.levels.batch_size[0]
    hyper = as_hyper(configs * n if len(configs) == 1 else configs)

    def run(rows: slice) -> Record:
        own = tree.lock(hyper[rows])
        return measured(setting, live(setting, a2c_maker(setting), hyper=own, rows=rows), rows)

    return joined(in_chunks(setting, run, what))


def a2c_scores(setting: Setting, configs: list[dict[str, float]], what: str) -> Tensor:
    """Reward per step of the last fifth, of each configuration on each level: ``[n, C]``."""
    hyper, fifth = as_hyper(configs), max(1, setting.updates // 5)

    def run(rows: slice) -> Tensor:
        life = live(setting, a2c_maker(setting), hyper=hyper, crossed=True, rows=rows)
        return life.reward[..., -fifth:].double().mean(-1)

    return torch.cat(in_chunks(setting, run, what, len(configs)))


class Rule(NamedTuple):
    """A learned rule."""

    name: str
    options: LpgOptions
    params: TensorDict

    def make(self, setting: Setting, _: Any = None) -> tuple[Habitat, UpdateRule]:
        """The agents that it trains in a setting, and the rule."""
        return training.learned(self.options, setting)

    def at_rate(self, actor: float) -> "Rule":
        """The rule with another learning rate of its agents' policies."""
        agents = replace(self.options.agents, actor_rate=actor)
        return self._replace(options=replace(self.options, agents=agents))

    @property
    def mark(self) -> str:
        """What tells it and its agents from others, as a hash."""
        config = to_config(self.options)
        told = [config["network"], config["agents"], self.options.objective.gamma]
        data = [leaf.detach().numpy().tobytes() for leaf in tree.leaves(self.params)]
        return hashlib.sha256(b"".join([json.dumps(told).encode(), *data])).hexdigest()[:16]


def read_rule(folder: Path) -> Rule:
    """The rule that a run of ``paramtree lpg`` has made."""
    options, params = saved_rule(folder, "cpu")
    return Rule(folder.name, options, params)


def as_mark(rule: Rule) -> dict[str, Any]:
    """What a file says of a rule."""
    return {"run": rule.name, "mark": rule.mark, "options": to_config(rule.options)}


def untrained(rule: Rule) -> Rule:
    """The rule before its first step."""
    return rule._replace(name=f"untrained {rule.name}", params=training.first_params(rule.options))


def without_predictions(rule: Rule, told: float = 0.0) -> Rule:
    """The rule that is told one number in place of the embedded predictions y(s_t), y(s_{t+1})."""
    last = [path for path in tree.paths(rule.params) if path[:2] == ("embedding", "linear_1")]
    if not last:
        raise ValueError("the rule's embedding has no layer linear_1")
    filled = {path: told * float(path[-1] == "bias") for path in last}
    fixed = {path: torch.full_like(rule.params[path], x) for path, x in filled.items()}
    name = f"{rule.name}, y {told:.3g}"
    return rule._replace(name=name, params=tree.replace(rule.params, fixed))


def mean_embedding(setting: Setting, rule: Rule) -> float:
    """The mean of what a rule is told of predictions y(s_t), over all steps of all lives."""
    found = []

    def see(age: int, states: TensorDict, td: TensorDict | None) -> None:
        if td is not None:
            found.append(td["prediction_embedding"].double().mean())

    def run(rows: slice) -> None:
        live(setting, partial(rule.make, setting), params=rule.params, rows=rows, see=see)

    in_chunks(setting, run, f"what {rule.name} is told")
    return float(torch.stack(found).mean())


def learned(setting: Setting, rule: Rule) -> Record:
    """A learned rule."""

    def run(rows: slice) -> Record:
        make = partial(rule.make, setting)
        return measured(setting, live(setting, make, params=rule.params, rows=rows), rows)

    return joined(in_chunks(setting, run, rule.name))


def optimum(setting: Setting) -> list[float | None]:
    """The best reward per step that each level allows; None where nobody knows it."""
    try:
        rates = in_chunks(
            setting,
            lambda rows: optimal_reward_rate(tree.lock(setting.levels[rows])),
            "optimum",
            _AT_ONCE // 16,
        )
    except ValueError:  # objects that move
        return [None] * setting.levels.batch_size[0]
    return rounded(torch.cat(rates))


def joined(parts: list[Record]) -> Record:
    """Records of some levels as one."""
    return {name: [x for part in parts for x in part[name]] for name in parts[0]}


def together(records: list[Record]) -> dict[str, list]:
    """Records of some meta-seeds, ``[S, n]`` by measure."""
    return {name: [record[name] for record in records] for name in MEASURES}


# ------------------------------------------------------------------------------- files


def kept(name: str, mark: Any, make: Callable[[], Any], folder: Path = CACHE) -> Any:
    """What a function gives, from a file where it has been made before under the same mark.

    Args:
        name: of the file.
        mark: what the result depends on, as JSON knows it.
        make: makes the result, which is JSON.
        folder: where the files are.

    Returns:
        The result.
    """
    digest = hashlib.sha256(json.dumps([name, mark], sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{name.replace(' ', '_').replace(',', '')}-{digest}.json"
    if path.exists():
        return json.loads(path.read_text())["result"]
    result = make()
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"name": name, "mark": mark, "result": result}))
    draft.replace(path)
    return result


def on_file(path: Path) -> Any:
    """Results of an earlier process, to compute figures of again.

    Raises:
        SystemExit: there are none.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: no results to compute figures of: {error}") from None


def recomputed(
    raw: dict[str, Any],
    what: str,
    summarize: Callable[[dict[str, Any]], Any],
    show: Callable[[Any], None],
) -> None:
    """Show what follows from raw numbers, and hold the summary beside them against it.

    Args:
        raw: the numbers, and ``summary``.
        what: where they are from.
        summarize: makes the summary, which is JSON.
        show: shows it.

    Raises:
        SystemExit: they differ.
    """
    summary = json.loads(json.dumps(summarize(raw)))
    show(summary)
    if summary != raw["summary"]:
        raise SystemExit(f"{what}: its summary is not the one that its raw numbers give")


def tuned(path: Path) -> tuple[dict[str, float], list[dict[str, float]]]:
    """The best configuration that tune_all.py found, and the best few of its grid."""
    if not path.exists():
        raise SystemExit(f"{path} is missing; run tests/benchmarks/tune_all.py first")
    found = json.loads(path.read_text())
    grid = sorted(
        (row for row in found["rows"] if row["stage"] == "grid"), key=lambda row: -row["score"]
    )
    best = found["best"]["config"]
    few = [best, *[{name: row[name] for name in best} for row in grid]]
    unique = list({json.dumps(config): config for config in few}.values())
    return best, unique[:32]
