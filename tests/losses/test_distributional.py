# pyright: reportArgumentType=false, reportCallIssue=false
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.func import grad, jacrev, vmap
from torch.testing import assert_close
from torchrl.modules import DistributionalQValueActor
from torchrl.objectives import DistributionalDQNLoss

from losses import (
    add_categorical_target,
    add_quantile_q_target,
    categorical_projection,
    categorical_q_loss,
    categorical_td_loss,
    huber_error,
    quantile_huber,
    quantile_q_loss,
)

D = torch.float64
ACTIONS, K = 3, 5
SUPPORT = torch.tensor([-1.5, -0.7, 0.1, 0.9, 2.0], dtype=D)
GAMMA = 0.875  # exact in float32


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=D, generator=draw(seed))


def steps(*size, seed=0, **entries):
    """A td with rewards and flags, and entries that come in pairs, now and next."""
    g = draw(seed)
    done = torch.rand(size, generator=g) < 0.4
    after = {
        "reward": torch.randn(size, dtype=D, generator=g),
        "done": done,
        "terminated": done & (torch.rand(size, generator=g) < 0.6),
        **{name: x for name, (_, x) in entries.items()},
    }
    now = {
        "action": torch.randint(0, ACTIONS, size, generator=g),
        "next": TensorDict(after, size),
        **{name: x for name, (x, _) in entries.items()},
    }
    return TensorDict(now, size)


def pair(*shape):
    return 2 * normal(*shape, seed=11), 2 * normal(*shape, seed=12)


def states(*size):
    return steps(*size, state_value_logits=pair(*size, K))


def actions(*size):
    return steps(*size, action_value_logits=pair(*size, ACTIONS, K))


def quantiled(*size, n=4):
    return steps(*size, action_value_quantiles=pair(*size, ACTIONS, n))


def chosen(x, action):
    """Of [*B, A, ...] the action's."""
    return x.flatten(0, action.dim() - 1)[torch.arange(action.numel()), action.flatten()].reshape(
        *action.shape, *x.shape[action.dim() + 1 :]
    )


# ---- the projection


def projected(source, probs, target):
    """The same by a loop."""
    out = [0.0] * len(target)
    for x, p in zip(source, probs, strict=True):
        x = min(max(x, target[0]), target[-1])
        i = max(i for i in range(len(target)) if target[i] <= x)
        if i == len(target) - 1:
            out[i] += p
        else:
            share = (x - target[i]) / (target[i + 1] - target[i])
            out[i] += p * (1 - share)
            out[i + 1] += p * share
    return out


@pytest.mark.parametrize("seed", range(5))
def test_projection_is_the_loop(seed):
    source, target = 2 * normal(7, seed=seed), normal(4, seed=seed + 50).sort().values
    probs = normal(7, seed=seed + 100).softmax(-1)
    found = categorical_projection(source, probs, target)
    assert_close(
        found, torch.tensor(projected(source.tolist(), probs.tolist(), target.tolist())).to(D)
    )


def test_projection_takes_batches_on_any_side():
    source, target = normal(3, 2, 6), normal(3, 2, 4, seed=1).sort(-1).values
    probs = normal(3, 2, 6, seed=2).softmax(-1)
    every = categorical_projection(source, probs, target)
    for i in range(3):
        for j in range(2):
            row = categorical_projection(source[i, j], probs[i, j], target[i, j])
            assert_close(every[i, j], row)
    one = categorical_projection(source[0, 0], probs, target[0, 0])
    assert_close(one[2, 1], categorical_projection(source[0, 0], probs[2, 1], target[0, 0]))
    many = categorical_projection(source[0, 0], probs[0, 0], target)
    assert_close(many[2, 1], categorical_projection(source[0, 0], probs[0, 0], target[2, 1]))
    mapped = vmap(lambda t: categorical_projection(source[0, 0], probs[0, 0], t), 1, 1)(target)
    assert_close(mapped, many)


