# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalOperand=false
import pytest
import torch
from torch import nn
from torch.func import grad
from torch.testing import assert_close
from torchrl.modules import DistributionalQValueActor
from torchrl.objectives import DistributionalDQNLoss

from losses import (
    add_categorical_target,
    add_quantile_q_target,
    categorical_q_loss,
    categorical_td_loss,
    quantile_q_loss,
)
from tests.losses.return_atoms import (
    ACTIONS,
    GAMMA,
    SUPPORT,
    D,
    K,
    actions,
    chosen,
    draw,
    normal,
    projected,
    quantiled,
    states,
    steps,
)

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


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_forbidden_action_is_not_chosen(spoiled):
    td = actions(3, 4)
    logits = td["next", "action_value_logits"]
    best = (logits.softmax(-1) * SUPPORT).sum(-1).argmax(-1)
    mask = torch.arange(ACTIONS) != best.unsqueeze(-1)
    second = (logits.softmax(-1) * SUPPORT).sum(-1).masked_fill(~mask, -torch.inf).argmax(-1)
    wanted = td.clone().set(
        ("next", "action_value_logits"), chosen(logits, second).unsqueeze(-2).expand_as(logits)
    )
    td["next", "action_mask"] = mask
    if spoiled:
        td["next", "action_value_logits"] = logits.masked_fill(~mask.unsqueeze(-1), torch.nan)
    found = categorical_q_loss(td, support=SUPPORT, gamma=0.9)
    expected = categorical_q_loss(wanted, support=SUPPORT, gamma=0.9)
    for key in ("loss_critic", "td_error", "target_value"):
        assert_close(found[key], expected[key])


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
        reducer(td.copy().set("gamma", (gammas ** td["steps_to_next_obs"])[..., None]), **options),
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
