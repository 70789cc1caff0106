# pyright: reportArgumentType=false, reportCallIssue=false
import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.testing import assert_close

from losses import (
    a2c_loss,
    add_advantage,
    lpg_agent_loss,
    lpg_meta_loss,
    lpg_regularizer_loss,
    lpg_value_loss,
    mgrl_outer_loss,
    policy_gradient_loss,
    total,
)
from paramtree import rng
from tests.oracles import returns_numpy as oracle

REDUCERS = [lpg_agent_loss, lpg_meta_loss, lpg_regularizer_loss]
COEFFS = {
    "policy_entropy_coeff": 0.3,
    "prediction_entropy_coeff": 0.2,
    "pi_hat_coeff": 0.4,
    "y_hat_coeff": 0.6,
}


@pytest.fixture
def learned(trajectory):
    """A trajectory with a learned rule's targets, and an advantage."""

    def make(*batch, **shape):
        td = trajectory(*batch, **shape)
        return td.set("advantage", td["state_value"].sin())

    return make


def hyper_of(reducer):
    return {"prediction_coeff": 0.5, "eps": 0.05} if reducer is lpg_agent_loss else COEFFS


def agent_terms(td, coeff, eps):
    n = td.numel()
    flat = [
        td[key].reshape(n, -1).squeeze(-1).numpy()
        for key in ("logits", "action", "pi_hat", "prediction", "y_hat")
    ]
    parts = oracle.lpg_terms(*flat, coeff, eps)
    return [torch.tensor(x).reshape(td.batch_size) for x in parts]


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("eps", [0.0, 1e-8, 0.1])
def test_agent_loss_is_its_equations(learned, batch, reduction, eps):
    td = learned(*batch)
    out = lpg_agent_loss(td, prediction_coeff=0.7, eps=eps, reduction=reduction)
    objective, prediction = agent_terms(td, 0.7, eps)
    reduce = {"mean": torch.mean, "sum": torch.sum, "none": lambda x: x}[reduction]
    assert_close(out["loss_objective"], reduce(objective))
    assert_close(out["loss_prediction"], reduce(prediction))
    divergence = prediction / 0.7
    assert_close(out["prediction_kl"], divergence if reduction == "none" else divergence.mean())
    added = {"loss_objective", "loss_prediction", "prediction_kl"}
    assert set(out.keys()) == ({*td.keys(), *added} if reduction == "none" else added)
    assert out.is_locked


def test_a_positive_pi_hat_makes_the_action_more_likely(learned):
    td = learned(4).set("pi_hat", torch.ones(4, 6, dtype=torch.float64))
    slope = grad(lambda x: total(lpg_agent_loss(td.copy().set("logits", x))))(td["logits"])
    assert (slope.gather(-1, td["action"].unsqueeze(-1)) < 0).all()


def test_prediction_descends_to_its_target(learned):
    td = learned(4)
    td["y_hat"] = td["prediction"].softmax(-1)
    out = lpg_agent_loss(td)
    assert_close(out["loss_prediction"], torch.tensor(0.0).double(), atol=1e-12, rtol=0)
    td["prediction"] = td["y_hat"].log() + 3  # logits are known up to a constant
    assert_close(lpg_agent_loss(td)["prediction_kl"], torch.tensor(0.0).double())


def test_meta_loss_is_its_equations(learned):
    td = learned(4)
    out = lpg_meta_loss(td, **COEFFS)
    log_pi, log_y = td["logits"].log_softmax(-1), td["prediction"].log_softmax(-1)
    chosen = log_pi.gather(-1, td["action"].unsqueeze(-1)).squeeze(-1)
    policy_entropy = -(log_pi.exp() * log_pi).sum(-1).mean()
    prediction_entropy = -(log_y.exp() * log_y).sum(-1).mean()
    pi_hat, y_hat = td["pi_hat"].square().mean(), td["y_hat"].square().sum(-1).mean()
    expected = {
        "loss_objective": -(chosen * td["advantage"]).mean(),
        "loss_policy_entropy": -0.3 * policy_entropy,
        "loss_prediction_entropy": -0.2 * prediction_entropy,
        "loss_pi_hat": 0.4 * pi_hat,
        "loss_y_hat": 0.6 * y_hat,
        "entropy": policy_entropy,
        "prediction_entropy": prediction_entropy,
        "pi_hat_square": pi_hat,
        "y_hat_square": y_hat,
    }
    assert set(out.keys()) == set(expected)
    for name, value in expected.items():
        assert_close(out[name], value)


