# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule as Probabilistic
from tensordict.nn import ProbabilisticTensorDictSequential as Policy
from tensordict.nn import TensorDictModule as Module
from torch.distributions import Categorical, Independent, Normal
from torch.func import grad, vmap
from torch.testing import assert_close
from torchrl.objectives import BCLoss, DTLoss, OnlineDTLoss

from losses import (
    absolute_error,
    bc_loss,
    distillation_loss,
    independent_normal,
    lagrange_dual,
    sampled_cross_entropy,
    total,
)
from tests.losses.torchrl_offline import A, B, D, Given, normal, observed

S = 4
pytestmark = pytest.mark.filterwarnings("ignore:The name target_actor_network_params:UserWarning")


def gaussian():
    normal_of = {"distribution_class": lambda loc, scale: Independent(Normal(loc, scale), 1)}
    return Policy(
        Module(Given(normal(B, 2)), ["observation"], ["loc"]),
        Module(Given(normal(B, 2, seed=1).exp()), ["observation"], ["scale"]),
        Probabilistic(["loc", "scale"], ["action"], **normal_of),
    )


def parameters(oracle):
    return list(oracle.actor_network_params.values(True, True))


# ---- behavior cloning


def test_bc_of_a_gaussian_is_torchrls():
    td, oracle = observed(normal(B, 2, seed=2)), BCLoss(gaussian())
    expected = oracle(td.clone())["loss_bc"]
    found = parameters(oracle)

    def ours(loc, scale):
        return total(bc_loss(td.copy().update({"loc": loc, "scale": scale}), independent_normal))

    args = tuple(x.detach() for x in found)
    assert_close(ours(*args), expected.detach())
    for slope, wanted in zip(
        grad(ours, (0, 1))(*args), torch.autograd.grad(expected, found), strict=True
    ):
        assert_close(slope, wanted)


def test_bc_of_discrete_actions_is_torchrls():
    td, logits = observed(torch.arange(B) % A), normal(B, A)
    oracle = BCLoss(Module(Given(logits), ["observation"], ["action"]))
    expected = oracle(td.clone())["loss_bc"]
    out = bc_loss(td.copy().set("logits", logits))
    assert_close(out["loss_bc"], expected.detach())
    slope = grad(lambda x: total(bc_loss(td.copy().set("logits", x))))(logits)
    assert_close(slope, torch.autograd.grad(expected, parameters(oracle))[0])
    one_hot = td.copy().update({"logits": logits, "action": F.one_hot(td["action"], A)})
    assert_close(bc_loss(one_hot)["loss_bc"], out["loss_bc"])


@pytest.mark.parametrize("name", ["l2", "l1"])
@pytest.mark.parametrize("peer", [BCLoss, DTLoss])
def test_bc_of_a_prediction_is_torchrls(peer, name):
    td, prediction = observed(normal(B, 2, seed=2)), normal(B, 2)
    actor = Module(Given(prediction), ["observation"], ["action"])
    oracle = peer(actor, loss_function=name)
    expected = oracle(td.clone())["loss_bc" if peer is BCLoss else "loss"]
    hyper = {} if name == "l2" else {"distance": absolute_error}

    def ours(x):
        return total(bc_loss(td.copy().set("action_actor", x), **hyper))

    assert_close(ours(prediction), expected.detach())
    assert_close(grad(ours)(prediction), torch.autograd.grad(expected, parameters(oracle))[0])


def test_each_step_is_the_mean_of_its_components():
    """TorchRL's reduction "none" keeps them apart."""
    td = observed(normal(B, 2, seed=2)).set("action_actor", normal(B, 2))
    found = bc_loss(td, reduction="none")["loss_bc"]
    assert_close(found, (td["action"] - td["action_actor"]).square().mean(-1))
    flat = td.copy().update({k: td[k][:, 0] for k in ("action", "action_actor")})
    expected = (flat["action"] - flat["action_actor"]).square().mean()
    assert_close(bc_loss(flat)["loss_bc"], expected)


