# pyright: reportArgumentType=false, reportCallIssue=false
import itertools

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.testing import assert_close

from losses import discounted_returns, gae, lambda_returns, reverse_linear
from tests.oracles import returns_numpy as oracle

SHAPES = [(1,), (5,), (16,), (17, 3), (33, 2, 2), (64,), (130, 2), (16, 500), (3, 4, 0)]


def draw(*shape, seed=0, low=-1.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator)


def stream(steps, *batch, seed=0):
    """Arguments of gae, all [T, *batch]."""
    shape = (steps, *batch)
    reward, value, after, flag, kind = (draw(*shape, seed=10 * seed + i) for i in range(5))
    done = flag < -0.5
    gamma, lmbda = (draw(*shape, seed=10 * seed + i, low=0.1) for i in (5, 6))
    return reward, value, after, done, done & (kind < 0), gamma, lmbda


# ---- reverse_linear


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reverse_linear_solves_its_own_equation(shape):
    a, b, last = draw(*shape), draw(*shape, seed=1), draw(*shape[1:], seed=2)
    x = reverse_linear(a, b, last)
    assert x.shape == shape
    for i in np.ndindex(shape[1:]):
        column = (slice(None), *i)
        matrix = torch.eye(shape[0]).double() - torch.diag(a[column][:-1], 1)
        right = b[column].clone()
        right[-1] += a[column][-1] * last[i]
        assert_close(x[column], torch.linalg.solve(matrix, right))


@pytest.mark.parametrize("shape", [(1,), (5, 2), (16,), (21, 2), (16, 410)], ids=str)
def test_reverse_linear_is_differentiable_twice(shape):
    args = [draw(*shape), draw(*shape, seed=1), draw(*shape[1:], seed=2)]
    small = [x.requires_grad_() for x in args]
    if args[0].numel() < 100:
        assert torch.autograd.gradcheck(reverse_linear, small)
        assert torch.autograd.gradgradcheck(reverse_linear, small)
    expected = torch.autograd.grad(by_loop(*small).pow(2).sum(), small, create_graph=True)
    found = torch.autograd.grad(reverse_linear(*small).pow(2).sum(), small, create_graph=True)
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
            return solve(s * draw(20), draw(20, seed=1), draw(seed=2)).sum()

        return grad(grad(grad(f)))(torch.tensor(0.8, dtype=torch.float64))

    assert_close(third(reverse_linear), third(by_loop))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_forward_mode_of_reverse_linear():
    args = draw(19, 2), draw(19, 2, seed=1), draw(2, seed=2)
    for i in range(3):
        found = torch.func.jacfwd(reverse_linear, i)(*args)
        assert_close(found, torch.func.jacrev(by_loop, i)(*args))
    found = torch.func.hessian(lambda a: reverse_linear(a, *args[1:]).pow(2).sum())(args[0])
    assert_close(found, torch.func.hessian(lambda a: by_loop(a, *args[1:]).pow(2).sum())(args[0]))


@pytest.mark.parametrize("steps", [4, 20])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    args = [x.to(dtype) if x.is_floating_point() else x for x in stream(20, 2)]
    assert gae(*args).dtype == dtype
    assert gae(*args[:5], torch.tensor(0.9).double(), 0.8).dtype == dtype
    assert lambda_returns(args[0], *args[2:]).dtype == dtype
    wide = reverse_linear(args[5].double(), args[0].float(), 0.0)
    assert wide.dtype == torch.float64
    exact = gae(*(x.double() if x.is_floating_point() else x for x in args))
    assert_close(gae(*args).double(), exact, rtol=1e-5, atol=1e-5)


# ---- returns against their definitions


def columns(args, shape):
    for i in np.ndindex(shape):
        yield i, [x[(slice(None), *i)].numpy() for x in args]


