"""Layers made of named parts that call one another in an order of their own."""

from collections.abc import Callable, Mapping
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from .. import rng, tree
from ..model import Model, located, require_key

Call = Callable[[str, Any], Any]
Init = Callable[[Tensor], tuple[TensorDict, TensorDict]]

EMPTY = tree.new({})


def assembled(layer: str, parts: Mapping[str, Model], forward: Callable[[Call, Any], Any]) -> Model:
    """Model whose params and buffers are those of its parts, by name, without the empty ones.

    Args:
        layer: its name.
        parts: the models; the key of each is fold_in(key, name).
        forward: `(call, inputs)` to the output, where `call(name, x)` is a part's output.

    Returns:
        The model.
    """

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Any, TensorDict]:
        own = known(layer, "params", params, parts)
        now = known(layer, "buffers", buffers, parts)
        changed = False

        def call(name: str, x: Any) -> Any:
            nonlocal changed
            given = now.get(name, EMPTY)
            try:
                out, after = parts[name].apply(own.get(name, EMPTY), given, x)
            except (RuntimeError, TypeError, ValueError) as error:
                located(error, name)
                raise
            if after is not given:
                now[name], changed = tree.lock(after), True
            return out

        out = forward(call, inputs)
        return out, tree.new(now, buffers.batch_size) if changed else buffers

    return Model(initial(layer, parts), apply)


def initial(layer: str, parts: Mapping[str, Model]) -> Init:
    """The `init` of a layer made of parts, whose empty params and buffers are left out.

    Args:
        layer: its name.
        parts: the models.

    Returns:
        The function.
    """

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        require_key(layer, key)
        made = {name: part.init(rng.fold_in(key, name)) for name, part in parts.items()}
        params, buffers = (
            {name: tree.lock(both[i]) for name, both in made.items() if not both[i].is_empty()}
            for i in (0, 1)
        )
        return tree.new(params), tree.new(buffers)

    return init


def known(layer: str, argument: str, given: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """One level of params or buffers, where a name may be missing, but no other be there."""
    if not isinstance(given, TensorDictBase):
        tree.require_tree(layer, argument, given)
    entries = tree.entries(given)
    if entries and not entries.keys() <= names.keys():
        extra = ", ".join([name for name in entries if name not in names])
        wanted = ", ".join(names) or "no entry"
        lacks = ", ".join([name for name in names if name not in entries])
        missing = f", of which {lacks} are missing" if lacks else ""
        raise ValueError(f"{layer}: {argument} hold an unknown {extra}; expected {wanted}{missing}")
    return entries
