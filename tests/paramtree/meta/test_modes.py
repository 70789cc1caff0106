"""The ways to differentiate through an inner loop agree with one another and with differences."""

import pytest
import torch
from torch.testing import assert_close

from paramtree import check_grads, detach, grad, tree, value_and_grad, vmap
from paramtree.meta import checkpointed, truncated, unrolled
from tests.paramtree.meta.problems import (
    MATRIX,
    D,
    adam,
    central,
    final,
    momentum,
    numbers,
    quadratic,
    warm,
)
from tests.paramtree.meta.ways import assert_same, exact, modes, of, problems

# ------------------------------------------------------------------------------------------ values


@problems
@exact
def test_value_and_gradient_against_central_differences(mode, make):
    p = make()
    value, (dh, ds) = of(mode, p, argnums=(0, 1))(p.hyper, p.state)
    assert_close(value, final(p), rtol=1e-12, atol=1e-12)
    assert_same(dh, central(lambda h: final(p, hyper=h), p.hyper), rtol=1e-6, atol=1e-8)
    if make is not adam:  # which has kinks where its first gradients are 0
        assert_same(ds, central(lambda s: final(p, state=s), p.state), rtol=1e-6, atol=1e-8)


@exact
def test_initial_params_under_adam_against_central_differences(mode):
    p = warm(adam())
    _, ds = of(mode, p, argnums=1)(p.hyper, p.state)
    begun = lambda params: tree.replace(p.state, {"params": params})  # noqa: E731
    wanted = central(lambda params: final(p, state=begun(params)), p.state["params"])
    assert_same(ds["params"], wanted, rtol=1e-6, atol=1e-8)


@problems
@exact
def test_exact_modes_agree(mode, make):
    p = make()._replace(steps=19)  # beyond 16, so that checkpointed splits in several ways
    ours = of(mode, p, argnums=(0, 1))(p.hyper, p.state)
    assert_same(ours, of(unrolled, p, argnums=(0, 1))(p.hyper, p.state), rtol=1e-10, atol=1e-10)


@exact
def test_gradient_in_closed_form(mode):
    p = quadratic()
    decay, lr = p.hyper["decay"], p.hyper["lr"]
    matrix = torch.eye(3, dtype=D) - lr * (MATRIX + decay * torch.eye(3, dtype=D))
    end = p.state
    for k in range(p.steps):
        end = p.step(p.hyper, end, k)
    goal = p.outer(p.hyper, tree.new({"x": torch.zeros(3, dtype=D)}))
    assert goal > 0
    slope = grad(lambda x: p.outer(p.hyper, tree.new({"x": x})))(end["x"])
    _, ds = of(mode, p, argnums=1)(p.hyper, p.state)
    assert_close(ds["x"], torch.linalg.matrix_power(matrix, p.steps).T @ slope)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 16, 17, 31, 64, 257, 300])
def test_checkpointed_for_any_number_of_steps(steps):
    p = quadratic()._replace(steps=steps)
    wanted = of(unrolled, p, argnums=(0, 1))(p.hyper, p.state)
    for segment in (None, 1, 2, 7, steps):
        ours = of(checkpointed, p, argnums=(0, 1), segment=segment)(p.hyper, p.state)
        assert_same(ours, wanted, rtol=1e-10, atol=1e-10)


@problems
@pytest.mark.parametrize("window", [1, 3, 6])
def test_truncated_equals_a_hand_written_stop(make, window):
    p = make()

    def by_hand(hyper):
        state = p.state
        for k in range(p.steps - window):
            state = p.step(hyper, state, k)
        return final(p, hyper, detach(state), p.steps - window)

    value, wanted = value_and_grad(by_hand)(p.hyper)
    ours, (dh, ds) = of(truncated, p, window=window, argnums=(0, 1))(p.hyper, p.state)
    assert_same((ours, dh), (value, wanted), rtol=1e-12, atol=1e-12)
    assert all((x == 0).all() for x in tree.leaves(ds))
    assert tree.flatten(ds)[1] == tree.flatten(p.state)[1]


def test_truncated_keeps_what_outer_takes_from_hyper():
    hyper, state = numbers(lr=0.3), numbers(x=1.0)
    fn = truncated(lambda h, s, k: s if k else numbers(x=5.0), outer_of_both, 4, window=1)
    assert_close(fn(hyper, state)[1]["lr"], torch.tensor(10.0, dtype=D))


def outer_of_both(hyper, state):
    return hyper["lr"] * state["x"] * 2


# --------------------------------------------------------------------------------- what comes back


