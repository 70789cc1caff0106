# pyright: reportArgumentType=false, reportCallIssue=false
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch.func import grad, vmap
from torch.testing import assert_close
from torchrl.objectives.utils import _clip_value_loss

import losses
from losses import (
    absolute_error,
    add_advantage,
    clip_gradient,
    clipped_error,
    clipped_value_loss,
    expectile_error,
    expectile_loss,
    explained_variance,
    gae,
    half_squared_error,
    huber,
    huber_error,
    q_learning_loss,
    squared_error,
    td_error,
    value_loss,
)

D = torch.float64
DISTANCES = [squared_error, half_squared_error, absolute_error, huber_error, expectile_error]


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


# ---- distances


def test_squared_error_is_elementwise():
    assert squared_error(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])).tolist() == [1.0, 4.0]


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_broadcast_nothing(distance):
    name = distance.__name__
    with pytest.raises(
        ValueError, match=rf"^{name}: target has shape \(5, 1\), expected \(5,\) \("
    ):
        distance(torch.zeros(5), torch.zeros(5, 1))
    with pytest.raises(TypeError, match=f"^{name}: target has dtype int64"):
        distance(torch.zeros(5), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(TypeError, match=f"^{name}: prediction is a float"):
        distance(0.5, torch.zeros(5))


@pytest.mark.parametrize("dtype", [torch.float32, D, torch.bfloat16])
@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_keep_the_dtype(distance, dtype):
    x = torch.linspace(-3, 3, 7).to(dtype)
    assert distance(x, torch.zeros_like(x)).dtype == dtype
    if distance in (huber_error, expectile_error):
        one = torch.tensor(0.5, dtype=D)
        assert distance(x, torch.zeros_like(x), one).dtype == dtype


@pytest.mark.parametrize("delta", [1.0, 0.3, 5.0])
def test_huber_error_is_torchs(delta):
    a, b = 2 * normal(50, seed=1), normal(50, seed=2)
    assert_close(huber_error(a, b, delta), F.huber_loss(a, b, reduction="none", delta=delta))
    if delta == 1.0:
        assert_close(huber_error(a, b), F.smooth_l1_loss(a, b, reduction="none"))
    ours = grad(lambda x: huber_error(x, b, delta).sum())(a)
    assert_close(ours, (a - b).clamp(-delta, delta))


def test_huber_error_at_its_edges():
    x = torch.tensor([-torch.inf, -1.0, 0.0, 1.0, 80.0, torch.inf], dtype=D)
    slope = grad(lambda x: huber_error(x, torch.zeros_like(x)).sum())
    assert slope(x).tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0, 1.0]
    zero = torch.zeros((), dtype=D)
    assert grad(grad(lambda x: huber_error(x, zero)))(zero) == 1
    of_delta = grad(lambda d: huber_error(x[1:5], torch.zeros_like(x[1:5]), d).sum())
    assert of_delta(torch.tensor(2.0, dtype=D)) == 78  # |x| - delta, outside
    with pytest.raises(ValueError, match="huber_error: delta is 0.0, expected a number above 0"):
        huber_error(x, x, 0.0)


def test_huber_is_a_function_of_the_difference():
    a, b = 2 * normal(50, seed=1), normal(50, seed=2)
    delta = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=D) + 0.1
    assert_close(huber(a - b, delta), huber_error(a, b, delta))
    assert_close(huber(a), F.huber_loss(a, torch.zeros_like(a), reduction="none"))
    with pytest.raises(ValueError, match="^huber: delta is 0.0, expected a number above 0"):
        huber(a, 0.0)
    with pytest.raises(ValueError, match=r"^huber: delta has shape \(3,\), expected one that broa"):
        huber(a, torch.ones(3))
    with pytest.raises(TypeError, match="^huber: x is a float"):
        huber(1.0)


def test_half_squared_error_has_no_factor_in_its_slope():
    a, b = normal(5), normal(5, seed=1)
    assert_close(half_squared_error(a, b), 0.5 * squared_error(a, b))
    assert_close(grad(lambda x: half_squared_error(x, b).sum())(a), a - b)


def test_absolute_error_has_no_slope_at_zero():
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert grad(lambda x: absolute_error(x, torch.zeros(3)).sum())(x).tolist() == [-1.0, 0.0, 1.0]


