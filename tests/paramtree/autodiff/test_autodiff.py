"""Derivatives and batching against closed forms, torch.func and central differences."""

import pytest
import torch
from tensordict import TensorDict

from paramtree import tree
from paramtree.autodiff import check_grads, checkpoint, detach, grad, hvp, value_and_grad, vmap

D = torch.float64


def make(n=2):
    g = torch.Generator().manual_seed(n)
    policy = TensorDict(
        {"w": torch.randn(n, 3, generator=g, dtype=D), "b": torch.randn(n, generator=g, dtype=D)},
        [n],
    )
    return tree.lock(
        TensorDict({"meta": {"w": torch.randn(3, generator=g, dtype=D)}, "policy": policy}, [])
    )


def f(p, x):
    return ((p["policy", "w"] @ p["meta", "w"] + p["policy", "b"]).sin() * x).sum()


X = torch.tensor(0.7, dtype=D)


def same(a, b):
    pairs = list(zip(tree.leaves(a), tree.leaves(b), strict=True))
    return all(torch.allclose(x, y, rtol=1e-12, atol=1e-12) for x, y in pairs)


def test_both_roads_give_the_same():
    p = make()
    direct = grad(f)(p, X)
    inside = torch.func.vmap(lambda x: grad(f)(p, x)["meta", "w"])(torch.stack([X, 2 * X]))
    plain = torch.autograd.grad(
        f(q := p.clone().requires_grad_(), X), [q["meta", "w"], q["policy", "w"]]
    )
    assert torch.allclose(direct["meta", "w"], plain[0]) and torch.allclose(
        direct["policy", "w"], plain[1]
    )
    assert torch.allclose(inside[0], plain[0]) and torch.allclose(inside[1], 2 * plain[0])
    assert (
        direct.is_locked
        and direct["policy"].batch_size == (2,)
        and tree.paths(direct) == tree.paths(p)
    )


def test_no_graph_where_nothing_outside_needs_one():
    p = make()
    (value, aux), g = value_and_grad(
        lambda q, x: (f(q, x), {"y": q["meta", "w"] * 2}), has_aux=True
    )(p, X)
    assert (
        not value.requires_grad and not aux["y"].requires_grad and not g["meta", "w"].requires_grad
    )
    with torch.no_grad():
        x = X.clone().requires_grad_()
        assert not grad(f)(p, x)["meta", "w"].requires_grad


def test_a_gradient_inside_leaves_no_graph_behind():
    def outer(x):  # the inner gradient keeps its graph for x, and its own leaves with it
        inner = grad(lambda q: f(q, x))(make())
        return tree.norm(tree.map(lambda a, b: a - b, make(), inner))

    value, slope = value_and_grad(outer)(X)
    assert not value.requires_grad and not slope.requires_grad
    check_grads(outer, X)
    check_grads(lambda x: grad(outer)(x), X)


@pytest.mark.parametrize("road", ["closed over", "argument", "leaf of the tree", "only in aux"])
def test_the_outer_graph_is_kept(road):
    p, x = make(), X.clone().requires_grad_()
    if road == "closed over":
        out = grad(lambda q: f(q, x))(p)["meta", "w"].sum()
    elif road == "argument":
        out = grad(f)(p, x)["meta", "w"].sum()
    elif road == "only in aux":
        out = grad(lambda q: (f(q, X), x * 3), has_aux=True)(p)[1]
        assert torch.autograd.grad(out, x)[0] == 3
        return
    else:
        out = grad(f)(tree.replace(p, {"policy.b": p["policy", "b"] * x}), X)["meta", "w"].sum()
    h = 1e-6

    def at(v):
        q = tree.replace(p, {"policy.b": p["policy", "b"] * v}) if road == "leaf of the tree" else p
        return grad(f)(q, X if road == "leaf of the tree" else v)["meta", "w"].sum()

    central = (at(X + h) - at(X - h)) / (2 * h)
    assert torch.allclose(torch.autograd.grad(out, x)[0], central, rtol=1e-6)


