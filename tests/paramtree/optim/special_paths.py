"""What the tests of schedule_free, sam, lbfgs and line searches share.

Losses, paths of params on them, and paths of L-BFGS, ours and torch's.
"""

import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import apply_updates

STEPS = 12
D = torch.float64
SOURCE = torch.Generator().manual_seed(0)
ROOT, LINEAR, START = (
    torch.randn(shape, generator=SOURCE, dtype=D) for shape in [(5, 5), (5,), (5,)]
)
MATRIX = ROOT @ ROOT.T + torch.eye(5, dtype=D)


def tree_of(vector):
    return tree.new({"bias": vector[:2], "weight": vector[2:]})


def loss(params):
    w = torch.cat([params["bias"], params["weight"]])
    return 0.5 * w @ MATRIX @ w - LINEAR @ w + w.cos().sum()


def gradient(params, flat=False):
    grads = paramtree.grad(loss)(params)
    return torch.cat(tree.leaves(grads)) if flat else grads


def walk(optimizer, read=None, **extra):
    """Params [steps + 1, 5] from START, along the gradients of the loss."""
    params = tree_of(START)
    state, path = optimizer.init(params), [params]
    for _ in range(STEPS):
        updates, state = optimizer.update(gradient(params), state, params, **extra)
        params = apply_updates(params, updates)
        path.append(params)
        if read is not None:
            read(state, params)
    return torch.stack([torch.cat(tree.leaves(params)) for params in path])


def vector(*numbers, dtype=D):
    return TensorDict({"x": torch.tensor(numbers, dtype=dtype)})


def rosenbrock(p):
    x = p["x"]
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def convex(n, seed=0):
    """A quadratic, what is least on it, and where to begin."""
    source = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, dtype=D, generator=source)
    matrix = root @ root.T + torch.eye(n, dtype=D)
    loss = lambda p: 0.5 * p["x"] @ matrix @ p["x"] - p["x"].sum()  # noqa: E731
    best = torch.linalg.solve(matrix, torch.ones(n, dtype=D))
    return loss, best, TensorDict({"x": torch.randn(n, dtype=D, generator=source)})


def descend(optimizer, loss, params, steps, **more):
    """Params at each step, and the last state."""
    state, path = optimizer.init(params), [params]
    for _ in range(steps):
        value, grads = paramtree.value_and_grad(loss)(params)
        extra = {"value_fn": loss} | ({"value": value, "grad": grads} if more.get("known") else {})
        updates, state = optimizer.update(grads, state, params, **extra)
        params = apply_updates(params, updates)
        path.append(params)
    return path, state


def torchs(loss, params, steps, **options):
    leaves, structure = tree.flatten(params)
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    none = {"tolerance_grad": 0, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS(leaves, max_iter=1, **none, **options)

    def closure():
        optimizer.zero_grad()
        value = loss(tree.unflatten(structure, leaves))
        value.backward()
        return value

    path = [params]
    for _ in range(steps):
        optimizer.step(closure)
        path.append(tree.unflatten(structure, [leaf.detach().clone() for leaf in leaves]))
    return path


def assert_paths_close(got, wanted, rtol=1e-10, atol=1e-10):
    for a, b in zip(got, wanted, strict=True):
        assert_close(tree.leaves(a), tree.leaves(b), rtol=rtol, atol=atol)