def test_the_minimum_of_expectile_error_is_the_expectile():
    targets, x = normal(40), torch.zeros((), dtype=D, requires_grad=True)
    for _ in range(200):  # Newton's method
        error = expectile_error(x.expand(40), targets, 0.8).sum()
        (slope,) = torch.autograd.grad(error, x, create_graph=True)
        (bend,) = torch.autograd.grad(slope, x)
        x = (x - slope / bend).detach().requires_grad_()
    above, below = (targets - x).clamp(min=0).sum(), (x - targets).clamp(min=0).sum()
    assert_close(0.8 * above, 0.2 * below)
    a, b = normal(5), normal(5, seed=1)
    assert_close(expectile_error(a, b, 0.5), squared_error(a, b) / 2)
    with pytest.raises(ValueError, match=r"expectile is 1.1, expected a number from 0 to 1"):
        expectile_error(a, b, 1.1)
    with pytest.raises(ValueError, match=r"expectile has shape \(4,\), expected one that broadc"):
        expectile_error(a, b, torch.ones(4))


# ---- clip_gradient


def cubed(x, low, high):
    return clip_gradient(x, low, high).pow(3).sum()


def clipped(x, low, high):
    return (3 * x.square()).clamp(low, high)


def test_clip_gradient_is_the_identity_with_a_clipped_gradient(variant):
    x, low, high = normal(6), torch.tensor(-1.0, dtype=D), torch.tensor(0.5, dtype=D)
    assert_close(variant(lambda x: clip_gradient(x, low, high))(x), x, rtol=0, atol=0)
    found = variant(grad(cubed))(x, low, high)
    assert_close(found, clipped(x, low, high))
    assert found.max() == 0.5 and (found < 0.5).any()


def test_clip_gradient_is_differentiable_twice(variant, central):
    x, low, high = normal(6), torch.tensor(-1.0, dtype=D), torch.tensor(0.7, dtype=D)

    def energy(h):
        return (grad(cubed)(h[:6], low, h[6]) * h[:6].sin()).sum()

    def expected(h):
        return (clipped(h[:6], low, h[6]) * h[:6].sin()).sum()

    both = torch.cat([x, high[None]])
    found = variant(grad(energy))(both)
    assert_close(found, central(expected, both), rtol=1e-6, atol=1e-8)
    assert found[6].abs() > 0.1
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cubed(y, -1.0, 0.7), y, create_graph=True)
    (bend,) = torch.autograd.grad((slope * y.detach().sin()).sum(), y)
    inside = (3 * x.square() < 0.7).to(D)
    assert_close(bend, 6 * x * x.sin() * inside)


def test_clip_gradient_mapped_over_a_bound_alone():
    x, bounds = normal(4), torch.tensor([0.1, 1.0, 9.0], dtype=D)
    found = vmap(lambda high: grad(cubed)(x, -1.0, high))(bounds)
    assert_close(found, torch.stack([clipped(x, -1.0, b) for b in bounds]))


def test_clip_gradient_makes_a_huber_loss_of_a_square():
    x = 3 * normal(8)
    found = grad(lambda x: 0.5 * clip_gradient(x, -1.0, 1.0).square().sum())(x)
    assert_close(found, grad(lambda x: huber_error(x, torch.zeros_like(x)).sum())(x))


def test_clip_gradient_gives_no_view():
    x = torch.zeros(3)
    clip_gradient(x, -1.0, 1.0).add_(1)
    assert (x == 0).all()
    with pytest.raises(TypeError, match="clip_gradient: low is a str"):
        clip_gradient(x, "a", 1.0)
    with pytest.raises(ValueError, match=r"clip_gradient: high has shape \(2,\)"):
        clip_gradient(x, 0.0, torch.ones(2))
    with pytest.raises(TypeError, match="clip_gradient: x has dtype int64"):
        clip_gradient(torch.zeros(3).long(), -1.0, 1.0)


# ---- errors of values


def test_td_error_is_gae_without_a_trace(trajectory):
    td = trajectory(3)
    after, flags = td["next"], (td["next", "done"], td["next", "terminated"])
    args = [x.mT for x in (after["reward"], td["state_value"], after["state_value"])]
    found = td_error(args[1], args[0], args[2], flags[1].mT, 0.9)
    assert_close(found, gae(*args, flags[0].mT, flags[1].mT, 0.9, 0.0))


def test_td_error_of_a_terminated_step_does_not_look_ahead():
    value, reward = torch.zeros(3, dtype=D), torch.ones(3, dtype=D)
    after, ended = (
        torch.tensor([2.0, torch.nan, torch.inf], dtype=D),
        torch.tensor([False, True, True]),
    )
    assert td_error(value, reward, after, ended, 0.5).tolist() == [2.0, 1.0, 1.0]
    slope = grad(lambda a, g: td_error(value, reward, a, ended, g).sum(), (0, 1))
    of_after, of_gamma = slope(after, torch.tensor(0.5, dtype=D))
    assert of_after.tolist() == [0.5, 0.0, 0.0] and of_gamma == 2
    assert (
        td_error(value, reward, value, torch.ones(3, dtype=torch.bool), 0.9).tolist() == [1.0] * 3
    )
    assert td_error(value[0], reward[0], after[0], ended[0], 0.5) == 2  # a single number


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"reward": torch.zeros(3)},
            ValueError,
            r"reward has shape \(3,\), expected \(5,\) \(from",
        ),
        ({"terminated": torch.zeros(5)}, TypeError, "terminated has dtype float32, expected bool"),
        ({"value": torch.zeros(5).long()}, TypeError, "value has dtype int64"),
        ({"gamma": 1.5}, ValueError, "gamma is 1.5, expected a number from 0 to 1"),
        ({"gamma": torch.ones(4)}, ValueError, r"gamma has shape \(4,\), expected one that broadc"),
    ],
)
def test_bad_arguments_of_td_error(change, error, text):
    args = {name: torch.zeros(5) for name in ("value", "reward", "next_value")}
    args |= {"terminated": torch.zeros(5, dtype=torch.bool), "gamma": 0.9, **change}
    with pytest.raises(error, match=f"^td_error: {text}"):
        td_error(**args)


