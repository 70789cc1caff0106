"""A2C that learns its discount, against A2C at each of five fixed ones, on cart pole and catch.

The fixed discounts run on selection seeds first: the best there is the opponent, and the worst is
where the learned one begins. Then all run on other seeds. What counts is the area under the curve
of returns, the mean over all updates. It's to be above that of the middle one of the five, and the
lower end of the 95% interval of its share of the best one's (paired bootstrap over seeds) at least
95%. All of them learn from the same number of steps: the trajectory that judges an update is what
the next one learns from.

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
SELECTION_SEEDS, SEEDS, SAMPLES = 10, 20, 10_000


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
    decay: float  # of the trace; 0 for the last update alone
    reference_gamma: float
    floor: float  # return of an agent that has learned nothing at all, where areas begin


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
        meta_rate=0.1,
        decay=0.9,
        reference_gamma=0.99,
        floor=0.0,
    ),
    "catch": Setting(
        env=envs.catch(),
        level=envs.catch_level(),
        features=50,
        actions=3,
        gammas=(0.2, 0.5, 0.8, 0.95, 0.995),
        updates=600,
        length=9,
        workers=16,
        lr=3e-3,
        critic_lr=1e-2,
        entropy_coeff=0.02,
        meta_rate=0.1,
        decay=0.9,
        reference_gamma=0.995,
        floor=-1.0,
    ),
}


def agent(setting: Setting) -> Model:
    """Policy and value, perceptrons of one hidden layer."""

    def head(size: int, name: str) -> Model:
        net = nn.mlp(setting.features, 64, size, activation=torch.tanh)

        def apply(params: Any, buffers: Any, x: Tensor) -> Any:
            return net.apply(params, buffers, x if setting.features == 4 else x.flatten(-2))

        return td_model(Model(net.init, apply), "observation", name)

    return compose(actor=head(setting.actions, "logits"), critic=head(1, "state_value"))


def judgment(setting: Setting, td: Any, dist_class: Any) -> Any:
    """Policy gradient at the reference discount, less the mean over workers at each step.

    The value that the agent has belongs to the discount that it learns with; as a baseline for
    another one it leaves much noise.
    """
    names = ("state_value", ("next", "state_value"))
    stopped = tree.replace(td, {name: td[name].detach() for name in names})
    advantage = losses.add_advantage(stopped, setting.reference_gamma, 1.0)["advantage"]
    advantage = advantage - advantage.mean(0, keepdim=True)
    judged = tree.replace(td, {"advantage": advantage / (advantage.std() + 1e-8)})
    return losses.policy_gradient_loss(judged, dist_class)


def make_training(setting: Setting, learns: bool) -> meta.Training:
    def rule(h: Any) -> meta.UpdateRule:
        weights = {"entropy_coeff": setting.entropy_coeff, "critic_coeff": 0.5}
        return meta.a2c_rule(h["gamma"], 0.95, **weights)

    def optimizer(h: Any) -> optim.Transform:
        # a clipping of both at once would weigh the critic against the policy
        rates = {"actor.**": setting.lr, "critic.**": setting.critic_lr}
        return optim.partition({part: optim.adam(rate) for part, rate in rates.items()})

    traced: dict[str, Any] = {"method": "trace", "decay": setting.decay} if setting.decay else {}
    return meta.mgrl_training(
        agent(setting),
        setting.env,
        setting.level,
        meta.hyper_numbers({"gamma": 0.5}),
        rule,
        optimizer,
        optim.adam(setting.meta_rate) if learns else optim.sgd(0.0),
        length=setting.length,
        workers=setting.workers,
        outer=partial(judgment, setting),
        **traced,
    )


def curves(
    setting: Setting, gammas: list[float], seeds: Tensor, learns: bool, show: Any
) -> dict[str, Tensor]:
    """Returns and discounts ``[gammas, seeds, updates]`` of agents that begin at each discount."""
    training = make_training(setting, learns)
    n, each = len(gammas), len(seeds)
    keys = torch.stack([rng.fold_in(rng.key(0), int(seed)) for seed in seeds])
    states = vmap(training.init)(keys.repeat(n, 1))
    start = torch.tensor(gammas).repeat_interleave(each).logit()
    states = tree.replace(states, {("eta", "gamma"): start})
    step, found = vmap(training.step), []
    for i in range(setting.updates):
        states, metrics = step(states)
        found.append(torch.stack([metrics["return"], metrics["gamma"]]))
        show((i + 1) / setting.updates)
    score, gamma = torch.stack(found, -1).reshape(2, n, each, -1)
    return {"return": score, "gamma": gamma}


def areas(setting: Setting, score: Tensor) -> Tensor:
    """Mean return above the floor, over all updates."""
    return score.double().mean(-1) - setting.floor


def part(name: str, setting: Setting, seeds: int, selection: int, show: Any) -> dict[str, Any]:
    """All runs of a world, and what comes of the comparison."""
    gammas = list(setting.gammas)
    chosen = curves(
        setting, gammas, torch.arange(1000, 1000 + selection), False, lambda x: show(x / 3)
    )
    selected = areas(setting, chosen["return"]).mean(1)
    best, worst = int(selected.argmax()), int(selected.argmin())
    own = torch.arange(seeds)
    fixed = curves(setting, gammas, own, False, lambda x: show((1 + x) / 3))
    learned = curves(setting, [gammas[worst]], own, True, lambda x: show((2 + x) / 3))
    table, ours = areas(setting, fixed["return"]), areas(setting, learned["return"])[0]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(seeds, (SAMPLES, seeds), generator=generator)
    share = ours[rows].mean(1) / table[best][rows].mean(1)
    low, high = share.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    median = float(table.mean(1).median())
    every = max(1, setting.updates // 60)
    return {
        "settings": {k: v for k, v in setting._asdict().items() if k not in ("env", "level")},
        "seeds": seeds,
        "selection_seeds": selection,
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
        "gamma": learned["gamma"][0, :, ::every].tolist(),
        "curve": learned["return"][0].mean(0)[::every].tolist(),
        "fixed_curves": fixed["return"].mean(1)[:, ::every].tolist(),
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
    path = RESULTS / f"mgrl_control{'_quick' if options.quick else ''}.json"
    kept = json.loads(path.read_text()) if path.exists() and not options.fresh else {}
    with Progress() as bars:
        for name in options.worlds:
            setting = SETTINGS[name]
            sizes = (SEEDS, SELECTION_SEEDS)
            if options.quick:
                setting, sizes = setting._replace(updates=setting.updates // 10), (3, 2)
            if name not in kept:
                task, began = bars.add_task(name, total=1.0), time.monotonic()
                show = partial(_show, bars, task)
                result = part(name, setting, *sizes, show)
                kept[name] = {**result, "seconds": round(time.monotonic() - began, 1)}
                path.write_text(json.dumps(kept, indent=1) + "\n")
            bars.console.print(f"{name}: {told(kept[name])}", highlight=False)


def _show(bars: Progress, task: Any, share: float) -> None:
    bars.update(task, completed=share)


if __name__ == "__main__":
    main()
