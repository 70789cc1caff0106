"""Implicit differentiation: closed forms, central differences, torchopt, and every transform."""

import gc
import weakref
from functools import partial

import pytest
import torch

from paramtree import check_grads, grad, meta, optim, rng, tree, value_and_grad, vmap

D = torch.float64
# torch's own, when its rules for forward mode are imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def draw(name, *shape):
    return rng.normal(rng.fold_in(rng.key(3), name), shape, dtype=D)


def spread(n, name="a"):
    """A symmetric positive definite matrix."""
    a = draw(name, n, n)
    return a @ a.T / n + torch.eye(n, dtype=D)


# ---------------------------------------------------------------------------------- closed forms

X, Y = draw("x", 8, 3), draw("y", 8)


def ridge_loss(w, l2):
    return 0.5 * ((X @ w - Y) ** 2).sum() + 0.5 * l2 * (w * w).sum()


def ridge_solution(w, l2):
    return torch.linalg.solve(X.T @ X + l2 * torch.eye(3, dtype=D), X.T @ Y)


def descend(w, *args, loss=ridge_loss, rate=0.1, steps=150):
    for _ in range(steps):
        w = w - rate * grad(loss)(w, *args)
    return w


ridge = meta.custom_root(grad(ridge_loss))(ridge_solution)
W0 = torch.zeros(3, dtype=D)
L2 = torch.tensor(0.7, dtype=D)


def test_derivatives_of_ridge_regression_are_those_of_its_formula():
    inverse = torch.linalg.inv(X.T @ X + L2 * torch.eye(3, dtype=D))
    w = inverse @ X.T @ Y
    weight = draw("weight", 3)

    def value(l2):
        return ridge(W0, l2) @ weight

    torch.testing.assert_close(ridge(W0, L2), w)
    first = -(inverse @ w) @ weight
    second = 2 * (inverse @ inverse @ w) @ weight
    third = -6 * (inverse @ inverse @ inverse @ w) @ weight
    for g in (grad, torch.func.grad):
        torch.testing.assert_close(g(value)(L2), first)
        torch.testing.assert_close(g(g(value))(L2), second)
        torch.testing.assert_close(g(g(g(value)))(L2), third)
    one = torch.ones((), dtype=D)
    torch.testing.assert_close(torch.func.jvp(value, (L2,), (one,))[1], first)
    torch.testing.assert_close(torch.func.jvp(grad(value), (L2,), (one,))[1], second)
    forward = torch.func.jvp(value, (L2,), (one,))[1]
    torch.testing.assert_close(torch.func.jacfwd(torch.func.jacfwd(value))(L2), second)
    torch.testing.assert_close(forward, first)


def test_proximal_inner_problem_has_the_gradient_of_implicit_maml():
    """dw/dφ = λ (H + λ)^-1, which is (I + H / λ)^-1."""
    lam = 2.0

    def step(phi, w, k):
        return w - 0.03 * grad(lambda w: ridge_loss(w, 0.0) + 0.5 * lam * ((w - phi) ** 2).sum())(w)

    def outer(phi, w):
        return (w**3).sum()

    phi = draw("phi", 3)
    value, slope = meta.implicit(step, outer, 600)(phi, phi)
    hessian = X.T @ X
    matrix = hessian + lam * torch.eye(3, dtype=D)
    w = torch.linalg.solve(matrix, X.T @ Y + lam * phi)
    torch.testing.assert_close(value, (w**3).sum())
    torch.testing.assert_close(slope, lam * torch.linalg.solve(matrix, 3 * w**2))