def test_meta_loss_is_the_sum_of_its_parts(learned):
    td = learned(4)
    parts = total(policy_gradient_loss(td)) + total(lpg_regularizer_loss(td, **COEFFS))
    assert_close(total(lpg_meta_loss(td, **COEFFS)), parts)
    alone = td.exclude("advantage", "action", "next")  # a regularizer needs no more
    for name in lpg_regularizer_loss(alone).keys():
        assert_close(lpg_regularizer_loss(alone)[name], lpg_meta_loss(td)[name])


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("where", ["keyword", "entry"])
def test_gradients_of_hyper_parameters(learned, central, variant, reducer, where):
    td = learned(3)
    names = list(hyper_of(reducer))

    def f(h):
        hyper = {name: h[i] for i, name in enumerate(names)}
        if where == "keyword":
            return total(reducer(td, **hyper)).sin()
        entries = {k: x.expand(3, 6) for k, x in hyper.items()}
        return total(reducer(td.copy().update(entries))).sin()

    h = torch.tensor(list(hyper_of(reducer).values()), dtype=torch.float64)
    found = variant(grad(f))(h)
    assert_close(found, central(f, h), rtol=1e-6, atol=1e-8)
    assert (found.abs() > 1e-6).all()
    assert_close(grad(lambda x: grad(f)(x).sum())(h), central(lambda x: grad(f)(x).sum(), h))


