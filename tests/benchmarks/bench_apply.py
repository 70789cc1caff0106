"""Applying a model: against the nn.Module itself, functional_call, TensorDictModule and loops.

The model is an MLP of 3 layers and ReLU, eager. Stacked, 100 of them are applied at once by vmap:
against the loop that one would write, ``net(params[i], buffers, x[i])``, against one over trees
that were unstacked before, and against three baddbmm. All peers give our numbers, or the benchmark
fails. Only width 64 at batch 32 has targets. One model runs in one thread, the stack in all.

    python tests/benchmarks/bench_apply.py [--only NAME]
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from measuring import line, require_close, seconds
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torch.func import functional_call, grad_and_value

from paramtree import nn, rng, td_model, tree, value_and_grad, vmap

SIZES = ((64, 32), (64, 1), (256, 32), (256, 256), (1024, 64))
TARGETS = {
    "apply against nn.Module": 1.0,
    "apply against functional_call": 0.5,
    "TensorDict model": 0.6,
    "value and gradient": 0.5,
    "100 stacked against a loop": 0.25,
    "100 stacked against baddbmm": 2.5,
}
STACK = 100
ATOL = 1e-6


def module_of(width: int) -> torch.nn.Sequential:
    layers = [torch.nn.Linear(width, width) for _ in range(3)]
    return torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])


def params_of(module: torch.nn.Sequential) -> TensorDict:
    """The module's own parameters under our names."""
    linears = [module[2 * i] for i in range(3)]
    layers = [tree.new({"weight": linear.weight, "bias": linear.bias}) for linear in linears]
    return tree.new({f"linear_{i}": layer for i, layer in enumerate(layers)})


def compared(name: str, size: str, ours: Any, peers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Lines of one comparison for each peer that is named."""
    times = seconds([ours, *peers.values()], repeats=21, sample_seconds=0.02)
    for peer, seconds_of_peer in zip(peers, times[1:], strict=True):
        full = name if len(peers) == 1 else f"{name} against {peer}"
        target = TARGETS.get(full) if size == "width 64, batch 32" else None
        yield line(f"{full}, {size}", times[0], seconds_of_peer, peer, target)


def bench_one(width: int, batch: int) -> Iterator[dict[str, Any]]:
    size = f"width {width}, batch {batch}"
    net, module = nn.mlp(width, width, width, width), module_of(width)
    params, buffers = params_of(module), tree.new({})
    named, x = dict(module.named_parameters()), torch.randn(batch, width)

    def called(named: Any) -> Tensor:
        return functional_call(module, named, (x,))

    with torch.no_grad():
        peers = {"nn.Module": lambda: module(x), "functional_call": lambda: called(named)}
        for name, run in peers.items():
            require_close(name, [run()], [net.apply(params, buffers, x)[0]], ATOL)
        yield from compared("apply", size, lambda: net.apply(params, buffers, x), peers)

        model, td = td_model(net, "observation", "out"), TensorDict({"observation": x}, [batch])
        peer = TensorDictModule(module, ["observation"], ["out"])
        require_close(
            "TensorDictModule", [peer(td)["out"]], [model(params, buffers, td)["out"]], ATOL
        )
        yield from compared(
            "TensorDict model",
            size,
            lambda: model.apply(params, buffers, td),
            {"TensorDictModule": lambda: peer(td)},
        )

    free = tree.map(Tensor.detach, params)
    named = {name: value.detach() for name, value in named.items()}
    ours = value_and_grad(lambda p: net(p, buffers, x).square().mean())
    theirs = grad_and_value(lambda p: called(p).square().mean())
    slopes = [theirs(named)[0][f"{2 * i}.{kind}"] for i in range(3) for kind in ("bias", "weight")]
    require_close("grad_and_value", slopes, tree.leaves(ours(free)[1]), ATOL)
    yield from compared(
        "value and gradient",
        size,
        lambda: ours(free),
        {"torch.func.grad_and_value": lambda: theirs(named)},
    )


def bench_stacked(width: int, batch: int) -> Iterator[dict[str, Any]]:
    size = f"width {width}, batch {batch}"
    net = nn.mlp(width, width, width, width)
    params, buffers = vmap(net.init)(rng.split(rng.key(0), STACK))
    x, rows, empty = torch.randn(STACK, batch, width), tree.unstack(params), tree.new({})
    leaves = tree.leaves(params)
    stacked = vmap(net.apply, (0, None, 0))

    def baddbmm() -> Tensor:
        out = x
        for i in range(3):
            bias, weight = leaves[2 * i : 2 * i + 2]
            out = torch.baddbmm(bias.unsqueeze(1), out, weight.mT)
            out = torch.relu(out) if i < 2 else out
        return out

    peers = {
        "a loop": lambda: [net(params[i], empty, x[i]) for i in range(STACK)],
        "a loop over unstacked trees": lambda: [
            net(row, empty, one) for row, one in zip(rows, x, strict=True)
        ],
        "baddbmm": baddbmm,
    }
    with torch.no_grad():
        for name, run in peers.items():
            require_close(name, list(run()), list(stacked(params, empty, x)[0]), ATOL)
        yield from compared(f"{STACK} stacked", size, lambda: stacked(params, empty, x)[0], peers)


def main() -> int:
    """Print one JSON object a line; 1 when a ratio is above its target."""
    parser = argparse.ArgumentParser(description="Applying a model against its peers.")
    parser.add_argument("--only", default="", help="run sizes whose name holds this")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    slow = False
    for width, batch in SIZES:
        if options.only not in f"width {width}, batch {batch}":
            continue
        # a single small product gains nothing by threads, and a hundred do
        for bench, own in ((bench_one, 1), (bench_stacked, threads)):
            torch.set_num_threads(own)
            for found in bench(width, batch):
                print(json.dumps(found), flush=True)
                slow = slow or (found["target"] is not None and found["ratio"] > found["target"])
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
