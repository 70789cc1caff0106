"""Trees as values: map, stack, ravel, norm, where."""

import pytest
import torch
from tensordict import TensorDict

from paramtree import tree
from paramtree.autodiff import check_grads, grad, vmap


def make(seed=0, n=2):
    g = torch.Generator().manual_seed(seed)
    policy = TensorDict(
        {"w": torch.randn(n, 3, generator=g).double(), "b": torch.randn(n, generator=g).double()},
        [n],
    )
    return TensorDict({"meta": {"w": torch.randn(4, generator=g).double()}, "policy": policy}, [])


def shuffled(td):
    names = sorted(td.keys(), reverse=True)
    values = {n: shuffled(td[n]) if isinstance(td[n], TensorDict) else td[n] for n in names}
    return TensorDict(values, td.batch_size)


def test_map_brings_leaves_together_by_name():
    a, b = make(0), make(1)
    out = tree.map(lambda x, y: x - 2 * y, a, shuffled(b))
    assert torch.equal(out["policy", "w"], a["policy", "w"] - 2 * b["policy", "w"])
    assert out["policy"].batch_size == (2,) and out.is_locked
    seen = []
    tree.map_with_path(lambda path, x: seen.append(path) or x, a)
    assert seen == tree.paths(a)


@pytest.mark.parametrize("swap", [False, True])
def test_map_refuses_names_that_differ_both_ways(swap):
    a, b = (
        make(),
        tree.merge(tree.exclude(make(), "policy.b"), TensorDict({"extra": torch.ones(1)})),
    )
    trees = (b, a) if swap else (a, b)
    with pytest.raises(
        ValueError, match=r"map: the names differ: .*policy.b.*extra|map: .*extra.*policy.b"
    ):
        tree.map(lambda x, y: x, *trees)
    with pytest.raises(TypeError, match="map: tree 1 is a Tensor"):
        tree.map(lambda x, y: x, a, torch.ones(1))
    with pytest.raises(TypeError, match="map: fn gave a float for 'meta.w', expected a tensor"):
        tree.map(lambda x: 1.0, a)


def test_stack_and_unstack_are_inverse():
    trees = [make(i) for i in range(3)]
    whole = tree.stack([trees[0], shuffled(trees[1]), trees[2]])
    assert (
        whole.batch_size == (3,)
        and whole["meta"].batch_size == (3,)
        and whole["policy"].batch_size == (3, 2)
    )
    for one, again in zip(trees, tree.unstack(whole), strict=True):
        assert (one == again).all() and again.is_locked
        assert (
            again.batch_size == ()
            and again["policy"].batch_size == (2,)
            and again["meta"].batch_size == ()
        )
    x = trees[0].clone()
    x["meta", "w"].requires_grad_()
    y = tree.unstack(tree.stack([x, trees[1]]))[0]
    assert torch.autograd.grad(y["meta", "w"].sum(), x["meta", "w"])[0].eq(1).all()


def test_stack_refuses():
    with pytest.raises(ValueError, match="stack: no trees"):
        tree.stack([])
    with pytest.raises(
        ValueError, match=r"'policy.b' of tree 1 has shape \(3,\), expected \(2,\) \(from tree 0\)"
    ):
        tree.stack([make(), make(n=3)])
    with pytest.raises(TypeError, match="is torch.float32, expected torch.float64"):
        tree.stack([make(), make().float()])
    with pytest.raises(ValueError, match="names differ"):
        tree.stack([make(), tree.select(make(), "meta")])
    flat = TensorDict(
        {"meta": make()["meta"], "policy": TensorDict(make()["policy"].to_dict(), [])}
    )
    with pytest.raises(ValueError, match=r"'policy' of tree 1 has batch size \[\], expected \[2\]"):
        tree.stack([make(), flat])
    with pytest.raises(ValueError, match=r"batch size \[\]"):
        tree.unstack(make())


def test_ravel_and_back():
    a = make()
    vector, unravel = tree.ravel(a)
    assert (
        vector.shape == (4 + 6 + 2,) and (unravel(vector) == a).all() and unravel(vector).is_locked
    )
    assert torch.equal(vector, tree.ravel(shuffled(a))[0])
    assert unravel(vector.float())["meta", "w"].dtype == torch.float32
    assert unravel(vector)["policy"].batch_size == (2,)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda v: tree.norm(unravel(v)) ** 2 / 2))(vector)
    assert torch.allclose(hessian, torch.eye(12).double())
    stacked = vmap(lambda p: tree.ravel(p)[0])(a)
    assert stacked.shape == (2, 8)
    with pytest.raises(TypeError, match="'policy.n' is torch.int64, expected torch.float64"):
        tree.ravel(tree.replace(a, {"policy.n": torch.tensor([1, 2])}))
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \[12\]"):
        unravel(torch.ones(3))
    empty, back = tree.ravel(TensorDict({}))
    assert empty.shape == (0,) and tree.paths(back(empty)) == []


