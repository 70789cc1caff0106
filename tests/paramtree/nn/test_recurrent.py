import functools
import itertools
import math

import pytest
import torch
from tensordict import TensorDict
from torch.func import grad, jvp, vjp, vmap
from torch.testing import assert_close

from paramtree import rng, tree
from paramtree.nn import gru, lstm, orthogonal, zeros

DOUBLE = torch.float64
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
LAYERS = {"gru": gru, "lstm": lstm}
CARRIES = {"gru": 1, "lstm": 2}
MODULES = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
CELLS = {"gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}
EMPTY = tree.new({})


def draw(*shape, seed=0):
    return rng.normal(rng.key(seed), shape, dtype=DOUBLE)


def flags(*shape, seed=0, p=0.4):
    return rng.bernoulli(rng.key(seed), p, shape)


def params_of(leaves, suffix=""):
    return TensorDict({name: leaves[f"{name}{suffix}"] for name in NAMES})


def close(actual, expected):
    assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def case(kind, steps=4, batch=3, n_in=2, n_hidden=3, seed=0, **options):
    """A layer with its parameters, and a whole input: x, reset, carry."""
    layer = LAYERS[kind](n_in, n_hidden, dtype=DOUBLE, **options)
    params, buffers = layer.init(rng.key(seed))
    carry = [draw(batch, n_hidden, seed=seed + i) for i in range(CARRIES[kind])]
    x, reset = draw(steps, batch, n_in, seed=seed + 5), flags(steps, batch, seed=seed)
    return layer, params, buffers, (x, reset, *carry)


def scalar(outputs):
    """A sum that weighs each number of each output differently."""
    total = 0.0
    for i, out in enumerate(outputs):
        weights = torch.linspace(0.1 + i, 1.0, out.numel(), dtype=out.dtype)
        total = total + (weights * out.flatten()).sin().sum()
    return total


# ---- against torch


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("steps", "batch", "n_in"), [(5, (2,), 3), (1, (2, 3), 3), (4, (), 17)])
def test_unroll_equals_torch(kind, bidirectional, steps, batch, n_in):
    module = MODULES[kind](n_in, 4, bidirectional=bidirectional).double()
    named = {name.replace("_l0", ""): leaf for name, leaf in module.named_parameters()}
    own = {name: leaf.detach().clone().requires_grad_() for name, leaf in named.items()}
    params = params_of(own)
    if bidirectional:
        params = TensorDict(forward=params, backward=params_of(own, "_reverse"))
    layer = LAYERS[kind](n_in, 4, bidirectional=bidirectional, dtype=DOUBLE)
    count = math.prod(batch)
    x = draw(steps, *batch, n_in).requires_grad_()
    start = [draw(1 + bidirectional, count, 4, seed=i) for i in range(CARRIES[kind])]
    start = [part.requires_grad_() for part in start]

    def beside(part):  # [directions, count, H] to [*batch, directions H]
        return torch.cat(list(part), -1).reshape(*batch, -1)

    outputs, buffers = layer.apply(params, EMPTY, (x, None, *[beside(part) for part in start]))
    out, last = module(x.reshape(steps, count, n_in), start[0] if kind == "gru" else tuple(start))
    last = (last,) if kind == "gru" else last
    expected = [out.reshape(steps, *batch, -1), *[beside(part) for part in last]]
    assert buffers is EMPTY
    close(list(outputs), expected)
    out = module(x.reshape(steps, count, n_in))[0]
    close(layer.apply(params, EMPTY, x)[0], out.reshape(steps, *batch, -1))

    ours = torch.autograd.grad(scalar(outputs), [x, *start, *own.values()])
    theirs = torch.autograd.grad(scalar(expected), [x, *start, *named.values()])
    close(ours, theirs)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("reverse", [False, True])
