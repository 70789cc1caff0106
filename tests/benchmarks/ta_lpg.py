"""Does it help a rule to know how long a life it has? TA-LPG against LPG at short and long lives.

Both rules have the same network, but that one is told of the agent's age and lifetime, and both are
trained alike on lives whose lengths are drawn log-uniformly: by the gradient through K updates, as
``paramtree lpg --preset demo`` has it, or by evolution strategies over whole lives. Then both lead
lives of fixed lengths on the same held-out levels with the same random numbers. What counts is the
mean reward per step over the last fifth of a life, and over all of it; intervals are at 95%, over
meta-seeds and levels.

A training goes on where its last checkpoint is, and what has been measured isn't measured again:
runs/ta_lpg/ holds checkpoints and curves, results/ta_lpg.json the numbers of each level and seed.

    python tests/benchmarks/ta_lpg.py --steps 150 --levels 32
    python tests/benchmarks/ta_lpg.py --method es --workers 8 --average 0 --out runs/ta_lpg_es
    python tests/benchmarks/ta_lpg.py --quick
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from intervals import bootstrap, difference, mean
from rich.progress import Progress
from tensordict import TensorDict
from torch import Tensor

from paramtree import rng
from paramtree.checkpoint import load, save
from paramtree.cli import training
from paramtree.cli.options import PRESETS, LpgOptions
from paramtree.envs import level_distribution
from paramtree.meta import reward_curve

RULES = {"lpg": False, "ta_lpg": True}
RESULT = Path(__file__).parent / "results" / "ta_lpg.json"
QUICK = {
    "seeds": 1,
    "steps": 2,
    "tasks": 4,
    "workers": 2,
    "hidden": 8,
    "levels": 3,
    "eval_workers": 2,
    "born": [3, 6],
    "lifetimes": [3, 6],
}


def options_of(options: argparse.Namespace, name: str) -> LpgOptions:
    """The demo, with this network, these agents and this training."""
    demo, by_gradient = PRESETS["demo"], options.method == "gradient"
    rate, decay = (1e-3, demo.objective.meta_decay) if by_gradient else (0.05, 0.999)
    network = {"hidden": options.hidden, "prediction_size": options.prediction}
    rates = {"actor_rate": options.actor_rate, "prediction_rate": options.prediction_rate}
    return replace(
        demo,
        levels=(options.world,),
        tasks=options.tasks,
        length=options.length,
        network=replace(demo.network, lifetime_input=RULES[name], **network),
        agents=replace(demo.agents, workers=options.workers, lifetime=tuple(options.born), **rates),
        objective=replace(
            demo.objective,
            method=options.method,
            meta_rate=rate if options.rate is None else options.rate,
            meta_decay=decay,
            average=options.average,
        ),
        evolution=replace(demo.evolution, sigma=options.sigma, score=options.score),
    )


def trained(options: argparse.Namespace, name: str, seed: int, folder: Path) -> TensorDict:
    """The rule's parameters after all steps, from where the last checkpoint is."""
    train = training.make_training(options_of(options, name))
    path = folder / f"{name}_{seed}.safetensors"
    state = train.init(rng.key(seed))
    state = load(path, like=state) if path.exists() else state
    began, done = time.monotonic(), int(state["step"])
    with Progress(disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task(f"{name} {seed}", total=options.steps, completed=done)
        for step in range(done, options.steps):
            before = time.monotonic()
            state, metrics = train.step(state)
            columns = {key: float(x) for key, x in metrics.items() if x.ndim == 0}
            columns |= {"step": step + 1, "seconds": round(time.monotonic() - before, 3)}
            with (folder / f"{name}_{seed}.jsonl").open("a") as file:
                file.write(json.dumps(columns) + "\n")
            now = time.monotonic()
            if now - began > 30 or step + 1 == options.steps:
                save(path, state)
                began = now
            reward = columns["reward"]
            bars.update(task, advance=1, description=f"{name} {seed} reward {reward:.4f}")
    return state["average"]


def measured(
    options: argparse.Namespace, name: str, params: TensorDict, updates: int
) -> dict[str, list[float]]:
    """Rewards of lives of one length on the held-out levels."""
    world, key = level_distribution(options.world), rng.fold_in(rng.key(0), "held out")
    levels = world.sample(rng.split(rng.fold_in(key, "levels"), options.levels))
    chosen = options_of(options, name)
    chosen = replace(chosen, agents=replace(chosen.agents, workers=options.eval_workers))
    population = training.make_population(chosen, world, options.levels)
    with Progress(disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task(f"{updates} updates", total=updates)

        def report(done: int, rewards: Tensor) -> None:
            bars.update(task, completed=done)

        curve = reward_curve(
            population.habitat,
            training.make_rule(chosen),
            params,
            levels,
            key,
            updates=updates,
            length=options.length,
            report=report,
        )
    final = curve[:, -((updates + 4) // 5) :].mean(1)
    return {"final": final.tolist(), "lifetime": curve.mean(1).tolist()}


def compared(rows: list[dict[str, Any]], lifetimes: list[int]) -> list[dict[str, Any]]:
    """Means of both rules at each length, and their difference."""
    found = []
    for lifetime in lifetimes:
        for measure in ("final", "lifetime"):
            tables = {
                name: torch.tensor(
                    [
                        row[measure]
                        for row in rows
                        if row["rule"] == name and row["updates"] == lifetime
                    ]
                )
                for name in RULES
            }
            line: dict[str, Any] = {"updates": lifetime, "measure": measure}
            line |= {name: bootstrap(mean, table) for name, table in tables.items()}
            line["difference"] = bootstrap(difference, tables["ta_lpg"], tables["lpg"])
            found.append(line)
    return found


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and measure, and compare what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = {key: value for key, value in vars(options).items() if key not in ("out", "threads")}
    fixed = {
        key: value for key, value in mark.items() if key not in ("seeds", "steps", "lifetimes")
    }
    path = folder / "options.json"
    if path.exists() and json.loads(path.read_text()) != fixed:
        sys.exit(f"{folder} holds runs with other options; give another folder by --out")
    path.write_text(json.dumps(fixed, indent=1) + "\n")
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name in RULES:
            params = trained(options, name, seed, folder)
            for updates in options.lifetimes:
                path = folder / f"{name}_{seed}_{options.steps}_{updates}.json"
                if not path.exists():
                    record = measured(options, name, params, updates)
                    path.write_text(json.dumps(record))
                record = json.loads(path.read_text())
                rows.append({"rule": name, "seed": seed, "updates": updates, **record})
    return {"options": mark, "compared": compared(rows, options.lifetimes), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--world", default="small")
    add("--method", choices=["es", "gradient"], default="gradient")
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=200)
    add("--tasks", type=int, default=64, help="agents, or pairs of them")
    add("--workers", type=int, default=16)
    add("--length", type=int, default=20)
    add("--hidden", type=int, default=32)
    add("--prediction", type=int, default=8)
    add("--actor-rate", type=float, default=800.0)
    add("--prediction-rate", type=float, default=30.0)
    add("--born", type=int, nargs=2, default=[50, 1000], help="bounds of lifetimes in training")
    add("--rate", type=float, help="default: 0.05 with decay, or 1e-3 for the gradient")
    add("--sigma", type=float, default=0.1)
    add("--score", choices=["final", "lifetime", "return"], default="final")
    add("--average", type=float, default=0.98)
    add("--lifetimes", type=int, nargs="+", default=[50, 250, 1000], help="measured")
    add("--levels", type=int, default=64, help="held out")
    add("--eval-workers", type=int, default=16)
    add("--threads", type=int, default=1)
    add("--out", default="runs/ta_lpg", help="checkpoints, curves and measurements")
    add("--quick", action="store_true", help="tiny sizes, and no result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = Path(options.out)
    if options.quick:
        options, folder = argparse.Namespace(**{**vars(options), **QUICK}), folder / "quick"
    found = run(options, folder)
    if not options.quick:
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["compared"], indent=1))


if __name__ == "__main__":
    main()