def test_a_fixed_point_of_a_tree_has_the_gradient_of_its_series():
    a = 0.3 * draw("map", 3, 3)

    def residual(x, bias):
        return tree.map(lambda x, b: x - (a @ x).tanh() - b, x, bias)

    def iterate(x, bias):
        for _ in range(200):
            x = tree.map(lambda x, b: (a @ x).tanh() + b, x, bias)
        return x

    bias = tree.new({"u": draw("u", 3), "v": tree.new({"w": draw("v", 3)})})
    for solve in (meta.normal_conjugate_gradient, partial(meta.neumann, terms=300)):
        fit = meta.custom_root(residual, solve=solve)(iterate)

        def value(bias, fit=fit):
            return tree.norm(fit(tree.map(torch.zeros_like, bias), bias))

        def unrolled(bias):
            return tree.norm(iterate(tree.map(torch.zeros_like, bias), bias))

        for left, right in ((value, unrolled), (grad(value), grad(unrolled))):
            for x, y in zip(tree.leaves(left(bias)), tree.leaves(right(bias)), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)
        check_grads(grad(value), bias)


# ------------------------------------------------------------------------- transforms and graphs

M = torch.tensor([[2.0, 0.5], [0.5, 1.5]], dtype=D)
A = torch.tensor(0.8, dtype=D)
B = torch.tensor(0.4, dtype=D)
C = torch.tensor([1.0, -0.7], dtype=D)


def newton(x, residual):
    for _ in range(25):
        x = x - torch.linalg.solve(torch.func.jacrev(residual)(x), residual(x))
    return x


def by_argument(a, b, c):
    def residual(x, a, b, c):
        return M @ x + b * x**3 - a * c

    fit = meta.custom_root(residual)(lambda x, *args: newton(x, lambda x: residual(x, *args)))
    return (fit(torch.zeros(2, dtype=D), a, b, c).sin() * torch.tensor([1.0, 2.0], dtype=D)).sum()


def by_closure(a, b, c):
    """Only a is an argument; b and c reach the residual behind its back."""

    def residual(x, a):
        return M @ x + b * x**3 - a * c

    fit = meta.custom_root(residual)(lambda x, a: newton(x, lambda x: residual(x, a)))
    return (fit(torch.zeros(2, dtype=D), a).sin() * torch.tensor([1.0, 2.0], dtype=D)).sum()


@pytest.mark.parametrize("value", [by_argument, by_closure])
@pytest.mark.parametrize("g", [grad, torch.func.grad])
def test_derivatives_to_the_third_order_are_those_of_central_differences(value, g):
    def first(*args):
        return g(value, (0, 1, 2))(*args)

    def second(*args):
        return g(lambda *x: g(value)(*x), (0, 1, 2))(*args)

    for fn in (value, first, second):
        check_grads(fn, A, B, C)


@pytest.mark.parametrize("value", [by_argument, by_closure])
def test_forward_mode_is_right_and_differentiable(value):
    def push(*args):
        return torch.func.jvp(value, args, tuple([torch.ones_like(x) for x in args]))[1]

    slopes = grad(value, (0, 1, 2))(A, B, C)
    torch.testing.assert_close(push(A, B, C), sum(x.sum() for x in slopes))
    check_grads(push, A, B, C)


@pytest.mark.parametrize("value", [by_argument, by_closure])
def test_tasks_are_mapped_in_any_nesting_of_transforms(value):
    rates, data = torch.stack([A, 1.1 * A, 0.7 * A]), torch.stack([C, 2 * C, 1 - C])
    g = torch.func.grad

    def mapped(fn):
        return lambda rates: torch.func.vmap(fn, (0, None, 0))(rates, B, data)

    def summed(fn):
        return lambda rates: mapped(fn)(rates).sum()

    def leaf(fn):
        def slope(rates):
            rates = rates.clone().requires_grad_()
            return torch.autograd.grad(fn(rates), rates)[0]

        return slope

    first = torch.stack([grad(value)(r, B, c) for r, c in zip(rates, data, strict=True)])
    second = torch.stack([grad(grad(value))(r, B, c) for r, c in zip(rates, data, strict=True)])
    cases = [
        (mapped(g(value)), first),
        (g(summed(value)), first),
        (leaf(summed(value)), first),
        (lambda r: torch.func.jvp(mapped(value), (r,), (torch.ones_like(r),))[1], first),
        (mapped(g(g(value))), second),
        (g(summed(g(value))), second),
        (g(lambda r: g(summed(value))(r).sum()), second),
        (grad(lambda r: grad(summed(value))(r).sum()), second),
        (leaf(summed(g(value))), second),
    ]
    for i, (fn, wanted) in enumerate(cases):
        torch.testing.assert_close(fn(rates), wanted, msg=lambda text, i=i: f"case {i}: {text}")
    worlds = torch.stack([data, data / 2])
    batches = torch.stack([rates, 0.9 * rates])

    def inner(rates, data):
        return g(lambda r: torch.func.vmap(value, (0, None, 0))(r, B, data).sum())(rates)

    got = leaf(lambda r: torch.func.vmap(inner)(r, worlds).sum())(batches)
    rows = [
        torch.stack([grad(grad(value))(r, B, c) for r, c in zip(rs, cs, strict=True)])
        for rs, cs in zip(batches, worlds, strict=True)
    ]
    torch.testing.assert_close(got, torch.stack(rows))


