import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree.optim import (
    apply_updates,
    lbfgs,
    scale_by_backtracking_linesearch,
    scale_by_zoom_linesearch,
)
from tests.paramtree.optim.special_paths import (
    D,
    assert_paths_close,
    convex,
    descend,
    rosenbrock,
    torchs,
    vector,
)


@pytest.mark.parametrize("memory", [3, 10])
def test_the_strong_wolfe_search_of_torch(memory):
    start = vector(-1.2, 1.0)
    optimizer = lbfgs(memory_size=memory, linesearch=scale_by_zoom_linesearch(25))
    got, state = descend(optimizer, rosenbrock, start, 25)
    options = {"history_size": memory, "max_eval": 26, "line_search_fn": "strong_wolfe"}
    wanted = torchs(rosenbrock, start, 25, lr=1.0, **options)
    assert_paths_close(got, wanted, rtol=1e-8, atol=1e-8)
    assert state["linesearch", "count"] == 25
    assert_paths_close(got, descend(optimizer, rosenbrock, start, 25, known=True)[0], atol=1e-7)


@pytest.mark.parametrize("lr", [0.01, 1.0, 50.0])
def test_other_first_steps_of_torchs_search(lr):
    """Too short, so that it grows, and too long, so that it's closed in on."""
    start = vector(0.5, 2.0, -1.0, 1.5)
    got, _ = descend(lbfgs(lr, linesearch=scale_by_zoom_linesearch(25)), rosenbrock, start, 12)
    options = {"history_size": 10, "max_eval": 26, "line_search_fn": "strong_wolfe"}
    wanted = torchs(rosenbrock, start, 12, lr=lr, **options)
    assert_paths_close(got, wanted)


def test_torchs_search_on_functions_with_many_minima():
    source = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randn(n, dtype=D, generator=source)  # noqa: E731
    options = {"history_size": 10, "max_eval": 26, "line_search_fn": "strong_wolfe"}
    for _ in range(100):
        a, b, c, d = draw(4) * torch.tensor([1.0, 2.0, 1.0, 1.0])
        start, lr = TensorDict({"x": 3 * draw(1)}), 10 ** draw(1).clamp(-1, 1).item()

        def loss(p, a=a, b=b, c=c, d=d):
            x = p["x"].sum()
            return 0.1 * x**2 + a * (b * x + c).sin() + d * (4 * b * x).cos()

        search = scale_by_zoom_linesearch(25)
        got, _ = descend(lbfgs(lr, linesearch=search), loss, start, 1)
        assert_paths_close(got, torchs(loss, start, 1, lr=lr, **options))


