"""What holds for every reducer, run over the rows that the contract has for them."""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import losses
from paramtree import grad, optim, tree, vmap
from tests.contract.case import D, Function, Reducer, changed, floats, leaves, named, numbers
from tests.contract.cases import LOSSES

REDUCERS = [row for row in LOSSES if isinstance(row, Reducer)]
FUNCTIONS = [row for row in LOSSES if isinstance(row, Function)]
every_reducer = pytest.mark.parametrize("row", REDUCERS, ids=lambda row: row.name)
every_function = pytest.mark.parametrize(
    "row", [row for row in FUNCTIONS if row.hyper], ids=lambda row: row.name
)
SIZE = (2, 5)


def held(row):
    """The row's td with its targets, each entry without a graph; and the reducer's keywords."""
    hyper = tree.entries(numbers({**row.hyper, **row.target_hyper}))
    return row.finished(row.td(), hyper), {name: hyper[name] for name in row.hyper}


def per_step(td):
    """The entries that hold one number per step."""
    return [key for key, x in leaves(td) if x.shape == SIZE]


def central(fn, x, h=1e-6):
    """Central differences of a scalar function of a number."""
    return (fn(x + h) - fn(x - h)) / (2 * h)


def weighted(result):
    """One number of all of a result's floats."""
    parts = [x for x in tree.leaves(result) if x.is_floating_point()]
    return sum(
        (x * torch.arange(1, x.numel() + 1, dtype=D).reshape(x.shape).cos()).sum() for x in parts
    )


# --------------------------------------------------------------------------------- hyper-parameters


@every_reducer
def test_the_row_names_every_real_hyper_parameter(row):
    assert row.real == set(row.hyper) | (row.real & {*row.target_hyper, *row.options})


def hyper_gradient(value, hyper):
    """Eager, mapped over each hyper-parameter alone and compiled: all are central differences."""
    names = sorted(hyper)
    found = grad(value)(hyper)
    for name in names:

        def alone(x, name=name):
            return value({**hyper, name: x})

        assert_close(found[name], central(alone, hyper[name]), rtol=1e-6, atol=1e-8)
        values = hyper[name] * torch.tensor([1.0, 0.97, 0.9], dtype=D)
        mapped = torch.func.vmap(torch.func.grad(alone))(values)
        assert_close(mapped, torch.stack([grad(alone)(x) for x in values]))
    torch.compiler.reset()
    compiled = torch.compile(torch.func.grad(value), fullgraph=True, backend="aot_eager")(hyper)
    for name in names:
        assert_close(compiled[name], found[name])


@every_function
def test_a_functions_hyper_parameters(row):
    args = dict(row.args())
    hyper_gradient(lambda h: weighted(row.call(args, h)), tree.entries(numbers(row.hyper)))


@pytest.mark.parametrize(
    "row", [row for row in REDUCERS if row.hyper or row.target_hyper], ids=lambda row: row.name
)
def test_a_reducers_hyper_parameters(row):
    td = row.td()

    def value(h):
        own = {name: h[name] for name in row.hyper}
        return losses.total(row.call(row.finished(td, h), own))

    hyper_gradient(value, tree.entries(numbers({**row.hyper, **row.target_hyper})))


@pytest.mark.parametrize("name", sorted({f"{r.name}.{h}" for r in REDUCERS for h in r.hyper}))
def test_a_hyper_parameter_as_an_entry(name):
    """One that differs from step to step; it wins over the keyword."""
    function, which = name.split(".")
    row = next(row for row in REDUCERS if row.name == function)
    td, hyper = held(row)
    spread = hyper[which] * (1 + 0.1 * torch.rand(SIZE, generator=torch.Generator().manual_seed(0)))
    spread = spread.to(D)
    entry = row.call(changed(td, {which: spread}), hyper)
    keyword = row.call(td, {**hyper, which: spread})
    others = {name: x for name, x in hyper.items() if name != which}
    same = row.call(changed(td, {which: hyper[which].expand(SIZE)}), others)
    flat = row.call(td, hyper)
    for key in flat.keys():
        assert_close(entry[key], keyword[key], equal_nan=True)
        assert_close(same[key], flat[key], equal_nan=True)