def test_each_task_has_its_own_linear_system():
    rates = torch.tensor([0.1, 1.0, 5.0], dtype=D)
    mapped = vmap(lambda l2: grad(lambda l2: ridge(W0, l2).sum())(l2))(rates)
    torch.testing.assert_close(
        mapped, torch.stack([grad(lambda l2: ridge(W0, l2).sum())(l2) for l2 in rates])
    )


def test_an_outer_graph_runs_through_and_what_the_solver_did_does_not():
    source = torch.tensor(0.5, dtype=D, requires_grad=True)
    w = ridge(W0.clone().requires_grad_(), source.exp())
    w.sum().backward()
    l2 = source.detach()
    want = grad(lambda s: ridge(W0, s.exp()).sum())(l2)
    torch.testing.assert_close(source.grad, want)
    begun = W0.clone().requires_grad_()
    assert not ridge(begun, l2).requires_grad
    value = grad(lambda w: ridge(w, l2).sum() + w.sum())(W0)
    torch.testing.assert_close(value, torch.ones(3, dtype=D))


def test_a_graph_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        l2 = L2.clone().requires_grad_()
        w = ridge(W0, l2)
        slope = torch.autograd.grad(w.sum(), l2, create_graph=True)[0]
        refs = [weakref.ref(w), weakref.ref(slope)]
        del w, slope
        assert all(ref() is None for ref in refs)
    finally:
        gc.enable()


def test_compiled_code_breaks_its_graph_and_gets_the_same():
    torch._dynamo.reset()

    def value(l2):
        return grad(lambda l2: ridge(W0, l2).sum())(l2 * 1.0) * 2

    torch.testing.assert_close(torch.compile(value, backend="aot_eager")(L2), value(L2))
    torch._dynamo.reset()


# ---------------------------------------------------------------------------- what the solver is


def test_aux_comes_back_without_a_graph_and_settings_go_to_the_solver_alone():
    @meta.custom_root(grad(ridge_loss), has_aux=True)
    def fit(w, l2, *, steps):
        w = descend(w, l2, steps=steps)
        return w, {"loss": ridge_loss(w, l2), "steps": steps}

    l2 = L2.clone().requires_grad_()
    w, aux = fit(W0, l2, steps=150)
    assert w.requires_grad and not aux["loss"].requires_grad and aux["steps"] == 150
    torch.testing.assert_close(aux["loss"], ridge_loss(w, l2).detach())


def test_arguments_outside_of_argnums_are_constants():
    def loss(w, l2, scale):
        return ridge_loss(w, l2 * scale)

    scale = torch.tensor(1.3, dtype=D)
    slopes = {}
    for argnums in (None, 1, (2,), (1, 2)):
        fit = meta.custom_root(grad(loss), argnums)(partial(descend, loss=loss))
        slopes[argnums] = grad(lambda *a, fit=fit: fit(W0, *a).sum(), (0, 1))(L2, scale)
    both, zero = slopes[None], torch.zeros((), dtype=D)
    torch.testing.assert_close(slopes[1, 2], both)
    torch.testing.assert_close(slopes[1], (both[0], zero))
    torch.testing.assert_close(slopes[2,], (zero, both[1]))


