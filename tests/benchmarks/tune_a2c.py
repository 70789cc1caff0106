"""Tune A2C for tabular grid worlds: the opponent that a learned rule is measured against.

The full grid of actor rate x entropy weight x discount x trace decay, each on the same 64 tuning
levels with the same noise, by the mean reward per step over the last fifth of a life. Then the
neighbors of the best in all four directions at once, beyond the edges of the grid too, until the
best has none that is better. The sixteen best are run on 256 further levels, and the best of these
is the result. Scores are kept as they come, so that an interrupted run goes on where it was.

    python tests/benchmarks/tune_a2c.py small
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import torch
from rich.progress import Progress

from paramtree import rng, tree
from paramtree.envs import level_distribution
from paramtree.meta import a2c_habitat, a2c_rule, reward_curve

GRID = {
    "rate": [10.0, 20.0, 40.0, 80.0, 160.0],
    "entropy": [0.003, 0.01, 0.03, 0.09, 0.27],
    "gamma": [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99],
    "lmbda": [0.8, 0.95, 1.0],
}
LADDERS = {  # where the search may go from the grid
    "rate": [1.25, 2.5, 5.0, *GRID["rate"], 320.0, 640.0, 1280.0, 2560.0],
    "entropy": [0.0003, 0.001, *GRID["entropy"], 0.81, 2.43, 7.29],
    "gamma": [0.1, 0.2, 0.3, 0.4, *GRID["gamma"], 0.995, 0.999],
    "lmbda": [0.2, 0.4, 0.6, *GRID["lmbda"]],
}
UPDATES, LENGTH, TUNING_LEVELS, FINAL_LEVELS, FINALISTS = 250, 20, 64, 256, 16


def score(
    world_name: str, config: dict[str, float], n_levels: int, seed: str, workers: int
) -> dict[str, float]:
    """Mean reward per step of fresh agents over the last fifth of their lives, and its standard
    error over levels."""
    world = level_distribution(world_name)
    key = rng.fold_in(rng.key(0), f"a2c {seed}")
    levels = world.sample(rng.split(rng.fold_in(key, "levels"), n_levels))
    rule = a2c_rule(config["gamma"], config["lmbda"], entropy_coeff=config["entropy"])
    habitat = a2c_habitat(world, workers=workers, actor_rate=config["rate"])
    curve = reward_curve(habitat, rule, tree.new({}), levels, key, updates=UPDATES, length=LENGTH)
    late = curve[:, -UPDATES // 5 :].mean(1)
    return {
        "score": float(late.mean()),
        "error": float(late.std() / n_levels**0.5),
        "levels": n_levels,
    }


def run(
    path: Path, world: str, stage: str, configs: list[dict[str, float]], n_levels: int, workers: int
) -> list[dict]:
    """Scores of all configurations, those on file taken from there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {}
    if path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        known = {(row["stage"], json.dumps(row["config"])): row for row in rows}
    with Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(stage, total=len(configs))
        for config in configs:
            name = (stage, json.dumps(config))
            if name not in known:
                start = time.perf_counter()
                row = {
                    "stage": stage,
                    "config": config,
                    **score(world, config, n_levels, stage, workers),
                }
                row["seconds"] = round(time.perf_counter() - start, 2)
                known[name] = row
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            progress.advance(task)
    return [known[stage, json.dumps(config)] for config in configs]


def neighbors(config: dict[str, float]) -> list[dict[str, float]]:
    """All configurations at most one step away on each ladder."""
    near = []
    for name, ladder in LADDERS.items():
        at = ladder.index(config[name])
        near.append(ladder[max(at - 1, 0) : at + 2])
    return [dict(zip(LADDERS, values, strict=True)) for values in itertools.product(*near)]


def main() -> None:
    """Tune, and write the result beside the raw scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", nargs="?", default="small")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = Path(__file__).parent / "results"
    raw = folder / f"a2c_{arguments.world}.jsonl"
    configs = [dict(zip(GRID, v, strict=True)) for v in itertools.product(*GRID.values())]
    while True:
        rows = run(raw, arguments.world, "grid", configs, TUNING_LEVELS, arguments.workers)
        rows.sort(key=lambda row: -row["score"])
        print(f"best of {len(rows)}: {rows[0]['config']} {rows[0]['score']:.5f}", flush=True)
        fresh = [config for config in neighbors(rows[0]["config"]) if config not in configs]
        if not fresh:
            break
        configs += fresh
    finalists = [row["config"] for row in rows[:FINALISTS]]
    final = run(raw, arguments.world, "final", finalists, FINAL_LEVELS, arguments.workers)
    final.sort(key=lambda row: -row["score"])
    result = {
        "world": arguments.world,
        "scored": len(configs),
        "workers": arguments.workers,
        "best": final[0],
        "runners_up": final[1:4],
    }
    (folder / f"a2c_{arguments.world}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(final[0]))


if __name__ == "__main__":
    main()
