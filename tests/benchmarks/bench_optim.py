"""Adam against torch's fused one, optax's jitted one and TorchOpt's, and meta-gradients through it.

A size is leaves x rows x columns of float32 parameters in one tree. A step is update and apply;
donated, it writes to the memory of the parameters and of the state, as ``torch.optim`` does. optax
runs jitted in a process of its own, before the others. The meta-gradient is that of a loss after 10
steps of Adam on a network of 3 layers, with respect to the initial parameters and to a factor in
the inner loss; TorchOpt's is by MetaAdam. All peers give our numbers, or the benchmark fails.

    python tests/benchmarks/bench_optim.py [--only NAME] [--optax PYTHON]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torchopt
from bench_meta_modes import peak_memory
from measuring import Run, line, require_close, seconds
from tensordict import TensorDict
from torch import Tensor

from paramtree import grad, nn, optim, rng, tree

SIZES = {
    "12 leaves of 32x32": (12, 32, 32),
    "11M in 160": (160, 262, 262),
    "33M in 8": (8, 2031, 2031),
}
FUSED = {"12 leaves of 32x32": 1.0, "11M in 160": 1.1, "33M in 8": 1.1}
NETWORKS = {(64, 32): 0.6, (256, 256): 1.0}  # width and batch, and the target for the time
STEPS, LR = 10, 1e-3
OPTAX = Path(__file__).with_name("optax_adam.py")
JAX_PYTHON = Path(__file__).parents[2] / ".venv-jax/bin/python"


# ---- a step


class Trees:
    """Parameters and gradients of one size."""

    def __init__(self, leaves: int, rows: int, columns: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn() -> TensorDict:
            shape = (rows, columns)
            names = [f"leaf_{i}" for i in range(leaves)]
            return tree.new({name: torch.randn(shape, generator=generator) for name in names})

        self.params, self.grads = drawn(), drawn()


def donated(trees: Trees) -> tuple[Run, Callable[[], list[Tensor]]]:
    """Our step that gives its memory up, and where its parameters are."""
    optimizer = optim.adam(LR)
    held = [tree.map(torch.clone, trees.params), optimizer.init(trees.params)]

    def run() -> None:
        held[:] = optim.step(optimizer, trees.grads, held[1], held[0], donate=True)

    return run, lambda: tree.leaves(held[0])


def kept(trees: Trees) -> Run:
    """Our step that leaves its inputs as they are."""
    optimizer = optim.adam(LR)
    state = optimizer.init(trees.params)
    return lambda: optim.step(optimizer, trees.grads, state, trees.params)


def fused(trees: Trees) -> tuple[Run, Callable[[], list[Tensor]]]:
    """torch.optim's fused Adam."""
    params = [leaf.clone().requires_grad_() for leaf in tree.leaves(trees.params)]
    for leaf, slope in zip(params, tree.leaves(trees.grads), strict=True):
        leaf.grad = slope
    optimizer = torch.optim.Adam(params, lr=LR, fused=True)
    return optimizer.step, lambda: [leaf.detach() for leaf in params]


def functional(trees: Trees) -> tuple[Run, Callable[[], list[Tensor]]]:
    """TorchOpt's functional Adam, in place where it can be."""
    optimizer = torchopt.adam(LR)
    params: Any = {name: leaf.clone() for name, leaf in tree.entries(trees.params).items()}
    grads, held = tree.entries(trees.grads), [optimizer.init(params)]

    def run() -> None:
        # its in-place update writes over the gradients
        given = {name: leaf.clone() for name, leaf in grads.items()}
        updates, held[0] = optimizer.update(given, held[0], params=params, inplace=True)
        torchopt.apply_updates(params, updates, inplace=True)

    return run, lambda: [params[name] for name in sorted(params)]


def bench_steps(only: str, python: Path) -> Iterator[dict[str, Any]]:
    """Adam's step at each size."""
    jitted = optax_seconds(python) if any(only in named("optax", n) for n in SIZES) else {}
    for name, size in SIZES.items():
        trees = Trees(*size)
        for peer, make, target in (("fused", fused, FUSED[name]), ("torchopt", functional, 0.125)):
            title = named(peer, name)
            if only not in title:
                continue
            (ours, mine), (theirs, yours) = donated(trees), make(trees)
            for _ in range(3):
                ours()
                theirs()
            require_close(title, mine(), yours())
            times = seconds([ours, theirs])
            peer_name = {"fused": "torch.optim.Adam(fused=True)", "torchopt": "torchopt.adam"}[peer]
            yield line(title, *times, peer_name, target)
        size_name = "x".join(map(str, size))
        if size_name in jitted and only in named("optax", name):
            (ours,) = seconds([kept(trees)])
            yield line(named("optax", name), ours, jitted[size_name], "optax.adam, jitted", 1.5)


def named(peer: str, size: str) -> str:
    """The comparison's name."""
    kind = "not donated" if peer == "optax" else "donated"
    return f"adam step, {kind}, {size}, against {peer}"


