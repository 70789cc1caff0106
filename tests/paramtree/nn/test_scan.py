import pytest
import torch

from paramtree import Model, compose, envs, grad, nn, rng, td_model, tree, vmap, with_next
from tests.paramtree.nn.battery import (
    DOUBLE,
    EMPTY,
    check_derivatives,
    check_vmapped,
    close,
    draw,
    moved,
)


def resets(*size, seed=0, p=0.3):
    return rng.bernoulli(rng.key(seed), p, size)


def cell_of(layer, n_carries):
    """One step of a recurrent layer as a cell, whose carry is a tensor or a tuple of two."""

    def apply(params, buffers, inputs):
        x, carry = inputs
        carry = (carry,) if n_carries == 1 else carry
        (out, *carry), buffers = layer.apply(params, buffers, (x.unsqueeze(0), None, *carry))
        return (out[0], carry[0] if n_carries == 1 else tuple(carry)), buffers

    return Model(layer.init, apply)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_equals_the_layers_own_unroll(name, reverse):
    n = {"gru": 1, "lstm": 2}[name]
    make = getattr(nn, name)
    layer, one = make(3, 4, reverse=reverse, dtype=DOUBLE), make(3, 4, dtype=DOUBLE)
    params, _ = layer.init(rng.key(0))
    x, reset = draw(6, 2, 3), resets(6, 2)
    carry = [draw(2, 4, seed=i + 1) for i in range(n)]
    given = carry[0] if n == 1 else tuple(carry)
    out, *last = layer(params, EMPTY, (x, reset, *carry))
    for initial in (
        None,
        lambda x: tree.unflatten(tree.flatten(given)[1], [x.new_zeros(2, 4)] * n),
    ):
        scanned = nn.scan(cell_of(one, n), initial, reverse=reverse)
        y, after = scanned(params, EMPTY, (x, reset, given))
        close(y, out)
        close(tree.leaves(after), last)
    started = scanned(params, EMPTY, x)  # zeros, from initial
    close(started, layer(params, EMPTY, x))
    close(scanned(params, EMPTY, (x, None))[0], started)


def counter():
    """A cell that counts steps in its buffers, and sums its inputs in a carry that's a tree."""

    def init(key):
        return tree.new({"gain": torch.tensor(2.0, dtype=DOUBLE)}), tree.new(
            {"steps": torch.tensor(0)}
        )

    def apply(params, buffers, inputs):
        x, carry = inputs
        total = carry["sum"] + params["gain"] * x["a"]
        carry = tree.new({"sum": total, "last": x["b"]}, carry.batch_size)
        after = tree.rebuild(buffers, {"steps": buffers["steps"] + 1})
        return ((total, tree.new({"lag": carry["last"]}, x.batch_size)), carry), after

    return Model(init, apply)


def first(x):
    like = {"sum": torch.full_like(x["a"], 0.5), "last": torch.full_like(x["b"], -1)}
    return tree.new(like, x.batch_size)


def test_trees_go_in_and_out_and_buffers_from_step_to_step():
    layer = nn.scan(counter(), first)
    params, buffers = layer.init(rng.key(0))
    a, reset = draw(5, 3), torch.zeros(5, 3, dtype=torch.bool)
    reset[2, 1] = True
    x = tree.new({"a": a, "b": torch.arange(15).view(5, 3)}, (5, 3))
    ((total, other), carry), after = layer.apply(params, buffers, (x, reset))
    assert after["steps"] == 5 and buffers["steps"] == 0
    sums = 0.5 + 2 * a.cumsum(0)
    sums[2:, 1] = 0.5 + 2 * a[2:, 1].cumsum(0)
    close(total, sums)
    close(carry["sum"], sums[-1])
    assert other.batch_size == (5, 3) and torch.equal(other["lag"], x["b"]) and other.is_locked
    with pytest.raises(ValueError, match="this model updates its buffers"):
        layer(params, buffers, x)


def test_two_halves_are_the_whole():
    layer = nn.scan(counter(), first)
    params, buffers = layer.init(rng.key(0))
    x = tree.new({"a": draw(5, 3), "b": torch.arange(15).view(5, 3)}, (5, 3))
    (whole, last), _ = layer.apply(params, buffers, (x, None))
    (left, carry), middle = layer.apply(params, buffers, (x[:2], None))
    (right, end), after = layer.apply(params, middle, (x[2:], None, carry))
    close(torch.cat((left[0], right[0])), whole[0])
    close(tree.leaves(end), tree.leaves(last))
    assert after["steps"] == 5


GATE = nn.linear(5, 3, dtype=DOUBLE)


