# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportOptionalOperand=false
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch.func import grad
from torch.testing import assert_close

from losses import (
    add_advantage,
    discovered_policy_loss,
    ppo_clip_loss,
    ppo_kl_penalty_loss,
    ppo_loss,
    total,
)
from tests.losses.two_policies import (
    D,
    N,
    cast,
    every,
    finished,
    normal,
    replaced,
)

# ---- numbers that a long run meets


def met(log_ratios, advantages, dtype=torch.float32, **entries):
    """A td whose steps have these log-ratios and advantages, at a policy of two equal actions."""
    n = len(log_ratios)
    half = torch.full((n,), 0.5, dtype=dtype).log()
    entries = {
        "logits": torch.zeros(n, 2, dtype=dtype),
        "action": torch.zeros(n, dtype=torch.int64),
        "action_log_prob": half - torch.tensor(log_ratios, dtype=dtype),
        "advantage": torch.tensor(advantages, dtype=dtype),
        **entries,
    }
    behavior = TensorDict({"logits": torch.zeros(n, 2, dtype=dtype)}, [n])
    return TensorDict({**entries, "behavior": behavior}, [n])


def objective(reducer, td, **hyper):
    """The objective per step, and its gradients in the logits and in the advantage."""

    def per_step(logits, advantage):
        given = replaced(td, logits=logits, advantage=advantage)
        out = reducer(given, critic_coeff=None, reduction="none", **hyper)["loss_objective"]
        return out.sum(), out

    (of_logits, of_advantage), out = grad(per_step, (0, 1), has_aux=True)(
        td["logits"], td["advantage"]
    )
    return out, of_logits, of_advantage


@pytest.mark.parametrize("tensor", [False, True])
def test_a_ratio_that_the_clip_cuts_off_may_be_of_any_size(tensor):
    eps = torch.tensor(0.2) if tensor else 0.2
    far = [80.0, 100.0, 1000.0, torch.inf, -80.0, -1000.0, -torch.inf]
    td = met(far, [1.0, 2.0, 1.0, 1.0, -1.0, -2.0, -1.0])
    out, of_logits, of_advantage = objective(ppo_clip_loss, td, eps=eps)
    assert_close(out, torch.tensor([-1.2, -2.4, -1.2, -1.2, 0.8, 1.6, 0.8]))
    assert (of_logits == 0).all()
    assert_close(of_advantage, torch.tensor([-1.2] * 4 + [-0.8] * 3))
    slope = grad(lambda x: total(ppo_clip_loss(td, eps=x, critic_coeff=None)))
    assert_close(slope(torch.tensor(0.2)), torch.tensor(-(1 + 2 + 1 + 1 + 1 + 2 + 1) / 7))


@pytest.mark.parametrize("reducer", [ppo_clip_loss, discovered_policy_loss])
def test_an_advantage_of_zero_at_a_ratio_out_of_range(reducer):
    out, of_logits, of_advantage = objective(reducer, met([100.0, 1000.0, -100.0], [0.0] * 3))
    assert (out == 0).all() and (of_logits == 0).all() and of_advantage.isfinite().all()


@every
def test_log_ratios_of_eighty(reducer):
    td = met([80.0, -80.0, 80.0, -80.0], [1.0, 1.0, -1.0, -1.0])
    out, of_logits, of_advantage = objective(reducer, td)
    exact = objective(reducer, cast(td, D))
    for found, right in zip((out, of_logits, of_advantage), exact, strict=True):
        assert found.isfinite().all()
        assert_close(found.double(), right, rtol=1e-4, atol=1e-6)
    means = reducer(td, critic_coeff=None)
    assert all(x.isfinite() for x in means.values())
    assert_close(means["ESS"], torch.tensor(0.5))  # two of four steps have all the weight