def test_projection_keeps_mass_and_the_mean_inside():
    source = 3.5 * torch.rand(20, 6, dtype=D, generator=draw()) - 1.5
    probs = normal(20, 6).softmax(-1)
    found = categorical_projection(source, probs, SUPPORT)
    assert (found >= 0).all()
    assert_close(found.sum(-1), torch.ones(20, dtype=D))
    assert_close((found * SUPPORT).sum(-1), (source * probs).sum(-1))


def test_projection_at_the_grid_and_beyond_it():
    probs = normal(K).softmax(-1)
    assert_close(categorical_projection(SUPPORT, probs, SUPPORT), probs, rtol=0, atol=0)
    low, high = SUPPORT - 100, SUPPORT + 100
    assert_close(categorical_projection(low, probs, SUPPORT), torch.eye(K, dtype=D)[0])
    assert_close(categorical_projection(high, probs, SUPPORT), torch.eye(K, dtype=D)[-1])
    ends = torch.tensor([-torch.inf, torch.inf], dtype=D)
    half = torch.tensor([0.5, 0.5], dtype=D)
    found = categorical_projection(ends, half, SUPPORT)
    assert found.tolist() == [0.5, 0, 0, 0, 0.5]
    slope = grad(lambda z: (categorical_projection(z, half, SUPPORT) * SUPPORT).sum())(ends)
    assert slope.tolist() == [0, 0]


def test_projection_of_one_atom_and_of_equal_ones():
    one = torch.zeros(1, dtype=D)
    assert_close(
        categorical_projection(SUPPORT, normal(3, K).softmax(-1), one), torch.ones(3, 1).to(D)
    )
    twin = torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=D)
    found = categorical_projection(torch.tensor([0.5, 1.0, 1.5]).to(D), torch.ones(3).to(D), twin)
    assert_close(found.sum(), torch.tensor(3.0, dtype=D))
    assert_close((found * twin).sum(), torch.tensor(3.0, dtype=D))
    flat = torch.ones(3, dtype=D)

    def f(source, target):
        return categorical_projection(source, flat, target).square().sum()

    slopes = grad(f, (0, 1))(twin[:3], flat)
    assert slopes[0].isfinite().all() and slopes[1].isfinite().all()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_projection_is_differentiable_in_everything(central, variant, which):
    args = [normal(6), normal(6, seed=1).softmax(-1), normal(4, seed=2).sort().values]
    weights = normal(4, seed=3)

    def f(x):
        given = [*args[:which], x, *args[which + 1 :]]
        return (categorical_projection(*given) * weights).sum()

    assert_close(variant(grad(f))(args[which]), central(f, args[which]), rtol=1e-6, atol=1e-8)


def test_at_the_grid_the_derivative_is_the_one_to_the_right():
    probs = normal(K).softmax(-1)
    found = jacrev(lambda z: categorical_projection(z, probs, SUPPORT))(SUPPORT)
    h = 1e-7
    for j in range(K):
        moved = SUPPORT.clone()
        moved[j] += h
        right = (categorical_projection(moved, probs, SUPPORT) - probs) / h
        assert_close(found[:, j], right, rtol=1e-5, atol=1e-6)
    assert found.sum(0).abs().max() < 1e-12  # no mass comes or goes

    def plain(z):  # outside of any transform the atoms are found by bisection
        return categorical_projection(z, probs, SUPPORT)

    assert_close(torch.autograd.functional.jacobian(plain, SUPPORT), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projection_keeps_the_dtype(dtype):
    args = (x.to(dtype) for x in (SUPPORT * 0.5, normal(2, K).softmax(-1), SUPPORT))
    assert categorical_projection(*args).dtype == dtype


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"probs": torch.ones(4)},
            ValueError,
            r"probs has shape \(4,\), expected \[\.\.\., 5\] \(from",
        ),
        ({"support_from": torch.tensor(1.0)}, ValueError, r"support_from has shape \(\), expected"),
        ({"support_to": torch.zeros(0)}, ValueError, r"support_to has shape \(0,\), expected"),
        ({"support_to": torch.tensor([1.0, 0.0])}, ValueError, "support_to decreases somewhere"),
        ({"support_to": torch.tensor([1, 2])}, TypeError, "support_to has dtype int64"),
        (
            {"probs": torch.ones(3, 5), "support_to": torch.ones(2, 4)},
            ValueError,
            r"have shapes \(5,\), \(3, 5\) and \(2, 4\), expected some that broadcast",
        ),
    ],
)
def test_bad_arguments_of_the_projection(change, error, text):
    args = {"support_from": torch.zeros(5), "probs": torch.ones(5), "support_to": torch.arange(4.0)}
    with pytest.raises(error, match=f"^categorical_projection: .*{text}"):
        categorical_projection(**{**args, **change})


