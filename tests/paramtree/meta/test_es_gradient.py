"""Perturbations and the gradient that values estimate, from small functions to a meta-gradient."""

import math
from functools import partial

import pytest
import torch

from paramtree import check_grads, grad, meta, rng, tree, vmap
from tests.paramtree.meta.test_golden_lpg import probe_of

D = torch.float64
KEY = rng.key(5)


def params():
    return tree.new(
        {
            "w": rng.normal(rng.fold_in(KEY, "w"), (2, 3), dtype=D),
            "sub": tree.new({"b": rng.normal(rng.fold_in(KEY, "b"), (4,), dtype=D)}),
        }
    )


def flat(nest, n):
    return torch.cat([x.reshape(n, -1) for x in tree.leaves(nest)], 1)


def loss(p):
    return (p["w"].sum(1).tanh() * p["sub", "b"][:2].exp()).sum() + p["sub", "b"].pow(3).sum()


def test_centered_ranks_are_as_exact_as_the_values():
    """The first of n values is the highest of 2n, the others are the lowest and tie."""
    n = 4
    up, down = torch.zeros(n, dtype=D), torch.zeros(n, dtype=D)
    up[0] = 1.0
    noise = torch.eye(n, dtype=D)
    slope = meta.es_gradient(up, down, noise, sigma=1.0, rank="centered")
    rank = 0.5 - ((2 * n - 2) / 2 / (2 * n - 1) - 0.5)  # less that of the ties
    torch.testing.assert_close(slope[0].item(), rank / 2 / n, rtol=1e-15, atol=0.0)
    assert slope[1:].count_nonzero() == 0


# ---------------------------------------------------------------------------------- perturbations


def test_normal_perturbations_are_those_of_es_grad():
    p, n, sigma = params(), 6, 0.2
    noise = meta.perturbations(KEY, p, n)
    assert noise.batch_size == (n,) and noise["sub"].batch_size == (n,) and noise.is_locked
    wanted = rng.normal(rng.fold_in(rng.fold_in(KEY, "sub"), "b"), (n, 4), dtype=D)
    assert torch.equal(noise["sub", "b"], wanted)
    ends = [
        vmap(loss)(tree.map(lambda e, x, s=s: x + s * e, noise, grown(p, n))) for s in (0.2, -0.2)
    ]
    for rank in (None, "pair", "centered"):
        ours = meta.es_gradient(*ends, noise, sigma=sigma, rank=rank)
        theirs = meta.es_grad(loss, KEY, sigma=sigma, samples=n, rank=rank)(p)[1]
        assert ours.batch_size == () and ours.is_locked
        for a, b in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
            torch.testing.assert_close(a, b)


def grown(p, n):
    return tree.stack([p] * n)


@pytest.mark.parametrize("n", [4, 10, 25])
def test_orthogonal_perturbations_are_so_in_blocks_of_p_and_their_mean_square_is_one(n):
    noise = flat(meta.perturbations(KEY, params(), n, basis="orthogonal"), n)
    for block in noise.split(10):
        eye = 10 * torch.eye(len(block), dtype=D)
        torch.testing.assert_close(block @ block.T, eye, rtol=0, atol=1e-12)
    rows = vmap(lambda k: flat(meta.perturbations(k, params(), n, basis="orthogonal"), n))(
        rng.split(KEY, 400)
    )
    moments = torch.stack([x.T @ x / n for x in rows])
    error = moments.std(0) / 20
    eye = torch.eye(10, dtype=D)
    assert ((moments.mean(0) - eye).abs() <= 4.5 * error + 1e-12).all()
    assert (rows.mean((0, 1)).abs() < 4.5 / math.sqrt(400 * n)).all()


def test_dtypes_shapes_and_complex_leaves_of_an_orthogonal_basis():
    nest = {
        "a": torch.zeros(3, dtype=torch.bfloat16),
        "c": torch.zeros(2, dtype=torch.complex64),
        "f": torch.zeros((), dtype=torch.float32),
    }
    noise = meta.perturbations(KEY, nest, 5, basis="orthogonal")
    assert [(noise[k].dtype, tuple(noise[k].shape[1:])) for k in "acf"] == [
        (x.dtype, tuple(x.shape)) for x in nest.values()
    ]
    parts = [noise["a"].double(), torch.view_as_real(noise["c"]).double(), noise["f"].double()]
    wide = torch.cat([x.reshape(5, -1) for x in parts], 1)  # [5, 8]
    torch.testing.assert_close(wide @ wide.T, 8 * torch.eye(5, dtype=D), rtol=0, atol=0.1)


