"""Compiled code beside eager code: how often it was compiled, and that it's the same.

A step is a function of trees and tensors alone. ``Compiled`` runs one as a single graph, and fails
where torch would break it in two; ``graphs`` says how often it has been compiled so far.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDictBase
from torch._dynamo.utils import counters

from paramtree import tree


class Compiled:
    """A function as one graph, ``fullgraph=True``, in an empty cache.

    Args:
        fn: pure function of trees and tensors.
        backend: "aot_eager" runs what was captured, functional and with its derivatives;
            "eager" runs it as it is, and is enough for counting.
        options: of ``torch.compile``.
    """

    def __init__(self, fn: Callable[..., Any], backend: str = "aot_eager", **options: Any) -> None:
        torch.compiler.reset()
        counters.clear()
        self.fn = fn
        self.run = torch.compile(fn, fullgraph=True, backend=backend, **options)

    @property
    def graphs(self) -> int:
        # not the calls of a backend, which gets a graph with a 0-d float64 argument twice
        return counters["stats"]["unique_graphs"]

    def __call__(self, *args: Any) -> Any:
        """What the compiled function gives; it left its inputs as they were, as the eager does."""
        with untouched(*args):
            return self.run(*args)

    def same(self, *args: Any, rtol: float = 1e-10, atol: float = 1e-12) -> Any:
        """As a call, and equal to the eager function.

        That one goes first: tensordict keeps a list of the types it has met, but in compiled code,
        which is compiled again when the list has grown.
        """
        wanted = self.fn(*args)
        out = self(*args)
        assert_same(out, wanted, rtol=rtol, atol=atol)
        return out

    def counts(self, calls: Iterable[tuple[Any, ...]]) -> list[int]:
        """``graphs`` after each of the calls, all of which equal the eager function."""
        found = []
        for args in calls:
            self.same(*args)
            found.append(self.graphs)
        return found


def assert_same(ours: Any, wanted: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Names, batch sizes, dtypes and numbers are the same, and every tree is locked."""
    (a, structure), (b, other) = tree.flatten(ours), tree.flatten(wanted)
    assert structure == other and described(ours) == described(wanted)
    for path, x, y in zip(structure.paths(), a, b, strict=True):
        options = {"rtol": rtol, "atol": atol} if x.is_floating_point() else {}
        torch.testing.assert_close(x, y, msg=lambda text, path=path: f"{path}: {text}", **options)


def described(nest: Any) -> Any:
    """Batch sizes of a nest's trees, all of which are locked."""
    if isinstance(nest, TensorDictBase):
        assert nest.is_locked
        names = sorted(nest.keys())
        return nest.batch_size, {name: described(nest.get(name)) for name in names}
    if isinstance(nest, (tuple, list)):
        return [described(part) for part in nest]
    return None


@contextmanager
def untouched(*args: Any) -> Iterator[None]:
    """Whatever is done, the arguments keep their tensors and their values."""
    leaves = tree.leaves(args)
    values = [x.clone() for x in leaves]
    state = torch.random.get_rng_state()
    yield
    after = tree.leaves(args)
    assert all(x is y for x, y in zip(leaves, after, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(leaves, values, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def numbers(**values: float) -> dict[str, torch.Tensor]:
    """Hyper-parameters as 0-d tensors of torch's default dtype."""
    return {name: torch.tensor(value) for name, value in values.items()}