def test_solver_may_be_a_loop_of_torch_optim():
    @meta.custom_root(grad(ridge_loss))
    def fit(w, l2):
        w = w.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([w], max_iter=100, tolerance_grad=1e-12)

        def closure():
            optimizer.zero_grad()
            loss = ridge_loss(w, l2)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return w.detach()

    got = grad(lambda l2: fit(W0, l2).sum())(L2)
    torch.testing.assert_close(got, grad(lambda l2: ridge(W0, l2).sum())(L2))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (D, 1e-8)])
def test_dtypes_stay(dtype, tolerance):
    x, y = X.to(dtype), Y.to(dtype)

    def loss(w, l2):
        return 0.5 * ((x @ w - y) ** 2).sum() + 0.5 * l2 * (w * w).sum()

    fit = meta.custom_root(grad(loss))(partial(descend, loss=loss))
    l2 = L2.to(dtype)
    slope = grad(lambda l2: fit(W0.to(dtype), l2).sum())(l2)
    assert slope.dtype == dtype
    want = grad(lambda l2: ridge(W0, l2).sum())(L2)
    torch.testing.assert_close(slope.to(D), want, rtol=tolerance, atol=tolerance)


def test_complex_solutions_are_differentiated_as_two_reals():
    h = torch.complex(spread(3), torch.zeros(3, 3, dtype=D))
    h = h + 0.3j * (draw("skew", 3, 3) - draw("skew", 3, 3).T)
    b = torch.complex(draw("re", 3), draw("im", 3))

    def value(a, fit):
        return fit(torch.zeros_like(b), a).abs().square().sum()

    fit = meta.custom_root(lambda x, a: h @ x + a * x - b)(
        lambda x, a: torch.linalg.solve(h + a * torch.eye(3, dtype=D), b)
    )
    check_grads(lambda a: value(a, fit), L2)
    check_grads(lambda a: grad(value)(a, fit), L2)


# ------------------------------------------------------------------------------------- the mode


def problem():
    """Weights under a learned penalty and rate; the fixed point doesn't depend on the rate."""

    def step(hyper, state, k):
        slope = grad(ridge_loss)(state["w"], hyper["l2"].exp())
        return tree.new({"w": state["w"] - hyper["rate"] * slope, "count": state["count"] + 1})

    def outer(hyper, state):
        return (state["w"] ** 2).sum() + hyper["l2"] ** 2

    hyper = tree.new({"l2": torch.tensor(-0.3, dtype=D), "rate": torch.tensor(0.04, dtype=D)})
    return step, outer, hyper, tree.new({"w": draw("w", 3), "count": torch.zeros((), dtype=int)})


def unroll(step, outer, steps):
    def value(hyper, state):
        for k in range(steps):
            state = step(hyper, state, k)
        return outer(hyper, state)

    return value


def test_implicit_is_unrolled_where_the_steps_converged():
    step, outer, hyper, state = problem()
    value, slopes = meta.implicit(step, outer, 500)(hyper, state)
    unrolled = unroll(step, outer, 500)
    torch.testing.assert_close(value, unrolled(hyper, state))
    for name, slope in grad(unrolled)(hyper, state).items():
        torch.testing.assert_close(slopes[name], slope, rtol=1e-6, atol=1e-9)
    assert abs(slopes["rate"]) < 1e-9 < abs(slopes["l2"])


