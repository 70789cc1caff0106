"""Several ways through one tree of parameters, one part for many inputs, errors that say where."""

import pytest
import torch
from tensordict import TensorDict

from paramtree import (
    Model,
    compose,
    grad,
    methods,
    nn,
    parallel,
    rng,
    td_model,
    tree,
    vmap,
)

D = torch.float64


def draw(*shape, seed=0):
    return rng.normal(rng.key(seed), shape, dtype=D)


def double(params):
    return tree.cast(params, D)


def counting(n):
    """A layer that multiplies by its weight and counts its calls."""

    def init(key):
        weight = rng.normal(key, (n,), dtype=D)
        return tree.new({"weight": weight}), tree.new({"calls": torch.tensor(0)})

    def apply(params, buffers, x):
        return params["weight"] * x, tree.new({"calls": buffers["calls"] + 1})

    return Model(init, apply)


PARTS = {
    "torso": td_model(nn.mlp(4, 5, activation=torch.tanh), "observation", "hidden"),
    "actor": td_model(nn.linear(5, 2), "hidden", "logits"),
    "critic": td_model(nn.linear(5, 1), "hidden", "state_value"),
}
AGENT = methods(PARTS, act=["torso", "actor"], evaluate=["torso", "critic"], see="torso")


def agent_and_batch():
    params, buffers = AGENT.init(rng.key(0))
    td = TensorDict({"observation": draw(3, 4)}, [3])
    return double(params), buffers, td


def test_methods_share_parts_by_name():
    params, buffers, td = agent_and_batch()
    assert sorted(params.keys()) == ["actor", "critic", "torso"]
    assert AGENT._fields == ("init", "act", "evaluate", "see")
    act = AGENT.act(params, buffers, td)
    value = AGENT.evaluate(params, buffers, td)
    assert "state_value" not in act.keys() and "logits" not in value.keys()
    assert torch.equal(act["hidden"], value["hidden"])
    assert torch.equal(act["hidden"], AGENT.see(params, buffers, td)["hidden"])

    whole = compose(**PARTS)
    again, _ = whole.init(rng.key(0))
    assert tree.allclose(double(again), params, rtol=0, atol=0)
    assert torch.equal(whole(params, buffers, td)["state_value"], value["state_value"])

    slope = grad(lambda p: AGENT.act(p, buffers, td)["logits"].square().sum())(params)
    assert float(tree.norm(slope["critic"])) == 0 and float(tree.norm(slope["torso"])) > 0


def test_each_method_is_a_model_like_any_other():
    params, buffers, td = agent_and_batch()
    init, apply = AGENT.evaluate
    assert tree.allclose(double(init(rng.key(0))[0]), params, rtol=0, atol=0)
    assert torch.equal(
        apply(params, buffers, td)[0]["hidden"], AGENT.see(params, buffers, td)["hidden"]
    )
    outer = compose(agent=AGENT.evaluate)
    out = outer(tree.new({"agent": params}), tree.new({"agent": buffers}), td)
    assert torch.equal(out["state_value"], AGENT.evaluate(params, buffers, td)["state_value"])


def test_a_route_may_be_a_function_that_calls_parts_as_often_as_it_likes():
    twins = methods(
        {"encoder": nn.mlp(4, 5, 2, activation=torch.tanh), "scale": counting(2)},
        distance=lambda call, pair: (call("encoder", pair[0]) - call("encoder", pair[1])).square(),
        scaled=lambda call, x: call("scale", call("scale", call("encoder", x))),
    )
    params, buffers = twins.init(rng.key(1))
    params, x, y = double(params), draw(3, 4), draw(3, 4, seed=1)
    encoder = nn.mlp(4, 5, 2, activation=torch.tanh)

    def encode(x):
        return encoder.apply(params["encoder"], buffers["encoder"], x)[0]

    assert torch.equal(twins.distance(params, buffers, (x, y)), (encode(x) - encode(y)).square())
    out, after = twins.scaled.apply(params, buffers, x)
    assert torch.equal(out, params["scale", "weight"] * (params["scale", "weight"] * encode(x)))
    assert after["scale", "calls"] == 2 and buffers["scale", "calls"] == 0 and after.is_locked
    assert after["encoder"] is buffers["encoder"]
    with pytest.raises(ValueError, match=r"this model updates its buffers \(scale.calls\)"):
        twins.scaled(params, buffers, x)


