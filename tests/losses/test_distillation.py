# pyright: reportArgumentType=false
"""Teachers of every kind: each has the policy's kind, and is read as the policy is."""

import functools

import pytest
import torch
import torch.distributions as td_
from tensordict import TensorDict
from torch.distributions import Categorical
from torch.func import grad
from torch.testing import assert_close

from losses import (
    categorical_kl,
    distillation_loss,
    independent_normal,
    joint,
    masked_categorical,
    tanh_normal,
    total,
)

SIZE = (2, 5)
D = torch.float64
KEY = "loss_distillation"


def draw(seed, *shape):
    return torch.randn(*SIZE, *shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def td(**entries):
    return TensorDict(entries, SIZE)


def normal(seed):
    return {"loc": draw(seed, 3), "scale": draw(seed + 1, 3).mul(0.3).exp()}


def logits(seed):
    return {"logits": draw(seed, 4)}


def taught(parameters, **more):
    return td(**parameters(0), teacher=td(**parameters(50), **more))


def apart(p, q):
    parts = (td_.Normal(x["loc"], x["scale"], validate_args=False) for x in (p, q))
    return td_.kl_divergence(*parts).sum(-1)


def heads(seed):
    return {"params": td(steer=td(**normal(seed)), gear=td(**logits(seed + 5)))}


def of_heads(p, q):
    p, q = p["params"], q["params"]
    gear = categorical_kl(p["gear"]["logits"], q["gear"]["logits"])
    return apart(p["steer"], q["steer"]) + gear


BOUNDED = functools.partial(tanh_normal, low=-2.0, high=1.0)


@pytest.mark.parametrize(
    ("dist_class", "parameters", "divergence"),
    [
        (td_.Normal, normal, apart),
        (independent_normal, normal, apart),
        (BOUNDED, normal, apart),
        (
            lambda loc, scale: td_.Normal(loc, scale),
            lambda s: {"actor_output": td(**normal(s))},
            lambda p, q: apart(p["actor_output"], q["actor_output"]),
        ),
        (joint(steer=independent_normal, gear=Categorical), heads, of_heads),
    ],
    ids=["Normal", "independent_normal", "tanh_normal", "actor_output", "joint"],
)
def test_of_a_policy_that_is_not_categorical(dist_class, parameters, divergence):
    """The divergence, which has the gradient of the cross-entropy in the policy."""
    td = taught(parameters)
    wanted = divergence(parameters(50), parameters(0))
    out = distillation_loss(td, dist_class, reduction="none")
    assert_close(out[KEY], wanted)
    assert_close(out["kl"], wanted)
    mask = draw(99) > 0
    holes = td.copy().set("mask", mask)
    holes["teacher"] = holes["teacher"].apply(
        lambda x: torch.where(mask.unsqueeze(-1), x, torch.nan)
    )
    assert_close(distillation_loss(holes, dist_class)[KEY], wanted[mask].mean())


def cross_entropy(p, q):
    return -(p.softmax(-1) * q.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize(
    ("dist_class", "parameters"),
    [
        (Categorical, lambda s: {"actor_output": td(**logits(s))}),
        (Categorical, lambda s: {"actor_output": draw(s, 4).softmax(-1)}),
        (lambda logits: td_.OneHotCategorical(logits=logits, validate_args=False), logits),
        (lambda logits: Categorical(logits=logits, validate_args=False), logits),
    ],
    ids=["actor_output td", "actor_output tensor", "one-hot", "another"],
)
def test_of_a_categorical_policy(dist_class, parameters):
    def values(parameters):
        (value,) = parameters.values()
        value = value["logits"] if isinstance(value, TensorDict) else value
        return value if (value < 0).any() else value.log()

    p, q = values(parameters(50)), values(parameters(0))
    out = distillation_loss(taught(parameters), dist_class)
    assert_close(out[KEY], cross_entropy(p, q).mean())
    assert_close(out["kl"], categorical_kl(p, q).mean())


def test_a_class_that_tempers_tempers_both():
    def cool(logits):
        return Categorical(logits=logits / 4)

    found = distillation_loss(taught(logits), cool)[KEY]
    assert_close(found, cross_entropy(draw(50, 4) / 4, draw(0, 4) / 4).mean())


def test_a_teacher_chooses_among_the_policys_actions():
    allowed = draw(7, 4) > 0
    allowed[..., 0] = True
    whole = taught(logits).set("action_mask", allowed)
    p, q = (torch.where(allowed, draw(s, 4), -1e9) for s in (50, 0))
    wanted = cross_entropy(p, q).mean()
    assert_close(distillation_loss(whole, masked_categorical)[KEY], wanted)
    own = whole.copy().set(("teacher", "action_mask"), allowed)
    assert_close(distillation_loss(own, masked_categorical)[KEY], wanted)
    chances = own.copy().set("teacher", td(probs=p.softmax(-1)))
    assert_close(distillation_loss(chances, masked_categorical)[KEY], wanted)


def test_a_policy_learns_all_that_the_teacher_is():
    whole = taught(normal)

    def f(loc, scale):
        return total(distillation_loss(whole.copy().update({"loc": loc, "scale": scale}), BOUNDED))

    same = grad(f, (0, 1))(whole["teacher", "loc"], whole["teacher", "scale"])
    assert_close(same, tuple(torch.zeros_like(x) for x in same))


def test_samples_of_a_one_hot_distribution():
    samples = {
        "action_samples": draw(3, 6, 4).argmax(-1),
        "policy_weight": draw(4, 6).exp(),
    }
    whole = td(**logits(0), **samples)

    def one_hot(logits):
        return td_.OneHotCategorical(logits=logits, validate_args=False)

    assert_close(distillation_loss(whole, one_hot)[KEY], distillation_loss(whole)[KEY])


@pytest.mark.parametrize(
    ("whole", "dist_class", "error", "text"),
    [
        (td(**normal(0), teacher=td(**logits(1))), td_.Normal, TypeError, "does not take logits"),
        (td(**normal(0), teacher=td()), td_.Normal, ValueError, "no 'teacher.logits'"),
        (
            td(**normal(0), teacher=td(loc=draw(1, 2), scale=draw(2, 2).exp())),
            independent_normal,
            ValueError,
            "shapes",
        ),
        (
            taught(lambda s: {"loc": draw(s, 3), "scale": draw(s, 3).exp()}),
            td_.StudentT,
            ValueError,
            "no divergence is known",
        ),
    ],
)
def test_bad_input(whole, dist_class, error, text):
    if dist_class is td_.StudentT:
        dist_class = lambda loc, scale: td_.StudentT(3.0, loc, scale)  # noqa: E731
    with pytest.raises(error, match=f"^distillation_loss: .*{text}"):
        distillation_loss(whole, dist_class)
