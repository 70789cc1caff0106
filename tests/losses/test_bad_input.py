"""Bad input: what is wrong, where, what was got and what was wanted, by the function it was given.

``test_every_reducer`` has missing keys, dtypes and shapes of a reducer's entries. Here are the
functions of tensors, the estimators, ranges, targets beside what would make them, time, and what is
not a tensor at all.
"""

import inspect
import math
import re

import pytest
import torch

import losses
from paramtree import tree
from tests.contract.case import D, Function, Reducer, numbers
from tests.contract.cases import LOSSES
from tests.losses.refusals import SIZE, refused, steps

REDUCERS = [row for row in LOSSES if isinstance(row, Reducer)]
FUNCTIONS = [row for row in LOSSES if isinstance(row, Function)]
every_reducer = pytest.mark.parametrize("row", REDUCERS, ids=lambda row: row.name)
every_function = pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.name)


def tensors(row):
    return {k: x for k, x in row.args().items() if isinstance(x, torch.Tensor)}


def made(row):
    """A td from which the reducer makes its targets, and the keywords for that."""
    options = {"subset": [0, 1]} if row.name == "redq_critic_loss" else {}
    return row.td(), {**row.hyper, **row.target_hyper, **options}


def finished(row):
    hyper = tree.entries(numbers({**row.hyper, **row.target_hyper}))
    td = row.td() if row.targets is None else row.targets(row.td(), hyper)
    return td, dict(row.hyper)


# ----------------------------------------------------------------------------- functions of tensors


@every_function
def test_a_dtype(row):
    for name, x in tensors(row).items():
        if x.is_floating_point():
            wrong = [x.long(), x.bool(), x.to(torch.complex64)]
        else:
            wrong = [x.double(), x.long() if x.dtype == torch.bool else x.bool()]
        for other in wrong:
            got = str(other.dtype).removeprefix("torch.")
            call = {**row.args(), name: other}
            refused(lambda call=call: row.call(call, row.hyper), row.name, TypeError, name, got)


@every_function
def test_what_is_no_tensor(row):
    for name, x in tensors(row).items():
        kinds = {"list": x.tolist(), "str": "x", "ndarray": x.numpy()}
        for kind, other in kinds.items():
            call = {**row.args(), name: other}
            if kind != "list" or x.dim():
                refused(
                    lambda call=call: row.call(call, row.hyper), row.name, TypeError, name, kind
                )


@every_function
def test_a_shape(row):
    """Whatever is refused is refused in words; and the wrong rank of one argument is refused."""
    for name, x in tensors(row).items():
        for other in (x.unsqueeze(0).expand(7, *x.shape), x[..., None].expand(*x.shape, 7), x[:0]):
            call = {**row.args(), name: other}
            try:
                row.call(call, row.hyper)
            except (ValueError, TypeError) as error:
                assert str(error).startswith(f"{row.name}: "), error


@every_function
def test_no_numbers_at_all(row):
    """Each tensor without an element: a result or an error in words."""
    empty = {name: x[:0] if x.dim() else x for name, x in tensors(row).items()}
    last = {name: x[..., :0] if x.dim() > 1 else x for name, x in tensors(row).items()}
    for call in ({**row.args(), **empty}, {**row.args(), **last}):
        try:
            row.call(call, row.hyper)
        except (ValueError, TypeError) as error:
            assert str(error).startswith(f"{row.name}: "), error


HYPERS = [
    pytest.param(row, name, id=f"{row.name}-{name}") for row in FUNCTIONS for name in row.hyper
]


@pytest.mark.parametrize(("row", "name"), HYPERS)
def test_a_hyper_parameter_of_a_function(row, name):
    def call(value):
        return lambda: row.call(row.args(), {**row.hyper, name: value})

    for value, got in ((True, "a bool"), ("0.1", "a str"), ([1.0], "a list"), (1j, "a complex")):
        refused(call(value), row.name, TypeError, name, got)
    refused(call(math.nan), row.name, ValueError, name, "nan")
    refused(call(torch.tensor(1)), row.name, TypeError, name, "int64")
    refused(call(torch.tensor(True)), row.name, TypeError, name, "bool")
    refused(call(torch.ones(3, 1, 4, 7, dtype=D)), row.name, ValueError, name, "(3, 1, 4, 7)")


@pytest.mark.parametrize(
    ("row", "name"),
    [pytest.param(row, name, id=f"{row.name}-{name}") for row in REDUCERS for name in row.hyper],
)
def test_a_bool_is_no_number(row, name):
    td, hyper = finished(row)
    for flag in (True, torch.tensor(True)):
        refused(lambda f=flag: row.call(td, {**hyper, name: f}), row.name, TypeError, name, "bool")


# ------------------------------------------------------------------------------------------- ranges

