"""Bad arguments, each of its own kind: policies, divergences, states and options.

``test_bad_input`` has what all functions have in common.
"""

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Categorical

import losses
from losses import independent_normal, joint, masked_categorical, tanh_normal
from tests.losses.refusals import SIZE, refused, steps

# ----------------------------------------------------------------------------------------- policies


def normals(**entries):
    ones = torch.ones(*SIZE, 3)
    real = {"loc": 0 * ones, "scale": ones, "action": 0 * ones, "advantage": torch.ones(SIZE)}
    return TensorDict({**real, **entries}, SIZE)


POLICIES = {
    "no callable": (steps(), "Categorical", TypeError, "dist_class"),
    "gives a number": (steps(), lambda logits: 3, (TypeError, ValueError), "log_prob"),
    "gives no log_prob": (steps(), lambda logits: object(), (TypeError, ValueError), "log_prob"),
    "negative probabilities": (
        steps(probs=-torch.ones(*SIZE, 3)).exclude("logits"),
        Categorical,
        ValueError,
        "probs",
    ),
    "logits and probs": (steps(probs=torch.ones(*SIZE, 3)), Categorical, ValueError, "probs"),
    "logits of integers": (
        steps(logits=torch.ones(*SIZE, 3).long()),
        Categorical,
        TypeError,
        "logits",
    ),
    "no parameters": (steps().exclude("logits"), Categorical, ValueError, "its keys are"),
    "an index out of range": (steps(action=torch.full(SIZE, 3)), Categorical, ValueError, "0 to 2"),
    "a negative index": (steps(action=torch.full(SIZE, -1)), Categorical, ValueError, "0 to 2"),
    "a bool action": (steps(action=torch.ones(SIZE).bool()), Categorical, TypeError, "action"),
    "a float action": (steps(action=torch.ones(SIZE)), Categorical, TypeError, "action"),
    "two of one-hot": (steps(action=torch.ones(*SIZE, 3)), Categorical, ValueError, "one-hot"),
    "no action mask": (steps(), masked_categorical, ValueError, "action_mask"),
    "a float action mask": (
        steps(action_mask=torch.ones(*SIZE, 3)),
        masked_categorical,
        TypeError,
        "action_mask",
    ),
    "another scale": (normals(scale=torch.ones(*SIZE, 4)), independent_normal, ValueError, "scale"),
    "a negative scale": (
        normals(scale=-torch.ones(*SIZE, 3)),
        independent_normal,
        ValueError,
        "scale",
    ),
    "a squashed negative scale": (
        normals(scale=-torch.ones(*SIZE, 3)),
        tanh_normal,
        ValueError,
        "scale",
    ),
    "probabilities of 0": (
        steps(probs=torch.eye(3)[[0, 1, 1, 2, 2]].expand(*SIZE, 3) * torch.tensor([1.0, 1.0, 0.0]))
        .exclude("logits")
        .copy(),
        Categorical,
        ValueError,
        "a row of zeros",
    ),
    "an action of fewer components": (
        normals(action=torch.zeros(*SIZE, 2)),
        independent_normal,
        ValueError,
        "action",
    ),
    "an action of integers": (
        normals(action=torch.zeros(*SIZE, 3).long()),
        tanh_normal,
        TypeError,
        "action",
    ),
    "heads that are not there": (steps(), joint(a=Categorical), (ValueError, TypeError), ""),
}


@pytest.mark.parametrize("case", POLICIES)
def test_a_policy(case):
    td, dist_class, error, word = POLICIES[case]
    td = td.copy().set("advantage", torch.ones(SIZE))
    name = "policy_gradient_loss"
    refused(lambda: losses.policy_gradient_loss(td, dist_class), name, error, word)


def test_a_divergence_of_different_sizes():
    pairs = [
        [Categorical(logits=torch.zeros(4, n)) for n in (3, 5)],
        [make(torch.zeros(4, n), torch.ones(4, n)) for n in (3, 5) for make in [tanh_normal]],
        [independent_normal(torch.zeros(4, n), torch.ones(4, n)) for n in (3, 5)],
    ]
    for p, q in pairs:
        refused(lambda p=p, q=q: losses.kl_divergence(p, q), "kl_divergence", ValueError, "3", "5")
    td = steps(advantage=torch.ones(SIZE), behavior=TensorDict({"logits": torch.zeros(*SIZE, 4)}))
    name = "ppo_kl_penalty_loss"
    refused(lambda: losses.ppo_kl_penalty_loss(td, critic_coeff=None), name, ValueError, "4")


# ----------------------------------------------------------------------------------------- others

PAIR = [torch.ones(2)] * 3  # a value, the one from before, and a target


def redq(subset):
    return lambda: losses.redq_critic_loss(steps(), gamma=0.9, alpha=0.1, subset=subset)


def moved(**options):
    args = (losses.popart_init(2), torch.ones(2), torch.zeros(2).long())
    return lambda: losses.popart_update(*args, **options)


def scaled(**options):
    return lambda: losses.return_scale_update(losses.return_scale_init(), torch.ones(2), **options)


MORE = [
    (
        "vmpo_weights",
        lambda: losses.vmpo_weights(PAIR[0], 1.0, torch.tensor(0.5)),
        "top_k_fraction",
    ),
    ("vmpo_weights", lambda: losses.vmpo_weights(torch.ones(0), 1.0), "at least one step"),
    (
        "vmpo_temperature_dual",
        lambda: losses.vmpo_temperature_dual(torch.ones(0), 1.0, 0.1),
        "(0,)",
    ),
    ("redq_critic_loss", redq([[0, 1], [1]]), "subset"),
    ("redq_critic_loss", redq(["a"]), "subset"),
    ("redq_critic_loss", redq([]), "subset"),
    ("redq_critic_loss", redq([5]), "0 to 1"),
    ("ema_moments_init", lambda: losses.ema_moments_init((-1,)), "shape[0] is -1"),
    ("ema_moments_init", lambda: losses.ema_moments_init("ab"), "a str"),
    ("ema_moments_init", lambda: losses.ema_moments_init(3), "an int"),
    ("ema_moments_init", lambda: losses.ema_moments_init((2.5,)), "a float"),
    ("ema_moments_init", lambda: losses.ema_moments_init((), torch.int64), "torch.int64"),
    ("return_scale_init", lambda: losses.return_scale_init(torch.bool), "torch.bool"),
    ("popart_init", lambda: losses.popart_init(2, torch.int32), "torch.int32"),
    ("popart_init", lambda: losses.popart_init(2, "float"), "a str"),
    ("popart_update", moved(scale_lb=2.0, scale_ub=1.0), "scale_lb <= scale_ub"),
    ("return_scale_update", scaled(low_quantile=0.9, high_quantile=0.1), "low_quantile is 0.9"),
    ("clipped_error", lambda: losses.clipped_error(*PAIR, 0.1, distance=None), "distance is None"),
    ("clipped_error", lambda: losses.clipped_error(*PAIR, 0.1, lambda a, b: 1.0), "a float"),
    ("clipped_error", lambda: losses.clipped_error(*PAIR, 0.1, lambda a, b: (a - b).sum()), "()"),
    (
        "add_advantage",
        lambda: losses.add_advantage(steps(), 0.9, 0.8, normalize=True, eps=-1.0),
        "eps",
    ),
    ("as_module", lambda: losses.as_module(3), ""),
]


@pytest.mark.parametrize(("name", "call", "words"), MORE)
def test_others(name, call, words):
    refused(call, name, (ValueError, TypeError), words)
