"""Zero-order gradients: formulas with the same perturbations, their statistics, and torchopt."""

import math

import pytest
import torch

from paramtree import check_grads, grad, meta, rng, tree, vmap

D = torch.float64
KEY = rng.key(11)
METHODS = ("antithetic", "forward", "naive")


def draw(name, *shape):
    return rng.normal(rng.fold_in(rng.key(5), name), shape, dtype=D)


def noise(leaf, samples, *path):
    """The perturbations of a leaf, as the docstring says that they are drawn."""
    key = KEY
    for name in path:
        key = rng.fold_in(key, name)
    return rng.normal(key, (samples, *leaf.shape), dtype=leaf.dtype)


def bowl(x):
    return (x * torch.arange(1.0, 1.0 + x.numel(), dtype=x.dtype) * x).sum() + x.sum().sin()


# --------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_estimates_are_those_of_their_formulas(chunk):
    x, sigma, n = draw("x", 4), 0.3, 7
    eps = noise(x, n)

    def each(f):
        return torch.stack([f(e) * e for e in eps]).mean(0) / sigma

    wanted = {
        "naive": each(lambda e: bowl(x + sigma * e)),
        "forward": each(lambda e: bowl(x + sigma * e) - bowl(x)),
        "antithetic": each(lambda e: (bowl(x + sigma * e) - bowl(x - sigma * e)) / 2),
    }
    for method in METHODS:
        estimate = meta.es_grad(bowl, KEY, method=method, sigma=sigma, samples=n, chunk=chunk)
        value, slope = estimate(x)
        torch.testing.assert_close(value, bowl(x))
        torch.testing.assert_close(slope, wanted[method])


