"""Models of TensorDicts, made of layers and of one another."""

from collections.abc import Mapping, Sequence
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from .. import tree
from .contract import Model, require_model

Key = str | tuple[str, ...]
Keys = Key | list[Key]


def td_model(layer: Model, in_keys: Keys, out_keys: Keys) -> Model:
    """Model of a layer: reads tensors from a TensorDict, writes the layer's outputs to a new one.

    Args:
        layer: a pair whose ``apply`` takes a tensor, or a tuple of them.
        in_keys: key that the layer reads, as text with dots or a tuple; a list of keys makes a
            tuple of tensors.
        out_keys: key that it writes, or a list of keys for a tuple of outputs.

    Returns:
        The model; params and buffers are the layer's own.

    Raises:
        TypeError: the layer isn't a pair of functions, or a key is neither text nor a tuple of
            names; when applied, the batch isn't a tree, or an output isn't a tensor.
        ValueError: out_keys names one key twice; when applied, a key is missing from the batch, or
            an output does not begin with the batch size.
    """
    require_model("td_model", "layer", layer)
    reads, writes = _keys("in_keys", in_keys), _keys("out_keys", out_keys)
    _require_once("td_model", writes)

    def apply(
        params: TensorDict, buffers: TensorDict, batch: TensorDictBase
    ) -> tuple[TensorDict, TensorDict]:
        tree.require_tree("td_model", "batch", batch)
        inputs = [_get("td_model", batch, key) for key in reads]
        single = not isinstance(in_keys, list)
        out, buffers = layer.apply(params, buffers, inputs[0] if single else tuple(inputs))
        outputs = (out,) if not isinstance(out_keys, list) else out
        if not isinstance(outputs, tuple) or len(outputs) != len(writes):
            got = len(outputs) if isinstance(outputs, tuple) else "one tensor"
            raise ValueError(
                f"td_model: the layer gave {got}, expected {len(writes)} outputs (from out_keys)"
            )
        return _written("td_model", batch, dict(zip(writes, outputs, strict=True))), buffers

    return Model(layer.init, apply)


def _keys(argument: str, keys: Keys) -> list[tuple[str, ...]]:
    found = [
        tree.parse_path("td_model", key) for key in (keys if isinstance(keys, list) else [keys])
    ]
    if not found:
        raise ValueError(f"td_model: {argument} is empty, expected at least one key")
    return found


def _get(fn: str, batch: TensorDictBase, key: tuple[str, ...]) -> Any:
    value: Any = batch
    for name in key:
        if not isinstance(value, TensorDictBase) or name not in value.keys():
            known = ", ".join(tree.show_path(path) for path in tree.paths(batch)) or "none"
            raise ValueError(f"{fn}: the batch has no {tree.show_path(key)}; its keys are {known}")
        value = value.get(name)
    return value


def _written(fn: str, batch: TensorDictBase, outputs: dict[tuple[str, ...], Tensor]) -> TensorDict:
    """New locked tree with the batch's entries and the outputs, missing sub-trees made."""
    size = batch.batch_size
    top = {name: _locked(v) for name, v in tree.entries(batch).items()}
    for key, value in outputs.items():
        if not isinstance(value, Tensor | TensorDictBase):
            kind = type(value).__name__
            raise TypeError(
                f"{fn}: the output for {tree.show_path(key)} is a {kind}, expected a tensor"
            )
        if value.shape[: len(size)] != size:
            shape = f"{tuple(value.shape)}, expected it to begin with {list(size)} (the batch size)"
            raise ValueError(f"{fn}: the output for {tree.show_path(key)} has shape {shape}")
        if len(key) == 1:
            top[key[0]] = _locked(value)
        else:
            inner = top.get(key[0], tree.rebuild(batch, {}))
            if not isinstance(inner, TensorDictBase):
                text = f"{tree.show_path(key)}, but {key[0]!r} is a leaf of the batch"
                source = "out_keys has" if fn == "td_model" else "inputs have"
                raise ValueError(f"{fn}: {source} {text}")
            top[key[0]] = _written(fn, inner, {key[1:]: value})
    return tree.rebuild(batch, top)


