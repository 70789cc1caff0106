"""Selecting, dividing, joining and replacing by name."""

import pytest
import torch
from tensordict import TensorDict

from paramtree import tree
from paramtree.autodiff import check_grads, grad, vmap


@pytest.fixture
def params():
    policy = TensorDict(
        {"linear_0": {"weight": torch.randn(2, 3, 4).double(), "bias": torch.randn(2, 3).double()}},
        [2],
    )
    policy["linear_1"] = TensorDict({"weight": torch.randn(2, 5, 3).double()}, [2])
    meta = {
        "lstm": {"weight_ih": torch.randn(8, 2).double(), "bias": torch.randn(8).double()},
        "0": torch.ones(1).double(),
    }
    return TensorDict({"policy": policy, "meta": meta, "empty": {}}, [])


CASES = {
    "policy.*.weight": ["policy.linear_0.weight", "policy.linear_1.weight"],
    "policy.linear_0.*": ["policy.linear_0.bias", "policy.linear_0.weight"],
    "policy.*": ["policy.linear_0.bias", "policy.linear_0.weight", "policy.linear_1.weight"],
    "policy": ["policy.linear_0.bias", "policy.linear_0.weight", "policy.linear_1.weight"],
    "policy.**": ["policy.linear_0.bias", "policy.linear_0.weight", "policy.linear_1.weight"],
    "**.bias": ["meta.lstm.bias", "policy.linear_0.bias"],
    "**.weight*": ["meta.lstm.weight_ih", "policy.linear_0.weight", "policy.linear_1.weight"],
    "**.linear_*.weight": ["policy.linear_0.weight", "policy.linear_1.weight"],
    "*.lstm.*_ih": ["meta.lstm.weight_ih"],
    "**.lstm": ["meta.lstm.bias", "meta.lstm.weight_ih"],
    "meta.**.bias": ["meta.lstm.bias"],
    "meta.0": ["meta.0"],
    "**": None,
}


@pytest.mark.parametrize("pattern", CASES)
def test_select_by_pattern(params, pattern):
    chosen = tree.select(params, pattern)
    wanted = CASES[pattern] or [".".join(p) for p in tree.paths(params)]
    assert [".".join(p) for p in tree.paths(chosen)] == wanted
    assert chosen.is_locked
    if "policy" in chosen.keys():
        assert chosen["policy"].batch_size == (2,)
    rest = tree.exclude(params, pattern)
    assert set(tree.paths(rest)).isdisjoint(tree.paths(chosen))
    assert len(tree.paths(rest)) + len(tree.paths(chosen)) == len(tree.paths(params))


def test_select_by_path_predicate_and_several(params):
    assert tree.paths(tree.select(params, ("meta", "lstm"))) == [
        ("meta", "lstm", "bias"),
        ("meta", "lstm", "weight_ih"),
    ]
    big = tree.select(params, lambda path, leaf: leaf.ndim == 3 and path[-1] == "weight")
    assert len(tree.paths(big)) == 2
    assert len(tree.paths(tree.select(params, "meta.0", "**.bias"))) == 3


def test_wildcards_are_stars_alone():
    odd = TensorDict(
        {
            "a[0]": torch.ones(1),
            "a?": torch.ones(1),
            "a.b": torch.ones(1),
            "ab": torch.ones(1),
            "*": torch.ones(1),
        }
    )
    assert tree.paths(tree.select(odd, "a[0]")) == [("a[0]",)]
    assert tree.paths(tree.select(odd, "a?")) == [("a?",)]
    assert tree.paths(tree.select(odd, ("a.b",))) == [("a.b",)]
    assert tree.paths(tree.select(odd, ("*",))) == [
        ("*",)
    ]  # a tuple is a path, its names are literal
    assert len(tree.paths(tree.select(odd, "a*"))) == 4


@pytest.mark.parametrize("fn", [tree.select, tree.exclude, tree.partition])
def test_nothing_selected_raises_and_lists_the_nearest(params, fn):
    with pytest.raises(
        ValueError, match=r"'polcy.\*' matches nothing; the nearest names are .*policy"
    ):
        fn(params, "polcy.*")
    with pytest.raises(
        ValueError, match="'meta.lstm.wieght_ih' matches nothing.*meta.lstm.weight_ih"
    ):
        fn(params, "meta.lstm.wieght_ih")
    with pytest.raises(ValueError, match="the predicate holds for none of"):
        fn(params, lambda path, leaf: False)
    with pytest.raises(ValueError, match="no selection given"):
        fn(params)
    with pytest.raises(ValueError, match="matches nothing"):
        fn(params, "**.bias", "nope")  # each of them must match
    with pytest.raises(TypeError, match="path is 3"):
        fn(params, 3)
    with pytest.raises(TypeError, match="tree is a dict, expected a TensorDict"):
        fn({"a": torch.ones(1)}, "a")
    with pytest.raises(ValueError, match="the tree is empty"):
        fn(TensorDict({}), "a")


@pytest.mark.parametrize("pattern", list(CASES))
def test_partition_and_merge_are_inverse(params, pattern):
    left, right = tree.partition(params, pattern)
    for whole in (tree.merge(left, right), tree.merge(right, left)):
        assert (whole == params).all() and sorted(whole.keys()) == sorted(params.keys())
        assert whole["policy"].batch_size == (2,) and whole["policy", "linear_0"].batch_size == (2,)
        assert whole.is_locked


