# pyright: reportArgumentType=false, reportCallIssue=false
"""DiscoRL's losses against numbers of the authors' harness, and against loops.

``tests/data/disco_agent_loss.npz`` was cut out of a run of the authors' code (JAX, float32;
google-deepmind/disco_rl, whose materials are under CC BY 4.0): one batch
``[T, B]`` under Disco103 with the outputs of a small agent for the actions taken, what the
meta-network wrote, the moving averages before and after, and the log. No weights are in it.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.func import grad
from torch.testing import assert_close

from losses import (
    TxPair,
    disco_agent_loss,
    disco_meta_loss,
    disco_regularizer_loss,
    ema_moments_normalize,
    ema_moments_update,
    identity_pair,
    policy_gradient_loss,
    signed_hyperbolic,
    total,
    two_hot,
)

D = torch.float64
GOLDEN = Path(__file__).parents[1] / "data" / "disco_agent_loss.npz"
TERMS = ("policy", "prediction", "action_prediction", "auxiliary", "critic")
SUPPORT = torch.tensor([-1.0, -0.4, 0.13, 0.5, 1.2], dtype=D)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name: torch.as_tensor(file[name]) for name in file.files}


def batch_first(x):
    return x.double().movedim(0, 1)


def spread(x, action, n=3):
    """Outputs of the actions taken, in a table of all; what the others hold may not matter."""
    table = torch.linspace(-1, 1, n, dtype=D).reshape(n, 1).expand(*x.shape[:-1], n, x.shape[-1])
    chosen = action.unsqueeze(-1) == torch.arange(n)
    return torch.where(chosen.unsqueeze(-1), x.unsqueeze(-2), table)


@pytest.fixture
def rollout(golden):
    g = {name: batch_first(x) for name, x in golden.items() if x.dim() > 1}
    action, size = g["actions"][:, :-1].long(), (3, 6)
    after = {"logits": g["logits"][:, 1:], "terminated": g["discounts"][:, 1:] == 0}
    entries = {
        "action": action,
        "logits": g["logits"][:, :-1],
        "prediction": g["y"],
        "action_prediction": spread(g["z_a"], action),
        "auxiliary_logits": spread(g["aux_pi_a"], action),
        "action_value_logits": spread(g["q_a"], action),
        "policy_target_logits": g["pi_hat"],
        "prediction_target_logits": g["y_hat"],
        "action_prediction_target_logits": g["z_hat"],
        "value_target": g["q_target"],
        "next": TensorDict(after, size),
    }
    return TensorDict(entries, size), g["discounts"][:, :-1] > 0


def close(ours, number):
    assert_close(ours.float(), number, rtol=1e-5, atol=1e-6)


def test_the_authors_numbers(golden, rollout):
    td, mask = rollout
    out = disco_agent_loss(td)
    for ours, theirs in {
        "policy_kl": "pi_loss",
        "auxiliary_kl": "aux_kl_loss",
        "value_cross_entropy": "q_loss",
        "entropy": "entropy",
        "prediction_entropy": "y_entropy",
        "action_prediction_entropy": "z_entropy",
        "policy_target_entropy": "pi_hat_entropy",
    }.items():
        close(out[ours], golden[f"log/{theirs}"])
    masked = td.clone().set("mask", mask)  # they leave out the step from an end to a new start
    close(total(disco_agent_loss(masked)), golden["log/total_loss"])


def test_the_authors_moving_averages(golden):
    for name, key, center in (("adv", "adv", True), ("td", "q_td", False)):

        def moments(side, name=name):
            first, second, product = (
                golden[f"{side}/{name}_ema_state/{k}"].double()
                for k in ("moment1", "moment2", "decay_product")
            )
            mean = first / (1 - product)
            entries = {"mean": mean, "variance": second / (1 - product) - mean**2}
            return TensorDict({**entries, "weight": 1 - product})

        x = golden[key].double()
        state, wanted = ema_moments_update(moments("in"), x), moments("out")
        for entry in state.keys():
            assert_close(state[entry], wanted[entry], rtol=1e-5, atol=1e-6)
        normal = ema_moments_normalize(state, x, center=center)
        assert_close(normal.float(), golden[f"normalized_{key}"], rtol=1e-4, atol=1e-5)


# ---- loops


def normal(seed, *shape):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


@pytest.fixture
def td():
    size = (2, 5)
    ended = torch.tensor([[False, True, False, True, False], [False, False, False, False, True]])
    following = {
        "logits": normal(10, *size, 3),
        "done": ended,
        "terminated": ended & torch.tensor([[True], [False]]),
    }
    entries = {
        "logits": normal(0, *size, 3),
        "action": torch.tensor(np.random.default_rng(1).integers(0, 3, size)),
        "advantage": normal(11, *size),
        "prediction": normal(2, *size, 4),
        "action_prediction": normal(3, *size, 3, 4),
        "auxiliary_logits": normal(4, *size, 3, 3),
        "action_value_logits": normal(5, *size, 3, 5),
        "policy_target_logits": normal(6, *size, 3),
        "prediction_target_logits": normal(7, *size, 4),
        "action_prediction_target_logits": normal(8, *size, 4),
        "value_target": normal(9, *size),
        "target": TensorDict({"logits": normal(12, *size, 3)}, size),
        "next": TensorDict(following, size),
    }
    return TensorDict(entries, size)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def kl(target, prediction):
    p, q = softmax(target.numpy()), softmax(prediction.numpy())
    return float((p * np.log(p / q)).sum())


def agent_terms(td):
    """The five terms of each step without their weights."""
    out = {name: torch.zeros(td.shape, dtype=D) for name in TERMS}
    for i in np.ndindex(*td.shape):
        s = td[i]
        a = int(s["action"])
        out["policy"][i] = kl(s["policy_target_logits"], s["logits"])
        out["prediction"][i] = kl(s["prediction_target_logits"], s["prediction"])
        z = s["action_prediction"][a]
        out["action_prediction"][i] = kl(s["action_prediction_target_logits"], z)
        if not s["next", "terminated"]:
            out["auxiliary"][i] = kl(s["next", "logits"], s["auxiliary_logits"][a])
        probs = two_hot(signed_hyperbolic(s["value_target"]), SUPPORT)
        out["critic"][i] = -(probs * s["action_value_logits"][a].log_softmax(-1)).sum()
    return out


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_agents_loss_is_its_equations(td, reduction):
    coeffs = dict(zip(TERMS, (0.9, 0.8, 0.7, 0.6, 0.2), strict=True))
    hyper = {f"{name}_coeff": c for name, c in coeffs.items()}
    out = disco_agent_loss(td, **hyper, support=SUPPORT, reduction=reduction)
    reduce = {"mean": torch.mean, "sum": torch.sum, "none": lambda x: x}[reduction]
    for name, term in agent_terms(td).items():
        assert_close(out[f"loss_{name}"], coeffs[name] * reduce(term))
    assert out.is_locked


def test_defaults_are_disco103s(td):
    names = ("policy_kl", "prediction_kl", "action_prediction_kl", "auxiliary_kl")
    out = disco_agent_loss(td, support=SUPPORT)
    for name, metric in zip(TERMS, (*names, "value_cross_entropy"), strict=True):
        assert_close(out[f"loss_{name}"], (0.2 if name == "critic" else 1.0) * out[metric])
    wide = torch.linspace(-300, 300, 5, dtype=D)
    assert_close(total(disco_agent_loss(td)), total(disco_agent_loss(td, support=wide)))
    plain = disco_agent_loss(td, support=SUPPORT, tx=identity_pair)
    squash = TxPair(signed_hyperbolic, lambda x: x)
    assert_close(
        disco_agent_loss(td, support=SUPPORT, tx=squash)["loss_critic"], out["loss_critic"]
    )
    assert (plain["loss_critic"] - out["loss_critic"]).abs() > 1e-3


def test_at_its_targets_the_agent_stays(td):
    td = td.set("prediction", td["prediction_target_logits"] + 2)
    td = td.set("logits", td["policy_target_logits"] - 1)
    out = disco_agent_loss(td)
    for name in ("policy_kl", "prediction_kl"):
        assert_close(out[name], torch.tensor(0.0, dtype=D), atol=1e-12, rtol=0)
    slope = grad(lambda x: disco_agent_loss(td.copy().set("logits", x))["loss_policy"])
    assert_close(slope(td["logits"]), torch.zeros(2, 5, 3, dtype=D), atol=1e-12, rtol=0)


def test_nothing_is_detached(td, central):
    """Targets carry gradient as predictions do: the meta-gradient runs through them."""
    keys = [
        "policy_target_logits",
        "prediction_target_logits",
        "action_prediction_target_logits",
        "value_target",
        ("next", "logits"),
        "logits",
        "prediction",
        "auxiliary_logits",
    ]
    for key in keys:

        def f(x, key=key):
            return total(disco_agent_loss(td.clone().set(key, x), support=SUPPORT)).sin()

        found = grad(f)(td.get(key))
        assert found.abs().sum() > 1e-3
        assert_close(found, central(f, td.get(key)), rtol=1e-6, atol=1e-8)


def test_only_the_action_taken_is_moved(td):
    for key in ("action_prediction", "auxiliary_logits", "action_value_logits"):
        slope = grad(lambda x, k=key: total(disco_agent_loss(td.copy().set(k, x))))(td[key])
        moved = slope.abs().sum(-1) > 0
        others = td["action"].unsqueeze(-1) != torch.arange(3)
        assert not moved[others].any()


def test_a_truncated_step_has_a_next_policy_and_a_terminated_one_has_none(td):
    """The authors mask every end of an episode; their environments know no truncation."""
    terminated, done = td["next", "terminated"], td["next", "done"]
    truncated = done & ~terminated
    assert terminated.any() and truncated.any()
    out = disco_agent_loss(td, reduction="none")
    assert (out["loss_auxiliary"][terminated] == 0).all()
    assert (out["loss_auxiliary"][truncated] > 0).all()
    junk = torch.where(terminated.unsqueeze(-1), math.nan, td["next", "logits"])

    def f(x, p):
        entries = td.clone().set(("next", "logits"), x).set("auxiliary_logits", p)
        return total(disco_agent_loss(entries))

    assert_close(f(junk, td["auxiliary_logits"]), total(disco_agent_loss(td)))
    slopes = grad(f, (0, 1))(junk, td["auxiliary_logits"])
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("size", [80.0, 800.0, math.inf])
def test_certain_predictions_leave_no_nan(td, size):
    """Probabilities of exactly 0 and 1, alike in target and prediction."""
    one_hot = torch.zeros(2, 5, 4, dtype=D)
    one_hot[..., 1:] = -size
    policy = one_hot[..., :3]
    sure = {
        "logits": policy,
        "policy_target_logits": policy,
        "prediction": one_hot,
        "prediction_target_logits": one_hot,
        "action_prediction": one_hot.unsqueeze(-2).expand(2, 5, 3, 4),
        "action_prediction_target_logits": one_hot,
        "auxiliary_logits": policy.unsqueeze(-2).expand(2, 5, 3, 3),
    }
    td = td.clone().update(sure).set(("next", "logits"), policy)

    def f(entries):
        return total(disco_agent_loss(td.copy().update(entries)))

    def divergence(x):
        target = td.clone().set("policy_target_logits", x)
        return disco_regularizer_loss(target.set(("target", "logits"), x))["loss_target_kl"]

    for name in ("policy_kl", "prediction_kl", "action_prediction_kl", "auxiliary_kl"):
        assert disco_agent_loss(td)[name].abs() < 1e-12
    slopes = grad(f)(sure)
    assert all(slope.isfinite().all() for slope in slopes.values())
    assert divergence(policy).abs() < 1e-12 and grad(divergence)(policy).isfinite().all()
    value = grad(lambda x: total(disco_agent_loss(td.copy().set("value_target", x))))
    assert value(torch.full((2, 5), 1e9, dtype=D)).isfinite().all()


def test_the_meta_loss_is_its_equations(td):
    hyper = {"policy_entropy_coeff": 0.3, "prediction_entropy_coeff": 0.2}
    out = disco_meta_loss(td, **hyper, action_prediction_entropy_coeff=0.1, reduction="none")
    assert_close(
        out["loss_objective"], policy_gradient_loss(td, reduction="none")["loss_objective"]
    )
    for i in np.ndindex(*td.shape):
        z = td["action_prediction"][i][int(td["action"][i])]
        for name, coeff, logits in (
            ("policy", 0.3, td["logits"][i]),
            ("prediction", 0.2, td["prediction"][i]),
            ("action_prediction", 0.1, z),
        ):
            p = softmax(logits.numpy())
            wanted = torch.tensor(coeff * (p * np.log(p)).sum())
            assert_close(out[f"loss_{name}_entropy"][i], wanted)
    plain = disco_meta_loss(td)
    for name, coeff, metric in (
        ("policy", 1e-2, "entropy"),
        ("prediction", 1e-3, "prediction_entropy"),
        ("action_prediction", 1e-3, "action_prediction_entropy"),
    ):
        assert_close(plain[f"loss_{name}_entropy"], -coeff * plain[metric])


def test_the_regularizer_is_its_equations(td):
    out = disco_regularizer_loss(td)
    for name in ("policy", "prediction", "action_prediction"):
        wanted = 1e-3 * td[f"{name}_target_logits"].mean().square()
        assert_close(out[f"loss_{name}_mean"], wanted)
    held, target = td["target", "logits"], td["policy_target_logits"]
    wanted = 1e-2 * np.mean([kl(held[i], target[i]) for i in np.ndindex(2, 5)])
    assert_close(out["loss_target_kl"], torch.tensor(wanted))
    mask = torch.tensor(np.random.default_rng(0).random((2, 5)) < 0.6)
    masked = disco_regularizer_loss(td.clone().set("mask", mask))
    for name in ("policy", "prediction", "action_prediction"):
        wanted = 1e-3 * td[f"{name}_target_logits"][mask].mean().square()
        assert_close(masked[f"loss_{name}_mean"], wanted)


def test_an_action_may_be_one_hot(td):
    one_hot = td.clone().set("action", torch.nn.functional.one_hot(td["action"], 3))
    for reducer in (disco_agent_loss, disco_meta_loss):
        assert_close(total(reducer(one_hot)), total(reducer(td)))


@pytest.mark.parametrize(
    ("change", "hyper", "error", "text"),
    [
        (
            lambda td: td.set("action_prediction", torch.zeros(2, 5, 3, 6)),
            {},
            ValueError,
            r"action_prediction has shape \(2, 5, 3, 6\), expected \[2, 5, 3, 4\] \(from logits",
        ),
        (
            lambda td: td.set("auxiliary_logits", torch.zeros(2, 5, 3)),
            {},
            ValueError,
            r"auxiliary_logits has shape \(2, 5, 3\), expected \[2, 5, 3, 3\] \(from logits",
        ),
        (
            lambda td: td.set("action_value_logits", torch.zeros(2, 5, 2, 5)),
            {},
            ValueError,
            r"action_value_logits has shape \(2, 5, 2, 5\), expected \[2, 5, 3, K\] \(from logits",
        ),
        (
            lambda td: td.set("action", td["action"] + 3),
            {},
            ValueError,
            r"action holds an index outside of 0 to 2 \(logits has 3 actions\)",
        ),
        (lambda td: td.exclude("action_prediction"), {}, ValueError, "td has no 'action_predicti"),
        (
            lambda td: td,
            {"support": SUPPORT[1:]},
            ValueError,
            r"support has shape \(4,\), expected \[5\] \(from action_value_logits\)",
        ),
        (lambda td: td, {"support": SUPPORT.long()}, TypeError, "support has dtype int64"),
        (lambda td: td, {"tx": (abs, abs)}, TypeError, "tx is a tuple, expected a TxPair"),
        (
            lambda td: td.set(("next", "terminated"), torch.zeros(2, 5)),
            {},
            TypeError,
            "next.terminated has dtype float32, expected bool",
        ),
    ],
)
def test_bad_input(td, change, hyper, error, text):
    with pytest.raises(error, match=f"^disco_agent_loss: .*{text}") as caught:
        disco_agent_loss(change(td), **hyper)
    assert "\n" not in str(caught.value)