def parallel(model: Model, inputs: Sequence[str] | Mapping[str, str]) -> Model:
    """Model that runs one model on each of several named inputs, with the same parameters.

    >>> import torch
    >>> from paramtree import nn, rng
    >>> eyes = parallel(nn.mlp(8, 16, 3), {"left": "left_code", "right": "right_code"})
    >>> params, buffers = eyes.init(rng.key(0))
    >>> batch = TensorDict({"left": torch.ones(5, 8), "right": torch.zeros(5, 8)}, [5])
    >>> eyes(params, buffers, batch)["right_code"].shape
    torch.Size([5, 3])

    Args:
        model: a layer, for inputs that are tensors, or a model, for inputs that are trees.
        inputs: names of the inputs in the batch, each replaced by the model's output; or for each
            of them the name that the output is written to. The model runs in this order, and each
            run sees the buffers that the one before it left.

    Returns:
        The model, from a TensorDict to a TensorDict; params and buffers are the model's own.

    Raises:
        TypeError: the model isn't a pair of functions, or a name isn't text; when applied, the
            batch isn't a tree.
        ValueError: there are no inputs, or two outputs have one name; when applied, an input is
            missing, or an output does not begin with the batch size.
    """
    require_model("parallel", "model", model)
    names = dict(inputs) if isinstance(inputs, Mapping) else {name: name for name in inputs}
    if not names or len(names) < len(inputs):
        raise ValueError(f"parallel: inputs are {inputs!r}, expected one name at least, each once")
    paths = {
        tree.parse_path("parallel", name): tree.parse_path("parallel", out)
        for name, out in names.items()
    }
    _require_once("parallel", list(paths.values()))

    def apply(
        params: TensorDict, buffers: TensorDict, batch: TensorDictBase
    ) -> tuple[TensorDict, TensorDict]:
        tree.require_tree("parallel", "batch", batch)
        outputs = {}
        for name, out in paths.items():
            value = _get("parallel", batch, name)
            outputs[out], buffers = model.apply(params, buffers, value)
        return _written("parallel", batch, outputs), buffers

    return Model(model.init, apply)


def with_next(model: Model) -> Model:
    """Model that runs on ``td`` and ``td["next"]`` at once, and writes ``("next", key)`` too.

    Args:
        model: a model that takes any leading batch axes.

    Returns:
        The model. It sees the keys that ``td`` and ``td["next"]`` both have, stacked along a new
        leading axis.

    Raises:
        ValueError: when applied, the batch has no ``next``, or shares no key with it.
    """

    def apply(
        params: TensorDict, buffers: TensorDict, batch: TensorDictBase
    ) -> tuple[TensorDict, TensorDict]:
        tree.require_tree("with_next", "batch", batch)
        now = tree.entries(batch)
        after = now.pop("next", None)
        if not isinstance(after, TensorDictBase):
            raise ValueError(
                f"with_next: the batch has no 'next'; its keys are {', '.join(now) or 'none'}"
            )
        both = [name for name in now if name in after.keys()]
        if not both:
            keys = f"{', '.join(now) or 'none'}, of its 'next' {', '.join(after.keys()) or 'none'}"
            raise ValueError(
                f"with_next: the batch and its 'next' share no key; those of the batch are {keys}"
            )
        sides = (now, tree.entries(after))
        now, following = ({name: _locked(v) for name, v in side.items()} for side in sides)
        left, right = (
            tree.rebuild(batch, {name: side[name] for name in both}) for side in (now, following)
        )
        _require_alike(left, right)
        seen = tree.stack([left, right])
        out, buffers = model.apply(params, buffers, seen)
        known = tree.entries(seen)  # what a model left as it was stays the batch's own tensor
        written = {n: _locked(v) for n, v in tree.entries(out).items() if v is not known.get(n)}
        rows = tree.unstack(tree.rebuild(out, written))
        following |= tree.entries(rows[1])
        top = {**now, **tree.entries(rows[0])}
        top["next"] = tree.rebuild(after, following)
        return tree.rebuild(batch, top), buffers

    return Model(model.init, apply)


def _require_alike(now: TensorDict, following: TensorDict) -> None:
    """Refuse a batch whose shared keys hold something else in its next."""
    leaves, structure = tree.flatten(now)
    others, other = tree.flatten(following)
    tree.require_same("with_next", ("the batch", structure), ("its 'next'", other))
    for path, a, b in zip(structure.paths(), leaves, others, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            wanted = f"{a.dtype} of shape {tuple(a.shape)} (from {tree.show_path(path)})"
            raise (ValueError if a.dtype == b.dtype else TypeError)(
                f"with_next: {tree.show_path(('next', *path))} is {b.dtype} of shape "
                f"{tuple(b.shape)}, expected {wanted}"
            )


def _require_once(fn: str, keys: Sequence[tuple[str, ...]]) -> None:
    """Refuse keys that are written twice."""
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{fn}: {tree.show_path(key)} is written by two outputs, expected one")


def _locked(value: Any) -> Any:
    subtree = tree.as_tree(value)
    return value if subtree is None else tree.lock(subtree)
