"""The contract: a model is a pair of pure functions, at every scale.

    init(key) -> (params, buffers)
    apply(params, buffers, batch) -> (out, buffers)

A layer takes a tensor or a tuple of tensors and gives a tensor or a tuple. A model takes a
TensorDict and gives a new one with the batch's entries and its own. There are two ways up:
``td_model`` makes a model of a layer, and ``compose`` runs named models in order and nests their
parameters by those names. Nothing is owned and nothing is
written: parameters come in from outside, non-leaf tensors of an outer graph included, and buffers
come back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from . import rng, tree

Key = str | tuple[str, ...]
Keys = Key | list[Key]


class Model(NamedTuple):
    """A pair of pure functions, ``init(key)`` and ``apply(params, buffers, batch)``.

    Calling the pair, ``model(params, buffers, batch)``, is ``apply(...)[0]`` for models that leave
    their buffers as they are.
    """

    init: Callable[[Tensor], tuple[TensorDict, TensorDict]]
    apply: Callable[[Any, Any, Any], tuple[Any, Any]]

    def __call__(self, params: Any, buffers: Any, batch: Any) -> Any:
        """Output alone, of a model that leaves its buffers as they are.

        Args:
            params: parameters, as ``init`` makes them.
            buffers: buffers, as ``init`` makes them.
            batch: a TensorDict, or a layer's tensors.

        Returns:
            ``apply(params, buffers, batch)[0]``.

        Raises:
            ValueError: the buffers that came back are not the ones given, and would be lost.
        """
        out, after = self.apply(params, buffers, batch)
        if after is not buffers:
            old, structure = tree.flatten(buffers)
            fresh, other = tree.flatten(after)
            tree.require_same("model", ("the buffers", structure), ("what came back", other))
            rows = zip(structure.paths(), old, fresh, strict=True)
            changed = [tree.show_path(path).strip("'") for path, a, b in rows if a is not b]
            if changed:
                raise ValueError(
                    f"model: this model updates its buffers ({', '.join(changed)}); use apply"
                )
        return out


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
        ValueError: when applied, a key is missing from the batch, or an output does not begin with
            the batch size.
    """
    _require_model("td_model", "layer", layer)
    reads, writes = _keys("in_keys", in_keys), _keys("out_keys", out_keys)

    def apply(
        params: TensorDict, buffers: TensorDict, batch: TensorDictBase
    ) -> tuple[TensorDict, TensorDict]:
        tree.require_tree("td_model", "batch", batch)
        inputs = [_get(batch, key) for key in reads]
        single = not isinstance(in_keys, list)
        out, buffers = layer.apply(params, buffers, inputs[0] if single else tuple(inputs))
        outputs = (out,) if not isinstance(out_keys, list) else out
        if not isinstance(outputs, tuple) or len(outputs) != len(writes):
            got = len(outputs) if isinstance(outputs, tuple) else "one tensor"
            raise ValueError(
                f"td_model: the layer gave {got}, expected {len(writes)} outputs (from out_keys)"
            )
        return _written(batch, dict(zip(writes, outputs, strict=True))), buffers

    return Model(layer.init, apply)


def _keys(argument: str, keys: Keys) -> list[tuple[str, ...]]:
    found = [
        tree.parse_path("td_model", key) for key in (keys if isinstance(keys, list) else [keys])
    ]
    if not found:
        raise ValueError(f"td_model: {argument} is empty, expected at least one key")
    return found


def _get(batch: TensorDictBase, key: tuple[str, ...]) -> Any:
    value: Any = batch
    for name in key:
        if not isinstance(value, TensorDictBase) or name not in value.keys():
            known = ", ".join(tree.show_path(path) for path in tree.paths(batch)) or "none"
            raise ValueError(
                f"td_model: the batch has no {tree.show_path(key)}; its keys are {known}"
            )
        value = value.get(name)
    return value


def _written(batch: TensorDictBase, outputs: dict[tuple[str, ...], Tensor]) -> TensorDict:
    """New locked tree with the batch's entries and the outputs, missing sub-trees made."""
    size = batch.batch_size
    top = {name: _locked(v) for name, v in tree.entries(batch).items()}
    for key, value in outputs.items():
        if not isinstance(value, Tensor | TensorDictBase):
            kind = type(value).__name__
            raise TypeError(
                f"td_model: the output for {tree.show_path(key)} is a {kind}, expected a tensor"
            )
        if value.shape[: len(size)] != size:
            shape = f"{tuple(value.shape)}, expected it to begin with {list(size)} (the batch size)"
            raise ValueError(f"td_model: the output for {tree.show_path(key)} has shape {shape}")
        if len(key) == 1:
            top[key[0]] = _locked(value)
        else:
            inner = top.get(key[0], tree.rebuild(batch, {}))
            if not isinstance(inner, TensorDictBase):
                text = f"{tree.show_path(key)}, but {key[0]!r} is a leaf of the batch"
                raise ValueError(f"td_model: out_keys has {text}")
            top[key[0]] = _written(inner, {key[1:]: value})
    return tree.rebuild(batch, top)


def compose(**models: Model) -> Model:
    """Model that runs named models in order, each on the output of those before it.

    Args:
        models: the models; ``compose(actor=..., critic=...)`` nests params and buffers as
            ``params["actor"]``.

    Returns:
        The model. Each part's key is ``fold_in(key, name)``, so a new part leaves its siblings'
        values alone.

    Raises:
        ValueError: there are none, or, when applied, params or buffers lack a part's name.
        TypeError: a part isn't a pair of functions.
    """
    if not models:
        raise ValueError(
            "compose: no models given, expected named ones, such as compose(actor=..., critic=...)"
        )
    for name, model in models.items():
        _require_model("compose", name, model)

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        parts = {name: model.init(rng.fold_in(key, name)) for name, model in models.items()}
        params = {name: tree.lock(part[0]) for name, part in parts.items()}
        return tree.new(params), tree.new(
            {name: tree.lock(part[1]) for name, part in parts.items()}
        )

    def apply(
        params: TensorDict, buffers: TensorDict, batch: TensorDictBase
    ) -> tuple[TensorDict, TensorDict]:
        for argument, value in (("params", params), ("buffers", buffers)):
            _require_parts(argument, value, models)
        after = {}
        out: Any = batch
        for name, model in models.items():
            out, after[name] = model.apply(params.get(name), buffers.get(name), out)
        if all([after[name] is buffers.get(name) for name in models]):
            return out, buffers
        kept = {name: tree.lock(part) for name, part in after.items()}
        return out, tree.new(kept, buffers.batch_size)

    return Model(init, apply)


def _require_model(fn: str, argument: str, value: Any) -> None:
    if not (isinstance(value, tuple) and len(value) == 2 and all(map(callable, value))):
        kind = type(value).__name__
        raise TypeError(f"{fn}: {argument} is a {kind}, expected a Model(init, apply)")


def _require_parts(argument: str, value: Any, models: dict[str, Model]) -> None:
    tree.require_tree("compose", argument, value)
    missing, extra = (
        [n for n in models if n not in value.keys()],
        [n for n in value.keys() if n not in models],
    )
    if missing or extra:
        lacks = f"{argument} lack {', '.join(missing)}" if missing else ""
        more = f"{argument} also hold {', '.join(extra)}" if extra else ""
        text = "; ".join([part for part in (lacks, more) if part])
        raise ValueError(f"compose: {text}; the models are {', '.join(models)}")


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


def _locked(value: Any) -> Any:
    subtree = tree.as_tree(value)
    return value if subtree is None else tree.lock(subtree)
