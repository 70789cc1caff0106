"""Any ``torch.nn.Module`` as a pair of pure functions over named trees, and back."""

from collections.abc import Callable
from typing import Any

from tensordict import TensorDict
from torch import Tensor, nn

from .. import rng, tree
from ..model import Model, require_key
from . import calls, leaves
from .initial import Initial
from .leaves import show
from .reading import Reader
from .snapshot import Snapshot


def from_module(
    module: nn.Module,
    train: bool | None = None,
    key: Tensor | None = None,
    reset: Callable[[nn.Module], Any] | None = None,
) -> tuple[Model, TensorDict, TensorDict]:
    """Model of a module, with the values that its parameters and buffers have now.

    >>> import torch
    >>> from paramtree import from_module
    >>> norm = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    >>> model, params, buffers = from_module(norm, train=True)
    >>> out, after = model.apply(params, buffers, torch.ones(5, 3))
    >>> int(buffers["1", "num_batches_tracked"]), int(after["1", "num_batches_tracked"])
    (0, 1)

    Params, Buffers: the module's, nested by its sub-modules' names; what is tied is one leaf, under
    the first of its names (``tied`` lists the others). Non-persistent buffers are buffers too.

    ``apply(params, buffers, batch)`` gives what ``module(batch)`` does. A tuple holds positional
    arguments, a dict keyword arguments, and a tuple that ends in a dict both; anything else is the
    one argument, TensorDicts included. Trees that come out are locked. Every call runs a copy of
    the module, as it was when it was converted: hooks, parametrizations and a ``forward`` that was
    replaced are in it, and attributes that ``forward`` sets are gone afterwards. State that has to
    last is a buffer. Nothing is written to what is given, to the module or to the batch.

    Random numbers come from a key or not at all: dropout, noise, samples of distributions. With
    one, ``buffers["key"]`` is it; the same buffers give the same numbers, and ``apply`` returns the
    next key. Draws by rejection (gamma, poisson), from a generator, and inside of
    torch.utils.checkpoint are refused. What numpy or Python's ``random`` draw is not seen.

    ``init(key)`` draws anew what ``reset_parameters`` of the sub-modules draw, those of a
    sub-module before its own; other buffers keep their values. A parameter that none of them writes
    is refused, by name: ``reset`` can, or stack trees of several modules.

    ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM`` run step by step where torch's fused functions have no
    rule, inside vmap, or would draw; so does attention, whose second derivative is right too. A
    full backward hook has no rule for torch.func. Batch norm with ``momentum=None`` reads its count
    on the host, so in training it neither maps nor compiles; ``nn.batch_norm`` does both. Compiled
    code that maps a gradient, and maps nothing beside what it is taken in, doesn't know that it
    maps: torch then refuses those functions, and running statistics that are shared.

    Args:
        module: the module.
        train: whether it trains, for all sub-modules as ``module.train(train)`` would say; default:
            as each is.
        key: int64 [2], for what it draws.
        reset: function that initializes a module in place, such as ``lambda m: m.apply(fn)``, after
            all ``reset_parameters``.

    Returns:
        ``(model, params, buffers)``.

    Raises:
        TypeError: it's not a module, or a compiled, scripted or parallel one.
        ValueError: a parameter has no shape yet, tensors share a part of their memory, or the
            module has a buffer named "key" and needs the name; when applied, names or shapes
            differ, or the module draws without a key, writes to a parameter, or changes which
            buffers there are.
    """
    shot = Snapshot("from_module", module)
    if train is not None:
        parts = shot.make(shot.params.tensors, shot.buffers.tensors)
        parts[0].train(train)
        shot = Snapshot("from_module", parts[0])
    if key is not None:
        require_key("from_module", key)
        if any([path[0] == "key" for path in shot.buffers.paths]):
            raise ValueError(
                "from_module: the module has buffers named 'key', where the key of what it draws "
                "would be; rename them, or convert the module that holds this one"
            )
    values, states = ([_copy(x) for x in own.tensors] for own in (shot.params, shot.buffers))
    params, rest = shot.params.nested(values), shot.buffers.nested(states)
    buffers = rest if key is None else tree.new({**tree.entries(rest), "key": key})
    start = Initial(shot, values, states, reset)
    weights = Reader("from_module", "params", shot.name, shot.params, params)
    memory = Reader("from_module", "buffers", shot.name, shot.buffers, buffers, shot.free)
    at = None if key is None else tree.paths(buffers).index(("key",))
    shot = shot.released()

    def together(states: list[Tensor], key: Tensor | None) -> TensorDict:
        if at is None:
            return tree.unflatten(memory.structure, states)
        assert key is not None
        return tree.unflatten(memory.structure, [*states[:at], key, *states[at:]])

    def init(key: Tensor) -> tuple[TensorDict, TensorDict]:
        require_key("from_module", key)
        fresh, states = start.draw(key)
        own = None if at is None else rng.fold_in(key, 3)
        return shot.params.nested(fresh), together(states, own)

    def apply(params: TensorDict, buffers: TensorDict, batch: Any) -> tuple[Any, TensorDict]:
        values, states = weights.read(params), memory.read(buffers)
        key = None if at is None else states.pop(at)
        out, after, drawn = calls.run(shot, values, states, key, batch)
        if drawn is key and all([x is y for x, y in zip(after, states, strict=True)]):
            return out, buffers
        return out, together(after, drawn)

    return Model(init, apply), params, buffers


