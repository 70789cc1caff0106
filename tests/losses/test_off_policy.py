# pyright: reportArgumentType=false, reportCallIssue=false
import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.testing import assert_close
from torchrl.objectives.value.functional import vtrace_advantage_estimate

from losses import (
    discount_pair,
    lambda_returns,
    off_policy_returns,
    retrace,
    retrace_continuous,
    signed_hyperbolic_pair,
    vtrace,
)
from tests.oracles import returns_numpy as oracle

F64 = torch.float64
SHAPES = [(1,), (6,), (26, 3), (7, 2, 2)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(*shape, seed=0, low=-1.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape, dtype=F64).uniform_(low, high, generator=generator)


def flags(*shape, seed=0):
    done = draw(*shape, seed=seed + 90) < -0.5
    return done, done & (draw(*shape, seed=seed + 91) < 0)


def columns(shape, *args):
    for i in np.ndindex(shape):
        yield (slice(None), *i), [x[(slice(None), *i)].numpy() for x in args]


def policies(*shape):
    """Arguments of vtrace up to log_rho, gamma and lmbda included."""
    reward, value, after = (draw(*shape, seed=i) for i in range(3))
    log_rho = 1.5 * draw(*shape, seed=3)
    gamma, lmbda = (draw(*shape, seed=i, low=0.3) for i in (4, 5))
    return reward, value, after, *flags(*shape), log_rho, gamma, lmbda


def discrete(*shape, actions=3):
    """Arguments of retrace."""
    probs = draw(*shape, actions, seed=7).mul(2).softmax(-1)
    action = draw(*shape, actions, seed=8).argmax(-1)
    log_mu = draw(*shape, seed=9, low=-2.0, high=-0.3)
    gamma, lmbda = (draw(*shape, seed=i, low=0.3) for i in (4, 5))
    q = draw(*shape, actions, seed=6)
    return draw(*shape), q, probs, action, log_mu, *flags(*shape), gamma, lmbda


# ---- V-trace


@shapes
@pytest.mark.parametrize("leak", [0.0, 0.3, 1.0])
def test_vtrace_is_the_sums_that_define_it(shape, leak):
    args, clips = policies(*shape), (0.9, 0.7, 1.2)
    out = vtrace(*args, *clips, leak)
    assert_close(out.errors, out.value_target - args[1])
    for column, (r, v, w, d, e, ratio, g, k) in columns(shape[1:], *args):
        target, q, advantage = oracle.vtrace(r, v, w, d, e, ratio, g, k, clips, leak)
        assert_close(out.value_target[column].numpy(), target)
        assert_close(out.q_estimate[column].numpy(), q)
        assert_close(out.advantage[column].numpy(), advantage)


def test_on_policy_vtrace_is_the_lambda_return():
    reward, value, after, done, terminated, _, gamma, lmbda = policies(20, 2)
    after = torch.where(done, after, torch.cat([value[1:], after[-1:]]))
    log_rho = torch.zeros_like(reward)
    out = vtrace(reward, value, after, done, terminated, log_rho, gamma, lmbda)
    returns = lambda_returns(reward, after, done, terminated, gamma, lmbda)
    assert_close(out.value_target, returns)
    assert_close(out.q_estimate, returns)
    assert_close(out.advantage, returns - value)


def test_a_clip_at_infinity_and_a_leak_of_one_are_importance_sampling():
    args, endless = policies(20, 2), torch.inf
    raw = vtrace(*args, endless, endless, endless)
    assert_close(vtrace(*args, leak=1.0), raw)
    assert_close(vtrace(*args, leak=torch.tensor(1.0, dtype=F64)), raw)
    assert_close(vtrace(*args, leak=torch.tensor(0.0, dtype=F64)), vtrace(*args))
    halfway = vtrace(*args, 1.0, endless, endless, leak=0.5)  # of 0.5 min(1, rho) + 0.5 rho
    weight = 0.5 * (args[5].exp() + args[5].exp().clamp(max=1.0))
    reward, value, after, _, terminated, _, gamma, _ = args
    one_step = weight * (reward + gamma * ~terminated * after - value)
    assert_close(halfway.errors[-1], one_step[-1])


@pytest.mark.parametrize("clips", [(1.0, 1.0), (1.4, 0.8)])
def test_vtrace_agrees_with_torchrl_in_values_and_gradients(clips):
    """TorchRL has no lambda, and one clip for the value's and the policy's weight."""
    reward, value, after, done, terminated, log_rho, _, _ = policies(12, 3)
    value, after, log_pi = (x.clone().requires_grad_() for x in (value, after, log_rho))
    gamma = torch.tensor(0.9, dtype=F64, requires_grad=True)
    inputs = [value, after, log_pi, gamma]
    out = vtrace(reward, value, after, done, terminated, log_pi, gamma, 1.0, *clips, clips[0])

    def theirs(x):
        return x.movedim(0, 1).unsqueeze(-1)

    steps = [theirs(x) for x in (log_pi, 0 * log_rho, value, after, reward, done, terminated)]
    advantage, target = vtrace_advantage_estimate(gamma, *steps, *clips)
    assert_close(theirs(out.advantage), advantage)
    assert_close(theirs(out.value_target), target)
    found = torch.autograd.grad(out.advantage.sin().sum() + out.value_target.cos().sum(), inputs)
    wanted = torch.autograd.grad(advantage.sin().sum() + target.cos().sum(), inputs)
    assert_close(found, wanted)


def test_the_weight_on_the_value_is_on_next_value():
    """rlax takes V(s_{t+1}) of the next row; a difference where that is another number."""
    args = policies(5)
    reward, _, after, _, terminated, _, gamma, _ = args
    out = vtrace(*args[:-1], 0.0)
    assert_close(out.q_estimate, reward + gamma * ~terminated * after)


def test_steps_that_the_trace_passes_through():
    """rlax's sample_mask, by its own recursion."""
    args = policies(9)
    reward, value, after, _, _, log_rho, gamma, lmbda = args
    done = torch.zeros(9, dtype=torch.bool)
    kept = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1, 1], dtype=torch.bool)
    x, expected = torch.zeros((), dtype=F64), []
    for t in reversed(range(9)):
        if kept[t]:
            rho = log_rho[t].exp().clamp(max=1.0)
            x = rho * (reward[t] + gamma[t] * after[t] - value[t]) + gamma[t] * lmbda[t] * rho * x
        expected.append(x)
    zero = [torch.where(kept, y, 0.0) for y in (reward, value, after)]
    one = [torch.where(kept, y, 1.0) for y in (gamma, lmbda)]
    found = vtrace(*zero, done, done, torch.where(kept, log_rho, 0.0), *one)
    assert_close(found.errors, torch.stack(expected[::-1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [80.0, 1e4, torch.inf])
def test_large_log_ratios_are_clipped_without_a_trace_in_gradients(dtype, size):
    reward, value, after, done, terminated, *_ = policies(6)
    log_rho = torch.tensor([size, -size, 0.3, size, size, -size], dtype=dtype).requires_grad_()
    floats = [x.to(dtype).requires_grad_() for x in (reward, value, after)]
    zero = torch.tensor(0.0, dtype=dtype)
    for leak in (0.0, zero):
        out = vtrace(*floats, done, terminated, log_rho, 0.9, leak=leak)
        assert out.advantage.dtype == dtype
        grads = torch.autograd.grad(sum(x.sum() for x in out), [log_rho, *floats])
        assert all(x.isfinite().all() for x in (*out, *grads))
        assert (grads[0][log_rho.detach() > 0.3] == 0).all()
        assert grads[0][log_rho.detach() < 0.3].abs().max() < 1e-30  # what exp(-80) leaves
    bounded = log_rho.detach().clamp(-60, 20)
    assert_close(out, vtrace(*floats, done, terminated, bounded, 0.9))


def test_a_leak_takes_the_ratio_as_it_is():
    reward, value, after, *_ = policies(1)
    over = torch.zeros(1, dtype=torch.bool)
    log_rho = torch.tensor([80.0], dtype=F64)
    out = vtrace(reward, value, after, over, ~over, log_rho, 0.9, leak=0.1)
    weight = 1 + 0.1 * (np.exp(80.0) - 1)
    assert_close(out.errors, weight * (reward - value))
    slope = grad(lambda x: vtrace(reward, value, after, over, ~over, x, 0.9, leak=0.1).errors[0])
    assert_close(slope(log_rho), 0.1 * np.exp(80.0) * (reward - value))


def test_where_a_ratio_equals_its_clip_the_derivative_is_that_of_central_differences(central):
    reward, value, after, done, terminated, _, gamma, lmbda = policies(5)

    def f(log_rho, clip=1.0):
        out = vtrace(reward, value, after, done, terminated, log_rho, gamma, lmbda, clip, 2.0, 2.0)
        return out.value_target.sum()

    zero, one = torch.zeros(5, dtype=F64), torch.tensor(1.0, dtype=F64)
    assert_close(grad(f)(zero), central(f, zero), rtol=1e-5, atol=1e-6)
    clipped = central(lambda c: f(zero, c), one)
    assert_close(grad(lambda c: f(zero, c))(one), clipped, rtol=1e-5, atol=1e-6)


# ---- Retrace and its family


@shapes
def test_off_policy_returns_are_the_sums_that_define_them(shape):
    reward, q, after = (draw(*shape, seed=i) for i in range(3))
    done, terminated = flags(*shape)
    gamma, trace = draw(*shape, seed=4, low=0.3), draw(*shape, seed=5, low=0.0, high=2.0)
    found = off_policy_returns(reward, q, after, trace, done, terminated, gamma)
    constant = off_policy_returns(reward, q, after, 0.7, done, terminated, gamma)
    args = reward, q, after, trace, done, terminated, gamma
    for column, (r, a, w, c, d, e, g) in columns(shape[1:], *args):
        assert_close(found[column].numpy(), oracle.off_policy_returns(r, a, w, c, d, e, g))
        sums = oracle.off_policy_returns(r, a, w, 0.7 + 0 * c, d, e, g)
        assert_close(constant[column].numpy(), sums)


@shapes
def test_retrace_is_the_sums_that_define_it(shape):
    args = discrete(*shape)
    reward, q, probs, action, log_mu, done, terminated, gamma, lmbda = args
    found = retrace(*args)
    one_hot = torch.nn.functional.one_hot(action, 3)
    assert_close(retrace(*args[:3], one_hot, *args[4:]), found)
    later = action.roll(-1, 0).unsqueeze(-1)
    chosen = q.gather(-1, later).squeeze(-1).roll(1, 0)  # Q(s_t, a_t) at index t, but at 0
    chance = probs.gather(-1, later).squeeze(-1).roll(1, 0)
    trace = lmbda * (chance / log_mu.exp()).clamp(max=1.0)
    expected = (probs * q).sum(-1)
    inputs = reward, chosen, expected, trace, done, terminated, gamma
    for column, (r, a, w, c, d, e, g) in columns(shape[1:], *inputs):
        assert_close(found[column].numpy(), oracle.off_policy_returns(r, a, w, c, d, e, g))
    log_rho = chance.log() - log_mu
    assert_close(
        retrace_continuous(reward, chosen, expected, log_rho, done, terminated, gamma, lmbda),
        found,
    )


def test_the_family():
    """Importance sampling, tree backup and Q(lambda) by recursions of their own."""
    reward, q, probs, action, log_mu, *_ = discrete(6)
    going_on, gamma, lmbda = torch.zeros(6, dtype=torch.bool), 0.9, 0.8
    expected = (probs * q).sum(-1)
    later = action.roll(-1, 0)[:, None]
    chosen, chance = (x.gather(-1, later).squeeze(-1) for x in (q, probs))  # in s_{t+1}
    mu = log_mu.exp().roll(-1)

    def by_loop(step):
        x = reward[-1] + gamma * expected[-1]
        out = [x]
        for t in reversed(range(5)):
            x = reward[t] + gamma * step(t, x)
            out.append(x)
        return torch.stack(out[::-1])

    def ours(trace):
        args = chosen.roll(1), expected, trace.roll(1)
        return off_policy_returns(reward, *args, going_on, going_on, gamma)

    sampled = by_loop(lambda t, x: expected[t] + chance[t] / mu[t] * (x - chosen[t]))
    assert_close(ours(chance / mu), sampled)
    others = [[a for a in range(3) if a != later[t]] for t in range(6)]
    tree = by_loop(lambda t, x: (probs[t] * q[t])[others[t]].sum() + chance[t] * x)
    assert_close(ours(chance), tree)
    mixed = by_loop(lambda t, x: expected[t] + lmbda * (x - chosen[t]))
    assert_close(ours(lmbda + 0 * chance), mixed)


def test_what_stands_at_the_first_step_is_without_influence():
    args = list(discrete(6))
    found = retrace(*args)
    args[3] = (args[3] + (torch.arange(6) == 0)) % 3
    args[4] = args[4] + (torch.arange(6) == 0)
    assert_close(retrace(*args), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_of_zero_and_one_and_large_log_ratios(dtype):
    reward, q, _, action, _, done, terminated, *_ = discrete(6)
    probs = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0, 1, 2]), 3).to(dtype)
    log_mu = torch.tensor([-80.0, 0.0, -80.0, -1e4, -torch.inf, 0.0], dtype=dtype)
    inputs = [x.to(dtype).requires_grad_() for x in (reward, q, log_mu)]
    for chances in (probs, probs.roll(1, 0), probs.roll(2, 0)):
        r, v, mu = inputs
        out = retrace(r, v, chances, action, mu, done, terminated, 0.9)
        grads = torch.autograd.grad(out.sum(), inputs)
        assert all(x.isfinite().all() for x in (out, *grads))
    log_rho = torch.tensor([80.0, -80.0, 1e4, torch.inf, -torch.inf, 0.5], dtype=dtype)
    log_rho.requires_grad_()
    r, v, _ = inputs
    out = retrace_continuous(r, v[:, 0], v[:, 1], log_rho, done, terminated, 0.9)
    (slope,) = torch.autograd.grad(out.sum(), log_rho)
    assert out.dtype == dtype and out.isfinite().all()
    assert slope.abs().max() < 1e-30 and (slope[log_rho.detach() > 0] == 0).all()


