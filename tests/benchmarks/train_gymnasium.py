"""Train PPO on CartPole-v1 and SAC on Pendulum-v1 from the notebooks' pages, for several seeds.

Each agent is judged by 100 episodes that it wasn't trained on: PPO's as it acts, SAC's by its mean
action. Raw numbers go to results/ppo_cartpole.json and results/sac_pendulum.json; the exit status
is 1 where fewer than four fifths of the seeds reach the target.

    OMP_NUM_THREADS=1 python tests/benchmarks/train_gymnasium.py ppo_cartpole sac_pendulum
"""

import argparse
import importlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from paramtree import rng
from paramtree.interop import gymnasium as play

ROOT = Path(__file__).parents[2]
EPISODES = 100
TARGETS = {"ppo_cartpole": 475.0, "sac_pendulum": -200.0}  # mean return that counts as solved
STEPS = {"ppo_cartpole": 50_000, "sac_pendulum": 8_000}


def judged(name: str, page: Any, trained: Any, key: torch.Tensor) -> torch.Tensor:
    """Returns of an agent's episodes."""
    if name == "ppo_cartpole":
        return play.evaluate("CartPole-v1", page.AGENT, *trained, key, EPISODES)
    agent = page.ACTOR, trained["actor"], page.NOTHING, key, EPISODES
    return play.evaluate("Pendulum-v1", *agent, deterministic=True, **page.ACT)


def run(name: str, page: Any, seed: int, steps: int) -> dict[str, Any]:
    """Train one agent, and judge it."""
    curve: list[str] = []
    start, began = time.perf_counter(), time.process_time()
    trained = page.train(seed, steps, curve.append)
    seconds, busy = time.perf_counter() - start, time.process_time() - began
    returns = judged(name, page, trained, rng.fold_in(rng.key(seed), "evaluation"))
    return {
        "seed": seed,
        "steps": steps,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(busy, 2),  # whatever else the machine does meanwhile
        "mean": round(returns.mean().item(), 2),
        "returns": [round(value, 2) for value in returns.tolist()],
        "curve": curve,
    }


def config(page: Any) -> dict[str, Any]:
    """The numbers that stand at the top of a page."""
    return {k: v for k, v in vars(page).items() if k.isupper() and isinstance(v, int | float)}


def main() -> int:
    """Train and judge all that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(TARGETS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "notebooks"))
    solved_all = True
    for name in arguments.names:
        page, rows = importlib.import_module(name), []
        for seed in range(arguments.seeds):
            rows.append(run(name, page, seed, arguments.steps or STEPS[name]))
            row = rows[-1]
            print(f"{name} seed {seed}: {row['mean']} in {row['cpu_seconds']} s", flush=True)
        solved = sum(row["mean"] >= TARGETS[name] for row in rows)
        found = {
            "target": TARGETS[name],
            "solved": solved,
            "of": len(rows),
            "config": config(page),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "runs": rows,
        }
        path = Path(__file__).parent / "results" / f"{name}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {solved} of {len(rows)} reach {TARGETS[name]}", flush=True)
        solved_all &= solved >= 0.8 * len(rows)
    return 0 if solved_all else 1


if __name__ == "__main__":
    raise SystemExit(main())