# ---- categorical reducers


class Logits(nn.Module):
    """Logits [*B, K, A] of all actions, by the state's index, as TorchRL wants them."""

    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(values.clone())

    def forward(self, state):
        return self.weight[state]


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
@pytest.mark.parametrize("n_step", [False, True])
@pytest.mark.parametrize("gamma", [GAMMA, 0.0, 1.0])
def test_categorical_q_loss_is_torchrls(gamma, n_step):
    """In float32: TorchRL's projection is of that dtype, and its support evenly spaced."""
    td, support = steps(40).float(), torch.linspace(-2, 2, 9)
    td["action"] = td["action"].long()
    tables = [2 * normal(7, ACTIONS, 9, seed=s).float() for s in (1, 2)]
    now, after = (torch.randint(0, 7, (40,), generator=draw(s)) for s in (3, 4))
    td["next", "done"], td["next", "terminated"] = (
        td["next", k] > 0 for k in ("done", "terminated")
    )
    if n_step:
        td["steps_to_next_obs"] = torch.randint(1, 4, (40,), generator=draw(5))
    td["next", "reward"][:5] = torch.tensor(
        [-9.0, 9.0, 0.0, 0.5, 2.0]
    )  # beyond the ends, on the grid
    shaped = td.clone().update({"state": now, "next": td["next"].clone().set("state", after)})
    for key in (("next", "reward"), ("next", "done"), ("next", "terminated")):
        shaped[key] = shaped[key].unsqueeze(-1)
    if n_step:
        shaped["steps_to_next_obs"] = shaped["steps_to_next_obs"].unsqueeze(-1)
    actor = DistributionalQValueActor(
        Logits(tables[0].mT), in_keys=["state"], support=support, action_space="categorical"
    )
    loss = DistributionalDQNLoss(actor, gamma=gamma, delay_value=True)
    for key, x in loss.target_value_network_params.items(True, True):
        if key[-1] == "weight":
            x.data.copy_(tables[1].mT)
    expected = loss(shaped)["loss"]
    weights = [x for k, x in loss.value_network_params.items(True, True) if k[-1] == "weight"]
    (slope,) = torch.autograd.grad(expected, weights)

    def ours(table):
        out = td.clone()
        out["action_value_logits"] = table[now]
        out["next", "action_value_logits"] = tables[1][after]
        means = (tables[0][after].softmax(-1) * support).sum(-1)
        out["next", "action_value_selector"] = means
        return categorical_q_loss(out, support=support, gamma=gamma)

    assert_close(ours(tables[0])["loss_critic"], expected.detach(), rtol=1e-5, atol=1e-6)
    assert_close(ours(tables[0])["td_error"], shaped["td_error"].squeeze(-1), rtol=1e-4, atol=1e-5)
    found = grad(lambda t: ours(t)["loss_critic"])(tables[0])
    assert_close(found, slope.mT, rtol=1e-4, atol=1e-6)


def cross_entropy(logits, after, td, gamma):
    """The loss per step, by loops; ``logits`` and ``after`` are [B, K]."""
    out = []
    for i in range(len(logits)):
        going = 0.0 if td["next", "terminated"][i] else gamma
        moved = [float(td["next", "reward"][i]) + going * z for z in SUPPORT.tolist()]
        target = projected(moved, after[i].softmax(-1).tolist(), SUPPORT.tolist())
        logs = logits[i].log_softmax(-1).tolist()
        out.append(-sum(m * x for m, x in zip(target, logs, strict=True)))
    return torch.tensor(out, dtype=D)