@pytest.mark.parametrize("shape", [(1,), (6,), (25, 3), (7, 2, 2)], ids=str)
def test_returns_are_the_sums_that_define_them(shape):
    args = stream(*shape)
    reward, value, after, done, terminated, gamma, lmbda = args
    advantage = gae(*args)
    mixed = lambda_returns(reward, after, done, terminated, gamma, lmbda)
    plain = discounted_returns(reward, done, terminated, gamma, after)
    to_go = discounted_returns(reward, done, terminated, gamma)
    for i, (r, v, w, d, e, g, k) in columns(args, shape[1:]):
        column = (slice(None), *i)
        assert_close(advantage[column].numpy(), oracle.gae(r, v, w, d, e, g, k))
        assert_close(mixed[column].numpy(), oracle.lambda_returns(r, w, d, e, g, k))
        assert_close(plain[column].numpy(), oracle.discounted_returns(r, w, d, e, g))
        assert_close(to_go[column].numpy(), oracle.discounted_returns(r, 0 * w, d, e, g))


def test_lambda_returns_satisfy_their_equation():
    reward, _, after, done, terminated, gamma, lmbda = stream(20)
    x = lambda_returns(reward, after, done, terminated, gamma, lmbda)
    trace = lmbda * ~done
    trace[-1] = 0.0
    following = torch.cat([x[1:], torch.zeros(1).double()])
    right = reward + gamma * ~terminated * ((1 - trace) * after + trace * following)
    assert_close(x, right)


def test_lambda_of_one_is_the_discounted_return_and_of_zero_the_target_of_one_step():
    reward, _, after, done, terminated, gamma, _ = stream(20, 2)
    args = reward, after, done, terminated, gamma
    assert_close(
        lambda_returns(*args, 1.0), discounted_returns(reward, done, terminated, gamma, after)
    )
    assert_close(lambda_returns(*args, 0.0), reward + gamma * ~terminated * after)


def test_gae_is_the_lambda_return_minus_the_value_where_values_agree():
    reward, value, after, done, terminated, gamma, lmbda = stream(20, 2)
    after = torch.where(done, after, torch.cat([value[1:], after[-1:]]))
    found = gae(reward, value, after, done, terminated, gamma, lmbda)
    assert_close(found + value, lambda_returns(reward, after, done, terminated, gamma, lmbda))


@pytest.mark.parametrize("ends", ["terminated", "truncated", "mixed"])
@pytest.mark.parametrize("lengths", [(1, 1), (4, 3), (9, 14, 1)], ids=str)
def test_concatenated_episodes_give_the_concatenated_results(lengths, ends):
    parts = []
    for seed, n in enumerate(lengths):
        reward, value, after, _, _, gamma, lmbda = stream(n, 2, seed=seed)
        done = torch.zeros(n, 2, dtype=torch.bool)
        done[-1] = True
        last = {"terminated": True, "truncated": False, "mixed": seed % 2 == 0}[ends]
        parts.append((reward, value, after, done, done & last, gamma, lmbda))
    whole = [torch.cat(xs) for xs in zip(*parts, strict=True)]
    assert_close(gae(*whole), torch.cat([gae(*p) for p in parts]))

    def mixed(r, v, w, d, e, g, k):
        return lambda_returns(r, w, d, e, g, k)

    assert_close(mixed(*whole), torch.cat([mixed(*p) for p in parts]))

    def plain(r, v, w, d, e, g, k):
        return discounted_returns(r, d, e, g, w)

    assert_close(plain(*whole), torch.cat([plain(*p) for p in parts]))


def test_next_value_of_a_terminated_step_is_without_influence():
    reward, value, after, done, terminated, gamma, lmbda = stream(20, 2)
    assert terminated.any()
    spoiled = torch.where(terminated, torch.nan, after).requires_grad_()
    out = gae(reward, value, spoiled, done, terminated, gamma, lmbda)
    assert_close(out, gae(reward, value, after, done, terminated, gamma, lmbda))
    (of_after,) = torch.autograd.grad(out.sum(), spoiled)
    assert (of_after[terminated] == 0).all() and of_after.isfinite().all()
    out = lambda_returns(reward, spoiled, done, terminated, gamma, lmbda)
    assert out.isfinite().all()


# ---- gradients