@pytest.mark.parametrize("name", sorted({f"{r.name}.{h}" for r in REDUCERS for h in r.hyper}))
def test_a_bad_hyper_parameter(name):
    function, which = name.split(".")
    row = next(row for row in REDUCERS if row.name == function)
    td, hyper = held(row)
    with pytest.raises(ValueError, match=rf"^{function}: {which} is nan"):
        row.call(td, {**hyper, which: float("nan")})
    with pytest.raises(TypeError, match=rf"^{function}: {which} is a str"):
        row.call(td, {**hyper, which: "0.1"})
    with pytest.raises(TypeError, match=rf"^{function}: {which} has dtype int64"):
        row.call(td, {**hyper, which: torch.tensor(1)})
    with pytest.raises(ValueError, match=rf"^{function}: {which} has shape \(3,\)"):
        row.call(td, {**hyper, which: torch.ones(3, dtype=D)})


# ------------------------------------------------------------------------------------ three updates


def network(theta):
    return theta * (1 + 0.1 * theta.sin())


def outputs(row, params, td):
    """The td with the networks' outputs, those on the states that follow among them."""
    entries = {}
    for key in row.learned:
        out = network(params[named(key)])
        entries[key] = out
        path = ("next", key) if isinstance(key, str) else ("next", *key)
        if td.get(path, None) is not None:
            entries[path] = out.roll(-1, 1)
    return changed(td, entries)


def unroll(row, make, hyper, steps=3):
    """A smooth function of the outputs after some updates by an optimizer."""
    td = row.td()
    params = tree.new({named(key): td.get(key) for key in row.learned})
    optimizer = make(hyper["rate"])
    state = optimizer.init(params)
    for _ in range(steps):
        before = row.finished(outputs(row, params, td), hyper)
        own = {name: hyper[name] for name in row.hyper}

        def loss(p, before=before, own=own):
            now = {key: network(p[named(key)]) for key in row.learned}
            return losses.total(row.call(changed(before, now), own))

        updates, state = optimizer.update(grad(loss)(params), state, params)
        params = optim.apply_updates(params, updates)
    return sum(weighted(x.sin()) for x in tree.leaves(params))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@every_reducer
def test_three_updates_are_differentiated_right(row, optimizer):
    make = {"sgd": optim.sgd, "adam": lambda rate: optim.adam(rate, eps=0.1)}[optimizer]
    hyper = tree.entries(numbers({**row.hyper, **row.target_hyper, "rate": 0.05}))

    def outer(h):
        return unroll(row, make, h)

    found = grad(outer)(hyper)
    assert found["rate"].abs() > 1e-6
    for name, x in hyper.items():
        right = central(lambda x, n=name: outer({**hyper, n: x}), x)
        assert_close(found[name], right, rtol=1e-5, atol=1e-8)


# ------------------------------------------------------------------------------------ what comes in


@every_reducer
def test_reductions_agree(row):
    td, hyper = held(row)
    none, mean, whole = (row.call(td, hyper, reduction=r) for r in ("none", "mean", "sum"))
    assert none.batch_size == td.batch_size and mean.batch_size == whole.batch_size == ()
    names = [key for key in mean.keys() if key.startswith("loss_")]
    assert names and set(names) == {key for key in none.keys() if key.startswith("loss_")}
    for key in names:
        assert none[key].shape == SIZE
        assert_close(mean[key], none[key].mean())
        assert_close(whole[key], none[key].sum())
    assert all(not mean[key].requires_grad for key in mean.keys() if key not in names)
    assert all(key in none.keys() for key in td.keys())
    assert none.is_locked and mean.is_locked
    with pytest.raises(ValueError, match=rf"^{row.name}: reduction is 'avg', expected one of"):
        row.call(td, hyper, reduction="avg")


@every_reducer
def test_weights_weigh(row):
    td, hyper = held(row)
    weight = torch.linspace(0.1, 2.0, 10, dtype=D).reshape(SIZE)
    plain = row.call(td, hyper, reduction="none")
    mean = row.call(changed(td, {"weight": weight}), hyper)
    none = row.call(changed(td, {"weight": weight.unsqueeze(-1)}), hyper, reduction="none")
    for key in (key for key in mean.keys() if key.startswith("loss_")):
        assert_close(none[key], plain[key] * weight)
        assert_close(mean[key], (plain[key] * weight).sum() / weight.sum())


MASK = torch.tensor([[True, True, False, True, True], [False, True, True, True, False]])


