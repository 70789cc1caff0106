"""The contract of models: pairs of pure functions over named trees."""

import pytest
import torch
from tensordict import TensorDict

from paramtree import rng, tree
from paramtree.autodiff import check_grads, grad, vmap
from paramtree.model import Model, compose, td_model, with_next

D = torch.float64


def affine(n_in, n_out):
    def init(key):
        return tree.new(
            {"weight": rng.normal(rng.fold_in(key, "weight"), (n_out, n_in), dtype=D)}
        ), tree.new({})

    return Model(init, lambda params, buffers, x: (x @ params["weight"].mT, buffers))


def counter():
    def init(key):
        return tree.new({}), tree.new({"count": torch.zeros((), dtype=torch.int64)})

    return Model(init, lambda params, buffers, x: (x, tree.new({"count": buffers["count"] + 1})))


def net():
    return compose(
        actor=td_model(affine(3, 2), "observation", "logits"),
        critic=td_model(affine(2, 1), "logits", "state_value"),
    )


def batch(*size):
    return TensorDict(
        {
            "observation": torch.randn(*size, 3, dtype=D),
            "next": {"observation": torch.randn(*size, 3, dtype=D)},
        },
        size,
    )


def test_compose_nests_by_name_and_runs_in_order():
    model = net()
    params, buffers = model.init(rng.key(0))
    assert tree.paths(params) == [("actor", "weight"), ("critic", "weight")] and params.is_locked
    td = batch(5)
    before = td.clone()
    out = model(params, buffers, td)
    logits = td["observation"] @ params["actor", "weight"].T
    assert torch.allclose(out["logits"], logits) and torch.allclose(
        out["state_value"], logits @ params["critic", "weight"].T
    )
    assert out.batch_size == (5,) and out.is_locked and out["next"].is_locked
    assert (td == before).all() and not td.is_locked and not td["next"].is_locked
    lone = compose(actor=td_model(affine(3, 2), "observation", "logits"))
    assert torch.equal(
        lone.init(rng.key(0))[0]["actor", "weight"], params["actor", "weight"]
    )  # siblings don't matter
    assert torch.allclose(
        lone(params.select("actor"), tree.new({"actor": tree.new({})}), td)["logits"], logits
    )


def test_non_leaf_parameters_of_an_outer_graph():
    model = net()
    params, buffers = model.init(rng.key(0))
    td = batch(4)

    def outer(scale):
        scaled = tree.map(lambda x: x * scale, params)
        inner = grad(lambda p: model(p, buffers, td)["state_value"].square().mean())(scaled)
        return tree.norm(inner)

    check_grads(outer, torch.tensor(0.8, dtype=D))


def test_with_next_runs_on_both_at_once():
    calls = []
    inner = net()
    spy = Model(inner.init, lambda p, b, x: (calls.append(x.batch_size), inner.apply(p, b, x))[1])
    params, buffers = inner.init(rng.key(1))
    td = tree.replace(
        batch(4, 7), {"reward": torch.ones(4, 7), "next.done": torch.zeros(4, 7, dtype=torch.bool)}
    )
    out = with_next(spy)(params, buffers, td)
    assert calls == [torch.Size([2, 4, 7])]
    assert torch.allclose(out["state_value"], inner(params, buffers, td)["state_value"])
    following = inner(
        params, buffers, TensorDict({"observation": td["next", "observation"]}, [4, 7])
    )
    assert torch.allclose(out["next", "state_value"], following["state_value"])
    assert (
        out["next", "done"].dtype == torch.bool
        and "reward" in out.keys()
        and out["next"].batch_size == (4, 7)
    )
    with pytest.raises(
        ValueError, match="with_next: the batch has no 'next'; its keys are observation"
    ):
        with_next(inner)(params, buffers, td.select("observation"))
    with pytest.raises(ValueError, match="share no key"):
        with_next(inner)(
            params, buffers, TensorDict({"a": torch.ones(2), "next": {"b": torch.ones(2)}})
        )


def test_keys_nested_and_several():
    pair = Model(
        lambda key: (tree.new({}), tree.new({})), lambda p, b, x: ((x[0] + x[1], x[0] - x[1]), b)
    )
    td = TensorDict({"a": torch.ones(2), "deep": {"b": torch.ones(2)}}, [2])
    model = td_model(pair, ["a", ("deep", "b")], ["sum", ("next", "deep", "difference")])
    out = model(*model.init(rng.key(0)), td)
    assert out["sum"].eq(2).all() and out["next", "deep", "difference"].eq(0).all()
    assert "next" not in td.keys()
    assert (
        td_model(pair, ["a", "deep.b"], ["x.y", "z"])(*model.init(rng.key(0)), td)["x", "y"]
        .eq(2)
        .all()
    )


