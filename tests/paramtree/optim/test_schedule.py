"""Every schedule: optax's numbers, torch's schedulers, and derivatives at all counts.

optax's are tests/data/optax_schedules.npz, recorded by tests/fixtures/optax_schedules.py.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from paramtree import check_grads, grad, optim, tree, vmap
from paramtree.optim import (
    constant,
    cosine_decay,
    exponential_decay,
    join,
    linear,
    piecewise_constant,
    polynomial,
    warmup_cosine_decay,
)

D = torch.float64
DATA = Path(__file__).parents[2] / "data" / "optax_schedules.npz"


def of_cycles(init, peak, end, exponent):
    first = {"init": init, "peak": peak, "warmup_steps": 3, "decay_steps": 7}
    second = {"init": init, "peak": end, "warmup_steps": 0, "decay_steps": 5}
    return optim.sgdr([first | {"end": end, "exponent": exponent}, second])


def joined(start, peak, rate):
    parts = [linear(start, peak, 4), constant(peak), exponential_decay(peak, 2, rate)]
    return join(parts, [4, 7])


# a function of the real hyper-parameters, and a value of each
SCHEDULES = {
    "constant": (lambda value: constant(value), {"value": 0.3}),
    "linear": (lambda start, end: linear(start, end, 5, 2), {"start": 0.3, "end": 0.1}),
    "polynomial": (
        lambda start, end, power: polynomial(start, end, power, 5, 2),
        {"start": 0.3, "end": 0.1, "power": 1.7},
    ),
    "piecewise_constant": (
        lambda init, a, b: piecewise_constant(init, {3: a, 8: b}),
        {"init": 0.3, "a": 0.5, "b": 1.5},
    ),
    "exponential_decay": (
        lambda init, rate, end: exponential_decay(init, 2, rate, 1, end=end),
        {"init": 0.3, "rate": 0.7, "end": 0.1},
    ),
    "exponential_growth": (
        lambda init, rate, end: exponential_decay(init, 2, rate, 1, end=end),
        {"init": 0.3, "rate": 1.4, "end": 0.6},
    ),
    "staircase": (
        lambda init, rate: exponential_decay(init, 3, rate, 1, True),
        {"init": 0.3, "rate": 0.7},
    ),
    "cosine_decay": (
        lambda init, alpha, exponent: cosine_decay(init, 8, alpha, exponent),
        {"init": 0.3, "alpha": 0.2, "exponent": 1.3},
    ),
    "warmup_cosine_decay": (
        lambda init, peak, end, exponent: warmup_cosine_decay(init, peak, 3, 9, end, exponent),
        {"init": 0.1, "peak": 0.7, "end": 0.05, "exponent": 1.3},
    ),
    "join": (joined, {"start": 0.1, "peak": 0.6, "rate": 0.7}),
    "linear_onecycle": (
        lambda peak, div, final: optim.linear_onecycle(10, peak, 0.3, 0.8, div, final),
        {"peak": 0.8, "div": 4.0, "final": 10.0},
    ),
    "cosine_onecycle": (
        lambda peak, div, final: optim.cosine_onecycle(10, peak, 0.3, div, final),
        {"peak": 0.8, "div": 4.0, "final": 10.0},
    ),
    "sgdr": (of_cycles, {"init": 0.1, "peak": 0.7, "end": 0.05, "exponent": 1.3}),
    "cyclic": (lambda base, peak: optim.cyclic(base, peak, 3, 2), {"base": 0.1, "peak": 0.7}),
    "triangular2": (
        lambda base, peak: optim.cyclic(base, peak, 3, mode="triangular2"),
        {"base": 0.1, "peak": 0.7},
    ),
    "exp_range": (
        lambda base, peak, gamma: optim.cyclic(base, peak, 3, 2, "exp_range", gamma),
        {"base": 0.1, "peak": 0.7, "gamma": 0.9},
    ),
}
ALL = pytest.mark.parametrize(("make", "hyper"), SCHEDULES.values(), ids=list(SCHEDULES))
COUNTS = torch.arange(14)


def tensors(hyper, dtype=D):
    return {name: torch.tensor(value, dtype=dtype) for name, value in hyper.items()}


# ------------------------------------------------------------------------------ all schedules


@ALL
def test_a_curve_is_its_values(make, hyper):
    schedule = make(**hyper)
    curve = schedule(COUNTS)
    assert curve.dtype == D
    assert_close(curve, torch.stack([torch.as_tensor(schedule(n), dtype=D) for n in COUNTS]))
    assert_close(curve, torch.tensor([float(schedule(n)) for n in COUNTS.tolist()], dtype=D))
    grid = COUNTS.view(2, 7)
    assert torch.equal(schedule(grid), curve.view(2, 7))
    assert torch.equal(schedule(COUNTS), curve) and torch.equal(COUNTS, torch.arange(14))
    assert_close(make(**tensors(hyper))(COUNTS), curve, rtol=1e-14, atol=0)
    single = make(**tensors(hyper, torch.float32))(COUNTS)
    assert_close(single, curve, rtol=1e-5, atol=1e-7, check_dtype=False)
    before = schedule(torch.tensor([-3, 0]))
    assert torch.equal(before[0], before[1])
    assert schedule(torch.zeros(0, dtype=torch.int64)).shape == (0,)


@ALL
def test_right_derivatives_of_first_and_second_order_at_all_counts(make, hyper):
    h = tensors(hyper)
    check_grads(lambda h: make(**h)(COUNTS), h)
    check_grads(lambda h: grad(lambda g: make(**g)(COUNTS).sin().sum())(h), h, rtol=1e-4)
    for count in COUNTS:  # one at a time, as an optimizer asks; nothing hides in a sum
        slope = grad(lambda g, n=count: make(**g)(n).sin())
        assert all(x.isfinite() for x in tree.leaves(slope(h)))
        curve = grad(lambda g, slope=slope: sum(x.sin() for x in slope(g).values()))(h)
        assert all(x.isfinite() for x in tree.leaves(curve))


@ALL
def test_tasks_have_counts_and_values_of_their_own(make, hyper):
    mapped = vmap(lambda n: torch.as_tensor(make(**hyper)(n), dtype=D))(COUNTS)
    assert_close(mapped, make(**hyper)(COUNTS))
    h = tensors(hyper)
    for name in h:
        many = h[name] * torch.tensor([1.0, 0.9, 1.1], dtype=D)
        got = vmap(lambda x, name=name: make(**{**h, name: x})(COUNTS))(many)
        each = [make(**{**h, name: x})(COUNTS) for x in many]
        assert_close(got, torch.stack(each), rtol=1e-14, atol=1e-16)
    both = vmap(lambda n, x: make(**{**h, name: x})(n))(COUNTS[:3], many)
    assert_close(both, torch.stack([x[n] for n, x in enumerate(each)]))


QUICK = ("sgdr", "staircase")
COMPILED = [
    pytest.param(*row, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for name, row in SCHEDULES.items()
]


@pytest.mark.parametrize(("make", "hyper"), COMPILED)
def test_compiled_gradients(make, hyper):
    def slopes(h, count):
        return grad(lambda g: make(**g)(count).sin().sum())(h), make(**h)(count)

    h = tensors(hyper)
    run = torch.compile(slopes, fullgraph=True, backend="aot_eager")
    assert_close(run(h, COUNTS), slopes(h, COUNTS), rtol=1e-13, atol=1e-15)
    torch._dynamo.reset()


@ALL
def test_two_backward_passes_through_one_schedule(make, hyper):
    h = {name: x.requires_grad_() for name, x in tensors(hyper).items()}
    schedule = make(**h)
    once, again = [torch.autograd.grad(schedule(COUNTS).sum(), [*h.values()]) for _ in range(2)]
    assert_close(once, again)


@ALL
@pytest.mark.parametrize("device", ["meta"])
def test_values_are_made_where_the_counts_are(make, hyper, device):
    assert make(**hyper)(COUNTS.to(device)).device.type == device


@ALL
@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "a NoneType"),
        (1.0, "a float"),
        (True, "a bool"),
        (torch.tensor(1.0), "torch.float32"),
        (torch.tensor(True), "torch.bool"),
    ],
)
def test_what_is_no_count_is_refused(make, hyper, count, text):
    with pytest.raises(TypeError, match=f": count is {text}, expected an int or an int64 tensor"):
        make(**hyper)(count)


# ------------------------------------------------------------------------------ optax


def recorded():
    cases = defaultdict(lambda: defaultdict(dict))
    with np.load(DATA) as file:
        for name, entries in json.loads(file["layout"].tobytes()).items():
            values, start = file[name], 0
            for key, dtype, shape in entries:
                number, key = key.split("/", 1)
                end = start + int(np.prod(shape))
                array = values[start:end].reshape(shape).astype(dtype)
                cases[name][int(number)][key], start = torch.tensor(array), end
            assert start == values.size
    return [(name, case) for name, numbers in cases.items() for case in numbers.values()]


def table(a):
    return dict(zip(a["boundaries"].tolist(), a["scales"].tolist(), strict=True))


def thirds(a):
    parts = [linear(a["start"], a["peak"], 4), constant(a["peak"])]
    parts.append(exponential_decay(a["peak"], 2, a["rate"]))
    return join(parts, a["boundaries"].tolist())


def rows(a):
    names = ("init", "end", "exponent", "peak", "warmup_steps", "decay_steps")
    whole = ("warmup_steps", "decay_steps")
    columns = [a[name].tolist() if name in whole else a[name].unbind() for name in names]
    return optim.sgdr([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])


def step(a, name):
    return int(a[name])


# optax's arguments in our words
OURS = {
    "constant": lambda a: constant(a["value"]),
    "linear": lambda a: linear(
        a["init_value"], a["end_value"], step(a, "transition_steps"), step(a, "transition_begin")
    ),
    "polynomial": lambda a: polynomial(
        a["init_value"],
        a["end_value"],
        a["power"],
        step(a, "transition_steps"),
        step(a, "transition_begin"),
    ),
    "piecewise_constant": lambda a: piecewise_constant(a["init_value"], table(a)),
    "exponential_decay": lambda a: exponential_decay(
        a["init_value"],
        step(a, "transition_steps"),
        a["decay_rate"],
        step(a, "transition_begin"),
        bool(a["staircase"]),
        a.get("end_value"),
    ),
    "cosine_decay": lambda a: cosine_decay(
        a["init_value"], step(a, "decay_steps"), a["alpha"], a["exponent"]
    ),
    "warmup_cosine_decay": lambda a: warmup_cosine_decay(
        a["init_value"],
        a["peak_value"],
        step(a, "warmup_steps"),
        step(a, "decay_steps"),
        a["end_value"],
        a["exponent"],
    ),
    "join": thirds,
    "linear_onecycle": lambda a: optim.linear_onecycle(
        step(a, "transition_steps"),
        a["peak_value"],
        float(a["pct_start"]),
        float(a["pct_final"]),
        a["div_factor"],
        a["final_div_factor"],
    ),
    "cosine_onecycle": lambda a: optim.cosine_onecycle(
        step(a, "transition_steps"),
        a["peak_value"],
        float(a["pct_start"]),
        a["div_factor"],
        a["final_div_factor"],
    ),
    "sgdr": rows,
}
RECORDED = recorded()


@pytest.mark.parametrize(("name", "case"), RECORDED, ids=[name for name, _ in RECORDED])
def test_optax(name, case):
    args = {key[3:]: x for key, x in case.items() if key.startswith("in/")}
    wanted = {key[5:]: x for key, x in case.items() if key.startswith("grad/")}
    leaves = {key: args[key].clone().requires_grad_() for key in wanted}
    values = OURS[name]({**args, **leaves})(args["count"])
    assert_close(values, case["out"], rtol=1e-12, atol=1e-14)
    slopes = torch.autograd.grad((values * case["w"]).sum(), list(leaves.values()))
    for key, slope in zip(leaves, slopes, strict=True):
        if wanted[key].isfinite().all():  # theirs is NaN where 0 has a power
            assert_close(slope, wanted[key], rtol=1e-10, atol=1e-13, msg=f"{name}: {key}")
        assert slope.isfinite().all()


def test_every_schedule_of_optax_is_there():
    assert {name for name, _ in RECORDED} == set(OURS)


# ------------------------------------------------------------------------------ torch


def torchs(scheduler, lr, steps, **options):
    """Rates of a torch scheduler, one a step."""
    leaf = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=lr, momentum=0.9)
    theirs = scheduler(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    return torch.tensor(rates, dtype=D)


SCHEDULERS = torch.optim.lr_scheduler
TORCH = {
    "LinearLR": (
        {"start_factor": 1.0, "end_factor": 0.2, "total_iters": 5},
        linear(0.7, 0.14, 5),
    ),
    "PolynomialLR": ({"total_iters": 6, "power": 1.7}, polynomial(0.7, 0.0, 1.7, 6)),
    "ConstantLR": ({"factor": 0.5, "total_iters": 4}, piecewise_constant(0.35, {4: 2.0})),
    "ExponentialLR": ({"gamma": 0.9}, exponential_decay(0.7, 1, 0.9)),
    "StepLR": ({"step_size": 3, "gamma": 0.5}, exponential_decay(0.7, 3, 0.5, staircase=True)),
    "MultiStepLR": (
        {"milestones": [2, 7], "gamma": 0.5},
        piecewise_constant(0.7, {2: 0.5, 7: 0.5}),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch(name):
    options, ours = TORCH[name]
    wanted = torchs(getattr(SCHEDULERS, name), 0.7, 14, **options)
    assert_close(ours(COUNTS), wanted, rtol=1e-12, atol=1e-15)


def test_torchs_cosine_goes_up_again_behind_its_end():
    wanted = torchs(SCHEDULERS.CosineAnnealingLR, 0.7, 14, T_max=6, eta_min=0.14)
    ours = cosine_decay(0.7, 6, 0.2)(COUNTS)
    assert_close(ours[:7], wanted[:7], rtol=1e-12, atol=1e-15)
    assert_close(ours[6:], torch.full((8,), 0.14, dtype=D))
    assert wanted[8] > wanted[6] + 0.1


# ------------------------------------------------------------------------------ one by one


def test_linear_goes_through_both_ends_and_stays():
    got = [float(linear(0.3, 0.1, 4)(count)) for count in range(7)]
    assert_close(got, [0.3, 0.25, 0.2, 0.15, 0.1, 0.1, 0.1], rtol=1e-15, atol=0)
    assert got[0] == 0.3 and got[4] == 0.1


def test_slopes_in_the_ends():
    start, end = torch.tensor(0.3), torch.tensor(0.1, dtype=D)
    for i, count in enumerate(torch.arange(7)):
        fraction = min(i / 4, 1.0)
        for argnums, wanted in [(0, 1 - fraction), (1, fraction)]:
            slope = torch.func.grad(lambda a, b, n=count: linear(a, b, 4)(n), argnums)(start, end)
            assert_close(float(slope), wanted, rtol=1e-6, atol=0)


def test_constant():
    value = torch.tensor(0.3)
    assert constant(value)(torch.tensor(5)) is value
    assert constant(0.3)(torch.tensor(5)) == 0.3 and constant(0.3)(5) == 0.3


# what is 0 to a power, infinite, or the same on both sides
CORNERS = {
    "power 0": (lambda x: polynomial(0.3, 0.1, x, 4), 0.0),
    "power below 1": (lambda x: polynomial(0.3, 0.1, x, 4), 0.5),
    "exponent 0": (lambda x: cosine_decay(0.3, 4, 0.1, x), 0.0),
    "warmup exponent 0": (lambda x: warmup_cosine_decay(0.1, 0.3, 2, 4, 0.05, x), 0.0),
    "rate 1": (lambda x: exponential_decay(0.3, 2, x, end=0.3), 1.0),
    "rate to infinity": (lambda x: exponential_decay(0.3, 1, x, end=0.9), 1e200),
    "peak 0": (lambda x: warmup_cosine_decay(0.1, x, 2, 4, 0.05), 0.0),
    "scale 0": (lambda x: piecewise_constant(0.3, {2: x, 3: x}), 0.0),
    "gamma 0": (lambda x: optim.cyclic(0.1, 0.3, 2, 2, "exp_range", x), 0.0),
    "rate 0": (lambda x: exponential_decay(0.3, 2, x, staircase=True), 0.0),
}


@pytest.mark.parametrize("name", CORNERS)
def test_no_nan_in_a_corner(name):
    make, value = CORNERS[name]
    for count in torch.arange(7):
        x = torch.tensor(value, dtype=D, requires_grad=True)
        y = make(x)(count)
        (slope,) = torch.autograd.grad(y + 0 * x, x, create_graph=True)
        (curve,) = torch.autograd.grad(slope + 0 * x, x)
        assert y.isfinite() and slope.isfinite() and curve.isfinite()
        assert_close(y, torch.as_tensor(make(value)(count), dtype=D))


def test_the_zeroth_power_of_nothing_is_one():
    ones = torch.ones(7, dtype=D)
    for exponent in (0.0, torch.tensor(0.0)):
        assert torch.equal(polynomial(1.0, 0.0, exponent, 4)(torch.arange(7)), ones)
        assert torch.equal(cosine_decay(1.0, 4, 0.0, exponent)(torch.arange(7)), ones)


def test_a_rate_of_0_is_0_behind_the_first_step_where_optax_stays():
    got = exponential_decay(0.3, 2, 0.0)(torch.arange(4))
    assert_close(got, torch.tensor([0.3, 0.0, 0.0, 0.0], dtype=D))


def test_a_peak_of_0_goes_on_to_the_end_where_optax_stays():
    got = warmup_cosine_decay(0.2, 0.0, 2, 4, 0.1)(torch.arange(6))
    assert_close(got, torch.tensor([0.2, 0.1, 0.0, 0.05, 0.1, 0.1], dtype=D))


def test_join_calls_each_part_with_counts_of_its_own_alone():
    seen = []

    def part(name):
        def schedule(count):
            seen.append((name, count.min().item(), count.max().item()))
            return torch.zeros(count.shape, dtype=D)

        return schedule

    join([part("a"), part("b"), part("c")], [4, 6])(torch.arange(20))
    assert seen == [("a", 0, 3), ("b", 0, 1), ("c", 0, 13)]
    x = torch.tensor(0.5, dtype=D, requires_grad=True)
    bounded = join([lambda n: x * (4.0 - n).sqrt(), lambda n: x.expand(n.shape)], [4])
    (slope,) = torch.autograd.grad(bounded(torch.arange(9)).sum(), x)  # the root's slope at 0
    assert_close(float(slope), sum((4 - n) ** 0.5 for n in range(4)) + 5)


def test_join_keeps_digits_of_plain_numbers():
    got = join([constant(0.1), constant(0.2)], [2])(torch.arange(4))
    assert torch.equal(got, torch.tensor([0.1, 0.1, 0.2, 0.2], dtype=D))
    nested = join([join([constant(1.0), linear(0.0, 1.0, 2)], [1]), constant(5.0)], [3])
    assert nested(torch.arange(5)).tolist() == [1.0, 0.0, 0.5, 5.0, 5.0]


def test_an_optimizer_reads_them():
    params = tree.new({"w": torch.ones(3, dtype=D)})
    optimizer = optim.sgd(warmup_cosine_decay(0.0, 0.5, 2, 6))
    state, rates = optimizer.init(params), []
    for _ in range(6):
        updates, state = optimizer.update(params, state, params)
        rates.append(-updates["w"][0])
    assert_close(torch.stack(rates), warmup_cosine_decay(0.0, 0.5, 2, 6)(torch.arange(6)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: linear(0.1, 0.2, 0), ValueError, "linear: steps is 0, expected at least 1"),
        (lambda: linear(0.1, 0.2, 2.5), TypeError, "linear: steps is a float, expected an int"),
        (lambda: linear(0.1, 0.2, True), TypeError, "linear: steps is a bool, expected an int"),
        (lambda: linear(0.1, 0.2, 3, -1), ValueError, "linear: begin is -1, expected at least 0"),
        (lambda: linear(0.1, torch.ones(2), 3), ValueError, r"linear: end has shape \(2,\)"),
        (lambda: linear("x", 0.2, 3), TypeError, "linear: start is a str"),
        (lambda: linear(constant(0.1), 0.2, 3), TypeError, "linear: start is a function"),
        (lambda: constant(None), TypeError, "constant: value is a NoneType"),
        (lambda: constant(float("nan")), ValueError, "constant: value is nan"),
        (lambda: polynomial(1.0, 0.0, -1.0, 3), ValueError, "polynomial: power is -1.0"),
        (
            lambda: piecewise_constant(0.1, [(3, 0.1)]),
            TypeError,
            "piecewise_constant: boundaries_and_scales is a list, expected a mapping",
        ),
        (
            lambda: piecewise_constant(0.1, {3: -0.1}),
            ValueError,
            "piecewise_constant: the scale at 3 is -0.1, expected at least 0",
        ),
        (
            lambda: piecewise_constant(0.1, {0.5: 0.1}),
            TypeError,
            "piecewise_constant: a boundary is a float, expected an int",
        ),
        (
            lambda: exponential_decay(0.1, 3, -0.5),
            ValueError,
            "exponential_decay: rate is -0.5, expected at least 0",
        ),
        (lambda: exponential_decay(0.1, 3, 0.5, end="x"), TypeError, "decay: end is a str"),
        (lambda: exponential_decay(0.1, 3, 0.5, 0, 1), TypeError, "decay: staircase is a int"),
        (lambda: cosine_decay(0.1, 0), ValueError, "cosine_decay: steps is 0"),
        (
            lambda: warmup_cosine_decay(0.1, 0.2, 5, 5),
            ValueError,
            "decay_steps is 5, expected more than warmup_steps, which is 5",
        ),
        (lambda: join([], []), ValueError, "join: schedules is empty"),
        (
            lambda: join([constant(0.1)], [3]),
            ValueError,
            "join: boundaries has 1 entries, expected 0, one fewer than schedules",
        ),
        (lambda: join([0.1], []), TypeError, "join: schedule 0 is a float, expected a schedule"),
        (lambda: join(constant(0.1), []), TypeError, "join: schedules is a function"),
        (lambda: join([constant(0.1)] * 2, 3), TypeError, "join: boundaries is a int"),
        (
            lambda: join([constant(0.1)] * 3, [5, 3]),
            ValueError,
            r"join: boundaries is \[5, 3\], expected rising numbers",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