def test_categorical_td_loss_is_its_equation():
    td = states(12)
    expected = cross_entropy(td["state_value_logits"], td["next", "state_value_logits"], td, 0.9)
    out = categorical_td_loss(td, support=SUPPORT, gamma=0.9)
    assert_close(out["td_error"], expected)
    assert_close(out["loss_critic"], expected.mean())
    probs = td["state_value_logits"].softmax(-1)
    assert_close(out["pred_value"], (probs * SUPPORT).sum(-1).mean())
    target = add_categorical_target(td, SUPPORT, 0.9)["value_target"]
    assert_close(out["target_value"], (target * SUPPORT).sum(-1).mean())


@pytest.mark.parametrize("double", [False, True])
def test_categorical_q_loss_is_its_equation(double):
    td = actions(12)
    after = td["next", "action_value_logits"]
    values = (after.softmax(-1) * SUPPORT).sum(-1)
    if double:
        values = td["next", "action_value_selector"] = normal(12, ACTIONS, seed=5)
    logits = chosen(td["action_value_logits"], td["action"])
    expected = cross_entropy(logits, chosen(after, values.argmax(-1)), td, 0.9)
    out = categorical_q_loss(td, support=SUPPORT, gamma=0.9)
    assert_close(out["td_error"], expected)
    one_hot = nn.functional.one_hot(td["action"], ACTIONS)
    again = categorical_q_loss(td.copy().set("action", one_hot), support=SUPPORT, gamma=0.9)
    assert_close(again["loss_critic"], expected.mean())


def test_of_equal_means_the_first_counts():
    td = actions(4)
    same = td["next", "action_value_logits"][:, :1].expand(4, ACTIONS, K)
    td["next", "action_value_logits"] = same.clone()

    def f(after):
        changed = td.copy().set("next", td["next"].copy().set("action_value_logits", after))
        return add_categorical_target(changed, SUPPORT, 0.9)["value_target"].square().sum()

    slope = grad(f)(td["next", "action_value_logits"])
    assert (slope[:, 1:] == 0).all() and slope[:, 0].abs().sum() > 0


CASES = [
    (categorical_td_loss, states, "state_value_logits", {"support": SUPPORT}),
    (categorical_q_loss, actions, "action_value_logits", {"support": SUPPORT}),
    (quantile_q_loss, quantiled, "action_value_quantiles", {}),
]
by_case = pytest.mark.parametrize(("reducer", "make", "key", "options"), CASES)


def finished(td, gamma, options):
    if options:
        return add_categorical_target(td, options["support"], gamma)
    return add_quantile_q_target(td, gamma)


@by_case
def test_targets_made_inside_are_those_made_outside(reducer, make, key, options):
    td = make(3, 4)
    td["steps_to_next_obs"] = torch.randint(1, 4, (3, 4), generator=draw(3))
    made = reducer(finished(td, 0.9, options), **options)
    gammas = torch.full((3, 4), 0.9, dtype=D)
    for found in (
        reducer(td, gamma=0.9, **options),
        reducer(td, gamma=gammas, **options),
        reducer(td.copy().set("gamma", gammas.unsqueeze(-1)), **options),
    ):
        for name in made.keys():
            assert_close(found[name], made[name])


@by_case
def test_the_full_stop(reducer, make, key, options):
    td = make(3, 4)

    def inside(now, after):
        changed = td.copy().update({key: now, "next": td["next"].copy().set(key, after)})
        return reducer(changed, gamma=0.9, **options)["loss_critic"]

    def outside(now, after):
        changed = td.copy().set("next", td["next"].copy().set(key, after))
        made = finished(changed, 0.9, options)
        return reducer(made.copy().set(key, now), **options)["loss_critic"]

    x = (td[key], td["next", key])
    stopped, whole = grad(inside, (0, 1))(*x), grad(outside, (0, 1))(*x)
    assert_close(stopped[0], whole[0])
    assert (stopped[1] == 0).all() and whole[1].abs().sum() > 1e-3