def test_grad_of_grad_and_hvp():
    p, v = make(), tree.map(lambda x: x.cos(), make())
    check_grads(lambda q: tree.norm(grad(f)(q, X)), p)
    vector, unravel = tree.ravel(p)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda y: f(unravel(y), X)))(vector)
    assert torch.allclose(tree.ravel(hvp(f, p, v, X))[0], hessian @ tree.ravel(v)[0])
    check_grads(lambda q: tree.vdot(hvp(f, q, v, X), v), p)
    each = vmap(lambda q: hvp(lambda z: z["w"].pow(3).sum(), q, q))(p["policy"])
    assert torch.allclose(each["w"], 6 * p["policy", "w"] ** 2)
    with pytest.raises(ValueError, match="hvp: the names differ"):
        hvp(f, p, v["meta"], X)


def test_argnums_and_nests():
    a, b = torch.tensor(2.0, dtype=D), (torch.tensor(3.0, dtype=D), {"c": torch.ones(2, dtype=D)})
    ga, gb = grad(lambda x, y: x * y[0] * y[1]["c"].sum(), (0, 1))(a, b)
    assert ga == 6 and gb[0] == 4 and gb[1]["c"].eq(6).all()
    assert grad(lambda x, y: x * y, argnums=-1)(a, a) == 2
    unused = grad(lambda p: p["a"] ** 2)(TensorDict({"a": a, "b": a}))
    assert unused["a"] == 4 and unused["b"] == 0
    constant = grad(lambda p: torch.ones((), dtype=D))(TensorDict({"a": a}))
    assert constant["a"] == 0


@pytest.mark.parametrize("fn", [grad, value_and_grad])
def test_bad_input(fn):
    p = make()
    name = fn.__name__
    with pytest.raises(
        ValueError, match=rf"{name}: fn returned a tensor of shape \(2,\), expected a 0-d tensor"
    ):
        fn(lambda q: q["policy", "b"])(p)
    with pytest.raises(
        ValueError, match=rf"{name}: fn returned a TensorDict, expected a 0-d tensor; losses.total"
    ):
        fn(lambda q: q)(p)
    with pytest.raises(
        ValueError, match=rf"{name}: argnums is 3, but there are 2 positional arguments"
    ):
        fn(f, 3)(p, X)
    with pytest.raises(ValueError, match=r"expected \(scalar, aux\) with has_aux"):
        fn(f, has_aux=True)(p, X)
    with pytest.raises(
        TypeError, match=rf"{name}: argument 0 at 'n' is torch.int64, expected a float dtype"
    ):
        fn(lambda q: q["n"].double().sum())(TensorDict({"n": torch.ones(2, dtype=torch.int64)}))


def test_vmap_mixes_shared_and_mapped():
    p, x = make(3), torch.randn(3, 4, dtype=D)

    def g(q, y):
        assert (
            q["policy"].batch_size == ()
            and q["policy", "w"].shape == (3,)
            and q["meta", "w"].shape == (3,)
        )
        return tree.new({"out": q["policy", "w"] @ q["meta", "w"] * y, "meta": q["meta"]})

    for dims in (0, ({"meta": None, "policy": 0}, 0)):
        out = vmap(g, dims)(p, x)
        wanted = (p["policy", "w"] @ p["meta", "w"])[:, None] * x
        assert torch.allclose(out["out"], wanted) and out.batch_size == (3,) and out.is_locked
        assert out["meta", "w"].shape == (3, 3) and out["meta"].batch_size == (3,)
    kept = vmap(g, 0, {"out": 0, "meta": None})(p, x)
    assert (
        kept["meta", "w"].shape == (3,) and kept["meta"].batch_size == () and kept.batch_size == ()
    )


def test_vmap_dims():
    a = torch.randn(2, 3, dtype=D)
    assert torch.allclose(vmap(lambda x: x * 2, 1, 1)(a), a * 2)
    td = TensorDict({"a": torch.randn(2, 3, 4)}, [2, 3])
    inner = []
    out = vmap(lambda t: inner.append(t.batch_size) or t, 1)(td)
    assert inner == [torch.Size([2])] and out.batch_size == (3, 2) and out["a"].shape == (3, 2, 4)
    nested = vmap(vmap(lambda t, s: t["a"].sum() * s, (0, None)), (0, 0))(td, torch.ones(2))
    assert torch.allclose(nested, td["a"].sum(-1))
    assert vmap(lambda t, *, s: t * s)(torch.ones(2), s=torch.arange(2.0)).tolist() == [0, 1]
    assert vmap(lambda t, n: t * n)(torch.ones(2), 3).tolist() == [
        3,
        3,
    ]  # what isn't a tensor is shared
    pair = vmap(lambda t: (t, [t, None]))(torch.ones(2))
    assert pair[1][1] is None and pair[0].shape == (2,)