def test_reset_zeroes_the_carry_before_its_step(kind, reverse):
    layer, params, buffers, (x, reset, *carry) = case(kind, steps=6, reverse=reverse)
    cell = CELLS[kind](2, 3).double()
    cell.load_state_dict({name: params[name] for name in NAMES})
    state, expected = [c.clone() for c in carry], {}
    for t in reversed(range(6)) if reverse else range(6):
        state = [torch.where(reset[t, :, None], 0.0, c) for c in state]
        state = cell(x[t], state[0] if kind == "gru" else tuple(state))
        state = [state] if kind == "gru" else list(state)
        expected[t] = state[0]
    out, *last = layer.apply(params, buffers, (x, reset, *carry))[0]
    close(out, torch.stack([expected[t] for t in range(6)]))
    close(last, state)


@pytest.mark.parametrize("kind", LAYERS)
def test_with_both_directions_an_episode_sees_itself_alone(kind):
    layer, params, buffers, (x, _, *_) = case(kind, steps=6, bidirectional=True)
    reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    reset[3, 0] = reset[5, 0] = reset[2, 1] = True
    out = layer.apply(params, buffers, (x, reset))[0][0]
    for worker, cuts in ((0, (0, 3, 5, 6)), (1, (0, 2, 6))):
        for first, last in itertools.pairwise(cuts):
            alone = layer(params, buffers, x[first:last, worker])
            close(out[first:last, worker], alone)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_reset_keeps_nothing_of_what_came_before(kind):
    layer, params, buffers, (x, _, *carry) = case(kind, steps=5, batch=1)
    reset = torch.zeros(5, 1, dtype=torch.bool)
    reset[0] = reset[3] = True
    x = x.clone().requires_grad_()
    lost = [torch.full_like(c, torch.nan).requires_grad_() for c in carry]
    out = layer.apply(params, buffers, (x, reset, *lost))[0][0]
    close(out[3:], layer.apply(params, buffers, x[3:])[0])
    gradients = torch.autograd.grad(out[3:].sum(), [x, *lost])
    assert (gradients[0][:3] == 0).all() and (gradients[0][3:] != 0).all()
    assert all((g == 0).all() for g in gradients[1:])


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("reverse", [False, True])
def test_two_halves_are_the_whole(kind, reverse):
    layer, params, buffers, (x, reset, *carry) = case(kind, steps=7, reverse=reverse)
    out, *last = layer.apply(params, buffers, (x, reset, *carry))[0]
    halves = [(slice(3, None), slice(3))] if reverse else [(slice(3), slice(3, None))]
    first, second = halves[0]
    one, *middle = layer.apply(params, buffers, (x[first], reset[first], *carry))[0]
    two, *end = layer.apply(params, buffers, (x[second], reset[second], *middle))[0]
    close(out, torch.cat((two, one) if reverse else (one, two)))
    close(end, last)


@pytest.mark.parametrize("kind", LAYERS)
def test_missing_parts_of_the_input_are_zero(kind):
    layer, params, buffers, (x, reset, *carry) = case(kind)
    zero = [torch.zeros_like(c) for c in carry]
    out, *last = layer.apply(params, buffers, (x, reset, *zero))[0]
    close(list(layer.apply(params, buffers, (x, reset))[0]), [out, *last])
    close(
        layer.apply(params, buffers, (x, torch.zeros_like(reset)))[0][0], layer(params, buffers, x)
    )
    if kind == "lstm":
        both = layer.apply(params, buffers, (x, reset, carry[0]))[0]
        close(list(both), list(layer.apply(params, buffers, (x, reset, carry[0], zero[1]))[0]))


# ---- derivatives


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"bidirectional": True}], ids=str)
def test_first_and_second_derivatives(kind, options):
    layer, params, buffers, (x, reset, *carry) = case(kind, steps=3, batch=2, **options)
    if options.get("bidirectional"):
        carry = [torch.cat((c, c + 0.1), -1) for c in carry]
    leaves, structure = tree.flatten(params)

    def fn(x, *rest):
        inner = tree.unflatten(structure, rest[len(carry) :])
        return layer.apply(inner, buffers, (x, reset, *rest[: len(carry)]))[0]

    inputs = [value.clone().requires_grad_() for value in (x, *carry, *leaves)]
    assert torch.autograd.gradcheck(fn, inputs)
    assert torch.autograd.gradgradcheck(fn, inputs)


