"""Numbers that a long run meets, float32 throughout: no NaN that the mathematics does not have.

The rows of the contract are run with extreme numbers in one entry at a time, for the value, the
gradient and the second derivative; policies with probabilities of exactly 0 and 1, ratios far from
1 and equal advantages have cases of their own.
"""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Categorical
from torch.testing import assert_close

import losses
from losses import independent_normal, masked_categorical, tanh_normal
from paramtree import tree
from tests.contract.case import Function, Reducer, changed, leaves, numbers
from tests.contract.cases import LOSSES
from tests.losses.extremes import (
    SIZE,
    TAKEN,
    differentiated,
    finite,
    of_td,
    policy_td,
    single,
)

FUNCTIONS = [row for row in LOSSES if isinstance(row, Function)]
S, NAN, INF = torch.float32, math.nan, math.inf


def reading(row, finished):
    """A td in float32, and a call of the reducer that makes its targets itself or finds them."""
    td = row.td()
    hyper = {name: x.float() for name, x in tree.entries(numbers(row.hyper)).items()}
    options = {"subset": [0, 1]} if row.name == "redq_critic_loss" else {}
    if finished and row.targets is not None:
        td = row.targets(td, tree.entries(numbers({**row.hyper, **row.target_hyper})))
        options = {}
    elif row.targets is not None:
        hyper |= {name: torch.tensor(x, dtype=S) for name, x in row.target_hyper.items()}
    options |= {name: single(x) for name, x in row.options.items() if isinstance(x, torch.Tensor)}

    def call(td, hyper, **more):
        return row.call(td, hyper, **options, **more)

    return td.apply(single), hyper, call


ROADS = [
    pytest.param(row, finished, id=f"{row.name}-{'finished' if finished else 'made'}")
    for row in LOSSES
    if isinstance(row, Reducer)
    for finished in ((True, False) if row.targets is not None else (True,))
]
every_road = pytest.mark.parametrize(("row", "finished"), ROADS)


def of_function(row, hyper):
    """The call of a row's function as one of its floats and these hyper-parameters, and those."""
    args = row.args()
    args = {k: x.apply(single) if isinstance(x, TensorDict) else single(x) for k, x in args.items()}
    floats = {k for k, x in args.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}

    def run(live):
        named = {**args, **{key: live[key] for key in floats}}
        out = row.call(named, {name: live["hyper", name] for name in hyper})
        return list(out) if isinstance(out, tuple) else tree.leaves(out)

    numbers = {("hyper", name): torch.tensor(row.hyper[name], dtype=S) for name in hyper}
    return run, {**{key: args[key] for key in floats}, **numbers}


def extremes(x, size):
    """Tensors like x: of both signs, of one number of this size, and of one sign."""
    mixed, one = torch.full_like(x, size).flatten(), x.clone().flatten()
    mixed[::2], one[0] = -size, size
    return mixed.reshape(x.shape), one.reshape(x.shape), torch.full_like(x, size)


# ---------------------------------------------------------------------------------- large and equal

# probabilities, weights and divergences, which are not any number
BOUNDED = {"y_hat", "value_target_probs", "importance_weight", "kl_mean", "kl_std", "policy_weight"}
BOUNDED |= {"tau", "support", "support_to"}


@every_road
@pytest.mark.parametrize("size", [80.0, 1e6])
def test_large_numbers_in_an_entry(row, finished, size):
    """All at once, of both signs, and one beside ordinary ones."""
    td, hyper, call = reading(row, finished)
    run, inputs = of_td(call, td, hyper)
    for key, x in inputs.items():
        probabilities = key in BOUNDED or (key == "value_target" and x.dim() > 2)
        beyond = size > 80 and key == "action_log_prob"  # its ratio is no number of float32
        if key[0] == "hyper" or probabilities or beyond:
            continue
        for other in extremes(x, size):
            finite(run, {**inputs, key: other}, f"{key} of size {size}")


@every_road
@pytest.mark.parametrize("number", [0.0, 0.1, 1000.1])
def test_equal_numbers_in_an_entry(row, finished, number):
    """Ties in each maximum and minimum, deviations of 0, distances of 0."""
    td, hyper, call = reading(row, finished)
    run, inputs = of_td(call, td, hyper)
    for key, x in inputs.items():
        if key[0] != "hyper" and not (number == 0 and key == "importance_weight"):
            finite(run, {**inputs, key: torch.full_like(x, number)}, f"{key} all {number}")


PLAIN = [  # with a tx values live in the space of a logarithm, whose inverse is an exponential
    row for row in FUNCTIONS if "tx" not in row.options
]


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.name)
def test_large_and_equal_numbers_in_a_function(row):
    """Of the size 80; for the arguments that are any real number."""
    # a leak takes the ratio as it is, and the product of two is beyond float32
    run, inputs = of_function(row, [name for name in row.hyper if name != "leak"])
    for key, x in inputs.items():
        if key[0] != "hyper" and key not in BOUNDED and (row.name, key) != ("reverse_linear", "a"):
            for other in (*extremes(x, 80.0)[:2], torch.full_like(x, 0.1), torch.zeros_like(x)):
                finite(run, {**inputs, key: other}, key)