def blend(params, buffers, inputs):
    x, h = inputs
    gate = GATE(params, EMPTY, torch.cat((x, h[..., :2]), -1)).sigmoid()
    h = torch.lerp(x, h, gate)
    return (h, h), buffers


def test_in_every_way():
    layer = nn.scan(Model(GATE.init, blend))
    inputs = (draw(4, 2, 3), resets(4, 2), draw(2, 3, seed=1))
    check_derivatives(layer, inputs)
    leaves, structure = tree.flatten(inputs)
    many = [torch.stack([leaf, leaf.roll(1), leaf]) for leaf in leaves]
    check_vmapped(layer, inputs, tree.unflatten(tree.with_axis(structure, 3), many))
    params, buffers = layer.init(rng.key(0))

    def fn(params, inputs):
        slope = grad(lambda p: layer(p, buffers, inputs)[0].square().sum())(params)
        return layer(params, buffers, inputs), slope

    torch.compiler.reset()
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    close(tree.leaves(compiled(params, inputs)), tree.leaves(fn(params, inputs)))


# ---- models of trajectories


def agent(name, sequence, dropout=0.0):
    layer, keys = {
        "lstm": (nn.lstm(4, 6, 2), ["h", "c"]),
        "gru": (nn.gru(4, 6), "h"),
        "attention": (nn.causal_attention(4, 2, 5, rotary_base=50.0, dropout=dropout), "memory"),
        "transformer": (nn.causal_transformer(2, 4, 2, 5), "memory"),
    }[name]
    first = name in ("attention", "transformer")
    n = 4 if first else 6
    torso = nn.recurrent_model(
        layer, "observation", "hidden", keys, sequence=sequence, batch_first=first
    )
    return compose(
        torso=torso,
        actor=td_model(nn.linear(n, 2), "hidden", "logits"),
        critic=td_model(nn.linear(n, 1), "hidden", "state_value"),
    )


@pytest.mark.parametrize("workers", [(3,), (2, 2)])
@pytest.mark.parametrize("name", ["lstm", "gru", "attention", "transformer"])
def test_what_acts_in_a_rollout_learns_from_its_trajectory(name, workers):
    act, learn = agent(name, False), agent(name, True)
    params, buffers = act.init(rng.key(0))
    level, env = envs.cart_pole_level(), envs.cart_pole()
    state = env.reset(level, env.noise(level, rng.key(1), workers))
    carry = act(params, buffers, state)["next"]
    state = tree.merge(state, tree.new({"recurrent": carry}, workers))
    ended = 0
    for i in range(3):  # the last carry of a rollout is the first of the next one
        state, _, td = envs.rollout(env, act, params, buffers, level, state, rng.key(i), 20)
        torch.testing.assert_close(learn(params, buffers, td)["logits"], td["logits"])
        ended += int(td["next", "done"].sum())
    assert ended >= 2
    # step by step, from the carries that were written down
    again = act(params, buffers, td)
    torch.testing.assert_close(again["logits"], td["logits"])
    names = [key for key in ("h", "c", "memory") if key in td.keys()]
    after = tree.leaves(tree.new({key: again["next", key] for key in names}))
    torch.testing.assert_close(after, tree.leaves(tree.new({k: td["next", k] for k in names})))
    # the value of the next observation is that of the next step, where the episode goes on
    both, done = with_next(act)(params, buffers, td), td["next", "done"]
    going = ~done[..., :-1]
    torch.testing.assert_close(
        both["next", "state_value"][..., :-1, :][going], td["state_value"][..., 1:, :][going]
    )


def test_a_trajectory_starts_from_its_first_carry_or_from_nothing():
    layer = nn.gru(3, 4, dtype=DOUBLE)
    model = nn.recurrent_model(layer, "x", "y", "h", sequence=True)
    params, buffers = model.init(rng.key(0))
    x, reset, h = draw(2, 5, 3), resets(2, 5), draw(2, 5, 4)
    td = tree.new({"x": x, "is_init": reset, "h": h}, (2, 5))
    out = model(params, buffers, td)
    assert sorted(out.keys()) == ["h", "is_init", "x", "y"]
    expected = layer(params, EMPTY, (x.movedim(1, 0), reset.mT, h[:, 0]))[0].movedim(0, 1)
    close(out["y"], expected)
    bare = tree.exclude(td, "h")
    nothing = layer(params, EMPTY, (x.movedim(1, 0), reset.mT))[0].movedim(0, 1)
    close(model(params, buffers, bare)["y"], nothing)
    one = tree.new({"x": x, "is_init": reset.unsqueeze(-1)}, (2, 5))  # TorchRL's trailing axis
    close(model(params, buffers, one)["y"], nothing)
    slope = grad(lambda p: model(p, buffers, td)["y"].square().sum())(params)
    assert all(leaf.any() for leaf in tree.leaves(slope))


