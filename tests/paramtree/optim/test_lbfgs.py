import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import paramtree
from paramtree import tree
from paramtree.optim import (
    add_decayed_weights,
    apply_updates,
    chain,
    lbfgs,
    scale_by_backtracking_linesearch,
    scale_by_lbfgs,
    scale_by_learning_rate,
    scale_by_zoom_linesearch,
    sgd,
)
from tests.paramtree.optim import special_paths
from tests.paramtree.optim.special_paths import (
    D,
    assert_paths_close,
    convex,
    descend,
    rosenbrock,
    torchs,
    tree_of,
    vector,
)


@pytest.mark.parametrize("memory", [1, 3, 10, 30])
def test_twenty_steps_of_torch(memory, params, loss):
    got, _ = descend(lbfgs(0.7, memory), loss, params, 20)
    assert_paths_close(got, torchs(loss, params, 20, lr=0.7, history_size=memory))
    quadratic, _, start = convex(6)
    got, _ = descend(lbfgs(0.5, memory), quadratic, start, 20)
    wanted = torchs(quadratic, start, 20, lr=0.5, history_size=memory)
    assert_paths_close(got, wanted, rtol=1e-8, atol=1e-9)


def test_the_inverse_hessian_by_its_matrices():
    """H = V^T H V + rho s s^T, one pair after another, the newest last."""
    source = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(4, dtype=D, generator=source)  # noqa: E731
    matrix = torch.diag(torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=D))
    direction = scale_by_lbfgs(3)
    points = [draw() for _ in range(6)]
    state = direction.init(TensorDict({"x": points[0]}))
    for x in points:
        tree_x, g = TensorDict({"x": x}), matrix @ x + x**3
        got, state = direction.update(TensorDict({"x": g}), state, tree_x)
    pairs = [
        (b - a, matrix @ (b - a) + b**3 - a**3) for a, b in zip(points, points[1:], strict=False)
    ][-3:]
    s, y = pairs[-1]
    h = torch.eye(4, dtype=D) * (s @ y) / (y @ y)
    for s, y in pairs:
        rho = 1 / (s @ y)
        v = torch.eye(4, dtype=D) - rho * torch.outer(y, s)
        h = v.T @ h @ v + rho * torch.outer(s, s)
    assert_close(got["x"], h @ (matrix @ points[-1] + points[-1] ** 3), rtol=1e-11, atol=1e-12)


def test_state(params, loss):
    optimizer = lbfgs(memory_size=3)
    state = optimizer.init(params)
    for count in range(1, 3):
        grads = paramtree.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        own = state["lbfgs"]
        assert own["count"] == count and own["count"].dtype == torch.int64
        for name in ("diff_params", "diff_grads"):
            assert tree.paths(own[name]) == tree.paths(params)
            for leaf, p in zip(tree.leaves(own[name]), tree.leaves(params), strict=True):
                assert leaf.shape == (*p.shape, 3)
                assert not leaf[..., : 3 - (count - 1)].any()  # the newest last
        assert_close(tree.leaves(own["grads"]), tree.leaves(grads))
        params, before = apply_updates(params, updates), params
    newest = tree.map(lambda leaf: leaf[..., -1], own["diff_params"])
    assert tree.norm(newest) > 0 and state.is_locked
    assert_close(tree.leaves(own["params"]), tree.leaves(before))


def test_pairs_without_positive_curvature_are_left_out():
    direction = scale_by_lbfgs(2)
    concave = [(vector(1.0, 0.0), vector(-1.0, 0.0)), (vector(2.0, 0.0), vector(-2.0, 0.0))]
    state = direction.init(concave[0][0])
    for p, g in [*concave, concave[1], (vector(2.0, 0.0), vector(5.0, 0.0))]:
        updates, state = direction.update(g, state, p)
    assert not state["diff_params", "x"].any() and not state["diff_grads", "x"].any()
    assert updates["x"].tolist() == [5.0, 0.0]  # the gradient: h = 1, as torch's


def test_the_first_step_is_no_longer_than_one():
    for g in ([3.0, -5.0], [0.1, 0.2], [0.0, 0.0]):
        p = vector(1.0, 1.0)
        for scaled in (True, False):
            direction = scale_by_lbfgs(3, scaled)
            u = direction.update(vector(*g), direction.init(p), p)[0]["x"]
            size = max(1.0, abs(g[0]) + abs(g[1])) if scaled else 1.0
            assert_close(u, torch.tensor(g, dtype=D) / size)