def test_momentum_takes_a_solver_for_matrices_that_are_not_symmetric():
    optimizer = optim.chain(momentum=optim.sgd(0.02, momentum=0.8))

    def step(l2, state, k):
        slope = grad(lambda p: ridge_loss(p["w"], l2))(state["params"])
        updates, inner = optimizer.update(slope, state["optimizer"], state["params"])
        params = optim.apply_updates(state["params"], updates)
        return tree.new({"params": params, "optimizer": inner})

    def outer(l2, state):
        return state["params", "w"].sum()

    params = tree.new({"w": W0})
    state = tree.new({"params": params, "optimizer": optimizer.init(params)})
    want = grad(lambda l2: ridge(W0, l2).sum())(L2)
    for solve in (
        partial(meta.normal_conjugate_gradient, maxiter=60),
        partial(meta.neumann, terms=600),
    ):
        got = meta.implicit(step, outer, 600, solve=solve)(L2, state)[1]
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def test_optimality_may_be_given_and_the_initial_state_has_no_gradient():
    step, outer, hyper, state = problem()

    def optimality(hyper, state):
        return tree.new(
            {"w": grad(ridge_loss)(state["w"], hyper["l2"].exp()), "count": state["count"]}
        )

    default = meta.implicit(step, outer, 500)(hyper, state)
    given = meta.implicit(step, outer, 500, optimality=optimality)(hyper, state)
    torch.testing.assert_close(given[0], default[0])
    torch.testing.assert_close(given[1]["l2"], default[1]["l2"])

    _, (slopes, start) = meta.implicit(step, outer, 500, argnums=(0, 1))(hyper, state)
    torch.testing.assert_close(slopes["l2"], default[1]["l2"])
    alone = meta.implicit(step, outer, 3, argnums=1)(hyper, state)[1]
    for zero in (start, alone):
        assert torch.equal(zero["w"], torch.zeros(3, dtype=D))
        assert torch.equal(zero["count"], torch.zeros((), dtype=torch.int64))


def test_gradient_of_the_mode_is_differentiable_in_what_the_steps_close_over():
    def slope(l2, y):
        def loss(w, l2):
            return 0.5 * ((X @ w - y) ** 2).sum() + 0.5 * l2 * (w * w).sum()

        def step(l2, w, k):
            return w - 0.03 * grad(loss)(w, l2)

        return meta.implicit(step, lambda l2, w: (w**2).sum(), 600)(l2, W0)[1]

    check_grads(slope, L2, Y)
    mapped = vmap(slope, in_dims=(None, 0))(L2, torch.stack([Y, 2 * Y]))
    torch.testing.assert_close(mapped, torch.stack([slope(L2, Y), slope(L2, 2 * Y)]))


def test_aux_of_the_mode_and_its_form():
    step, outer, hyper, state = problem()

    def with_aux(hyper, state):
        return outer(hyper, state), {"w": state["w"]}

    (value, aux), slopes = meta.implicit(step, with_aux, 500, has_aux=True)(hyper, state)
    plain = meta.implicit(step, outer, 500)(hyper, state)
    assert torch.equal(value, plain[0]) and aux["w"].shape == (3,)
    assert slopes.is_locked and torch.equal(slopes["l2"], plain[1]["l2"])


def test_steps_leave_no_graph():
    counted = []

    def step(hyper, w, k):
        out = w - 0.03 * grad(ridge_loss)(w, hyper)
        counted.append(out.requires_grad)
        return out

    hyper = L2.clone().requires_grad_()
    meta.implicit(step, lambda h, w: w.sum(), 20)(hyper, W0)
    assert not any(counted[:20]) and len(counted) < 30


# -------------------------------------------------------------------------------------- solvers


def dense(matrix):
    return lambda x: matrix @ x


@pytest.mark.parametrize(
    "solve, matrix",
    [
        (meta.conjugate_gradient, spread(6)),
        (meta.normal_conjugate_gradient, draw("full", 6, 6) + 3 * torch.eye(6, dtype=D)),
        (partial(meta.neumann, terms=400, alpha=0.2), spread(6)),
    ],
)
def test_solvers_solve_and_their_derivatives_are_those_of_the_solution(solve, matrix):
    b = draw("b", 6)
    torch.testing.assert_close(
        solve(dense(matrix), b), torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-9
    )

    def ours(matrix, b):
        return solve(lambda x: (matrix + matrix.T) @ x / 2, b).sin().sum()

    def exact(matrix, b):
        return torch.linalg.solve((matrix + matrix.T) / 2, b).sin().sum()

    if solve is meta.normal_conjugate_gradient:

        def ours(matrix, b):
            return solve(dense(matrix), b).sin().sum()

        def exact(matrix, b):
            return torch.linalg.solve(matrix, b).sin().sum()

    for got, wanted in zip(
        grad(ours, (0, 1))(matrix, b), grad(exact, (0, 1))(matrix, b), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)


