"""Schedules of cycles beside torch's; optax's numbers and derivatives are in test_schedule.py."""

import pytest
import torch
from torch.testing import assert_close

from paramtree.optim import cosine_onecycle, cyclic, linear_onecycle, sgdr

D = torch.float64
SCHEDULERS = torch.optim.lr_scheduler


def torchs(scheduler, steps, **options):
    """Rates of a torch scheduler, one a step."""
    leaf = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=0.7, momentum=0.9)
    theirs = scheduler(optimizer, **options)
    rates = []
    for step in range(steps):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        if step < steps - 1:
            theirs.step()
    return torch.tensor(rates, dtype=D)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize(("up", "down"), [(4, None), (3, 5), (1, 1), (5, 2)])
def test_cyclic_is_torchs(mode, up, down):
    gamma = 0.9 if mode == "exp_range" else 1.0
    options = {"base_lr": 0.1, "max_lr": 0.7, "step_size_up": up, "step_size_down": down}
    wanted = torchs(SCHEDULERS.CyclicLR, 30, mode=mode, gamma=gamma, **options)
    got = cyclic(0.1, 0.7, up, down, mode, gamma)(torch.arange(30))
    assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_cyclic_momentum_is_torchs():
    leaf = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=0.7, momentum=0.9)
    theirs = SCHEDULERS.CyclicLR(optimizer, 0.1, 0.7, 3, base_momentum=0.8, max_momentum=0.95)
    for count in range(8):
        wanted = optimizer.param_groups[0]["momentum"]
        assert_close(float(cyclic(0.95, 0.8, 3)(count)), wanted, rtol=1e-12, atol=0)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("factor", [1, 2])
def test_sgdr_is_torchs_warm_restarts_until_its_end(factor):
    options = {"T_0": 3, "T_mult": factor, "eta_min": 0.05}
    lengths = [3 * factor**i for i in range(3)]
    cycles = [
        {"init": 0.0, "peak": 0.7, "warmup_steps": 0, "decay_steps": steps, "end": 0.05}
        for steps in lengths
    ]
    wanted = torchs(SCHEDULERS.CosineAnnealingWarmRestarts, sum(lengths) + 1, **options)
    got = sgdr(cycles)(torch.arange(sum(lengths) + 1))
    assert_close(got[:-1], wanted[:-1], rtol=1e-12, atol=1e-15)
    assert_close(float(got[-1]), 0.05)
    assert wanted[-1] == 0.7  # theirs begins again


def test_torchs_one_cycle_is_a_step_shorter():
    factors = {"div_factor": 4.0, "final_div_factor": 10.0}
    options = {"max_lr": 0.8, "total_steps": 11, "cycle_momentum": False, **factors}
    counts = torch.arange(11)
    wanted = torchs(SCHEDULERS.OneCycleLR, 11, pct_start=4 / 11, **options)
    got = cosine_onecycle(10, 0.8, 0.3, **factors)(counts)
    assert_close(got, wanted, rtol=1e-12, atol=1e-15)
    options |= {"anneal_strategy": "linear", "three_phase": True}
    wanted = torchs(SCHEDULERS.OneCycleLR, 11, pct_start=4 / 11, **options)
    got = linear_onecycle(10, 0.8, 0.3, 0.6, **factors)(counts)
    assert_close(got, wanted, rtol=1e-12, atol=1e-15)


def test_one_cycle_with_bounds_on_one_step():
    counts = torch.arange(6)
    high = linear_onecycle(4, 1.0, 0.5, 0.5, 2.0, 5.0)(counts)
    assert_close(high, torch.tensor([0.5, 0.75, 0.5, 0.3, 0.1, 0.1], dtype=D))
    late = linear_onecycle(4, 1.0, 0.5, 1.0, 2.0, 5.0)(counts)
    assert_close(late, torch.tensor([0.5, 0.75, 1.0, 0.75, 0.1, 0.1], dtype=D))
    for make in (linear_onecycle, cosine_onecycle):
        assert float(make(4, 1.0, 0.0)(0)) == 1.0
        assert make(1, 1.0)(counts).isfinite().all()


def test_triangles():
    got = cyclic(0.0, 1.0, 2, 2, "triangular2")(torch.arange(9))
    assert got.tolist() == [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25, 0.0]


CYCLE = {"init": 0.0, "peak": 0.7, "warmup_steps": 0, "decay_steps": 3}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: linear_onecycle(0, 0.1), ValueError, "linear_onecycle: steps is 0"),
        (lambda: cosine_onecycle(2.0, 0.1), TypeError, "cosine_onecycle: steps is a float"),
        (lambda: linear_onecycle(9, 0.1, 1.2), ValueError, "pct_start is 1.2, expected from 0.0"),
        (lambda: linear_onecycle(9, 0.1, 0.5, 0.4), ValueError, "pct_final is 0.4, expected from"),
        (
            lambda: cosine_onecycle(9, 0.1, torch.tensor(0.3)),
            TypeError,
            "cosine_onecycle: pct_start is a Tensor, expected a float: it picks a step",
        ),
        (
            lambda: cosine_onecycle(9, 0.1, div_factor=0.0),
            ValueError,
            "cosine_onecycle: div_factor is 0.0, expected above 0",
        ),
        (lambda: cosine_onecycle(9, "x"), TypeError, "cosine_onecycle: peak is a str"),
        (lambda: sgdr([]), ValueError, "sgdr: cycles is empty, expected a list of mappings"),
        (lambda: sgdr(CYCLE), TypeError, "sgdr: cycles is a dict, expected a list of mappings"),
        (lambda: sgdr([0.1]), TypeError, "sgdr: cycle 0 is a float, expected a mapping"),
        (
            lambda: sgdr([CYCLE, {"init": 0.1, "top": 0.7}]),
            ValueError,
            "sgdr: cycle 1 holds init, top, expected init, peak, warmup_steps, decay_steps, and",
        ),
        (
            lambda: sgdr([CYCLE | {"decay_steps": 0}]),
            ValueError,
            "warmup_cosine_decay: decay_steps is 0",
        ),
        (lambda: cyclic(0.1, 0.2, 0), ValueError, "cyclic: step_size_up is 0, expected at least 1"),
        (lambda: cyclic(0.1, 0.2, 3, 0), ValueError, "cyclic: step_size_down is 0"),
        (
            lambda: cyclic(0.1, 0.2, mode="sine"),
            ValueError,
            "cyclic: mode is 'sine', expected one of triangular, triangular2, exp_range",
        ),
        (
            lambda: cyclic(0.1, 0.2, gamma=torch.tensor(0.9)),
            ValueError,
            "cyclic: gamma is given and mode is 'triangular', expected 'exp_range'",
        ),
        (lambda: cyclic(None, 0.2), TypeError, "cyclic: base is a NoneType"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
