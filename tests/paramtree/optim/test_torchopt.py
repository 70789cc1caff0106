"""torchopt's own grids of options, run on ours, on torch.optim and on torchopt itself.

Its tests hold torchopt against torch after five batches of a classifier with an unused parameter.
The grids here are theirs, down to all pairs of values; in ours, ``inplace`` is ``donate=True`` and
``use_accelerated_op``, its second road to the same numbers, is hyper-parameters as tensors.
torchopt corrects Adam's moments in float32, so against it 1e-5 is what can be asked,
and 1e-3 of a slope.
"""

import functools

import pytest
import torch
import torchopt
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import optim, tree
from tests.paramtree.optim.torchopt_grid import (
    BATCHES,
    cross_entropy,
    label,
    ours,
    pairs,
    start,
    torchopts,
    torchs,
)

torch.set_num_threads(1)

LRS = [1e-2, 1e-3, 1e-4]
BETAS = [(0.9, 0.999), (0.95, 0.9995)]
BOTH = [False, True]
DECAY = [0.0, 1e-2]
EXACT = {torch.float64: (1e-10, 1e-12), torch.float32: (1e-4, 1e-6)}
THEIRS = {torch.float64: (1e-5, 1e-6), torch.float32: (1e-4, 1e-6)}


def nesterov_has_momentum(case):
    return not case["nesterov"] or (case["momentum"] > 0 and case["dampening"] == 0)


def moments(**more):
    return {"betas": BETAS, "eps": [1e-8], "weight_decay": DECAY, **more}


# By name: torch's class, and the axes beside those that all of them have.
GRIDS = {
    "sgd": (
        torch.optim.SGD,
        {
            "dtype": [torch.float64, torch.float32],
            "momentum": [0.0, 0.1],
            "dampening": [0.0, 0.5],
            "nesterov": BOTH,
            "weight_decay": DECAY,
            "maximize": BOTH,
        },
    ),
    "adadelta": (
        torch.optim.Adadelta,
        {"rho": [0.9, 0.95], "eps": [1e-8], "weight_decay": DECAY},
    ),
    "adam": (torch.optim.Adam, moments(maximize=BOTH)),
    "radam": (torch.optim.RAdam, moments()),
    "adamax": (torch.optim.Adamax, moments()),
    "adamw": (torch.optim.AdamW, moments(maximize=BOTH)),
    "adagrad": (
        torch.optim.Adagrad,
        {
            "lr_decay": [0.0, 1e-2],
            "initial_accumulator_value": [0.0, 1e-1],
            "eps": [1e-8],
            "weight_decay": DECAY,
            "maximize": BOTH,
        },
    ),
    "rmsprop": (
        torch.optim.RMSprop,
        {
            "alpha": [0.9, 0.99],
            "eps": [1e-8],
            "momentum": [0.0, 0.1],
            "centered": BOTH,
            "weight_decay": DECAY,
        },
    ),
}
OWN = ("dtype", "inplace", "use_chain_flat", "use_accelerated_op")


def cases():
    for name, (_, axes) in GRIDS.items():
        every = {"dtype": [torch.float64], "lr": LRS, "inplace": BOTH, "use_chain_flat": BOTH}
        every |= {"use_accelerated_op": BOTH, **axes}
        allowed = nesterov_has_momentum if name == "sgd" else None
        for case in pairs(allowed, **every):
            yield pytest.param(name, case, id=f"{name}-{label(case)}")


def in_our_words(options, tensors=False):
    """Options of torch's, under our names."""
    names = {"alpha": "decay", "initial_accumulator_value": "initial_accumulator"}
    out = {}
    for key, value in options.items():
        if key == "betas":
            out["b1"], out["b2"] = value
        else:
            out[names.get(key, key)] = value
    if tensors:
        for key, value in out.items():
            if type(value) is float and value != 0:  # a 0 switches a part off in torch
                out[key] = torch.tensor(value, dtype=torch.float64)
    return out


def close(got, wanted, tolerance):
    assert tree.paths(got) == tree.paths(wanted)
    rtol, atol = tolerance
    assert_close(tree.leaves(got), tree.leaves(wanted), rtol=rtol, atol=atol)