def test_series_and_iterates_are_those_of_their_formulas():
    matrix, b = spread(5), draw("b", 5)
    alpha = torch.tensor(0.2, dtype=D)
    power = torch.eye(5, dtype=D) - alpha * matrix
    sums = sum(torch.linalg.matrix_power(power, k) @ b for k in range(4))
    torch.testing.assert_close(meta.neumann(dense(matrix), b, terms=4, alpha=alpha), alpha * sums)
    x, r = torch.zeros(5, dtype=D), b
    first = (r @ r) / (r @ matrix @ r) * r  # one step of conjugate gradients is steepest descent
    torch.testing.assert_close(meta.conjugate_gradient(dense(matrix), b, maxiter=1), x + first)
    exact = torch.linalg.solve(matrix, b)
    for maxiter in (5, 50):
        got = meta.conjugate_gradient(dense(matrix), b, maxiter=maxiter, x0=draw("x0", 5))
        torch.testing.assert_close(got, exact)


def test_damping_is_on_the_diagonal_and_has_a_gradient():
    matrix, b, damping = draw("full", 4, 4), draw("b", 4), torch.tensor(0.7, dtype=D)
    eye = torch.eye(4, dtype=D)
    got = meta.normal_conjugate_gradient(dense(matrix), b, damping=damping)
    exact = torch.linalg.solve(matrix.T @ matrix + damping * eye, matrix.T @ b)
    torch.testing.assert_close(got, exact)
    spd = spread(4)

    def ours(damping):
        return meta.conjugate_gradient(dense(spd), b, damping=damping)

    torch.testing.assert_close(ours(damping), torch.linalg.solve(spd + damping * eye, b))
    torch.testing.assert_close(ours(0.7), ours(damping))
    check_grads(ours, damping)
    check_grads(lambda d: grad(lambda d: ours(d).sum())(d), damping, rtol=1e-4)


def test_tasks_that_converge_at_different_times_each_stop():
    matrices = torch.stack([torch.eye(6, dtype=D), spread(6, "one"), spread(6, "two")])
    b = torch.stack([draw("b", 6), torch.zeros(6, dtype=D), draw("c", 6)])
    mapped = vmap(lambda m, b: meta.conjugate_gradient(dense(m), b))(matrices, b)
    torch.testing.assert_close(mapped, torch.linalg.solve(matrices, b))
    alone = [meta.conjugate_gradient(dense(m), row) for m, row in zip(matrices, b, strict=True)]
    torch.testing.assert_close(mapped, torch.stack(alone), rtol=1e-12, atol=1e-14)


def test_a_right_side_of_zero_has_no_nan():
    zero = torch.zeros(4, dtype=D)
    for solve in (meta.conjugate_gradient, meta.normal_conjugate_gradient, meta.neumann):
        x = solve(dense(0.5 * torch.eye(4, dtype=D)), zero)
        assert torch.equal(x, zero)

        def value(b, solve=solve):
            x = vmap(lambda b: solve(lambda x: 0.5 * x, b))(b[None])
            return (x**2).sum() + x.sum()

        slope = grad(value)(zero)
        assert (
            torch.isfinite(slope).all()
            and torch.isfinite(grad(lambda b: grad(value)(b).sum())(zero)).all()
        )


def test_solvers_keep_the_names_of_trees():
    b = tree.new({"p": tree.new({"w": draw("w", 2, 2)}), "q": draw("q")})

    def matvec(x):
        return tree.map(lambda leaf: 2.0 * leaf, x)

    for solve in (meta.conjugate_gradient, meta.normal_conjugate_gradient):
        x = solve(matvec, b)
        assert x.is_locked
        torch.testing.assert_close(x["p", "w"], b["p", "w"] / 2)
        torch.testing.assert_close(x["q"], b["q"] / 2)