@modes
def test_aux_and_argnums(mode):
    p = momentum()

    def outer(hyper, state):
        aux = {"params": state["params"], "count": torch.tensor(3), "lr": hyper["lr"], "kind": "x"}
        return p.outer(hyper, state), aux

    (value, aux), both = mode(p.step, outer, p.steps, argnums=(1, 0), has_aux=True)(
        p.hyper, p.state
    )
    wanted, (dh, ds) = of(mode, p, argnums=(0, 1))(p.hyper, p.state)
    assert_same((value, *both), (wanted, ds, dh))
    assert_same(of(mode, p)(p.hyper, p.state), (wanted, dh))
    assert_same(of(mode, p, argnums=(1,))(p.hyper, p.state), (wanted, (ds,)))
    end = p.state
    for k in range(p.steps):
        end = p.step(p.hyper, end, k)
    assert_same(aux["params"], end["params"])
    assert aux["count"] == 3 and aux["lr"] == p.hyper["lr"] and aux["kind"] == "x"
    assert aux["params"].is_locked and both[0].is_locked and not value.requires_grad


@modes
def test_any_nest_and_complex_leaves(mode):
    def step(hyper, state, k):
        z, count = state
        return z * hyper + (k + 1) * hyper.conj(), count + 1

    def outer(hyper, state):
        return state[0].abs().square().sum()

    state = (torch.tensor([1 + 1j, 2 - 0.5j]).to(torch.complex128), torch.tensor(0))
    hyper = torch.tensor(0.5 + 0.3j, dtype=torch.complex128)
    value, (dh, ds) = mode(step, outer, 3, argnums=(0, 1))(hyper, state)
    wanted, (a, b) = unrolled(step, outer, 3, argnums=(0, 1))(hyper, state)
    assert_same((value, dh, ds), (wanted, a, b), rtol=1e-10, atol=1e-10)
    assert type(ds) is tuple and ds[1].dtype == torch.int64 and ds[1] == 0

    def real(x):
        out = torch.view_as_complex(x), state
        for k in range(3):
            out = out[0], step(out[0], out[1], k)
        return outer(*out)

    assert_close(torch.view_as_real(dh), grad(real)(torch.view_as_real(hyper)))


@modes
def test_dtypes_are_kept(mode):
    p = adam()
    hyper = tree.map(lambda x: x.float(), p.hyper)
    value, (dh, ds) = of(mode, p, argnums=(0, 1))(hyper, p.state)
    assert value.dtype == D and {x.dtype for x in tree.leaves(dh)} == {torch.float32}
    assert [x.dtype for x in tree.leaves(ds)] == [x.dtype for x in tree.leaves(p.state)]
    assert ds["optimizer", "adam", "count"] == 0


@modes
def test_leaves_without_entries_and_without_influence(mode):
    p = quadratic()
    hyper = tree.new({**tree.entries(p.hyper), "no": torch.zeros(0), "idle": torch.ones(2)})
    _, grads = of(mode, p)(hyper, p.state)
    assert grads["no"].shape == (0,) and (grads["idle"] == 0).all()
    _, none = mode(lambda h, s, k: s, lambda h, s: s["x"].sum(), 4)(torch.zeros(0), p.state)
    assert none.shape == (0,)
    constant = mode(lambda h, s, k: s, lambda h, s: torch.ones(()), 4, argnums=(0, 1))
    assert all((x == 0).all() for x in tree.leaves(constant(p.hyper, p.state)[1]))
    counting = mode(lambda h, s, k: s + 1, lambda h, s: h * s, 4)
    assert_same(
        counting(torch.tensor(2.0), torch.tensor(0)), (torch.tensor(8.0), torch.tensor(4.0))
    )


@modes
def test_it_runs_on_another_device(mode):
    p = quadratic()

    def step(hyper, state, k):
        return {"x": state["x"] - hyper["lr"] * grad(lambda x: (x.sin() ** 2).sum())(state["x"])}

    outer = lambda h, s: s["x"].square().sum()  # noqa: E731
    far = [tree.unflatten(s, [x.to("meta") for x in leaves]) for leaves, s in [
        tree.flatten(p.hyper), tree.flatten({"x": p.state["x"]})]]  # fmt: skip
    value, grads = mode(step, outer, 5, argnums=(0, 1))(*far)
    assert {x.device.type for x in [value, *tree.leaves(grads)]} == {"meta"}


# ------------------------------------------------------------------------- differentiated once more


@problems
@modes
def test_results_are_differentiable_twice_more(mode, make):
    p = warm(make()._replace(steps=4))
    fn = of(mode, p, argnums=(0, 1))
    chosen = "x" if "x" in p.state.keys() else "params"

    def results(hyper, part):
        value, (dh, ds) = fn(hyper, tree.replace(p.state, {chosen: part}))
        return value, dh, ds[chosen]

    def slope(hyper, part):
        def energy(h, x):
            return sum(leaf.sin().sum() for leaf in tree.leaves(results(h, x)))

        return grad(energy, (0, 1))(hyper, part)

    check_grads(results, p.hyper, p.state[chosen], max_entries=3)
    check_grads(slope, p.hyper, p.state[chosen], max_entries=1, rtol=1e-4, atol=1e-6)


