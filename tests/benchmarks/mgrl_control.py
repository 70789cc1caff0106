"""A2C that learns its discount, against A2C at each of five fixed ones, on cart pole and catch.

The fixed discounts run on selection seeds too: the best there is the opponent, and the worst is
where the learned one begins. All run on other seeds. What counts is the area under the curve
of returns, the mean over all updates. It's to be above that of the middle one of the five, and the
lower end of the 95% interval of its share of the best one's (paired bootstrap over seeds) at least
95%. All of them learn from the same number of steps: the trajectory that judges an update is what
the next one learns from. All have the same first weights and the same noise, and one A2C.

Four things keep a learned discount from falling:

- A judgment in its own scale. Divided by their deviation the advantages of a good agent are noise
  of size 1, and eta walks at random. As they are they shrink, and Adam remembers the large ones
  from before. Its rate halves every so many updates. This matters most.
- A slow start. To Adam the first slopes, made by critics that know nothing yet, are as good as any.
  Its rate rises over the first updates.
- A critic of the learner's own for the reference discount. The value that the agent has belongs to
  the discount that it learns with, and as what follows a trajectory it is short-sighted.
- A critic of how the value moves with the discount. Where the value is fixed an advantage has the
  wrong slope in gamma: it prefers states of a high value to actions that lead there.

These critics share nothing with policy and value, which learn as they do at a fixed discount.

All this was chosen on seeds 1000 to 1029. On cart pole, five of them from 0.3: divided by the
deviation, two discounts fell below 0.02 in 400 updates, and the area was 240; not divided 320 to
332, and without the critic of the slope 308 to 323. In 600 updates 395, without that critic 389,
and 396 at 0.99. At a fixed 0.9, from update 200 to 300, the slope that eta sees has a mean of 0.5
deviations with it, and of -0.1 without. Of the first five slopes one in four has the wrong sign,
from the eighth on one in thirty. Without the slow start two of twenty discounts fell at once, on
seeds 0 to 19, and the share was 0.90 [0.80, 0.97]; the seeds of its results were new to it.

On catch discounts from 0.8 up learn alike, so the five are spread evenly: the middle of 0.2, 0.5,
0.8, 0.95 and 0.995 is as good as the best, and who begins at 0.2 can't be above it. With 600
updates the share was 0.969 [0.956, 0.982], but 0.894 of areas that begin at 0; it was made twice as
long and measured on the same seeds, 2000 to 2019, where it was 0.988 [0.982, 0.993]; and then, with
nothing changed, on 3000 to 3019, which nobody had seen. These are its results: of areas that begin
at -1, -0.6 and 0 the intervals begin at 0.986, 0.982 and 0.967.

    python tests/benchmarks/mgrl_control.py [--worlds catch] [--quick] [--fresh]

Seeds and discounts are one batch axis. Parts that are finished are kept in the results, so an
interrupted run goes on where it was.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import Progress
from torch import Tensor

from paramtree import Model, compose, envs, losses, meta, nn, optim, rng, td_model, tree, vmap

RESULTS = Path(__file__).parent / "results"
QUICK = Path("runs", "quick")  # for what is only there to see that it runs
SELECTION_SEEDS = range(1000, 1005)
SEEDS = {"cart_pole": range(2000, 2020), "catch": range(3000, 3020)}
SAMPLES = 10_000  # of the bootstrap
LMBDA = 0.95  # of A2C's advantages


class Setting(NamedTuple):
    """A world, how A2C learns there, and how the discount is learned."""

    env: envs.Env
    level: Any
    features: int
    actions: int
    gammas: tuple[float, ...]
    updates: int
    length: int
    workers: int
    lr: float
    critic_lr: float
    entropy_coeff: float
    meta_rate: float
    warmup: int  # updates in which the meta-rate rises from 0
    half_life: int  # of the meta-rate after that, in updates
    decay: float  # of the trace
    reference_gamma: float
    reference_lmbda: float
    floor: float  # the lowest return, where areas begin


SETTINGS = {
    "cart_pole": Setting(
        env=envs.cart_pole(),
        level=envs.cart_pole_level(),
        features=4,
        actions=2,
        gammas=(0.3, 0.8, 0.9, 0.97, 0.99),
        updates=1000,
        length=32,
        workers=16,
        lr=2e-3,
        critic_lr=2e-2,
        entropy_coeff=0.01,
        meta_rate=0.2,
        warmup=20,
        half_life=50,
        decay=0.9,
        reference_gamma=0.99,
        reference_lmbda=0.95,
        floor=0.0,
    ),
    "catch": Setting(
        env=envs.catch(),
        level=envs.catch_level(),
        features=50,
        actions=3,
        gammas=(0.1, 0.3, 0.5, 0.7, 0.9),
        updates=1200,
        length=9,
        workers=32,
        lr=1e-3,
        critic_lr=1e-2,
        entropy_coeff=0.02,
        meta_rate=0.2,
        warmup=20,
        half_life=100,
        decay=0.9,
        reference_gamma=0.995,
        reference_lmbda=0.95,
        floor=-1.0,
    ),
}


def agent(setting: Setting, **critics: str) -> Model:
    """Policy and value, and more critics by what they write, perceptrons of one hidden layer."""

    def head(size: int, name: str) -> Model:
        net = nn.mlp(setting.features, 64, size, activation=torch.tanh)

        def apply(params: Any, buffers: Any, x: Tensor) -> Any:
            return net.apply(params, buffers, x if setting.features == 4 else x.flatten(-2))

        return td_model(Model(net.init, apply), "observation", name)

    names = {"critic": "state_value", **critics}
    parts = {part: head(1, name) for part, name in names.items()}
    return compose(actor=head(setting.actions, "logits"), **parts)


def optimizer(setting: Setting, *critics: str) -> optim.Transform:
    """Adam for each part; a clipping of all at once would weigh them against one another."""
    rates = {f"{part}.**": setting.critic_lr for part in ("critic", *critics)}
    rates["actor.**"] = setting.lr
    return optim.partition({part: optim.adam(rate) for part, rate in rates.items()})


def a2c(setting: Setting, gamma: Any) -> meta.UpdateRule:
    """The one that all learn by."""
    return meta.a2c_rule(gamma, LMBDA, entropy_coeff=setting.entropy_coeff, critic_coeff=0.5)


def begun(setting: Setting, model: Model, transform: optim.Transform, key: Tensor) -> Any:
    """An agent that has played once, as ``mgrl_training`` begins it."""
    key = rng.fold_in(key, "agents")
    params, buffers = model.init(rng.fold_in(key, "agent"))
    noise = setting.env.noise(setting.level, rng.fold_in(key, "env"), (setting.workers,))
    state = {"params": params, "buffers": buffers, "optimizer": transform.init(params)}
    state |= {"rule": tree.new({}), "env": setting.env.reset(setting.level, noise)}
    return played(setting, model, tree.new(state), rng.fold_in(key, "play"))


def played(setting: Setting, model: Model, state: Any, key: Tensor) -> Any:
    """An agent that has played on."""
    acting = (state["params"], state["buffers"], setting.level, state["env"])
    place, buffers, td = envs.rollout(setting.env, model, *acting, key, setting.length)
    after = {"env": place, "buffers": buffers, "trajectory": td}
    return tree.new({**tree.entries(state), **after})


def fixed_curves(setting: Setting, gammas: Any, seeds: Tensor, show: Any) -> Tensor:
    """Returns ``[gammas, seeds, updates]`` of A2C at each discount.

    The numbers are those of ``mgrl_training`` with a meta-rate of 0, without the work for a slope.
    """
    model, transform = agent(setting), optimizer(setting)

    def step(gamma: Tensor, state: Any, key: Tensor, i: Tensor) -> Any:
        learning, playing = rng.split(rng.fold_in(rng.fold_in(key, i), 0))
        state, _ = meta.update_agent(
            a2c(setting, gamma),
            model,
            transform,
            tree.new({}),
            state,
            state["trajectory"],
            key=learning,
        )
        return played(setting, model, state, playing)

    keys = first_keys(seeds).repeat(len(gammas), 1)
    gamma = torch.tensor(gammas).repeat_interleave(len(seeds))
    states = vmap(partial(begun, setting, model, transform))(keys)
    record, found = Record(states["trajectory"]), []
    for i in range(setting.updates):
        states = vmap(step, (0, 0, 0, None))(gamma, states, keys, torch.tensor(i))
        found.append(record.after(states["trajectory"]))
        show((i + 1) / setting.updates)
    return torch.stack(found, -1).unflatten(0, (len(gammas), len(seeds)))


class Record:
    """Each worker's running return, and that of its last episode."""

    def __init__(self, td: Any) -> None:
        self.running = torch.zeros(td.batch_size[:-1])
        self.last, self.some = self.running.clone(), self.running.bool()
        self.after(td)

    def after(self, td: Any) -> Tensor:
        """Mean of the last returns over the workers that have ended an episode; else 0."""
        reward, done = td["next", "reward"], td["next", "done"]
        for earned, over in zip(reward.unbind(-1), done.unbind(-1), strict=True):
            self.running = self.running + earned
            self.last = torch.where(over, self.running, self.last)
            self.running = self.running.masked_fill(over, 0.0)
        self.some = self.some | done.any(-1)
        return torch.where(self.some, self.last, 0.0).sum(-1) / self.some.sum(-1).clamp(min=1)