@pytest.mark.parametrize(("name", "case"), list(cases()))
def test_five_batches(name, case):
    options = {key: value for key, value in case.items() if key not in OWN}
    params, dtype = start(case["dtype"]), case["dtype"]
    tensors = case["use_accelerated_op"]
    make = functools.partial(getattr(optim, name), **in_our_words(options, tensors))
    got = ours(make, params, donate=case["inplace"])
    assert {leaf.dtype for leaf in tree.leaves(got)} == {dtype}

    wanted = torchs(lambda leaves: GRIDS[name][0](leaves, **options), params)
    close(got, wanted, EXACT[dtype])

    theirs = functools.partial(getattr(torchopt, name), **options)
    close(got, torchopts(theirs, params, case["inplace"], case["use_chain_flat"]), THEIRS[dtype])


# -------------------------------------------------------------------------------- trees, clipping


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("maximize", BOTH)
@pytest.mark.parametrize("empty", [{}, {"a": {}, "b": {"c": {}}}], ids=["empty", "nested"])
def test_trees_without_leaves(name, maximize, empty):
    nothing = tree.lock(TensorDict({key: TensorDict(x) for key, x in empty.items()}))
    optimizer = getattr(optim, name)(1e-3, maximize=maximize)
    updates, state = optimizer.update(nothing, optimizer.init(nothing), nothing)
    assert tree.leaves(updates) == []
    assert tree.leaves(optim.apply_updates(nothing, updates)) == []
    optimizer.update(nothing, state, nothing)


CLIPPED = {**GRIDS["sgd"][1], "max_norm": [1.0, 10.0, 0.1], "lr": LRS}


@pytest.mark.parametrize("case", pairs(nesterov_has_momentum, **CLIPPED), ids=label)
def test_clipped_gradients(case):
    options = {key: x for key, x in case.items() if key not in ("dtype", "max_norm")}
    bound, params = case["max_norm"], start(case["dtype"])
    clip = optim.clip_by_global_norm(bound)
    got = ours(lambda: optim.chain(clip=clip, sgd=optim.sgd(**in_our_words(options))), params)
    wanted = torchs(
        lambda leaves: torch.optim.SGD(leaves, **options),
        params,
        before=lambda leaves: torch.nn.utils.clip_grad_norm_(leaves, bound),
    )
    close(got, wanted, (1e-5, 1e-6))  # theirs divides by the norm + 1e-6


def test_nan_to_zero():
    grads = TensorDict({"a": torch.tensor([float("nan"), 1.0]), "b": torch.tensor(float("nan"))})
    transform = optim.zero_nans()
    updates, _ = transform.update(grads, transform.init(grads), grads)
    assert updates["a"].tolist() == [0.0, 1.0] and updates["b"].item() == 0.0
    assert grads["a"].isnan().any()


def test_masked_leaves_come_back_as_they_were():
    nan = torch.tensor(float("nan"))
    grads = TensorDict({"a": nan, "b": nan, "c": nan})
    transform = optim.masked(optim.zero_nans(), "a", "c")
    updates, _ = transform.update(grads, transform.init(grads), grads)
    assert updates["a"] == 0 and updates["c"] == 0 and updates["b"].isnan()


def test_identity_in_a_chain_changes_nothing():
    params = start(torch.float64)
    alone = ours(lambda: optim.adam(1e-2), params)
    both = ours(
        lambda: optim.chain(a=optim.identity(), adam=optim.adam(1e-2), b=optim.identity()), params
    )
    close(both, alone, (0, 0))


# ---------------------------------------------------------------------------------------- schedules

DECAYS = {
    "init": [1.0, 1e-1],
    "rate": [1e-2, 1e-3],
    "begin": [1, 5],
    "steps": [10, 100],
    "staircase": BOTH,
    "end": [0.0, None, 8e-1],
}


