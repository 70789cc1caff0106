"""Gauss-Newton products against the matrix itself, built column by column by torch.func."""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from paramtree import hvp, rng, tree, vmap
from paramtree.autodiff import check_grads, gnvp

D = torch.float64
X = rng.normal(rng.key(0), (5, 3), dtype=D)


def make(name="params"):
    like = tree.new({"w": torch.zeros(2, 3, dtype=D), "b": torch.zeros(2, dtype=D)})
    return tree.random_like(rng.fold_in(rng.key(1), name), like)


def scores(p):
    return torch.tanh(X @ p["w"].T + p["b"])


def model(p):
    return {"y": scores(p), "index": torch.arange(3)}


def cross_entropy(out):
    return (out["y"].logsumexp(-1) - out["y"][:, 0]).sum() * len(out["index"])


def matrix(p):
    """J^T H J, dense."""
    vector, unravel = tree.ravel(p)
    jacobian = torch.func.jacrev(lambda v: scores(unravel(v)).reshape(-1))(vector)

    def loss(z):
        return cross_entropy({"y": z.view(5, 2), "index": torch.arange(3)})

    hessian = torch.func.jacrev(torch.func.jacrev(loss))(scores(p).reshape(-1))
    return jacobian.T @ hessian @ jacobian


def test_it_is_the_matrix_times_the_vector():
    p, v = make(), make("vector")
    got = gnvp(model, cross_entropy, p, v)
    assert_close(tree.ravel(got)[0], matrix(p) @ tree.ravel(v)[0], rtol=1e-12, atol=1e-14)
    assert got.is_locked and tree.vdot(v, got) > 0
    swapped = tree.new({"b": v["b"], "w": v["w"]})
    assert tree.allclose(gnvp(model, cross_entropy, p, swapped), got, rtol=0, atol=0)


def test_of_a_linear_model_it_is_the_hessian():
    p, v = make(), make("vector")

    def linear(p):
        return X @ p["w"].T + p["b"]

    def loss(z):
        return z.logsumexp(-1).pow(2).sum()

    assert tree.allclose(gnvp(linear, loss, p, v), hvp(lambda q: loss(linear(q)), p, v))


def test_of_a_likelihood_it_is_fishers_matrix():
    p, v = make(), make("vector")
    vector, unravel = tree.ravel(p)
    fisher = torch.zeros(8, 8, dtype=D)
    probs = scores(p).softmax(-1)
    for row in range(5):
        for label in range(2):
            slope = torch.func.grad(
                lambda q, r=row, k=label: scores(unravel(q)).log_softmax(-1)[r, k]
            )(vector)
            fisher += probs[row, label] * torch.outer(slope, slope)
    got = gnvp(scores, lambda z: -z.log_softmax(-1)[:, 1].sum(), p, v)
    assert_close(tree.ravel(got)[0], fisher @ tree.ravel(v)[0], rtol=1e-12, atol=1e-14)


def test_derivatives_in_everything():
    p, v, scale = make(), make("vector"), torch.tensor(0.7, dtype=D)

    def product(p, v, scale):
        return gnvp(lambda q: scale * scores(q), lambda z: (scale * z).exp().sum(), p, v)

    check_grads(product, p, v, scale)
    x = scale.clone().requires_grad_()
    (slope,) = torch.autograd.grad(tree.norm(product(p, v, x)), x)
    wanted = torch.func.grad(lambda s: tree.norm(product(p, v, s)))(scale)
    assert_close(slope, wanted)


def test_mapped_and_compiled():
    p, v = tree.stack([make("a"), make("b")]), make("vector")
    each = vmap(lambda q: gnvp(model, cross_entropy, q, v))(p)
    for i, name in enumerate(("a", "b")):
        wanted = gnvp(model, cross_entropy, make(name), v)
        assert tree.allclose(tree.unstack(each)[i], wanted, rtol=1e-10)
    run = torch.compile(
        lambda p, v: gnvp(model, cross_entropy, p, v), fullgraph=True, backend="aot_eager"
    )
    assert tree.allclose(run(make(), v), gnvp(model, cross_entropy, make(), v), rtol=1e-10)
    torch._dynamo.reset()


def test_small_cases():
    x = torch.tensor(0.5, dtype=D)
    assert_close(gnvp(torch.sin, lambda z: z**3, x, x), 6 * x.sin() * x.cos() ** 2 * x)
    with torch.inference_mode():
        assert_close(gnvp(torch.sin, lambda z: z**3, x, x), 6 * x.sin() * x.cos() ** 2 * x)
    flat = gnvp(torch.sin, lambda z: 2 * z, x, x)  # a loss without curvature
    assert flat == 0
    pair = tree.new({"a": x, "b": x})
    unused = gnvp(lambda p: p["a"], lambda z: z**2, pair, pair)
    assert unused["a"] == 2 * x and unused["b"] == 0
    empty = TensorDict({})
    assert tree.paths(gnvp(lambda p: x, lambda z: z**2, empty, empty)) == []


def test_bad_input():
    p, v = make(), make("vector")
    with pytest.raises(ValueError, match="gnvp: the names differ: only the argument has 'b'"):
        gnvp(model, cross_entropy, p, tree.exclude(v, "b"))
    with pytest.raises(
        ValueError, match=r"gnvp: the vector at 'b' has shape \(\), expected \(2,\)"
    ):
        gnvp(model, cross_entropy, p, tree.replace(v, {"b": torch.ones((), dtype=D)}))
    with pytest.raises(ValueError, match="gnvp: model_fn returned no float tensor"):
        gnvp(lambda p: torch.arange(3), cross_entropy, p, v)
    with pytest.raises(ValueError, match=r"fn returned a tensor of shape \(5, 2\)"):
        gnvp(scores, lambda z: z, p, v)
