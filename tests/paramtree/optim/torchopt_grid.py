"""What the tests against torchopt share: grids sampled down to all pairs, models, loops.

torchopt's own tests take the whole product of their options, some thousands of cases. Here every
two values of two options still meet in some case.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torchopt
from tensordict import TensorDict
from torchopt.alias.utils import _set_use_chain_flat

import paramtree
from paramtree import optim, tree

UPDATES = 5


def pairs(allowed: Any = None, **axes: list[Any]) -> list[dict[str, Any]]:
    """Cases in which every two values of two options meet, but for those that aren't allowed."""
    names = list(axes)
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*axes.values())]
    every = [case for case in every if allowed is None or allowed(case)]
    met = [_pairs_of(case, names) for case in every]
    left, chosen = set().union(*met), []
    while left:
        best = max(range(len(every)), key=lambda i: len(met[i] & left))
        left -= met[best]
        chosen.append(every[best])
    return chosen


def _pairs_of(case: Mapping[str, Any], names: list[str]) -> set[Any]:
    shown = {name: repr(case[name]) for name in names}
    return {(a, b, shown[a], shown[b]) for a, b in itertools.combinations(names, 2)}


def label(case: Any) -> str:
    """A case as an id of pytest."""
    return "-".join([f"{k}={getattr(v, '__name__', v)}" for k, v in case.items()])


# --------------------------------------------------------------------------------------- problem


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=SOURCE, dtype=torch.float64)


SOURCE = torch.Generator().manual_seed(11)
BATCHES = [(draw(16, 6), torch.randint(3, (16,), generator=SOURCE)) for _ in range(UPDATES)]
PARAMS = {
    "hidden": {"w": draw(6, 5) * 0.5, "b": draw(5)},
    "out": {"w": draw(5, 3) * 0.5, "b": draw(3)},
    "unused": draw(2),
}


def start(dtype: torch.dtype) -> TensorDict:
    """A classifier with a parameter that it doesn't use, so that its gradients are zero."""
    return tree.lock(TensorDict(PARAMS).to(dtype))


def cross_entropy(params: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch[0].to(params["unused"].dtype), batch[1]
    hidden = torch.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    logits = hidden @ params["out"]["w"] + params["out"]["b"]
    return torch.nn.functional.cross_entropy(logits, y) + 0 * params["unused"].sum()


# ----------------------------------------------------------------------------------------- loops


def ours(make: Any, params: TensorDict, donate: bool = False) -> TensorDict:
    """Params after an update for each batch."""
    optimizer = make()
    params = params.clone()
    state = optimizer.init(params)
    for batch in BATCHES:
        grads = paramtree.grad(lambda p, batch=batch: cross_entropy(p, batch))(params)
        params, state = optim.step(optimizer, grads, state, params, donate=donate)
    return params


def torchs(make: Any, params: TensorDict, before: Any = None, after: Any = None) -> TensorDict:
    """The same for a class of torch; ``before`` and ``after`` are called around each step."""
    structure = tree.flatten(params)[1]
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    optimizer = make(leaves)
    scheduler = after(optimizer) if after else None
    for batch in BATCHES:
        optimizer.zero_grad()
        cross_entropy(tree.unflatten(structure, leaves), batch).backward()
        if before:
            before(leaves)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return tree.unflatten(structure, [leaf.detach() for leaf in leaves])


def torchopts(make: Any, params: TensorDict, inplace: bool, flat: bool = True) -> TensorDict:
    """The same for a function of torchopt."""
    _set_use_chain_flat(flat)
    try:
        optimizer = make()
        structure = tree.flatten(params)[1]
        leaves = tuple([leaf.clone().requires_grad_() for leaf in tree.leaves(params)])
        state = optimizer.init(leaves)
        for batch in BATCHES:
            loss = cross_entropy(tree.unflatten(structure, list(leaves)), batch)
            grads = [g.clone() for g in torch.autograd.grad(loss, leaves)]  # it writes to them
            updates, state = optimizer.update(tuple(grads), state, params=leaves, inplace=inplace)
            leaves = torchopt.apply_updates(leaves, updates, inplace=inplace)
            leaves = tuple([leaf.detach().requires_grad_() for leaf in leaves])
        return tree.unflatten(structure, [leaf.detach() for leaf in leaves])
    finally:
        _set_use_chain_flat(True)
