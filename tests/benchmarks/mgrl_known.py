"""Learned hyper-parameters where the right ones are known.

    horizon   one state, reward 1 or N(1, 1): v <- v + 0.1 (1 + gamma v - v), five times, and then
              J' = ((v - H) / H)^2 / 2. Only at gamma = 1 - 1/H it stands still.
    choice    1 now, or R after d steps. An agent that has learned with a discount below R^(-1/d)
              takes the first; with a learned discount it changes its mind.
    walk      TD(lambda) on 19 states, from values of 0. The learned lambda is compared with each
              of a grid, by the same error after the same number of updates of many walks.

    python tests/benchmarks/mgrl_known.py [--quick] [--fresh]

Everything runs through ``meta.mgrl_training``. Parts that are finished are kept in the results, so
an interrupted run goes on where it was.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from tensordict import TensorDict
from torch import Tensor

from paramtree import compose, envs, losses, meta, nn, optim, rng, td_model, tree, vmap

RESULTS = Path(__file__).parent / "results"
QUICK = Path("runs", "quick")  # for what is only there to see that it runs
HORIZONS, STARTS, SEEDS = (5, 20), (0.5, 0.99), 5
CHOICES = ((2.0, 3), (1.5, 5))  # R and d
STATES = 19
GRID = torch.linspace(0, 1, 21)
Show = Callable[[float], None]  # is told which share is done


def table(states: int, actions: int) -> Any:
    """Agent whose policy and values are tables of zeros."""

    def of(size: int, name: str) -> Any:
        net = nn.linear(states, size, bias=False, weight_init=nn.zeros)
        return td_model(net, "observation", name)

    return compose(actor=of(actions, "logits"), critic=of(1, "state_value"))


def run(
    training: meta.Training, states: TensorDict, steps: int, show: Show
) -> tuple[TensorDict, TensorDict]:
    """States ``[n]`` after some steps, and the metrics ``[n, steps]``."""
    step, found = vmap(training.step), []
    for i in range(steps):
        states, metrics = step(states)
        found.append(metrics)
        show((i + 1) / steps)
    whole: Any = torch.stack(found, 1)  # pyright: ignore[reportArgumentType]
    return states, tree.lock(whole)


# ------------------------------------------------------------------------------------- horizon


def horizon_training(
    horizon: int, deviation: float, workers: int, rate: float, method: str = "truncated"
) -> meta.Training:
    """One state's value, which follows its target by a tenth in each of five updates."""

    def error(td: TensorDict, dist_class: Any) -> TensorDict:
        value = td["state_value"].mean()
        return tree.new({"loss_error": ((value - horizon) / horizon).square() / 2})

    return meta.mgrl_training(
        table(1, 1),
        envs.horizon(),
        envs.horizon_level(deviation=deviation, max_steps=horizon),
        meta.hyper_numbers({"gamma": 0.5}),
        lambda h: meta.td_lambda_rule(h["gamma"], 0.0, critic_coeff=0.5),
        lambda h: optim.sgd(0.1),
        optim.sgd(rate),
        updates=5,
        length=1,
        workers=workers,
        method=method,
        outer=error,
    )