def test_a_pad_mask_is_the_masks_negation():
    pad = torch.arange(B) % 3 == 1
    td = observed(normal(B, 2, seed=2)).set("action_actor", normal(B, 2))
    oracle = BCLoss(Module(Given(td["action_actor"]), ["observation"], ["action"]))
    oracle.set_keys(pad_mask="pad")
    expected = oracle(td.select("observation", "action").set("pad", pad))["loss_bc"]
    spoiled = td.copy().set("mask", ~pad)
    spoiled["action_actor"] = torch.where(pad[:, None], torch.nan, td["action_actor"])
    assert_close(bc_loss(spoiled)["loss_bc"], expected.detach())
    slope = grad(lambda x: total(bc_loss(spoiled.copy().set("action_actor", x))))
    assert slope(spoiled["action_actor"]).isfinite().all()


def test_the_online_decision_transformer_is_torchrls():
    td = observed(normal(B, 2, seed=2))
    oracle = OnlineDTLoss(gaussian(), alpha_init=0.3, target_entropy=-2.0)
    torch.manual_seed(0)
    expected = oracle(td.clone())
    found = parameters(oracle)

    def outputs(loc, scale):
        torch.manual_seed(0)
        dist = Independent(Normal(loc, scale), 1)
        log_prob = dist.log_prob(dist.rsample((1,)))[0]
        entries = {"loc": loc, "scale": scale, "action_log_prob_actor": log_prob}
        return td.copy().update(entries)

    args = tuple(x.detach().requires_grad_() for x in found)
    out = bc_loss(outputs(*args), independent_normal, entropy_coeff=oracle.alpha.to(D))
    assert_close(out["loss_bc"], expected["loss_log_likelihood"])
    assert_close(out["loss_entropy"], expected["loss_entropy"], check_dtype=False)
    assert_close(out["entropy"], expected["entropy"])
    slopes = torch.autograd.grad(total(out), args)
    wanted = expected["loss_log_likelihood"] + expected["loss_entropy"]
    for slope, other in zip(slopes, torch.autograd.grad(wanted, found), strict=True):
        assert_close(slope, other)
    log_alpha = oracle.log_alpha.detach().to(D)
    price = lagrange_dual(torch.tensor(-2.0, dtype=D), log_alpha.exp(), out["entropy"])
    assert_close(price, expected["loss_alpha"].detach().to(D))


def test_entropy_in_closed_form_where_there_is_no_sample():
    td = observed(torch.arange(B) % A).set("logits", normal(B, A))
    out = bc_loss(td, entropy_coeff=0.2)
    entropy = Categorical(logits=td["logits"]).entropy().mean()
    assert_close(out["loss_entropy"], -0.2 * entropy)
    assert_close(out["entropy"], entropy)
    assert set(bc_loss(td).keys()) == {"loss_bc"}
    entry = td.copy().set("entropy_coeff", torch.full((B,), 0.2, dtype=D))
    assert_close(bc_loss(entry), out)


# ---- distillation


def taught(teacher="logits"):
    value = normal(B, A, seed=1)
    value = value if teacher == "logits" else value.exp()
    entries = {"logits": normal(B, A), "teacher": TensorDict({teacher: value}, [B])}
    return TensorDict(entries, [B])


@pytest.mark.parametrize("teacher", ["logits", "probs"])
def test_distillation_of_a_teacher_is_its_cross_entropy(teacher):
    td = taught(teacher)
    p = Categorical(**{teacher: td["teacher", teacher]})
    out = distillation_loss(td)
    expected = F.cross_entropy(td["logits"], p.probs)
    assert_close(out["loss_distillation"], expected)
    assert_close(out["kl"], expected - p.entropy().mean())
    own = distillation_loss(td.copy().set(("teacher", teacher), td["logits"].exp().log()))
    if teacher == "logits":
        assert_close(own["kl"], torch.zeros((), dtype=D))


def test_distillation_carries_gradient_to_the_teacher(central):
    """Rlax stops there; here a teacher is as differentiable as it was made."""
    td = taught()

    def f(x):
        return total(distillation_loss(td.copy().set("teacher", TensorDict({"logits": x}, [B]))))

    found = grad(f)(td["teacher", "logits"])
    assert_close(found, central(f, td["teacher", "logits"]), rtol=1e-6, atol=1e-8)
    assert found.abs().sum() > 0


