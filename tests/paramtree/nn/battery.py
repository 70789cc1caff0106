"""What the tests of every layer put it through; a test names the layer, its input and the check.

Inputs are drawn, parameters too (a norm's own begin at ones and zeros, which hide a lot), all in
float64, and buffers are moved away from where they begin.
"""

import torch
from torch.testing import assert_close

from paramtree import Model, grad, nn, rng, tree, vmap

DOUBLE = torch.float64
EMPTY = tree.new({})


def draw(*shape, seed=0):
    return rng.normal(rng.key(seed), shape, dtype=DOUBLE)


def close(actual, expected, **tolerance):
    assert_close(actual, expected, **{"rtol": 1e-10, "atol": 1e-12, **tolerance})


def moved(layer, key):
    """Params and buffers that begin nowhere special."""

    def noisy(x, path):
        if not x.is_floating_point():
            return x
        away = x + 0.3 * rng.uniform(rng.fold_in(key, ".".join(path)), x.shape, dtype=DOUBLE)
        return away

    params, buffers = layer.init(key)
    return tuple(tree.map_with_path(lambda p, x: noisy(x, p), t) for t in (params, buffers))


def model(layer):
    """A plain function as a model."""
    return layer if isinstance(layer, Model) else nn.sequential(layer)


def floats(nest):
    return [x for x in tree.leaves(nest) if x.is_floating_point()]


def filled(nest, values):
    """The nest with other floats."""
    leaves, structure = tree.flatten(nest)
    fresh = iter(values)
    return tree.unflatten(structure, [next(fresh) if x.is_floating_point() else x for x in leaves])


def check_derivatives(layer, x, fast=False):
    """First and second derivatives in params, buffers and inputs, against central differences."""
    layer = model(layer)
    given = (*moved(layer, rng.key(1)), x)
    inputs = [leaf.clone().requires_grad_() for leaf in floats(given)]

    def fn(*values):
        return tuple(out.sin() for out in floats(layer.apply(*filled(given, values))))

    assert torch.autograd.gradcheck(fn, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(fn, inputs, fast_mode=fast)


def scalar(outputs):
    terms = [
        (out.sin() * torch.linspace(0.1, 1.0, out.numel(), dtype=DOUBLE).view(out.shape)).sum()
        for out in floats(outputs)
    ]
    return torch.stack(terms).sum()


def check_vmapped(layer, x, xs=None):
    """Stacked parameters, inputs or both equal a loop: values, gradients and their gradients.

    ``xs`` is the input with a new leading axis of 3, by default x times 1, 1.1 and 1.2.
    """
    layer, n = model(layer), 3
    keys = rng.split(rng.key(2), n)
    rows = [moved(layer, key) for key in keys]
    stacked = tuple(tree.stack([row[i] for row in rows]) for i in (0, 1))
    if xs is None:
        xs = filled(
            x, [torch.stack([leaf * (1 + 0.1 * i) for i in range(n)]) for leaf in floats(x)]
        )

    first = grad(lambda params, buffers, x: scalar(layer.apply(params, buffers, x)))

    def second(params, buffers, x):
        slope = first(params, buffers, x)
        return torch.stack([g.square().sum() for g in floats(slope)]).sum()

    functions = [layer.apply]
    if floats(stacked[0]):
        functions += [first, grad(second)]
    else:
        slope = grad(lambda params, buffers, x: scalar(layer.apply(params, buffers, x)), 2)
        functions += [slope, grad(lambda *given: scalar(slope(*given)), 2)]
    pairs = [(True, True), (True, False), (False, True)] if floats(stacked) else [(False, True)]
    for function in functions:
        for own, data in pairs:
            trees = stacked if own else rows[0]
            inputs = xs if data else x
            mapped = vmap(function, (0 if own else None, 0 if own else None, 0 if data else None))
            out = mapped(*trees, inputs)
            for i in range(n):
                row = rows[i] if own else rows[0]
                leaves, structure = tree.flatten(inputs)
                chosen = [leaf[i] for leaf in leaves] if data else leaves
                single = function(*row, tree.unflatten(structure, chosen))
                ours = [leaf[i] for leaf in tree.leaves(out)]
                for a, b in zip(ours, tree.leaves(single), strict=True):
                    close(a, b)


def check_compiled(layer, x):
    """A whole graph of init, apply and a gradient equals eager."""
    layer = model(layer)

    def fn(key, x):
        params, buffers = layer.init(key)
        slope = grad(lambda x: scalar(layer.apply(params, buffers, x)[0]))
        out, after = layer.apply(params, buffers, x)
        return out, tree.leaves(after), slope(x if isinstance(x, torch.Tensor) else x[0])

    if not isinstance(x, torch.Tensor):
        raise TypeError("check_compiled: x is a tuple, expected a tensor")
    torch.compiler.reset()
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    close(compiled(rng.key(3), x), fn(rng.key(3), x))


NEAR = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}


def check_kinds(make, x, near=NEAR):
    """16-bit floats come out as they are and near float64; "meta" gives shapes alone.

    ``make`` takes a dtype and gives the layer.
    """
    exact = model(make(DOUBLE))
    params, buffers = exact.init(rng.key(4))
    wanted = exact.apply(params, buffers, x)[0]
    for dtype, off in near.items():
        layer = model(make(dtype))
        own, state = layer.init(rng.key(4))
        assert all(leaf.dtype == dtype for leaf in tree.leaves(own))
        own = tree.map(lambda leaf, dtype=dtype: leaf.to(dtype), params)  # draws differ by dtype
        out = layer.apply(own, state, x.to(dtype))[0]
        assert out.dtype == dtype
        assert_close(out.double(), wanted, rtol=off, atol=off)
    away = [tree.map(lambda leaf: leaf.to("meta"), part) for part in (params, buffers)]
    out, after = exact.apply(*away, x.to("meta"))
    assert out.device.type == "meta" and out.shape == wanted.shape
    assert all(leaf.device.type == "meta" for leaf in tree.leaves(after))
    made = exact.init(torch.empty(2, dtype=torch.int64, device="meta"))
    for theirs, ours in zip(made, (params, buffers), strict=True):
        for a, b in zip(tree.leaves(theirs), tree.leaves(ours), strict=True):
            assert a.device.type == "meta" and a.shape == b.shape and a.dtype == b.dtype


def of_module(module):
    """Params and buffers of a torch.nn.Module of one level."""
    params = {name: leaf.detach().clone() for name, leaf in module.named_parameters()}
    buffers = {name: leaf.detach().clone() for name, leaf in module.named_buffers()}
    return tree.new(params), tree.new(buffers)


def check_module(layer, module, x):
    """Output and gradients, in params and input, equal those of a torch.nn.Module."""
    layer = model(layer)
    params, buffers = of_module(module)
    ours = x.clone().requires_grad_()
    theirs = x.clone().requires_grad_()
    expected = module(theirs)
    out = layer.apply(params, buffers, ours)[0]
    close(out, expected)
    slopes = grad(lambda p: scalar(layer.apply(p, buffers, x)[0]))(params)
    scalar(expected).backward()
    scalar(out).backward()
    close(ours.grad, theirs.grad)
    for name, leaf in module.named_parameters():
        close(slopes[name], leaf.grad)