def test_vmap_is_a_loop_over_tasks():
    p = make(3)
    slopes = vmap(grad(lambda q: f(q, X)))(p)
    for i in range(3):
        one = grad(lambda q: f(q, X))(
            tree.new({"meta": p["meta"], "policy": tree.lock(p["policy"][i])})
        )
        assert torch.allclose(slopes["policy", "w"][i], one["policy", "w"])
        assert torch.allclose(slopes["meta", "w"][i], one["meta", "w"])
    # gradients flow through the shared and the mapped part from outside
    check_grads(lambda q: vmap(lambda r: f(r, X))(q), p)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p: vmap(lambda q: q, None)(p), "nothing is mapped"),
        (lambda p: vmap(lambda q: q)(p["meta"]), "nothing is mapped"),
        (
            lambda p: vmap(lambda q: q, {"meta": None})(p),
            r"names \['meta'\], expected \['meta', 'policy'\]",
        ),
        (lambda p: vmap(lambda q, r: q, (0,))(p, p), "in_dims has 1 entries, expected 2"),
        (
            lambda p: vmap(lambda q, r: q)(p, torch.zeros(5)),
            r"argument 1 has size 5 along axis 0, expected 2 \(from argument 0",
        ),
        (
            lambda p: vmap(lambda q, r: q)(p, torch.zeros(())),
            r"argument 1 has shape \(\), expected an axis 0; share it with None",
        ),
        (
            lambda p: vmap(lambda q: q, 1)(p),
            r"in_dims is 1 for argument 0 at 'policy', whose batch size is \[2\]",
        ),
        (lambda p: vmap(lambda q: q, "x")(p), "which does not fit"),
        (
            lambda p: vmap(lambda q: q, 0, {"meta": 0})(p),
            "out_dims for the arguments names|out_dims for",
        ),
        (
            lambda p: vmap(lambda q: q["policy", "b"], 0, None)(p),
            "out_dims is None for the output, which depends",
        ),
        (lambda p: vmap(lambda q: q, 0, 3)(p), "out_dims is 3 for a tree"),
    ],
)
def test_vmap_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call(make())


def test_detach():
    p = tree.map(lambda x: x * 2, make().clone().requires_grad_())
    assert p["meta", "w"].requires_grad and not detach(p)["meta", "w"].requires_grad
    assert detach((p, 3))[0].is_locked


def test_checkpoint_saves_memory_and_keeps_derivatives():
    def chain(p):
        for _ in range(5):
            p = tree.map(torch.sin, p)
        return p

    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        tree.norm(chain(make().clone().requires_grad_()))
    plain, saved = len(saved), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = checkpoint(chain)(make().clone().requires_grad_())
    assert len(saved) < plain / 2 and out["policy"].batch_size == (2,)
    assert same(
        grad(lambda q: tree.norm(checkpoint(chain)(q)))(make()),
        grad(lambda q: tree.norm(chain(q)))(make()),
    )
    check_grads(lambda q: tree.norm(grad(lambda z: tree.norm(checkpoint(chain)(z)))(q)), make())
    check_grads(lambda q: vmap(lambda z: tree.norm(checkpoint(chain)(z)))(q), make())
    scale = X.clone().requires_grad_()  # what is closed over gets its gradient too
    out = checkpoint(lambda z: tree.map(lambda x: x * scale, z))(make())
    assert torch.autograd.grad(out["meta", "w"].sum(), scale)[0] == make()["meta", "w"].sum()