@every_reducer
def test_a_masked_step_is_not_there(row):
    """Whatever stands in it, NaN included, for the value and the gradients."""
    td, hyper = held(row)
    junk = {}
    for key, x in leaves(td):
        if x.is_floating_point() and x.shape[:2] == SIZE:
            junk[key] = torch.where(MASK.reshape(*SIZE, *[1] * (x.dim() - 2)), x, torch.nan)
    clean, dirty = changed(td, {"mask": MASK}), changed(td, {**junk, "mask": MASK})

    def value(entries, td):
        return losses.total(row.call(changed(td, entries), hyper))

    expected, found = floats(clean), floats(dirty)
    assert_close(value(found, dirty), value(expected, clean))
    a, b = torch.func.grad(value)(found, dirty), torch.func.grad(value)(expected, clean)
    for key in a:
        assert_close(a[key], b[key], msg=lambda text, key=key: f"{key}: {text}")
        assert a[key].isfinite().all()
        if a[key].shape[:2] == SIZE:
            assert (a[key][~MASK] == 0).all()
    if row.per_step:
        picked = TensorDict({key: x[MASK] for key, x in leaves(td)}, [int(MASK.sum())])
        assert_close(value(floats(clean), clean), losses.total(row.call(picked, hyper)))
    masked = row.call(dirty, hyper)
    for key in masked.keys():
        assert masked[key].isfinite().all(), key


@every_reducer
def test_a_trailing_axis_of_one_is_none(row):
    td, hyper = held(row)
    expected = row.call(td, hyper)
    for key in per_step(td):
        found = row.call(changed(td, {key: td.get(key).unsqueeze(-1)}), hyper)
        for name in expected.keys():
            assert_close(found[name], expected[name], msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("row", [row for row in REDUCERS if row.per_step], ids=lambda row: row.name)
def test_any_batch_size(row):
    td, hyper = held(row)
    whole = row.call(td, hyper, reduction="none")
    for part, pick in ((td[0], 0), (td[:, 2], (slice(None), 2)), (td[1:2, None], (1, None))):
        found = row.call(part, hyper, reduction="none")
        for key in (key for key in found.keys() if key.startswith("loss_")):
            assert_close(found[key], whole[key][pick].reshape(part.batch_size))


@every_reducer
def test_a_missing_key_is_named(row):
    td, hyper = held(row)
    full = row.call(td, hyper)
    for key, _ in leaves(td):
        without = td.exclude(key)
        try:
            found = row.call(without, hyper)
        except ValueError as error:
            text = str(error)
            assert text.startswith(f"{row.name}: the td has no ") and "its keys are" in text
            assert key not in row.optional, f"{key} is said to be optional"
            continue
        if key not in row.optional:  # it was not read at all
            for name in full.keys():
                assert_close(found[name], full[name], msg=lambda text, key=key: f"{key}: {text}")


@every_reducer
def test_a_wrong_dtype_is_named(row):
    td, hyper = held(row)
    full = row.call(td, hyper)
    for key, x in leaves(td):
        wrong = x.float() if x.dtype == torch.bool else x.long() if x.is_floating_point() else None
        if wrong is None:
            continue
        try:
            found = row.call(changed(td, {key: wrong}), hyper)
        except TypeError as error:
            assert str(error).startswith(f"{row.name}: ") and named(key) in str(error)
            continue
        for name in full.keys():  # not read
            assert_close(found[name], full[name], msg=lambda text, key=key: f"{key}: {text}")


@every_reducer
def test_a_wrong_shape_is_named(row):
    td, hyper = held(row)
    full = row.call(td, hyper)
    for key, x in leaves(td):
        if x.shape[:2] != SIZE:
            continue
        wrong = x.unsqueeze(-1).expand(*x.shape, 7) if x.dim() == 2 else x.unsqueeze(2)
        try:
            found = row.call(changed(td, {key: wrong.contiguous()}), hyper)
        except ValueError as error:
            assert str(error).startswith(f"{row.name}: ") and named(key).split(".")[-1] in str(
                error
            )
            continue
        for name in full.keys():
            assert_close(found[name], full[name], msg=lambda text, key=key: f"{key}: {text}")


@every_reducer
def test_float32_stays(row):
    td, hyper = held(row)
    single = {key: x.float() for key, x in leaves(td) if x.is_floating_point()}
    out = row.call(changed(td, single), dict(row.hyper))
    expected = row.call(td, hyper)
    for key in out.keys():
        if out[key].is_floating_point():
            assert out[key].dtype == torch.float32, key
        assert_close(out[key].double(), expected[key].double(), rtol=1e-3, atol=1e-4)


@every_reducer
def test_mapped_over_agents(row):
    """vmap over the td alone: the hyper-parameters are shared."""
    td, hyper = held(row)
    many = torch.stack([td, changed(td, {k: x * 0.9 for k, x in floats(td).items()})])
    found = vmap(lambda td: losses.total(row.call(td, hyper)))(many)
    assert_close(found, torch.stack([losses.total(row.call(x, hyper)) for x in many.unbind(0)]))
