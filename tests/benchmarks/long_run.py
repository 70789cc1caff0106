"""A meta-training survives a day: memory is flat, a resume exact, a bad task harms no other.

Tiny sizes, so that many steps take minutes; whatever a step leaves behind adds up all the same.
Lives end, levels are replayed, a bandit chooses rates, and a checkpoint is written now and then.

    memory    resident bytes, Python objects and tensors at intervals, and by how much a step makes
              them grow in the second half: a line through the numbers
    resume    from the middle's file the same steps give the same bits as without the stop
    bad       a level whose rewards are NaN is told of and left; the bits of the other tasks are
              those of a training without it

A run can't be resumed, since memory belongs to a process. Fails where a limit is passed.

    python tests/benchmarks/long_run.py
    python tests/benchmarks/long_run.py --quick
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from tensordict import TensorDict

from paramtree import optim, rng, tree
from paramtree.checkpoint import load, save
from paramtree.envs import level_distribution
from paramtree.meta import (
    Training,
    lpg_network,
    lpg_population,
    lpg_rule,
    lpg_training,
    positive_value_loss,
    prioritized_level_replay,
)

TASKS, LIFETIME, RESUMED = 2, 40, 40
LIMITS = {"rss_bytes_a_step": 200.0, "objects_a_step": 0.05, "tensors_a_step": 0.005}


def tiny() -> Training:
    """A training with all that has a state of its own."""
    world = level_distribution("small")
    population = lpg_population(
        world,
        TASKS,
        n_prediction=4,
        workers=2,
        lifetime=LIFETIME,
        arm_rates=(20.0, 40.0),
        arm_coeffs=(0.1, 0.5),
    )
    score = positive_value_loss(population.habitat, population.critic, length=2)
    replay = prioritized_level_replay(world.sample, score, size=32)
    network = lpg_network(4, 6, cell="gru", n_embedding=3, gamma_input=False)
    groups = {"small": population._replace(curriculum=replay)}
    options = {"updates": 1, "length": 2, "average": 0.9}
    return lpg_training(lpg_rule(network), groups, optim.adam(1e-4), **options)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def counts() -> dict[str, int]:
    """What is alive: objects that the collector knows, and tensors among them."""
    gc.collect()
    everything = gc.get_objects()
    tensors = sum(issubclass(type(x), torch.Tensor) for x in everything)
    return {"rss_bytes": resident(), "objects": len(everything), "tensors": tensors}


def slope(steps: list[int], numbers: list[float]) -> float:
    """Growth a step, by least squares."""
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (steps, numbers))
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x @ x))


def same(a: TensorDict, b: TensorDict) -> bool:
    """Whether names and bits are the same, NaN included."""
    if tree.paths(a) != tree.paths(b):
        return False
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in map(_flat, pairs))


def _flat(pair: Any) -> list[torch.Tensor]:
    return [x.contiguous().reshape(-1) for x in pair]


def gone_on(train: Training, path: Path) -> TensorDict:
    """The state of a file, some steps later."""
    state = load(path)
    for _ in range(RESUMED):
        state, _ = train.step(state)
    return state


def bad_level(train: Training, state: TensorDict) -> dict[str, Any]:
    """A step in which one task's rewards are NaN, beside the same step without."""
    path = ("agents", "small", "level", "table", "reward")
    agents = state["agents", "small"]
    young = tree.replace(state, {"agents.small.age": torch.zeros_like(agents["age"])})
    reward = young[path].clone()
    reward[1] = torch.nan
    clean, _ = train.step(young)
    broken, metrics = train.step(tree.replace(young, {path: reward}))
    kept = [i for i in range(TASKS) if i != 1]
    others = [tree.take(s["agents", "small"], kept) for s in (clean, broken)]
    after, later = train.step(broken)
    level = after["agents", "small", "level", "table", "reward"][1]
    return {
        "told_of": metrics["bad"].tolist(),
        "told_of_once": not bool(later["bad"].any()),
        "others_unchanged": same(*others),
        "rule_finite": all(bool(x.isfinite().all()) for x in tree.leaves(after["rule"])),
        "born_on_another_level": bool(level.isfinite().all()),
        "age_of_the_new_one": int(after["agents", "small", "age"][1]),
    }


def run(steps: int, every: int) -> dict[str, Any]:
    """Train, and measure now and then."""
    train = tiny()
    state, rows, began = train.init(rng.key(0)), [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Progress(disable=not sys.stderr.isatty()) as bars:
        task, path = bars.add_task("steps", total=steps), Path(folder) / "state.safetensors"
        for step in range(1, steps + 1):
            state, _ = train.step(state)
            if step % every == 0:
                save(path, state)
                rows.append({"step": step, **counts()})
            if step == steps // 2:
                save(Path(folder) / "middle.safetensors", state)
            if step == steps // 2 + RESUMED:
                resumed = same(state, gone_on(train, Path(folder) / "middle.safetensors"))
            bars.advance(task)
    late = [row for row in rows if row["step"] > steps // 2]
    names = {"rss_bytes": "rss_bytes_a_step", "objects": "objects_a_step"}
    names |= {"tensors": "tensors_a_step"}
    at = [row["step"] for row in late]
    growth = {long: slope(at, [row[short] for row in late]) for short, long in names.items()}
    return {
        "steps": steps,
        "seconds": round(time.monotonic() - began, 1),
        "growth": growth,
        "limits": LIMITS,
        "resume_exact": resumed,
        "bad": bad_level(train, state),
        "rows": rows,
    }


def verdict(found: dict[str, Any]) -> list[str]:
    """What is wrong."""
    growth = found["growth"]
    wrong = [f"{name} {growth[name]:.3g}" for name in LIMITS if growth[name] > LIMITS[name]]
    if not found["resume_exact"]:
        wrong.append("the resumed training is another")
    wanted = [i == 1 for i in range(TASKS)]
    bad = dict(found["bad"])
    if bad.pop("told_of") != wanted:
        wrong.append("the bad task isn't told of")
    return wrong + [f"not {name}" for name, fine in bad.items() if not fine]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="160 steps, and no file")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = 160 if arguments.quick else arguments.steps
    found = run(steps, max(8, steps // 50))
    if not arguments.quick:
        path = Path(__file__).parent / "results" / "long_run.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({**found, "rows": len(found["rows"])}, indent=1))
    if arguments.quick:  # too few steps for memory to settle
        del LIMITS["rss_bytes_a_step"]
    wrong = verdict(found)
    print("\n".join(wrong) or "flat, exact and sound")
    return len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main())