# ------------------------------------------------------------------------ masked and terminated NaN


@every_road
def test_nan_in_masked_steps(row, finished):
    """In all that holds a number, hyper-parameters per step too: as if the step were not there."""
    td, hyper, call = reading(row, finished)
    mask = torch.tensor([[True, True, False, True, True], [False, True, True, True, False]])
    hyper = {name: x.expand(SIZE) for name, x in hyper.items()}

    def spoiled(x):
        return torch.where(mask.reshape(*SIZE, *(1,) * (x.dim() - 2)), x, NAN)

    clean = td.copy().set("mask", mask)
    junk = {k: spoiled(x) for k, x in leaves(td) if x.is_floating_point()}
    run, inputs = of_td(call, changed(clean, junk), {k: spoiled(x) for k, x in hyper.items()})
    finite(run, inputs)
    plain, plain_inputs = of_td(call, clean, hyper)
    found, expected = (differentiated(*each) for each in ((run, inputs), (plain, plain_inputs)))
    assert_close(found[0], expected[0])
    for key, x in expected[1].items():
        if x is not None:
            assert_close(found[1][key], x)


@every_road
def test_a_mask_that_leaves_out_every_step(row, finished):
    """Their sum is 0 and carries no NaN back; only the mean of nothing is NaN."""
    td, hyper, call = reading(row, finished)
    empty = td.apply(lambda x: torch.full_like(x, NAN) if x.is_floating_point() else x)
    empty = empty.copy().set("mask", torch.zeros(SIZE, dtype=torch.bool))

    def summed(td, hyper):
        out = call(td, hyper, reduction="sum")
        return out.select(*(key for key in out.keys() if key.startswith("loss_")))

    run, inputs = of_td(summed, empty, hyper)
    finite(run, inputs)
    assert all(x == 0 for x in run(inputs))


FOLLOWED = [road for road in ROADS if ("next", "terminated") in road.values[0].td().keys(True)]


@pytest.mark.parametrize(("row", "finished"), FOLLOWED)
def test_nan_under_next_where_nothing_follows(row, finished):
    """At terminated steps, some and all of them; the reward is the step's own."""
    td, hyper, call = reading(row, finished)
    for ended in (td["next", "terminated"], torch.ones(SIZE, dtype=torch.bool)):
        flags = {("next", "terminated"): ended, ("next", "done"): td["next", "done"] | ended}
        there = changed(td, flags)
        junk = {
            key: torch.where(ended.reshape(*SIZE, *(1,) * (x.dim() - 2)), NAN, x)
            for key, x in leaves(there)
            if isinstance(key, tuple) and key[0] == "next"
            if x.is_floating_point() and key[1] != "reward"
        }
        run, inputs = of_td(call, changed(there, junk), hyper)
        finite(run, inputs)
        plain = {key: x.nan_to_num(0.0) for key, x in junk.items()}
        assert_close(run(inputs), run({**inputs, **plain}))


# --------------------------------------------------------------------------------- hyper-parameters


UNIT = "gamma lmbda reference_gamma reference_lmbda expectile leak step_size action_gap_scale"
FROM_0 = (
    "alpha kappa value_clip eps_high entropy_coeff critic_coeff dqda_clipping trace noise_clip "
    "sigma min_q_weight epsilon decay"
)
EDGES = {
    **dict.fromkeys(UNIT.split(), (0.0, 1.0)),
    **dict.fromkeys(FROM_0.split(), (0.0,)),
    **dict.fromkeys(["rho_clip", "c_clip", "pg_rho_clip"], (0.0, INF)),
    "eps_low": (0.0, 1.0),
    "max_weight": (INF,),
}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        pytest.param(row, name, id=f"{row.name}-{name}")
        for row in LOSSES
        if isinstance(row, Reducer | Function) and row.name != "discovered_policy_loss"
        for name in {**row.hyper, **getattr(row, "target_hyper", {})}
        if name in EDGES
    ],
)
def test_a_hyper_parameter_at_the_end_of_its_range(row, name):
    """As a tensor that wants a gradient, and one that is infinite or 0 is no trap for it."""
    if isinstance(row, Reducer):
        td, hyper, call = reading(row, name not in row.target_hyper)
        run, inputs = of_td(call, td, hyper)
    else:
        run, inputs = of_function(row, row.hyper)
    for x in EDGES[name]:
        finite(run, {**inputs, ("hyper", name): torch.full_like(inputs["hyper", name], x)}, str(x))


# ----------------------------------------------------------------------------------------- policies


