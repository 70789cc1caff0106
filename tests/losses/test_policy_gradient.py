# pyright: reportArgumentType=false, reportCallIssue=false
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch.func import grad, vmap
from torch.testing import assert_close

from losses import a2c_loss, add_advantage, policy_gradient_loss, squared_error, total
from tests.oracles import returns_numpy as oracle

HYPER = {"critic_coeff": 0.7, "entropy_coeff": 0.2}


@pytest.fixture
def finished(trajectory):
    """A trajectory with its targets."""
    return lambda *batch, **shape: add_advantage(trajectory(*batch, **shape), 0.9, 0.8).unlock_()


def terms(td, critic_coeff=0.7, entropy_coeff=0.2):
    """The oracle's terms per step."""
    flat = {
        k: td[k].reshape(td.numel(), -1).squeeze(-1).numpy()
        for k in ("logits", "action", "state_value", "advantage", "value_target")
    }
    parts = oracle.a2c_terms(
        flat["logits"],
        flat["action"],
        flat["state_value"],
        flat["advantage"],
        flat["value_target"],
        critic_coeff,
        entropy_coeff,
    )
    names = ("loss_objective", "loss_critic", "loss_entropy")
    return {k: torch.tensor(x).reshape(td.batch_size) for k, x in zip(names, parts, strict=True)}


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a2c_is_its_equations(finished, batch, reduction):
    td = finished(*batch)
    out = a2c_loss(td, **HYPER, reduction=reduction)
    expected = terms(td)
    reduce = {"mean": torch.mean, "sum": torch.sum, "none": lambda x: x}[reduction]
    for name, term in expected.items():
        assert_close(out[name], reduce(term))
    entropy = -expected["loss_entropy"] / 0.2
    assert_close(out["entropy"], entropy if reduction == "none" else entropy.mean())
    assert_close(total(out), reduce(sum(expected.values())))
    assert out.is_locked
    added = {*expected, "entropy"}
    assert set(out.keys()) == ({*td.keys(), *added} if reduction == "none" else added)
    assert out.batch_size == (td.batch_size if reduction == "none" else torch.Size([]))


def test_policy_gradient_is_its_equations(finished):
    td = finished(4)
    out = policy_gradient_loss(td, entropy_coeff=0.2)
    expected = terms(td)
    for name in ("loss_objective", "loss_entropy"):
        assert_close(out[name], expected[name].mean())
    assert set(out.keys()) == {"loss_objective", "loss_entropy", "entropy"}
    assert policy_gradient_loss(td)["loss_entropy"] == 0


def test_distance_is_an_option(finished):
    td = finished(4)

    def smooth(value, target):
        return F.smooth_l1_loss(value, target, reduction="none")

    out = a2c_loss(td, critic_coeff=2.0, distance=smooth)
    assert_close(out["loss_critic"], 2 * F.smooth_l1_loss(td["state_value"], td["value_target"]))
    square = squared_error(td["state_value"], td["value_target"]).mean()
    assert_close(a2c_loss(td, critic_coeff=1.0)["loss_critic"], square)
    with pytest.raises(ValueError, match=r"a2c_loss: distance's result has shape \(\), expected"):
        a2c_loss(td, distance=F.mse_loss)


@pytest.mark.parametrize("reducer", [a2c_loss, policy_gradient_loss])
def test_targets_made_inside_are_those_made_outside(trajectory, reducer):
    td = trajectory(3)
    expected = reducer(add_advantage(td, 0.9, 0.8))
    found = reducer(td, gamma=0.9, lmbda=0.8)
    entries = {"gamma": torch.full(td.batch_size, 0.9), "lmbda": torch.full(td.batch_size, 0.8)}
    by_entry = reducer(td.copy().update({k: x.double() for k, x in entries.items()}))
    for name in expected.keys():
        assert_close(found[name], expected[name])
        assert_close(by_entry[name], expected[name])


def test_targets_made_inside_stop_at_the_values(trajectory):
    td = trajectory(3)
    fixed = add_advantage(td, 0.9, 0.8)

    def inside(x, y):
        changed = td.clone().set("state_value", x).set(("next", "state_value"), y)
        return total(a2c_loss(changed, gamma=0.9, lmbda=0.8))

    def outside(x):
        return total(a2c_loss(fixed.clone().unlock_().set("state_value", x)))

    of_value, of_next = grad(inside, (0, 1))(td["state_value"], td["next", "state_value"])
    assert_close(of_value, grad(outside)(td["state_value"]))
    assert (of_next == 0).all()