def test_solvers_read_no_value_so_they_run_on_the_meta_device():
    b = torch.zeros(3, device="meta")
    for solve in (meta.conjugate_gradient, meta.normal_conjugate_gradient, meta.neumann):
        assert solve(lambda x: 2 * x, b).shape == (3,)


# -------------------------------------------------------------------------------------- torchopt


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_numbers_are_those_of_torchopt():
    """Logistic regression pulled towards meta-parameters, as in torchopt's tests of custom_root."""
    torchopt = pytest.importorskip("torchopt")
    inputs, labels = draw("inputs", 16, 4), (draw("labels", 16) > 0).to(D)

    def loss(w, phi, reg):
        fit = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ w, labels)
        return fit + 0.5 * reg * ((w - phi) ** 2).sum()

    def solver(w, phi, reg):
        return descend(w, phi, reg, loss=loss, rate=0.5, steps=400)

    phi, reg = draw("phi", 4), torch.tensor(0.9, dtype=D)
    slopes = []
    for fit in (
        meta.custom_root(grad(loss), argnums=(1, 2))(solver),
        torchopt.diff.implicit.custom_root(
            torch.func.grad(loss),
            argnums=(1, 2),
            solve=torchopt.linear_solve.solve_cg(rtol=1e-12, atol=0),
        )(solver),
    ):
        given = phi.clone().requires_grad_(), reg.clone().requires_grad_()
        value = (fit(torch.zeros(4, dtype=D), *given) ** 3).sum()
        slopes.append(torch.autograd.grad(value, given))
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------- bad input


def fit_of(optimality, **options):
    return meta.custom_root(optimality, **options)(lambda w, *args: w)


@pytest.mark.parametrize(
    "error, text, call",
    [
        (TypeError, "optimality is a int", lambda: meta.custom_root(3)),
        (TypeError, "solve is a str", lambda: meta.custom_root(grad(ridge_loss), solve="cg")),
        (ValueError, "argnums is 0, expected", lambda: fit_of(grad(ridge_loss), argnums=0)),
        (ValueError, r"argnums is \(1, 1\)", lambda: fit_of(grad(ridge_loss), argnums=(1, 1))),
        (TypeError, "argnums is 'l2'", lambda: fit_of(grad(ridge_loss), argnums="l2")),
        (
            ValueError,
            "argnums is 2, but the solver got 1",
            lambda: fit_of(grad(ridge_loss), argnums=2)(W0, L2),
        ),
        (TypeError, "l2 is given by name", lambda: fit_of(grad(ridge_loss))(W0, l2=L2)),
        (ValueError, "expected .params, aux.", lambda: fit_of(ridge_loss, has_aux=True)(W0, L2)),
        (
            ValueError,
            r"what optimality returns has shape \(\), expected \(3,\) \(from the params\)",
            lambda: fit_of(ridge_loss)(W0, L2),
        ),
        (
            ValueError,
            "only what optimality returns has 'v'; only the params has 'w'",
            lambda: fit_of(lambda p, a: tree.new({"v": p["w"]}))(tree.new({"w": W0}), L2),
        ),
        (
            TypeError,
            "without float leaves",
            lambda: fit_of(lambda p, a: p)(torch.zeros(3, dtype=torch.int64), L2),
        ),
        (ValueError, "what solve returns", lambda: bad_solve()),
        (ValueError, "maxiter is 0", lambda: meta.conjugate_gradient(dense(M), C, maxiter=0)),
        (TypeError, "maxiter is 2.5", lambda: meta.conjugate_gradient(dense(M), C, maxiter=2.5)),
        (ValueError, "rtol is -1", lambda: meta.normal_conjugate_gradient(dense(M), C, rtol=-1)),
        (TypeError, "atol is a tensor", lambda: meta.conjugate_gradient(dense(M), C, atol=L2)),
        (ValueError, "damping is -0.1", lambda: meta.conjugate_gradient(M.mv, C, damping=-0.1)),
        (
            ValueError,
            r"damping has shape \(2,\)",
            lambda: meta.conjugate_gradient(M.mv, C, damping=C),
        ),
        (
            TypeError,
            "b is torch.int64",
            lambda: meta.conjugate_gradient(M.mv, torch.ones(2, dtype=int)),
        ),
        (TypeError, "matvec is a tensor", lambda: meta.neumann(M, C)),
        (ValueError, "terms is 0", lambda: meta.neumann(dense(M), C, terms=0)),
        (ValueError, "alpha is 0", lambda: meta.neumann(dense(M), C, alpha=0.0)),
        (
            ValueError,
            r"what matvec returns has shape \(1,\), expected \(2,\) \(from b\)",
            lambda: meta.neumann(lambda x: x[:1], C),
        ),
        (ValueError, "x0 has shape", lambda: meta.conjugate_gradient(M.mv, C, x0=W0)),
        (ValueError, "implicit: steps is 0", lambda: mode(steps=0)),
        (TypeError, "implicit: steps is 1.5", lambda: mode(steps=1.5)),
        (ValueError, "implicit: argnums is 2", lambda: mode(argnums=2)),
        (ValueError, r"implicit: argnums is \(\)", lambda: mode(argnums=())),
        (TypeError, "implicit: outer is a NoneType", lambda: mode(outer=None)),
        (
            ValueError,
            r"implicit: outer returned a tensor of shape \(3,\)",
            lambda: mode(outer=lambda h, w: w)(L2, W0),
        ),
        (
            ValueError,
            r"implicit: step's result has shape \(1,\), expected \(3,\) \(from the state\)",
            lambda: mode(step=lambda h, w, k: w if k < 2 else w[:1])(L2, W0),
        ),
    ],
)
def test_bad_input_is_refused(error, text, call):
    with pytest.raises(error, match=text):
        call()


