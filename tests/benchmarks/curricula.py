"""Does it matter which levels a learned rule is trained on?

Meta-trains the same rule for the same number of meta-steps on levels that are drawn anew
(uniform), that come again where the critic was wrong (plr: positive value loss), or where an A2C
agent earns more (groove: algorithmic regret), from several seeds. Each rule then trains fresh
agents on held-out levels, the same for all. A second kind of levels shows how it carries over.

Raw numbers, in results/curricula.json: for each curriculum, seed and kind of levels the reward per
step in the last fifth of a life on every level, and the seconds of the training. The meta-steps are
the same for all, the seconds aren't: antagonists take time. A run that was stopped goes on from
runs/curricula.

    python tests/benchmarks/curricula.py
    python tests/benchmarks/curricula.py --quick
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from tensordict import TensorDict

from paramtree import optim, rng
from paramtree.checkpoint import load, load_metadata, save
from paramtree.envs import LevelDistribution, level_distribution
from paramtree.meta import (
    Curriculum,
    Population,
    Training,
    a2c_habitat,
    algorithmic_regret,
    lpg_network,
    lpg_population,
    lpg_rule,
    lpg_training,
    positive_value_loss,
    prioritized_level_replay,
    reward_curve,
    uniform_curriculum,
)

CURRICULA = ("uniform", "plr", "groove")
SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Sizes:
    """How large the experiment is."""

    train_on: str = "all_shortlife"
    evaluate_on: tuple[str, ...] = ("all_shortlife", "small")
    tasks: int = 128
    workers: int = 8
    steps: int = 500
    updates: int = 5
    length: int = 20
    buffer: int = 1000
    hidden: int = 32
    levels: int = 128
    lifetime: int = 250
    evaluation_workers: int = 16
    chunk: int | None = 32


QUICK = Sizes("small", ("small",), 2, 2, 3, 1, 3, 8, 4, 2, 2, 2, None)


def training(name: str, sizes: Sizes) -> Training:
    """The meta-training under a curriculum."""
    world = level_distribution(sizes.train_on)
    population = lpg_population(world, sizes.tasks, workers=sizes.workers, lifetime=sizes.lifetime)
    groups = {
        sizes.train_on: population._replace(curriculum=curriculum(name, world, population, sizes))
    }
    optimizer = optim.chain(clip=optim.clip_by_global_norm(0.1), adam=optim.adam(1e-3))
    return lpg_training(
        rule(sizes),
        groups,
        optimizer,
        updates=sizes.updates,
        length=sizes.length,
        average=0.95,
        chunk=sizes.chunk,
        policy_entropy_coeff=0.05,
        prediction_entropy_coeff=0.001,
        pi_hat_coeff=0.03,
        y_hat_coeff=0.001,
    )


def rule(sizes: Sizes) -> Any:
    network = lpg_network(8, sizes.hidden, cell="gru", gamma_input=False, activation=torch.relu)
    return lpg_rule(network)


def curriculum(
    name: str, world: LevelDistribution, population: Population, sizes: Sizes
) -> Curriculum:
    """A curriculum by its name."""
    if name == "uniform":
        return uniform_curriculum(world.sample)
    habitat = population.habitat
    if name == "plr":
        score = positive_value_loss(habitat, population.critic, length=sizes.length)
    else:
        rival = a2c_habitat(world, workers=sizes.workers, lifetime=sizes.lifetime)
        options = {"horizon": world.max_steps, "length": sizes.length, "chunk": sizes.chunk}
        score = algorithmic_regret(habitat, rival, **options)
    return prioritized_level_replay(world.sample, score, size=sizes.buffer)


def trained(
    name: str, seed: int, sizes: Sizes, folder: Path, bars: Progress
) -> tuple[TensorDict, float]:
    """The averaged rule after all steps, and the seconds that they took."""
    train, path = training(name, sizes), folder / f"{name}_{seed}.safetensors"
    mark = repr(sizes)
    state, seconds = train.init(rng.fold_in(rng.key(seed), "curricula")), 0.0
    if path.exists() and load_metadata(path).get("sizes") == mark:
        state, seconds = load(path, like=state), load_metadata(path)["seconds"]
    done = int(state["step"])
    task = bars.add_task(f"{name} {seed}", total=sizes.steps, completed=done)
    last = began = time.monotonic()
    for step in range(done, sizes.steps):
        state, _ = train.step(state)
        bars.advance(task)
        if time.monotonic() - last > SAVE_EVERY or step + 1 == sizes.steps:
            last = time.monotonic()
            save(path, state, metadata={"sizes": mark, "seconds": seconds + last - began})
    return state["average"], seconds + time.monotonic() - began


def rewards(params: TensorDict, name: str, sizes: Sizes) -> list[float]:
    """Reward per step in the last fifth of a life on each held-out level."""
    world, key = level_distribution(name), rng.fold_in(rng.key(0), "curricula held out")
    levels = world.sample(rng.split(rng.fold_in(key, "levels"), sizes.levels))
    habitat = lpg_population(
        world, 1, workers=sizes.evaluation_workers, lifetime=sizes.lifetime
    ).habitat
    options = {"updates": sizes.lifetime, "length": sizes.length}
    curve = reward_curve(habitat, rule(sizes), params, levels, key, **options)
    return curve[:, -max(1, sizes.lifetime // 5) :].mean(1).tolist()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over levels and seeds, and the standard error over seeds."""
    found: dict[str, Any] = {}
    for kind in {row["levels"] for row in rows}:
        for name in CURRICULA:
            means = [
                sum(row["rewards"]) / len(row["rewards"])
                for row in rows
                if (row["levels"], row["curriculum"]) == (kind, name)
            ]
            if means:
                x = torch.tensor(means, dtype=torch.float64)
                error = float(x.std() / len(x) ** 0.5) if len(x) > 1 else None
                found[f"{name} on {kind}"] = {"mean": float(x.mean()), "error": error}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Sizes.steps)
    parser.add_argument("--only", choices=CURRICULA, nargs="+", default=CURRICULA)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = QUICK if arguments.quick else Sizes(steps=arguments.steps)
    name = "curricula_quick" if arguments.quick else "curricula"
    root = Path(__file__).parents[2]
    folder = root / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    out = (
        folder / "rows.json"
        if arguments.quick
        else root / "tests/benchmarks/results/curricula.json"
    )
    found = json.loads(out.read_text()) if out.exists() else {}
    rows = found.get("rows", []) if found.get("sizes") == repr(sizes) else []
    with Progress(disable=not sys.stderr.isatty()) as bars:
        for seed in range(arguments.seeds):
            for which in arguments.only:
                for kind in sizes.evaluate_on:
                    entry = {"curriculum": which, "seed": seed, "levels": kind}
                    if any(entry.items() <= row.items() for row in rows):
                        continue
                    params, seconds = trained(which, seed, sizes, folder, bars)
                    got = rewards(params, kind, sizes)
                    rows.append({**entry, "seconds": round(seconds, 1), "rewards": got})
                    text = {"sizes": repr(sizes), "summary": summary(rows), "rows": rows}
                    out.write_text(json.dumps(text, indent=1) + "\n")
                    print(which, seed, kind, sum(got) / len(got), flush=True)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
