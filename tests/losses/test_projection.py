# pyright: reportArgumentType=false, reportCallIssue=false
import pytest
import torch
from torch.func import grad, jacrev, vmap
from torch.testing import assert_close

from losses import (
    categorical_projection,
)
from tests.losses.return_atoms import (
    SUPPORT,
    D,
    K,
    draw,
    normal,
    projected,
)


@pytest.mark.parametrize("seed", range(5))
def test_projection_is_the_loop(seed):
    source, target = 2 * normal(7, seed=seed), normal(4, seed=seed + 50).sort().values
    probs = normal(7, seed=seed + 100).softmax(-1)
    found = categorical_projection(source, probs, target)
    assert_close(
        found, torch.tensor(projected(source.tolist(), probs.tolist(), target.tolist())).to(D)
    )


def test_projection_takes_batches_on_any_side():
    source, target = normal(3, 2, 6), normal(3, 2, 4, seed=1).sort(-1).values
    probs = normal(3, 2, 6, seed=2).softmax(-1)
    every = categorical_projection(source, probs, target)
    for i in range(3):
        for j in range(2):
            row = categorical_projection(source[i, j], probs[i, j], target[i, j])
            assert_close(every[i, j], row)
    one = categorical_projection(source[0, 0], probs, target[0, 0])
    assert_close(one[2, 1], categorical_projection(source[0, 0], probs[2, 1], target[0, 0]))
    many = categorical_projection(source[0, 0], probs[0, 0], target)
    assert_close(many[2, 1], categorical_projection(source[0, 0], probs[0, 0], target[2, 1]))
    mapped = vmap(lambda t: categorical_projection(source[0, 0], probs[0, 0], t), 1, 1)(target)
    assert_close(mapped, many)


def test_projection_keeps_mass_and_the_mean_inside():
    source = 3.5 * torch.rand(20, 6, dtype=D, generator=draw()) - 1.5
    probs = normal(20, 6).softmax(-1)
    found = categorical_projection(source, probs, SUPPORT)
    assert (found >= 0).all()
    assert_close(found.sum(-1), torch.ones(20, dtype=D))
    assert_close((found * SUPPORT).sum(-1), (source * probs).sum(-1))


def test_projection_at_the_grid_and_beyond_it():
    probs = normal(K).softmax(-1)
    assert_close(categorical_projection(SUPPORT, probs, SUPPORT), probs, rtol=0, atol=0)
    low, high = SUPPORT - 100, SUPPORT + 100
    assert_close(categorical_projection(low, probs, SUPPORT), torch.eye(K, dtype=D)[0])
    assert_close(categorical_projection(high, probs, SUPPORT), torch.eye(K, dtype=D)[-1])
    ends = torch.tensor([-torch.inf, torch.inf], dtype=D)
    half = torch.tensor([0.5, 0.5], dtype=D)
    found = categorical_projection(ends, half, SUPPORT)
    assert found.tolist() == [0.5, 0, 0, 0, 0.5]
    slope = grad(lambda z: (categorical_projection(z, half, SUPPORT) * SUPPORT).sum())(ends)
    assert slope.tolist() == [0, 0]


def test_projection_of_one_atom_and_of_equal_ones():
    one = torch.zeros(1, dtype=D)
    assert_close(
        categorical_projection(SUPPORT, normal(3, K).softmax(-1), one), torch.ones(3, 1).to(D)
    )
    twin = torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=D)
    found = categorical_projection(torch.tensor([0.5, 1.0, 1.5]).to(D), torch.ones(3).to(D), twin)
    assert_close(found.sum(), torch.tensor(3.0, dtype=D))
    assert_close((found * twin).sum(), torch.tensor(3.0, dtype=D))
    flat = torch.ones(3, dtype=D)

    def f(source, target):
        return categorical_projection(source, flat, target).square().sum()

    slopes = grad(f, (0, 1))(twin[:3], flat)
    assert slopes[0].isfinite().all() and slopes[1].isfinite().all()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_projection_is_differentiable_in_everything(central, variant, which):
    args = [normal(6), normal(6, seed=1).softmax(-1), normal(4, seed=2).sort().values]
    weights = normal(4, seed=3)

    def f(x):
        given = [*args[:which], x, *args[which + 1 :]]
        return (categorical_projection(*given) * weights).sum()

    assert_close(variant(grad(f))(args[which]), central(f, args[which]), rtol=1e-6, atol=1e-8)


def test_at_the_grid_the_derivative_is_the_one_to_the_right():
    probs = normal(K).softmax(-1)
    found = jacrev(lambda z: categorical_projection(z, probs, SUPPORT))(SUPPORT)
    h = 1e-7
    for j in range(K):
        moved = SUPPORT.clone()
        moved[j] += h
        right = (categorical_projection(moved, probs, SUPPORT) - probs) / h
        assert_close(found[:, j], right, rtol=1e-5, atol=1e-6)
    assert found.sum(0).abs().max() < 1e-12  # no mass comes or goes

    def plain(z):  # outside of any transform the atoms are found by bisection
        return categorical_projection(z, probs, SUPPORT)

    assert_close(torch.autograd.functional.jacobian(plain, SUPPORT), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projection_keeps_the_dtype(dtype):
    args = (x.to(dtype) for x in (SUPPORT * 0.5, normal(2, K).softmax(-1), SUPPORT))
    assert categorical_projection(*args).dtype == dtype


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"probs": torch.ones(4)},
            ValueError,
            r"probs has shape \(4,\), expected \[\.\.\., 5\] \(from",
        ),
        ({"support_from": torch.tensor(1.0)}, ValueError, r"support_from has shape \(\), expected"),
        ({"support_to": torch.zeros(0)}, ValueError, r"support_to has shape \(0,\), expected"),
        ({"support_to": torch.tensor([1.0, 0.0])}, ValueError, "support_to decreases somewhere"),
        ({"support_to": torch.tensor([1, 2])}, TypeError, "support_to has dtype int64"),
        (
            {"probs": torch.ones(3, 5), "support_to": torch.ones(2, 4)},
            ValueError,
            r"have shapes \(5,\), \(3, 5\) and \(2, 4\), expected some that broadcast",
        ),
    ],
)
def test_bad_arguments_of_the_projection(change, error, text):
    args = {"support_from": torch.zeros(5), "probs": torch.ones(5), "support_to": torch.arange(4.0)}
    with pytest.raises(error, match=f"^categorical_projection: .*{text}"):
        categorical_projection(**{**args, **change})