def test_antithetic_estimate_of_a_linear_function_is_the_second_moment_of_the_noise_times_it():
    """For <g, x> it is mean(ε εᵀ) g, and on a quadratic function just the same: no bias at all."""
    g, x, matrix = draw("g", 5), draw("x", 5), draw("a", 5, 5)
    eps = noise(x, 12)
    moment = eps.T @ eps / 12
    for sigma in (0.01, 3.0):
        options = {"sigma": sigma, "samples": 12}
        slope = meta.es_grad(lambda x: g @ x + 4.0, KEY, **options)(x)[1]
        torch.testing.assert_close(slope, moment @ g, rtol=1e-9, atol=1e-9)
        slope = meta.es_grad(lambda x: x @ matrix @ x, KEY, **options)(x)[1]
        exact = moment @ (matrix + matrix.T) @ x
        torch.testing.assert_close(slope, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_mean_is_the_gradient_of_the_smoothed_function_within_its_standard_error(method):
    """sin smoothed is exp(-σ²/2) sin, so the mean has a closed form for any width."""
    x, sigma, n = torch.tensor(0.4, dtype=D), 0.5, 40_000
    slope = meta.es_grad(torch.sin, KEY, method=method, sigma=sigma, samples=n)(x)[1]
    eps = noise(x, n)
    up, down = torch.sin(x + sigma * eps), torch.sin(x - sigma * eps)
    terms = {"naive": up, "forward": up - x.sin(), "antithetic": (up - down) / 2}[method]
    error = (terms * eps / sigma).std() / math.sqrt(n)
    exact = math.exp(-(sigma**2) / 2) * x.cos()
    assert abs(slope - exact) < 4 * error < 0.1


def test_ranks_take_the_place_of_values():
    x, n, sigma = draw("x", 3), 6, 0.2
    eps = noise(x, n)
    up = torch.stack([bowl(x + sigma * e) for e in eps])
    down = torch.stack([bowl(x - sigma * e) for e in eps])
    first = (up > down).to(D)  # as GROOVE does it: 1 for the better of a pair, 0 for the other
    paired = torch.stack([(f - (1 - f)) * e for f, e in zip(first, eps, strict=True)])
    ranks = torch.cat((up, down)).argsort().argsort().to(D) / (2 * n - 1) - 0.5
    shaped = (ranks[:n] - ranks[n:]).unsqueeze(1) * eps
    for rank, terms in (("pair", paired), ("centered", shaped)):
        for scale in (1.0, 100.0):
            slope = meta.es_grad(
                lambda x, scale=scale: scale * bowl(x), KEY, sigma=sigma, samples=n, rank=rank
            )(x)[1]
            torch.testing.assert_close(slope, terms.mean(0) / (2 * sigma))
        flat = meta.es_grad(lambda x: 0 * x.sum(), KEY, samples=n, rank=rank)(x)[1]
        assert torch.equal(flat, torch.zeros(3, dtype=D))


# ------------------------------------------------------------------------------------------ trees


def params():
    return tree.new({"w": draw("w", 2, 3), "sub": tree.new({"b": draw("b", 2)})})


def loss(p):
    return (p["w"].sum(1).tanh() * p["sub", "b"].exp()).sum()


def test_perturbations_of_a_leaf_come_from_the_key_and_its_path():
    n, sigma, p = 5, 0.1, params()
    w, b = noise(p["w"], n, "w"), noise(p["sub", "b"], n, "sub", "b")

    def at(sign, i):
        moved = {"w": p["w"] + sign * sigma * w[i]}
        moved["sub"] = tree.new({"b": p["sub", "b"] + sign * sigma * b[i]})
        return loss(tree.new(moved))

    weight = torch.stack([at(1, i) - at(-1, i) for i in range(n)]) / (2 * sigma)
    value, slope = meta.es_grad(loss, KEY, sigma=sigma, samples=n)(p)
    torch.testing.assert_close(value, loss(p))
    assert slope.is_locked
    torch.testing.assert_close(slope["w"], torch.einsum("i,ijk->jk", weight, w) / n)
    torch.testing.assert_close(slope["sub", "b"], weight @ b / n)
    more = tree.new({**tree.entries(p), "a": draw("a", 2)})
    again = meta.es_grad(loss, KEY, sigma=sigma, samples=n)(more)[1]
    torch.testing.assert_close(again["w"], slope["w"])


def test_neither_the_inputs_nor_the_global_generator_move():
    p, state = params(), torch.random.get_rng_state()
    before = [x.clone() for x in tree.leaves(p)]
    first = meta.es_grad(loss, KEY)(p)[1]
    second = meta.es_grad(loss, KEY)(p)[1]
    other = meta.es_grad(loss, rng.key(12))(p)[1]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(before, tree.leaves(p), strict=True))
    assert torch.equal(first["w"], second["w"]) and not torch.equal(first["w"], other["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128])
def test_dtypes_of_the_leaves_are_those_of_the_estimate(dtype):
    x = draw("x", 4).to(dtype)
    for sigma in (0.1, torch.tensor(0.1, dtype=D)):
        slope = meta.es_grad(lambda x: x.abs().sum().to(D), KEY, sigma=sigma)(x)[1]
        assert slope.dtype == dtype and slope.shape == (4,)


def test_complex_leaves_are_two_reals():
    x = torch.complex(draw("re", 3), draw("im", 3))

    def energy(x):
        return (x.abs() ** 2).sum() + x.real.sum()

    slope = meta.es_grad(energy, KEY, samples=20_000)(x)[1]
    torch.testing.assert_close(slope, grad(energy)(x), rtol=0.0, atol=0.1)


def test_a_function_that_vmap_refuses_takes_chunk_one():
    def stepped(x):
        return torch.tensor(1.0 if float(x.sum()) > 0 else -1.0, dtype=D)

    x = 0.01 * draw("x", 3)
    value, slope = meta.es_grad(stepped, KEY, samples=64, chunk=1)(x)
    assert value.abs() == 1 and (slope > 0).all()


# ------------------------------------------------------------------------ derivatives and mapping


@pytest.mark.parametrize("method", METHODS)
def test_estimate_is_differentiable_in_width_in_place_and_in_what_the_function_closes_over(method):
    def estimate(x, sigma, scale):
        options = {"method": method, "sigma": sigma, "samples": 4, "chunk": 3}
        return meta.es_grad(lambda x: (scale * x).sin().sum(), KEY, **options)(x)[1]

    args = draw("x", 2), torch.tensor(0.3, dtype=D), torch.tensor(1.7, dtype=D)
    check_grads(estimate, *args)
    check_grads(lambda *z: grad(lambda *y: estimate(*y).sum(), (0, 1, 2))(*z), *args)


def test_tasks_with_keys_of_their_own_and_one_width_each():
    xs, keys = draw("xs", 3, 4), rng.split(KEY, 3)
    widths = torch.tensor([0.1, 0.5, 1.0], dtype=D)

    def one(x, key, sigma):
        return meta.es_grad(bowl, key, sigma=sigma, samples=5)(x)[1]

    mapped = vmap(one)(xs, keys, widths)
    rows = [one(*row) for row in zip(xs, keys, widths, strict=True)]
    torch.testing.assert_close(mapped, torch.stack(rows))
    alone = vmap(lambda sigma: one(xs[0], KEY, sigma))(widths)
    torch.testing.assert_close(alone[1], one(xs[0], KEY, widths[1]))


def test_no_value_is_read():
    x = torch.zeros(4, device="meta")
    key = KEY.to("meta")
    for rank in (None, "pair", "centered"):
        value, slope = meta.es_grad(lambda x: (x**2).sum(), key, rank=rank)(x)
        assert value.shape == () and slope.shape == (4,)


# --------------------------------------------------------------------------------------- the mode


def problem():
    """Three steps of descent on a quartic bowl: the learned rate, and where it began."""

    def step(hyper, state, k):
        slope = grad(lambda x: (x**4).sum() / 4 + bowl(x))(state["x"])
        return tree.new({"x": state["x"] - hyper["rate"] / (k + 1) * slope})

    def outer(hyper, state):
        return bowl(state["x"]) + 0.1 * hyper["rate"]

    hyper = tree.new({"rate": torch.tensor(0.05, dtype=D)})
    return step, outer, hyper, tree.new({"x": 0.5 * draw("x", 3)})


def unroll(step, outer, steps):
    def value(hyper, state):
        for k in range(steps):
            state = step(hyper, state, k)
        return outer(hyper, state)

    return value


def test_mode_agrees_with_the_unrolled_gradient_within_its_standard_error():
    step, outer, hyper, state = problem()
    unrolled = unroll(step, outer, 3)
    exact = grad(unrolled, (0, 1))(hyper, state)
    runs = [
        meta.zero_order(step, outer, 3, key=key, sigma=1e-3, samples=50, argnums=(0, 1))(
            hyper, state
        )
        for key in rng.split(KEY, 16)
    ]
    torch.testing.assert_close(runs[0][0], unrolled(hyper, state))
    for i, name in ((0, "rate"), (1, "x")):
        slopes = torch.stack([slopes[i][name] for _, slopes in runs])
        error = slopes.std(0) / math.sqrt(16)
        assert ((slopes.mean(0) - exact[i][name]).abs() < 4 * error + 1e-4).all()


def test_mode_is_an_estimate_of_what_it_unrolls_and_its_form_that_of_the_other_modes():
    step, outer, hyper, state = problem()
    options = {"sigma": 0.2, "samples": 6}
    unrolled = unroll(step, outer, 3)

    def of_both(nest):
        return unrolled(nest["hyper"], nest["state"])

    value, wanted = meta.es_grad(of_both, KEY, **options)({"hyper": hyper, "state": state})
    got = meta.zero_order(step, outer, 3, key=KEY, argnums=(1, 0), **options)(hyper, state)
    torch.testing.assert_close(got[0], value)
    torch.testing.assert_close(got[1][0]["x"], wanted["state"]["x"])
    torch.testing.assert_close(got[1][1]["rate"], wanted["hyper"]["rate"])

    def counting(hyper, state, k):
        return tree.new({**step(hyper, state, k).to_dict(), "count": state["count"] + 1})

    counted = tree.new({**tree.entries(state), "count": torch.zeros((), dtype=torch.int64)})
    mode = meta.zero_order(counting, outer, 3, key=KEY, argnums=(1, 0), **options)
    slopes = mode(hyper, counted)[1]
    torch.testing.assert_close(slopes[0]["x"], got[1][0]["x"])
    assert slopes[0]["count"] == 0

    def with_aux(hyper, state):
        return outer(hyper, state), {"x": state["x"]}

    mode = meta.zero_order(step, with_aux, 3, key=KEY, has_aux=True, **options)
    (value, aux), slopes = mode(hyper, state)
    torch.testing.assert_close(value, unrolled(hyper, state))
    assert aux["x"].shape == (3,) and slopes.is_locked and slopes["rate"].shape == ()


# --------------------------------------------------------------------------------------- torchopt


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("method", ["antithetic", "naive"])
def test_numbers_are_those_of_torchopt(method):
    """With the same perturbations; its forward method has another sign of the width's exponent."""
    torchopt = pytest.importorskip("torchopt")
    x, n, sigma = draw("x", 4), 5, 0.3
    eps = iter(noise(x, n))
    theirs = torchopt.diff.zero_order.zero_order(
        distribution=lambda shape: next(eps), method=method, num_samples=n, sigma=sigma
    )(bowl)
    leaf = x.clone().requires_grad_()
    value = theirs(leaf)
    ours = meta.es_grad(bowl, KEY, method=method, sigma=sigma, samples=n)(x)
    torch.testing.assert_close(ours[0], value.detach())
    torch.testing.assert_close(ours[1], torch.autograd.grad(value, leaf)[0])


# -------------------------------------------------------------------------------------- bad input


def estimate(fn=bowl, key=KEY, x=None, **options):
    return meta.es_grad(fn, key, **options)(torch.ones(2, dtype=D) if x is None else x)


def mode(**options):
    step, outer, *_ = problem()
    return meta.zero_order(step, outer, options.pop("steps", 2), **{"key": KEY, **options})


@pytest.mark.parametrize(
    "error, text, call",
    [
        (ValueError, "method is 'central', expected one of", lambda: estimate(method="central")),
        (ValueError, "rank is 'best', expected one of", lambda: estimate(rank="best")),
        (ValueError, "from method='naive'", lambda: estimate(rank="pair", method="naive")),
        (ValueError, "samples is 0, expected at least 1", lambda: estimate(samples=0)),
        (TypeError, "samples is 2.0, expected an int", lambda: estimate(samples=2.0)),
        (ValueError, "chunk is 0", lambda: estimate(chunk=0)),
        (ValueError, "sigma is 0, expected more than 0", lambda: estimate(sigma=0)),
        (ValueError, "sigma is nan", lambda: estimate(sigma=float("nan"))),
        (ValueError, "sigma has shape", lambda: estimate(sigma=torch.ones(2))),
        (TypeError, "sigma is torch.int64", lambda: estimate(sigma=torch.tensor(1))),
        (TypeError, "sigma is '1'", lambda: estimate(sigma="1")),
        (TypeError, "key is int, expected an int64 tensor", lambda: estimate(key=3)),
        (TypeError, "key is torch.float64", lambda: estimate(key=torch.zeros(2, dtype=D))),
        (ValueError, r"key has shape \(4, 2\)", lambda: estimate(key=rng.split(KEY, 4))),
        (TypeError, "es_grad: fn is a float", lambda: estimate(fn=1.0)),
        (ValueError, r"fn returned a tensor of shape \(2,\)", lambda: estimate(fn=torch.sin)),
        (TypeError, "fn returned torch.int64", lambda: estimate(fn=lambda x: x.sum().long())),
        (ValueError, r"expected \(scalar, aux\)", lambda: estimate(has_aux=True)),
        (TypeError, "fn is torch.int64, expected a float", lambda: estimate(x=KEY)),
        (TypeError, "without tensors", lambda: estimate(x=())),
        (
            TypeError,
            "at 'n' is torch.int64",
            lambda: estimate(fn=lambda p: p["x"].sum(), x=tree.new({"x": KEY.double(), "n": KEY})),
        ),
        (ValueError, "zero_order: steps is 0", lambda: mode(steps=0)),
        (ValueError, "zero_order: argnums is 3", lambda: mode(argnums=3)),
        (ValueError, "zero_order: method is 'es'", lambda: mode(method="es")),
        (TypeError, "zero_order: key is NoneType", lambda: mode(key=None)),
        (ValueError, "zero_order: sigma is -1", lambda: mode(sigma=-1)),
    ],
)
def test_bad_input_is_refused(error, text, call):
    with pytest.raises(error, match=text):
        call()