def test_complex_leaves_are_pairs_and_dtypes_stay():
    z = torch.tensor([1.0 + 2.0j, -0.5j, 0.3 + 0.1j], dtype=torch.complex128)
    whole, pairs = TensorDict({"x": z}), TensorDict({"x": torch.view_as_real(z)})
    optimizer = lbfgs(torch.tensor(0.3), 2)
    states = [optimizer.init(whole), optimizer.init(pairs)]
    for _ in range(5):
        slope = lambda p: tree.map(lambda x: x * (x.conj() * x if x.is_complex() else 1), p)  # noqa: E731
        g = slope(whole)
        one, states[0] = optimizer.update(g, states[0], whole)
        real = TensorDict({"x": torch.view_as_real(g["x"].resolve_conj())})
        two, states[1] = optimizer.update(real, states[1], pairs)
        whole, pairs = apply_updates(whole, one), apply_updates(pairs, two)
    assert_close(torch.view_as_real(whole["x"]), pairs["x"], rtol=1e-12, atol=1e-12)
    low = TensorDict(
        {"a": torch.ones(2).bfloat16(), "b": torch.ones(3), "c": torch.ones((), dtype=D)}
    )
    state = optimizer.init(low)
    for _ in range(2):
        updates, state = optimizer.update(low, state, low)
        assert [x.dtype for x in tree.leaves(updates)] == [torch.bfloat16, torch.float32, D]
        kept = [x.dtype for x in tree.leaves(state["lbfgs", "diff_grads"])]
        assert kept == [torch.float32, torch.float32, D]


@pytest.mark.parametrize(
    "p", [TensorDict({}), TensorDict({"x": torch.zeros(0), "y": torch.ones(())})]
)
def test_empty_trees_and_leaves(p):
    optimizer = lbfgs(linesearch=scale_by_zoom_linesearch(2))
    state = optimizer.init(p)
    for _ in range(2):
        value_fn = lambda p: sum((leaf**2).sum() for leaf in tree.leaves(p)) + torch.zeros(())  # noqa: E731
        updates, state = optimizer.update(p, state, p, value_fn=value_fn)
    assert tree.paths(updates) == tree.paths(p)


# ------------------------------------------------------------- derivatives, tasks, compiled code


def outer(optimizer, loss, params, steps=3):
    return loss(descend(optimizer, loss, params, steps)[0][-1])


def test_gradients_through_it(params, loss):
    lr = torch.tensor(0.4, dtype=D)
    paramtree.check_grads(lambda lr, p: outer(lbfgs(lr, 2), loss, p, 5), lr, params, rtol=1e-5)
    search = scale_by_zoom_linesearch(5, curv_rtol=0.01)
    start, bowl = tree_of(special_paths.START), special_paths.loss
    paramtree.check_grads(
        lambda lr, p: outer(lbfgs(lr, linesearch=search), bowl, p), lr, start, rtol=1e-5
    )
    factor = torch.tensor(0.4, dtype=D)

    def backtracked(factor, p):
        search = scale_by_backtracking_linesearch(5, decrease_factor=factor)
        return outer(chain(sgd=sgd(3.0), search=search), bowl, p)

    paramtree.check_grads(backtracked, factor, start, rtol=1e-5)
    assert paramtree.grad(backtracked)(factor, start) != 0


@pytest.mark.parametrize(
    "search", [None, scale_by_zoom_linesearch(3), scale_by_backtracking_linesearch(3)]
)
def test_zero_gradients_give_no_nan_in_two_derivatives(params, search):
    def moved(lr, slope, p):
        loss = lambda q: tree.vdot(tree.map(lambda x: slope * x, q), q)  # noqa: E731
        optimizer = lbfgs(lr, 2, linesearch=search)
        path, _ = descend(optimizer, loss, p, 3)
        return tree.vdot(path[-1], path[-1])

    still, lr = torch.zeros((), dtype=D), torch.tensor(0.3, dtype=D)
    zero = tree.zeros_like(params)
    for p in (params, zero):
        slopes = paramtree.grad(moved, (0, 1, 2))(lr, still, p)
        assert all(leaf.isfinite().all() for leaf in tree.leaves(slopes))
        bent = paramtree.grad(lambda lr, p=p: paramtree.grad(moved, 2)(lr, still, p)["scale"])(lr)
        assert bent.isfinite()


