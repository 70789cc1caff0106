# pyright: reportMissingImports=false
"""Seconds of optax's Adam, jitted on the CPU, update and apply, as one JSON object.

It runs in an environment that has optax, and measures what bench_optim.py measures, without and
with donation:

    python tests/benchmarks/optax_adam.py 12x32x32 160x262x262 8x2031x2031
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

REPEATS, SAMPLE_SECONDS = 15, 0.05


def seconds(run: Callable[[], Any]) -> float:
    """Median time of a call, after compilation."""
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    count = max(1, round(SAMPLE_SECONDS / (time.perf_counter() - start)))
    samples = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(run())
        samples.append((time.perf_counter() - start) / count)
    return statistics.median(samples)


def measured(leaves: int, rows: int, columns: int, donated: bool) -> float:
    """Seconds of a step over that many leaves of that shape."""
    optimizer = optax.adam(1e-3)
    keys = jax.random.split(jax.random.key(0), 2 * leaves)
    drawn = [jax.random.normal(key, (rows, columns), jnp.float32) for key in keys]
    grads = {f"leaf_{i}": leaf for i, leaf in enumerate(drawn[:leaves])}
    held = {"params": {f"leaf_{i}": leaf for i, leaf in enumerate(drawn[leaves:])}}
    held["state"] = optimizer.init(held["params"])

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1) if donated else ())

    def run() -> Any:
        params, state = jitted(held["params"], held["state"], grads)
        if donated:
            held["params"], held["state"] = params, state
        return params, state

    return seconds(run)


def main() -> None:
    """Print the seconds by the name of the size."""
    found = {}
    for size in sys.argv[1:]:
        dims = [int(number) for number in size.split("x")]
        found[size] = measured(*dims, donated=False)
        found[f"{size} donated"] = measured(*dims, donated=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