def test_p_orthogonal_pairs_are_the_whole_gradient():
    p = params()
    slope = meta.es_grad(loss, KEY, sigma=1e-5, samples=10, basis="orthogonal")(p)[1]
    exact = grad(loss)(p)
    for a, b in zip(tree.leaves(slope), tree.leaves(exact), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    normal = meta.es_grad(loss, KEY, sigma=1e-5, samples=10)(p)[1]
    assert not torch.allclose(normal["w"], exact["w"], rtol=0.1)

    def step(hyper, state, k):
        return tree.map(lambda x: x - hyper["rate"] * x.sin(), state)

    mode = partial(meta.zero_order, step, lambda h, s: loss(s), 3, argnums=(0, 1))
    hyper = tree.new({"rate": torch.tensor(0.1, dtype=D)})
    ours = mode(key=KEY, sigma=1e-5, samples=11, basis="orthogonal")(hyper, p)[1]
    exact = meta.unrolled(step, lambda h, s: loss(s), 3, argnums=(0, 1))(hyper, p)[1]
    torch.testing.assert_close(ours[0]["rate"], exact[0]["rate"], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ours[1]["w"], exact[1]["w"], rtol=1e-7, atol=1e-7)


def test_the_estimate_is_differentiable_in_values_and_width():
    noise = meta.perturbations(KEY, params(), 5)
    up, down = (rng.normal(rng.fold_in(KEY, name), (5,), dtype=D) for name in ("up", "down"))
    check_grads(
        lambda u, d, s: meta.es_gradient(u, d, noise, sigma=s), up, down, torch.tensor(0.3, dtype=D)
    )


@pytest.mark.parametrize(
    "error, text, call",
    [
        (
            ValueError,
            "basis is 'sobol'",
            lambda: meta.perturbations(KEY, params(), 3, basis="sobol"),
        ),
        (ValueError, "n is 0", lambda: meta.perturbations(KEY, params(), 0)),
        (TypeError, "nest is torch.int64", lambda: meta.perturbations(KEY, KEY, 3)),
        (ValueError, "key has shape", lambda: meta.perturbations(rng.split(KEY), params(), 3)),
        (
            ValueError,
            "zero_order: basis is 'x'",
            lambda: meta.zero_order(len, len, 3, key=KEY, basis="x"),
        ),
        (ValueError, "es_gradient: up is a tensor of shape", lambda: estimate(up=torch.ones(2, 2))),
        (
            ValueError,
            r"shapes \(3,\), \(2, 4\), expected 2 rows",
            lambda: estimate(down=torch.ones(3)),
        ),
        (ValueError, "rank is 'best'", lambda: estimate(rank="best")),
        (ValueError, "sigma is 0", lambda: estimate(sigma=0.0)),
        (TypeError, "noise is torch.int64", lambda: estimate(noise=KEY)),
    ],
)
def test_bad_input(error, text, call):
    with pytest.raises(error, match=text):
        call()


def estimate(up=None, down=None, noise=None, **options):
    values = [torch.ones(2) if x is None else x for x in (up, down)]
    return meta.es_gradient(*values, torch.ones(2, 4) if noise is None else noise, **options)


# ------------------------------------------------------------------------------ the meta-gradient
#
# Without full stops: with them, reverse mode gives another vector than the function's gradient.


def ends(probe, params, noise, sigma, chunk=256):
    """Values on both sides of each perturbation, a chunk at a time."""
    sides = []
    for sign in (1, -1):
        parts = []
        for i in range(0, noise.batch_size[0], chunk):
            some = noise[i : i + chunk]
            moved = tree.add(grown(params, len(some)), tree.scale(some, sign * sigma))
            parts.append(vmap(probe)(moved).detach())
        sides.append(torch.cat(parts))
    return sides


def cosine(a, b):
    return float(tree.vdot(a, b) / tree.norm(a) / tree.norm(b))


def cosines_follow_their_law(golden, total, sizes, sigma=1e-5):
    """Each block of n pairs is an estimate; every pair is evaluated."""
    probe, params = probe_of(golden, full_stop=False)
    exact, noise = grad(probe)(params), meta.perturbations(rng.key(3), params, total)
    up, down = ends(probe, params, noise, sigma)
    p = tree.ravel(params)[0].numel()
    for n in sizes:
        found = []
        for i in range(0, total, n):
            rows = slice(i, i + n)
            slope = meta.es_gradient(up[rows], down[rows], tree.lock(noise[rows]), sigma=sigma)
            found.append(cosine(slope, exact))
        found = torch.tensor(found, dtype=D)
        error = float(found.std()) / len(found) ** 0.5
        law = 1 / math.sqrt(1 + (p + 1) / n)
        assert abs(float(found.mean()) - law) < 3 * error < 0.2 * law, (n, found, law)


def test_golden_lpg_cosine_of_random_pairs(golden_lpg):
    cosines_follow_their_law(golden_lpg, 1024, (64, 256))


@pytest.mark.slow
def test_golden_lpg_cosine_of_many_random_pairs(golden_lpg):
    cosines_follow_their_law(golden_lpg, 8192, (64, 256, 1024))


def test_golden_lpg_pairs_along_the_standard_basis_are_the_meta_gradient(golden_lpg):
    """Of a bias and the heads, by a pair for each entry; the slow test has them all."""
    probe, params = probe_of(golden_lpg, full_stop=False)
    some, rest = tree.partition(params, "gru.bias_ih", "pi_hat", "y_hat.bias")
    along_basis(lambda p: probe(tree.merge(p, rest)), some)


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["standard", "orthogonal"])
def test_golden_lpg_pairs_along_a_whole_basis_are_the_meta_gradient(golden_lpg, basis):
    along_basis(*probe_of(golden_lpg, full_stop=False), basis)


def along_basis(probe, params, basis="standard", sigma=1e-6):
    exact = grad(probe)(params)
    vector, back = tree.ravel(params)
    p = vector.numel()
    if basis == "orthogonal":
        noise = meta.perturbations(KEY, params, p, basis="orthogonal")
    else:
        noise = vmap(back)(math.sqrt(p) * torch.eye(p, dtype=D))
    slope = meta.es_gradient(*ends(probe, params, noise, sigma), noise, sigma=sigma)
    for path, a, b in zip(tree.paths(exact), tree.leaves(slope), tree.leaves(exact), strict=True):
        assert float((a - b).abs().max()) < 1e-4 * float(b.abs().max()), path