def test_methods_are_parts_of_methods():
    outer = methods(
        {"agent": AGENT, "head": td_model(nn.linear(2, 3), "logits", "out")},
        play=["agent.act", "head"],
        judge="agent.evaluate",
        both=lambda call, td: (
            call("agent.act", td)["hidden"],
            call("agent.evaluate", td)["hidden"],
        ),
    )
    params, buffers = outer.init(rng.key(4))
    assert sorted(params.keys()) == ["agent", "head"] and "torso" in params["agent"].keys()
    params, td = double(params), agent_and_batch()[2]
    value = AGENT.evaluate(params["agent"], buffers["agent"], td)["state_value"]
    assert torch.equal(outer.judge(params, buffers, td)["state_value"], value)
    assert outer.play(params, buffers, td)["out"].shape == (3, 3)
    assert torch.equal(*outer.both(params, buffers, td))
    wrong = TensorDict({"observation": draw(3, 7)}, [3])
    with pytest.raises(ValueError, match="; in agent.torso.linear_0$"):
        outer.play(params, buffers, wrong)
    with pytest.raises(
        ValueError, match="goes through agent, expected some of agent.act, agent.ev"
    ):
        methods({"agent": AGENT}, play="agent")


def test_methods_compile_and_map_over_tasks():
    keys = rng.split(rng.key(3), 3)
    stacked, buffers = vmap(AGENT.init)(keys)
    stacked, td = double(stacked), TensorDict({"observation": draw(3, 6, 4)}, [3, 6])
    out = vmap(AGENT.act)(stacked, buffers, td)["logits"]
    run = torch.compile(AGENT.act.apply, fullgraph=True, backend="aot_eager")
    for i in range(3):
        one = AGENT.act(stacked[i], tree.unstack(buffers)[i], td[i])["logits"]
        torch.testing.assert_close(out[i], one)
        torch.testing.assert_close(
            run(stacked[i], tree.unstack(buffers)[i], td[i])[0]["logits"], one
        )


def test_parallel_runs_one_model_on_each_input():
    layer = nn.mlp(4, 5, 2, activation=torch.tanh)
    eyes = parallel(layer, {"left": "left_code", "right": ("codes", "right")})
    params, buffers = eyes.init(rng.key(2))
    params = double(params)
    td = TensorDict({"left": draw(3, 4), "right": draw(3, 4, seed=1)}, [3])
    out = eyes(params, buffers, td)
    assert out.is_locked and out.batch_size == (3,) and set(td.keys()) == {"left", "right"}
    assert torch.equal(out["left_code"], layer(params, buffers, td["left"]))
    assert torch.equal(out["codes", "right"], layer(params, buffers, td["right"]))
    assert tree.paths(params) == tree.paths(layer.init(rng.key(2))[0])


def test_parallel_on_trees_threads_the_buffers():
    model = td_model(counting(4), "observation", "hidden")
    both = parallel(model, ["left", "right"])
    params, buffers = both.init(rng.key(2))
    side = {"observation": draw(3, 4)}
    td = TensorDict({"left": TensorDict(side, [3]), "right": TensorDict(side, [3])}, [3])
    out, after = both.apply(params, buffers, td)
    assert torch.equal(out["right", "hidden"], params["weight"] * td["right", "observation"])
    assert after["calls"] == 2 and "hidden" not in td["left"].keys()


DEEP = compose(
    agent=compose(
        actor=td_model(nn.sequential(torso=nn.mlp(4, 5, 2)), "observation", "logits"),
    )
)


def test_an_error_deep_inside_says_where():
    params, buffers = DEEP.init(rng.key(0))
    wrong = TensorDict({"observation": torch.ones(3, 7)}, [3])
    text = (
        r"linear: x has shape \(3, 7\), expected \[\*batch, 4\] \(from linear\(4, 5\), whose "
        r"weight has shape \(5, 4\)\); in agent.actor.torso.linear_0$"
    )
    with pytest.raises(ValueError, match=text):
        DEEP(params, buffers, wrong)
    with pytest.raises(
        TypeError, match="x has dtype torch.float64, .*; in agent.actor.torso.linear_0"
    ):
        DEEP(params, buffers, tree.cast(tree.take(wrong, [0]), D).replace(observation=draw(1, 4)))
    with pytest.raises(ValueError, match="the batch has no 'observation'; .*; in agent.actor$"):
        DEEP(params, buffers, TensorDict({"pixels": torch.ones(3, 4)}, [3]))