NUMBER = r"(-?\d+(?:\.\d+)?)"


def ranges(function, names):
    """The documented ranges: what each says of itself, or what it says it is like."""
    text = inspect.getdoc(function).split("Args:")[1].split("Returns:")[0].split("Raises:")[0]
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", text, re.S | re.M)
    for name, words in entries:
        words = " ".join(words.split())
        found = []
        if within := re.search(rf"in (\[|\(){NUMBER}, {NUMBER}(\]|\))", words):
            low, high = float(within[2]), float(within[3])
            found = (
                [low - 0.5, high + 0.5] + [low] * (within[1] == "(") + [high] * (within[4] == ")")
            )
        elif least := re.search(rf"at least {NUMBER}", words):
            found = [float(least[1]) - 0.5]
        elif re.search(r"above 0|, positive", words):
            found = [0.0, -0.5]
        if name in names:
            yield from ((name, value) for value in found)


OUT_OF_RANGE = [
    pytest.param(row, name, value, id=f"{row.name}-{name}-{value}")
    for row in FUNCTIONS + REDUCERS
    for name, value in ranges(row.fn, {*row.hyper, *getattr(row, "target_hyper", {})})
]


@pytest.mark.parametrize(("row", "name", "value"), OUT_OF_RANGE)
def test_a_documented_range_is_kept(row, name, value):
    if isinstance(row, Function):
        refused(
            lambda: row.call(row.args(), {**row.hyper, name: value}), row.name, ValueError, name
        )
        return
    td, hyper = made(row) if name in row.target_hyper else finished(row)
    refused(lambda: row.call(td, {**hyper, name: value}), row.name, ValueError, name, str(value))


def test_ranges_are_found():
    """The table above is not empty for want of a match."""
    names = {(case.values[0].name, case.values[1]) for case in OUT_OF_RANGE}
    assert len(names) > 80
    assert {("gae", "gamma"), ("a2c_loss", "lmbda"), ("huber", "delta")} <= names
    assert ("discovered_policy_loss", "alpha") in names


# ----------------------------------------------------------------------------------------- targets

MAKERS = [row for row in REDUCERS if row.target_hyper]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        pytest.param(row, name, id=f"{row.name}-{name}")
        for row in MAKERS
        for name in row.target_hyper
    ],
)
def test_what_would_make_a_target_beside_a_finished_one(row, name):
    """As a float, a tensor, one that wants a gradient; never a silent gradient of 0."""
    td, hyper = finished(row)
    for value in (0.5, torch.tensor(0.5, dtype=D), torch.tensor(0.5, requires_grad=True)):
        refused(
            lambda x=value: row.call(td, {**hyper, name: x}), row.name, ValueError, name, "already"
        )
    entry = td.copy().set(name, torch.full(SIZE, 0.5, dtype=D, requires_grad=True))
    refused(lambda: row.call(entry, hyper), row.name, ValueError, name, "requires grad")


# these have defaults for what makes their targets, or ask for something else first
READY = {"deterministic_policy_gradient_loss", "mgrl_outer_loss", "redq_critic_loss"}


@pytest.mark.parametrize(
    "row", [row for row in MAKERS if row.name not in READY], ids=lambda row: row.name
)
def test_neither_a_target_nor_what_makes_it(row):
    td, hyper = row.td(), dict(row.hyper)
    text = refused(lambda: row.call(td, hyper), row.name, ValueError, "its keys are")
    assert "add_" in text  # who makes it
    for key in td.keys(True, True):
        assert (key if isinstance(key, str) else ".".join(key)) in text


# --------------------------------------------------------------------------------------------- time

TIMED = {
    "add_advantage": lambda td: losses.add_advantage(td, 0.9, 0.8),
    "add_lambda_returns": lambda td: losses.add_lambda_returns(td, 0.9, 0.8),
    "add_vtrace": lambda td: losses.add_vtrace(td, gamma=0.9),
    "add_retrace": lambda td: losses.add_retrace(td, gamma=0.9),
    "a2c_loss": lambda td: losses.a2c_loss(td, gamma=0.9, lmbda=0.8),
    "reinforce_loss": lambda td: losses.reinforce_loss(td, gamma=0.9, lmbda=0.8),
    "policy_gradient_loss": lambda td: losses.policy_gradient_loss(td, gamma=0.9, lmbda=0.8),
    "value_loss": lambda td: losses.value_loss(td, gamma=0.9, lmbda=0.8),
    "ppo_clip_loss": lambda td: losses.ppo_clip_loss(td, gamma=0.9, lmbda=0.8),
    "mgrl_outer_loss": losses.mgrl_outer_loss,
    "dice_loss": lambda td: losses.dice_loss(td, gamma=0.9),
}