@pytest.mark.parametrize("reducer", REDUCERS)
def test_nothing_is_detached(learned, central, reducer):
    td = learned(2, steps=3)
    keys = ["logits", "prediction", "pi_hat", "y_hat"]
    keys += ["advantage"] if reducer is lpg_meta_loss else []
    for key in keys:

        def f(x, key=key):
            return total(reducer(td.copy().set(key, x), **hyper_of(reducer)))

        if reducer is lpg_regularizer_loss or key != "logits":
            assert grad(f)(td[key]).abs().sum() > 0
        assert_close(grad(f)(td[key]), central(f, td[key]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_extreme_predictions_leave_no_nan(learned, eps):
    td = learned(2)
    td["prediction"] = 400 * td["prediction"]
    td["logits"] = 400 * td["logits"]

    def f(x, y):
        return total(lpg_agent_loss(td.copy().update({"prediction": x, "logits": y}), eps=eps))

    found = grad(f, (0, 1))(td["prediction"], td["logits"])
    assert all(g.isfinite().all() for g in found)
    slope = grad(lambda x: total(lpg_regularizer_loss(td.copy().set("prediction", x))))
    assert slope(td["prediction"]).isfinite().all()


def test_trailing_axes_of_one(learned):
    td = learned(6)
    for reducer in REDUCERS:
        expected = reducer(td)
        for key in ("pi_hat", "action", "advantage"):
            mixed = reducer(td.copy().set(key, td[key].unsqueeze(-1)))
            for name in expected.keys():
                assert_close(mixed[name], expected[name])


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("eps", [0.0, 0.1, torch.tensor(0.1).double()], ids=str)
def test_what_stands_at_masked_steps_is_without_influence(learned, reducer, eps):
    td = learned(3)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, 3:], mask[2] = False, False
    td["mask"] = mask
    spoiled = td.clone()
    for key in ("logits", "pi_hat", "prediction", "y_hat", "advantage"):
        keep = mask.reshape(3, 6, *(1,) * (td[key].dim() - 2))
        spoiled[key] = torch.where(keep, td[key], torch.nan)
    hyper = {"eps": eps} if reducer is lpg_agent_loss else {}
    expected = total(reducer(td, **hyper))
    unmasked = reducer(td.exclude("mask"), reduction="none", **hyper)
    assert_close(expected, total(unmasked)[mask].mean())

    def f(x, y, scale):
        parts = {"logits": x, "y_hat": y}
        hyper_ = {name: scale * h for name, h in hyper.items()}
        return total(reducer(spoiled.clone().update(parts), **hyper_))

    args = spoiled["logits"], spoiled["y_hat"], torch.tensor(1.0).double()
    assert_close(f(*args), expected)
    for gradient in grad(f, (0, 1, 2))(*args):
        assert gradient.isfinite().all()
    assert grad(grad(f, 2), 2)(*args).isfinite()


@pytest.mark.parametrize("reducer", REDUCERS)
def test_mapped_and_compiled(learned, reducer):
    many = learned(3, 2)
    out = vmap(reducer)(many)
    for i in range(3):
        assert_close(total(out[i]), total(reducer(many[i])))
    torch.compiler.reset()
    aot = torch.compile(reducer, fullgraph=True, backend="aot_eager")
    assert_close(total(aot(many)), total(reducer(many)))


@pytest.mark.parametrize(
    ("change", "hyper", "error", "text"),
    [
        (lambda td: td.exclude("pi_hat"), {}, ValueError, r"td has no 'pi_hat' \(nearest: y_hat"),
        (lambda td: td.exclude("prediction"), {}, ValueError, "td has no 'prediction'"),
        (
            lambda td: td.set("y_hat", torch.zeros(3, 6, 5)),
            {},
            ValueError,
            r"y_hat has shape \(3, 6, 5\), expected \[3, 6, 4\] \(from prediction\)",
        ),
        (
            lambda td: td.set("prediction", torch.zeros(3, 6)),
            {},
            ValueError,
            r"prediction has shape \(3, 6\), expected \[3, 6, m\] \(the td's batch size first\)",
        ),
        (
            lambda td: td.set("prediction", torch.zeros(3, 6, 4).long()),
            {},
            TypeError,
            "prediction has dtype int64",
        ),
        (
            lambda td: td.set("pi_hat", torch.zeros(3, 6, 4)),
            {},
            ValueError,
            r"pi_hat has shape \(3, 6, 4\), expected \[3, 6\] or \[3, 6, 1\]",
        ),
        (lambda td: td, {"eps": -1e-3}, ValueError, "eps is -0.001, expected at least 0"),
        (lambda td: td, {"eps": None}, ValueError, "eps is neither given nor an entry"),
        (lambda td: td, {"reduction": None}, ValueError, "reduction is None, expected one of"),
    ],
)
def test_bad_input(learned, change, hyper, error, text):
    with pytest.raises(error, match=f"^lpg_agent_loss: .*{text}") as caught:
        lpg_agent_loss(change(learned(3)), **hyper)
    assert "\n" not in str(caught.value)


def test_the_meta_loss_needs_all_its_keys(learned):
    for key in ("advantage", "pi_hat", "y_hat", "prediction", "logits", "action"):
        with pytest.raises(ValueError, match=f"^lpg_meta_loss: the td has no '{key}'"):
            lpg_meta_loss(learned(3).exclude(key))


def test_input_is_not_changed(learned, untouched):
    td, locked = learned(3), learned(3).lock_()
    with untouched(td, locked):
        for reducer in REDUCERS:
            for reduction in ("mean", "sum", "none"):
                reducer(td, reduction=reduction)
                reducer(locked, reduction=reduction)
    assert not td.is_locked


# ---- meta-gradients of hyper-parameters

REFERENCE = {"reference_gamma": 0.9, "reference_lmbda": 0.8}


def test_the_outer_loss_is_actor_critic_at_reference_discounts(trajectory):
    td, weights = trajectory(3), {"critic_coeff": 0.3, "entropy_coeff": 0.1}
    out = mgrl_outer_loss(td, **REFERENCE, **weights)
    inner = a2c_loss(td, gamma=0.9, lmbda=0.8, **weights)
    outside = mgrl_outer_loss(add_advantage(td, 0.9, 0.8), **weights)
    for name in inner.keys():
        assert_close(out[name], inner[name])
        assert_close(outside[name], inner[name])
    plain, paper = mgrl_outer_loss(td), policy_gradient_loss(td, gamma=0.995, lmbda=1.0)
    assert_close(total(plain), total(paper))
    assert plain["loss_critic"] == 0 and plain["loss_entropy"] == 0


def test_the_learned_discounts_in_the_td_are_not_the_references(trajectory):
    td = trajectory(3)
    learned_with = td.clone().update({k: torch.full((3, 6), 0.5) for k in ("gamma", "lmbda")})
    assert_close(total(mgrl_outer_loss(learned_with)), total(mgrl_outer_loss(td)))
    none = mgrl_outer_loss(learned_with, reduction="none")
    assert set(learned_with.keys()) <= set(none.keys())
    per_step = torch.linspace(0.5, 1, 18, dtype=torch.float64).reshape(3, 6)
    entry = mgrl_outer_loss(td.clone().set("reference_gamma", per_step), reference_gamma=0.1)
    assert_close(
        total(entry),
        total(
            a2c_loss(
                td.clone().set("gamma", per_step), lmbda=1.0, critic_coeff=0.0, entropy_coeff=0.0
            )
        ),
    )


def test_the_meta_gradient_of_a_discount(trajectory, central, variant):
    """After an update with the learned discount: autodiff against the paper's formula."""
    td, later = trajectory(2, seed=1), trajectory(2, seed=2)
    weight = torch.tensor([[0.3, -0.2], [0.1, 0.7]], dtype=torch.float64)
    x = torch.stack([td["pi_hat"].sin(), td["pi_hat"].cos()], -1)

    def outputs(w, td):
        logits = torch.cat([x @ w, torch.zeros(2, 6, 1, dtype=x.dtype)], -1)
        return td.copy().update({"logits": logits, "state_value": x @ w.sum(1)})

    def updated(gamma):
        seen = add_advantage(outputs(weight, td), gamma, 0.9)
        slope = grad(
            lambda w: total(
                a2c_loss(seen.copy().update(outputs(w, td).select("logits", "state_value")))
            )
        )(weight)
        return weight - 0.5 * slope

    def outer(gamma):
        return total(mgrl_outer_loss(outputs(updated(gamma), later), **REFERENCE))

    gamma = torch.tensor(0.7, dtype=torch.float64)
    held = add_advantage(outputs(updated(gamma), later), 0.9, 0.8)["advantage"]

    def formula(gamma):
        td = outputs(updated(gamma), later).set("advantage", held)
        return total(policy_gradient_loss(td))

    found = variant(grad(outer))(gamma)
    assert found.abs() > 1e-4
    assert_close(found, central(formula, gamma), rtol=1e-6, atol=1e-8)


def test_reference_discounts_are_data(trajectory, central):
    td = trajectory(2)

    def f(x):
        hyper = dict(zip(REFERENCE, x, strict=True))
        return total(mgrl_outer_loss(td, **hyper, critic_coeff=0.3))

    x = torch.tensor([0.9, 0.8], dtype=torch.float64)
    assert_close(grad(f)(x), central(f, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "hyper", "text"),
    [
        (lambda td: add_advantage(td, 0.9, 0.8), REFERENCE, "reference_gamma is given, but the td"),
        (lambda td: td, {"reference_gamma": 1.5}, "reference_gamma is 1.5, expected a number from"),
        (lambda td: td, {"reference_lmbda": torch.ones(3)}, r"reference_lmbda has shape \(3,\)"),
        (lambda td: td.exclude("state_value"), {}, "the td has no 'state_value'"),
        (lambda td: td.exclude(("next", "reward")), {}, "the td has no 'next.reward'"),
    ],
)
def test_bad_input_of_the_outer_loss(trajectory, change, hyper, text):
    with pytest.raises(ValueError, match=f"^mgrl_outer_loss: .*{text}"):
        mgrl_outer_loss(change(trajectory(2)), **hyper)


@pytest.fixture
def valued(trajectory):
    """A trajectory with returns and an embedding that tells something of them."""
    td = trajectory(4)
    returns = 5 * td["state_value"].sin() - 2
    noise = rng.normal(rng.key(0), td.batch_size, dtype=torch.float64)
    return td.set("value_target", returns).set("prediction_embedding", 1 - 0.1 * returns + noise)


def concordance(x, z):
    """Lin's coefficient of samples less their means, so that its term for an offset is 0."""
    return 2 * np.cov(x, z, ddof=0)[0, 1] / (x.var() + z.var())


def test_value_loss_is_discordance(valued):
    x, z = (valued[key].flatten().numpy() for key in ("prediction_embedding", "value_target"))
    out = lpg_value_loss(valued, value_coeff=0.7, eps=0.0)
    assert_close(out["loss_value"].item(), 0.7 * (1 - concordance(x, z)))
    assert_close(out["value_explained"].item(), np.corrcoef(x, z)[0, 1] ** 2)
    steps = lpg_value_loss(valued, value_coeff=0.7, eps=0.0, reduction="none")["loss_value"]
    left = (z - z.mean() - x + x.mean()) ** 2 / (x.var() + z.var())
    assert_close(steps.flatten().numpy(), 0.7 * left)


@pytest.mark.parametrize(("slope", "wanted"), [(1.0, 0.0), (-1.0, 2.0), (0.1, 1 - 0.2 / 1.01)])
def test_value_loss_of_straight_lines(valued, slope, wanted):
    """1 - 2 b / (1 + b^2), which a correlation wouldn't tell from 0."""
    valued["prediction_embedding"] = slope * valued["value_target"] + 3
    out = lpg_value_loss(valued, value_coeff=1.0, eps=0.0)
    assert_close(out["loss_value"].item(), wanted, atol=1e-12, rtol=0)
    assert_close(out["value_explained"].item(), 1.0)


def test_value_loss_knows_no_common_scale_and_no_steps_of_the_mask(valued):
    whole = lpg_value_loss(valued, eps=0.0)
    other = valued.clone()
    other["value_target"] = 3 - 100 * valued["value_target"]
    other["prediction_embedding"] = 7 - 100 * valued["prediction_embedding"]
    assert_close(lpg_value_loss(other, eps=0.0), whole)
    mask = torch.tensor([True, False, True, True])[:, None].expand(valued.batch_size)
    other = valued.clone().set("mask", mask)
    other["value_target"][1] = torch.nan
    assert_close(lpg_value_loss(other), lpg_value_loss(valued[[0, 2, 3]]))


def test_value_loss_where_one_side_is_constant(valued):
    """A silent embedding is pulled to the returns; where there are none, nothing is pulled."""
    still = torch.zeros(valued.batch_size, dtype=torch.float64)
    z = valued["value_target"] - valued["value_target"].mean()

    def loss(x):
        td = valued.copy().set("prediction_embedding", x)
        return total(lpg_value_loss(td, value_coeff=1.0, eps=0.0))

    assert_close(loss(still).item(), 1.0)
    assert_close(grad(loss)(still), -2 * z / z.square().sum())

    def silent(x):
        td = valued.copy().set("prediction_embedding", x).set("value_target", still)
        return total(lpg_value_loss(td, value_coeff=1.0))

    x = valued["prediction_embedding"]
    assert_close(silent(x).item(), 1.0, atol=1e-6, rtol=0)
    assert grad(silent)(x).abs().max() < 1e-8 and silent(still) == 0.0
    assert_close(grad(silent)(still), still)