@by_case
def test_gradient_of_the_discount(reducer, make, key, options, central, variant):
    td = make(3, 4)

    def f(gamma):
        return reducer(td, gamma=gamma, **options)["loss_critic"]

    gamma = torch.tensor(0.9, dtype=D)
    found = variant(grad(f))(gamma)
    assert_close(found, central(f, gamma), rtol=1e-6, atol=1e-8)
    assert found.abs() > 1e-3
    per_step = torch.linspace(0.3, 0.95, 12, dtype=D).reshape(3, 4)
    assert_close(grad(f)(per_step), central(f, per_step), rtol=1e-6, atol=1e-8)


@by_case
def test_what_follows_a_terminated_step_is_without_influence(reducer, make, key, options):
    td = make(3, 4)
    td["next", "terminated"] = torch.rand(3, 4, generator=draw(9)) < 0.5
    ended = td["next", "terminated"]
    td["next", "action_value_selector"] = normal(3, 4, ACTIONS, seed=7)
    spoiled = td.clone()
    for name in (key, "action_value_selector"):
        spoiled["next", name][ended] = torch.nan

    def f(td, now, gamma):
        return reducer(td.copy().set(key, now), gamma=gamma, **options)["loss_critic"]

    gamma = torch.tensor(0.9, dtype=D)
    assert_close(f(spoiled, td[key], gamma), f(td, td[key], gamma))
    for a, b in zip(
        grad(f, (1, 2))(spoiled, td[key], gamma), grad(f, (1, 2))(td, td[key], gamma), strict=True
    ):
        assert_close(a, b)
    every = spoiled.clone()
    every["next", "terminated"] = torch.ones(3, 4, dtype=torch.bool)
    assert reducer(every, gamma=0.9, **options)["loss_critic"].isfinite()
    assert reducer(td[0, 0], gamma=0.9, **options)["td_error"].shape == ()


def test_probabilities_of_zero_and_one():
    td = actions(6)
    sure = torch.full((6, ACTIONS, K), -torch.inf, dtype=D)
    sure[..., 2] = 0.0
    td["next", "action_value_logits"] = sure
    made = add_categorical_target(td, SUPPORT, 0.9)["value_target"]
    assert_close(made.sum(-1), torch.ones(6, dtype=D))
    td["action_value_logits"] = sure

    def f(target, logits):
        changed = td.copy().update({"value_target": target, "action_value_logits": logits})
        return categorical_q_loss(changed, support=SUPPORT)["loss_critic"]

    on_it = torch.eye(K, dtype=D)[2].expand(6, K).clone()
    assert f(on_it, sure) == 0
    slopes = grad(f, (0, 1))(on_it, sure)
    assert (slopes[1] == 0).all() and not slopes[0].isnan().any()
    large = 80 * normal(6, ACTIONS, K)
    assert grad(f, 1)(on_it, large).isfinite().all()
    one_hot = grad(lambda t: f(t.softmax(-1), large))(1000 * on_it)
    assert one_hot.isfinite().all()


# ---- quantiles


def quantile_sum(theta, tau, target, kappa, probs=None):
    """The loss of one step by loops."""
    total = 0.0
    for x, level in zip(theta, tau, strict=True):
        for j, y in enumerate(target):
            u = y - x
            size = abs(u) if kappa == 0 else min(abs(u), kappa) * (abs(u) - min(abs(u), kappa) / 2)
            weight = 1 / len(target) if probs is None else probs[j]
            total += weight * abs(level - (u < 0)) * size
    return total


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_quantile_huber_is_its_equation(kappa, weighted):
    theta, target = 2 * normal(3, 2, 4), normal(3, 2, 6, seed=1)
    tau = torch.rand(4, dtype=D, generator=draw())
    probs = normal(3, 2, 6, seed=2).softmax(-1) if weighted else None
    found = quantile_huber(theta, tau, target, kappa, probs)
    for i in range(3):
        for j in range(2):
            p = probs[i, j].tolist() if weighted else None
            expected = quantile_sum(
                theta[i, j].tolist(), tau.tolist(), target[i, j].tolist(), kappa, p
            )
            assert_close(found[i, j], torch.tensor(expected, dtype=D))
    each = quantile_huber(
        theta, tau.expand(3, 2, 4), target, torch.full((3, 2), kappa).to(D), probs
    )
    assert_close(each, found)
    assert_close(quantile_huber(theta, tau, target, torch.tensor(kappa, dtype=D), probs), found)