def bad_solve():
    fit = meta.custom_root(grad(ridge_loss), solve=lambda matvec, b: b[:1])(descend)
    return grad(lambda l2: fit(W0, l2).sum())(L2)


def mode(step=lambda h, w, k: w / 2, outer=lambda h, w: w.sum(), steps=2, argnums=0):
    return meta.implicit(step, outer, steps, argnums=argnums)


def test_a_graph_that_cannot_be_followed_is_refused_not_lost():
    hidden = torch.tensor(2.0, dtype=D, requires_grad=True)
    double = torch.autograd.Function

    class Square(double):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    fit = meta.custom_root(lambda x, a: x - a * Square.apply(hidden))(lambda x, a: 4 * a)
    with pytest.raises(ValueError, match="pass the tensor as an argument"):
        fit(torch.zeros((), dtype=D), L2)


def test_a_closed_over_tensor_may_be_what_a_gradient_inside_is_taken_in():
    c = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    start = torch.zeros(3, dtype=torch.float64)
    for slope in (
        lambda: grad(lambda q: (q**3).sum())(c),
        lambda: value_and_grad(lambda q: (q**3).sum())(c)[1],
        lambda: grad(lambda t: (t["c"] ** 3).sum())(tree.new({"c": c}))["c"],
    ):
        fit = meta.custom_root(lambda x, slope=slope: x - 0.1 * slope())
        found = fit(lambda x: 0.3 * c.detach() ** 2)(start)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), c)[0], 0.6 * c.detach())


def test_the_default_solver_is_right_with_momentum():
    hyper, start = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), torch.zeros(3).double()
    optimizer = optim.sgd(0.1, momentum=0.5)

    def step(hyper, state, k):
        params = tree.new({"x": state["x"]})
        slope = grad(lambda p: (0.5 * (p["x"] - hyper) ** 2).sum())(params)
        params, after = optim.step(optimizer, slope, state["optimizer"], params)
        return tree.new({"x": params["x"], "optimizer": after})

    state = tree.new({"x": start, "optimizer": optimizer.init(tree.new({"x": start}))})
    outer = lambda hyper, state: (state["x"] ** 2).sum() + hyper.sum()  # noqa: E731
    found = meta.implicit(step, outer, 200)(hyper, state)[1]
    torch.testing.assert_close(found, 2 * hyper + 1, rtol=1e-7, atol=1e-9)