@pytest.mark.parametrize("case", pairs(**DECAYS), ids=label)
def test_exponential_decay(case):
    schedule = optim.exponential_decay(
        case["init"], case["steps"], case["rate"], case["begin"], case["staircase"], case["end"]
    )
    for count in range(case["begin"], case["steps"]):
        power = (count - case["begin"]) / case["steps"]
        power = float(int(power)) if case["staircase"] else power
        wanted = case["init"] * case["rate"] ** power
        wanted = wanted if case["end"] is None else max(wanted, case["end"])
        assert_close(float(schedule(torch.tensor(count))), wanted, rtol=1e-6, atol=1e-12)


POLYNOMIALS = {"init": [1.0, 0.1], "end": [0.0, 0.5], "power": [1.0, 2.0], "begin": [0, 4]}


@pytest.mark.parametrize("case", pairs(**POLYNOMIALS), ids=label)
def test_polynomial(case):
    args = case["init"], case["end"], case["power"], 10, case["begin"]
    mine, theirs = optim.polynomial(*args), torchopt.schedule.polynomial_schedule(*args)
    for count in range(20):
        wanted = float(theirs(torch.tensor(count, dtype=torch.float64)))
        assert_close(float(mine(torch.tensor(count))), wanted, rtol=1e-10, atol=1e-12)


SCHEDULED = {
    "name": ["sgd", "adam", "adamw", "adagrad", "rmsprop"],
    "dtype": [torch.float64, torch.float32],
    "lr": [1e-2, 1e-3],
    "total": [5, 10],
    "inplace": BOTH,
    "weight_decay": DECAY,
}


@pytest.mark.parametrize("case", pairs(**SCHEDULED), ids=label)
def test_a_linear_schedule(case):
    name, lr, total = case["name"], case["lr"], case["total"]
    options = {"weight_decay": case["weight_decay"]}
    if name == "adagrad":
        options["eps"] = 1e-8
    params = start(case["dtype"])
    rate = optim.linear(lr, 0.1 * lr, total)
    got = ours(lambda: getattr(optim, name)(rate, **options), params, donate=case["inplace"])

    def linear(optimizer):
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=total)

    kind = GRIDS[name][0]
    wanted = torchs(lambda leaves: kind(leaves, lr=lr, **options), params, after=linear)
    close(got, wanted, EXACT[case["dtype"]])
    theirs = torchopt.schedule.linear_schedule(lr, 0.1 * lr, total, 0)
    make = functools.partial(getattr(torchopt, name), theirs, **options)
    close(got, torchopts(make, params, case["inplace"]), THEIRS[case["dtype"]])


# --------------------------------------------------------------------------------- meta-gradients

MAML = {
    "inner_lr": LRS,
    "inner_update": [2, 3, 5],
    "betas": BETAS,
    "eps": [1e-8],
    "eps_root": [0.0, 1e-8],
    "weight_decay": DECAY,
    "maximize": BOTH,
    "use_accelerated_op": BOTH,
    "moment_requires_grad": BOTH,
}


@pytest.mark.parametrize("case", pairs(**MAML), ids=label)
def test_meta_gradients_through_adam(case):
    """d(loss after inner updates on one batch) / d(initial params), and the outer step it makes.

    The unused parameter's gradient stays out of theirs: with ``eps_root`` 0 it is NaN there.
    """
    batch, params = BATCHES[0], start(torch.float64)
    options = {key: case[key] for key in ("betas", "eps", "eps_root", "weight_decay", "maximize")}

    def outer(p):
        lr = torch.tensor(case["inner_lr"]) if case["use_accelerated_op"] else case["inner_lr"]
        lr = lr.double() if isinstance(lr, torch.Tensor) else lr
        optimizer = optim.adam(lr, **in_our_words(options))
        state = optimizer.init(p)
        for _ in range(case["inner_update"]):
            grads = paramtree.grad(lambda q: cross_entropy(q, batch))(p)
            p, state = optim.step(optimizer, grads, state, p)
        return cross_entropy(p, batch)

    got = paramtree.grad(outer)(params)
    assert all([leaf.isfinite().all() for leaf in tree.leaves(got)])

    structure = tree.flatten(params)[1]
    keep = [i for i, path in enumerate(tree.paths(params)) if path != ("unused",)]
    first = tuple([leaf.clone().requires_grad_() for leaf in tree.leaves(params)])
    inner = torchopt.adam(
        case["inner_lr"], moment_requires_grad=case["moment_requires_grad"], **options
    )
    leaves, state = first, inner.init(first)
    for _ in range(case["inner_update"]):
        loss = cross_entropy(tree.unflatten(structure, list(leaves)), batch)
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        updates, state = inner.update(grads, state, params=leaves, inplace=False)
        leaves = torchopt.apply_updates(leaves, updates, inplace=False)
    loss = cross_entropy(tree.unflatten(structure, list(leaves)), batch)
    wanted = torch.autograd.grad(loss, [first[i] for i in keep])
    mine = [tree.leaves(got)[i] for i in keep]
    assert_close(mine, list(wanted), rtol=1e-4, atol=1e-7)


