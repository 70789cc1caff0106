# pyright: reportArgumentType=false, reportCallIssue=false
"""What the policy that acted made of the action, in every form in which TorchRL's actors write it.

Each form is held against the same td with the sum per step under ``action_log_prob``.
"""

import functools

import pytest
import torch
import torch.distributions as td_
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    ProbabilisticTensorDictModule,
    set_composite_lp_aggregate,
)
from torch.distributions import Categorical
from torch.func import grad, vmap
from torch.testing import assert_close

import losses
from losses import independent_normal, joint, tanh_normal, total

SIZE = (2, 5)
D = torch.float64
HEADS = joint(steer=independent_normal, gear=Categorical)
NORMALS = joint(steer=td_.Normal, gear=Categorical)
NESTED = joint(car=HEADS, radio=Categorical)
COMPOSITE = functools.partial(
    CompositeDistribution, distribution_map={"steer": td_.Normal, "gear": Categorical}
)
FUNCTIONS = [
    losses.ppo_loss,
    losses.ppo_clip_loss,
    losses.ppo_kl_penalty_loss,
    losses.discovered_policy_loss,
    functools.partial(losses.add_vtrace, gamma=0.9),
]


def draw(seed, *shape):
    return torch.randn(*SIZE, *shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def td(**entries):
    return TensorDict(entries, SIZE)


def parameters(seed):
    steer = td(loc=draw(seed, 2), scale=draw(seed + 1, 2).mul(0.3).exp())
    return td(steer=steer, gear=td(logits=draw(seed + 2, 3)))


STEER, GEAR = draw(7, 2), draw(8, 3).argmax(-1)
MU_STEER, MU_GEAR, MU_RADIO = -draw(9, 2).square(), -draw(10).square(), -draw(11).square()
RADIO = draw(12, 4).argmax(-1)
SUM = MU_STEER.sum(-1) + MU_GEAR


def trajectory(**entries):
    follows = {
        "reward": draw(20),
        "done": draw(21) > 0.5,
        "terminated": draw(21) > 0.9,
        "state_value": draw(22),
    }
    values = {name: draw(23 + i) for i, name in enumerate(("advantage", "value_target"))}
    return td(state_value=draw(25), next=td(**follows), **values, **entries)


def driven(action_log_prob=None, **beside):
    """A td of two heads, with their log-probabilities in one form or the other."""
    entries = {} if action_log_prob is None else {"action_log_prob": action_log_prob}
    action = td(steer=STEER, gear=GEAR, **beside)
    policies = {"params": parameters(0), "behavior": td(params=parameters(30))}
    return trajectory(action=action, **policies, **entries)


def nested(action_log_prob=None, car=None, **beside):
    entries = {} if action_log_prob is None else {"action_log_prob": action_log_prob}
    params = [td(car=parameters(s), radio=td(logits=draw(s + 3, 4))) for s in (0, 30)]
    action = td(car=td(steer=STEER, gear=GEAR, **(car or {})), radio=RADIO, **beside)
    policies = {"params": params[0], "behavior": td(params=params[1])}
    return trajectory(action=action, **policies, **entries)


def at_root(**entries):
    return driven().exclude("action").update({"steer": STEER, "gear": GEAR, **entries})


SUFFIXED = {"steer_log_prob": MU_STEER, "gear_log_prob": MU_GEAR}
WHOLE = SUM + MU_RADIO
FORMS = {
    "heads": (HEADS, driven(td(steer=MU_STEER.sum(-1), gear=MU_GEAR)), SUM),
    "components": (HEADS, driven(td(steer=MU_STEER, gear=MU_GEAR)), SUM),
    "components apart": (NORMALS, driven(td(steer=MU_STEER, gear=MU_GEAR)), SUM),
    "trailing axis": (HEADS, driven(td(steer=MU_STEER, gear=MU_GEAR.unsqueeze(-1))), SUM),
    "suffixed": (HEADS, driven(td(**SUFFIXED)), SUM),
    "beside": (HEADS, driven(**SUFFIXED), SUM),
    "beside, with their sum": (HEADS, driven(SUM, **SUFFIXED), SUM),
    "composite": (COMPOSITE, driven(td(**SUFFIXED)), SUM),
    "composite, beside": (COMPOSITE, driven(**SUFFIXED), SUM),
    "composite at root": (COMPOSITE, at_root(**SUFFIXED), SUM),
    "composite at root, a td": (COMPOSITE, at_root(action_log_prob=td(**SUFFIXED)), SUM),
    "nested": (NESTED, nested(td(car=td(**SUFFIXED), radio=MU_RADIO)), WHOLE),
    "nested, a head's sum": (NESTED, nested(td(car=SUM, radio=MU_RADIO)), WHOLE),
    "nested, beside": (NESTED, nested(car=SUFFIXED, radio_log_prob=MU_RADIO), WHOLE),
    "nested, a head's sum beside": (
        NESTED,
        nested(car_log_prob=SUM, radio_log_prob=MU_RADIO),
        WHOLE,
    ),
}


def has_pair(function, form):
    """TorchRL's classes know no divergence."""
    return function is not losses.ppo_kl_penalty_loss or FORMS[form][0] is not COMPOSITE


PAIRS = [
    pytest.param(f, form, id=f"{getattr(f, '__name__', 'add_vtrace')}-{form}")
    for f in FUNCTIONS
    for form in FORMS
    if has_pair(f, form)
]


@pytest.mark.parametrize(("function", "form"), PAIRS)
def test_every_form_is_their_sum(function, form):
    dist_class, whole, expected = FORMS[form]
    estimator = isinstance(function, functools.partial)
    if estimator:
        whole = whole.exclude("advantage", "value_target")
    found = function(whole, dist_class)
    wanted = function(whole.copy().set("action_log_prob", expected), dist_class)
    keys = ("advantage", "value_target") if estimator else tuple(wanted.keys())
    assert_close({k: found[k] for k in keys}, {k: wanted[k] for k in keys})


class Whole:
    """A distribution of a nested action that answers with a td of heads."""

    def __init__(self, params):
        self.heads = HEADS(**dict(params.items())).heads

    def log_prob(self, action):
        parts = {f"{k}_log_prob": dist.log_prob(action[k]) for k, dist in self.heads.items()}
        return TensorDict(parts, action.batch_size)

    def entropy(self):
        parts = {f"{k}_entropy": dist.entropy() for k, dist in self.heads.items()}
        return TensorDict({**parts, "mode": parts["gear_entropy"] * torch.nan}, SIZE)


@pytest.mark.parametrize("whole", [driven(**SUFFIXED), driven(td(**SUFFIXED))])
def test_a_distribution_that_answers_by_heads(whole):
    found, wanted = (losses.ppo_clip_loss(whole, c) for c in (Whole, HEADS))
    assert_close(found.to_dict(), wanted.to_dict())


@pytest.mark.parametrize("aggregate", [False, True])
@pytest.mark.parametrize("in_action", [False, True])
def test_what_a_composite_actor_of_torchrl_writes(aggregate, in_action):
    names = {k: ("action", k) for k in ("steer", "gear")} if in_action else None
    options = {"distribution_map": {"steer": td_.Normal, "gear": Categorical}}
    options |= {"name_map": names} if names else {}
    with set_composite_lp_aggregate(aggregate):
        actor = ProbabilisticTensorDictModule(
            in_keys=["params"],
            out_keys=list(names.values()) if names else ["steer", "gear"],
            distribution_class=CompositeDistribution,
            distribution_kwargs=options,
            return_log_prob=True,
            default_interaction_type="random",
        )
        torch.manual_seed(0)
        acted = actor(td(params=parameters(0)))
    whole = trajectory().update(acted)
    if aggregate:
        whole = whole.rename_key_("sample_log_prob", "action_log_prob")
    dist_class = functools.partial(CompositeDistribution, **options)
    out = losses.ppo_clip_loss(whole, dist_class)
    assert_close(out["kl_approx"], torch.zeros((), dtype=D))
    if in_action:
        assert_close(losses.ppo_clip_loss(whole, NORMALS)["max_ratio"], torch.ones((), dtype=D))


@pytest.mark.parametrize("dist_class", [td_.Normal, independent_normal, tanh_normal])
def test_components_of_a_real_action(dist_class):
    entries = {"loc": draw(0, 3), "scale": draw(1, 3).mul(0.3).exp(), "action": draw(2, 3).tanh()}
    if dist_class is not tanh_normal:
        entries["action"] = draw(2, 3)
    apart = -draw(3, 3).square()
    whole = trajectory(**entries)

    def run(log_prob):
        return total(
            losses.ppo_clip_loss(
                whole.copy().set("action_log_prob", log_prob), dist_class, entropy_coeff=0.0
            )
        )

    assert_close(run(apart), run(apart.sum(-1)))
    assert_close(grad(run)(apart), grad(run)(apart.sum(-1)).unsqueeze(-1).expand_as(apart))


def test_carries_gradient_maps_and_leaves_masked_steps_out():
    def f(whole):
        return total(losses.ppo_clip_loss(whole, HEADS))

    mask = draw(40) > -0.5
    for form in (driven(td(**SUFFIXED)), driven(**SUFFIXED)):
        key = (
            "action_log_prob" if "action_log_prob" in form.keys() else "action",
            "steer_log_prob",
        )
        slope = grad(lambda x, form=form, key=key: f(form.copy().set(key, x)))(MU_STEER)
        assert slope.abs().sum() > 0
        assert_close(vmap(f)(form), torch.stack([f(form[i]) for i in range(2)]))
        masked = form.copy().set("mask", mask)
        holes = masked.copy().set(key, torch.where(mask.unsqueeze(-1), MU_STEER, torch.nan))
        assert_close(f(holes), f(masked))
        slope = grad(lambda x, td=masked, key=key: f(td.copy().set(key, x)))(holes[key])
        assert slope.isfinite().all()
        torch.compiler.reset()
        assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(form), f(form))


