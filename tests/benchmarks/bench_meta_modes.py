"""Memory of the ways to differentiate through an inner loop: peak bytes of live tensors on the CPU.

``peak_memory`` watches every operation below autograd and torch.func, counts the bytes of each
storage that comes out from then until it is freed, and gives the highest count; what was there
before isn't counted. Python's garbage collector is off meanwhile, so that a graph held by a cycle
counts too. The number is the same in every run, and within a few per cent of what torch's profiler
reports.

    python tests/benchmarks/bench_meta_modes.py
"""

import gc
import json
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paramtree import grad, optim, rng, tree
from paramtree.meta import checkpointed, forward_mode, unrolled

Run = Callable[[], Any]


class Meter(TorchDispatchMode):
    """Bytes of the storages that operations made and that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, Any] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.count(x.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self.alive:
            return

        def freed(_: Any) -> None:
            self.now -= size
            del self.alive[address]

        self.alive[address] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_memory(run: Run) -> int:
    """The most bytes that are alive at once while a function runs."""
    gc.collect()
    gc.disable()
    try:
        with Meter() as meter:
            _ = run()
    finally:
        gc.enable()
    return meter.peak


def network(hyper: TensorDict, make: Callable[[Any], optim.Transform]) -> tuple[Any, ...]:
    """Step, outer function and initial state of a small network under an optimizer."""
    key = rng.key(0)
    inputs = rng.normal(rng.fold_in(key, "inputs"), (16, 4))
    weight = rng.normal(rng.fold_in(key, "weight"), (4, 8)) / 2
    params = tree.new({"w": weight, "v": torch.full((8,), 0.1)})

    def loss(params: Any) -> Tensor:
        return (
            (torch.tanh(inputs @ params["w"]) @ params["v"] - inputs.sum(-1).sin()).square().mean()
        )

    def step(hyper: Any, state: Any, k: int) -> Any:
        params = state["params"]
        updates, memory = make(hyper).update(grad(loss)(params), state["optimizer"], params)
        return tree.new({"params": optim.apply_updates(params, updates), "optimizer": memory})

    def outer(hyper: Any, state: Any) -> Tensor:
        return loss(state["params"])

    return step, outer, tree.new({"params": params, "optimizer": make(hyper).init(params)})


def lines() -> list[dict[str, Any]]:
    """What is printed, without the ratios."""
    hyper = tree.new({"lr": torch.tensor(0.01)})
    step, outer, state = network(hyper, lambda h: optim.adam(h["lr"]))
    plain, start = network(hyper, lambda h: optim.sgd(h["lr"]))[0::2]

    def held(mode: Any, steps: int) -> int:
        return peak_memory(lambda: mode(step, outer, steps)(hyper, state))

    def forward(steps: int) -> int:
        return peak_memory(lambda: forward_mode(plain, outer, steps)(hyper, start))

    long = held(checkpointed, 1000)
    rows = [
        ("checkpointed_1000_steps", long, held(unrolled, 32), "unrolled, 32 steps", 3.0),
        ("checkpointed_1000_steps", long, held(checkpointed, 32), "checkpointed, 32 steps", 3.0),
        ("forward_mode_10000_steps", forward(10000), forward(100), "100 steps", 1.05),
    ]
    return [
        {"name": n, "ours": ours, "peer": peer, "peer_name": p, "target": target, "unit": "bytes"}
        for n, ours, peer, p, target in rows
    ]


def main() -> int:
    """Print one JSON object a line; 1 when a ratio is above its target."""
    torch.set_num_threads(1)
    found = [{**line, "ratio": line["ours"] / line["peer"]} for line in lines()]
    for line in found:
        print(json.dumps(line))
    return int(any(line["ratio"] > line["target"] for line in found))


if __name__ == "__main__":
    sys.exit(main())
