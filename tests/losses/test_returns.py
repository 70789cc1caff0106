# pyright: reportArgumentType=false, reportCallIssue=false
import itertools

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.testing import assert_close

from losses import (
    compose_tx,
    discounted_returns,
    gae,
    hyperbolic_sin_pair,
    lambda_returns,
    n_step_returns,
    reverse_linear,
    signed_hyperbolic_pair,
    td_targets,
    two_hot_pair,
)
from tests.oracles import returns_numpy as oracle


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
    one = td_targets(reward, after, terminated, gamma)
    some = {
        n: n_step_returns(reward, after, done, terminated, gamma, n, lmbda) for n in (1, 2, 5, 40)
    }
    for i, (r, v, w, d, e, g, k) in columns(args, shape[1:]):
        column = (slice(None), *i)
        assert_close(advantage[column].numpy(), oracle.gae(r, v, w, d, e, g, k))
        assert_close(mixed[column].numpy(), oracle.lambda_returns(r, w, d, e, g, k))
        assert_close(plain[column].numpy(), oracle.discounted_returns(r, w, d, e, g))
        assert_close(to_go[column].numpy(), oracle.discounted_returns(r, 0 * w, d, e, g))
        assert_close(one[column].numpy(), oracle.lambda_returns(r, w, d, e, g, k, 1))
        for n, found in some.items():
            assert_close(found[column].numpy(), oracle.lambda_returns(r, w, d, e, g, k, n))


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


def test_n_steps_of_a_whole_sequence_are_the_lambda_return():
    reward, _, after, done, terminated, gamma, lmbda = stream(9, 2)
    args = reward, after, done, terminated, gamma
    assert_close(n_step_returns(*args, 9, lmbda), lambda_returns(*args, lmbda))
    assert_close(n_step_returns(*args, 8)[0], discounted_returns(reward, *args[2:], after)[0])
    assert_close(n_step_returns(*args, 1, lmbda), td_targets(reward, after, terminated, gamma))


def test_td_targets_take_any_shape():
    reward, _, after, _, terminated, gamma, _ = stream(4, 3)
    whole = td_targets(reward, after, terminated, gamma)
    one = td_targets(reward[1, 2], after[1, 2], terminated[1, 2], gamma[1, 2])
    assert_close(one, whole[1, 2])


def test_compositions():
    """Q(lambda) of Peng and of Watkins, SARSA(lambda), QV-learning: a choice of next_value."""
    reward, _, state_value, done, terminated, gamma, _ = stream(12)
    next_q, action = draw(12, 3, seed=50), draw(12, 3, seed=51).argmax(-1)
    later = torch.cat([action[1:], action[-1:]])
    best, taken = next_q.amax(-1), next_q.gather(-1, later[:, None]).squeeze(-1)
    greedy = (later == next_q.argmax(-1)).double()
    assert 0 < greedy.sum() < 12
    args = [x.numpy() for x in (done, terminated, gamma)]
    for next_value, lmbda in (
        (best, 0.8 + 0 * greedy),
        (best, 0.8 * greedy),
        (taken, 0.8 + 0 * greedy),
    ):
        found = lambda_returns(reward, next_value, done, terminated, gamma, lmbda)
        sums = oracle.lambda_returns(reward.numpy(), next_value.numpy(), *args, lmbda.numpy())
        assert_close(found.numpy(), sums)
    qv = td_targets(reward, state_value, terminated, gamma)
    assert_close(qv, reward + gamma * ~terminated * state_value)


# ---- transformed values