@pytest.mark.parametrize("kind", LAYERS)
def test_third_derivative(kind):
    layer, params, buffers, (x, reset, *carry) = case(kind, steps=3, batch=2)

    def fn(x):
        return scalar(layer.apply(params, buffers, (x, reset, *carry))[0])

    def second(x):
        return grad(lambda x: grad(fn)(x).square().sum())(x)

    direction, h = draw(*x.shape, seed=9), 1e-5
    third = grad(lambda x: (second(x) * direction).sum())(x)
    central = (second(x + h * direction) - second(x - h * direction)) / (2 * h)
    assert_close(third, central, rtol=1e-5, atol=1e-6)  # second derivatives are symmetric


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_mode(kind):
    layer, params, buffers, (x, reset, *carry) = case(kind)

    def fn(x, *weights):
        inner = TensorDict(dict(zip(NAMES, weights, strict=True)))
        return layer.apply(inner, buffers, (x, reset, *carry))[0]

    inputs = (x, *[params[name] for name in NAMES])
    tangents = tuple(draw(*value.shape, seed=i) for i, value in enumerate(inputs))
    out, pushed = jvp(fn, inputs, tangents)[:2]
    same, pull = vjp(fn, *inputs)[:2]
    close(list(out), list(same))
    cotangents = tuple(draw(*value.shape, seed=20 + i) for i, value in enumerate(out))
    left = sum((a * b).sum() for a, b in zip(pushed, cotangents, strict=True))
    right = sum((a * b).sum() for a, b in zip(tangents, pull(cotangents), strict=True))
    close(left, right)


@pytest.mark.parametrize("kind", LAYERS)
def test_backward_can_run_twice_and_on_parts(kind):
    layer, params, buffers, (x, reset, *carry) = case(kind)
    leaves = [params[name].clone().requires_grad_() for name in NAMES]
    x = x.clone().requires_grad_()
    inner = TensorDict(dict(zip(NAMES, leaves, strict=True)))
    outputs = layer.apply(inner, buffers, (x, reset, *carry))[0]
    total = scalar(outputs)
    both = [torch.autograd.grad(total, [x, *leaves], retain_graph=True) for _ in range(2)]
    close(*both)
    close(torch.autograd.grad(total, [x], retain_graph=True)[0], both[0][0])
    close(torch.autograd.grad(total, leaves, retain_graph=True), both[0][1:])
    for out in outputs:  # one output alone: the others have no gradient
        assert all(
            g.isfinite().all() for g in torch.autograd.grad(out.sum(), leaves, retain_graph=True)
        )


# ---- transforms


def arguments(kind, mapped, count=2):
    """A function of weights, x, carry and reset; these, stacked where `mapped`; in_dims; rows."""
    layer, _, buffers, _ = case(kind)
    rows = []
    for i in range(count):
        _, params, _, (x, reset, *carry) = case(kind, seed=10 * i)
        rows.append([[params[name] for name in NAMES], x, carry, reset])
    axes = {"weights": 0, "x": 1, "carry": 0, "reset": 1}
    dims = tuple(axis if name in mapped else None for name, axis in axes.items())
    given = []
    for j, dim in enumerate(dims):
        column = [row[j] for row in rows]
        if dim is None:
            given.append(column[0])
            for row in rows:
                row[j] = column[0]
        else:
            stack = functools.partial(lambda dim, *parts: torch.stack(parts, dim), dim)
            given.append(torch.utils._pytree.tree_map(stack, *column))

    def fn(weights, x, carry, reset):
        params = TensorDict(dict(zip(NAMES, weights, strict=True)))
        return layer.apply(params, buffers, (x, reset, *carry))[0]

    return fn, given, dims, rows


def flat(nest):
    return torch.utils._pytree.tree_leaves(nest)


def stacked(rows):
    return [torch.stack(column) for column in zip(*[flat(row) for row in rows], strict=True)]


