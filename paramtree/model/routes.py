"""Named models over one tree of parameters, and the ways through them."""

from collections import namedtuple
from collections.abc import Callable, Mapping
from keyword import iskeyword
from typing import Any

from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from .contract import Model, located, require_key, require_model


def compose(**models: Model) -> Model:
    """Model that runs named models in order, each on the output of those before it.

    Args:
        models: the models; ``compose(actor=..., critic=...)`` nests params and buffers as
            ``params["actor"]``. Layers are models too, and may be composed.

    Returns:
        The model. Each part's key is ``fold_in(key, name)``, so a new part leaves its siblings'
        values alone.

    Raises:
        ValueError: there are none, or, when applied, params or buffers lack a part's name or hold
            another; what a part raises ends in its path, ``in actor.linear_0``.
        TypeError: a part isn't a pair of functions.
    """
    if not models:
        raise ValueError(
            "compose: no models given, expected named ones, such as compose(actor=..., critic=...)"
        )
    for name, model in models.items():
        require_model("compose", name, model)
    return Model(_initial("compose", models), _route("compose", models, models, list(models)))


def methods(models: Mapping[str, Model], **routes: Any) -> Any:
    """Several models over one set of parameters: named parts, and the ways through them.

    >>> import torch
    >>> from paramtree import nn, rng
    >>> parts = {"encoder": nn.mlp(8, 16, 3), "decoder": nn.mlp(3, 16, 8)}
    >>> codec = methods(parts, encode="encoder", decode="decoder", both=["encoder", "decoder"])
    >>> params, buffers = codec.init(rng.key(0))
    >>> x = torch.ones(5, 8)
    >>> z = codec.encode(params, buffers, x)
    >>> torch.equal(codec.decode(params, buffers, z), codec.both(params, buffers, x))
    True

    Parts that two routes name are shared by them: ``act=["torso", "actor"]`` beside
    ``evaluate=["torso", "critic"]``.

    Args:
        models: the parts, layers or models; params and buffers nest by these names. What
            ``methods`` gave is a part too, and ``"agent.act"`` then names its method ``act``.
        routes: for each method the name of a part, a list of names to run in order, or a function
            ``fn(call, batch)`` in which ``call(name, batch)`` gives a part's output, as often as
            one likes.

    Returns:
        A NamedTuple: ``init``, and for each route a model of that name with the same ``init``.

    Raises:
        ValueError: there are no parts or no routes, a route names no part, or its name is ``init``,
            begins with an underscore or is a keyword of Python; when applied, as in ``compose``.
        TypeError: a part isn't a pair of functions, or a route is of another kind.
    """
    parts = _parts("methods", models)
    if not models or not routes:
        raise ValueError(
            f"methods: got {len(models)} models and {len(routes)} routes, expected some of both, "
            'such as methods({"encoder": ...}, encode="encoder")'
        )
    for name, route in routes.items():
        if name == "init" or name.startswith("_") or iskeyword(name):
            raise ValueError(f"methods: a route is named {name!r}, expected another name")
        steps = [route] if isinstance(route, str) else route
        if isinstance(steps, list) and steps and all([isinstance(step, str) for step in steps]):
            unknown = [step for step in steps if step not in parts]
            if unknown:
                raise ValueError(
                    f"methods: route {name} goes through {', '.join(unknown)}, expected some of "
                    f"{', '.join(parts)} (from models)"
                )
        elif not callable(route):
            raise TypeError(
                f"methods: route {name} is {route!r}, expected a name, a list of names or a "
                "function of (call, batch)"
            )
    init = _initial("methods", models)
    made = [Model(init, _route("methods", models, parts, route)) for route in routes.values()]
    return namedtuple("Methods", ["init", *routes])(init, *made)


def _initial(fn: str, models: Mapping[str, Model]) -> Callable[[Tensor], Any]:
    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        require_key(fn, key)
        parts = {name: model.init(rng.fold_in(key, name)) for name, model in models.items()}
        params = {name: tree.lock(part[0]) for name, part in parts.items()}
        return tree.new(params), tree.new(
            {name: tree.lock(part[1]) for name, part in parts.items()}
        )

    return init


def _route(
    fn: str, models: Mapping[str, Any], parts: Mapping[str, Model], route: Any
) -> Callable[..., Any]:
    """The ``apply`` of a way through parts of models: a name, a list of names, or a function."""
    names = [route] if isinstance(route, str) else route

    def apply(params: TensorDict, buffers: TensorDict, batch: Any) -> tuple[Any, TensorDict]:
        for argument, value in (("params", params), ("buffers", buffers)):
            if tree.values(value, models) is None:
                _require_parts(fn, argument, value, models)
        own, old = tree.entries(params), tree.entries(buffers)
        after = dict(old)

        def call(name: str, batch: Any) -> Any:
            if name not in parts:
                known = ", ".join(parts)
                raise ValueError(f"{fn}: a route calls {name!r}, expected one of {known}")
            place = name if name in models else name.rpartition(".")[0]
            try:
                out, after[place] = parts[name].apply(own[place], after[place], batch)
            except (RuntimeError, TypeError, ValueError) as error:
                located(error, place)
                raise
            return out

        out = batch
        if callable(names):
            out = names(call, batch)
        else:
            for name in names:
                out = call(name, out)
        if all([after[name] is old[name] for name in models]):
            return out, buffers
        kept = {name: tree.lock(part) for name, part in after.items()}
        return out, tree.new(kept, buffers.batch_size)

    return apply


def _parts(fn: str, models: Any) -> dict[str, Model]:
    """What a route may go through: models by their names, and methods by ``name.method``."""
    if not isinstance(models, Mapping):
        raise TypeError(f"{fn}: models is a {type(models).__name__}, expected {{name: model}}")
    found: dict[str, Model] = {}
    for name, model in models.items():
        fields = getattr(model, "_fields", ())
        if fields[:1] == ("init",) and not isinstance(model, Model):
            found |= {f"{name}.{route}": getattr(model, route) for route in fields[1:]}
        else:
            require_model(fn, str(name), model)
            found[name] = model
    return found


def _require_parts(fn: str, argument: str, value: Any, models: Mapping[str, Model]) -> None:
    """Refuse params or buffers that don't hold just the models' names."""
    tree.require_tree(fn, argument, value)
    missing, extra = (
        [n for n in models if n not in value.keys()],
        [n for n in value.keys() if n not in models],
    )
    if missing or extra:
        lacks = f"{argument} lack {', '.join(missing)}" if missing else ""
        more = f"{argument} also hold {', '.join(extra)}" if extra else ""
        text = "; ".join([part for part in (lacks, more) if part])
        raise ValueError(f"{fn}: {text}; the models are {', '.join(models)}")