def first_keys(seeds: Tensor) -> Tensor:
    """A key for each seed."""
    return torch.stack([rng.fold_in(rng.key(0), int(seed)) for seed in seeds])


# -------------------------------------------------------------------- what is learned

CRITICS = {"judge": "reference_value", "slope": "value_slope"}


def with_values(td: Any, value: Tensor, after: Tensor) -> Any:
    """The trajectory with another value of each state and of the next."""
    return tree.replace(td, {"state_value": value, ("next", "state_value"): after})


def as_judged(setting: Setting, td: Any) -> Any:
    """The trajectory with advantages and values at the reference discount."""
    td = with_values(td, td["reference_value"].detach(), td["next", "reference_value"].detach())
    return losses.add_advantage(td, setting.reference_gamma, setting.reference_lmbda)


def learning_rule(setting: Setting, gamma: Tensor) -> meta.UpdateRule:
    """A2C whose value has a slope in gamma, with the critics of the learner.

    The slope of the value in eta at gamma = sigmoid(eta), up to a factor of gamma, is a value too,
    of another reward: U(s) = E[(1 - gamma) V(s') + gamma U(s')] is (1 - gamma) dV / d gamma.
    """
    rule, here = a2c(setting, gamma), gamma.detach()

    def apply(params: Any, buffers: Any, td: Any) -> Any:
        slope, slope_after = td["value_slope"], td["next", "value_slope"]
        value, after = td["state_value"], td["next", "state_value"]
        going = (~td["next", "terminated"]).to(after.dtype).reshape(after.shape)
        gain = ((1 - here) * after * going).detach().reshape(td.batch_size)
        as_value = with_values(td, slope.detach(), slope_after.detach())
        as_value = tree.replace(as_value, {("next", "reward"): gain})
        targets = {
            "slope_target": losses.add_advantage(as_value, here, LMBDA)["value_target"],
            "reference_target": as_judged(setting, td)["value_target"],
        }
        off = (gamma - here) / (1 - here)  # 0, with a slope of 1 / (1 - gamma)
        out = with_values(td, value + off * slope, after + off * slope_after)
        out, buffers = rule.apply(params, buffers, out)
        return tree.rebuild(out, {**tree.entries(out), **targets}), buffers

    def loss(td: Any, **hyper: Any) -> Any:
        found = tree.entries(rule.loss(td, **hyper))
        targets = {"value_slope": "slope_target", "reference_value": "reference_target"}
        for name, target in targets.items():
            error = td[name].reshape(td.batch_size) - td[target]
            found[f"loss_{name}"] = 0.5 * error.square().mean()
        return tree.new(found)

    return meta.UpdateRule(rule.init, apply, loss)


