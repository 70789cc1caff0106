# pyright: reportArgumentType=false, reportCallIssue=false
import math

import pytest
import torch
from tensordict import TensorDict
from torch.func import grad, vmap
from torch.testing import assert_close

from losses import (
    add_action_advantage,
    independent_normal,
    masked_categorical,
    qpg_loss,
    rm_loss,
    rpg_loss,
)

D = torch.float64
LOSSES = [qpg_loss, rm_loss, rpg_loss]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def batch():
    return TensorDict({"logits": draw(4, 5, 3), "action_value": draw(4, 5, 3, seed=1)}, (4, 5))


def by_loops(name, logits, value):
    """Loss and its gradient in the logits, from rlax's formulas, one step at a time."""
    total, slopes = 0.0, torch.zeros_like(logits)
    for row, q, out in zip(*(x.reshape(-1, 3) for x in (logits, value, slopes)), strict=True):
        p = [math.exp(x) for x in row.tolist()]
        p = [x / sum(p) for x in p]
        v = sum(a * b for a, b in zip(p, q.tolist(), strict=True))
        regret = [b - v for b in q.tolist()]
        if name == "rpg_loss":
            total += sum(max(r, 0.0) for r in regret)
            up = -sum(r > 0 for r in regret)  # d loss / d v
            score = q.tolist()
        else:
            score = [max(r, 0.0) for r in regret] if name == "rm_loss" else regret
            total -= sum(a * b for a, b in zip(p, score, strict=True))
            up = -1
        mean = sum(a * b for a, b in zip(p, score, strict=True))
        for i in range(3):
            out[i] = up * p[i] * (score[i] - mean)
    return total / 20, slopes.reshape(logits.shape) / 20


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_their_equations(loss):
    td = batch()

    def f(logits, value):
        out = td.copy().update({"logits": logits, "action_value": value})
        return loss(out)["loss_objective"]

    args = td["logits"], td["action_value"]
    value, slope = by_loops(loss.__name__, *args)
    assert_close(f(*args), torch.tensor(value, dtype=D))
    found = grad(f, (0, 1))(*args)
    assert_close(found[0], slope)
    assert (found[1] == 0).all()  # a full stop
    added = add_action_advantage(td)
    assert_close(loss(added)["loss_objective"], f(*args))
    outside = grad(lambda x: loss(added.copy().set("logits", x))["loss_objective"])
    assert_close(outside(td["logits"]), slope)


def test_what_is_added_is_not_detached():
    td = batch()

    def f(logits, value):
        out = td.copy().update({"logits": logits, "action_value": value})
        return add_action_advantage(out)["action_advantage"].sin().sum()

    def plain(logits, value):
        p = logits.softmax(-1)
        return (value - (p * value).sum(-1, keepdim=True)).sin().sum()

    args = td["logits"], td["action_value"]
    assert_close(grad(f, (0, 1))(*args), grad(plain, (0, 1))(*args))


@pytest.mark.parametrize("loss", LOSSES)
def test_two_updates_on_finished_advantages_have_the_right_outer_gradient(loss, central):
    """Through two inner updates, in the scale of the action values."""
    td = batch()

    def outer(scale):
        logits = td["logits"]
        for _ in range(2):
            now = td.copy().update({"logits": logits, "action_value": scale * td["action_value"]})
            made = add_action_advantage(now)
            step = grad(lambda x, made=made: loss(made.copy().set("logits", x))["loss_objective"])
            logits = logits - 5 * step(logits)
        return logits.sin().sum()

    scale = torch.tensor(0.8, dtype=D)
    assert_close(grad(outer)(scale), central(outer, scale), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e9])
def test_forbidden_actions_have_no_part(loss, junk):
    td = batch()
    mask = torch.tensor([True, False, True]).expand(4, 5, 3)
    bad = td.copy().update({"action_mask": mask})
    bad["action_value"] = torch.where(mask, td["action_value"], junk)
    less = TensorDict({k: td[k][..., ::2] for k in td.keys()}, (4, 5))

    def f(x):
        return loss(bad.copy().set("logits", x), masked_categorical)["loss_objective"]

    assert_close(f(td["logits"]), loss(less)["loss_objective"])
    slope = grad(f)(td["logits"])
    wanted = grad(lambda x: loss(less.copy().set("logits", x))["loss_objective"])(less["logits"])
    assert_close(slope[..., ::2], wanted)
    assert (slope[..., 1] == 0).all()
    assert (
        f(td["logits"])
        == loss(add_action_advantage(bad, masked_categorical), masked_categorical)["loss_objective"]
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_ties_certainty_and_float32(loss):
    for logits in ([0.0, 0.0, 0.0], [0.0, -math.inf, -math.inf], [200.0, 0.0, -200.0]):
        td = TensorDict({"logits": torch.tensor([logits]), "action_value": torch.ones(1, 3)}, 1)
        slope = grad(lambda x, td=td: loss(td.copy().set("logits", x))["loss_objective"])
        assert (slope(td["logits"]).abs() < 1e-6).all() and loss(td)["loss_objective"].abs() < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_a_masked_step_and_variants(loss, variant):
    td = batch()
    mask = draw(4, 5, seed=2) > 0
    spoiled = td.clone()
    for key in td.keys():
        spoiled[key] = torch.where(mask.unsqueeze(-1), td[key], torch.nan)
    kept = td[mask]

    def f(x, q):
        out = spoiled.copy().update({"logits": x, "action_value": q, "mask": mask})
        return loss(out)["loss_objective"]

    args = spoiled["logits"], spoiled["action_value"]
    assert_close(variant(f)(*args), loss(kept)["loss_objective"])
    assert variant(grad(f))(*args).isfinite().all()
    rows = vmap(lambda x: loss(x)["loss_objective"])(td)
    assert_close(rows.mean(), loss(td)["loss_objective"])


@pytest.mark.parametrize("loss", [*LOSSES, add_action_advantage])
def test_bad_input(loss):
    name = loss.__name__
    td = batch()
    keys = "'action_value'|'action_advantage'|'action_value_target'"
    with pytest.raises(ValueError, match=f"{name}: the td has no ({keys})"):
        loss(td.exclude("action_value"))
    with pytest.raises(ValueError, match=rf"{name}: action_value has shape .* \[4, 5, 3\] \(from"):
        loss(td.copy().set("action_value", draw(4, 5, 2)))
    normal = TensorDict({"loc": draw(4, 2), "scale": draw(4, 2).exp()}, 4)
    with pytest.raises(
        ValueError, match=f"{name}: dist_class gives an Independent, expected a cat"
    ):
        loss(normal, independent_normal)
    with pytest.raises(TypeError, match=f"{name}: action_value has dtype int64"):
        loss(td.copy().set("action_value", draw(4, 5, 3).long()))