def test_half_of_hubers_error_at_the_median():
    x, y = normal(7, 1), normal(7, 1, seed=1)
    half = torch.tensor([0.5], dtype=D)
    assert_close(quantile_huber(x, half, y), huber_error(x, y)[:, 0] / 2)


def test_the_minimum_of_quantile_regression_are_quantiles():
    sample = torch.arange(1.0, 101.0, dtype=D)
    tau = torch.tensor([0.105, 0.5, 0.895], dtype=D)
    theta = torch.tensor([11.0, 50.5, 90.0], dtype=D)
    best = quantile_huber(theta, tau, sample, 0.0)
    for moved in (theta + 2, theta - 2, theta * 1.05):
        assert quantile_huber(moved, tau, sample, 0.0) > best


def test_gradient_of_kappa_and_of_a_kappa_of_zero(central, variant):
    theta, target, tau = 2 * normal(5, 3), normal(5, 4, seed=1), normal(3, seed=2).sigmoid()

    def f(kappa):
        return quantile_huber(theta, tau, target, kappa).sum()

    kappa = torch.tensor(0.7, dtype=D)
    assert_close(variant(grad(f))(kappa), central(f, kappa), rtol=1e-6, atol=1e-8)
    zero = torch.zeros((), dtype=D)
    assert_close(f(zero), f(0.0))
    assert grad(f)(zero).isfinite()
    of_tau = grad(lambda t: quantile_huber(theta, t, target).sum())(tau)
    assert_close(of_tau, central(lambda t: quantile_huber(theta, t, target).sum(), tau))


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_quantile_q_loss_is_its_equation(expected, double):
    td = quantiled(8)
    after = td["next", "action_value_quantiles"]
    values = after.mean(-1)
    if double:
        values = td["next", "action_value_selector"] = normal(8, ACTIONS, seed=5)
    policy = normal(8, ACTIONS, seed=6)
    td["next", "logits"] = policy
    theta, best = (
        chosen(td["action_value_quantiles"], td["action"]),
        chosen(after, values.argmax(-1)),
    )
    tau = [0.125, 0.375, 0.625, 0.875]
    wanted = []
    for i in range(8):
        going = 0.0 if td["next", "terminated"][i] else 0.9
        reward = float(td["next", "reward"][i])

        def loss_of(row, i=i, going=going, reward=reward):
            target = [reward + going * x for x in row.tolist()]
            return quantile_sum(theta[i].tolist(), tau, target, 0.8)

        if expected:  # as rlax: the mean over actions of the loss on each
            parts = zip(policy[i].softmax(-1).tolist(), after[i], strict=True)
            wanted.append(sum(p * loss_of(row) for p, row in parts))
        else:
            wanted.append(loss_of(best[i]))
    out = quantile_q_loss(td, gamma=0.9, kappa=0.8, expected=expected)
    assert_close(out["td_error"], torch.tensor(wanted, dtype=D))
    assert_close(out["pred_value"], theta.mean())
    made = add_quantile_q_target(td, 0.9, expected=expected)
    assert ("value_target_probs" in made.keys()) == expected
    assert_close(quantile_q_loss(made, kappa=0.8)["loss_critic"], out["loss_critic"])
    if expected:
        by_probs = td.exclude(("next", "logits")).set(("next", "probs"), policy.softmax(-1))
        again = quantile_q_loss(by_probs, gamma=0.9, kappa=0.8, expected=True)
        assert_close(again["loss_critic"], out["loss_critic"])
        sure = nn.functional.one_hot(after.mean(-1).argmax(-1), ACTIONS).to(D)
        greedy = by_probs.copy().set("next", by_probs["next"].copy().set("probs", sure))
        plain = td.exclude(("next", "action_value_selector"))
        found = quantile_q_loss(greedy, gamma=0.9, expected=True)["loss_critic"]
        assert_close(found, quantile_q_loss(plain, gamma=0.9)["loss_critic"])