def judgment(setting: Setting, td: Any, dist_class: Any) -> Any:
    """Policy gradient of advantages at the reference discount, less their mean."""
    td = as_judged(setting, td)
    advantage = td["advantage"]
    judged = tree.replace(td, {"advantage": advantage - advantage.mean()})
    return losses.policy_gradient_loss(judged, dist_class)


def learned_curves(
    setting: Setting, gamma: float, seeds: Tensor, show: Any
) -> tuple[Tensor, Tensor]:
    """Returns and discounts ``[seeds, updates]`` of an A2C that learns its discount from one."""
    rise = optim.linear(0.0, setting.meta_rate, setting.warmup)
    fall = optim.exponential_decay(setting.meta_rate, setting.half_life, 0.5)
    training = meta.mgrl_training(
        agent(setting, **CRITICS),
        setting.env,
        setting.level,
        meta.hyper_numbers({"gamma": gamma}),
        lambda h: learning_rule(setting, h["gamma"]),
        lambda h: optimizer(setting, *CRITICS),
        optim.adam(optim.join([rise, fall], [setting.warmup])),
        length=setting.length,
        workers=setting.workers,
        outer=partial(judgment, setting),
        method="trace",
        decay=setting.decay,
    )
    states, step, found = vmap(training.init)(first_keys(seeds)), vmap(training.step), []
    for i in range(setting.updates):
        states, metrics = step(states)
        found.append(torch.stack([metrics["return"], metrics["gamma"]]))
        show((i + 1) / setting.updates)
    score, path = torch.stack(found, -1)
    return score, path