def test_keys_of_any_depth_and_buffers_that_change():
    layer = nn.causal_attention(4, 2, 3, dropout=0.5, dtype=DOUBLE)
    model = nn.recurrent_model(
        layer, ("seen", "x"), "out.y", "memory", batch_first=True, reset_key="start"
    )
    params, buffers = model.init(rng.key(0))
    seen = tree.new({"x": draw(2, 4)}, (2,))
    td = tree.new({"seen": seen, "start": torch.ones(2, dtype=torch.bool)}, (2,))
    out, after = model.apply(params, buffers, td)
    assert out["out", "y"].shape == (2, 4)
    assert out["next", "memory", "key"].shape == (2, 2, 3, 2)
    assert not torch.equal(after["dropout", "key"], buffers["dropout", "key"])


def test_parameters_of_tasks_map_over_states():
    model = nn.recurrent_model(nn.gru(3, 4, dtype=DOUBLE), "x", "y", "h")
    layer = nn.gru(3, 4, dtype=DOUBLE)
    rows = [layer.init(key)[0] for key in rng.split(rng.key(0), 3)]
    x, h, start = draw(3, 2, 3), draw(3, 2, 4), resets(3, 2)
    td = tree.new({"x": x, "h": h, "is_init": start}, (3, 2))
    out = vmap(lambda p, td: model(p, EMPTY, td))(tree.stack(rows), td)
    for i in range(3):
        y = layer(rows[i], EMPTY, (x[i][None], start[i][None], h[i]))[0][0]
        close(out["y"][i], y)
        close(out["next", "h"][i], y)


MOVED = moved(GATE, rng.key(0))[0]
SCAN = nn.scan(Model(GATE.init, blend))
X, H = draw(4, 2, 3), draw(2, 3)
PAIR = nn.recurrent_model(nn.gru(3, 4), "x", "y", "h", sequence=True)
REFUSED = [
    (lambda: nn.scan(torch.relu), TypeError, "scan: cell is a"),
    (lambda: nn.scan(GATE, 3), TypeError, "scan: initial is a int"),
    (
        lambda: SCAN(MOVED, EMPTY, X),
        ValueError,
        "scan: there is no carry, expected",
    ),
    (lambda: SCAN(MOVED, EMPTY, (X, X, H)), TypeError, "scan: reset is torch.float64"),
    (lambda: SCAN(MOVED, EMPTY, (X, resets(4, 3), H)), ValueError, r"reset has shape \(4, 3\)"),
    (
        lambda: SCAN(MOVED, EMPTY, (X, resets(4, 2), draw(1, 3))),
        ValueError,
        r"a carry has shape \(1, 3\), expected it to begin with \(2,\) \(from reset\)",
    ),
    (
        lambda: SCAN(MOVED, EMPTY, (X[:0], None, H)),
        ValueError,
        r"x has shape \(0, 2, 3\)",
    ),
    (
        lambda: SCAN(MOVED, EMPTY, ((X, X[:2]), None, H)),
        ValueError,
        "x at .* has 2 steps, exp",
    ),
    (lambda: SCAN(MOVED, EMPTY, ("x", None, H)), TypeError, "scan: x holds no tensor"),
    (lambda: SCAN(MOVED, EMPTY, (X, None, H, H)), ValueError, "the input is a tuple of 4"),
    (
        lambda: nn.scan(Model(GATE.init, lambda p, b, x: (x[0], b)))(MOVED, EMPTY, (X, None, H)),
        ValueError,
        "scan: the cell gave Tensor, expected .y, carry.",
    ),
    (
        lambda: nn.scan(Model(GATE.init, blend), lambda x: (H, H))(
            MOVED, EMPTY, (X, resets(4, 2), H)
        ),
        ValueError,
        "scan: the names of the carry and what initial gave differ|scan: .*what initial gave",
    ),
    (
        lambda: nn.recurrent_model(torch.relu, "x", "y", "h"),
        TypeError,
        "recurrent_model: layer is",
    ),
    (
        lambda: nn.recurrent_model(nn.gru(3, 4), "x", "y", [("a", "h")]),
        TypeError,
        "a carry key is a tuple, expected a name",
    ),
    (
        lambda: PAIR(EMPTY, EMPTY, tree.new({"x": X})),
        ValueError,
        r"recurrent_model: the batch has batch size \[\], expected \[\*B, T\] with sequence",
    ),
    (
        lambda: PAIR(EMPTY, EMPTY, tree.new({"x": X}, (4, 2))),
        ValueError,
        "the batch has no 'is_init'; its keys are 'x'",
    ),
    (lambda: PAIR(EMPTY, EMPTY, {"x": X}), TypeError, "recurrent_model: batch is a dict"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
