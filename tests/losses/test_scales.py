"""Scales that a long run meets, float32: equal advantages, and numbers whose square is none.

``test_long_runs`` has what all functions have in common.
"""

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

import losses
from losses import independent_normal, tanh_normal
from tests.losses.extremes import SIZE, TAKEN, finite, of_td, policy_td

# -------------------------------------------------------------------------------- equal advantages


@pytest.mark.parametrize("count", [1, 7, 10, 100, 4096])
@pytest.mark.parametrize("number", [0.0, 0.1, 3.3, 1000.1, -123456.7])
@pytest.mark.parametrize("masked", [False, True])
def test_equal_advantages_become_zero(count, number, masked):
    """Also where their mean, in float32, is not quite their number: nothing is blown up."""
    td = policy_td(logits=torch.zeros(*SIZE, 3), action=TAKEN)[0, :1].expand(count).clone()
    td["advantage"] = td["next", "reward"] = torch.full((count,), number)
    td["next", "done"] = td["next", "terminated"] = torch.ones(count, dtype=torch.bool)
    td["state_value"] = torch.zeros(count)
    if masked:
        td["mask"] = torch.arange(count) % 3 != 1
    raw = td.exclude("advantage", "value_target")
    assert losses.add_advantage(raw, 0.9, 0.8, normalize=True)["advantage"].abs().max() < 1e-2

    def call(td, _):
        return losses.ppo_clip_loss(td, normalize_advantage=True, eps=10.0)

    assert call(td, {})["loss_objective"].abs() < 1e-2
    finite(*of_td(call, td, {}))


@pytest.mark.parametrize("masked", [False, True])
def test_advantages_that_are_equal_and_no_eps(masked):
    """0 / 0 is taken as 0. Those that differ by the least number of float32 need an eps."""
    td = policy_td(logits=torch.zeros(*SIZE, 3), action=TAKEN)
    td["next", "done"] = td["next", "terminated"] = torch.ones(SIZE, dtype=torch.bool)
    if masked:
        td["mask"] = torch.tensor([[True, True, False, True, True]]).expand(SIZE)
    raw = td.exclude("advantage", "value_target")
    raw["state_value"] = torch.zeros(SIZE)

    def call(td, hyper):
        return losses.add_advantage(td, 0.9, 0.8, normalize=True, **hyper).select("advantage")

    raw["next", "reward"] = torch.full(SIZE, 0.1)
    assert (call(raw, {"eps": 0.0})["advantage"] == 0).all()
    finite(*of_td(call, raw, {"eps": torch.tensor(0.0)}))
    raw["next", "reward"] = torch.linspace(0, 1e-44, 10).reshape(SIZE)
    finite(*of_td(call, raw, {"eps": torch.tensor(1e-6)}))


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e18, 1e20, 1e30])
def test_normalized_advantages_of_any_size(size):
    """The deviation's square may be beyond float32; the deviation is not."""
    td = policy_td(logits=torch.zeros(*SIZE, 3), action=TAKEN)
    td["state_value"] = td["next", "state_value"] = torch.zeros(SIZE)
    td["next", "done"] = torch.ones(SIZE, dtype=torch.bool)
    raw = td.exclude("advantage", "value_target")
    right = losses.add_advantage(raw, 0.9, 0.8, normalize=True, eps=0.0)["advantage"]
    raw["next", "reward"] = raw["next", "reward"] * size
    found = losses.add_advantage(raw, 0.9, 0.8, normalize=True, eps=0.0)["advantage"]
    assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e-22, 1.0, 1e18, 1e20, 1e30])
def test_a_slope_of_any_size_is_clipped(size):
    slope = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, -1.0]]) * size
    td = TensorDict({"action_actor": torch.zeros(2, 3), "action_gradient": slope}, [2])
    target = losses.add_action_target(td, 0.5 * size)["action_target"]
    assert_close(target / size, torch.tensor([[0.3, 0.4, 0.0], [0.0, 0.0, -0.5]]))
    run, inputs = of_td(lambda td, _: losses.add_action_target(td, 0.5 * size), td, {})
    finite(run, inputs)


def test_weights_of_no_step():
    """The E-step of V-MPO, where a mask leaves out all of them."""
    td = policy_td(logits=torch.zeros(*SIZE, 3), action=TAKEN)
    td["mask"] = torch.zeros(SIZE, dtype=torch.bool)
    hyper = {"temperature": torch.tensor(0.5)}
    assert (losses.add_vmpo_weight(td, **hyper)["policy_weight"] == 0).all()
    weights = losses.vmpo_weights(td["advantage"], 0.5, mask=td["mask"])
    assert (weights == 0).all()
    dual = losses.vmpo_temperature_dual(td["advantage"], 0.5, 0.1, mask=td["mask"])
    assert_close(dual, torch.tensor(0.05))

    def call(td, hyper):
        return losses.add_vmpo_weight(td, **hyper).select("policy_weight")

    finite(*of_td(call, td, hyper))


def test_a_root_of_zero_has_no_slope():
    """As the moments' docstring has it for a variance of 0 and no root_eps."""

    def scaled(variance):
        state = TensorDict({"mean": torch.zeros(()), "variance": variance, "weight": 1 + variance})
        return losses.ema_moments_normalize(state, torch.ones(()), eps=0.1, root_eps=0.0)

    assert torch.func.grad(scaled)(torch.zeros(())) == 0


def test_a_least_temperature_of_zero_is_never_reached():
    slope = torch.func.grad(lambda low: losses.bounded_log_alpha(torch.ones(2), low).sum())
    assert slope(torch.tensor(0.0)) == 0


@pytest.mark.parametrize("dist_class", [independent_normal, tanh_normal])
def test_a_collapsed_scale_at_the_mean(dist_class):
    """A scale whose square is below float32's least number."""
    inputs = {"loc": torch.zeros(1, 1), "scale": torch.full((1, 1), 1e-25)}
    value = dist_class(**inputs).log_prob(torch.zeros(1, 1))
    assert value.isfinite().all()
