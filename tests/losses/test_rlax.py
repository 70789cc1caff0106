"""Every function of rlax that has a counterpart here, against it: values and gradients.

The numbers are tests/data/rlax.npz, recorded by tests/fixtures/rlax.py; what a case holds is in
tests/fixtures/recorder.py. A row of the tables beside this file is one function in our words.

A case with a zero discount or a zero lambda is run twice: with these numbers, and with flags in
their place, ``terminated`` and ``done``. rlax's stop-gradient flags are ours by their absence: with
the flag off a row detaches nothing; with it on, it is called with all but what is learned held.
rlax's gradients are NaN where an atom of a categorical target has no mass; ours are finite.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from losses import vmpo_weights
from tests.losses.rlax_policies import POLICIES
from tests.losses.rlax_rows import Args
from tests.losses.rlax_scaling import SCALING
from tests.losses.rlax_values import VALUES

DATA = Path(__file__).parents[1] / "data" / "rlax.npz"
RTOL, ATOL = 1e-9, 1e-11
ROWS = {**VALUES, **POLICIES, **SCALING}


def load():
    """The cases by function and number: tensors by key."""
    cases = defaultdict(lambda: defaultdict(dict))
    with np.load(DATA) as file:
        layout = json.loads(file["layout"].tobytes())
        for name, entries in layout.items():
            values, start = file[name], 0
            for key, dtype, shape in entries:
                case, key = key.split("/", 1)
                end = start + int(np.prod(shape))
                array = values[start:end].reshape(shape).astype(dtype)
                cases[name][int(case)][key], start = torch.tensor(array), end
            assert start == values.size
    return {name: dict(by_number) for name, by_number in cases.items()}


FILE = load()


def group(case, name):
    """The part of a case under one name; one value without a name of its own is under ""."""
    return {key[len(name) :].lstrip("/"): x for key, x in case.items() if key.split("/")[0] == name}


def ends(case, flags):
    """The discount and lambda of a case in our words, and where flags stand in their place."""
    given = group(case, "in")
    like = given.get("discount_t")
    if like is None:
        return None
    cut = torch.zeros_like(like, dtype=torch.bool)
    terminated = like == 0 if flags else cut
    lmbda = given.get("lambda_", given.get("lambda_t"))
    if not flags or lmbda is None or lmbda.shape != like.shape:
        return terminated, cut
    return terminated, lmbda == 0


def arguments(case, held, flags):
    """Leaves for all that rlax differentiates, and our arguments made of them."""
    known = {**group(case, "grad"), **group(case, "semi")}
    leaves, args = {}, Args()
    for name, x in group(case, "in").items():
        if name in known:
            leaves[name] = x.clone().requires_grad_()
            x = leaves[name].detach() if name in held else leaves[name]
        args[name] = x
    found = ends(case, flags)
    if found is not None:
        terminated, cut = found
        args.terminated, args.done = terminated, terminated | cut
        args.gamma = torch.where(terminated, 0.9, args["discount_t"])
        for name in {"lambda_", "lambda_t"} & set(args):
            args.lmbda = torch.where(cut, 0.9, args[name]) if cut.any() else args[name]
    return leaves, args


def run(row, call, case, held=(), flags=False):
    """Our results, and the gradient of the weighted sum of them for every leaf."""
    leaves, args = arguments(case, held, flags)
    for name, source in row.same.items():
        args[name] = args[source]
    out = call(args)
    out = out if isinstance(out, dict) else {"": out}
    weights = group(case, "w")
    assert set(out) == set(weights)
    objective = sum((weights[name] * x).sum() for name, x in out.items())
    if not leaves or not objective.requires_grad:
        return out, {name: torch.zeros_like(x) for name, x in leaves.items()}
    grads = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
    return out, dict(zip(leaves, grads, strict=True))


def expected_gradients(row, case, kind):
    """rlax's gradients; arguments that are one and the same for us add up."""
    grads = group(case, kind)
    for name, source in row.same.items():
        if name in grads:
            grads[source] = grads[source] + grads.pop(name)
    return grads