def test_merge_refuses_what_is_twice(params):
    with pytest.raises(
        ValueError, match=r"merge: 'meta.0' is in two trees; .* exclude\(tree, 'meta.0'\)"
    ):
        tree.merge(params, tree.select(params, "meta.0"))
    with pytest.raises(
        ValueError, match=r"merge: 'policy' has batch sizes \[2\] and \[\], expected one"
    ):
        tree.merge(params, TensorDict({"policy": {"x": torch.ones(1)}}))
    with pytest.raises(ValueError, match="merge: no trees"):
        tree.merge()
    with pytest.raises(TypeError, match="merge: argument 1 is a Tensor"):
        tree.merge(params, torch.ones(1))


def test_replace(params):
    before = params.clone()
    zeros = torch.zeros(8).double()
    out = tree.replace(params, {"meta.lstm.bias": zeros, ("meta", "gamma"): 0.9})
    assert out["meta", "lstm", "bias"] is zeros and out["meta", "gamma"] == 0.9
    assert out["policy", "linear_0", "weight"] is params["policy", "linear_0", "weight"]
    assert (
        out.is_locked
        and out["meta", "lstm"].is_locked
        and (params == before).all()
        and "gamma" not in params["meta"]
    )


def test_replace_by_index_of_a_task(params):
    task = tree.map(torch.zeros_like, params["policy"][0])
    out = tree.replace(params, {("policy", 1): task})
    assert out["policy", "linear_0", "weight"][1].eq(0).all()
    assert torch.equal(
        out["policy", "linear_0", "weight"][0], params["policy", "linear_0", "weight"][0]
    )
    assert out["policy"].batch_size == (2,) == out["policy", "linear_0"].batch_size
    inner = tree.replace(
        params,
        {
            ("policy", -1, "linear_0", "bias"): torch.ones(3).double(),
            ("policy", 0, "linear_1"): tree.map(torch.ones_like, params["policy"][0]["linear_1"]),
        },
    )
    assert (
        inner["policy", "linear_0", "bias"][1].eq(1).all()
        and not inner["policy", "linear_0", "bias"][0].eq(1).all()
    )
    assert inner["policy", "linear_1", "weight"][0].eq(1).all()


def test_replace_expands_a_number_to_the_batch():
    td = TensorDict({"reward": torch.zeros(4, 3)}, [4, 3])
    gamma = torch.tensor(0.9, requires_grad=True)
    out = tree.replace(td, {"gamma": gamma})
    assert out["gamma"].shape == (4, 3)
    assert torch.autograd.grad(out["gamma"].sum(), gamma)[0] == 12


def test_replace_carries_gradient(params):
    def f(task, weight):
        out = tree.replace(params, {("policy", 1): task, "meta.lstm.weight_ih": weight})
        return sum(leaf.pow(3).sum() for leaf in tree.leaves(out))

    check_grads(f, params["policy"][0], params["meta", "lstm", "weight_ih"])


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (
            {"policy.linear_9.weight": torch.ones(2)},
            ValueError,
            "replace: 'policy.linear_9' is not there; the nearest names",
        ),
        (
            {("policy", 2): TensorDict({})},
            ValueError,
            "index 2 .* is out of range for the batch size",
        ),
        (
            {("meta", 0): TensorDict({})},
            ValueError,
            "index 0 .* is out of range for the batch size",
        ),
        (
            {("policy", 0): TensorDict({"linear_0": {"bias": torch.ones(3).double()}})},
            ValueError,
            "names differ: .*only the tree has",
        ),
        (
            {("policy", 0, "linear_0", "bias"): torch.ones(4).double()},
            ValueError,
            r"shape \(4,\), expected \(3,\)",
        ),
        (
            {("policy", 0, "linear_0", "bias"): torch.ones(3)},
            TypeError,
            "is torch.float32, expected torch.float64",
        ),
        ({"policy.linear_0.bias": torch.ones(3)}, ValueError, r"expected it to begin with \[2\]"),
        ({"meta.0.x": torch.ones(3)}, ValueError, "'meta.0' is a leaf"),
        ({"meta.0": "text"}, TypeError, "is a str, expected a tensor or a TensorDict"),
        ({3: torch.ones(1)}, TypeError, "the path is 3"),
    ],
)
def test_replace_refuses(params, values, error, text):
    with pytest.raises(error, match=text):
        tree.replace(params, values)


def test_under_vmap_and_grad(params):
    def f(p):
        left, right = tree.partition(p, "**.weight")
        return sum(leaf.sin().sum() for leaf in tree.leaves(tree.merge(right, left)))

    slopes = vmap(grad(f))(params)
    assert torch.allclose(
        slopes["policy", "linear_0", "weight"], params["policy", "linear_0", "weight"].cos()
    )
    assert torch.allclose(slopes["meta", "lstm", "bias"][1], params["meta", "lstm", "bias"].cos())


def test_replace_refuses_what_a_leaf_cannot_hold():
    t = TensorDict({"n": torch.tensor([1, 2]), "p": {"w": torch.ones(2, 3)}}, [2])
    for path in ("n", ("n", 0)):
        with pytest.raises(
            TypeError, match=r"replace: the value for .* is 0.5, expected torch.int"
        ):
            tree.replace(t, {path: 0.5})
    with pytest.raises(TypeError, match=r"replace: the value for \('p', 0\) is a float, expected"):
        tree.replace(t, {("p", 0): 7.0})
    with pytest.raises(TypeError, match="replace: values is a list, expected {path: value}"):
        tree.replace(t, [("n", 1)])
    assert tree.replace(t, {"n": 3, ("p", 0, "w", 1): 2})["p", "w"][0].tolist() == [1, 2, 1]
