"""Building and reading trees: what is built privately equals what the public constructor builds."""

from typing import NamedTuple

import optree
import pytest
import torch
from tensordict import NonTensorData, TensorDict, tensorclass

from paramtree import tree


def small():
    policy = TensorDict({"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}, [2])
    return TensorDict({"policy": policy, "meta": {"lstm": {"w": torch.arange(3.0)}}}, [])


def test_new_equals_the_public_constructor():
    made = tree.new({"a": torch.ones(2, 3), "b": tree.new({"c": torch.zeros(2)}, (2,))}, (2,))
    public = TensorDict(
        {"a": torch.ones(2, 3), "b": TensorDict({"c": torch.zeros(2)}, [2])}, [2]
    ).lock_()
    assert (made == public).all()
    assert made.batch_size == public.batch_size and made["b"].batch_size == public["b"].batch_size
    assert (
        made.is_locked
        and made["b"].is_locked
        and made.device == public.device
        and made.names == public.names
    )
    assert torch.equal(made[0]["b", "c"], public[0]["b", "c"])
    assert (torch.stack([made, made]) == torch.stack([public, public])).all()
    assert (made.clone() == public.clone()).all() and not made.clone().is_locked
    with pytest.raises(RuntimeError, match="locked"):
        made["x"] = torch.zeros(2)
    with pytest.raises(RuntimeError, match="locked"):
        made["b"]["x"] = torch.zeros(2)


def test_entries_equals_items():
    source = small()
    assert list(tree.entries(source)) == list(source.keys())
    assert all(tree.entries(source)[name] is source.get(name) for name in source.keys())
    lazy = TensorDict.lazy_stack([small(), small()])
    assert sorted(tree.entries(lazy)) == ["meta", "policy"]
    assert tree.entries(lazy)["policy"]["w"].shape == (2, 2, 3)


def test_lock_leaves_the_given_tree_unlocked():
    source = small()
    locked = tree.lock(source)
    assert locked.is_locked and locked["meta", "lstm"].is_locked
    assert not source.is_locked and not source["policy"].is_locked
    assert locked["policy", "w"] is source["policy", "w"]
    assert tree.lock(locked) is locked


class Pair(NamedTuple):
    left: torch.Tensor
    right: object


def test_flatten_and_unflatten_are_inverse_on_nests():
    nest = (
        small(),
        [torch.ones(1), None],
        {"b": torch.zeros(2), "a": 3},
        Pair(torch.ones(()), "text"),
    )
    leaves, structure = tree.flatten(nest)
    again = tree.unflatten(structure, leaves)
    assert isinstance(again[3], Pair) and again[3].right == "text" and again[1][1] is None
    assert list(again[2]) == ["b", "a"] and again[2]["a"] == 3
    assert (
        (again[0] == nest[0]).all() and again[0].is_locked and again[0]["policy"].batch_size == (2,)
    )
    assert list(again[0].keys()) == ["policy", "meta"]  # the order of the names is kept


def test_leaves_are_listed_by_sorted_names_whatever_the_order():
    a = TensorDict({"b": torch.ones(1), "a": torch.zeros(1)})
    b = TensorDict({"a": torch.zeros(1), "b": torch.ones(1)})
    assert tree.flatten(a)[1] == tree.flatten(b)[1] and hash(tree.flatten(a)[1]) == hash(
        tree.flatten(b)[1]
    )
    assert tree.paths(a) == [("a",), ("b",)] == tree.paths(b)


def test_unflatten_cuts_the_batch_size_to_what_the_leaves_share():
    leaves, structure = tree.flatten(small())
    summed = tree.unflatten(structure, [leaf.sum() for leaf in leaves])
    assert summed["policy"].batch_size == ()
    kept = tree.unflatten(structure, [leaf[..., None] for leaf in leaves])
    assert kept["policy"].batch_size == (2,)
    with pytest.raises(ValueError, match="unflatten: got 1 leaves, expected 3"):
        tree.unflatten(structure, leaves[:1])


def test_time_names_survive():
    td = TensorDict({"a": torch.zeros(2, 3)}, [2, 3], names=[None, "time"])
    assert tree.map(torch.sin, td).names == [None, "time"] == tree.lock(td).names


def test_non_tensor_entries_pass_through():
    td = TensorDict({"a": torch.zeros(2), "note": NonTensorData("hello")})
    out = tree.map(lambda x: x + 1, td)
    assert out["note"] == "hello" and tree.paths(td) == [("a",)]


def test_optree_sees_names():
    source = small()
    assert optree.tree_paths(source, namespace="paramtree") == [
        ("meta", "lstm", "w"),
        ("policy", "b"),
        ("policy", "w"),
    ]
    accessors = optree.tree_accessors(source, namespace="paramtree")
    assert accessors[0].codify("params") == "params['meta']['lstm']['w']"
    out = optree.tree_map(lambda x: x * 2, source, namespace="paramtree")
    assert out["policy"].batch_size == (2,) and out.is_locked
    other = TensorDict(
        {"meta": source["meta"], "policy": source["policy"][:1]}
    )  # another batch size, same names
    optree.tree_map(lambda x, y: x, source, other, namespace="paramtree")
    with pytest.raises(ValueError, match=r"names \['meta', 'policy'\], got: names \['meta'\]"):
        optree.tree_map(
            lambda x, y: x, source, TensorDict({"meta": source["meta"]}), namespace="paramtree"
        )


def test_compiled():
    def double(td):
        leaves, structure = tree.flatten(td)
        return tree.unflatten(structure, [leaf * 2 for leaf in leaves])

    source = tree.lock(small())
    out = torch.compile(double, fullgraph=True, backend="aot_eager")(source)
    assert out.is_locked and (out == tree.map(lambda x: x * 2, source)).all()


def test_named_dimensions_stay_whatever_is_done():
    td = TensorDict({"a": torch.ones(4, 2), "b": {"c": torch.ones(4, 2)}}, [4, 2])
    td.names = ["time", "env"]
    selected, rest = tree.partition(td, "a")
    for made in (selected, rest, tree.merge(selected, rest), tree.replace(td, {"z": 1.0})):
        assert made.names == ["time", "env"]
    assert tree.stack([td, td]).names == [None, "time", "env"]
    assert tree.unstack(td)[0].names == ["env"] and tree.rebuild(td, {}).names == td.names
    run = torch.compile(lambda q: tree.rebuild(q, {"a": q["a"]}), backend="aot_eager")
    assert run(td).names == ["time", "env"]


@tensorclass
class Point:
    x: torch.Tensor


def test_a_tensorclass_is_a_tree_of_its_names():
    td = TensorDict({"point": Point(x=torch.ones(2), batch_size=[]), "b": torch.zeros(1)})
    assert tree.paths(tree.select(td, "point.x")) == [("point", "x")]
    assert tree.paths(tree.exclude(td, "point")) == [("b",)]
    assert tree.replace(td, {"point.x": torch.zeros(2)})["point", "x"].eq(0).all()
    assert tree.lock(td)["point"].is_locked


def test_data_beside_the_tensors_is_kept():
    one, other = (TensorDict({"n": NonTensorData(n), "w": torch.ones(2)}) for n in "ab")
    assert tree.stack([one, one])[1]["n"] == "a"
    with pytest.raises(ValueError, match="stack: 'n' of tree 1 is 'b', expected 'a'"):
        tree.stack([one, other])
    lazy = torch.stack([one, other])
    assert list(tree.map(torch.neg, lazy)["n"]) == list(tree.lock(lazy)["n"]) == ["a", "b"]


def test_nests_of_other_tuples():
    x = torch.tensor([[1.0, 2.0]])
    for nest in (x.shape, x.max(1), (x, 3)):
        leaves, structure = tree.flatten(nest)
        again = tree.unflatten(structure, leaves)
        assert type(again) is type(nest) and all(a is b for a, b in zip(again, nest, strict=True))