@pytest.mark.parametrize("name", TIMED)
def test_a_time_axis_named_otherwise(name):
    """The names are listed; named "time" wherever it stands, or not at all, it is found."""
    td = steps()
    td.names = ["env", "step"]
    refused(lambda: TIMED[name](td), name, ValueError, "'env', 'step'", "'time'")
    for names in (["time", "env"], ["env", "time"], ["env", None], [None, None]):
        td.names = names
        TIMED[name](td)
    refused(lambda: TIMED[name](steps()[0, 0]), name, ValueError, "[]", "T]")
    refused(lambda: TIMED[name](steps()[:, :0]), name, ValueError, "0")


# ------------------------------------------------------------------------------------------ the td

NO_STEPS = [pytest.param(row, size, id=f"{row.name}-{size}") for row in REDUCERS for size in (0, 1)]


@pytest.mark.parametrize(("row", "axis"), NO_STEPS)
def test_a_td_without_a_step(row, axis):
    """No reduction of nothing: neither a mean that is NaN, nor a sum that hides that it is one."""
    td, hyper = finished(row)
    empty, got = (td[:0], "[0, 5]") if axis == 0 else (td[:, :0], "[2, 0]")
    for reduction in ("sum", "none", "mean"):
        refused(
            lambda r=reduction: row.call(empty, hyper, reduction=r),
            row.name,
            ValueError,
            got,
            "at least one step",
        )


def test_a_distribution_of_no_step():
    """It is no loss: a td that is empty has one of batch size 0."""
    assert losses.distribution(steps()[:0]).log_prob(torch.zeros(0, 5).long()).shape == (0, 5)


@every_reducer
def test_a_td_that_is_none(row):
    for other in ({}, None, torch.zeros(2), [row.td()]):
        refused(lambda x=other: row.call(x, row.hyper), row.name, TypeError, "td", "TensorDict")


@pytest.mark.parametrize(
    "row",
    [row for row in MAKERS if {"gamma", "reference_gamma"} & row.target_hyper.keys()],
    ids=lambda row: row.name,
)
def test_next_that_is_no_td(row):
    td, hyper = made(row)
    wrong = td.exclude("next").set("next", torch.zeros(SIZE))
    refused(lambda: row.call(wrong, hyper), row.name, (ValueError, TypeError), "next")


@pytest.mark.parametrize("name", ["ppo_clip_loss", "ppo_kl_penalty_loss"])
def test_behavior_that_is_no_td(name):
    td = steps(advantage=torch.ones(SIZE), value_target=torch.ones(SIZE), behavior=torch.ones(SIZE))
    call = getattr(losses, name)
    refused(lambda: call(td, value_clip=0.2), name, (ValueError, TypeError), "behavior")


@every_reducer
def test_a_mask_and_weights(row):
    td, hyper = finished(row)
    for key, wrong in (("mask", torch.ones(SIZE)), ("weight", torch.ones(SIZE, dtype=torch.bool))):
        with_it = td.copy().set(key, wrong)
        refused(lambda td=with_it: row.call(td, hyper), row.name, TypeError, key)
        shaped = td.copy().set(
            key, (wrong.bool() if key == "mask" else wrong.double())[..., None].expand(*SIZE, 3)
        )
        refused(lambda td=shaped: row.call(td, hyper), row.name, ValueError, key, "(2, 5, 3)")


DISTANT = [  # bc_loss reads its distance only beside a prediction
    row
    for row in REDUCERS
    if "distance" in inspect.signature(row.fn).parameters and row.name != "bc_loss"
]


@pytest.mark.parametrize("row", DISTANT, ids=lambda row: row.name)
def test_a_distance_that_is_none(row):
    td, hyper = finished(row)
    for other in ("l2", None, 3):
        refused(lambda x=other: row.call(td, hyper, distance=x), row.name, TypeError, "distance")
    refused(lambda: row.call(td, hyper, distance=lambda a, b: 1.0), row.name, TypeError, "distance")
    mean = refused(
        lambda: row.call(td, hyper, distance=lambda a, b: (a - b).mean()), row.name, ValueError
    )
    assert "distance" in mean


# ------------------------------------------------------------------------------------- without data


@pytest.mark.parametrize("row", FUNCTIONS + REDUCERS, ids=lambda row: row.name)
def test_without_data(row):
    """On the device "meta" nothing can be looked at, and shapes come out all the same."""
    if isinstance(row, Function):
        args = {key: x.to("meta") for key, x in row.args().items()}
        row.call(args, row.hyper)
        return
    td, hyper = finished(row)
    options = {k: x.to("meta") for k, x in row.options.items() if isinstance(x, torch.Tensor)}
    out = row.call(td.to("meta"), hyper, **options)
    assert all(x.device.type == "meta" for x in tree.leaves(out))