TRANSFORMED = {
    "td_targets": lambda r, w, d, e, tx: td_targets(r, w, e, 0.9, tx),
    "discounted_returns": lambda r, w, d, e, tx: discounted_returns(r, d, e, 0.9, w, tx),
    "lambda_returns": lambda r, w, d, e, tx: lambda_returns(r, w, d, e, 0.9, 0.8, tx),
    "n_step_returns": lambda r, w, d, e, tx: n_step_returns(r, w, d, e, 0.9, 3, 0.8, tx),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed_returns(name):
    fn = TRANSFORMED[name]
    reward, _, after, done, terminated, *_ = stream(20, 2)
    assert terminated.any()
    for tx in (signed_hyperbolic_pair, compose_tx(hyperbolic_sin_pair, signed_hyperbolic_pair)):
        plain = fn(reward, tx.inverse(after), done, terminated, None)
        assert_close(fn(reward, after, done, terminated, tx), tx.apply(plain))
    spoiled = torch.where(terminated, torch.nan, after).requires_grad_()
    out = fn(reward, spoiled, done, terminated, tx)
    assert_close(out, tx.apply(plain))
    (slope,) = torch.autograd.grad(out.sum(), spoiled)
    assert (slope[terminated] == 0).all() and slope.isfinite().all()


@pytest.mark.parametrize("name", TRANSFORMED)
def test_values_of_a_transformed_space_may_be_vectors(name):
    fn = TRANSFORMED[name]
    reward, _, after, done, terminated, *_ = stream(6, 2)
    tx = two_hot_pair(torch.linspace(-8, 8, 9, dtype=torch.float64))
    assert_close(
        fn(reward, tx.apply(after), done, terminated, tx),
        tx.apply(fn(reward, after, done, terminated, None)),
    )


def test_rewards_to_go_in_a_transformed_space():
    reward, _, _, done, terminated, gamma, _ = stream(20, 2)
    tx = signed_hyperbolic_pair
    plain = discounted_returns(reward, done, terminated, gamma)
    found = discounted_returns(reward, done, terminated, gamma, tx=tx)
    assert_close(found, tx.apply(plain))


def test_next_value_of_a_terminated_step_is_without_influence():
    reward, value, after, done, terminated, gamma, lmbda = stream(20, 2)
    assert terminated.any()
    spoiled = torch.where(terminated, torch.nan, after).requires_grad_()
    out = gae(reward, value, spoiled, done, terminated, gamma, lmbda)
    assert_close(out, gae(reward, value, after, done, terminated, gamma, lmbda))
    (of_after,) = torch.autograd.grad(out.sum(), spoiled)
    assert (of_after[terminated] == 0).all() and of_after.isfinite().all()
    for out in (
        lambda_returns(reward, spoiled, done, terminated, gamma, lmbda),
        discounted_returns(reward, done, terminated, gamma, spoiled),
        n_step_returns(reward, spoiled, done, terminated, gamma, 3, lmbda),
        td_targets(reward, spoiled, terminated, gamma),
    ):
        (of_after,) = torch.autograd.grad(out.sum(), spoiled)
        assert out.isfinite().all() and of_after.isfinite().all()


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


@pytest.mark.parametrize("which", ["gae", "lambda_returns", "discounted_returns", "n_step_returns"])
@pytest.mark.parametrize("steps", [1, 5, 24])
def test_gradients_of_every_argument_are_right_twice(which, steps):
    reward, value, after, done, terminated, gamma, lmbda = stream(steps, 2 if steps < 9 else 1)
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
        "n_step_returns": (
            lambda r, w, g, k: n_step_returns(r, w, done, terminated, g, 3, k),
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


@pytest.mark.parametrize("steps", [5, 26])
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


def n_steps(n, **options):
    return n_step_returns(X, X, FLAGS, FLAGS, 0.9, n, **options)


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
        (
            lambda: td_targets(X, X[:5], FLAGS, 0.9),
            ValueError,
            r"td_targets: next_value has shape \(5,\), expected \(6,\) \(from reward\)",
        ),
        (
            lambda: td_targets(X, X, X, 0.9),
            TypeError,
            "td_targets: terminated has dtype float32, expected bool",
        ),
        (
            lambda: td_targets(X, X, FLAGS, X[:5]),
            ValueError,
            r"td_targets: gamma has shape \(5,\), expected one that broadcasts to \(6,\)",
        ),
        (lambda: td_targets(X, X, FLAGS, 2.0), ValueError, "td_targets: gamma is 2.0"),
        (lambda: n_steps(0), ValueError, "n_step_returns: n is 0, expected at least 1"),
        (lambda: n_steps(2.0), TypeError, "n_step_returns: n is a float, expected an int"),
        (lambda: n_steps(True), TypeError, "n_step_returns: n is a bool"),
        (
            lambda: n_steps(2, tx=torch.tanh),
            TypeError,
            "n_step_returns: tx is a builtin_function_or_method without a function 'apply'",
        ),
        (
            lambda: n_step_returns(X, X[:5], FLAGS, FLAGS, 0.9, 2, tx=signed_hyperbolic_pair),
            ValueError,
            r"next_value has shape \(5,\), expected \(6,\) \(from reward\), or that and one axis",
        ),
        (
            lambda: td_targets(X, torch.zeros(6, 3), FLAGS, 0.9, signed_hyperbolic_pair),
            ValueError,
            r"td_targets: tx.inverse makes of next_value a tensor of shape \(6, 3\), expected \(6,",
        ),
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
