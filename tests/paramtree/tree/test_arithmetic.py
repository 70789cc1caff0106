"""Trees as vectors: add, sub, scale, zeros_like, allclose, random_like."""

from functools import partial

import pytest
import torch
from tensordict import NonTensorData, TensorDict

from paramtree import check_grads, rng, tree, vmap

D = torch.float64


def make(n=2, dtype=D):
    policy = {"w": torch.arange(3.0 * n).view(n, 3).to(dtype), "b": torch.ones(n, dtype=dtype)}
    policy = TensorDict(policy, [n])
    return TensorDict({"policy": policy, "meta": {"w": torch.full((), 2.0, dtype=dtype)}}, [])


def shuffled(td):
    names = sorted(td.keys(), reverse=True)
    values = {n: shuffled(td[n]) if isinstance(td[n], TensorDict) else td[n] for n in names}
    return TensorDict(values, td.batch_size)


def equal(a, b):
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return tree.paths(a) == tree.paths(b) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs
    )


def test_a_vector_space():
    a, b = make(), tree.random_like(rng.key(0), make())
    total = tree.add(a, shuffled(b))
    assert torch.equal(total["policy", "w"], a["policy", "w"] + b["policy", "w"])
    assert torch.equal(tree.sub(a, b)["meta", "w"], a["meta", "w"] - b["meta", "w"])
    assert total.is_locked and total["policy"].is_locked and total["policy"].batch_size == (2,)
    assert tree.allclose(tree.sub(total, b), a)
    assert equal(tree.scale(a, 2), tree.add(a, a))
    assert equal(tree.sub(a, a), tree.zeros_like(a)) and tree.zeros_like(a).is_locked
    assert float(tree.norm(tree.sub(a, shuffled(a)))) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D])
@pytest.mark.parametrize(
    "factor", [0.5, 2, torch.tensor(0.5), torch.tensor(0.5, dtype=D), torch.tensor(2)]
)
def test_scale_keeps_dtypes(dtype, factor):
    out = tree.scale(make(dtype=dtype), factor)
    assert {x.dtype for x in tree.leaves(out)} == {dtype}
    assert float(out["meta", "w"]) == 2 * float(factor)


def test_scale_of_complex_leaves():
    z = tree.new({"z": torch.tensor([1 + 2j, -1j])})
    for factor in (0.5, torch.tensor(0.5)):
        assert torch.equal(tree.scale(z, factor)["z"], z["z"] / 2)


def test_derivatives_in_both_trees_and_in_the_factor():
    a, b = tree.random_like(rng.key(1), make()), tree.random_like(rng.key(2), make())
    factor = torch.tensor(0.7, dtype=D)
    check_grads(lambda a, b: tree.norm(tree.add(a, b)), a, b)
    check_grads(lambda a, b: tree.norm(tree.sub(a, b)), a, b)
    check_grads(lambda a, f: tree.norm(tree.scale(a, f)), a, factor)
    leaf = torch.tensor(0.5, requires_grad=True)  # float32 among float64
    (slope,) = torch.autograd.grad(tree.norm(tree.scale(a, leaf)), leaf)
    assert torch.allclose(slope.double(), tree.norm(a))


def test_a_factor_per_task():
    a, factors = make(), torch.tensor([2.0, 3.0], dtype=D)
    out = vmap(tree.scale)(a["policy"], factors)
    assert torch.equal(out["b"], torch.tensor([2.0, 3.0], dtype=D)) and out.batch_size == (2,)


def test_zeros_like_keeps_everything_else():
    source = TensorDict({"a": torch.ones(2, dtype=torch.int64), "b": torch.tensor([True])}, [])
    source["name"] = NonTensorData("x")
    source["m"] = torch.ones(2, device="meta", requires_grad=True)
    out = tree.zeros_like(source)
    assert out["a"].dtype == torch.int64 and out["b"].dtype == torch.bool and not out["b"].any()
    assert out["name"] == "x" and out["m"].device.type == "meta" and not out["m"].requires_grad
    assert tree.paths(tree.zeros_like(TensorDict({}))) == []


@pytest.mark.parametrize("dtype", [torch.float32, D, torch.complex64])
@pytest.mark.parametrize("equal_nan", [False, True])
def test_allclose_is_torchs(dtype, equal_nan):
    inf, nan = float("inf"), float("nan")
    values = torch.tensor([0.0, 1.0, 1.0 + 1e-6, 1.0 + 1e-3, -1.0, inf, -inf, nan, 1e-9]).to(dtype)
    for x in values:
        for y in values:
            got = tree.allclose(tree.new({"x": x}), tree.new({"x": y}), equal_nan=equal_nan)
            assert got.shape == () and got.dtype == torch.bool
            assert bool(got) == torch.allclose(x, y, equal_nan=equal_nan), (x, y)


