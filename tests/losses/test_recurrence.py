# pyright: reportArgumentType=false, reportCallIssue=false
"""``reverse_linear``, the kernel of all returns, by either algorithm."""

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.testing import assert_close

from losses import reverse_linear

METHODS = pytest.mark.parametrize("method", ["loop", "halve", "solve", "auto"])
SHAPES = [(1,), (5,), (16,), (17, 3), (33, 2, 2), (64,), (130, 2), (16, 500), (3, 4, 0)]


def draw(*shape, seed=0, low=-1.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator)


@METHODS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reverse_linear_solves_its_own_equation(shape, method):
    a, b, last = draw(*shape), draw(*shape, seed=1), draw(*shape[1:], seed=2)
    x = reverse_linear(a, b, last, method)
    assert x.shape == shape
    for i in np.ndindex(shape[1:]):
        column = (slice(None), *i)
        matrix = torch.eye(shape[0]).double() - torch.diag(a[column][:-1], 1)
        right = b[column].clone()
        right[-1] += a[column][-1] * last[i]
        assert_close(x[column], torch.linalg.solve(matrix, right))


@METHODS
@pytest.mark.parametrize("shape", [(1,), (5, 2), (16,), (21, 2), (24, 610)], ids=str)
def test_reverse_linear_is_differentiable_twice(shape, method):
    args = [draw(*shape), draw(*shape, seed=1), draw(*shape[1:], seed=2)]
    small = [x.requires_grad_() for x in args]

    def solved(*args):
        return reverse_linear(*args, method)

    if args[0].numel() < 100:
        assert torch.autograd.gradcheck(solved, small)
        assert torch.autograd.gradgradcheck(solved, small)
    expected = torch.autograd.grad(by_loop(*small).pow(2).sum(), small, create_graph=True)
    found = torch.autograd.grad(solved(*small).pow(2).sum(), small, create_graph=True)
    assert_close(found, expected)
    second = [
        torch.autograd.grad(sum(g.sin().sum() for g in gs), small) for gs in (found, expected)
    ]
    assert_close(second[0], second[1])


def by_loop(a, b, last):
    x, out = last, []
    for t in reversed(range(len(b))):
        x = a[t] * x + b[t]
        out.append(x)
    return torch.stack(out[::-1])


def test_third_derivative_of_reverse_linear():
    def third(solve):
        def f(s):
            return solve(s * draw(30), draw(30, seed=1), draw(seed=2)).sum()

        return grad(grad(grad(f)))(torch.tensor(0.8, dtype=torch.float64))

    assert_close(third(reverse_linear), third(by_loop))


@METHODS
def test_reverse_linear_without_a_graph(method):
    args = draw(27, 2), draw(27, 2, seed=1), draw(2, seed=2)
    with torch.no_grad():
        found = reverse_linear(*args, method)
        assert_close(vmap(lambda a: reverse_linear(a, *args[1:], method))(args[0][None])[0], found)
    assert_close(found, by_loop(*args))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_forward_mode_of_reverse_linear():
    args = draw(27, 2), draw(27, 2, seed=1), draw(2, seed=2)
    for i in range(3):
        found = torch.func.jacfwd(reverse_linear, i)(*args)
        assert_close(found, torch.func.jacrev(by_loop, i)(*args))
    found = torch.func.hessian(lambda a: reverse_linear(a, *args[1:]).pow(2).sum())(args[0])
    assert_close(found, torch.func.hessian(lambda a: by_loop(a, *args[1:]).pow(2).sum())(args[0]))


@pytest.mark.parametrize("steps", [4, 26])
def test_nested_vmap_of_grad_of_reverse_linear(steps):
    a, b, last = draw(3, steps, 2), draw(steps, 2, seed=1), draw(5, seed=2)

    def of_a(solve):
        return lambda a, last: grad(lambda x: solve(x, b, last).pow(2).sum())(a)

    found = vmap(vmap(of_a(reverse_linear), (None, 0)), (0, None))(a, last)
    one = of_a(by_loop)
    assert_close(found, torch.stack([torch.stack([one(x, y) for y in last]) for x in a]))


def test_reverse_linear_broadcasts_and_takes_floats():
    b = draw(20, 3)
    full = reverse_linear(torch.full_like(b, 0.5), b, torch.zeros(3).double())
    assert_close(reverse_linear(0.5, b, 0.0), full)
    assert_close(reverse_linear(torch.tensor(0.5), b, torch.tensor(0.0)), full)
    assert_close(reverse_linear(torch.full((20, 1), 0.5), b, 0), full)
    a = draw(20, 3, seed=1)
    assert_close(reverse_linear(a, b[:, :1], 0.0), reverse_linear(a, b[:, :1].expand(20, 3), 0.0))


# ---- bad input


X = torch.zeros(6)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: reverse_linear(X[:5], X, 0.0), ValueError, r"reverse_linear: a has shape \(5,\)"),
        (lambda: reverse_linear(X, X, X), ValueError, r"reverse_linear: last has shape \(6,\)"),
        (lambda: reverse_linear(0.5, X[0], 0.0), ValueError, r"reverse_linear: b has shape \(\)"),
        (
            lambda: reverse_linear(0.5, X.long(), 0.0),
            TypeError,
            "reverse_linear: b has dtype int64",
        ),
        (lambda: reverse_linear(None, X, 0.0), TypeError, "reverse_linear: a is None"),
        (
            lambda: reverse_linear(0.5, X, 0.0, "scan"),
            ValueError,
            "reverse_linear: method is 'scan', expected one of 'auto', 'loop', 'halve', 'solve'",
        ),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