def test_worked_number(variant):
    """Sum of advantages and its derivatives, as two independent libraries have them."""
    reward = 0.5 * torch.arange(1, 7, dtype=torch.float64) - 1
    value = torch.arange(7, dtype=torch.float64).sin()
    done = torch.tensor([False, False, True, False, False, False])
    hyper = torch.tensor([0.9, 0.8], dtype=torch.float64)

    def advantage(h):
        return gae(reward, value[:-1], value[1:], done, done, h[0], h[1]).sum()

    def returns(h):
        return lambda_returns(reward, value[1:], done, done, h[0], h[1]).sum()

    expected = torch.tensor([4.956395, 6.28034438], dtype=torch.float64)
    for fn, total in ((advantage, 7.936814920), (returns, 8.112976570)):
        assert_close(variant(fn)(hyper).item(), total, rtol=0, atol=1e-9)
        assert_close(variant(grad(fn))(hyper), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("which", ["gae", "lambda_returns", "discounted_returns"])
@pytest.mark.parametrize("steps", [1, 5, 18])
def test_gradients_of_every_argument_are_right_twice(which, steps):
    reward, value, after, done, terminated, gamma, lmbda = stream(steps, 2)
    fn, args = {
        "gae": (lambda r, v, w, g, k: gae(r, v, w, done, terminated, g, k), (reward, value, after)),
        "lambda_returns": (
            lambda r, w, g, k: lambda_returns(r, w, done, terminated, g, k),
            (reward, after),
        ),
        "discounted_returns": (
            lambda r, w, g, k: discounted_returns(r, done, terminated, g, w) * k.sum(),
            (reward, after),
        ),
    }[which]
    for hyper in ((gamma, lmbda), (gamma[0, 0], lmbda[0, 0]), (gamma[:, :1], lmbda[0])):
        inputs = [x.clone().requires_grad_() for x in (*args, *hyper)]
        assert torch.autograd.gradcheck(fn, inputs)
        assert torch.autograd.gradgradcheck(fn, inputs)


def test_any_subset_of_the_arguments_of_gae_can_be_mapped():
    one, other = stream(5, 2, seed=0), stream(5, 2, seed=1)
    for mapped in itertools.product([False, True], repeat=7):
        if not any(mapped):
            continue
        args = [
            torch.stack([x, y], 1) if m else x for x, y, m in zip(one, other, mapped, strict=True)
        ]
        found = vmap(gae, tuple(1 if m else None for m in mapped))(*args)
        for i, source in enumerate((one, other)):
            alone = [s if m else x for x, s, m in zip(one, source, mapped, strict=True)]
            assert_close(found[i], gae(*alone))


@pytest.mark.parametrize("steps", [5, 20])
def test_gradient_over_mapped_discounts(steps):
    args = stream(steps, 2)[:5]
    gammas = torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64)

    def of_gamma(g):
        return gae(*args, g, 0.8).pow(2).sum()

    found = vmap(grad(of_gamma))(gammas)
    assert_close(found, torch.stack([grad(of_gamma)(g) for g in gammas]))
    second = vmap(grad(grad(of_gamma)))(gammas)
    assert_close(second, torch.stack([grad(grad(of_gamma))(g) for g in gammas]))


@pytest.mark.parametrize("steps", [5, 37])
def test_compiled_returns_and_second_derivatives(steps):
    args = stream(steps, 2)

    def second(g):
        return grad(grad(lambda g: gae(*args[:5], g, args[6]).pow(2).sum()))(g)

    torch.compiler.reset()
    aot = torch.compile(second, fullgraph=True, backend="aot_eager")
    gamma = torch.tensor(0.9, dtype=torch.float64)
    assert_close(aot(gamma), second(gamma))
    torch.compiler.reset()
    assert_close(torch.compile(gae, fullgraph=True, backend="aot_eager")(*args), gae(*args))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_inductor_agrees():
    args = stream(20, 2)
    torch.compiler.reset()
    assert_close(torch.compile(gae, fullgraph=True)(*args), gae(*args))


# ---- bad input and purity