@pytest.mark.parametrize("ord", [1, 2, float("inf")])
def test_norm(ord):
    a = make()
    vector = tree.ravel(a)[0]
    assert torch.allclose(tree.norm(a, ord), torch.linalg.vector_norm(vector, ord))
    check_grads(lambda t: tree.norm(t, ord), a)
    assert tree.norm(TensorDict({}), ord) == 0


def test_root_is_flat_at_zero_to_every_order():
    x = torch.tensor([0.0, 4.0, float("nan")], dtype=torch.float64)
    assert torch.equal(tree.root(x)[:2], torch.tensor([0.0, 2.0]).double())
    assert tree.root(x)[2].isnan()
    slope = grad(lambda y: tree.root(y).sum())
    assert slope(x[:2]).tolist() == [0.0, 0.25]
    assert grad(lambda y: slope(y).sum())(x[:2]).tolist() == [0.0, -1 / 32]
    square = grad(lambda y: tree.root(y * y).sum())
    assert square(x[:1]) == 0 and grad(lambda y: square(y).sum())(x[:1]) == 0


def test_norm_at_zero_has_no_nan():
    zero = tree.map(torch.zeros_like, make())
    slopes = grad(tree.norm)(zero)
    assert all(leaf.eq(0).all() for leaf in tree.leaves(slopes))
    twice = grad(lambda t: tree.vdot(grad(tree.norm)(t), t))(zero)
    assert all(leaf.eq(0).all() for leaf in tree.leaves(twice))
    with pytest.raises(ValueError, match="ord is 3"):
        tree.norm(zero, 3)
    with pytest.raises(TypeError, match="torch.int64, expected a float dtype"):
        tree.norm(TensorDict({"n": torch.tensor(1)}))


def test_vdot():
    a, b = make(0), make(1)
    assert torch.allclose(tree.vdot(a, shuffled(b)), tree.ravel(a)[0] @ tree.ravel(b)[0])
    z = TensorDict({"a": torch.tensor([1 + 2j, 3j])})
    assert tree.vdot(z, z) == 14
    with pytest.raises(ValueError, match="of tree 1 has shape"):
        tree.vdot(a, make(n=3))


def test_where():
    a, b = make(0)["policy"], make(1)["policy"]
    out = tree.where(torch.tensor([True, False]), a, shuffled(b))
    assert (
        torch.equal(out["w"][0], a["w"][0])
        and torch.equal(out["w"][1], b["w"][1])
        and out.batch_size == (2,)
    )
    assert (tree.where(torch.tensor(False), a, b) == b).all()
    with pytest.raises(
        ValueError,
        match=r"condition has shape \(2,\), expected a beginning of \(4,\) \(from 'meta.w'\)",
    ):
        tree.where(torch.tensor([True, False]), make(0), make(1))
    with pytest.raises(TypeError, match="condition is torch.float32"):
        tree.where(torch.ones(2), a, b)
    with pytest.raises(ValueError, match="of tree 1 has shape"):
        tree.where(torch.tensor(True), make(), make(n=3))


def test_inside_grad_vmap_and_compile():
    def f(p, q):
        s = tree.stack([p, q])
        first, second = tree.unstack(s)
        return tree.norm(tree.map(lambda x, y: x * y, first, second)) + tree.ravel(s)[0].sin().sum()

    a, b = tree.lock(make(0)), tree.lock(make(1))
    check_grads(f, a, b)
    out = torch.compile(grad(f), fullgraph=True, backend="aot_eager")(a, b)
    assert all(
        torch.allclose(x, y)
        for x, y in zip(tree.leaves(out), tree.leaves(grad(f)(a, b)), strict=True)
    )
    each = vmap(f)(a, b)
    rows = [
        f(
            TensorDict({"meta": a["meta"], "policy": a["policy"][i]}),
            TensorDict({"meta": b["meta"], "policy": b["policy"][i]}),
        )
        for i in range(2)
    ]
    assert torch.allclose(each, torch.stack(rows))
