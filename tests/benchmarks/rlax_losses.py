# pyright: reportMissingImports=false
"""Seconds of rlax's returns, jitted on the CPU, forward and backward, as one JSON object.

It runs in an environment that has rlax, and measures what bench_losses.py measures:

    python tests/benchmarks/rlax_losses.py 256x128 4x32
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
import numpy as np  # noqa: E402
import rlax  # noqa: E402

GAMMA, LMBDA, ACTIONS, REPEATS, SAMPLE_SECONDS = 0.99, 0.95, 6, 25, 0.01


def seconds(fn: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """Median time of a call, after compilation."""
    jax.block_until_ready(fn(*args))
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    count = max(1, round(SAMPLE_SECONDS / (time.perf_counter() - start)))
    samples = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(fn(*args))
        samples.append((time.perf_counter() - start) / count)
    return statistics.median(samples)


def measured(envs: int, steps: int) -> dict[str, float]:
    """Each function under the name that bench_losses.py gives it."""
    draw = np.random.default_rng(0)

    def normal(*more: int) -> Any:
        return jnp.asarray(draw.normal(size=(envs, steps, *more)), jnp.float32)

    reward, value, after, log_mu, log_pi, w, u = (normal() for _ in range(7))
    done = draw.random((envs, steps)) < 0.05
    going_on = jnp.asarray(~(done & (draw.random((envs, steps)) < 0.5)), jnp.float32)
    lmbda = jnp.asarray(LMBDA * ~done, jnp.float32)
    q, probs, mu = normal(ACTIONS), jax.nn.softmax(normal(ACTIONS)), jnp.exp(log_mu - 1)
    action = jnp.asarray(draw.integers(0, ACTIONS, (envs, steps)))

    def lambda_returns(reward: Any, after: Any, gamma: Any) -> Any:
        out = jax.vmap(rlax.lambda_returns)(reward, gamma * going_on, after, lmbda)
        return (w * out).sum()

    def vtrace(value: Any, after: Any, log_pi: Any, gamma: Any) -> Any:
        rho = jnp.exp(log_pi - log_mu)
        function = jax.vmap(
            lambda *x: rlax.vtrace_td_error_and_advantage(*x, stop_target_gradients=False)
        )
        out = function(value, after, reward, gamma * going_on, rho, lmbda)
        return (w * out.pg_advantage + u * (out.errors + value)).sum()

    def retrace(q: Any, probs: Any, gamma: Any) -> Any:
        function = jax.vmap(rlax.general_off_policy_returns_from_action_values)
        c = lmbda * jnp.minimum(1.0, jnp.take_along_axis(probs, action[..., None], -1)[..., 0] / mu)
        return (w * function(q, action, reward, gamma * going_on, c, probs)).sum()

    gamma = jnp.float32(GAMMA)
    cases = {
        lambda_returns: (reward, after, gamma),
        vtrace: (value, after, log_pi, gamma),
        retrace: (q, probs, gamma),
    }
    return {
        f"{fn.__name__} {envs}x{steps}": seconds(
            jax.jit(jax.value_and_grad(fn, tuple(range(len(x))))), x
        )
        for fn, x in cases.items()
    }


def main() -> None:
    """Print one JSON object: seconds by name."""
    found: dict[str, float] = {}
    for shape in sys.argv[1:]:
        envs, steps = map(int, shape.split("x"))
        found |= measured(envs, steps)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