TORCHRL = {"l2": squared_error, "l1": absolute_error, "smooth_l1": huber_error}


@pytest.mark.parametrize("kind", TORCHRL)
def test_clipped_error_is_torchrls(kind):
    value, old, target = normal(40), normal(40, seed=1), normal(40, seed=2)
    distance = TORCHRL[kind]

    def oracle(value):
        plain = distance(value, target)
        return _clip_value_loss(old, value, torch.tensor(0.2, dtype=D), target, plain, kind)

    assert_close(clipped_error(value, old, target, 0.2, distance), oracle(value)[0])
    ours = grad(lambda v: clipped_error(v, old, target, 0.2, distance).sum())(value)
    assert_close(ours, grad(lambda v: oracle(v)[0].sum())(value))
    td = TensorDict({"state_value": value, "value_target": target}, [40])
    td["behavior"] = TensorDict({"state_value": old}, [40])
    out = clipped_value_loss(td, distance=distance, critic_coeff=0.5)
    assert_close(out["loss_critic"], 0.5 * oracle(value)[0].mean())
    assert_close(out["value_clip_fraction"], oracle(value)[1])


def test_clipping_never_lowers_the_error_and_a_wide_one_does_nothing():
    value, old, target = normal(40), normal(40, seed=1), normal(40, seed=2)
    plain = squared_error(value, target)
    assert (clipped_error(value, old, target, 0.1) >= plain).all()
    assert_close(clipped_error(value, old, target, 100.0), plain)
    still = clipped_error(value, old, target, 0.0)
    assert_close(still, torch.maximum(plain, squared_error(old, target)))
    with pytest.raises(ValueError, match="clipped_error: value_clip is -0.1, expected at least 0"):
        clipped_error(value, old, target, -0.1)


def test_explained_variance():
    target = normal(7, 3)
    assert_close(explained_variance(target, target), torch.ones((), dtype=D))
    mean = target.mean().expand(7, 3)
    assert explained_variance(mean, target).abs() < 1e-12
    noisy = target + 0.5 * normal(7, 3, seed=1)
    expected = 1 - (target - noisy).var(correction=0) / target.var(correction=0)
    assert_close(explained_variance(noisy, target), expected)
    mask = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    spoiled = (torch.where(mask, x, torch.nan) for x in (noisy, target))
    found = explained_variance(*spoiled, mask)
    assert_close(found, explained_variance(noisy[mask], target[mask]))
    equal = torch.ones(5, dtype=D)
    assert explained_variance(equal, equal) == 1 and explained_variance(0 * equal, equal) == 1
    with pytest.raises(TypeError, match="explained_variance: mask has dtype float64"):
        explained_variance(target, target, target)


# ---- reducers


def test_value_loss_is_its_equation(trajectory):
    td = add_advantage(trajectory(3), 0.9, 0.8)
    out = value_loss(td, critic_coeff=0.7)
    error = td["value_target"] - td["state_value"]
    assert_close(out["loss_critic"], 0.7 * error.square().mean())
    assert_close(out["td_error"], error.abs())
    assert_close(out["pred_value"], td["state_value"].mean())
    assert_close(out["target_value"], td["value_target"].mean())
    smooth = value_loss(td, distance=huber_error)["loss_critic"]
    assert_close(smooth, F.smooth_l1_loss(td["state_value"], td["value_target"]))
    with pytest.raises(ValueError, match=r"value_loss: distance's result has shape \(\), expected"):
        value_loss(td, distance=F.mse_loss)