def tied(module: nn.Module) -> dict[str, list[str]]:
    """Names that lead to one tensor: the leaf that ``from_module`` makes of it, and the others.

    >>> import torch
    >>> from paramtree import nn_module
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    >>> net[1].weight = net[0].weight
    >>> nn_module.tied(net)
    {'0.weight': ['1.weight']}

    Parameters and buffers count, and so do two views of the same memory.

    Args:
        module: the module.

    Returns:
        For each leaf with more than one name, the names that it isn't under.

    Raises:
        TypeError: as ``from_module``.
        ValueError: a parameter has no shape yet, or tensors share a part of their memory.
    """
    found: dict[str, list[str]] = {}
    for own in leaves.find("tied", module):
        for path, others in zip(own.paths, own.aliases, strict=True):
            if others:
                found[show(path)] = [show(other) for other in others]
    return found


def to_module(
    module: nn.Module, params: TensorDict, buffers: TensorDict | None = None
) -> nn.Module:
    """New module with the values of trees: the way back from ``from_module``.

    The module that is given stays as it is, and says what the new one is like: its modes, hooks,
    parametrizations and ties, and which parameters require grad. The tensors are copies; whatever
    is neither a tensor, a sub-module nor a list, dictionary or set of such is shared by the two.

    Args:
        module: a module of the same structure.
        params: tree with the names of its parameters.
        buffers: tree with the names of its buffers; a "key" in it is left out; default: the
            module's own.

    Returns:
        The module, of the same class.

    Raises:
        TypeError: as ``from_module``, or an argument is not a tree.
        ValueError: as ``from_module``, or names or shapes differ.
    """
    shot = Snapshot("to_module", module)
    own = [_copy(x) for x in shot.params.tensors], [_copy(x) for x in shot.buffers.tensors]
    reader = Reader("to_module", "params", shot.name, shot.params, shot.params.nested(own[0]))
    values, states = reader.read(params), own[1]
    if buffers is not None:
        memory = shot.buffers.nested(states)
        reader = Reader("to_module", "buffers", shot.name, shot.buffers, memory, shot.free)
        tree.require_tree("to_module", "buffers", buffers)
        if isinstance(buffers.get("key", None), Tensor) and ("key",) not in shot.buffers.paths:
            buffers = tree.exclude(buffers, ("key",))
        states = [x.detach().clone() for x in reader.read(buffers)]
    pairs = zip(values, shot.params.tensors, strict=True)
    parameters = [nn.Parameter(x.detach().clone(), old.requires_grad) for x, old in pairs]
    parts = shot.make(parameters, states)
    for part in parts:
        if isinstance(part, nn.RNNBase):
            part._init_flat_weights()
    return parts[0]


def _copy(x: Tensor) -> Tensor:
    """A copy that an optimizer of the module can't write to; a graph that it's in stays."""
    return x.detach().clone() if x.is_leaf else x.clone()