def test_transformed_values():
    """As rlax: values out of the space, the plain function, and back."""
    reward, q, probs, action, log_mu, done, terminated, gamma, lmbda = discrete(12, 2)
    for tx in (signed_hyperbolic_pair, discount_pair):
        if tx is discount_pair:
            reward, gamma = 0.05 * reward, 0.5 * gamma  # -log(1 - x) wants x below 1
        flat = tx.inverse(q)
        found = retrace(reward, q, probs, action, log_mu, done, terminated, gamma, lmbda, tx)
        plain = retrace(reward, flat, probs, action, log_mu, done, terminated, gamma, lmbda)
        assert_close(found, tx.apply(plain))
        args = lmbda, done, terminated, gamma
        found = off_policy_returns(reward, q[..., 0], q[..., 1], *args, tx)
        plain = off_policy_returns(reward, flat[..., 0], flat[..., 1], *args)
        assert_close(found, tx.apply(plain))
        args = log_mu, done, terminated, gamma, lmbda
        found = retrace_continuous(reward, q[..., 0], q[..., 1], *args, tx)
        plain = retrace_continuous(reward, flat[..., 0], flat[..., 1], *args)
        assert_close(found, tx.apply(plain))


# ---- hyper-parameters


def test_hyper_parameters_mapped_alone_and_per_step():
    args = policies(26, 2)[:6]
    names = ("gamma", "lmbda", "rho_clip", "c_clip", "pg_rho_clip", "leak")
    values = torch.tensor([0.9, 0.8, 0.95, 0.7, 1.1, 0.2], dtype=F64)

    def f(*hyper):
        out = vtrace(*args, **dict(zip(names, hyper, strict=True)))
        return sum(x.sin().sum() for x in out)

    for i in range(6):
        many = torch.stack([values[i], values[i] * 0.9])
        dims = tuple(0 if i == j else None for j in range(6))
        inputs = [many if i == j else x for j, x in enumerate(values)]
        found = vmap(grad(f, i), dims)(*inputs)
        singles = [[y if i == j else x for j, x in enumerate(values)] for y in many]
        assert_close(found, torch.stack([grad(f, i)(*single) for single in singles]))
        full = [x.expand(26, 2) if i == j else x for j, x in enumerate(values)]
        assert_close(f(*full), f(*values))
        column = [x.expand(26, 1) if i == j else x for j, x in enumerate(values)]
        assert_close(f(*column), f(*values))