def test_allclose_of_whole_trees():
    a = make()
    assert tree.allclose(a, shuffled(a)) and tree.allclose(TensorDict({}), TensorDict({}))
    near = tree.replace(a, {"policy.b": a["policy", "b"] + 0.01})
    assert not tree.allclose(a, near)
    assert tree.allclose(a, near, atol=0.02) and tree.allclose(a, near, rtol=0.02)
    counts = tree.new({"n": torch.tensor([10**9, 1]), "on": torch.tensor([True, False])})
    assert tree.allclose(counts, counts)
    assert not tree.allclose(counts, tree.replace(counts, {"n": torch.tensor([10**9 + 1, 1])}))
    policy, other = a["policy"], near["policy"]
    assert (
        vmap(tree.allclose)(policy, policy).all() and not vmap(tree.allclose)(policy, other).any()
    )


def test_each_path_has_numbers_of_its_own():
    key, a = rng.key(5), make()
    out = tree.random_like(key, a)
    assert tree.paths(out) == tree.paths(a) and out.is_locked and out["policy"].batch_size == (2,)
    own = rng.fold_in(rng.fold_in(key, "policy"), "w")
    assert torch.equal(out["policy", "w"], rng.normal(own, (2, 3), dtype=D))
    assert equal(out["policy"], tree.random_like(rng.fold_in(key, "policy"), a["policy"]))
    assert equal(out, tree.random_like(key, shuffled(a)))
    wider = tree.replace(a, {"extra": torch.ones(2)})
    assert equal(out, tree.exclude(tree.random_like(key, wider), "extra"))
    twins = tree.random_like(key, tree.new({"a": torch.ones(8), "b": torch.ones(8)}))
    assert not torch.equal(twins["a"], twins["b"])
    dotted = tree.new({"a.b": torch.ones(4), "a": tree.new({"b": torch.ones(4)})})
    out = tree.random_like(key, dotted)
    assert not torch.equal(out.get("a.b"), out["a", "b"])


def test_random_like_has_dtypes_and_a_distribution():
    for dtype in (torch.bfloat16, torch.float16, torch.float32, D):
        assert tree.random_like(rng.key(0), make(dtype=dtype))["policy", "w"].dtype == dtype
    large = tree.new({"x": torch.zeros(20_000)})
    x = tree.random_like(rng.key(0), large)["x"]
    assert abs(float(x.mean())) < 0.03 and abs(float(x.std()) - 1) < 0.03
    sample = partial(rng.uniform, low=2.0, high=3.0)
    x = tree.random_like(rng.key(0), large, sample)["x"]
    assert 2 <= float(x.min()) and float(x.max()) < 3 and abs(float(x.mean()) - 2.5) < 0.01
    meta = tree.random_like(rng.key(0), tree.new({"x": torch.zeros(3, device="meta")}))
    assert meta["x"].device.type == "meta"


def test_random_like_per_task():
    keys, one = rng.split(rng.key(0), 3), make()["policy"]
    many = tree.stack([one] * 3)
    mapped = vmap(tree.random_like)(keys, many)
    for i in range(3):
        assert equal(mapped[i], tree.random_like(keys[i], one))
    assert equal(mapped, tree.random_like(keys, many))


@pytest.mark.parametrize("name", ["add", "sub", "allclose"])
def test_two_trees_that_differ_are_refused(name):
    fn, a = getattr(tree, name), make()
    with pytest.raises(ValueError, match=f"{name}: the names differ: only tree 0 has 'policy.b'"):
        fn(a, tree.exclude(a, "policy.b"))
    with pytest.raises(
        ValueError,
        match=rf"{name}: 'policy.b' of tree 1 has shape \(3,\), expected \(2,\) \(from tree 0\)",
    ):
        fn(a, make(3))
    with pytest.raises(TypeError, match=f"{name}: tree 1 is a float, expected a TensorDict"):
        fn(a, 1.0)
    with pytest.raises(TypeError, match=f"{name}: tree 0 is a dict"):
        fn({"a": torch.ones(1)}, a)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tree.scale(make(), None), TypeError, "scale: factor is a NoneType"),
        (lambda: tree.scale(make(), True), TypeError, "scale: factor is a bool"),
        (lambda: tree.scale(make(), 1j), TypeError, "scale: factor is a complex"),
        (lambda: tree.scale(make(), torch.tensor(1j)), TypeError, "factor is torch.complex64"),
        (lambda: tree.scale(make(), torch.ones(2)), ValueError, r"scale: factor has shape \(2,\)"),
        (lambda: tree.scale(torch.ones(2), 1.0), TypeError, "scale: tree is a Tensor"),
        (
            lambda: tree.scale(tree.new({"n": torch.tensor(1)}), 0.5),
            TypeError,
            "scale: 'n' is torch.int64, expected a float dtype; tree.partition takes it out",
        ),
        (lambda: tree.zeros_like({}), TypeError, "zeros_like: tree is a dict"),
        (
            lambda: tree.allclose(make(), make(dtype=torch.float32)),
            TypeError,
            "allclose: 'meta.w' of tree 1 is torch.float32, expected torch.float64",
        ),
        (lambda: tree.random_like(0, make()), TypeError, "key is int, expected an int64 tensor"),
        (
            lambda: tree.random_like(rng.key(0), tree.new({"n": torch.tensor(1)})),
            TypeError,
            "random_like: 'n' is torch.int64, expected a float dtype",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
