"""The summary of a model, against torch's own counter and counts by hand."""

import pytest
import torch
from tensordict import TensorDict
from torch.utils.flop_counter import FlopCounterMode

from paramtree import Model, compose, nn, rng, summary, td_model, tree, vmap
from paramtree.display import Row


def flops(found):
    return {".".join(row.path): row.flops for row in found.rows if row.flops}


def attention(n):
    """Products of activations between two layers of its own."""
    project, out = nn.linear(n, 3 * n), nn.linear(n, n)

    def init(key):
        keys = rng.split(key)
        parts = {"project": project.init(keys[0])[0], "out": out.init(keys[1])[0]}
        return tree.new(parts), tree.new({})

    def apply(params, buffers, x):
        q, k, v = project(params["project"], buffers, x).chunk(3, -1)
        mixed = (q @ k.mT).softmax(-1) @ v
        return out(params["out"], buffers, mixed), buffers

    return Model(init, apply)


def test_rows_hold_what_the_tree_holds_and_sums_are_torchs():
    net = compose(
        torso=td_model(nn.mlp(4, 32, 16), "observation", "hidden"),
        actor=td_model(nn.linear(16, 3), "hidden", "logits"),
    )
    params, buffers = net.init(rng.key(0))
    td = TensorDict({"observation": torch.ones(8, 4)}, [8])
    found = summary(net, params, td)
    leaves = [row for row in found.rows if row.shape is not None]
    assert [row.path for row in leaves] == sorted(tree.paths(params))
    for row in leaves:
        x = params[row.path]
        assert row == Row(row.path, tuple(x.shape), x.dtype, x.numel(), 0)
    with FlopCounterMode(display=False) as counter:
        net(params, buffers, td)
    assert found.flops == counter.get_total_flops() == 2 * 8 * (4 * 32 + 32 * 16 + 16 * 3)
    assert flops(found) == {
        "actor": 2 * 8 * 16 * 3,
        "torso.linear_0": 2 * 8 * 4 * 32,
        "torso.linear_1": 2 * 8 * 32 * 16,
    }
    assert found.size == sum(x.numel() for x in tree.leaves(params))
    assert found.bytes == 4 * found.size
    text = str(found).splitlines()
    assert text[0].split() == ["path", "shape", "dtype", "size", "FLOPs"]
    assert "torso.linear_0.weight" in str(found) and text[-1].startswith("total")
    assert f"{found.flops:,}" in text[-1] and len({len(line) for line in text[1:2]}) == 1


def test_products_of_activations_count_for_the_part_around_them():
    net = compose(block=attention(6), head=nn.linear(6, 2))
    params, _ = net.init(rng.key(0))
    found = summary(net, params, torch.ones(5, 7, 6))
    assert flops(found) == {
        "block": 2 * (2 * 5 * 7 * 7 * 6),
        "block.out": 2 * 35 * 6 * 6,
        "block.project": 2 * 35 * 6 * 18,
        "head": 2 * 35 * 6 * 2,
    }


def test_a_weight_that_is_computed_belongs_to_its_layer():
    inner = nn.linear(4, 3)

    def apply(params, buffers, x):
        low = tree.cast(params, torch.bfloat16)
        noisy = tree.map(lambda w: w + rng.normal(buffers["key"], w.shape).to(w.dtype), low)
        return inner(noisy, tree.new({}), x.bfloat16()), buffers

    layer = Model(lambda key: (inner.init(key)[0], tree.new({"key": key})), apply)
    net = nn.sequential(first=layer, second=lambda x: x.float(), third=nn.linear(3, 2))
    found = summary(net, net.init(rng.key(0))[0], torch.ones(5, 4))
    assert flops(found) == {"first": 2 * 5 * 4 * 3, "third": 2 * 5 * 3 * 2}


def test_stacked_tasks_shared_storage_and_the_meta_device():
    net = nn.mlp(4, 8, 2)
    stacked, _ = vmap(net.init)(rng.split(rng.key(0), 3))
    many = Model(net.init, vmap(net.apply, (0, None, 0)))
    found = summary(many, stacked, torch.ones(3, 5, 4), tree.new({}))
    assert found.flops == 3 * 2 * 5 * (4 * 8 + 8 * 2) and set(flops(found)) == {
        "linear_0",
        "linear_1",
    }

    vector, unravel = tree.ravel(net.init(rng.key(0))[0])
    one = summary(net, unravel(vector), torch.ones(5, 4))
    assert flops(one) == {"linear_0": 2 * 5 * 32, "linear_1": 2 * 5 * 16}

    params = tree.map(lambda x: x.to("meta"), net.init(rng.key(0))[0])
    there = summary(net, params, torch.ones(5, 4, device="meta"))
    assert flops(there) == flops(one) and there.size == one.size


def test_a_model_without_parameters_and_what_is_refused():
    empty = Model(lambda key: (tree.new({}), tree.new({})), lambda p, b, x: (x @ x, b))
    found = summary(empty, tree.new({}), torch.ones(3, 3))
    assert found.flops == 54 and "(the model)" in str(found)
    with pytest.raises(TypeError, match="summary: model is a str, expected a Model"):
        summary("net", tree.new({}), torch.ones(3))
    with pytest.raises(TypeError, match="summary: params is a dict"):
        summary(empty, {}, torch.ones(3))