@pytest.mark.parametrize("reducer", [value_loss, clipped_value_loss])
def test_targets_made_inside_are_those_made_outside(trajectory, reducer):
    td = trajectory(3)
    td["behavior"] = TensorDict({"state_value": normal(3, 6)}, [3, 6])
    made = reducer(add_advantage(td, 0.9, 0.8))
    found = reducer(td, gamma=0.9, lmbda=0.8)
    for name in made.keys():
        assert_close(found[name], made[name])

    def inside(x, y):
        changed = td.clone().set("state_value", x).set(("next", "state_value"), y)
        return reducer(changed, gamma=0.9, lmbda=0.8)["loss_critic"]

    def outside(x):
        fixed = add_advantage(td, 0.9, 0.8).clone().unlock_()
        return reducer(fixed.set("state_value", x))["loss_critic"]

    of_value, of_next = grad(inside, (0, 1))(td["state_value"], td["next", "state_value"])
    assert_close(of_value, grad(outside)(td["state_value"]))
    assert (of_next == 0).all()


def test_gradients_of_discounts_given_to_the_reducer(trajectory, central, variant):
    td = trajectory(3)

    def f(h):
        return value_loss(td, gamma=h[0], lmbda=h[1], critic_coeff=h[2])["loss_critic"]

    h = torch.tensor([0.9, 0.7, 0.5], dtype=D)
    found = variant(grad(f))(h)
    assert_close(found, central(f, h), rtol=1e-6, atol=1e-8)
    assert (found.abs() > 1e-4).all()


def test_a_mixed_value_is_learned_as_any_other(trajectory):
    """QMIX: chosen values of two agents, mixed by monotonic weights; one-step targets."""
    size, weights = (4, 6), torch.tensor([0.3, 1.7], dtype=D)
    q, after = normal(*size, 2, 3), normal(*size, 2, 3, seed=1)
    action = torch.randint(0, 3, (*size, 2), generator=torch.Generator().manual_seed(0))
    td = trajectory(4)
    td["state_value"] = q.gather(-1, action.unsqueeze(-1)).squeeze(-1) @ weights
    td["next", "state_value"] = after.amax(-1) @ weights
    out = value_loss(td, gamma=0.9, lmbda=0.0)["loss_critic"]
    going = 0.9 * ~td["next", "terminated"]
    target = td["next", "reward"] + going * td["next", "state_value"]
    assert_close(out, F.mse_loss(td["state_value"], target))


def test_expectile_loss_is_its_equation():
    td = TensorDict({"state_value": normal(40), "value_target": normal(40, seed=1)}, [40])
    x = td["value_target"] - td["state_value"]
    weight = torch.where(x > 0, 0.9, 0.1).to(D)  # as TorchRL's IQLLoss
    assert_close(expectile_loss(td, expectile=0.9)["loss_critic"], (weight * x.square()).mean())
    assert_close(
        expectile_loss(td)["loss_critic"], expectile_loss(td, expectile=0.7)["loss_critic"]
    )


@pytest.mark.parametrize(
    ("reducer", "change", "hyper", "text"),
    [
        (value_loss, (), {"gamma": 0.9}, "gamma is given, but the td already holds 'value_target'"),
        (
            value_loss,
            ("value_target",),
            {},
            "the td has no 'value_target'.*add_advantage.*give gam",
        ),
        (value_loss, ("value_target",), {"gamma": 0.9}, "the td has no 'value_target'"),
        (value_loss, ("state_value",), {}, "the td has no 'state_value'"),
        (clipped_value_loss, (), {}, "the td has no 'behavior.state_value'"),
        (expectile_loss, ("value_target",), {}, "the td has no 'value_target'"),
        (
            expectile_loss,
            (),
            {"expectile": -0.1},
            "expectile is -0.1, expected a number from 0 to 1",
        ),
    ],
)
def test_bad_input(trajectory, reducer, change, hyper, text):
    td = add_advantage(trajectory(3), 0.9, 0.8).exclude(*change)
    with pytest.raises(ValueError, match=f"^{reducer.__name__}: .*{text}") as caught:
        reducer(td, **hyper)
    assert "\n" not in str(caught.value)


def test_one_step_and_episodes_of_one_step(trajectory):
    td = trajectory(2, steps=1)
    td["next", "done"] = td["next", "terminated"] = torch.ones(2, 1, dtype=torch.bool)
    td["next", "state_value"] = torch.full((2, 1), torch.nan, dtype=D)
    out = value_loss(td, gamma=0.9, lmbda=0.8)
    assert_close(out["loss_critic"], F.mse_loss(td["state_value"], td["next", "reward"]))


def test_all_critics_report_the_same():
    td = TensorDict({"state_value": normal(4), "value_target": normal(4, seed=1)}, [4])
    td["action_value"], td["action"] = normal(4, 2), torch.zeros(4, dtype=torch.int64)
    names = {"loss_critic", "td_error", "pred_value", "target_value"}
    for reducer in (value_loss, expectile_loss, q_learning_loss):
        assert set(reducer(td).keys()) == names
        assert reducer(td)["td_error"].shape == (4,)
        assert losses.total(reducer(td)) == reducer(td)["loss_critic"]