def test_lambda_per_step_is_that_of_the_action_that_follows():
    args = discrete(6)
    going_on = torch.zeros(6, dtype=torch.bool)
    lmbda = torch.tensor([5.0, 0.1, 0.0, 0.3, 0.4, 0.5], dtype=F64)  # the first is not read
    out = retrace(*args[:5], going_on, going_on, 0.9, lmbda)
    cut = retrace(*(x[:2] for x in args[:5]), going_on[:2], going_on[:2], 0.9, lmbda[:2])
    assert_close(out[:2], cut)  # 0 at step 2 is as if the sequence ended with step 1


def test_float32_keeps_its_dtype_beside_float64_numbers():
    args = [x.float() if x.is_floating_point() else x for x in discrete(6)]
    assert retrace(*args[:7], 0.9, torch.tensor(0.8, dtype=F64)).dtype == torch.float32
    args = [x.float() if x.is_floating_point() else x for x in policies(6)]
    out = vtrace(
        *args[:6], 0.9, 0.8, torch.tensor(1.0, dtype=F64), leak=torch.tensor(0.1, dtype=F64)
    )
    assert {x.dtype for x in out} == {torch.float32}


# ---- bad input


X, OVER = torch.zeros(6), torch.zeros(6, dtype=torch.bool)
Q, A = torch.zeros(6, 3), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: vtrace(X, X, X, OVER, OVER, X[:5], 0.9),
            ValueError,
            r"vtrace: log_rho has shape \(5,\), expected \[T\] with T=6 \(from reward\)",
        ),
        (lambda: vtrace(X, X, X, OVER, OVER, X, 0.9, 1.1), ValueError, "vtrace: lmbda is 1.1"),
        (
            lambda: vtrace(X, X, X, OVER, OVER, X, 0.9, rho_clip=-1.0),
            ValueError,
            "vtrace: rho_clip is -1.0, expected at least 0",
        ),
        (
            lambda: vtrace(X, X, X, OVER, OVER, X, 0.9, c_clip=X[:5]),
            ValueError,
            r"vtrace: c_clip has shape \(5,\), expected one that broadcasts to",
        ),
        (
            lambda: vtrace(X, X, X, OVER, OVER, X, 0.9, leak=2.0),
            ValueError,
            "vtrace: leak is 2.0, expected a number from 0 to 1",
        ),
        (
            lambda: vtrace(X, X, X, OVER, X, X, 0.9),
            TypeError,
            "vtrace: terminated has dtype float32, expected bool",
        ),
        (
            lambda: off_policy_returns(X, X, X, -0.5, OVER, OVER, 0.9),
            ValueError,
            "off_policy_returns: trace is -0.5, expected at least 0",
        ),
        (
            lambda: off_policy_returns(X, X[:5], X, 0.5, OVER, OVER, 0.9),
            ValueError,
            r"off_policy_returns: action_value has shape \(5,\)",
        ),
        (
            lambda: off_policy_returns(X, X[:5], X, 0.5, OVER, OVER, 0.9, signed_hyperbolic_pair),
            ValueError,
            r"off_policy_returns: action_value has shape \(5,\), expected \(6,\)",
        ),
        (
            lambda: retrace(X, X, Q, A, X, OVER, OVER, 0.9),
            ValueError,
            r"retrace: next_action_value has shape \(6,\), expected \[T, \*batch, A\] = \(6, 'A'\)",
        ),
        (
            lambda: retrace(X, Q, Q[:, :2], A, X, OVER, OVER, 0.9),
            ValueError,
            r"retrace: next_probs has shape \(6, 2\), expected \(6, 3\) \(from next_action_value\)",
        ),
        (
            lambda: retrace(X, Q, Q, A + 3, X, OVER, OVER, 0.9),
            ValueError,
            "retrace: action holds an index outside of 0 to 2",
        ),
        (
            lambda: retrace(X, Q, Q, X, X, OVER, OVER, 0.9),
            TypeError,
            r"retrace: action of shape \[6\] has dtype float32, expected integers",
        ),
        (
            lambda: retrace(X, Q, Q, A, X, OVER, OVER, 0.9, tx=3),
            TypeError,
            "retrace: tx is an int without a function 'apply'",
        ),
        (
            lambda: retrace_continuous(X, X, X, A, OVER, OVER, 0.9),
            TypeError,
            "retrace_continuous: log_rho has dtype int64",
        ),
        (
            lambda: retrace_continuous(X, X, X[:5], X, OVER, OVER, 0.9),
            ValueError,
            r"retrace_continuous: next_value has shape \(5,\)",
        ),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=f"^{text}") as caught:
        call()
    assert "\n" not in str(caught.value)