def test_params_of_another_model_are_told_by_name():
    params, buffers = DEEP.init(rng.key(0))
    td = TensorDict({"observation": torch.ones(3, 4)}, [3])
    mine = params["agent", "actor"]
    other = tree.new({"agent": tree.new({"policy": mine, "value": mine})})
    with pytest.raises(
        ValueError, match="compose: params lack actor; params also hold policy, value"
    ):
        DEEP(other, buffers, td)
    deeper = nn.mlp(4, 5, 5, 2).init(rng.key(0))[0]
    swapped = tree.replace(params, {"agent.actor.torso": deeper})
    with pytest.raises(ValueError, match="hold an unknown linear_2; .*; in agent.actor.torso"):
        DEEP(swapped, buffers, td)
    with pytest.raises(
        ValueError, match="params lack linear_2, or linear: params lack weight, bias"
    ):
        nn.mlp(4, 5, 2, 2)(mine["torso"], tree.new({}), torch.ones(3, 4))
    nearly = tree.exclude(params, "**.linear_1.bias")
    with pytest.raises(
        ValueError, match="linear: params lack bias; .*; in agent.actor.torso.linear_1"
    ):
        DEEP(nearly, buffers, td)


MODELS = {
    "compose": DEEP,
    "sequential": nn.sequential(nn.linear(2, 3)),
    "linear": nn.linear(2, 3),
    "embedding": nn.embedding(2, 3),
    "lstm": nn.lstm(2, 3),
    "methods": AGENT.act,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_key_of_the_wrong_shape(name):
    init = MODELS[name].init
    with pytest.raises(ValueError, match=rf"{name}: key has shape \(3, 2\), .* vmap"):
        init(rng.split(rng.key(0), 3))
    with pytest.raises(ValueError, match=rf"{name}: key has shape \(3,\), expected \[2\]$"):
        init(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=f"{name}: key is torch.float32, expected an int64 tensor"):
        init(torch.zeros(2))
    with pytest.raises(TypeError, match=f"{name}: key is int"):
        init(0)


def test_names_used_twice():
    with pytest.raises(TypeError, match="multiple values for keyword argument 'actor'"):
        compose(actor=nn.linear(2, 2), **{"actor": nn.linear(2, 2)})
    with pytest.raises(ValueError, match="sequential: '0' names two layers"):
        nn.sequential(nn.linear(2, 2), **{"0": nn.linear(2, 2)})
    with pytest.raises(ValueError, match="td_model: 'y' is written by two outputs"):
        td_model(nn.linear(2, 2), "x", ["y", "y"])
    with pytest.raises(ValueError, match="parallel: 'z' is written by two outputs"):
        parallel(nn.linear(2, 2), {"x": "z", "y": "z"})
    with pytest.raises(ValueError, match="parallel: inputs are"):
        parallel(nn.linear(2, 2), ["x", "x"])


def test_what_methods_refuse():
    part = {"encoder": nn.linear(2, 2)}
    with pytest.raises(
        ValueError, match="methods: route encode goes through decoder, expected some"
    ):
        methods(part, encode=["encoder", "decoder"])
    with pytest.raises(ValueError, match="methods: a route is named 'init'"):
        methods(part, init="encoder")
    with pytest.raises(TypeError, match="methods: route encode is 3"):
        methods(part, encode=3)
    with pytest.raises(ValueError, match="methods: got 1 models and 0 routes"):
        methods(part)
    with pytest.raises(TypeError, match="methods: encoder is a str"):
        methods({"encoder": "a"}, encode="encoder")
    bad = methods(part, encode=lambda call, x: call("decoder", x))
    params, buffers = bad.init(rng.key(0))
    with pytest.raises(
        ValueError, match="methods: a route calls 'decoder', expected one of encoder"
    ):
        bad.encode(params, buffers, torch.ones(2))
    with pytest.raises(ValueError, match="methods: params lack encoder"):
        bad.encode(tree.new({}), buffers, torch.ones(2))