@pytest.mark.parametrize(
    ("whole", "dist_class", "text"),
    [
        (driven(td(steer=MU_STEER)), HEADS, "the td has no 'action_log_prob.gear'"),
        (driven(steer_log_prob=MU_STEER), HEADS, "no 'action.gear_log_prob'.*sum of all heads"),
        (driven(steer_log_prob=MU_STEER), Whole, "no 'action.gear_log_prob'"),
        (driven(), HEADS, "the td has no 'action.steer_log_prob'"),
        (at_root(steer_log_prob=MU_STEER), COMPOSITE, "the td has no 'gear_log_prob'"),
        (
            driven(td(steer=MU_STEER, gear=draw(0, 3))),
            HEADS,
            r"action_log_prob.gear has shape \(2, 5, 3\), expected \[2, 5\]",
        ),
        (
            driven(td(steer=draw(0, 3), gear=MU_GEAR)),
            HEADS,
            r"action_log_prob.steer has shape \(2, 5, 3\), expected \[2, 5\]",
        ),
        (
            trajectory(
                logits=draw(0, 3),
                action=torch.nn.functional.one_hot(GEAR, 3),
                action_log_prob=draw(1, 3),
            ),
            Categorical,
            r"action_log_prob has shape \(2, 5, 3\), expected \[2, 5\]",
        ),
        (
            trajectory(logits=draw(0, 3), action=GEAR),
            Categorical,
            "the td has no 'action_log_prob'",
        ),
    ],
)
def test_what_is_lacking(whole, dist_class, text):
    with pytest.raises(ValueError, match=f"^ppo_loss: .*{text}"):
        losses.ppo_loss(whole, dist_class)


def test_an_integer_log_probability():
    with pytest.raises(TypeError, match="^ppo_loss: action_log_prob.gear has dtype int64"):
        losses.ppo_loss(driven(td(steer=MU_STEER, gear=GEAR)), HEADS)