def test_the_policy_at_a_terminated_step_is_without_influence():
    td = quantiled(8)
    ended = td["next", "terminated"] = torch.arange(8) < 4
    td["next", "probs"] = normal(8, ACTIONS).softmax(-1)
    junk = td.clone()
    junk["next", "probs"][ended] = torch.nan
    for key in ("action_value_quantiles", "probs"):
        junk["next", key][ended] = torch.nan
    a, b = (quantile_q_loss(x, gamma=0.9, expected=True) for x in (td, junk))
    for name in a.keys():
        assert_close(a[name], b[name])
    made = add_quantile_q_target(junk, 0.9, expected=True)
    assert_close(made["value_target_probs"].sum(-1), torch.ones(8, dtype=D))


def test_probabilities_of_quantiles_can_be_given():
    td = quantiled(3, 4)
    plain = quantile_q_loss(td, gamma=0.9)["loss_critic"]
    tau = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=D)
    assert_close(quantile_q_loss(td, gamma=0.9, tau=tau)["loss_critic"], plain)
    each = torch.rand(3, 4, 4, dtype=D, generator=draw(8))
    found = quantile_q_loss(td, gamma=0.9, tau=each)["td_error"]
    row = quantile_q_loss(td[1, 2], gamma=0.9, tau=each[1, 2])["td_error"]
    assert_close(found[1, 2], row)
    ends = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=D)
    assert quantile_q_loss(td, gamma=0.9, tau=ends)["loss_critic"].isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@by_case
def test_reducers_keep_the_dtype(reducer, make, key, options, dtype):
    low = make(3, 4).apply(lambda x: x.to(dtype) if x.is_floating_point() else x)
    for gamma in (0.9, torch.tensor(0.9, dtype=D)):
        out = reducer(low, gamma=gamma, **options)
        assert all(out[name].dtype == dtype for name in out.keys())


# ---- bad input


