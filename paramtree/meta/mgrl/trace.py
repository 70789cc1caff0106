"""How a state depends on eta, carried forward through updates without a graph of them.

With an update s' = F(s, eta), its trace z is d s / d eta, one direction for each entry of eta:

    exact    z' = dF/ds mu z + dF/d eta         forward mode, where mu is 1
    else     z' =       mu z + dF/d eta         the paper's: mu stands for dF/ds
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ... import tree
from ...tree import Structure, flatten, unflatten
from ..loop import Part

MOVING = ("params", "optimizer", "rule")  # what an update changes by way of eta


def no_trace(eta: TensorDict, agents: TensorDict) -> TensorDict:
    """The trace of a state that doesn't depend on eta.

    Args:
        eta: H numbers, in float tensors.
        agents: the state.

    Returns:
        A tree like what moves of it, with an axis of H in front; the counts in it mean nothing.
    """
    h = sum([x.numel() for x in tree.leaves(eta)])
    leaves, structure = flatten(_moving(agents))
    zeros = [x.new_zeros((h, *x.shape)) for x in leaves]
    return unflatten(tree.with_axis(structure, h), zeros)


def traced(
    update: Callable[[TensorDict, TensorDict], TensorDict],
    eta: TensorDict,
    agents: TensorDict,
    trace: TensorDict,
    *,
    decay: float | Tensor,
    exact: bool,
) -> tuple[TensorDict, TensorDict]:
    """An update, and the trace after it.

    Args:
        update: F, of eta and the state.
        eta: H numbers.
        agents: the state s.
        trace: z before the update.
        decay: mu.
        exact: whether the update's dependence on the state counts.

    Returns:
        ``(s', z')``.
    """
    h, s, z = Part(eta), Part(_moving(agents)), Part(trace)
    inputs, n = (*h.floats, *s.floats), len(h.floats)
    rest: list[Structure] = []  # the state after, without its tensors; left by flat

    def flat(*floats: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        moved = tree.entries(s.join(floats[n:]))
        after = update(h.join(floats[:n]), tree.rebuild(agents, {**tree.entries(agents), **moved}))
        leaves, structure = flatten(after)
        rest[:] = [structure]
        return tuple(Part(_moving(after)).floats), tuple(leaves)

    def along(*tangents: Tensor) -> tuple[Any, Any]:
        found: Any = torch.func.jvp(flat, inputs, tangents, has_aux=True)
        return found[1], found[2]

    kept = [decay * x for x in z.floats]
    basis = torch.eye(trace.batch_size[0], dtype=inputs[0].dtype, device=inputs[0].device)
    parts = basis.split([x.numel() for x in h.floats], 1)
    ways = [d.to(x.dtype).reshape(-1, *x.shape) for d, x in zip(parts, h.floats, strict=True)]
    ways += kept if exact else [torch.zeros_like(x) for x in kept]
    slopes, leaves = torch.func.vmap(along)(*ways)
    if not exact:
        slopes = [x + y for x, y in zip(kept, slopes, strict=True)]
    return unflatten(rest[0], [x[0] for x in leaves]), z.join(slopes)


def along_trace(slope: TensorDict, trace: TensorDict, eta: TensorDict) -> TensorDict:
    """Gradient with respect to eta of what has a slope in the parameters.

    Args:
        slope: of the params.
        trace: z.
        eta: the tree that the gradient is to look like.

    Returns:
        For each entry of eta the product of slope and trace, summed over all params.
    """
    h, g = Part(eta), Part(slope)
    z = Part(trace["params"])
    rows = [(x * y).flatten(1).sum(1) for x, y in zip(g.floats, z.floats, strict=True)]
    total = torch.stack(rows).sum(0)
    parts = total.split([x.numel() for x in h.floats])
    return h.join([d.to(x.dtype).reshape(x.shape) for d, x in zip(parts, h.floats, strict=True)])


def _moving(agents: TensorDict) -> TensorDict:
    return tree.rebuild(agents, {name: agents[name] for name in MOVING})
