"""A meta-step of Learned Policy Gradient at GROOVE's sizes, against the matrix products that its
GRU cannot do without.

8 tasks, 64 workers, 20 steps, 5 updates, a GRU of width 256, levels of the distribution ``all``.
The peer is the time of the recurrent products alone in the same process: for each update and step
``[512, 256] x [256, 768]`` forward, and ``[512, 768] x [768, 256]`` and ``[768, 512] x [512, 256]``
backward. The second line is the process's peak memory against a bound.

    python tests/benchmarks/bench_lpg.py
"""

import json
import resource
import statistics
import sys
import time

import torch

from paramtree import optim, rng
from paramtree.envs import level_distribution
from paramtree.meta import Training, lpg_network, lpg_population, lpg_rule, lpg_training

TASKS, WORKERS, LENGTH, UPDATES, WIDTH, REPEATS = 8, 64, 20, 5, 256, 7
MEMORY_BOUND = 1.3e9


def gemms() -> float:
    """Seconds of the recurrent products of one meta-step."""
    rows = TASKS * WORKERS
    h, w, gates = (
        torch.randn(rows, WIDTH),
        torch.randn(WIDTH, 3 * WIDTH),
        torch.randn(rows, 3 * WIDTH),
    )
    back, across = w.t().contiguous(), gates.t().contiguous()
    start = time.perf_counter()
    for _ in range(UPDATES * LENGTH):
        torch.mm(h, w)
        torch.mm(gates, back)
        torch.mm(across, h)
    return time.perf_counter() - start


def groove() -> Training:
    """Meta-training with GROOVE's network and constants, on fewer tasks."""
    network = lpg_network(8, WIDTH, cell="gru", gamma_input=False, activation=torch.relu)
    population = lpg_population(level_distribution("all"), TASKS, workers=WORKERS)
    options = {"updates": UPDATES, "length": LENGTH}
    return lpg_training(lpg_rule(network), {"all": population}, optim.adam(1e-4), **options)


def main() -> int:
    """Print one JSON object a line; 1 when a ratio is above its target."""
    training = groove()
    state = training.init(rng.key(0))
    state, _ = training.step(state)
    ours, peer = [], []
    gemms()
    for _ in range(REPEATS):  # in turn, so that a drift of the machine's speed meets both
        peer.append(gemms())
        start = time.perf_counter()
        state, _ = training.step(state)
        ours.append(time.perf_counter() - start)
    mine, other = statistics.median(ours), statistics.median(peer)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = [
        {
            "name": "lpg_meta_step",
            "ours": mine,
            "peer": other,
            "peer_name": "recurrent GEMMs alone",
            "target": 3.0,
        },
        {
            "name": "lpg_peak_memory",
            "ours": memory,
            "peer": MEMORY_BOUND,
            "peer_name": "bound",
            "target": 1.0,
            "unit": "bytes",
        },
    ]
    for line in lines:
        line["ratio"] = line["ours"] / line["peer"]
        print(json.dumps(line))
    return int(any(line["ratio"] > line["target"] for line in lines))


if __name__ == "__main__":
    sys.exit(main())