def drawn():
    entries = {
        "logits": normal(B, A),
        "action_samples": torch.arange(B * S).reshape(B, S) % A,
        "policy_weight": normal(B, S, seed=1).abs(),
    }
    return TensorDict(entries, [B])


def test_distillation_of_samples_is_its_equation():
    td = drawn()
    logits = td["logits"].numpy()
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    terms = [
        td["policy_weight"][t, s].item() * log_probs[t, td["action_samples"][t, s]]
        for t in range(B)
        for s in range(S)
    ]
    assert_close(distillation_loss(td)["loss_distillation"].item(), -np.mean(terms))
    one_hot = td.copy().set("action_samples", F.one_hot(td["action_samples"], A))
    assert_close(distillation_loss(one_hot), distillation_loss(td))


def test_distillation_of_real_vectors():
    td = TensorDict({"loc": normal(B, 2), "scale": normal(B, 2, seed=1).exp()}, [B])
    td["action_samples"], td["policy_weight"] = normal(B, S, 2, seed=2), normal(B, S, seed=3).abs()
    dist = Normal(td["loc"].unsqueeze(1), td["scale"].unsqueeze(1))
    expected = -(td["policy_weight"] * dist.log_prob(td["action_samples"]).sum(-1)).mean()
    for made in (independent_normal, Normal):
        assert_close(distillation_loss(td, made)["loss_distillation"], expected)
    mask = torch.arange(B) != 1
    spoiled = td.clone().set("mask", mask)
    for key in ("loc", "scale", "action_samples", "policy_weight"):
        spoiled[key][1] = torch.nan
    clean = distillation_loss(td[mask], independent_normal)
    assert_close(distillation_loss(spoiled, independent_normal), clean)
    slope = grad(
        lambda x: total(distillation_loss(spoiled.copy().set("loc", x), independent_normal))
    )
    assert slope(spoiled["loc"]).isfinite().all()


def test_all_actions_as_samples_are_a_teacher():
    td = taught()
    samples = {
        "action_samples": torch.arange(A).expand(B, A),
        "policy_weight": A * td["teacher", "logits"].softmax(-1),
    }
    found = distillation_loss(td.exclude("teacher").update(samples))
    assert_close(found["loss_distillation"], distillation_loss(td)["loss_distillation"])


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_probabilities_of_zero_and_one(dtype):
    """0 log 0 is 0; what is forbidden to the policy and not to the teacher costs infinity."""
    sure = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=dtype).expand(B, A)
    td = TensorDict({"logits": sure, "teacher": TensorDict({"logits": sure}, [B])}, [B])

    def f(x, y):
        entries = {"logits": x, "teacher": TensorDict({"logits": y}, [B])}
        return total(distillation_loss(TensorDict(entries, [B])))

    assert distillation_loss(td)["loss_distillation"] == 0 and distillation_loss(td)["kl"] == 0
    assert all(s.isfinite().all() for s in grad(f, (0, 1))(sure, sure))
    assert f(sure, torch.zeros_like(sure)) == torch.inf
    probs = td.copy().set("teacher", TensorDict({"probs": sure.exp()}, [B]))
    assert distillation_loss(probs)["loss_distillation"] == 0

    def g(x, w):
        log_prob = torch.tensor([0.0, -torch.inf, -1.0], dtype=dtype)
        return sampled_cross_entropy(log_prob + x, w)

    zero, weight = torch.zeros(3, dtype=dtype), torch.tensor([1.0, 0.0, 2.0], dtype=dtype)
    assert g(zero, weight) == 2
    assert all(s.isfinite().all() for s in grad(g, (0, 1))(zero, weight))
    assert g(zero, torch.ones(3, dtype=dtype)) == torch.inf
    bc = TensorDict({"logits": sure, "action": torch.zeros(B, dtype=torch.long)}, [B])
    slope = grad(lambda x: total(bc_loss(bc.copy().set("logits", x), entropy_coeff=0.1)))(sure)
    assert bc_loss(bc)["loss_bc"] == 0 and slope.isfinite().all()


