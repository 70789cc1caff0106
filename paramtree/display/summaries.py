"""Trees to look at: what a model holds, and what it costs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .. import rng, tree
from ..model import Model, require_model
from .wording import memory

Path = tuple[str, ...]


class Row(NamedTuple):
    """A line of a summary: a parameter, or a layer with all that it holds.

    Attributes:
        path: names that lead to it.
        shape: of the parameter; None for a layer.
        dtype: of the parameter; None for a layer.
        size: number of elements, of a layer those of all its own parameters.
        flops: floating-point operations of the layer's own; 0 for a parameter.
    """

    path: Path
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    size: int
    flops: int


class Summary(NamedTuple):
    """Rows of a summary and their sums; its text is the table.

    Attributes:
        rows: a row for each layer, with those of its own parameters after it, by path.
        size: number of elements of all parameters.
        bytes: their memory.
        flops: floating-point operations of one ``apply``.
    """

    rows: list[Row]
    size: int
    bytes: int
    flops: int

    def __str__(self) -> str:
        lines = [("path", "shape", "dtype", "size", "FLOPs")]
        for row in self.rows:
            name = ".".join(row.path) or "(the model)"
            if row.shape is None:
                lines.append((name, "", "", f"{row.size:,}", f"{row.flops:,}"))
            else:
                dtype = str(row.dtype).removeprefix("torch.")
                lines.append(("  " + name, str(list(row.shape)), dtype, f"{row.size:,}", ""))
        lines.append(("total", "", memory(self.bytes), f"{self.size:,}", f"{self.flops:,}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
        rule = "─" * (sum(widths) + 2 * len(widths) - 2)
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])

    __repr__ = __str__


def summary(model: Model, params: Any, batch: Any, buffers: Any = None) -> Summary:
    """Table of a model: path, shape, dtype and size of each parameter, and FLOPs by layer.

    >>> import torch
    >>> from paramtree import nn, rng
    >>> net = nn.mlp(4, 32, 2)
    >>> print(summary(net, net.init(rng.key(0))[0], torch.ones(8, 4)))
    path               shape    dtype      size  FLOPs
    ──────────────────────────────────────────────────
    linear_0                                160  2,048
      linear_0.bias    [32]     float32      32
      linear_0.weight  [32, 4]  float32     128
    linear_1                                 66  1,024
      linear_1.bias    [2]      float32       2
      linear_1.weight  [2, 32]  float32      64
    ──────────────────────────────────────────────────
    total                       904 bytes   226  3,072

    One ``apply`` runs under torch's own counter, which knows matrix products, convolutions and
    attention, an addition and a multiplication each being one. A layer's are those in which its
    parameters or buffers, or what was made of them alone, take part. An operation on activations
    alone, such as the products inside an attention, is counted for the smallest part that holds
    both the layers before and after it.

    Args:
        model: a layer or a model.
        params: its parameters.
        batch: what ``apply`` takes: a tensor, a tuple of them, or a TensorDict.
        buffers: its buffers; default: as ``model.init`` makes them.

    Returns:
        The summary: text when printed, ``rows`` to compute with.

    Raises:
        TypeError: the model isn't a pair of functions, or params is no tree.
    """
    require_model("summary", "model", model)
    tree.require_tree("summary", "params", params)
    if buffers is None:
        buffers = model.init(rng.key(0))[1]
    owners: dict[int, Path | None] = {}
    owned = _copied(params, owners, True), _copied(buffers, owners, True)
    given = *owned, _copied(batch, owners, False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, _Attribution(counter, owners) as parts:
        model.apply(*given)
    flops = parts.by_layer()
    leaves = dict(zip(tree.paths(params), tree.leaves(params), strict=True))
    layers: dict[Path, list[Row]] = {path: [] for path in flops}
    for path, x in leaves.items():
        row = Row(path, tuple(x.shape), x.dtype, x.numel(), 0)
        layers.setdefault(path[:-1], []).append(row)
    rows = []
    for path in sorted(layers):
        own = layers[path]
        rows.append(Row(path, None, None, sum(row.size for row in own), flops.get(path, 0)))
        rows += own
    size = sum(x.numel() for x in leaves.values())
    memory = sum(x.numel() * x.element_size() for x in leaves.values())
    return Summary(rows, size, memory, counter.get_total_flops())


def _copied(nest: Any, owners: dict[int, Path | None], own: bool) -> Any:
    """Copy of a nest, each tensor with its own storage, which belongs to its layer or to none."""
    leaves, structure = tree.flatten(nest)
    copies = [x.detach().clone() for x in leaves]
    for path, x in zip(structure.paths(), copies, strict=True):
        owners[_storage(x)] = path[:-1] if own else None
    return tree.unflatten(structure, copies)


def _storage(x: Tensor) -> int:
    return StorageWeakRef(x.untyped_storage()).cdata


class _Attribution(TorchDispatchMode):
    """Says for each operation which layer it belongs to, by the storages that it reads.

    A storage belongs to a layer, or to the data (None), or is not known, as that of a constant.
    """

    def __init__(self, counter: FlopCounterMode, owners: dict[int, Path | None]) -> None:
        super().__init__()
        self.counter, self.owners = counter, owners
        self.kept: list[Tensor] = []  # so that no storage is freed and its number used again
        self.steps: list[tuple[Path | None, int]] = []  # a layer that was used, and its FLOPs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.counter.get_total_flops()
        out = func(*args, **kwargs)
        flops = self.counter.get_total_flops() - before
        read = {_storage(x): x for x in tree.leaves((args, kwargs))}
        found = [self.owners[number] for number in read if number in self.owners]
        layers = [path for path in found if path is not None]
        layer = _ancestor(layers) if layers else None
        if layer is not None or flops:
            self.steps.append((layer, flops))
        for x in tree.leaves(out):
            if _storage(x) not in read and found:
                self.owners[_storage(x)] = None if None in found else layer
                self.kept.append(x)
        return out

    def by_layer(self) -> dict[Path, int]:
        """FLOPs of each layer that has any."""
        sums: dict[Path, int] = {}
        before: list[Path] = []  # the last layer that was used, if there was one
        waiting = 0  # FLOPs of operations on activations since then
        for layer, flops in self.steps:
            if layer is None:
                waiting += flops
                continue
            if waiting:
                around = _ancestor([*before, layer])
                sums[around] = sums.get(around, 0) + waiting
            before, waiting = [layer], 0
            if flops:
                sums[layer] = sums.get(layer, 0) + flops
        if waiting:
            last = before[0] if before else ()
            sums[last] = sums.get(last, 0) + waiting
        return sums


def _ancestor(paths: Sequence[Path]) -> Path:
    """The longest beginning that all paths have."""
    first, *rest = paths
    same = len(first)
    for path in rest:
        same = min(same, len(path))
        while first[:same] != path[:same]:
            same -= 1
    return first[:same]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Text to the left, numbers to the right."""
    left = [cell.ljust(width) for cell, width in zip(line[:3], widths[:3], strict=True)]
    return left + [cell.rjust(width) for cell, width in zip(line[3:], widths[3:], strict=True)]