# d(sum of p_2) / d(rate) after two steps on the sum of p^3 from (1, 2) with rate 0.1.
PUBLISHED = {
    "sgd": -11.37,
    "adam": -3.96269034,
    "adamw": -4.01788357,
    "radam": -20.19473684,
    "adadelta": -0.01281049,
    "adagrad": -3.17608541,
    "adamax": -3.70565233,
    "rmsprop": -17.85256031,
}
TORCHOPTS_EPS = {"radam": 1e-6, "adamax": 1e-6}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_slope_in_the_rate_that_was_published(name):
    """Their default eps, and its correction in float64 here and float32 there."""
    options = {"eps": TORCHOPTS_EPS[name]} if name in TORCHOPTS_EPS else {}
    first = TensorDict({"p": torch.tensor([1.0, 2.0], dtype=torch.float64)})

    def end(lr):
        optimizer, p = getattr(optim, name)(lr, **options), first
        state = optimizer.init(p)
        for _ in range(2):
            grads = paramtree.grad(lambda q: (q["p"] ** 3).sum())(p)
            p, state = optim.step(optimizer, grads, state, p)
        return p["p"].sum()

    got = paramtree.grad(end)(torch.tensor(0.1, dtype=torch.float64))
    assert_close(got.item(), PUBLISHED[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", GRIDS)
def test_slopes_after_five_steps_are_torchopts(name):
    """d(loss after the five batches) / d(rate) and / d(initial params), at generic numbers."""
    options = {"weight_decay": 0.01}
    options |= {"momentum": 0.5} if name in ("sgd", "rmsprop") else {}
    options |= {"eps": 1e-3} if name != "sgd" else {}
    params, rate = start(torch.float64), torch.tensor(0.02, dtype=torch.float64)

    def outer(p, lr):
        optimizer = getattr(optim, name)(lr, **options)
        state = optimizer.init(p)
        for batch in BATCHES:
            grads = paramtree.grad(lambda q, batch=batch: cross_entropy(q, batch))(p)
            p, state = optim.step(optimizer, grads, state, p)
        return cross_entropy(p, BATCHES[0])

    got = paramtree.grad(outer, argnums=(0, 1))(params, rate)

    structure = tree.flatten(params)[1]
    first = tuple([leaf.clone().requires_grad_() for leaf in tree.leaves(params)])
    lr = rate.clone().requires_grad_()
    more = {} if name in ("adagrad", "rmsprop") else {"moment_requires_grad": True}
    # torchopt refuses a tensor as a rate, and takes a function of the count that gives one
    inner = getattr(torchopt, name)(lambda count: lr, **options, **more)
    leaves, state = first, inner.init(first)
    for batch in BATCHES:
        loss = cross_entropy(tree.unflatten(structure, list(leaves)), batch)
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        updates, state = inner.update(grads, state, params=leaves, inplace=False)
        leaves = torchopt.apply_updates(leaves, updates, inplace=False)
    loss = cross_entropy(tree.unflatten(structure, list(leaves)), BATCHES[0])
    wanted = torch.autograd.grad(loss, [*first, lr])
    assert_close([*tree.leaves(got[0]), got[1]], list(wanted), rtol=1e-3, atol=1e-6)
