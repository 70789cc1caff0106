"""Compiled training steps against the same steps run eagerly.

A step of PPO is advantages, the loss, its gradient, clipping and Adam on a batch of trajectories; a
step of SAC trains two critics, an actor and a temperature, each by its Adam, and moves the target
critics. Either is one graph (``fullgraph=True``), compiled by inductor from nothing, whose first
call is ``compile_seconds`` and the number of calls that pays for it ``worth_after``. The numbers
are the eager ones, or the benchmark fails.

    python tests/benchmarks/bench_compile.py [--only NAME]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import line, seconds
from torch import Tensor
from torch._inductor.utils import fresh_cache

from paramtree import rng, tree

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.paramtree.compile import ppo, sac  # noqa: E402 (the steps that the tests compile)

WIDTH = 64
Call = tuple[Callable[..., Any], tuple[Any, ...]]


def ppo_step() -> Call:
    """A minibatch of 8 trajectories of 32 steps."""
    net = ppo.agent(WIDTH, torch.float32)
    state = ppo.start(net, rng.key(0))
    td = ppo.trajectories(net, state, rng.key(1), (8, 32))
    return partial(ppo.update, net), (numbers(ppo.HYPER), state, td, rng.key(2))


def sac_step() -> Call:
    """A batch of 128 transitions."""
    agent = sac.agent(WIDTH, torch.float32)
    td = sac.transitions(rng.key(1), 128, torch.float32)
    return partial(sac.update, agent), (
        numbers(sac.HYPER),
        sac.start(agent, rng.key(0)),
        td,
        rng.key(2),
    )


def numbers(hyper: dict[str, float]) -> dict[str, Tensor]:
    """Hyper-parameters as data."""
    return {name: torch.tensor(value) for name, value in hyper.items()}


STEPS = {"PPO": ppo_step, "SAC": sac_step}


def bench(name: str) -> dict[str, Any]:
    """Seconds of a step, compiled and eager."""
    step, args = STEPS[name]()
    wanted = tree.leaves(step(*args))
    torch.compiler.reset()
    with fresh_cache():
        run = torch.compile(step, fullgraph=True)
        start = time.perf_counter()
        found = tree.leaves(run(*args))
        compiling = time.perf_counter() - start
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    ours, eager = seconds([lambda: run(*args), lambda: step(*args)])
    worth = round(compiling / (eager - ours)) if ours < eager else None
    title = f"{name} step, width {WIDTH}, compiled"
    more = {"compile_seconds": compiling, "worth_after": worth}
    return line(title, ours, eager, "the same step, eager", 1.0, **more)


def main() -> int:
    """Print one JSON object a line; 1 when a ratio is above its target."""
    parser = argparse.ArgumentParser(description="Compiled steps against eager ones.")
    parser.add_argument("--only", default="", help="run the steps whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    slow = False
    for name in STEPS:
        if options.only in name:
            found = bench(name)
            print(json.dumps(found), flush=True)
            slow = slow or found["ratio"] > found["target"]
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