@pytest.mark.parametrize(
    "search", [None, scale_by_zoom_linesearch(6), scale_by_backtracking_linesearch(6)]
)
def test_tasks_side_by_side_are_what_each_is_alone(search):
    tasks = TensorDict({"x": torch.tensor([[-1.2, 1.0], [0.5, 0.3], [1.0, 1.0]], dtype=D)}, [3])
    rates = torch.tensor([1.0, 0.1, 0.5], dtype=D)

    def one(lr, p):
        path, state = descend(lbfgs(lr, 2, linesearch=search), rosenbrock, p, 4)
        return path[-1], state

    got, state = paramtree.vmap(one)(rates, tasks)
    assert state["lbfgs", "diff_params"].batch_size == (3,)
    for i in range(3):
        wanted, own = one(rates[i], tasks[i])
        assert_close(got["x"][i], wanted["x"], rtol=1e-9, atol=1e-11)
        for a, b in zip(tree.leaves(state[i]), tree.leaves(own), strict=True):
            assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_a_state_keeps_the_batch_sizes_of_the_params():
    """So a tree whose parts are batched maps with the state that was made of it as a whole."""
    policy = TensorDict({"w": torch.randn(2, 3, dtype=D)}, [2])
    p = TensorDict({"meta": TensorDict({"w": torch.randn(3, dtype=D)}), "policy": policy})
    state = lbfgs(memory_size=2).init(p)["lbfgs", "diff_params"]
    assert state.batch_size == () and state["policy"].batch_size == (2,)
    assert state["policy"][1]["w"].shape == (3, 2)


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one():
    """With a search; tests/contract has both apart."""
    optimizer = lbfgs(0.5, 2, linesearch=scale_by_zoom_linesearch(3))
    p = vector(-1.2, 1.0)
    state = optimizer.init(p)
    for _ in range(2):
        updates, state = optimizer.update(
            paramtree.grad(rosenbrock)(p), state, p, value_fn=rosenbrock
        )
        p = apply_updates(p, updates)
    step = lambda g, s, p: optimizer.update(g, s, p, value_fn=rosenbrock)  # noqa: E731
    torch.compiler.reset()
    got = torch.compile(step, backend="aot_eager", fullgraph=True)(
        paramtree.grad(rosenbrock)(p), state, p
    )
    wanted = step(paramtree.grad(rosenbrock)(p), state, p)
    for a, b in zip(tree.leaves(got), tree.leaves(wanted), strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_it_runs_without_values():
    p = TensorDict({"x": torch.ones(3, device="meta"), "y": torch.ones((), device="meta")})
    optimizer = lbfgs(linesearch=scale_by_zoom_linesearch(2))
    loss = lambda p: (p["x"] ** 2).sum() + p["y"]  # noqa: E731
    updates, _ = optimizer.update(p, optimizer.init(p), p, value_fn=loss)
    assert {leaf.device.type for leaf in tree.leaves(updates)} == {"meta"}


# --------------------------------------------------------------------------------------- bad input


def test_bad_arguments(params, loss):
    for bad, message in (
        (lambda: lbfgs(-1.0), "lbfgs: lr is -1.0"),
        (lambda: lbfgs(memory_size=0), "lbfgs: memory_size is 0, expected at least 1"),
        (lambda: scale_by_lbfgs(0), "scale_by_lbfgs: memory_size is 0"),
        (lambda: scale_by_zoom_linesearch(0), "scale_by_zoom_linesearch: max_linesearch_steps is"),
        (lambda: scale_by_zoom_linesearch(3, 1.5), "scale_by_zoom_linesearch: slope_rtol is 1.5"),
        (
            lambda: scale_by_backtracking_linesearch(decrease_factor=1.0),
            "scale_by_backtracking_linesearch: decrease_factor is 1.0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
    with pytest.raises(TypeError, match="lbfgs: linesearch is a str, expected a Transform"):
        lbfgs(linesearch="strong_wolfe")
    optimizer = lbfgs(linesearch=scale_by_zoom_linesearch(2))
    state = optimizer.init(params)
    fn = "scale_by_zoom_linesearch"
    for extra, kind, message in (
        ({}, ValueError, "value_fn is missing, expected update"),
        ({"value_fn": 3.0}, TypeError, "value_fn is a float, expected a function"),
        ({"value_fn": lambda p: p["policy"]}, TypeError, "value_fn gave a TensorDict"),
        (
            {"value_fn": lambda p: p["policy", "linear_0", "bias"]},
            ValueError,
            r"value_fn gave a tensor of shape \(3,\), expected a 0-d one",
        ),
        ({"value_fn": loss, "value": "x", "grad": params}, TypeError, "value is a str"),
        ({"value_fn": loss, "value": 1.0, "grad": params["policy"]}, ValueError, "names differ"),
    ):
        with pytest.raises(kind, match=f"{fn}: .*{message}"):
            optimizer.update(params, state, params, **extra)
    other = lbfgs(memory_size=3).init(params)
    with pytest.raises(ValueError, match=r"scale_by_lbfgs: state\['diff_params'\] at .*\(3, 3\)"):
        lbfgs().update(params, other, params)
    with pytest.raises(ValueError, match="scale_by_lbfgs: the state holds"):
        scale_by_lbfgs().update(params, sgd(0.1).init(params), params)


def test_in_a_chain_of_ones_own(params, loss):
    optimizer = chain(
        decay=add_decayed_weights(0.1),
        lbfgs=scale_by_lbfgs(4),
        lr=scale_by_learning_rate(1.0),
        search=scale_by_backtracking_linesearch(),
    )
    penalized = lambda p: loss(p) + 0.05 * tree.vdot(p, p)  # noqa: E731
    state, start = optimizer.init(params), penalized(params)
    for _ in range(30):
        grads = paramtree.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value_fn=penalized)
        params = apply_updates(params, updates)
    assert penalized(params) < start
    assert tree.norm(paramtree.grad(penalized)(params)) < 1e-4
