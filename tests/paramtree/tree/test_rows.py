"""Tasks by number: take, drop and concat on trees with shared parts."""

import pytest
import torch
from tensordict import TensorDict

from paramtree import optim, tree
from paramtree.autodiff import grad, vmap


def make(n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    inner = {"w": torch.randn(n, 2, 3, generator=g).double()}
    policy = {"linear": inner, "b": torch.randn(n, generator=g).double()}
    policy = TensorDict({**policy, "linear": TensorDict(inner, [n, 2])}, [n])
    meta = TensorDict({"w": torch.randn(5, generator=g).double()})
    return tree.lock(TensorDict({"meta": meta, "policy": policy}))


def same(a, b):
    return bool(tree.allclose(a, b, rtol=0, atol=0))


def test_take_reorders_repeats_and_drops():
    params = make()
    out = tree.take(params, [2, 0, -1, 2])
    assert out.is_locked and out["policy"].batch_size == (4,)
    assert out["policy", "linear"].batch_size == (4, 2)
    for at, row in enumerate([2, 0, 3, 2]):
        assert same(out["policy"][at], params["policy"][row])
    assert out["meta", "w"] is params["meta", "w"]
    few = tree.take(params["policy"], range(1, 3))
    assert few.batch_size == (2,) and same(few[1], params["policy"][2])
    assert tree.take(params, []).get("policy").batch_size == (0,)


def test_take_with_a_tensor_of_rows_compiles_maps_and_carries_gradient():
    params, rows = make(), torch.tensor([3, -4])
    wanted = tree.take(params, [3, 0])
    assert same(tree.take(params, rows), wanted)
    run = torch.compile(tree.take, fullgraph=True, backend="aot_eager")
    assert same(run(params, rows), wanted)
    every = vmap(tree.take, (None, 0))(params, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(every["policy", "b"][0], wanted["policy", "b"])
    assert torch.equal(every["policy", "b"][1], params["policy", "b"][[1, 1]])

    slope = grad(lambda p: tree.take(p, [1, 1])["policy", "b"].square().sum())(params)
    b = params["policy", "b"]
    assert torch.equal(slope["policy", "b"], 4 * b * torch.tensor([0, 1, 0, 0]))


def test_drop_and_concat_undo_one_another():
    params = make()
    less = tree.drop(params, [1, -1])
    assert less["policy"].batch_size == (2,)
    assert same(less["policy"][1], params["policy"][2])
    more = tree.concat([less, tree.take(params, [1, 3])])
    assert same(tree.take(more, [0, 2, 1, 3]), params)
    assert more["meta", "w"] is params["meta", "w"]
    assert tree.drop(params, range(4))["policy"].batch_size == (0,)


def test_a_task_and_its_optimizer_state_go_together():
    params, adam = make()["policy"], optim.adam(0.1)
    slope = tree.map(torch.cos, params)

    def step(params, state):
        updates, state = vmap(adam.update)(slope_of(params), state, params)
        return optim.apply_updates(params, updates), state

    def slope_of(params):
        return tree.map(torch.cos, params)

    state = vmap(adam.init)(params)
    params, state = step(params, state)
    whole = step(params, state)[0]
    kept = step(tree.take(params, [3, 1]), tree.take(state, [3, 1]))[0]
    assert same(kept, tree.take(whole, [3, 1]))
    assert not same(kept, tree.take(params, [3, 1])) and slope.batch_size == (4,)


def test_what_rows_refuse():
    params = make()
    with pytest.raises(ValueError, match="take: row 4 is out of range for 4 rows"):
        tree.take(params, [0, 4])
    with pytest.raises(TypeError, match=r"take: rows are \[True\], expected integers"):
        tree.take(params, [True])
    with pytest.raises(TypeError, match="take: rows are torch.float32 of shape"):
        tree.take(params, torch.ones(2))
    with pytest.raises(ValueError, match="drop: no part of the tree has a batch axis"):
        tree.drop(params["meta"], [0])
    torn = tree.replace(params, {"other": make(3)["policy"]})
    with pytest.raises(ValueError, match="differ in their rows: 'other' 3, 'policy' 4|'policy' 4"):
        tree.take(torn, [0])
    with pytest.raises(ValueError, match="concat: 'meta.w' of tree 1 is shared, and another"):
        tree.concat([params, make(2, seed=1)])
    with pytest.raises(ValueError, match="concat: the names differ"):
        tree.concat([params, tree.exclude(params, "policy.b")])
    with pytest.raises(ValueError, match="concat: no trees given"):
        tree.concat([])
    wide = tree.replace(params, {"policy.b": torch.ones(4, 2).double()})
    with pytest.raises(ValueError, match=r"'policy.b' of tree 1 has shape \(4, 2\), expected"):
        tree.concat([params, wide])
    with pytest.raises(TypeError, match="'policy.b' of tree 1 is torch.float32"):
        tree.concat([params, tree.cast(params, torch.float32, "policy.b")])