FLAGS = torch.zeros(6, dtype=torch.bool)
X = torch.zeros(6)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: lambda_returns(X, X[:5], FLAGS, FLAGS, 0.9, 0.8),
            ValueError,
            r"lambda_returns: next_value has shape \(5,\), expected \[T\] with T=6 \(from reward\)",
        ),
        (
            lambda: gae(X, X, X, X, FLAGS, 0.9, 0.8),
            TypeError,
            "gae: done has dtype float32, expected bool",
        ),
        (
            lambda: gae(X, X, X, FLAGS, FLAGS.int(), 0.9, 0.8),
            TypeError,
            "gae: terminated has dtype int32",
        ),
        (
            lambda: gae(X.long(), X, X, FLAGS, FLAGS, 0.9, 0.8),
            TypeError,
            "gae: reward has dtype int64",
        ),
        (lambda: gae([1.0], X, X, FLAGS, FLAGS, 0.9, 0.8), TypeError, "gae: reward is a list"),
        (lambda: gae(X, X, None, FLAGS, FLAGS, 0.9, 0.8), TypeError, "gae: next_value is None"),
        (
            lambda: gae(X, X, X, None, FLAGS, 0.9, 0.8),
            TypeError,
            "gae: done is None, expected a bool",
        ),
        (
            lambda: gae(X, X, X, FLAGS, FLAGS, 1.5, 0.8),
            ValueError,
            "gae: gamma is 1.5, expected .*0 to 1",
        ),
        (lambda: gae(X, X, X, FLAGS, FLAGS, 0.9, -1), ValueError, "gae: lmbda is -1, expected"),
        (lambda: gae(X, X, X, FLAGS, FLAGS, float("nan"), 0.8), ValueError, "gae: gamma is nan"),
        (
            lambda: gae(X, X, X, FLAGS, FLAGS, "0.9", 0.8),
            TypeError,
            "gae: gamma is a str, expected",
        ),
        (
            lambda: gae(X, X, X, FLAGS, FLAGS, True, 0.8),
            TypeError,
            "gae: gamma is a bool, expected",
        ),
        (lambda: gae(X, X, X, FLAGS, FLAGS, FLAGS, 0.8), TypeError, "gae: gamma has dtype bool"),
        (
            lambda: gae(X, X, X, FLAGS, FLAGS, X[:5], 0.8),
            ValueError,
            r"gae: gamma has shape \(5,\), expected one that broadcasts to \[T\] with T=6",
        ),
        (
            lambda: gae(X, X, X, FLAGS, FLAGS, X[None], 0.8),
            ValueError,
            r"gae: gamma has shape \(1, 6\)",
        ),
        (
            lambda: gae(*[torch.tensor(0.0)] * 3, *[torch.tensor(False)] * 2, 0.9, 0.8),
            ValueError,
            r"gae: reward has shape \(\), expected \[T, \*batch\]",
        ),
        (
            lambda: gae(*[X[:0]] * 3, *[FLAGS[:0]] * 2, 0.9, 0.8),
            ValueError,
            r"gae: reward has shape \(0,\), expected T of at least 1",
        ),
        (
            lambda: discounted_returns(X, FLAGS[:5], FLAGS, 0.9),
            ValueError,
            r"discounted_returns: done has shape \(5,\)",
        ),
        (
            lambda: discounted_returns(X[:, None], FLAGS[:, None], FLAGS[:, None], 0.9, X),
            ValueError,
            r"discounted_returns: next_value has shape \(6,\), expected \[T, \*batch\] = \(6, 1\)",
        ),
        (lambda: reverse_linear(X[:5], X, 0.0), ValueError, r"reverse_linear: a has shape \(5,\)"),
        (lambda: reverse_linear(X, X, X), ValueError, r"reverse_linear: last has shape \(6,\)"),
        (lambda: reverse_linear(0.5, X[0], 0.0), ValueError, r"reverse_linear: b has shape \(\)"),
        (
            lambda: reverse_linear(0.5, X.long(), 0.0),
            TypeError,
            "reverse_linear: b has dtype int64",
        ),
        (lambda: reverse_linear(None, X, 0.0), TypeError, "reverse_linear: a is None"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_arguments_are_not_changed():
    args = stream(20, 2)
    copies = [x.clone() for x in args]
    gae(*args)
    lambda_returns(args[0], *args[2:])
    discounted_returns(args[0], *args[3:6])
    reverse_linear(args[5], args[0], args[1][0])
    for x, copy in zip(args, copies, strict=True):
        assert_close(x, copy, rtol=0, atol=0)