def test_mapped_over_teachers():
    td = taught()
    many = torch.stack([td["teacher", "logits"] * s for s in (0.5, 1.0, 2.0)])

    def f(x):
        return total(distillation_loss(td.copy().set("teacher", TensorDict({"logits": x}, [B]))))

    assert_close(vmap(f)(many), torch.stack([f(x) for x in many]))


# ---- bad input and purity


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: bc_loss(
                observed(normal(B, 2)).update({"loc": normal(B, 2), "action_actor": normal(B, 2)})
            ),
            ValueError,
            "bc_loss: the td holds 'action_actor' and 'loc', and only one may be the policy",
        ),
        (
            lambda: bc_loss(
                observed(normal(B, 2)).update(
                    {"params": {"a": {"logits": normal(B, 2)}}, "action_actor": normal(B, 2)}
                )
            ),
            ValueError,
            "bc_loss: the td holds 'action_actor' and 'params', and only one may be the policy",
        ),
        (
            lambda: bc_loss(
                observed(normal(B, 2)).set("action_actor", normal(B, 2)), entropy_coeff=0.1
            ),
            ValueError,
            "bc_loss: entropy_coeff is given.*deterministic",
        ),
        (
            lambda: bc_loss(observed(normal(B, 2)).set("action_actor", normal(B, 3))),
            ValueError,
            r"bc_loss: action has shape \(6, 2\), expected \[6, 3\] \(from action_actor\)",
        ),
        (
            lambda: bc_loss(
                observed(normal(B, 2)).set("action_actor", normal(B, 2)), distance=F.mse_loss
            ),
            ValueError,
            r"bc_loss: distance's result has shape \(\), expected \[6, 2\]",
        ),
        (
            lambda: bc_loss(observed(torch.arange(B)).set("action_actor", normal(B))),
            TypeError,
            "bc_loss: action has dtype int64",
        ),
        (lambda: bc_loss(observed(normal(B, 2))), ValueError, "bc_loss: the td has no 'logits'"),
        (
            lambda: distillation_loss(taught().exclude("teacher")),
            ValueError,
            "distillation_loss: the td has no 'policy_weight'",
        ),
        (
            lambda: distillation_loss(drawn().exclude("action_samples")),
            ValueError,
            "no 'action_samples'.*Or give a nested td 'teacher'",
        ),
        (
            lambda: distillation_loss(taught().exclude(("teacher", "logits"))),
            ValueError,
            "no 'teacher.logits'",
        ),
        (
            lambda: distillation_loss(taught().set("teacher", normal(B, A))),
            TypeError,
            "teacher is a Tensor, expected a TensorDict",
        ),
        (
            lambda: distillation_loss(taught().set(("teacher", "logits"), normal(B, 4))),
            ValueError,
            r"teacher.logits has shape \(6, 4\), expected \[6, 3\] \(from the policy's number",
        ),
        (
            lambda: distillation_loss(drawn().set("action_samples", torch.full((B, S), 7))),
            ValueError,
            "action_samples holds an index outside of 0 to 2",
        ),
        (
            lambda: distillation_loss(
                TensorDict(
                    {
                        "loc": normal(B, 2),
                        "scale": normal(B, 2).exp(),
                        "teacher": TensorDict({}, [B]),
                    },
                    [B],
                ),
                independent_normal,
            ),
            ValueError,
            "the td has no 'teacher.logits'.*or loc and scale",
        ),
        (
            lambda: sampled_cross_entropy(torch.ones(2, 3), torch.ones(3)),
            ValueError,
            r"weight has shape \(3,\), expected \(2, 3\) \(from log_prob\)",
        ),
        (
            lambda: sampled_cross_entropy(torch.tensor(1.0), torch.tensor(1.0)),
            ValueError,
            "actions last",
        ),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_input_is_not_changed(untouched):
    first = observed(torch.arange(B) % A).set("logits", normal(B, A))
    second = observed(normal(B, 2)).set("action_actor", normal(B, 2))
    with untouched(first, second, taught(), drawn()):
        for td in (first, second):
            bc_loss(td, reduction="none")
        for td in (taught(), drawn()):
            distillation_loss(td, reduction="none")