@pytest.mark.parametrize("where", ["keyword", "entry"])
@pytest.mark.parametrize("reducer", [a2c_loss, policy_gradient_loss])
def test_gradients_of_hyper_parameters(trajectory, central, variant, reducer, where):
    td = trajectory(3)
    names = ["gamma", "lmbda", "entropy_coeff", "critic_coeff"]
    names = names if reducer is a2c_loss else names[:3]

    def f(h):
        hyper = {name: h[i] for i, name in enumerate(names)}
        if where == "keyword":
            return total(reducer(td, **hyper))
        return total(reducer(td.copy().update({k: x.expand(3, 6) for k, x in hyper.items()})))

    h = torch.tensor([0.9, 0.8, 0.1, 0.5], dtype=torch.float64)[: len(names)]
    found = variant(grad(f))(h)
    assert_close(found, central(f, h), rtol=1e-6, atol=1e-8)
    assert (found.abs() > 1e-6).all()


def test_per_step_hyper_parameters(finished, central):
    td = finished(2, steps=3)
    coeff = torch.rand(2, 3, dtype=torch.float64)
    expected = terms(td, critic_coeff=1.0)["loss_critic"]
    out = a2c_loss(td, critic_coeff=coeff)
    assert_close(out["loss_critic"], (coeff * expected).mean())
    entry = td.copy().set("critic_coeff", coeff.unsqueeze(-1))
    assert_close(a2c_loss(entry, critic_coeff=9.0)["loss_critic"], out["loss_critic"])
    found = grad(lambda c: total(a2c_loss(td, critic_coeff=c)))(coeff)
    assert_close(found, central(lambda c: total(a2c_loss(td, critic_coeff=c)), coeff))


def test_gradients_of_every_entry(finished, central):
    td = finished(2, steps=3)
    for key in ("logits", "state_value", "advantage", "value_target"):

        def f(x, key=key):
            return total(a2c_loss(td.copy().set(key, x), **HYPER))

        assert_close(grad(f)(td[key]), central(f, td[key]), rtol=1e-6, atol=1e-8)


def test_diagnostics_are_detached(finished):
    td = finished(2)
    td["logits"] = td["logits"].requires_grad_()
    out = a2c_loss(td)
    assert out["loss_entropy"].requires_grad and not out["entropy"].requires_grad
    per_step = policy_gradient_loss(td, reduction="none")
    assert per_step["loss_entropy"].requires_grad and not per_step["entropy"].requires_grad


def test_trailing_axes_of_one(finished):
    td = finished(6)
    expected = a2c_loss(td)
    for key in ("state_value", "advantage", "value_target", "action"):
        mixed = td.copy().set(key, td[key].unsqueeze(-1))
        for name in expected.keys():
            assert_close(a2c_loss(mixed)[name], expected[name])


def test_a_batch_without_time(finished):
    td = finished(4)
    flat = td.reshape(-1)
    assert_close(total(a2c_loss(flat)), total(a2c_loss(td)))
    one = td[0, 0]
    assert_close(total(a2c_loss(one)), total(a2c_loss(one.unsqueeze(0))))


@pytest.mark.parametrize("reducer", [a2c_loss, policy_gradient_loss])
def test_mask_and_weight(finished, reducer):
    td = finished(3, steps=5)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 3:], mask[2] = False, False
    weight = torch.rand(3, 5, dtype=torch.float64)
    steps = reducer(td, entropy_coeff=0.1, reduction="none")
    for name in [k for k in steps.keys() if k.startswith("loss_")]:

        def found(reduction, name=name, **more):
            return reducer(td.copy().update(more), entropy_coeff=0.1, reduction=reduction)[name]

        term = steps[name]
        assert_close(found("mean", mask=mask), term[mask].mean())
        assert_close(found("sum", mask=mask), term[mask].sum())
        assert_close(found("none", mask=mask), torch.where(mask, term, 0.0))
        assert_close(found("mean", weight=weight), (term * weight).sum() / weight.sum())
        assert_close(found("sum", weight=weight.unsqueeze(-1)), (term * weight).sum())
        assert_close(found("none", weight=weight), term * weight)
        both = (term * weight)[mask].sum() / weight[mask].sum()
        assert_close(found("mean", mask=mask.unsqueeze(-1), weight=weight), both)
    masked = reducer(td.copy().update({"mask": mask, "weight": weight}))
    assert_close(masked["entropy"], steps["entropy"][mask].mean())


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_what_stands_at_masked_steps_is_without_influence(finished, inside, reduction):
    td = finished(3, steps=5)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 3:] = False
    td = td.exclude("advantage", "value_target") if inside else td
    hyper = {"gamma": 0.9, "lmbda": 0.8} if inside else {}
    td["mask"] = mask
    td["weight"] = torch.rand(3, 5, dtype=torch.float64)
    spoiled = td.clone()
    for key in spoiled.keys(include_nested=True, leaves_only=True):
        x = spoiled[key]
        if x.is_floating_point():
            shape = (*mask.shape, *(1,) * (x.dim() - 2))
            spoiled[key] = torch.where(mask.reshape(shape), x, torch.nan)
    spoiled["action"] = torch.where(mask, td["action"], -7)

    def f(td, logits, value, coeff):
        td = td.clone().update({"logits": logits, "state_value": value})
        return total(a2c_loss(td, entropy_coeff=coeff, reduction=reduction, **hyper)).sum()

    coeff = torch.tensor(0.1, dtype=torch.float64)
    results = []
    for x in (td, spoiled):
        args = (x["logits"], x["state_value"], coeff)
        first = grad(lambda *a, x=x: f(x, *a), (0, 1, 2))(*args)
        second = grad(lambda *a, x=x: sum(g.sin().sum() for g in grad(f, 1)(x, *a)))(*args)
        results.append((f(x, *args), *first, second))
    for clean, dirty in zip(*results, strict=True):
        assert dirty.isfinite().all()
        assert_close(dirty, clean)