def test_a_discovered_drift_at_any_ratio():
    td = met([100.0, 1000.0, -100.0, -1000.0], [1.0, 2.0, 1.0, -1.0])
    out, of_logits, of_advantage = objective(discovered_policy_loss, td)
    assert_close(out[:3], torch.tensor([-3.0, -4.0, 0.0]), atol=1e-1, rtol=0)
    assert out.isfinite().all() and of_logits.isfinite().all() and of_advantage.isfinite().all()
    for name in ("alpha", "beta"):
        width = torch.tensor(0.7)
        slope = grad(lambda x, n=name: objective(discovered_policy_loss, td, **{n: x})[0].sum())
        assert slope(width).isfinite()


@every
def test_equal_advantages_normalized_are_zero(reducer):
    td = met([0.1, -0.3, 0.5, 0.0], [0.7] * 4)
    out, of_logits, of_advantage = objective(reducer, td, normalize_advantage=True)
    assert (out == 0).all() and (of_logits == 0).all() and of_advantage.isfinite().all()
    assert reducer(td[:1], critic_coeff=None, normalize_advantage=True)["loss_objective"] == 0


@every
@pytest.mark.parametrize("key", ["logits", "probs"])
def test_an_action_that_the_policy_rules_out(reducer, key):
    """Probability 0 now, some before: no gain, and no NaN."""
    td = met([0.0, 0.0], [1.0, 1.0]).exclude("logits")
    values = {"logits": [-torch.inf, 0.0], "probs": [0.0, 1.0]}[key]
    x = torch.tensor([values, values])

    def loss(x):
        return reducer(replaced(td, **{key: x}), critic_coeff=None)["loss_objective"]

    if reducer is ppo_kl_penalty_loss:  # that one is infinitely far from the policy before
        behavior = TensorDict({key: x}, [2])
        td = replaced(td, behavior=behavior)
    assert loss(x).abs() < 1e-30
    slope = grad(lambda x: total(reducer(replaced(td, **{key: x}), critic_coeff=None)))(x)
    assert slope.isfinite().all()


def test_an_action_that_the_policy_rules_out_and_that_was_bad():
    td = met([0.0, 0.0], [-1.0, -1.0], logits=torch.tensor([[-torch.inf, 0.0]] * 2))
    out, of_logits, _ = objective(ppo_clip_loss, td)
    assert_close(out, torch.tensor([0.8, 0.8]))
    assert (of_logits == 0).all()


@every
def test_certain_policies(reducer):
    """Probabilities of exactly 0 and 1, the same as before."""
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    more = {"probs": certain, "action": torch.tensor([0, 1]), "action_log_prob": torch.zeros(2)}
    behavior = TensorDict({"probs": certain}, [2])
    td = met([0.0, 0.0], [1.0, -2.0], **more).exclude("logits").set("behavior", behavior)
    out = reducer(td, critic_coeff=None)
    assert_close(out["loss_objective"], torch.tensor(0.5))
    assert all(x.isfinite() for x in out.values()) and out["ESS"] == 1
    slope = grad(lambda x: total(reducer(replaced(td, probs=x), critic_coeff=None)))(certain)
    assert slope.isfinite().all()


@every
def test_masked_steps_have_no_number_at_all(reducer):
    td = finished(4, 5)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    widths = {n: torch.full((4, 5), 0.5, dtype=D) for n in ("alpha", "beta", "eps", "kl_coeff")}
    clean = replaced(td, mask=mask, **widths)

    def spoil(x):
        if not x.is_floating_point():
            return x
        return torch.where(mask.reshape(4, 5, *[1] * (x.dim() - 2)), x, torch.nan)

    spoiled = clean.apply(spoil)
    hyper = {"normalize_advantage": True, "value_clip": 0.3}
    for key, x in reducer(clean, **hyper).items():
        assert_close(reducer(spoiled, **hyper)[key], x)

    def loss(x, y, td):
        return total(reducer(replaced(td, logits=x, state_value=y), **hyper))

    for found, right in zip(
        *(grad(loss, (0, 1))(t["logits"], t["state_value"], t) for t in (spoiled, clean)),
        strict=True,
    ):
        assert_close(found, right)
        assert (found[~mask] == 0).all() and (found[mask] != 0).any()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_stays(reducer, dtype):
    td = cast(finished(N), dtype)
    for key, x in reducer(td, value_clip=0.3, normalize_advantage=True).items():
        assert x.dtype == dtype, key