def test_check_grads_says_where_a_path_is_cut():
    hyper = TensorDict(
        {"gamma": torch.tensor(3.0, dtype=D), "agent": {"lr": torch.ones(2, dtype=D)}}
    )
    check_grads(lambda hyper: hyper["gamma"] ** 2 * hyper["agent", "lr"].sum(), hyper)
    with pytest.raises(
        AssertionError, match=r'hyper\["gamma"\]: autodiff 0, central 12: no path \(detached\)'
    ):
        check_grads(lambda hyper: hyper["gamma"].detach() ** 2 * hyper["agent", "lr"].sum(), hyper)
    with pytest.raises(
        AssertionError, match=r'hyper\["agent", "lr"\]\[1\]: autodiff 2, central 4'
    ) as error:
        check_grads(
            lambda hyper: (
                hyper["agent", "lr"].square().sum() + hyper["agent", "lr"][1].detach() * 2
            ),
            hyper,
        )
    assert "gamma" not in str(error.value) and "[0]" not in str(error.value)
    with pytest.raises(AssertionError, match="along random direction"):
        check_grads(lambda x: x.detach().sum() + x[:5].sum(), torch.ones(100, dtype=D))
    with pytest.raises(TypeError, match=r'hyper\["a"\] is torch.float32, expected float64'):
        check_grads(lambda hyper: hyper["a"], TensorDict({"a": torch.ones(())}))
    check_grads(
        lambda n, x: x * n["i"], TensorDict({"i": torch.tensor(3)}), X
    )  # integers are left alone
    with pytest.raises(AssertionError, match=r"argument 0|x"):
        check_grads(torch.floor, torch.tensor(1.0, dtype=D) - 1e-6)


def test_compiled():
    p = make()
    for fn in (grad(f), lambda q, x: vmap(grad(f), (0, None))(q, x), lambda q, x: hvp(f, q, q, x)):
        out = torch.compile(fn, fullgraph=True, backend="aot_eager")(p, X)
        assert same(out, fn(p, X)) and out.is_locked
        torch._dynamo.reset()


def test_inference_mode_has_gradients_too():
    with torch.inference_mode():
        assert grad(lambda x: x**3)(X) == 3 * X**2
        assert torch.allclose(hvp(lambda x: x**3, X, X), 6 * X**2)
        inside = X.clone()
    assert grad(lambda x: x**2)(inside) == 2 * X


def test_what_has_no_gradient_is_refused():
    with pytest.raises(TypeError, match="grad: argument 0 is a float, expected a tensor or a tree"):
        grad(lambda a, b: a * b)(2.0, X)
    with pytest.raises(TypeError, match="grad: fn returned a tensor of torch.complex128"):
        grad(lambda x: x * 1j)(X)
    with pytest.raises(
        ValueError, match=r"grad: argnums is \(0, -1\), which names an argument twice"
    ):
        grad(lambda x: x * x, (0, -1))(X)
    with pytest.raises(TypeError, match="grad: argnums is '0', expected an int"):
        grad(lambda x: x, "0")(X)
    with pytest.raises(ValueError, match=r"hvp: the vector has shape \(\), expected \(3,\)"):
        hvp(lambda x: x.pow(3).sum(), X.expand(3), X)


def test_aux_of_other_tuples():
    aux = grad(lambda x: (x.sum(), (x.shape, x.max(0))), has_aux=True)(X.expand(3))[1]
    assert aux[0] == (3,) and aux[1].values == X and aux[1].indices == 0


def test_check_grads_never_passes_for_want_of_anything_to_hold():
    for argument in (0.5, torch.tensor(3)):
        with pytest.raises(TypeError, match="check_grads: there is no float64 tensor in the trees"):
            check_grads(lambda g: X * g, argument)
    with pytest.raises(TypeError, match="check_grads: fn returned a float, expected float tensors"):
        check_grads(lambda g: g.item(), X)
    with pytest.raises(AssertionError, match="autodiff"):
        check_grads(lambda g: torch.complex(g.detach(), 3 * g), X)
    with pytest.raises(AssertionError, match=r'hyper\["γ"\]: autodiff 0'):
        check_grads(lambda hyper: hyper["γ"].detach(), TensorDict({"γ": X}))


def test_checkpoint_of_gradients_inside_a_vmap():
    x = torch.stack([X, 2 * X])

    def after(rate):
        return vmap(lambda q: q - rate * grad(lambda z: z.pow(3))(q))(x).sum()

    assert torch.allclose(grad(checkpoint(after))(X), grad(after)(X))


def test_vmap_names_a_keyword():
    with pytest.raises(ValueError, match="vmap: the keyword 'h' has shape .* let fn close over it"):
        vmap(lambda a, h: a * h)(torch.ones(3), h=X)