MAPPED = [
    mapped
    for size in range(1, 5)
    for mapped in itertools.combinations(("weights", "x", "carry", "reset"), size)
]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("mapped", MAPPED, ids="-".join)
def test_vmap_equals_a_loop(kind, mapped):
    fn, given, dims, rows = arguments(kind, mapped)
    close(flat(vmap(fn, dims)(*given)), stacked([fn(*row) for row in rows]))

    def loss(*args):
        return scalar(fn(*args))

    for wanted in ((0, 1, 2), (1, 2)):  # with and without the gradient of the weights
        gradient = grad(loss, wanted)
        close(flat(vmap(gradient, dims)(*given)), stacked([gradient(*row) for row in rows]))

    # the gradient taken outside: what is shared gets the sum
    leaves = [leaf.clone().requires_grad_() for leaf in flat(given[:3])]
    spec = torch.utils._pytree.tree_structure(given[:3])
    inner = torch.utils._pytree.tree_unflatten(leaves, spec)
    gradients = torch.autograd.grad(vmap(loss, dims)(*inner, given[3]).sum(), leaves)
    single = [grad(loss, (0, 1, 2))(*row) for row in rows]
    dims_flat = [dim for dim, value in zip(dims, given[:3], strict=False) for _ in flat([value])]
    for found, dim, *parts in zip(
        gradients, dims_flat, *[flat(row) for row in single], strict=True
    ):
        close(found, sum(parts) if dim is None else torch.stack(parts, dim))


@pytest.mark.parametrize("kind", LAYERS)
def test_vmap_twice(kind):
    layer, _, buffers, _ = case(kind)
    keys = rng.split(rng.key(1), 2)
    weights = [torch.stack([layer.init(key)[0][name] for key in keys]) for name in NAMES]
    x, reset = draw(4, 2, 3, 2), flags(4, 2, 3)  # [T, tasks, workers, n_in]

    def fn(weights, x, reset):
        inner = TensorDict(dict(zip(NAMES, weights, strict=True)))
        return layer.apply(inner, buffers, (x, reset))[0]

    def loss(*args):
        return scalar(fn(*args))

    for function in (fn, grad(loss, (0, 1))):
        mapped = vmap(vmap(function, (None, 1, 1)), (0, 1, 1))(weights, x, reset)
        loop = [
            stacked(
                [function([w[i] for w in weights], x[:, i, j], reset[:, i, j]) for j in range(3)]
            )
            for i in range(2)
        ]
        close(flat(mapped), stacked(loop))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("mapped", [("weights", "x"), ("x", "reset")], ids="-".join)
def test_second_derivative_inside_vmap(kind, mapped):
    fn, given, dims, rows = arguments(kind, mapped)

    def second(weights, x, carry, reset):
        def inner(x):
            return grad(lambda x: scalar(fn(weights, x, carry, reset)))(x).square().sum()

        return grad(inner)(x)

    close(vmap(second, dims)(*given), torch.stack([second(*row) for row in rows]))


@pytest.mark.parametrize("kind", LAYERS)
def test_compiled_equals_eager(kind):
    fn, given, dims, _ = arguments(kind, ("weights", "x"))

    def both(*args):
        gradient = grad(lambda *args: scalar(fn(*args)), (0, 1))
        return vmap(fn, dims)(*args), vmap(gradient, dims)(*args)

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    close(flat(compiled(*given)), flat(both(*given)))