# ---- what is read


@every
def test_an_actor_alone(reducer):
    td = finished(N).exclude("state_value", "value_target")
    out = reducer(td, critic_coeff=None)
    assert "loss_critic" not in out.keys() and "explained_variance" not in out.keys()
    assert_close(out["loss_objective"], reducer(finished(N))["loss_objective"])
    name = reducer.__name__
    with pytest.raises(ValueError, match=f"^{name}: the td has no 'state_value'.*critic_coeff=Non"):
        reducer(td)
    entry = reducer(replaced(finished(N), critic_coeff=normal(N).abs()), critic_coeff=None)
    assert entry["loss_critic"] != 0


@every
def test_targets_made_inside_are_those_made_outside(reducer, trajectory):
    td = trajectory(3).set("action_log_prob", normal(3, 6) - 1)
    td["behavior"] = TensorDict({"logits": normal(3, 6, 3, seed=4)}, [3, 6])
    expected = reducer(add_advantage(td, 0.9, 0.8))
    for key, x in reducer(td, gamma=0.9, lmbda=0.8).items():
        assert_close(x, expected[key])

    def inside(x, y):
        changed = td.clone().set("state_value", x).set(("next", "state_value"), y)
        return total(reducer(changed, gamma=0.9, lmbda=0.8))

    def outside(x):
        return total(reducer(add_advantage(td, 0.9, 0.8).copy().set("state_value", x)))

    of_value, of_next = grad(inside, (0, 1))(td["state_value"], td["next", "state_value"])
    assert_close(of_value, grad(outside)(td["state_value"]))
    assert (of_next == 0).all()
    with pytest.raises(ValueError, match=f"^{reducer.__name__}: gamma is given, but the td"):
        reducer(add_advantage(td, 0.9, 0.8), gamma=0.9)
    with pytest.raises(ValueError, match=f"^{reducer.__name__}: the td has no 'advantage'"):
        reducer(td)


@every
def test_an_entropy_that_does_not_exist(reducer):
    class Bare(torch.distributions.Independent):
        def __init__(self, loc, scale):
            super().__init__(torch.distributions.Normal(loc, scale), 1)

        def entropy(self):
            raise NotImplementedError

    td = finished(N, continuous=True)
    out = reducer(td, Bare, entropy_coeff=0.0)
    assert out["loss_entropy"] == 0 and "entropy" not in out.keys()
    with pytest.raises(ValueError, match=f"^{reducer.__name__}: Bare has no entropy"):
        reducer(td, Bare)


def test_bad_input():
    td = finished(N)
    with pytest.raises(ValueError, match="^ppo_loss: the td has no 'action_log_prob'; its keys"):
        ppo_loss(td.exclude("action_log_prob"))
    with pytest.raises(ValueError, match="no 'behavior.state_value'.*value_clip is the way"):
        ppo_clip_loss(td.exclude(("behavior", "state_value")), value_clip=0.2)
    with pytest.raises(ValueError, match=r"^ppo_clip_loss: distance's result has shape \(\)"):
        ppo_clip_loss(td, distance=F.mse_loss)
    with pytest.raises(ValueError, match=r"^ppo_loss: the td has batch size \[0\], expected"):
        ppo_loss(td[:0])
    for name in ("alpha", "beta"):
        with pytest.raises(ValueError, match=f"^discovered_policy_loss: {name} is 0, expected a"):
            discovered_policy_loss(td, **{name: 0})
    with pytest.raises(TypeError, match="^ppo_loss: action_log_prob has dtype int64"):
        ppo_loss(replaced(td, action_log_prob=torch.zeros(N, dtype=torch.int64)))
