"""Many tasks in one tree: made under vmap, read and written by number, shared parts beside them."""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from paramtree import check_grads, grad, nn, optim, rng, td_model, tree, vmap

D = torch.float64
N = 4
EMPTY = tree.new({})
META = nn.mlp(3, 5, 3, activation=torch.tanh)
POLICY = td_model(nn.mlp(3, 6, 2, activation=torch.tanh), "hidden", "logits")


def draw(*shape, seed=0):
    return rng.normal(rng.key(seed), shape, dtype=D)


def tasks():
    """A network that all tasks share, and a policy for each."""
    policies, _ = vmap(POLICY.init)(rng.split(rng.key(1), N))
    meta, _ = META.init(rng.key(2))
    return tree.cast(tree.new({"meta": meta, "policy": policies}), D)


def logits(params, x):
    """What one task's policy says on what the shared network makes of x."""
    hidden = META(params["meta"], EMPTY, x)
    return POLICY(params["policy"], EMPTY, TensorDict({"hidden": hidden}, x.shape[:1]))["logits"]


def test_init_under_vmap_of_keys_is_the_stack_of_inits():
    keys = rng.split(rng.key(1), N)
    stacked, _ = vmap(POLICY.init)(keys)
    rows = [POLICY.init(key)[0] for key in keys]
    assert stacked.batch_size == (N,) and stacked.is_locked
    assert tree.allclose(stacked, tree.stack(rows), rtol=0, atol=0)
    for row, again in zip(rows, tree.unstack(stacked), strict=True):
        assert tree.allclose(row, again, rtol=0, atol=0)


def test_shared_and_own_trees_in_one_call():
    params, x = tasks(), draw(N, 7, 3)
    out = vmap(logits)(params, x)
    for i in range(N):
        one = tree.new({"meta": params["meta"], "policy": tree.lock(params["policy"][i])})
        assert_close(out[i], logits(one, x[i]))
    by_name = vmap(logits, ({"meta": None, "policy": 0}, None))(params, x[0])
    assert_close(by_name[2], logits(tree.new({**params, "policy": params["policy"][2]}), x[0]))


def test_a_row_is_a_working_tree_that_carries_gradient():
    params, x = tasks(), draw(7, 3)

    def loss(params, i):
        return POLICY(params["policy"][i], EMPTY, TensorDict({"hidden": x}, [7]))["logits"].sum()

    for i in (2, -1):
        slope = grad(loss)(params, i)
        alone = grad(lambda row: loss({"policy": [row]}, 0))(tree.lock(params["policy"][i]))
        for path, whole in zip(
            tree.paths(slope["policy"]), tree.leaves(slope["policy"]), strict=True
        ):
            assert_close(whole[i], alone[path])
            assert whole.count_nonzero() == whole[i].count_nonzero() > 0
        assert float(tree.norm(slope["meta"])) == 0
    check_grads(lambda p: loss(p, 1) ** 2, params, max_entries=4)


def trained(params, x, steps=3):
    adam = optim.adam(0.05)

    def one(policy, state, meta, x):
        def loss(policy):
            return logits({"meta": meta, "policy": policy}, x).square().mean()

        for _ in range(steps):
            policy, state = optim.step(adam, grad(loss)(policy), state, policy)
        return policy

    state = vmap(adam.init)(params["policy"])
    policy = vmap(one, (0, 0, None, 0))(params["policy"], state, params["meta"], x)
    return tree.replace(params, {"policy": policy})


def test_tasks_come_go_and_change_places_without_touching_the_others():
    params, x = tasks(), draw(N, 7, 3)
    order = [3, 0, 2]
    left = trained(tree.take(params, order), x[order])
    assert_close(
        left["policy"][1]["linear_0", "weight"],
        trained(params, x)["policy"][0]["linear_0", "weight"],
    )
    assert left["meta", "linear_0", "weight"] is params["meta", "linear_0", "weight"]

    more, _ = vmap(POLICY.init)(rng.split(rng.key(9), 2))
    grown = tree.replace(params, {"policy": tree.concat([params["policy"], tree.cast(more, D)])})
    assert grown["policy"].batch_size == (N + 2,)
    y = torch.cat([x, draw(2, 7, 3, seed=5)])
    whole = trained(grown, y)
    assert_close(
        whole["policy"][1]["linear_1", "bias"], trained(params, x)["policy"][1]["linear_1", "bias"]
    )
    kept = tree.drop(whole, [N, N + 1])
    assert tree.allclose(kept, trained(params, x))

    swapped = tree.replace(params, {("policy", 1): tree.lock(params["policy"][2])})
    assert torch.equal(
        swapped["policy"][1]["linear_0", "weight"], params["policy"][2]["linear_0", "weight"]
    )


def test_a_gradient_through_many_tasks_reaches_what_they_share():
    params, x = tasks(), draw(N, 7, 3)
    slope = grad(lambda p: vmap(logits)(p, x).square().mean())(params)

    def loop(p):
        rows = [{"meta": p["meta"], "policy": p["policy"][i]} for i in range(N)]
        return torch.stack([logits(row, x[i]) for i, row in enumerate(rows)]).square().mean()

    assert tree.allclose(slope, grad(loop)(params))
    assert float(tree.norm(slope["meta"])) > 0


def test_stacked_parameters_without_vmap_are_told_of():
    params = tasks()
    with pytest.raises(ValueError, match="map over stacked parameters with vmap; in linear_0"):
        POLICY(params["policy"], EMPTY, TensorDict({"hidden": draw(7, 3)}, [7]))