def optax_seconds(python: Path) -> dict[str, float]:
    """What the script beside this one measures, by size; or nothing."""
    if not python.exists():
        print(f"optax is left out: no {python}", file=sys.stderr)
        return {}
    sizes = ["x".join(map(str, size)) for size in SIZES.values()]
    done = subprocess.run([python, OPTAX, *sizes], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


# ---- a meta-gradient


class Problem:
    """A regression by a network of 3 layers, and other data to judge it by."""

    def __init__(self, width: int, batch: int) -> None:
        self.model = nn.mlp(width, width, width, 1)
        self.params, self.buffers = self.model.init(rng.key(0))
        draw = {name: rng.normal(rng.fold_in(rng.key(1), name), (batch, width)) for name in "ab"}
        self.data = {name: (x, x[:, :1].sin()) for name, x in draw.items()}
        self.factor = torch.tensor(1.5)


def meta_gradient(problem: Problem) -> Callable[[], list[Tensor]]:
    """Ours: a function of trees, differentiated."""

    def loss(params: TensorDict, name: str) -> Tensor:
        x, y = problem.data[name]
        return (problem.model(params, problem.buffers, x) - y).square().mean()

    def after(params: TensorDict, factor: Tensor) -> Tensor:
        optimizer = optim.adam(LR, eps_root=1e-8)
        state = optimizer.init(params)
        for _ in range(STEPS):
            slope = grad(lambda p: factor * loss(p, "a"))(params)
            params, state = optim.step(optimizer, slope, state, params)
        return loss(params, "b")

    slope = grad(after, (0, 1))

    def run() -> list[Tensor]:
        return tree.leaves(slope(problem.params, problem.factor))

    return run


def by_torchopt(problem: Problem) -> Callable[[], list[Tensor]]:
    """TorchOpt's: a module whose parameters MetaAdam replaces.

    Without ``eps_root`` its slopes are NaN where a unit is dead, and gradients exactly 0.
    """
    layers = [tree.entries(layer) for _, layer in sorted(tree.entries(problem.params).items())]
    modules: list[torch.nn.Module] = []
    for layer in layers:
        n_out, n_in = layer["weight"].shape
        linear = torch.nn.Linear(n_in, n_out)
        linear.load_state_dict(layer)
        modules += [linear, torch.nn.ReLU()]
    net = torch.nn.Sequential(*modules[:-1])
    start = [x for layer in modules[::2] for x in (layer.bias, layer.weight)]
    factor = problem.factor.clone().requires_grad_()
    optimizer = torchopt.MetaAdam(net, lr=LR, eps_root=1e-8)
    first = [torchopt.extract_state_dict(each, by="reference") for each in (net, optimizer)]

    def loss(name: str) -> Tensor:
        x, y = problem.data[name]
        return (net(x) - y).square().mean()

    def run() -> list[Tensor]:
        for _ in range(STEPS):
            optimizer.step(factor * loss("a"))
        slopes = torch.autograd.grad(loss("b"), [*start, factor])
        for each, state in zip((net, optimizer), first, strict=True):
            torchopt.recover_state_dict(each, state)
        return list(slopes)

    return run


def by_hand(problem: Problem) -> Callable[[], list[Tensor]]:
    """What can be had at most: tensors without names, and Adam on one vector, written out."""
    leaves = [x.clone().requires_grad_() for x in tree.leaves(problem.params)]
    shapes, sizes = [x.shape for x in leaves], [x.numel() for x in leaves]
    factor = problem.factor.clone().requires_grad_()

    def loss(params: Sequence[Tensor], name: str) -> Tensor:
        x, y = problem.data[name]
        for bias, weight in (params[:2], params[2:4]):
            x = torch.relu(torch.nn.functional.linear(x, weight, bias))
        return (torch.nn.functional.linear(x, params[5], params[4]) - y).square().mean()

    def run() -> list[Tensor]:
        params: Sequence[Tensor] = leaves
        mu = nu = torch.zeros(sum(sizes))
        for k in range(1, STEPS + 1):
            slopes = torch.autograd.grad(factor * loss(params, "a"), params, create_graph=True)
            g = torch.cat([x.reshape(-1) for x in slopes])
            mu, nu = torch.lerp(mu, g, 0.1), torch.addcmul(nu * 0.999, g, g, value=0.001)
            size = (nu / (1 - 0.999**k) + 1e-8).sqrt() + 1e-8
            parts = (mu / size * (-LR / (1 - 0.9**k))).split(sizes)
            params = [p + x.view(n) for p, x, n in zip(params, parts, shapes, strict=True)]
        return list(torch.autograd.grad(loss(params, "b"), [*leaves, factor]))

    return run


def bench_meta_gradients(only: str) -> Iterator[dict[str, Any]]:
    """Time and memory of the meta-gradient."""
    for (width, batch), target in NETWORKS.items():
        title = f"meta-gradient through {STEPS} steps of adam, width {width}, batch {batch}"
        if only not in title:
            continue
        problem = Problem(width, batch)
        ours, theirs, plain = meta_gradient(problem), by_torchopt(problem), by_hand(problem)
        require_close(title, ours(), theirs())
        require_close(title, ours(), plain())
        mine, peer, floor = seconds([ours, theirs, plain])
        yield line(title, mine, peer, "torchopt.MetaAdam", target, by_hand=floor)
        peaks = [peak_memory(ours), peak_memory(theirs)]
        yield line(f"memory of the {title}", *peaks, "torchopt.MetaAdam", 0.8, unit="bytes")


def main() -> int:
    """Print one JSON object a line; 1 when a ratio is above its target."""
    parser = argparse.ArgumentParser(description="Optimizers against their peers.")
    parser.add_argument("--only", default="", help="run comparisons whose name holds this")
    parser.add_argument("--optax", type=Path, default=JAX_PYTHON, help="a python that has optax")
    options = parser.parse_args()
    slow = False
    for bench in (bench_steps(options.only, options.optax), bench_meta_gradients(options.only)):
        for found in bench:
            print(json.dumps(found), flush=True)
            slow = slow or found["ratio"] > found["target"]
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