def test_no_step_left_is_nan(finished):
    td = finished(2).set("mask", torch.zeros(2, 6, dtype=torch.bool))
    assert a2c_loss(td)["loss_objective"].isnan()
    assert a2c_loss(td, reduction="sum")["loss_objective"] == 0


def test_mapped_over_tds(finished):
    many = finished(3, 2)
    out = vmap(lambda td: a2c_loss(td, **HYPER))(many)
    for i in range(3):
        assert_close(total(out[i]), total(a2c_loss(many[i], **HYPER)))
    none = vmap(lambda td: a2c_loss(td, reduction="none"))(many)
    assert_close(none["loss_critic"], a2c_loss(many, reduction="none")["loss_critic"])


def test_compiled_with_a_td(finished):
    td = finished(3)
    torch.compiler.reset()
    aot = torch.compile(a2c_loss, fullgraph=True, backend="aot_eager")
    assert_close(total(aot(td)), total(a2c_loss(td)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_inductor_agrees(finished):
    td = finished(3)
    torch.compiler.reset()
    assert_close(total(torch.compile(a2c_loss, fullgraph=True)(td)), total(a2c_loss(td)))


def test_large_logits_in_float32(finished):
    td = finished(2)
    for key in ("logits", "advantage", "state_value", "value_target"):
        td[key] = td[key].float()
    shifted = td.copy().set("logits", td["logits"] + 1000)
    assert_close(total(a2c_loss(shifted)), total(a2c_loss(td)), rtol=1e-3, atol=1e-3)
    extreme = td.copy().set("logits", 80 * td["logits"])
    gradient = grad(lambda x: total(a2c_loss(extreme.copy().set("logits", x))))
    assert gradient(extreme["logits"]).isfinite().all()


def test_a2c_update_is_that_of_golden_lpg(golden_lpg):
    def array(name):
        return torch.tensor(golden_lpg[name], dtype=torch.float64)

    now, after = array("in/rollout/obs"), array("in/rollout/next_obs")
    tables = [array(f"in/{name}/Dense_0/kernel") for name in ("actor", "value")]
    done = torch.tensor(golden_lpg["in/rollout/done"].astype(bool))
    follows = {"reward": array("in/rollout/reward"), "done": done, "terminated": done}
    follows["state_value"] = after @ tables[1]

    def outputs(actor, value):
        action = array("in/rollout/action").long()
        policy = {"logits": now @ actor, "state_value": now @ value, "action": action}
        return TensorDict({**policy, "next": TensorDict(follows, done.shape)}, done.shape)

    td = add_advantage(outputs(*tables), 0.99, 0.95, normalize=True)

    def objective(actor, value):
        out = outputs(actor, value).update(td.select("advantage", "value_target"))
        return total(a2c_loss(out, critic_coeff=1.0, entropy_coeff=0.01))

    grads = grad(objective, (0, 1))(*tables)
    for name, table, g, rate in zip(("actor", "value"), tables, grads, (40, 4), strict=True):
        new = table - rate * g * (0.5 / g.norm()).clamp(max=1.0)
        expected = golden_lpg[f"out/a2c/{name}/Dense_0/kernel"]
        assert np.abs(new.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


# ---- bad input and purity


@pytest.mark.parametrize("reducer", [a2c_loss, policy_gradient_loss])
@pytest.mark.parametrize("name", ["gamma", "lmbda"])
@pytest.mark.parametrize("value", [0.9, torch.tensor(0.9), torch.full((3, 6), 0.9)], ids=str)
def test_a_discount_beside_a_finished_advantage_raises(finished, reducer, name, value):
    text = f"^{reducer.__name__}: {name} is given, but the td already holds 'advantage'.*exclude"
    with pytest.raises(ValueError, match=text):
        reducer(finished(3), **{name: value})
    with pytest.raises(ValueError, match=text):
        reducer(finished(3), **{name: value * 0})


def test_a_discount_beside_a_value_target_raises(finished):
    td = finished(3).exclude("advantage")
    with pytest.raises(ValueError, match="gamma is given, but the td already holds 'value_target'"):
        a2c_loss(td, gamma=0.9, lmbda=0.8)


@pytest.mark.parametrize("reducer", [a2c_loss, policy_gradient_loss])
def test_a_live_entry_beside_an_advantage_that_was_not_made_with_it_raises(trajectory, reducer):
    td = trajectory(3)
    gamma = torch.full((3, 6), 0.9, dtype=torch.float64)
    stale = add_advantage(td, 0.9, 0.8).unlock_()
    reducer(stale.copy().set("gamma", gamma))  # plain numbers: taken for what it was made with

    def idle(g):
        return total(reducer(stale.copy().set("gamma", g)))

    text = "entry 'gamma' requires grad, but its 'advantage' does not.*make the targets after"
    with pytest.raises(ValueError, match=f"^{reducer.__name__}: the td's {text}"):
        grad(idle)(gamma)
    with pytest.raises(ValueError, match=text):
        idle(gamma.clone().requires_grad_())
    with torch.no_grad():
        idle(gamma.clone().requires_grad_())

    def live(g):
        made = add_advantage(td.copy().set("gamma", g), lmbda=0.8)

        def inner(x):
            return total(reducer(made.copy().set("logits", x)))

        return grad(inner)(td["logits"]).square().sum()

    assert grad(live)(gamma).abs().sum() > 0
    assert vmap(grad(live))(torch.stack([gamma, 0.9 * gamma])).abs().sum() > 0
    live(gamma)


@pytest.mark.parametrize(
    ("change", "hyper", "error", "text"),
    [
        (
            lambda td: td.exclude("advantage", "value_target"),
            {},
            ValueError,
            "td has no 'advantage'.*add_advantage, outside .* or give both gamma and lmbda",
        ),
        (
            lambda td: td.exclude("advantage", "value_target"),
            {"gamma": 0.9},
            ValueError,
            "td has no 'advantage'.*give both gamma and lmbda",
        ),
        (
            lambda td: td.exclude("advantage", "value_target", ("next", "reward")),
            {"gamma": 0.9, "lmbda": 0.8},
            ValueError,
            "td has no 'next.reward'",
        ),
        (lambda td: td.exclude("value_target"), {}, ValueError, "td has no 'value_target'"),
        (
            lambda td: td.rename_key_("state_value", "state_valeu"),
            {},
            ValueError,
            r"td has no 'state_value' \(nearest: state_valeu, next.state_value",
        ),
        (lambda td: td.exclude("action"), {}, ValueError, "td has no 'action'"),
        (lambda td: td, {"reduction": "max"}, ValueError, "reduction is 'max', expected one of"),
        (lambda td: td, {"entropy_coeff": "a"}, TypeError, "entropy_coeff is a str, expected a"),
        (lambda td: td, {"entropy_coeff": float("nan")}, ValueError, "entropy_coeff is nan"),
        (
            lambda td: td,
            {"critic_coeff": torch.zeros(6)},
            ValueError,
            r"critic_coeff has shape \(6,\), expected \(\) or \[3, 6\]",
        ),
        (lambda td: td, {"critic_coeff": torch.tensor(1)}, TypeError, "critic_coeff has dtype int"),
        (
            lambda td: td.set("advantage", torch.zeros(3, 6, 6)),
            {},
            ValueError,
            r"advantage has shape \(3, 6, 6\), expected \[3, 6\] or \[3, 6, 1\]",
        ),
        (
            lambda td: td.set("weight", torch.zeros(3, 6, dtype=torch.bool)),
            {},
            TypeError,
            "weight has dtype bool",
        ),
        (lambda td: td.set("mask", torch.ones(3, 6)), {}, TypeError, "mask has dtype float32"),
        (lambda td: 3, {}, TypeError, "td is an int, expected a TensorDict"),
    ],
)
def test_bad_input(finished, change, hyper, error, text):
    td = change(finished(3))
    with pytest.raises(error, match=f"^a2c_loss: .*{text}") as caught:
        a2c_loss(td, **hyper)
    assert "\n" not in str(caught.value)


def test_input_is_not_changed(finished, trajectory, untouched):
    td, open_td, locked = finished(3), trajectory(3), finished(3).lock_()
    with untouched(td, open_td, locked):
        for reduction in ("mean", "sum", "none"):
            a2c_loss(td, reduction=reduction)
            a2c_loss(open_td, gamma=0.9, lmbda=0.8, reduction=reduction)
            policy_gradient_loss(locked, reduction=reduction)
    assert not td.is_locked and not td["next"].is_locked