def test_buffers_come_back_and_are_never_lost():
    model = compose(
        net=td_model(affine(3, 2), "observation", "logits"),
        norm=td_model(counter(), "logits", "logits"),
    )
    params, buffers = model.init(rng.key(0))
    out, after = model.apply(params, buffers, batch(2))
    assert after["norm", "count"] == 1 and buffers["norm", "count"] == 0 and after.is_locked
    with pytest.raises(
        ValueError, match=r"this model updates its buffers \(norm.count\); use apply"
    ):
        model(params, buffers, batch(2))
    still = net()
    params, buffers = still.init(rng.key(0))
    assert still.apply(params, buffers, batch(2))[1] is buffers


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda p, b: net()(p, b, TensorDict({"obs": torch.ones(2, 3)}, [2])),
            ValueError,
            "td_model: the batch has no 'observation'; its keys are 'obs'",
        ),
        (
            lambda p, b: net()(p.select("actor"), b, batch(2)),
            ValueError,
            "compose: params lack critic; the models are actor, critic",
        ),
        (
            lambda p, b: net()(tree.replace(p, {"x": torch.ones(1)}), b, batch(2)),
            ValueError,
            "compose: params also hold x",
        ),
        (
            lambda p, b: net()(p, p["actor"], batch(2)),
            ValueError,
            "compose: buffers lack actor, critic; buffers also hold weight",
        ),
        (
            lambda p, b: net()({"actor": 1}, b, batch(2)),
            TypeError,
            "compose: params is a dict, expected a TensorDict",
        ),
        (lambda p, b: compose(), ValueError, "compose: no models"),
        (
            lambda p, b: compose(a=torch.nn.Linear(1, 1)),
            TypeError,
            "compose: a is a Linear, expected a Model",
        ),
        (lambda p, b: td_model(affine(1, 1), 3, "x"), TypeError, "td_model: the path is 3"),
        (lambda p, b: td_model(affine(1, 1), [], "x"), ValueError, "in_keys is empty"),
        (
            lambda p, b: td_model(affine(3, 1), "observation", ["x", "y"])(
                p["actor"], b["actor"], batch(2)
            ),
            ValueError,
            "gave one tensor, expected 2 outputs",
        ),
        (
            lambda p, b: td_model(
                Model(affine(3, 1).init, lambda p, b, x: (x.sum(), b)), "observation", "x"
            )(p, b, batch(2)),
            ValueError,
            r"output for 'x' has shape \(\), expected it to begin with \[2\]",
        ),
    ],
)
def test_bad_input(call, error, text):
    params, buffers = net().init(rng.key(0))
    with pytest.raises(error, match=text):
        call(params, buffers)


def test_vmapped_compiled_and_differentiated():
    model = net()
    params, buffers = vmap(model.init)(rng.split(rng.key(0), 3))
    assert params.batch_size == (3,) and params["actor", "weight"].shape == (3, 2, 3)
    assert torch.equal(
        params["actor", "weight"][1], model.init(rng.split(rng.key(0), 3)[1])[0]["actor", "weight"]
    )
    td = tree.lock(batch(3, 5))
    out = vmap(model)(params, buffers, td)
    one = model(tree.lock(params[1]), buffers, td[1])
    assert torch.allclose(out["state_value"][1], one["state_value"]) and out.batch_size == (3, 5)
    # buffers without entries are shared and mapped alike
    run = torch.compile(
        lambda p, b, x: with_next(model)(p, b, x)["next", "state_value"],
        fullgraph=True,
        backend="aot_eager",
    )
    p = tree.lock(params[0])
    b = model.init(rng.key(0))[1]
    assert torch.allclose(run(p, b, td[0]), with_next(model)(p, b, td[0])["next", "state_value"])
    check_grads(lambda q: with_next(model)(q, b, td[0])["next", "state_value"], p)


def test_with_next_writes_again_what_was_there():
    model = td_model(affine(3, 1), ("agent", "x"), ("agent", "value"))
    params, buffers = model.init(rng.key(0))
    x, following = rng.normal(rng.key(1), (2, 4, 3), dtype=D)
    td = TensorDict({"agent": {"x": x}, "next": {"agent": {"x": following}}}, [4])
    once = with_next(model)(params, buffers, td)
    twice = with_next(model)(tree.map(lambda w: 2 * w + 1, params), buffers, once)
    for values, seen in ((twice, x), (twice["next"], following)):
        assert torch.allclose(values["agent", "value"], seen @ (2 * params["weight"] + 1).mT)
    assert tree.paths(once["next"]) == [("agent", "value"), ("agent", "x")]
    bad = tree.replace(td, {"next.agent.x": following.float()})
    with pytest.raises(TypeError, match="with_next: 'next.agent.x' is torch.float32 of shape"):
        with_next(model)(params, buffers, bad)
    with pytest.raises(
        ValueError, match="with_next: the names differ: only the batch has 'agent.h'"
    ):
        with_next(model)(params, buffers, tree.replace(td, {"agent.h": torch.ones(4)}))


def test_named_dimensions_come_through():
    model = td_model(affine(3, 1), "x", ("a", "value"))
    params, buffers = model.init(rng.key(0))
    x = rng.normal(rng.key(1), (2, 4, 5, 3), dtype=D)
    td = TensorDict({"x": x[0], "next": {"x": x[1]}}, [4, 5], names=["time", "env"])
    seen = []
    run = vmap(lambda q: seen.append(q.names) or with_next(model)(params, buffers, q))
    out = run(tree.stack([td, td]))
    assert seen == [["time", "env"]] and out.names == out["next"].names == [None, "time", "env"]
    mapped = vmap(lambda p, q: model(p, buffers, q), (0, None))(tree.stack([params, params]), td)
    assert mapped.names == [None, "time", "env"]


def test_what_td_model_refuses():
    params, buffers = affine(3, 1).init(rng.key(0))
    td = TensorDict({"x": torch.ones(2, 3, dtype=D)}, [2])
    with pytest.raises(TypeError, match="td_model: layer is a str, expected a Model"):
        td_model("a", "x", "y")
    with pytest.raises(TypeError, match="td_model: batch is a Tensor, expected a TensorDict"):
        td_model(affine(3, 1), "x", "y")(params, buffers, td["x"])
    with pytest.raises(ValueError, match="td_model: out_keys has 'x.y', but 'x' is a leaf"):
        td_model(affine(3, 1), "x", "x.y")(params, buffers, td)
    number = Model(affine(3, 1).init, lambda p, b, x: (3.0, b))
    with pytest.raises(
        TypeError, match="td_model: the output for 'y' is a float, expected a tensor"
    ):
        td_model(number, "x", "y")(params, buffers, td)