@pytest.mark.parametrize("kind", LAYERS)
def test_no_input_is_changed(kind):
    layer, params, buffers, inputs = case(kind)
    given = [
        leaf.requires_grad_(leaf.is_floating_point()) for leaf in (*inputs, *tree.leaves(params))
    ]
    before = [leaf.detach().clone() for leaf in given]
    torch.autograd.backward(scalar(layer.apply(params, buffers, inputs)[0]))
    assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_leaves_the_unroll_in_its_dtype(kind):
    layer = LAYERS[kind](2, 3)
    params, buffers = layer.init(rng.key(0))
    x = draw(4, 3, 2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(params, buffers, x)
    assert torch.equal(out, layer(params, buffers, x.float()))


# ---- parameters


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_stacked_init_equals_single_inits(kind, bidirectional):
    layer, keys = LAYERS[kind](5, 4, bidirectional=bidirectional), rng.split(rng.key(2), 3)
    mapped = vmap(lambda key: tuple(tree.leaves(layer.init(key)[0])))(keys)
    for i, key in enumerate(keys):
        params, buffers = layer.init(key)
        assert len(tree.paths(params)) == 4 * (1 + bidirectional) and buffers.is_empty()
        assert all(torch.equal(a[i], b) for a, b in zip(mapped, tree.leaves(params), strict=True))
    shapes = {
        path[-1]: tuple(leaf.shape)
        for path, leaf in zip(tree.paths(params), tree.leaves(params), strict=True)
    }
    module = MODULES[kind](5, 4, bidirectional=bidirectional)
    expected = {name.split("_l0")[0]: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == expected
    leaves = torch.cat([leaf.flatten() for leaf in tree.leaves(params)])
    assert 0.45 < leaves.abs().max() < 0.5  # 4^-1/2


def test_initializers_reach_their_parameters():
    made = {"weight_init": orthogonal(), "recurrent_init": orthogonal(2.0), "bias_init": zeros}
    params, _ = gru(5, 4, **made).init(rng.key(0))
    assert_close(params["weight_ih"].mT @ params["weight_ih"], torch.eye(5))
    assert_close(params["weight_hh"].mT @ params["weight_hh"], 4 * torch.eye(4))
    assert not params["bias_ih"].any() and not params["bias_hh"].any()
    default, _ = gru(5, 4).init(rng.key(0))
    other, _ = gru(5, 4, weight_init=zeros).init(rng.key(0))
    assert torch.equal(default["weight_hh"], other["weight_hh"])


# ---- refusals

X = torch.zeros(4, 3, 2)
RESET = torch.zeros(4, 3, dtype=torch.bool)


def applied(*inputs, layer=None, params=None):
    layer = layer or gru(2, 5)
    params = layer.init(rng.key(0))[0] if params is None else params
    return lambda: layer.apply(params, EMPTY, inputs[0] if len(inputs) == 1 else inputs)


REFUSED = [
    (lambda: gru(0, 3), ValueError, "gru: n_in is 0"),
    (lambda: lstm(2, 3.0), TypeError, "lstm: n_hidden is a float"),
    (lambda: lstm(2, 3, reverse=True, bidirectional=True), ValueError, "lstm: reverse is given"),
    (lambda: gru(2, 3, bias_init=0.0), TypeError, "gru: bias_init is a float"),
    (applied(X[..., :1]), ValueError, r"gru: x has shape \(4, 3, 1\).*gru\(2, 5\)"),
    (applied(X[0, 0]), ValueError, r"gru: x has shape \(2,\), expected \[T, \*batch, 2\]"),
    (applied(X[:0]), ValueError, r"gru: x has shape \(0, 3, 2\)"),
    (applied(X.double()), TypeError, "gru: x has dtype torch.float64, expected torch.float32"),
    (applied(X, RESET[1:]), ValueError, r"gru: reset has shape \(3, 3\), expected \(4, 3\)"),
    (applied(X, RESET.float()), TypeError, "gru: reset is torch.float32"),
    (applied(X, RESET, X[0]), ValueError, r"gru: h has shape \(3, 2\), expected \(3, 5\)"),
    (applied(X, RESET, 0.0), TypeError, "gru: h is a float"),
    (applied(X, RESET, None, None), ValueError, "gru: the input is a tuple of 4"),
    (applied([X]), TypeError, "gru: x is a list"),
    (applied(X, params={}), TypeError, "gru: params is a dict"),
    (applied(X, params=EMPTY), ValueError, "gru: params lack weight_ih, weight_hh"),
    (
        applied(X, params=lstm(2, 5).init(rng.key(0))[0]),
        ValueError,
        r"gru: params.weight_ih has shape \(20, 2\), expected \(15, 2\) \(from gru\(2, 5\)\)",
    ),
    (
        applied(X, layer=lstm(2, 5, bidirectional=True), params=lstm(2, 5).init(rng.key(0))[0]),
        ValueError,
        "lstm: params lack forward, backward",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refusals_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