@pytest.mark.parametrize(
    ("change", "hyper", "error", "text"),
    [
        (lambda td: td, {"gamma": None}, ValueError, "td has no 'value_target'.*add_categorical_t"),
        (lambda td: td, {"support": SUPPORT.flip(0)}, ValueError, "support decreases somewhere"),
        (
            lambda td: td,
            {"support": SUPPORT[:4]},
            ValueError,
            r"expected \[4, A, 4\] \(from support",
        ),
        (
            lambda td: td,
            {"support": SUPPORT[None]},
            ValueError,
            r"support has shape \(1, 5\), expe",
        ),
        (lambda td: td, {"support": [1.0]}, TypeError, "support is a list"),
        (lambda td: td, {"gamma": 2.0}, ValueError, "gamma is 2.0, expected a number from 0 to 1"),
        (
            lambda td: td.set("value_target", torch.ones(4, K, dtype=D)),
            {},
            ValueError,
            "gamma is given, but the td already holds 'value_target'",
        ),
        (
            lambda td: td.set("value_target", torch.ones(4, 3, dtype=D)),
            {"gamma": None},
            ValueError,
            r"value_target has shape \(4, 3\), expected \[4, 5\] \(from support\)",
        ),
        (
            lambda td: td.exclude(("next", "action_value_logits")),
            {},
            ValueError,
            "td has no 'next.action_value_logits'",
        ),
        (
            lambda td: td.set("action_value_logits", torch.zeros(4, K)),
            {},
            ValueError,
            r"action_value_logits has shape \(4, 5\), expected \[4, A, 5\]",
        ),
        (
            lambda td: td.set(("next", "action_value_logits"), torch.zeros(4, 2, K)),
            {},
            ValueError,
            r"next.action_value_logits has shape \(4, 2, 5\), expected \[4, 3, 5\]",
        ),
        (
            lambda td: td.set(("next", "action_value_selector"), torch.zeros(4, 2)),
            {},
            ValueError,
            r"next.action_value_selector has shape \(4, 2\), expected \[4, 3\]",
        ),
        (
            lambda td: td.set("action", torch.full((4,), 3)),
            {},
            ValueError,
            "index outside of 0 to 2",
        ),
    ],
)
def test_bad_input_of_categorical_q_loss(change, hyper, error, text):
    td = change(actions(4))
    with pytest.raises(error, match=f"^categorical_q_loss: .*{text}") as caught:
        categorical_q_loss(td, **{"support": SUPPORT, "gamma": 0.9, **hyper})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "hyper", "text"),
    [
        (lambda td: td, {"gamma": None}, "td has no 'value_target'.*add_quantile_q_target"),
        (lambda td: td, {"kappa": -1.0}, "kappa is -1.0, expected at least 0"),
        (
            lambda td: td,
            {"tau": torch.ones(3)},
            r"tau has shape \(3,\), expected \[4\] or \[4, 4\]",
        ),
        (lambda td: td, {"expected": True}, "td has no 'next.logits'.*Or next.probs"),
        (
            lambda td: td.set("value_target", torch.ones(4, 2, dtype=D)),
            {"gamma": None, "expected": True},
            "expected is given, but the td already holds 'value_target'",
        ),
        (
            lambda td: td.update(
                {"value_target": torch.ones(4, 2), "value_target_probs": torch.ones(4)}
            ),
            {"gamma": None},
            r"value_target_probs has shape \(4,\), expected",
        ),
    ],
)
def test_bad_input_of_quantile_q_loss(change, hyper, text):
    with pytest.raises(ValueError, match=f"^quantile_q_loss: .*{text}") as caught:
        quantile_q_loss(change(quantiled(4)), **{"gamma": 0.9, **hyper})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"quantiles": torch.tensor(1.0)}, ValueError, r"quantiles has shape \(\), expected"),
        ({"tau": torch.ones(2)}, ValueError, r"tau has shape \(2,\), expected \(3,\) or \(5, 3\)"),
        ({"target": torch.ones(4, 6)}, ValueError, r"target has shape \(4, 6\), expected \[5, M\]"),
        (
            {"target_probs": torch.ones(5, 3)},
            ValueError,
            r"target_probs has shape \(5, 3\), expect",
        ),
        ({"kappa": torch.ones(3)}, ValueError, r"kappa has shape \(3,\), expected one that broadc"),
        ({"kappa": "1"}, TypeError, "kappa is a str"),
        ({"target": torch.ones(5, 6).long()}, TypeError, "target has dtype int64"),
    ],
)
def test_bad_arguments_of_quantile_huber(change, error, text):
    args = {"quantiles": torch.ones(5, 3), "tau": torch.ones(3), "target": torch.ones(5, 6)}
    with pytest.raises(error, match=f"^quantile_huber: {text}"):
        quantile_huber(**{**args, **change})


def test_a_target_for_two_kinds_of_values_is_ambiguous():
    td = actions(4)
    td["next", "state_value_logits"] = torch.zeros(4, K)
    with pytest.raises(
        ValueError, match="^add_categorical_target: the td holds 'next.state_value_l"
    ):
        add_categorical_target(td, SUPPORT, 0.9)
    with pytest.raises(
        ValueError, match="^add_categorical_target: the td has no 'next.state_value"
    ):
        add_categorical_target(steps(4), SUPPORT, 0.9)
    with pytest.raises(
        ValueError, match="^add_quantile_q_target: gamma is neither given nor an ent"
    ):
        add_quantile_q_target(quantiled(4))