@modes
@pytest.mark.parametrize("also", [False, True], ids=["closure", "closure_and_hyper"])
def test_a_tensor_that_step_closes_over_keeps_its_gradient(mode, also):
    p = quadratic()

    def slope(decay, requires):
        def step(hyper, state, k):
            return p.step({"lr": hyper["lr"], "decay": decay}, state, k)

        hyper = {"lr": p.hyper["lr"].clone().requires_grad_(requires)}
        return mode(step, p.outer, p.steps)(hyper, p.state)[1]["lr"]

    decay = p.hyper["decay"].clone().requires_grad_()
    (ours,) = torch.autograd.grad(slope(decay, also), decay)
    wanted = central(lambda d: slope(d["decay"], False), tree.new({"decay": p.hyper["decay"]}))
    assert_close(ours, wanted["decay"], rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, on import
@modes
def test_under_transforms_of_torch_func(mode):
    p = quadratic()
    fn = of(mode, p)

    def slope(lr):
        return fn(tree.replace(p.hyper, {"lr": lr}), p.state)[1]["decay"]

    lr = p.hyper["lr"]
    wanted = grad(slope)(lr)
    assert_close(torch.func.grad(slope)(lr), wanted)
    assert_close(torch.func.jvp(slope, (lr,), (torch.ones_like(lr),))[1], wanted)
    assert_close(vmap(grad(slope))(torch.stack([lr, lr]))[1], wanted)


@modes
def test_without_grad_mode(mode):
    p = momentum()
    hyper = tree.map(lambda x: x.clone().requires_grad_(), p.hyper)
    wanted = of(mode, p)(p.hyper, p.state)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            ours = of(mode, p)(hyper, p.state)
        assert_same(ours, wanted)
        assert not any(x.requires_grad for x in tree.leaves(ours))


@modes
def test_backward_reaches_what_requires_grad(mode):
    p = momentum()
    hyper = tree.map(lambda x: x.clone().requires_grad_(), p.hyper)
    state = tree.map(lambda x: x.clone().requires_grad_(x.is_floating_point()), p.state)
    value, (dh, ds) = of(mode, p, argnums=(0, 1))(hyper, state)
    (value + dh["lr"] + ds["params", "v"].sum()).backward()
    for part in (hyper, state):
        for path in tree.paths(part):
            leaf = part[path]
            assert not leaf.requires_grad or leaf.grad.isfinite().all()


def test_a_gradient_that_is_always_0_has_none():
    p = quadratic()
    state = tree.map(lambda x: x.clone().requires_grad_(), p.state)
    _, idle = of(truncated, p, window=2, argnums=1)(p.hyper, state)
    assert torch.autograd.grad(idle["x"].sum(), state["x"], allow_unused=True) == (None,)


# ----------------------------------------------------------------------------------- many at once


@problems
@modes
def test_over_tasks_and_over_hyper_alone(mode, make):
    p = make()
    fn = of(mode, p, argnums=(0, 1))
    hypers = [tree.map(lambda x, i=i: x * (1 - 0.1 * i), p.hyper) for i in range(3)]
    moved = lambda x, i: x + 0.1 * i if x.is_floating_point() else x + i  # noqa: E731
    states = [tree.map(lambda x, i=i: moved(x, i), p.state) for i in range(3)]
    ours = vmap(fn)(tree.stack(hypers), tree.stack(states))
    alone = vmap(fn, in_dims=(0, None))(tree.stack(hypers), p.state)
    for i in range(3):
        pick = lambda nest: [x[i] for x in tree.leaves(nest)]  # noqa: E731, B023
        wanted = tree.leaves(fn(hypers[i], states[i]))
        for x, y in zip(pick(ours), wanted, strict=True):
            assert_close(x, y, rtol=1e-10, atol=1e-10)
        for x, y in zip(pick(alone), tree.leaves(fn(hypers[i], p.state)), strict=True):
            assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@modes
def test_compiled_with_adam(mode):
    p = adam()._replace(steps=3)
    fn = of(mode, p, argnums=(0, 1))
    torch._dynamo.reset()
    ours = torch.compile(fn, backend="aot_eager", fullgraph=True)(p.hyper, p.state)
    assert_same(ours, fn(p.hyper, p.state), rtol=1e-10, atol=1e-12)
    torch._dynamo.reset()
