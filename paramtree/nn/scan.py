"""Any cell over time, and any recurrent layer as a model of trajectories."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from .. import tree
from ..model import Model, require_model, td_model
from . import _check

Key = str | tuple[str, ...]


def scan(
    cell: Model,
    initial: Callable[[Any], Any] | None = None,
    *,
    reverse: bool = False,
) -> Model:
    """Unrolls a cell over time, one call a step.

        y_t, carry_t = cell(x_t, carry_(t-1))

    A cell is a layer whose input is (x, carry), at one step, and which gives (y, carry); x, y and
    carry are tensors, or tuples and trees of them, and its buffers go from step to step. As in
    `lstm`, time comes first, and a reset starts the carry anew before its step is processed:

    >>> import torch
    >>> from paramtree import Model, nn, rng
    >>> gate = nn.linear(5, 3)
    >>> def apply(params, buffers, inputs):
    ...     x, h = inputs
    ...     h = torch.lerp(x, h, gate(params, buffers, torch.cat((x, h[..., :2]), -1)).sigmoid())
    ...     return (h, h), buffers
    >>> layer = scan(Model(gate.init, apply), torch.zeros_like)
    >>> params, buffers = layer.init(rng.key(0))
    >>> y, h = layer(params, buffers, (torch.ones(7, 2, 3), None))
    >>> y.shape, torch.equal(y[-1], h)
    (torch.Size([7, 2, 3]), True)

    Params and buffers: those of the cell.

    Args:
        cell: the cell.
        initial: function of x at one step that makes the carry of a sequence's start; default:
            zeros, of the shapes of the carry that is given.
        reverse: whether the steps are processed from the last to the first; a reset is then the
            last step of an episode.

    Returns:
        Model whose input is x [T, *batch, ...], T >= 1, and gives y [T, *batch, ...]; or a tuple
        (x, reset) or (x, reset, carry), with reset bool [T, *batch] or None, and gives (y, carry)
        with the final carry. Without `initial` the carry has to be given. A carry of several
        tensors is one entry, a tuple or a tree.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: when applied, sizes differ, there is no first carry, or the cell gives something
            else than a pair.
    """
    require_model("scan", "cell", cell)
    _check.functions("scan", initial=initial)

    def apply(params: TensorDict, buffers: TensorDict, inputs: Any) -> tuple[Any, TensorDict]:
        x, reset, carry = _check.inputs("scan", inputs, "x", "reset", "carry")
        leaves, structure = tree.flatten(x)
        length, inner = _length(leaves, structure), tree.without_axis(structure)
        if reset is not None:
            _check_reset(reset, leaves)
        steps: list[Any] = []
        for t in reversed(range(length)) if reverse else range(length):
            now = tree.unflatten(inner, [leaf[t] for leaf in leaves])
            if carry is None and initial is None:
                raise ValueError("scan: there is no carry, expected (x, reset, carry) or initial")
            if carry is None and initial is not None:
                carry = initial(now)
            elif reset is not None:
                carry = _restarted(initial, now, carry, reset[t])
            out, buffers = cell.apply(params, buffers, (now, carry))
            if not isinstance(out, tuple) or len(out) != 2:
                got = f"a tuple of {len(out)}" if isinstance(out, tuple) else type(out).__name__
                raise ValueError(f"scan: the cell gave {got}, expected (y, carry)")
            steps.append(out[0])
            carry = out[1]
        y = _stacked(steps[::-1] if reverse else steps)
        return (y, carry) if isinstance(inputs, tuple) else y, buffers

    return Model(cell.init, apply)


def recurrent_model(
    layer: Model,
    in_key: Key,
    out_key: Key,
    carry_keys: str | list[str],
    *,
    sequence: bool = False,
    batch_first: bool = False,
    reset_key: Key = "is_init",
) -> Model:
    """Model of TensorDicts of a recurrent layer, for acting and for learning.

    For acting, the batch [*B] is one step: the model reads the carry, starts anew where `is_init`,
    and writes the next carry under `next`, as `envs.rollout` wants it:

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from paramtree import compose, nn, rng, td_model, tree
    >>> def agent(sequence):
    ...     torso = nn.recurrent_model(
    ...         nn.lstm(4, 8), "observation", "hidden", ["h", "c"], sequence=sequence)
    ...     return compose(torso=torso, actor=td_model(nn.linear(8, 2), "hidden", "logits"))
    >>> act, learn = agent(sequence=False), agent(sequence=True)
    >>> params, buffers = act.init(rng.key(0))
    >>> state = {"observation": torch.ones(3, 4), "is_init": torch.ones(3, dtype=torch.bool)}
    >>> carry = act(params, buffers, tree.new(state, (3,)))["next"]     # of the right shapes
    >>> sorted(carry.keys())
    ['c', 'h']

    and `tree.merge(state, tree.new({"recurrent": carry}, (3,)))` is what a rollout starts with,
    since the first step of an episode looks at no carry. For learning, the batch [*B, T] is a
    trajectory, which goes through the layer as a whole, from the carry of its first step:

    >>> steps = {"observation": torch.ones(3, 5, 4), "is_init": torch.zeros(3, 5).bool()}
    >>> first = {name: torch.zeros(3, 5, 8) for name in ("h", "c")}
    >>> learn(params, buffers, tree.new({**steps, **first}, (3, 5)))["logits"].shape
    torch.Size([3, 5, 2])

    Values of `("next", "observation")` are those of the acting model on `td["next"]`, which holds
    the carry that a rollout wrote: `with_next(act)`.

    Params and buffers: those of the layer.

    Args:
        layer: a recurrent layer, whose input is (x, reset, *carry) and which gives (out, *carry):
            `lstm`, `gru`, `rnn`, `scan`, `causal_attention`, `causal_transformer`.
        in_key: what it reads, as in `td_model`.
        out_key: where its output is written.
        carry_keys: names of its carry: h and c, or the cache. Where the batch lacks them, the carry
            is that of a start.
        sequence: whether a batch is a trajectory; else it's a step, as every one of its entries.
        batch_first: whether the layer wants [*batch, T, n], as those with a cache do.
        reset_key: of the flags, bool [*B] or [*B, 1].

    Returns:
        The model.

    Raises:
        TypeError: as in `td_model`.
        ValueError: as in `td_model`; or, when applied, a trajectory has no batch axis.
    """
    require_model("recurrent_model", "layer", layer)
    names = carry_keys if isinstance(carry_keys, list) else [carry_keys]
    for name in names:
        if not isinstance(name, str):
            got = type(name).__name__
            raise TypeError(f"recurrent_model: a carry key is a {got}, expected a name")
    after: list[Key] = [] if sequence else [("next", name) for name in names]

    def run(dims: int, params: Any, buffers: Any, inputs: tuple[Any, ...]) -> Any:
        x, reset, *carry = inputs
        reset = reset.squeeze(-1) if reset.dim() == dims + 1 else reset
        at = dims - 1 if sequence else dims  # of time in the td's tensors, once they have it
        if not sequence:
            x, reset = x.unsqueeze(at), reset.unsqueeze(at)
        if not batch_first:
            x, reset = x.movedim(at, 0), reset.movedim(at, 0)
        if sequence:
            carry = [_first(value, at) for value in carry]
        (out, *carry), buffers = layer.apply(params, buffers, (x, reset, *carry))
        out = out if batch_first else out.movedim(0, at)
        return (out,) if sequence else (out.squeeze(at), *carry), buffers

    def apply(params: Any, buffers: Any, batch: TensorDictBase) -> tuple[TensorDict, Any]:
        tree.require_tree("recurrent_model", "batch", batch)
        if sequence and not batch.batch_dims:
            raise ValueError(
                "recurrent_model: the batch has batch size [], expected [*B, T] with sequence"
            )
        known = all([name in batch.keys() for name in names])
        reads = [in_key, reset_key, *names] if known else [in_key, reset_key]
        step = Model(layer.init, partial(run, batch.batch_dims))
        return td_model(step, reads, [out_key, *after]).apply(params, buffers, batch)

    return Model(layer.init, apply)


def _length(leaves: list[Tensor], structure: tree.Structure) -> int:
    """T, the same for all tensors of x."""
    for path, leaf in zip(structure.paths(), leaves, strict=True):
        name = f"x at {tree.show_path(path)}" if path else "x"
        if not leaf.dim() or leaf.shape[0] < 1:
            got = tuple(leaf.shape)
            raise ValueError(f"scan: {name} has shape {got}, expected [T, *batch, ...], T >= 1")
        if leaf.shape[0] != leaves[0].shape[0]:
            raise ValueError(
                f"scan: {name} has {leaf.shape[0]} steps, expected {leaves[0].shape[0]} (from "
                f"{tree.show_path(structure.paths()[0])})"
            )
    if not leaves:
        raise TypeError("scan: x holds no tensor, expected [T, *batch, ...]")
    return leaves[0].shape[0]


def _check_reset(reset: Any, leaves: list[Tensor]) -> None:
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
        got = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
        raise TypeError(f"scan: reset is {got}, expected a bool tensor or None")
    n = reset.dim()
    if n < 1 or any([leaf.shape[:n] != reset.shape for leaf in leaves]):
        raise ValueError(
            f"scan: reset has shape {tuple(reset.shape)}, expected [T, *batch] of x, which has "
            f"shape {tuple(leaves[0].shape)}"
        )


def _restarted(initial: Callable[[Any], Any] | None, x: Any, carry: Any, reset: Tensor) -> Any:
    """The carry of a start where reset [*batch] is true."""
    old, structure = tree.flatten(carry)
    if initial is None:
        new: list[Tensor] = [torch.zeros_like(leaf) for leaf in old]
    else:
        new, other = tree.flatten(initial(x))
        tree.require_same("scan", ("the carry", structure), ("what initial gave", other))
    rows = []
    for leaf, fresh in zip(old, new, strict=True):
        if leaf.shape[: reset.dim()] != reset.shape:
            raise ValueError(
                f"scan: a carry has shape {tuple(leaf.shape)}, expected it to begin with "
                f"{tuple(reset.shape)} (from reset)"
            )
        wide = reset.reshape(reset.shape + (1,) * (leaf.dim() - reset.dim()))
        rows.append(torch.where(wide, fresh, leaf))
    return tree.unflatten(structure, rows)


def _stacked(steps: list[Any]) -> Any:
    """What the cell gave at all steps."""
    columns, structures = zip(*[tree.flatten(step) for step in steps], strict=True)
    for other in structures[1:]:
        tree.require_same("scan", ("y at one step", structures[0]), ("at another", other))
    leaves = [torch.stack(column) for column in zip(*columns, strict=True)]
    return tree.unflatten(tree.with_axis(structures[0], len(steps)), leaves)


def _first(value: Any, dim: int) -> Any:
    """A carry at the first step of a trajectory."""
    if isinstance(value, Tensor):
        return value.select(dim, 0)
    entries = {name: _first(part, dim) for name, part in tree.entries(value).items()}
    return tree.new(entries, value.batch_size[:dim])
