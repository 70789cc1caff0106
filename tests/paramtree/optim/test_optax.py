"""Every function of optax that has a counterpart here, against it: params and states.

The numbers are tests/data/optax.npz, recorded by tests/fixtures/optax.py from the rows beside it;
a row is one set of options in their words and in ours. Where torch's numbers are our law and
optax's differ, the row says why, and the numbers here must differ.
"""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import optim, rng, tree
from tests.fixtures.optax_combinators import COMBINATORS
from tests.fixtures.optax_excluded import EXCLUDED
from tests.fixtures.optax_problem import SHOWN, STEPS, build, loss, nested
from tests.fixtures.optax_rows import OPTIMIZERS, TRANSFORMS

torch.set_num_threads(1)

DATA = Path(__file__).parents[2] / "data" / "optax.npz"
RTOL = 1e-10
ROWS = (*OPTIMIZERS, *TRANSFORMS, *COMBINATORS)


def load():
    """Tensors by function, and then by ``case/key``; and the names of all that optax offers."""
    found = {}
    with np.load(DATA) as file:
        for name, entries in json.loads(file["layout"].tobytes()).items():
            values, start = file[name], 0
            for key, dtype, shape in entries:
                end = start + int(np.prod(shape))
                array = values[start:end].reshape(shape).astype(dtype)
                found.setdefault(name, {})[key], start = torch.tensor(array), end
            assert start == values.size
        return found, json.loads(str(file["public"]))


FILE, PUBLIC = load()
PROBLEM = {key.removeprefix("0/"): x for key, x in FILE["problem"].items()}


def numbered(rows):
    """Rows with the number of their case: the how-many-eth of its function."""
    seen, out = {}, []
    for row in rows:
        seen[row.name] = seen.get(row.name, -1) + 1
        out.append(pytest.param(row, seen[row.name], id=f"{row.name}-{seen[row.name]}"))
    return out


def side_by_side(whole):
    leaves = [whole["layer", "w"], whole["layer", "b"], whole["s"]]
    return torch.cat([leaf.reshape(-1) for leaf in leaves])


class Room(types.SimpleNamespace):
    """Where the rows' names are looked up."""

    key = staticmethod(rng.key)
    growing = staticmethod(lambda step: torch.where(step < 1, 2, 3))

    def __getattr__(self, name):
        return getattr(optim, name)


def run(row):
    """Params after the steps that are shown, and the state and params at the end."""
    optimizer = build(row.ours, Room())
    params = tree.lock(TensorDict(nested(PROBLEM, "params")))
    factors = TensorDict(nested(PROBLEM, row.factors), [STEPS])
    state, shown = optimizer.init(params), []

    def objective(params):
        return loss(params, PROBLEM["x"], PROBLEM["y"])

    for t in range(STEPS):
        value, grads = paramtree.value_and_grad(objective)(params)
        grads = tree.map(torch.mul, grads, factors[t])
        known = {"value": value, "value_fn": objective, "grad_fn": paramtree.grad(objective)}
        extra = {name: known[name] for name in row.extra if name in known}
        updates, state = optimizer.update(grads, state, params, **extra)
        params = optim.apply_updates(params, tree.map(lambda u: row.step * u, updates))
        if t + 1 in SHOWN:
            shown.append(side_by_side(params))
    return torch.stack(shown), state, params


@pytest.mark.parametrize(("row", "case"), numbered(ROWS))
def test_twenty_steps_are_optaxs(row, case):
    shown, state, params = run(row)
    wanted = FILE[row.name][f"{case}/params"]
    assert shown.isfinite().all()
    if row.differs:
        assert (shown[-1] - wanted[-1]).abs().max() > 1e-5, "equal; drop the row's ``differs``"
        return
    for t, got, want in zip(SHOWN, shown, wanted, strict=True):
        assert_close(got, want, rtol=RTOL, atol=row.atol, msg=lambda m, t=t: f"step {t}: {m}")
    for ours, theirs in row.state.items():
        got = side_by_side(state[tuple(ours.split("."))])
        assert_close(got, FILE[row.name][f"{case}/state/{theirs}"], rtol=RTOL, atol=row.atol)
    if row.final:
        got = side_by_side(getattr(optim, row.final)(state, params))
        assert_close(got, FILE[row.name][f"{case}/final"], rtol=RTOL, atol=row.atol)


def test_every_public_function_of_optax_is_in_a_row_or_has_a_reason():
    covered = {row.name for row in ROWS}
    assert sorted(set(PUBLIC) - covered - set(EXCLUDED)) == []
    assert sorted(covered & set(EXCLUDED)) == []


def test_every_case_of_the_file_has_its_row():
    rows = numbered(ROWS)
    known = {(row.name, case) for row, case in [param.values for param in rows]}
    recorded = {(name, int(key.split("/")[0])) for name in FILE for key in FILE[name]}
    assert recorded - {("problem", 0)} == known