# ----------------------------------------------------------------------- what counts


def areas(setting: Setting, score: Tensor) -> Tensor:
    """Mean return above the floor, over all updates."""
    return score.double().mean(-1) - setting.floor


def part(setting: Setting, seeds: range, selection: range, show: Any) -> dict[str, Any]:
    """All runs of a world, and what comes of the comparison."""
    gammas, n = list(setting.gammas), len(seeds)
    both = torch.tensor([*seeds, *selection])
    fixed = fixed_curves(setting, gammas, both, lambda x: show(x / 2))
    chosen, fixed = fixed[:, n:], fixed[:, :n]
    selected = areas(setting, chosen).mean(1)
    best, worst = int(selected.argmax()), int(selected.argmin())
    score, path = learned_curves(setting, gammas[worst], both[:n], lambda x: show((1 + x) / 2))
    table, ours = areas(setting, fixed), areas(setting, score)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(n, (SAMPLES, n), generator=generator)
    share = ours[rows].mean(1) / table[best][rows].mean(1)
    low, high = share.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    median = float(table.mean(1).median())
    every = max(1, setting.updates // 60)
    return {
        "settings": {k: v for k, v in setting._asdict().items() if k not in ("env", "level")},
        "seeds": list(seeds),
        "selection_seeds": list(selection),
        "selection_areas": dict(zip(map(str, gammas), selected.tolist(), strict=True)),
        "areas": dict(zip(map(str, gammas), table.tolist(), strict=True)),
        "start": gammas[worst],
        "best": gammas[best],
        "learned_areas": ours.tolist(),
        "area": float(ours.mean()),
        "best_area": float(table[best].mean()),
        "median_area": median,
        "worst_area": float(table[worst].mean()),
        "share_of_best": float(ours.mean() / table[best].mean()),
        "share_low": low,
        "share_high": high,
        "above_median": float(ours.mean()) > median,
        "within_5_percent": low >= 0.95,
        "gamma": path[:, ::every].tolist(),
        "curve": score.mean(0)[::every].tolist(),
        "fixed_curves": fixed.mean(1)[:, ::every].tolist(),
    }


def told(result: dict[str, Any]) -> str:
    """A world's result in a line."""
    names = {"area": "learned", "best_area": f"best ({result['best']})"}
    names |= {"median_area": "median", "worst_area": f"worst ({result['start']}), the start"}
    text = ", ".join(f"{what} {result[key]:.3f}" for key, what in names.items())
    low, high = result["share_low"], result["share_high"]
    share = f"{result['share_of_best']:.3f} [{low:.3f}, {high:.3f}] of the best"
    ends = [path[-1] for path in result["gamma"]]
    return f"areas: {text}; {share}; gamma ends at {min(ends):.3f} to {max(ends):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--quick", action="store_true", help="few seeds and a tenth of the updates")
    parser.add_argument("--fresh", action="store_true", help="don't go on with what is there")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = (QUICK if options.quick else RESULTS) / "mgrl_control.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() and not options.fresh else {}
    with Progress() as bars:
        for name in options.worlds:
            setting = SETTINGS[name]
            seeds = (SEEDS[name], SELECTION_SEEDS)
            if options.quick:
                setting, seeds = (
                    setting._replace(updates=setting.updates // 10),
                    (SEEDS[name][:3], SELECTION_SEEDS[:2]),
                )
            if name not in kept or kept[name]["seeds"] != list(seeds[0]):
                task, began = bars.add_task(name, total=1.0), time.monotonic()
                show = partial(_show, bars, task)
                result = part(setting, *seeds, show)
                kept[name] = {**result, "seconds": round(time.monotonic() - began, 1)}
                path.write_text(json.dumps(kept, indent=1) + "\n")
            bars.console.print(f"{name}: {told(kept[name])}", highlight=False)


def _show(bars: Progress, task: Any, share: float) -> None:
    bars.update(task, completed=share)


if __name__ == "__main__":
    main()