@pytest.mark.parametrize("n", [2, 5, 9])
def test_a_quadratic_of_n_dimensions_takes_n_steps(n):
    """With an exact search these are the steps of conjugate gradients."""
    loss, best, start = convex(n)
    for memory in (1, 10):
        search = scale_by_zoom_linesearch(10, curv_rtol=1e-9)
        path, _ = descend(lbfgs(1.0, memory, linesearch=search), loss, start, n + 1)
        assert_close(path[-1]["x"], best, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "search", [scale_by_zoom_linesearch(), scale_by_backtracking_linesearch()], ids=["zoom", "back"]
)
@pytest.mark.parametrize("n", [2, 6])
def test_the_minimum_of_rosenbrock(search, n):
    start = TensorDict({"x": torch.tensor([-1.2, 1.0] * (n // 2), dtype=D)})
    path, _ = descend(lbfgs(linesearch=search), rosenbrock, start, 90)
    assert_close(path[-1]["x"], torch.ones(n, dtype=D), rtol=1e-6, atol=1e-6)
    values = [rosenbrock(p).item() for p in path]
    assert all(b <= a for a, b in zip(values, values[1:], strict=False))


def searched(search, u, p, loss, **extra):
    updates, state = search.update(u, search.init(p), p, value_fn=loss, **extra)
    return state["step_size"].item(), updates


def test_backtracking_by_hand_and_where_nothing_is_found():
    loss, p = (lambda p: (p["x"] ** 2).sum()), vector(1.0)
    search = scale_by_backtracking_linesearch(3, decrease_factor=0.5)
    # at 1 + t u: u = -6 gives 25, 4, 0.25
    assert searched(search, vector(-6.0), p, loss)[0] == 0.25
    assert searched(search, vector(-1.0), p, loss)[0] == 1.0
    for u in (-100.0, 1.0):  # too long for three, and uphill
        size, updates = searched(search, vector(u), p, loss)
        assert size == 0.0 and updates["x"] == 0.0
    # uphill the slope allows for no rise, and no smaller fall
    search = scale_by_backtracking_linesearch(3, slope_rtol=0.9)
    assert searched(search, vector(-0.5), p, lambda p: -loss(p))[0] == 0.0
    search = scale_by_backtracking_linesearch(3, decrease_factor=lambda count: 0.3 + count)
    assert_close(searched(search, vector(-6.0), p, loss)[0], 0.3)


def test_the_zoom_takes_the_best_that_it_saw():
    """On (1 - 1.5 t)^2, with a fall asked for that there isn't; the second trial is the minimum."""
    loss, p, u = (lambda p: (p["x"] ** 2).sum()), vector(1.0), vector(-1.5)
    for trials, wanted in ((1, 1.0), (2, 2 / 3), (5, 2 / 3)):
        size, _ = searched(scale_by_zoom_linesearch(trials, slope_rtol=0.9), u, p, loss)
        assert_close(size, wanted)
    assert searched(scale_by_zoom_linesearch(2), vector(1.0), p, loss)[0] == 0.0  # uphill


def test_the_number_of_evaluations():
    seen = []

    def loss(p):
        seen.append(p)
        return (p["x"] ** 2).sum()

    p, u = vector(1.0), vector(-0.5)
    for search, wanted in (
        (scale_by_backtracking_linesearch(4), 5),
        (scale_by_zoom_linesearch(4), 4),
    ):
        known = {"value": torch.tensor(1.0, dtype=D), "grad": vector(2.0)}
        for extra, more in ((known, 0), ({}, 1)):
            seen.clear()
            assert searched(search, u, p, loss, **extra)[0] == 1.0
            assert len(seen) == wanted + more


@pytest.mark.parametrize("u", [-0.02, -1.0, -30.0, -4000.0])
def test_strong_wolfe_conditions_hold(u):
    loss = lambda p: (p["x"].cosh() + 0.3 * (3 * p["x"]).sin()).sum()  # noqa: E731
    along = lambda t: loss({"x": torch.tensor([2.0], dtype=D) + t * u})  # noqa: E731
    size, _ = searched(scale_by_zoom_linesearch(25, 1e-3, 0.1), vector(u), vector(2.0), loss)
    zero = torch.zeros((), dtype=D)
    begin, slope = paramtree.value_and_grad(along)(zero)
    value, left = paramtree.value_and_grad(along)(zero + size)
    assert value <= begin + 1e-3 * size * slope and left.abs() <= 0.1 * slope.abs()


def test_what_is_not_finite_is_stepped_back_from():
    loss = lambda p: (p["x"] - p["x"].log()).sum()  # noqa: E731 (NaN below 0)
    for search in (scale_by_zoom_linesearch(12), scale_by_backtracking_linesearch(12)):
        size, updates = searched(search, vector(-40.0), vector(4.0), loss)
        assert size > 0 and loss(apply_updates(vector(4.0), updates)) < loss(vector(4.0))
    seen = []

    def watched(p):
        seen.append(p["x"].item())
        return loss(p)

    searched(scale_by_zoom_linesearch(5), vector(-40.0), vector(4.0), watched)
    assert seen == [4.0, *[4.0 - 40.0 * 0.5**k for k in range(5)]]  # each trial halves it
    nan = lambda p: p["x"].sum() * float("nan")  # noqa: E731
    for search in (scale_by_zoom_linesearch(3), scale_by_backtracking_linesearch(3)):
        assert searched(search, vector(-1.0), vector(4.0), nan)[0] == 0.0
