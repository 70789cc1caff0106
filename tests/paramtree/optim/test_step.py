"""Update and apply in one: the same numbers, donated or not, fused or not, and nothing lost."""

import pytest
import torch
from tensordict import LazyStackedTensorDict, TensorDict

from paramtree import grad, optim, tree, vmap

D = torch.float64


def params(dtype=D):
    draw = torch.Generator().manual_seed(0)
    w, b = (torch.randn(shape, generator=draw, dtype=dtype) for shape in ((3, 4), (4,)))
    head = tree.new({"scalar": torch.tensor(0.7, dtype=dtype), "none": torch.zeros(0, 2).to(dtype)})
    return tree.new({"torso": tree.new({"w": w, "b": b}), "head": head})


def slopes(p, k=0):
    return tree.map(lambda x: (3 * x + k).cos(), p)


def cloned(nest):
    return tree.map(torch.clone, nest)


def close(left, right, rtol=1e-12):
    for path, x, y in zip(tree.paths(left), tree.leaves(left), tree.leaves(right), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=1e-14, msg=lambda m, p=path: f"{p}: {m}")


def separately(optimizer, grads, state, p):
    updates, state = optimizer.update(grads, state, p)
    return optim.apply_updates(p, updates), state


OPTIMIZERS = {
    "adam": lambda: optim.adam(0.1),
    "adam, decay": lambda: optim.adam(0.1, weight_decay=0.1),
    "adam, amsgrad": lambda: optim.adam(0.1, amsgrad=True, maximize=True),
    "adam, root": lambda: optim.adam(0.1, eps_root=1e-3, nesterov=True),
    "adam, rate": lambda: optim.adam(torch.tensor(0.1, dtype=D)),
    "adamw": lambda: optim.adamw(optim.linear(0.1, 0.01, 3), weight_decay=0.1),
    "adamw, amsgrad": lambda: optim.adamw(0.1, amsgrad=True),
    "adamw, decay": lambda: optim.adamw(0.1, weight_decay=optim.linear(0.1, 0.0, 4)),
    "sgd": lambda: optim.sgd(0.1),
    "sgd, decay": lambda: optim.sgd(0.1, weight_decay=0.1),
    "momentum": lambda: optim.sgd(0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda: optim.sgd(0.1, momentum=0.9, nesterov=True),
    "dampening": lambda: optim.sgd(0.1, momentum=0.9, dampening=0.5),
    "no momentum": lambda: optim.sgd(0.1, momentum=optim.constant(0.0)),
    "trace of 0": lambda: optim.chain(t=optim.trace(0.0), lr=optim.scale_by_learning_rate(0.1)),
    "clip": lambda: optim.chain(clip=optim.clip_by_global_norm(0.5), adam=optim.adam(0.1)),
    "nested": lambda: optim.chain(a=optim.chain(b=optim.ema(0.9)), c=optim.adamw(0.1)),
    "belief": lambda: optim.adabelief(0.1),
    "partition": lambda: optim.partition({"torso.**": optim.adam(0.1), "head.**": optim.sgd(0.1)}),
    "lookahead": lambda: optim.lookahead(optim.sgd(0.1), 2, 0.5),
}


@pytest.mark.parametrize("donate", [False, True], ids=["kept", "donated"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_update_and_apply(name, donate):
    optimizer = OPTIMIZERS[name]()
    wanted = ours = params()
    state = own = optimizer.init(wanted)
    ours, own = cloned(ours), cloned(own)
    for k in range(4):
        wanted, state = separately(optimizer, slopes(wanted, k), state, wanted)
        ours, own = optim.step(optimizer, slopes(ours, k), own, ours, donate=donate)
        assert ours.is_locked and own.is_locked
        close(ours, wanted)
        close(own, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128], ids=str)
def test_dtypes_stay(dtype):
    optimizer, p = optim.adam(0.1), params(dtype)
    state = optimizer.init(p)
    g = tree.map(lambda x: x * 0.3 + 0.1, p)
    wanted, _ = separately(optimizer, g, state, p)
    ours, _ = optim.step(optimizer, g, state, p)
    assert {x.dtype for x in tree.leaves(ours)} == {dtype}
    close(ours, wanted, rtol=1e-6)


def test_what_is_kept_is_not_changed():
    optimizer, p = optim.adam(0.1), params()
    state, g = optimizer.init(p), slopes(p)
    before = [cloned(x) for x in (p, state, g)]
    optim.step(optimizer, g, state, p)
    optim.step(optimizer, g, cloned(state), cloned(p), donate=True)
    for x, y in zip((p, state, g), before, strict=True):
        close(x, y, rtol=0)


def test_a_donated_tree_says_why_it_cannot_be_read():
    for name in ("adam", "belief", "lookahead"):
        optimizer, p = OPTIMIZERS[name](), params()
        state, torso = optimizer.init(p), p["torso"]
        after, _ = optim.step(optimizer, slopes(p), state, p, donate=True)
        for read in (
            lambda p=p: p["torso"],
            lambda p=p: p["torso", "w"],
            lambda torso=torso: torso["w"],
            lambda p=p: tree.leaves(p),
            lambda p=p: list(p.keys()),
            lambda p=p: p.clone(),
            lambda p=p: repr(p),
            lambda state=state: dict(state.items()),
            lambda p=p, state=state, o=optimizer, a=after: optim.step(o, slopes(a), state, p),
        ):
            with pytest.raises(RuntimeError, match="step: this tree was donated"):
                read()
        assert all(x.isfinite().all() for x in tree.leaves(after))


def pairs():
    a, b, buffer = torch.arange(5.0, dtype=D), torch.ones(5, dtype=D), torch.arange(8.0, dtype=D)
    return {
        "one tensor twice": (tree.new({"a": a, "b": a}), tree.new({"a": b, "b": 2 * b})),
        "gradients are the params, swapped": (
            tree.new({"a": a, "b": b}),
            tree.new({"a": b, "b": a}),
        ),
        "gradients are the params": (tree.new({"a": a, "b": b}), tree.new({"a": a, "b": b})),
        "overlapping": (
            tree.new({"a": buffer[:5], "b": buffer[3:]}),
            tree.new({"a": a.cos(), "b": a.sin()}),
        ),
        "expanded": (
            tree.new({"a": a.clone(), "b": b[:1].expand(5)}),
            tree.new({"a": a.cos(), "b": a.sin()}),
        ),
        "transposed": (
            tree.new({"a": buffer.view(2, 4).mT, "b": b}),
            tree.new({"a": buffer.cos().view(4, 2), "b": b}),
        ),
        "views of one buffer": (
            tree.new({"a": buffer[:3], "b": buffer[3:]}),
            tree.new({"a": a[:3].cos(), "b": a.sin()}),
        ),
    }


@pytest.mark.parametrize("name", ["adam", "momentum", "sgd", "belief", "clip"])
@pytest.mark.parametrize("memory", pairs())
def test_shared_memory_changes_no_number(memory, name):
    optimizer = OPTIMIZERS[name]()
    p, g = pairs()[memory]
    wanted, state = separately(optimizer, cloned(g), optimizer.init(p), cloned(p))
    ours, own = optim.step(optimizer, g, optimizer.init(p), p, donate=True)
    close(ours, wanted)
    close(own, state)


@pytest.mark.parametrize("donate", [False, True], ids=["kept", "donated"])
@pytest.mark.parametrize("name", ["adam", "clip"])
def test_the_gradients_of_a_matrix_product_go_to_the_kernel(monkeypatch, name, donate):
    """They come transposed, and so may params that aren't donated."""
    calls, kernel = [], torch._fused_adam_
    monkeypatch.setattr(torch, "_fused_adam_", lambda *a, **k: (calls.append(1), kernel(*a, **k)))
    optimizer, p = OPTIMIZERS[name](), cloned(params())
    if not donate:
        p = tree.map(lambda x: x.mT.contiguous().mT if x.ndim == 2 else x, p)
    g = tree.map(lambda x: x.mT.contiguous().mT if x.ndim == 2 else x, slopes(p))
    assert not g["torso", "w"].is_contiguous()
    assert p["torso", "w"].is_contiguous() is donate
    wanted, state = separately(optimizer, g, optimizer.init(p), p)
    before = cloned(g)
    ours, own = optim.step(optimizer, g, optimizer.init(p), p, donate=donate)
    assert calls == [1]
    close(ours, wanted)
    close(own, state)
    close(g, before, rtol=0)


@pytest.mark.parametrize("name", ["adam", "sgd", "belief"])
def test_a_lazy_stack_is_stepped_like_a_dense_one(name):
    optimizer = OPTIMIZERS[name]()
    rows = [TensorDict({"w": torch.full((3,), float(i), dtype=D)}) for i in range(2)]
    lazy = TensorDict({"stack": LazyStackedTensorDict(*rows), "v": torch.ones(2, dtype=D)})
    dense = tree.new({"stack": tree.stack(rows), "v": torch.ones(2, dtype=D)})
    wanted, _ = separately(optimizer, slopes(dense), optimizer.init(dense), dense)
    ours, _ = optim.step(optimizer, slopes(dense), optimizer.init(dense), lazy, donate=True)
    close(ours, wanted)


def test_each_stage_keeps_its_own_count():
    optimizer = optim.adam(0.1, weight_decay=optim.linear(0.1, 0.0, 5))
    p = params()
    state = optimizer.init(p)
    p, later = separately(optimizer, slopes(p), state, p)
    mixed = tree.replace(later, {"adam": state["adam"]})  # Adam begins anew, the decay goes on
    wanted, state = separately(optimizer, slopes(p), mixed, p)
    ours, own = optim.step(optimizer, slopes(p), mixed, p)
    close(ours, wanted)
    close(own, state)


def test_gradients_flow_through_a_step_and_through_its_state():
    optimizer, p = optim.adam(0.1), params()

    def after(start, state):
        for k in range(2):
            start, state = optim.step(optimizer, slopes(start, k), state, start, donate=True)
        return sum(x.sin().sum() for x in tree.leaves(start))

    def plain(start, state):
        for k in range(2):
            start, state = separately(optimizer, slopes(start, k), state, start)
        return sum(x.sin().sum() for x in tree.leaves(start))

    moments = ("adam.mu.torso.w", "adam.nu.torso.b")
    _, state = separately(optimizer, slopes(p, 5), optimizer.init(p), p)
    for fn in (after, plain):
        given = {path: tree.select(state, path) for path in moments}
        found = {}
        for path in moments:
            key = tuple(path.split("."))

            def of(x, fn=fn, key=key):
                return fn(cloned(p), tree.replace(cloned(state), {key: x}))

            found[path] = grad(of)(given[path][key])
            torch.testing.assert_close(
                found[path], torch.func.grad(of)(given[path][key]), rtol=1e-9, atol=1e-12
            )
            assert found[path].abs().max() > 1e-6


def test_the_state_that_a_recorded_step_gave_can_be_differentiated_in():
    optimizer, p = optim.adam(0.1), params()
    p = tree.map(lambda x: x.clone().requires_grad_(), p)
    p, state = optim.step(optimizer, slopes(p), optimizer.init(p), p)
    mu = tree.leaves(state["adam", "mu"])
    p, _ = optim.step(optimizer, slopes(p), state, p)
    found = torch.autograd.grad(sum(x.sum() for x in tree.leaves(p)), mu)
    assert all(x.abs().sum() > 0 for x in found if x.numel())


def test_tasks_step_apart():
    optimizer = optim.chain(clip=optim.clip_by_global_norm(0.5), adam=optim.adam(0.1))
    rows = [tree.map(lambda x, i=i: x + i, params()) for i in range(3)]
    wanted = [separately(optimizer, slopes(p), optimizer.init(p), p) for p in rows]
    stacked = tree.stack(rows)
    state = vmap(optimizer.init)(stacked)
    one = vmap(lambda g, s, p: optim.step(optimizer, g, s, p))
    ours, own = one(slopes(stacked), state, stacked)
    for i, (p, s) in enumerate(wanted):
        close(ours[i], p)
        close(own[i], s)


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_a_stacked_state_needs_vmap(name):
    optimizer = OPTIMIZERS[name]()
    stacked = tree.stack([params() for _ in range(3)])
    state = vmap(optimizer.init)(stacked)
    for donate in (False, True):
        with pytest.raises(ValueError, match=r"state\['count'\] has shape \(3,\).*vmap maps"):
            optim.step(optimizer, slopes(stacked), state, stacked, donate=donate)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: tree.exclude(p, "head.scalar"), ValueError, "step: .*head.scalar"),
        (lambda p: tree.map(lambda x: x[..., None], p), ValueError, "grads at .* has shape"),
        (lambda p: tree.map(torch.Tensor.float, p), TypeError, "grads at .* is torch.float32"),
        (lambda p: p.to_dict(), TypeError, "grads is a dict"),
    ],
)
def test_nothing_is_lost_on_bad_input(change, error, message, donate):
    optimizer, p = optim.adam(0.1), params()
    state, before = optimizer.init(p), cloned(p)
    with pytest.raises(error, match=message):
        optim.step(optimizer, change(slopes(p)), state, p, donate=donate)
    with pytest.raises(ValueError, match="chain: the state holds"):
        optim.step(optimizer, slopes(p), optim.sgd(0.1, momentum=0.9).init(p), p, donate=donate)
    close(p, before, rtol=0)
    assert int(state["adam", "count"]) == 0


def test_arguments_of_the_wrong_kind():
    p = params()
    with pytest.raises(TypeError, match="step: optimizer is a function, expected a Transform"):
        optim.step(lambda: 0, p, p, p)
    with pytest.raises(TypeError, match="step: donate is a int, expected True or False"):
        optim.step(optim.sgd(0.1), p, p, p, donate=1)
    negative = optim.sgd(lambda count: -0.1)
    for call in (separately, optim.step):
        with pytest.raises(ValueError, match="lr is -0.1, expected at least 0"):
            call(negative, p, negative.init(p), p)