def compare(row, key, found, expected, where=None):
    if key in row.skipped:
        return
    finite = expected.isfinite()
    assert found.isfinite().all(), key
    keep = finite if where is None else finite & where
    rtol, atol = (0.0, row.differs[key][0]) if key in row.differs else (row.rtol or RTOL, ATOL)
    assert found.shape == expected.shape, (key, found.shape, expected.shape)
    message = f"{key}: {found[keep].tolist()}, rlax {expected[keep].tolist()}"
    assert_close(found[keep], expected[keep], rtol=rtol, atol=atol, msg=message)


def cases(wanted=lambda row, case: True):
    for name, by_number in FILE.items():
        for number, case in by_number.items():
            if name not in ROWS or wanted(ROWS[name], case):
                yield pytest.param(name, case, id=f"{name}-{number}")


def has_flag(row, case):
    """Whether rlax has a flag; a row whose ``learned`` is a text says why it is not compared."""
    return bool(group(case, "semi")) and not isinstance(row.learned, str)


def has_ends(row, case):
    found = ends(case, True)
    return found is not None and any(bool(flag.any()) for flag in found)


def test_every_recorded_function_has_a_row_and_every_row_a_record():
    assert set(ROWS) == set(FILE)


@pytest.mark.parametrize(("name", "case"), [*cases()])
def test_values_and_gradients(name, case):
    row = ROWS[name]
    out, grads = run(row, row.call, case)
    assert group(case, "out")
    for key, expected in group(case, "out").items():
        compare(row, f"out/{key}", out[key].detach(), expected)
    for key, expected in expected_gradients(row, case, "grad").items():
        compare(row, f"grad/{key}", grads[key], expected)


@pytest.mark.parametrize(("name", "case"), [*cases(has_ends)])
def test_flags_in_the_place_of_zero_discounts_and_lambdas(name, case):
    row = ROWS[name]
    terminated, cut = ends(case, True) or pytest.fail("no discount")
    out, grads = run(row, row.call, case, flags=True)
    for key, expected in group(case, "out").items():
        compare(row, f"out/{key}", out[key].detach(), expected)
    for key, expected in expected_gradients(row, case, "grad").items():
        where = {"discount_t": ~terminated, "lambda_": ~cut, "lambda_t": ~cut}.get(key)
        if where is not None and where.shape != expected.shape:
            where = None
        if key in row.ended:
            where = ~terminated.unsqueeze(-1).expand_as(expected)
        compare(row, f"grad/{key}", grads[key], expected, where)


@pytest.mark.parametrize(("name", "case"), [*cases(has_flag)])
def test_semi_gradients(name, case):
    row = ROWS[name]
    assert row.learned is not None or row.stopped is not None, "no road to rlax's flag"
    given = group(case, "in")
    held = () if row.learned is None else set(given) - set(row.learned)
    _, grads = run(row, row.stopped or row.call, case, held)
    full = expected_gradients(row, case, "grad")
    for key, expected in expected_gradients(row, case, "semi").items():
        if key not in row.kept:
            compare(row, f"semi/{key}", grads[key], expected)
        elif key in full:
            compare(row, f"grad/{key}", grads[key], full[key])


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.differs])
def test_what_is_called_a_difference_is_one(name):
    row = ROWS[name]
    largest = dict.fromkeys(row.differs, 0.0)
    for case in FILE[name].values():
        out, grads = run(row, row.call, case)
        for key in row.differs:
            kind, part = key.split("/")
            expected = group(case, kind).get(part)
            if expected is not None:
                found = (out if kind == "out" else grads)[part].detach()
                gap = (found - expected).abs().nan_to_num(0.0).max().item()
                largest[key] = max(largest[key], gap)
    for key, gap in largest.items():
        assert 1e-7 < gap, f"{key} agrees with rlax's; drop the difference: {row.differs[key][1]}"


def test_vmpo_takes_its_fraction_of_the_steps_of_the_mask_where_rlax_takes_it_of_all():
    case = FILE["vmpo_compute_weights_and_temperature_loss"][0]
    given, recorded = group(case, "in"), case["out/normalized_weights"]
    mask = given["restarting_weights"] == 1
    assert mask.tolist() == [True, True, False, True]
    ours = vmpo_weights(given["advantages"], 0.7, given["top_k"].item(), mask=mask)
    assert ((recorded > 0).sum(), (ours > 0).sum()) == (2, 1)
