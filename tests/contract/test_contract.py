"""Every public function is pure, maps, differentiates twice and compiles: one table, four tests.

``cases.py`` is the table. A function that is missing from it fails here, and so does one that
changes what it was given, by value (a write through ``.data`` counts).
"""

import importlib
import inspect

import pytest
import torch
from tensordict import TensorDictBase

from paramtree import tree
from paramtree.autodiff import check_grads, grad, vmap
from tests.contract.cases import CASES, NOT_NUMBERS

ROOMS = "tree model autodiff rng nn nn_module optim envs meta checkpoint display losses".split()
ids = [case.name for case in CASES]


def assert_same(ours, wanted, **tolerance):
    (a, structure), (b, other) = tree.flatten(ours), tree.flatten(wanted)
    assert structure == other
    for path, x, y in zip(structure.paths(), a, b, strict=True):
        options = tolerance if x.is_floating_point() else {}
        torch.testing.assert_close(x, y, msg=lambda text, path=path: f"{path}: {text}", **options)


def locked_throughout(value):
    if isinstance(value, TensorDictBase):
        return value.is_locked and all(locked_throughout(value.get(name)) for name in value.keys())
    return not isinstance(value, (tuple, list)) or all(locked_throughout(v) for v in value)


def batch_of(args, n):
    """n versions of the arguments along a new axis; floats differ, the rest is the same."""
    leaves, structure = tree.flatten(args)
    rows = []
    for i in range(n):
        moved = [x * (1 + 0.01 * i) if x.is_floating_point() else x for x in leaves]
        rows.append(tree.unflatten(structure, moved))
    stacked = [torch.stack(column) for column in zip(*(tree.leaves(r) for r in rows), strict=True)]
    return tree.unflatten(tree.with_axis(structure, n), stacked), rows


def test_every_public_function_has_a_case():
    known = NOT_NUMBERS | set(ids) | {name for case in CASES for name in case.covers}
    missing = []
    for room in ROOMS:
        module = importlib.import_module(room if room == "losses" else f"paramtree.{room}")
        for name, value in inspect.getmembers(module):
            home = getattr(value, "__module__", None) or ""
            ours = home.startswith(module.__name__) and callable(value) and name[0] != "_"
            if ours and f"{room}.{name}" not in known:
                missing.append(f"{room}.{name}")
    assert not missing
    assert len(ids) == len(set(ids)) and sum(case.inductor for case in CASES) >= 12


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_pure(case):
    args = case.args()
    leaves, structure = tree.flatten(args)
    values, versions = [x.clone() for x in leaves], [x._version for x in leaves]
    state = torch.random.get_rng_state()
    out, again = case.fn(*args), case.fn(*args)
    after, same = tree.flatten(args)
    assert same == structure and all(x is y for x, y in zip(leaves, after, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(leaves, values, strict=True))
    assert [x._version for x in leaves] == versions
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(out, again, rtol=0, atol=0)
    assert locked_throughout(out)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_vmapped_equals_a_loop(case):
    if case.vmapped is not True:
        assert isinstance(case.vmapped, str)
        return
    stacked, rows = batch_of(case.args(), 3)
    out = vmap(case.fn)(*stacked)
    for i, row in enumerate(rows):
        leaves, structure = tree.flatten(out)
        ours = tree.unflatten(tree.without_axis(structure), [x[i] for x in leaves])
        assert_same(ours, case.fn(*row), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.smooth], ids=[c.name for c in CASES if c.smooth]
)
def test_differentiable_twice(case):
    args = case.args()
    check_grads(case.fn, *args, max_entries=6, rtol=1e-5)
    if case.smooth < 2:
        return
    chosen = [
        i for i, arg in enumerate(args) if any(x.is_floating_point() for x in tree.leaves(arg))
    ]

    def energy(*floats):
        given = list(args)
        for i, value in zip(chosen, floats, strict=True):
            leaves, structure = tree.flatten(args[i])
            fresh = iter(value)
            given[i] = tree.unflatten(
                structure, [next(fresh) if x.is_floating_point() else x for x in leaves]
            )
        outputs = [x for x in tree.leaves(case.fn(*given)) if x.is_floating_point()]
        return sum((x.sin() * x.shape.numel()).sum() for x in outputs)

    floats = [[x for x in tree.leaves(args[i]) if x.is_floating_point()] for i in chosen]
    slope = grad(energy, tuple(range(len(floats))))
    check_grads(slope, *floats, max_entries=3, rtol=1e-4, atol=1e-6)


def compiled_equals_eager(case, backend, **tolerance):
    torch._dynamo.reset()
    args = case.args()
    run = torch.compile(case.fn, fullgraph=True, backend=backend)
    assert_same(run(*args), case.fn(*args), **tolerance)
    torch._dynamo.reset()


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_compiled(case):
    if case.compiled is True:
        compiled_equals_eager(case, "aot_eager", rtol=1e-12, atol=1e-12)
    else:
        assert isinstance(case.compiled, str)


DOZEN = [case for case in CASES if case.inductor]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, on import
@pytest.mark.parametrize("case", DOZEN, ids=[case.name for case in DOZEN])
def test_compiled_by_inductor(case):
    compiled_equals_eager(case, "inductor", rtol=1e-9, atol=1e-12)
