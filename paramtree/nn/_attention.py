"""What the attention layers have in common: projections, rotation, weights, output."""

from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from .. import rng, tree
from ..model import Model, located
from . import _check, initializers
from ._parts import EMPTY, known
from .dot_product import attend, weigh
from .initializers import Initializer, make_params
from .linear import linear
from .noise import dropout as dropout_layer
from .positions import check_base, rotary


class Heads(NamedTuple):
    """What attention layers have in common: projections, rotation, weights, output."""

    layer: str
    made: str
    n_heads: int
    n_groups: int
    size: int  # of a head
    dims: tuple[int, int, int]  # of query, key and value
    shapes: dict[str, tuple[int, ...]]
    makers: dict[str, Initializer]
    out_proj: Model
    dropout: Model | None
    thins: bool  # by it
    rotary_base: float | Tensor | None
    dtype: torch.dtype

    def init(self, key: Tensor) -> tuple[TensorDict, TensorDict]:
        """Params and buffers."""
        own = make_params(self.layer, key, self.shapes, self.makers, self.dtype)
        out_proj, _ = self.out_proj.init(rng.fold_in(key, "out_proj"))
        buffers = {}
        if self.dropout is not None:
            buffers = {"dropout": self.dropout.init(rng.fold_in(key, "dropout"))[1]}
        return tree.new({**tree.entries(own), "out_proj": out_proj}), tree.new(buffers)

    def read(self, params: Any) -> tuple[list[Tensor], Any]:
        """Params of the projections, and those of the output."""
        entries = _check.level(self.layer, "params", params, [*self.shapes, "out_proj"])
        own = tree.new({name: entries[name] for name in self.shapes})
        return _check.parameters(self.layer, self.made, own, self.shapes), entries["out_proj"]

    def check(self, x: Any, size: int, weight: Tensor, argument: str) -> None:
        """Refuses what is not a float [*batch, T, size]."""
        name = next(iter(self.shapes))
        _check.floats(self.layer, self.made, x, size, weight, name, argument)
        if x.dim() < 2:
            got = tuple(x.shape)
            raise ValueError(
                f"{self.layer}: {argument} has shape {got}, expected [*batch, T, {size}]"
            )

    def project(
        self, weights: list[Tensor], query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [*batch, H, T, d], keys and values [*batch, G, S, d]."""
        rows = [self.n_heads * self.size, *[self.n_groups * self.size] * 2]
        joint = "in_proj_weight" in self.shapes
        bias = weights[-1] if "in_proj_bias" in self.shapes else None
        if joint and query is key and key is value:
            made = functional.linear(query, weights[0], bias).split(rows, -1)
        else:
            parts = weights[0].split(rows) if joint else weights[:3]
            shifts = (None,) * 3 if bias is None else bias.split(rows)
            triples = zip((query, key, value), parts, shifts, strict=True)
            made = [functional.linear(*triple) for triple in triples]
        q, k, v = (x.unflatten(-1, (-1, self.size)).transpose(-2, -3) for x in made)
        return q, k, v

    def rotate(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Queries or keys after the rotary embedding."""
        return x if self.rotary_base is None else rotary(x, positions, self.rotary_base)

    def attend(
        self,
        buffers: TensorDict,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor | None,
        bias: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None, TensorDict]:
        """What each head gives, its weights where they are there, and the buffers."""
        names = {} if self.dropout is None else {"dropout": None}
        old = known(self.layer, "buffers", buffers, names).get("dropout", EMPTY)
        key, value = self._shared(key), self._shared(value)
        if not (self.thins or need_weights):
            return attend(query, key, value, allowed, bias), None, buffers
        weights = weigh(query, key, allowed, bias)
        if self.dropout is not None and self.thins:
            try:
                weights, after = self.dropout.apply(EMPTY, old, weights)
            except (TypeError, ValueError) as error:
                located(error, "dropout")
                raise
            buffers = buffers if after is old else tree.rebuild(buffers, {"dropout": after})
        return weights.to(value.dtype) @ value, weights, buffers

    def merge(self, out_proj: Any, out: Tensor) -> Tensor:
        """The layer's output [*batch, T, E] from what its heads give."""
        try:
            return self.out_proj.apply(out_proj, EMPTY, out.transpose(-2, -3).flatten(-2))[0]
        except (TypeError, ValueError) as error:
            located(error, "out_proj")
            raise

    def _shared(self, x: Tensor) -> Tensor:
        """Keys or values with a copy for each head of their group."""
        times = self.n_heads // self.n_groups
        return x if times == 1 else x.repeat_interleave(times, -3)


def make_heads(
    layer: str,
    made: str,
    sizes: tuple[int, int, int, int, int | None, int | None],
    bias: bool,
    rotary_base: float | Tensor | None,
    dropout: float | Tensor,
    train: bool,
    inits: tuple[Initializer | None, Initializer | None],
    dtype: torch.dtype,
) -> Heads:
    n_embed, n_heads, kdim, vdim, n_groups, size = sizes
    _check.sizes(layer, n_embed=n_embed, n_heads=n_heads, kdim=kdim, vdim=vdim)
    n_groups = n_heads if n_groups is None else n_groups
    _check.sizes(layer, n_kv_heads=n_groups)
    if n_heads % n_groups:
        raise ValueError(
            f"{layer}: n_heads is {n_heads}, expected a multiple of n_kv_heads, {n_groups}"
        )
    if size is None and n_embed % n_heads:
        raise ValueError(
            f"{layer}: n_embed is {n_embed}, expected a multiple of n_heads, {n_heads}, or a "
            "head_dim"
        )
    size = n_embed // n_heads if size is None else size
    _check.sizes(layer, head_dim=size)
    if rotary_base is not None:
        check_base(layer, "rotary_base", rotary_base)
        if size % 2:
            raise ValueError(
                f"{layer}: head_dim is {size}, expected an even number for a rotary embedding"
            )
    _check.real(layer, "dropout", dropout, 0.0, 1.0)
    weight_init, bias_init = inits
    _check.functions(layer, weight_init=weight_init, bias_init=bias_init)
    weight_init_in = weight_init or initializers.variance_scaling(1.0, "fan_avg", "uniform")
    bias_init = bias_init or initializers.zeros
    rows = (n_heads * size, n_groups * size, n_groups * size)
    dims = (n_embed, kdim, vdim)
    if n_embed == kdim == vdim and n_groups == n_heads:
        shapes: dict[str, tuple[int, ...]] = {"in_proj_weight": (sum(rows), n_embed)}
    else:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        shapes = dict(zip(names, zip(rows, dims, strict=True), strict=True))
    makers = dict.fromkeys(shapes, weight_init_in)
    if bias:
        shapes["in_proj_bias"], makers["in_proj_bias"] = (sum(rows),), bias_init
    out_proj = linear(rows[0], n_embed, bias, weight_init, bias_init, dtype=dtype)
    drops = isinstance(dropout, Tensor) or dropout != 0
    thin = dropout_layer(dropout, train=train) if drops else None
    return Heads(
        layer,
        made,
        n_heads,
        n_groups,
        size,
        dims,
        shapes,
        makers,
        out_proj,
        thin,
        drops and train,
        rotary_base,
        dtype,
    )
