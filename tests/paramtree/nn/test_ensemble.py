import pytest
import torch

from paramtree import compose, grad, nn, rng, td_model, tree, vmap
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_compiled,
    check_derivatives,
    check_vmapped,
    close,
    draw,
    moved,
)


def member():
    return nn.sequential(
        nn.linear(3, 4, dtype=DOUBLE), torch.tanh, nn.dropout(0.3), nn.batch_norm(4, dtype=DOUBLE)
    )


def test_equals_a_loop_over_members_buffers_too():
    layer, n = member(), 3
    whole = nn.ensemble(layer, n)
    params, buffers = whole.init(rng.key(0))
    assert params.batch_size == buffers.batch_size == (n,) and params.is_locked
    x = draw(5, 3)
    out, after = whole.apply(params, buffers, x)
    assert out.shape == (n, 5, 4) and after.batch_size == (n,) and after.is_locked
    for i, key in enumerate(rng.split(rng.key(0), n)):
        own, state = layer.init(key)
        close(tree.leaves(params[i]) + tree.leaves(buffers[i]), tree.leaves((own, state)))
        wanted, new = layer.apply(own, state, x)
        close(out[i], wanted)
        close(tree.leaves(after[i]), tree.leaves(new))
    assert not torch.equal(out[0], out[1])


def test_each_member_gets_an_input_of_its_own():
    layer, n = member(), 3
    whole = nn.ensemble(layer, n, shared=False)
    params, buffers = whole.init(rng.key(0))
    x = draw(n, 5, 3)
    out, _ = whole.apply(params, buffers, x)
    for i in range(n):
        close(out[i], layer.apply(params[i], buffers[i], x[i])[0])


@pytest.mark.parametrize("shared", [True, False])
def test_buffers_that_do_not_change_come_back_as_they_are(shared):
    whole = nn.ensemble(nn.mlp(3, 4, 2, dtype=DOUBLE), 2, shared=shared)
    params, buffers = whole.init(rng.key(0))
    x = draw(5, 3) if shared else draw(2, 5, 3)
    out, after = whole.apply(params, buffers, x)
    assert after is buffers
    close(whole(params, buffers, x), out)


def test_several_inputs_outputs_and_models_of_trees():
    cell = nn.ensemble(nn.gru(3, 4, dtype=DOUBLE), 2)
    params, buffers = moved(cell, rng.key(0))
    x, reset = draw(5, 6, 3), rng.bernoulli(rng.key(1), 0.3, (5, 6))
    out, h = cell(params, buffers, (x, reset))
    assert out.shape == (2, 5, 6, 4) and h.shape == (2, 6, 4)
    one = nn.gru(3, 4, dtype=DOUBLE)
    close(out[1], one(params[1], EMPTY, (x, reset))[0])
    critic = compose(q=td_model(nn.mlp(4, 8, 1, dtype=DOUBLE), "observation", "state_action_value"))
    critics = nn.ensemble(critic, 2)
    params, buffers = critics.init(rng.key(0))
    td = tree.new({"observation": draw(7, 4)}, (7,))
    both = critics(params, buffers, td)
    assert both.batch_size == (2, 7) and both["state_action_value"].shape == (2, 7, 1)
    close(both[0]["state_action_value"], critic(params[0], buffers[0], td)["state_action_value"])


def test_gradient_of_one_member_is_its_own():
    layer = nn.mlp(3, 4, 1, dtype=DOUBLE)
    whole = nn.ensemble(layer, 3)
    params, buffers = whole.init(rng.key(0))
    x = draw(5, 3)
    slope = grad(lambda p: whole(p, buffers, x)[1].square().sum())(params)
    wanted = grad(lambda p: layer(p, EMPTY, x).square().sum())(params[1])
    close(tree.leaves(slope[1]), tree.leaves(wanted))
    assert not any(leaf[0].any() or leaf[2].any() for leaf in tree.leaves(slope))
    least = grad(lambda p: whole(p, buffers, x).min(0).values.sum())(params)  # as in SAC
    assert all(leaf.isfinite().all() for leaf in tree.leaves(least))


@pytest.mark.parametrize("shared", [True, False])
def test_in_every_way(shared):
    whole = nn.ensemble(member(), 2, shared=shared)
    x = draw(4, 3) if shared else draw(2, 4, 3)
    check_derivatives(whole, x, fast=True)
    check_vmapped(whole, x)
    check_compiled(nn.ensemble(nn.linear(3, 2, dtype=DOUBLE), 2, shared=shared), x)


def test_tasks_of_ensembles_of_ensembles():
    inner = nn.ensemble(nn.linear(3, 2, dtype=DOUBLE), 2)
    outer = nn.ensemble(inner, 3)
    params, buffers = vmap(outer.init)(rng.split(rng.key(0), 4))
    assert params["weight"].shape == (4, 3, 2, 2, 3)
    x = draw(4, 5, 3)
    out = vmap(outer)(params, buffers, x)
    close(out, torch.einsum("tabij,tnj->tabni", params["weight"], x) + params["bias"].unsqueeze(-2))


def test_trees_without_batch_size_and_other_devices():
    whole = nn.ensemble(nn.mlp(3, 4, 2), 2)
    params, buffers = whole.init(rng.key(0))
    plain = tree.new({name: tree.new(dict(params[name].items())) for name in params.keys()})
    assert plain.batch_size == ()
    x = draw(5, 3).float()
    close(whole(plain, tree.new({}), x), whole(params, buffers, x))
    away = tree.map(lambda leaf: leaf.to("meta"), params)
    assert whole(away, buffers, x.to("meta")).shape == (2, 5, 2)


LAYER = nn.ensemble(nn.linear(3, 2, dtype=DOUBLE), 2)
PARAMS = LAYER.init(rng.key(0))[0]
X = draw(5, 3)
APART = nn.ensemble(nn.linear(3, 2, dtype=DOUBLE), 2, shared=False)
REFUSED = [
    (lambda: nn.ensemble(nn.linear(3, 2), 0), ValueError, "ensemble: n is 0"),
    (lambda: nn.ensemble(torch.relu, 2), TypeError, "ensemble: layer is a"),
    (lambda: LAYER.init(rng.split(rng.key(0))), ValueError, r"ensemble: key has shape \(2, 2\)"),
    (lambda: LAYER(PARAMS[0], EMPTY, X), ValueError, r"linear: params.weight has shape \(3,\)"),
    (
        lambda: LAYER(tree.stack([PARAMS[0]] * 3), EMPTY, X),
        ValueError,
        r"ensemble: params.bias has shape \(3, 2\), expected it to begin with 2 \(from ensemble",
    ),
    (lambda: APART(PARAMS, EMPTY, X), ValueError, r"ensemble: x has shape \(5, 3\), .* with 2"),
    (lambda: LAYER(PARAMS, EMPTY, draw(5, 4)), ValueError, r"linear: x has shape \(5, 4\)"),
    (lambda: LAYER({}, EMPTY, X), TypeError, "ensemble: params is a dict"),
    (
        lambda: nn.ensemble(nn.sequential(torch.relu), 2)(EMPTY, EMPTY, X),
        ValueError,
        "ensemble: the layer has no params and no buffers",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