def learned_horizon(
    horizon: int, deviation: float, seeds: int, steps: int, show: Show, rate: float = 0.4
) -> dict[str, Any]:
    """Discounts learned from each start with each seed, and their distance from 1 - 1/H."""
    workers = 1 if deviation == 0 else 64
    training = horizon_training(horizon, deviation, workers, rate)
    states = vmap(training.init)(rng.split(rng.fold_in(rng.key(0), horizon), len(STARTS) * seeds))
    starts = torch.tensor(STARTS).repeat_interleave(seeds)
    states = tree.replace(states, {("eta", "gamma"): starts.logit()})
    states, metrics = run(training, states, steps, show)
    gamma = states["eta", "gamma"].double().sigmoid()
    off = ((1 - gamma) * horizon).log().abs()
    return {
        "horizon": horizon,
        "deviation": deviation,
        "steps": steps,
        "start": starts.tolist(),
        "gamma": gamma.tolist(),
        "right": 1 - 1 / horizon,
        "log_distance": off.tolist(),
        "path": metrics["gamma"][:, :: max(1, steps // 50)].tolist(),
    }


# -------------------------------------------------------------------------------------- choice


def choice_training(large: float, delay: int, learns: bool) -> meta.Training:
    """Actor-critic that prefers what its discount makes the better."""
    return meta.mgrl_training(
        table(1 + 2 * delay, 2),
        envs.delayed_choice(delay),
        envs.delayed_choice_level(large=large, delay=delay),
        meta.hyper_numbers({"gamma": 0.5}),
        lambda h: meta.a2c_rule(
            h["gamma"], 1.0, entropy_coeff=0.1, critic_coeff=0.5, normalize=False
        ),
        lambda h: optim.sgd(2.0),
        optim.adam(0.1 if learns else 0.0),
        length=2 * (delay + 1),
        workers=32,
        outer=lambda td, dist: losses.mgrl_outer_loss(td, dist, reference_gamma=1.0),
    )


def chance_of_large(states: TensorDict) -> Tensor:
    """How often the agents take the large reward, ``[n]``."""
    logits = states["agents", "params", "actor", "weight"][..., 0]  # of the first observation
    return logits.softmax(-1)[..., 1]


def changed_mind(large: float, delay: int, seeds: int, steps: int, show: Show) -> dict[str, Any]:
    """Choices before the discount is learned and after, from one that is too small."""
    threshold = large ** (-1 / delay)
    fixed, learning = (choice_training(large, delay, learns) for learns in (False, True))
    states = vmap(fixed.init)(rng.split(rng.key(delay), seeds))
    start = torch.full((seeds,), 0.8 * threshold)
    states = tree.replace(states, {("eta", "gamma"): start.logit()})
    states, _ = run(fixed, states, steps // 3, lambda share: show(share / 4))
    before = chance_of_large(states)
    states, metrics = run(learning, states, steps, lambda share: show((1 + 3 * share) / 4))
    return {
        "large": large,
        "delay": delay,
        "steps": steps,
        "threshold": threshold,
        "start": start.tolist(),
        "gamma": states["eta", "gamma"].sigmoid().tolist(),
        "large_before": before.tolist(),
        "large_after": chance_of_large(states).tolist(),
        "path": metrics["gamma"][:, :: max(1, steps // 50)].tolist(),
    }


# ---------------------------------------------------------------------------------------- walk


def walk_training(
    tasks: int, updates: int, length: int, rate: float, eta_optimizer: optim.Transform
) -> meta.Training:
    """Many walks whose values all begin at 0, and are judged after some updates."""
    truth = envs.random_walk_values(envs.random_walk_level(), size=STATES).float()

    def error(td: TensorDict, dist_class: Any) -> TensorDict:
        value = td["state_value"].reshape(td.batch_size)
        return tree.new({"loss_error": (value - td["observation"] @ truth).square().mean()})

    return meta.mgrl_training(
        table(STATES, 1),
        envs.random_walk(STATES),
        envs.random_walk_level(),
        meta.hyper_numbers({"lmbda": 0.5}),
        lambda h: meta.td_lambda_rule(1.0, h["lmbda"], critic_coeff=0.5),
        lambda h: optim.sgd(rate * length),  # the loss is a mean over steps
        eta_optimizer,
        updates=updates,
        length=length,
        workers=1,
        tasks=tasks,
        fresh=True,
        outer=error,
    )


def learned_trace(
    tasks: int,
    updates: int,
    length: int,
    steps: int,
    grid_steps: int,
    rate: float,
    show: Show,
    starts: tuple[float, ...] = (0.1, 0.95),
) -> dict[str, Any]:
    """Lambda learned from some starts, and the error of each lambda of a grid."""
    sizes = (tasks, updates, length, rate)
    decaying = optim.adam(optim.cosine_decay(0.2, steps))
    training = walk_training(*sizes, decaying)
    start = torch.tensor(starts)
    states = vmap(training.init)(rng.split(rng.key(1), len(starts)))
    states = tree.replace(states, {("eta", "lmbda"): start.logit()})
    states, metrics = run(training, states, steps, lambda share: show(share / 2))
    learned = states["eta", "lmbda"].sigmoid()
    fixed = walk_training(*sizes, optim.sgd(0.0))
    one = fixed.init(rng.key(2))  # the same walks for each lambda
    copies = tree.stack([one] * len(GRID))
    inside = GRID.clamp(1e-6, 1 - 1e-6)
    copies = tree.replace(copies, {("eta", "lmbda"): inside.logit()})
    _, measured = run(fixed, copies, grid_steps, lambda share: show((1 + share) / 2))
    errors = measured["meta_loss"].double()  # [21, steps]
    mean = errors.mean(1)
    best = int(mean.argmin())
    return {
        "walks": tasks,
        "updates": updates,
        "length": length,
        "rate": rate,
        "steps": steps,
        "walks_on_grid": tasks * grid_steps,
        "start": start.tolist(),
        "learned": learned.tolist(),
        "best": float(GRID[best]),
        "step_of_grid": float(GRID[1]),
        "error": mean.sqrt().tolist(),
        "error_se": ((errors - errors[best]).std(1) / grid_steps**0.5).tolist(),
        "path": metrics["lmbda"][:, :: max(1, steps // 50)].tolist(),
    }


# ------------------------------------------------------------------------------------ as a script


def parts(quick: bool) -> dict[str, Callable[[Show], dict[str, Any]]]:
    """What is to be done, by name."""
    few = 10 if quick else 1
    found: dict[str, Callable[[Show], dict[str, Any]]] = {}
    for horizon in HORIZONS:
        for deviation, seeds in ((0.0, 1), (1.0, SEEDS)):

            def one(show: Show, args: Any = (horizon, deviation, seeds, 1500 // few)) -> Any:
                return learned_horizon(*args, show)

            found[f"horizon {horizon}, deviation {deviation:.0f}"] = one
    for large, delay in CHOICES:

        def two(show: Show, args: Any = (large, delay, SEEDS, 1500 // few)) -> Any:
            return changed_mind(*args, show)

        found[f"choice of {large} after {delay}"] = two
    found["walk"] = lambda show: learned_trace(128, 12, 30, 100 // few, 40 // few, 0.4, show)
    return found


def told(name: str, result: dict[str, Any]) -> str:
    """A part's result in a line."""
    if name.startswith("horizon"):
        worst = max(result["log_distance"])
        return f"gamma {numbers(result['gamma'])}, right {result['right']:.4f}; off by {worst:.4f}"
    if name.startswith("choice"):
        text = f"gamma {numbers(result['gamma'])}, threshold {result['threshold']:.4f}; chance of "
        before, after = numbers(result["large_before"]), numbers(result["large_after"])
        return text + f"the large reward from {before} to {after}"
    return f"lambda {numbers(result['learned'])}, best of the grid {result['best']:.2f}"


def numbers(values: list[float]) -> str:
    return " ".join(f"{x:.4f}" for x in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of all steps")
    parser.add_argument("--fresh", action="store_true", help="don't go on with what is there")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = (QUICK if options.quick else RESULTS) / "mgrl_known.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() and not options.fresh else {}
    todo = parts(options.quick)
    with Progress() as bars:
        whole = bars.add_task("all parts", total=len(todo))
        for i, (name, work) in enumerate(todo.items()):
            if name not in kept:
                began = time.monotonic()

                def show(share: float, first: int = i) -> None:
                    bars.update(whole, completed=first + share)

                result = work(show)
                kept[name] = {**result, "seconds": round(time.monotonic() - began, 1)}
                path.write_text(json.dumps(kept, indent=1) + "\n")
            bars.update(whole, completed=i + 1)
            bars.console.print(f"{name}: {told(name, kept[name])}", highlight=False)


if __name__ == "__main__":
    main()