NORMALIZED = "ppo_loss ppo_clip_loss ppo_kl_penalty_loss discovered_policy_loss"
PLAIN = "reinforce_loss entropy_loss awr_loss lpg_agent_loss lpg_regularizer_loss lpg_meta_loss"
POLICY_LOSSES = {
    **dict.fromkeys(["a2c_loss", "policy_gradient_loss", "bc_loss"], {"entropy_coeff": 0.1}),
    **dict.fromkeys(NORMALIZED.split(), {"normalize_advantage": True}),
    **dict.fromkeys([*PLAIN.split(), "mgrl_outer_loss"], {}),
    "dice_loss": {"gamma": 0.9},
    "vmpo_loss": {"temperature": 0.5},
}
CATEGORICAL_LOSSES = {
    **POLICY_LOSSES,
    **dict.fromkeys(["disco_meta_loss", "qpg_loss", "rm_loss", "rpg_loss"], {}),
    "discrete_sac_actor_loss": {"alpha": 0.1},
    "discrete_sac_temperature_loss": {"log_alpha": 0.1},
}
ONE = torch.tensor([0.0, 1.0, 0.0]).expand(*SIZE, 3)  # the action 1, for sure
NEARLY = {"logits": (ONE - 1) * 1e9}
CERTAIN = {"logits": ONE.log()}
SURE = {"probs": ONE}
ONLY = {"logits": torch.full((*SIZE, 3), -INF).where(~ONE.bool(), 3.0), "action_mask": ONE.bool()}
TWO = {"logits": torch.tensor([80.0, -80.0, NAN]).expand(*SIZE, 3)}
TWO["action_mask"] = torch.tensor([True, True, False]).expand(*SIZE, 3)
POLICIES = {
    "logits of -1e9": (NEARLY, TAKEN, Categorical),
    "logits of -inf": (CERTAIN, TAKEN, Categorical),
    "one-hot probabilities": (SURE, TAKEN, Categorical),
    "one-hot probabilities, another action": (SURE, 0 * TAKEN, Categorical),
    "one action allowed": (ONLY, TAKEN, masked_categorical),
    "one action allowed, one-hot": (ONLY, ONE, masked_categorical),
    "log-probabilities of 0 and -160": (TWO, TAKEN, masked_categorical),
}
REAL = {
    "on the bounds": (0.0, 1.0, torch.tensor([1.0, -1.0]), tanh_normal),
    "saturated": (80.0, 1.0, torch.tensor([1.0, -1.0]), tanh_normal),
    "narrow and squashed": (0.5, 1e-3, torch.tensor([0.5, 0.4]).tanh(), tanh_normal),
    "far off": (80.0, 1.0, torch.tensor([0.0, -80.0]), independent_normal),
    "narrow": (1.0, 1e-6, torch.tensor([1.0, 1.0]), independent_normal),
}


def held(name, td, dist_class, hyper):
    """Each loss of a policy is finite, and so are its derivatives in all that the td holds."""
    names = td.select("logits", "probs", "loc", "scale", "action_mask", strict=False)
    td = td.copy().set("behavior", names.copy().set("state_value", td["state_value"]))

    def call(td, _):
        out = getattr(losses, name)(td, dist_class, **hyper)
        return out.select(*(key for key in out.keys() if key.startswith("loss_")))

    finite(*of_td(call, td, {}), name)


@pytest.mark.parametrize("name", CATEGORICAL_LOSSES)
@pytest.mark.parametrize("policy", POLICIES)
def test_probabilities_of_zero_and_one(name, policy):
    parameters, action, dist_class = POLICIES[policy]
    held(name, policy_td(**parameters, action=action), dist_class, CATEGORICAL_LOSSES[name])


@pytest.mark.parametrize("name", POLICY_LOSSES)
@pytest.mark.parametrize("policy", REAL)
def test_saturated_and_narrow_policies_of_real_actions(name, policy):
    loc, scale, action, dist_class = REAL[policy]
    full = [torch.full((*SIZE, 2), x) for x in (loc, scale)]
    td = policy_td(loc=full[0], scale=full[1], action=action.expand(*SIZE, 2))
    if name.startswith("ppo") or name == "discovered_policy_loss":  # the ratio is near 1
        log_prob = losses.distribution(td, dist_class).log_prob(td["action"])
        td = changed(td, {"action_log_prob": log_prob - 0.1})
    held(name, td, dist_class, POLICY_LOSSES[name])


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("prediction", [-INF, -1e9, -200.0])
def test_a_prediction_that_is_certain(eps, prediction):
    """An entry of y that is 0 has no part in the divergence, whether y_hat is 0 there or not."""
    td = policy_td(logits=torch.zeros(*SIZE, 3), action=TAKEN)
    td["prediction"] = torch.tensor([0.0, prediction]).expand(*SIZE, 2)
    td["y_hat"] = torch.tensor([1.0, 0.0]).expand(*SIZE, 2).clone()
    td["y_hat"][0] = 0.5
    run, inputs = of_td(lambda td, _: losses.lpg_agent_loss(td, eps=eps), td, {})
    if prediction == -INF or eps:  # else the divergence from a y_hat of 0 is a true infinity
        finite(run, inputs)
    else:
        assert not any(x.isnan().any() for x in run(inputs))
