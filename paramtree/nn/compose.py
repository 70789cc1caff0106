"""Layers made of layers: run in order, their parameters nested by name."""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import tree
from ..model import Model, located
from . import _check
from ._parts import EMPTY, initial, known
from .initializers import Initializer
from .linear import linear

Layer = Model | Callable[[Any], Any]


def sequential(*layers: Layer, **named: Layer) -> Model:
    """Layers in order, each on the output of the one before.

    Positional layers are named by their place, "0", "1", ..., as in torch.nn.Sequential, and come
    before the named ones. The key of each is fold_in(key, name). A layer without parameters has no
    entry in the params, and one without buffers none in the buffers.

    Args:
        layers: models, or plain functions of what the layer before gives, such as torch.relu.
        named: likewise.

    Returns:
        Model from the first layer's input to the last one's output.

    Raises:
        TypeError: a layer is neither a Model nor a function.
        ValueError: there are none, or two have one name; or, when applied, params or buffers hold
            an unknown name. What a layer raises ends in its path, `in linear_0`.
    """
    places = {str(i): layer for i, layer in enumerate(layers)}
    twice = [name for name in named if name in places]
    if twice:
        raise ValueError(
            f"sequential: {twice[0]!r} names two layers, one by its place and one by its name"
        )
    entries = {**places, **named}
    if not entries:
        raise ValueError("sequential: no layers given, expected at least one")
    models: dict[str, Model] = {}
    for name, layer in entries.items():
        if isinstance(layer, Model):
            models[name] = layer
        elif isinstance(layer, torch.nn.Module) and any(True for _ in layer.parameters()):
            got = type(layer).__name__
            raise TypeError(
                f"sequential: layer {name!r} is a {got} with parameters of its own, expected a "
                "Model or a function"
            )
        elif not callable(layer):
            got = type(layer).__name__
            raise TypeError(
                f"sequential: layer {name!r} is a {got}, expected a Model or a function"
            )

    steps = [(name, layer, models.get(name)) for name, layer in entries.items()]

    def apply(params: TensorDict, buffers: TensorDict, x: Any) -> tuple[Any, TensorDict]:
        own = known("sequential", "params", params, models)
        old = known("sequential", "buffers", buffers, models)
        new = {}
        for name, layer, model in steps:
            given = after = old.get(name, EMPTY)
            try:
                if model is None:
                    x = layer(x)  # pyright: ignore[reportCallIssue]
                else:
                    x, after = model.apply(own.get(name, EMPTY), given, x)
            except (RuntimeError, TypeError, ValueError) as error:
                if model is not None and name not in own and type(error) is ValueError:
                    raise ValueError(f"sequential: params lack {name}, or {error}") from error
                located(error, name)
                raise
            if after is not given and not (given is EMPTY and after.is_empty()):
                new[name] = tree.lock(after)
        return x, tree.new({**old, **new}, buffers.batch_size) if new else buffers

    return Model(initial("sequential", models), apply)


def mlp(
    *sizes: int,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    final_activation: Callable[[Tensor], Tensor] | None = None,
    bias: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Affine maps with an activation between them: `mlp(4, 64, 64, 2)`.

    Params: linear_0, linear_1, ..., each as in `linear`.

    Args:
        sizes: inputs, the units of each hidden layer, outputs; at least two.
        activation: after each map but the last.
        final_activation: after the last one; default: none.
        bias: as in `linear`, for all maps.
        weight_init: likewise.
        bias_init: likewise.
        dtype: of the params.

    Returns:
        Model from x float [*batch, sizes[0]] to [*batch, sizes[-1]].

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there are fewer than two sizes, or one is below 1.
    """
    if len(sizes) < 2:
        raise ValueError(f"mlp: sizes are {sizes}, expected at least two, such as mlp(4, 64, 2)")
    _check.sizes("mlp", **{f"sizes[{i}]": size for i, size in enumerate(sizes)})
    _check.functions("mlp", activation=activation, final_activation=final_activation)
    layers: dict[str, Layer] = {}
    for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        last = i == len(sizes) - 2
        layers[f"linear_{i}"] = linear(n_in, n_out, bias, weight_init, bias_init, dtype=dtype)
        after = final_activation if last else activation
        if after is not None:
            layers[f"activation_{i}"] = after
    return sequential(**layers)
