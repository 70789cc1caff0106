"""What the benchmarks measure with: medians of interleaved runs, and the line that they print."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]


def seconds(runs: Sequence[Run], repeats: int = 15, sample_seconds: float = 0.05) -> list[float]:
    """Median of each, taken in turn, so that a drift of the machine's speed meets all."""
    counts = []
    for run in runs:
        run()
        start = time.perf_counter()
        run()
        counts.append(max(1, round(sample_seconds / (time.perf_counter() - start))))
    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, count, sample in zip(runs, counts, samples, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                run()
            sample.append((time.perf_counter() - start) / count)
    return [statistics.median(sample) for sample in samples]


def line(
    name: str, ours: float, peer: float, peer_name: str, target: float | None, **more: Any
) -> dict[str, Any]:
    """What is printed; a comparison without a target is for information."""
    measured = {"name": name, "ours": ours, "peer": peer, "peer_name": peer_name}
    return measured | {"ratio": ours / peer, "target": target} | more


def require_close(
    name: str, found: Sequence[Tensor], wanted: Sequence[Tensor], atol: float = 1e-5
) -> None:
    """Fail where a peer's numbers aren't ours."""
    for x, y in zip(found, wanted, strict=True):
        if not torch.allclose(x, y, rtol=1e-3, atol=atol + 1e-3 * float(y.abs().max())):
            raise AssertionError(f"{name}: the numbers are not ours")
